//! Values to types, each by its rule of `keys.rs`. An error is the sentence that stands after the value in a message.

use crate::keys::{
    BLOCK_ALIGN, BLOCK_BYTES, MAX_CLASSES, MAX_HOST_BYTES, MAX_LABEL_BYTES, MAX_LABELS, MAX_NAME_BYTES,
    MAX_PATH_BYTES, MAX_TOPIC_BYTES, Rule,
};
use crate::node::BlockClass;
use crate::tree::{Kind, Value};
use crate::units::{Bytes, SizeError, parse_time};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

fn allowed(rule: &Rule) -> String {
    format!("allowed is {}", rule.allowed())
}

fn wrong(what: &str, rule: &Rule) -> String {
    format!("{what}; {}", allowed(rule))
}

/// Returns a key as a message may show it: bounded, and without characters that could spoil a terminal.
pub(crate) fn key_shown(name: &str) -> String {
    name.chars().take(MAX_NAME_BYTES).flat_map(char::escape_debug).collect()
}

pub(crate) fn text<'a>(value: &'a Value, rule: &Rule) -> Result<&'a str, String> {
    match &value.kind {
        Kind::Text(text) => Ok(text),
        _ => Err(allowed(rule)),
    }
}

pub(crate) fn name(value: &Value, rule: &Rule) -> Result<String, String> {
    let name = text(value, rule)?;
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        // The variables that override a process part its name from the key by two underscores.
        && !name.contains("--");
    if fits { Ok(name.to_owned()) } else { Err(allowed(rule)) }
}

pub(crate) fn host(value: &Value, rule: &Rule) -> Result<String, String> {
    let host = text(value, rule)?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return if ip.is_unspecified() {
            Err(wrong("nobody can be reached there", rule))
        } else {
            Ok(host.to_owned())
        };
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits alone is a mistyped address, never a name.
    let number = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let fits = host.len() <= MAX_HOST_BYTES && host.split('.').all(label) && !number;
    if fits { Ok(host.to_owned()) } else { Err(allowed(rule)) }
}

pub(crate) fn listen(value: &Value, rule: &Rule) -> Result<SocketAddr, String> {
    match text(value, rule)?.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(allowed(rule)),
    }
}

/// Reads the base URL of a service: its host and port, and no more.
pub(crate) fn url(value: &Value, rule: &Rule) -> Result<String, String> {
    let url = text(value, rule)?;
    let authority = url.strip_prefix("http://").ok_or_else(|| allowed(rule))?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (name, port) = authority.rsplit_once(':').ok_or_else(|| allowed(rule))?;
    if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
        return Err(allowed(rule));
    }
    // An IPv6 address stands in brackets.
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let fits = match bare {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => !name.contains(':') && host(&Value::text(name, value.origin.clone()), rule).is_ok(),
    };
    if fits { Ok(format!("http://{authority}")) } else { Err(allowed(rule)) }
}

pub(crate) fn topic(value: &Value, rule: &Rule) -> Result<String, String> {
    let topic = text(value, rule)?;
    let fits = (1..=MAX_TOPIC_BYTES).contains(&topic.len()) && !topic.chars().any(char::is_control);
    if fits { Ok(topic.to_owned()) } else { Err(allowed(rule)) }
}

pub(crate) fn path(value: &Value, rule: &Rule) -> Result<String, String> {
    let path = text(value, rule)?;
    let fits = (1..=MAX_PATH_BYTES).contains(&path.len()) && !path.chars().any(char::is_control);
    if fits { Ok(path.to_owned()) } else { Err(allowed(rule)) }
}

/// Returns the position of the chosen word.
pub(crate) fn choice(value: &Value, rule: &Rule) -> Result<usize, String> {
    let Rule::Choice(words) = rule else { unreachable!("keys.rs has a choice here") };
    let word = text(value, rule)?;
    words.iter().position(|known| *known == word).ok_or_else(|| allowed(rule))
}

pub(crate) fn whole(value: &Value, rule: &Rule) -> Result<u64, String> {
    let Rule::Whole { min, max } = rule else { unreachable!("keys.rs has a whole number here") };
    let number = match &value.kind {
        Kind::Whole(number) => u64::try_from(*number).ok(),
        Kind::Text(text) if value.is_loose() => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| (min..=max).contains(&number)).ok_or_else(|| allowed(rule))
}

/// Reads a part of a whole in thousandths.
pub(crate) fn share(value: &Value, rule: &Rule) -> Result<u16, String> {
    let Rule::Share { min, max } = rule else { unreachable!("keys.rs has a share here") };
    let share = match &value.kind {
        Kind::Decimal(share) => Some(*share),
        Kind::Whole(number) => u16::try_from(*number).ok().map(f64::from),
        Kind::Text(text) if value.is_loose() => text.trim().parse().ok(),
        _ => None,
    };
    let per_mille = share.map(|share: f64| (share * 1000.0).round());
    // The range check also refuses what is not a number, so the cast loses nothing.
    let fits = |share: &f64| (f64::from(*min)..=f64::from(*max)).contains(share);
    per_mille.filter(fits).map(|share| share as u16).ok_or_else(|| allowed(rule))
}

pub(crate) fn size(value: &Value, rule: &Rule) -> Result<Bytes, String> {
    let Rule::Size { min, max, or_zero } = rule else { unreachable!("keys.rs has a size here") };
    let size = bytes(value, rule)?;
    if (*min..=*max).contains(&size.0) || (*or_zero && size.0 == 0) { Ok(size) } else { Err(allowed(rule)) }
}

fn bytes(value: &Value, rule: &Rule) -> Result<Bytes, String> {
    match &value.kind {
        Kind::Text(text) => text.parse().map_err(|error: SizeError| wrong(&error.to_string(), rule)),
        Kind::Whole(0) => Ok(Bytes(0)),
        Kind::Whole(number) if *number > 0 => Err(wrong(&SizeError::NoUnit.to_string(), rule)),
        _ => Err(allowed(rule)),
    }
}

pub(crate) fn time(value: &Value, rule: &Rule) -> Result<Duration, String> {
    let Rule::Time { min, max } = rule else { unreachable!("keys.rs has a time here") };
    let time = match &value.kind {
        Kind::Text(text) => parse_time(text),
        Kind::Whole(number) if *number >= 0 => parse_time(&number.to_string()),
        _ => return Err(allowed(rule)),
    };
    let time = time.map_err(|error| wrong(&error, rule))?;
    let (min, max) = (Duration::from_millis(*min), Duration::from_millis(*max));
    if (min..=max).contains(&time) { Ok(time) } else { Err(allowed(rule)) }
}

/// Reads a time of whole seconds.
pub(crate) fn seconds(value: &Value, rule: &Rule) -> Result<Duration, String> {
    match time(value, rule)? {
        time if time.subsec_millis() == 0 => Ok(time),
        _ => Err(wrong("it must come out at whole seconds", rule)),
    }
}

/// Reads a program and its words.
pub(crate) fn words(value: &Value, rule: &Rule) -> Result<Vec<String>, String> {
    let Rule::Words { most } = rule else { unreachable!("keys.rs has words here") };
    let Kind::List(items) = &value.kind else { return Err(allowed(rule)) };
    if !(1..=*most).contains(&items.len()) {
        return Err(allowed(rule));
    }
    items.iter().map(|item| path(item, rule)).collect()
}

/// Reads the name of a StatefulSet, with its namespace or without.
pub(crate) fn statefulset(value: &Value, rule: &Rule) -> Result<String, String> {
    let set = text(value, rule)?;
    // As Kubernetes has the names of namespaces and of host names (RFC 1123).
    let is_label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let (namespace, name) = set.split_once('/').unwrap_or(("default", set));
    if is_label(namespace) && is_label(name) { Ok(set.to_owned()) } else { Err(allowed(rule)) }
}

/// What all shares of a node's size classes add up to, and how far a hand-rounded sum may be off.
const WHOLE_PPM: u32 = 1_000_000;
const SLACK_PPM: u32 = 1_000;
/// The smallest share.
const MIN_PPM: u32 = 1_000;

/// Reads size classes, smallest first.
pub(crate) fn classes(value: &Value, rule: &Rule) -> Result<Vec<BlockClass>, String> {
    let listed;
    let items: &[Value] = match &value.kind {
        Kind::List(items) => items,
        // A variable and the default give them with commas between.
        Kind::Text(text) if value.is_loose() => {
            listed = text.split(',').map(|part| Value::text(part, value.origin.clone())).collect::<Vec<_>>();
            &listed
        }
        _ => return Err(allowed(rule)),
    };
    if !(1..=MAX_CLASSES).contains(&items.len()) {
        return Err(allowed(rule));
    }
    let even = WHOLE_PPM / u32::try_from(items.len()).expect("at most MAX_CLASSES");
    let mut classes = Vec::with_capacity(items.len());
    let mut shares = 0;
    for item in items {
        let (size, share) = class(item, rule)?;
        shares += usize::from(share.is_some());
        classes.push(BlockClass { size, share_ppm: share.unwrap_or(even) });
    }
    if shares != 0 && shares != items.len() {
        return Err(wrong("some classes have a share and some have none", rule));
    }
    let sum: u32 = classes.iter().map(|class| class.share_ppm).sum();
    if sum.abs_diff(WHOLE_PPM) > SLACK_PPM {
        let sum = f64::from(sum) / f64::from(WHOLE_PPM);
        return Err(wrong(&format!("the shares add up to {sum}, not to 1"), rule));
    }
    classes.sort_by_key(|class| class.size);
    if let Some(twice) = classes.windows(2).find(|pair| pair[0].size == pair[1].size) {
        return Err(wrong(&format!("\"{}\" is there twice", twice[0].size), rule));
    }
    Ok(classes)
}

fn class(item: &Value, rule: &Rule) -> Result<(Bytes, Option<u32>), String> {
    let (size, share) = match &item.kind {
        Kind::Table(table) => {
            if let Some(unknown) = table.keys().find(|key| *key != "size" && *key != "share") {
                return Err(wrong(&format!("unknown key {:?} of a class", key_shown(unknown)), rule));
            }
            let size = table.get("size").ok_or_else(|| wrong("a class has no size", rule))?;
            let share = table.get("share").ok_or_else(|| wrong("a class has no share", rule))?;
            (
                size,
                Some(share_ppm(share).ok_or_else(|| {
                    wrong(&format!("a share is a number from 0.001 to 1, not {}", share.shown()), rule)
                })?),
            )
        }
        _ => (item, None),
    };
    let bytes = bytes(size, rule)?;
    if !(BLOCK_BYTES.0..=BLOCK_BYTES.1).contains(&bytes.0) || !bytes.0.is_multiple_of(BLOCK_ALIGN) {
        return Err(wrong(&format!("\"{bytes}\" is no block size"), rule));
    }
    Ok((bytes, share))
}

fn share_ppm(share: &Value) -> Option<u32> {
    let share = match share.kind {
        Kind::Decimal(share) => share,
        Kind::Whole(1) => 1.0,
        _ => return None,
    };
    let ppm = (share * f64::from(WHOLE_PPM)).round();
    // The range check also refuses what is not a number, so the cast loses nothing.
    (f64::from(MIN_PPM)..=f64::from(WHOLE_PPM)).contains(&ppm).then_some(ppm as u32)
}

pub(crate) fn labels(value: &Value, rule: &Rule) -> Result<BTreeMap<String, String>, String> {
    let Kind::Table(table) = &value.kind else { return Err(allowed(rule)) };
    if table.len() > MAX_LABELS {
        return Err(wrong(&format!("there are {} labels", table.len()), rule));
    }
    let mut labels = BTreeMap::new();
    for (key, value) in table {
        let key_fits = (1..=MAX_LABEL_BYTES).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
        let text = match &value.kind {
            Kind::Text(text) if text.len() <= MAX_LABEL_BYTES && !text.chars().any(char::is_control) => text,
            _ => {
                return Err(wrong(
                    &format!("the value of \"{}\" is {}", key_shown(key), value.shown()),
                    rule,
                ));
            }
        };
        if !key_fits {
            return Err(wrong(&format!("\"{}\" is no key of a label", key_shown(key)), rule));
        }
        labels.insert(key.clone(), text.clone());
    }
    Ok(labels)
}
