//! Texts: ids and names, cluster files with the variables beside them, and requests of Redis's clients.

use crate::same_again;
use kvhive_config::{Bytes, ClusterConfig, Token};
use kvhive_protocol::trace::Parent;
use kvhive_protocol::{BlockKey, LayoutFingerprint, Reason, Strategy};
use kvhive_protocol::{TraceId, trace::SpanId};
use std::str::FromStr;

/// A word; the first byte says what it is to be. It is shown as it was read, but for upper case.
pub(crate) fn words(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let shown = match which % 9 {
        0 => LayoutFingerprint::parse(text).map(|read| read.to_string()),
        1 => BlockKey::from_hex(text).map(|read| read.to_string()),
        2 => TraceId::from_str(text).ok().map(|read| read.to_string()),
        3 => SpanId::from_str(text).ok().map(|read| read.to_string()),
        4 => Strategy::from_str(text).ok().map(|read| read.to_string()),
        5 => Reason::try_from(text.to_owned()).ok().map(|read| read.to_string()),
        6 => Token::parse(text).ok().map(|read| read.as_str().to_owned()).filter(|_| text.trim() == text),
        7 => {
            if let Ok(Parent::Sampled(context)) = Parent::from_str(text) {
                assert_eq!(
                    Parent::from_str(&format!("00-{}-{}-01", context.trace, context.span)),
                    Ok(Parent::Sampled(context))
                );
            }
            None
        }
        _ => {
            if let Ok(read) = Bytes::from_str(text) {
                assert_eq!(Bytes::from_str(&read.to_string()), Ok(read));
            }
            None
        }
    };
    let Some(shown) = shown else { return false };
    let is_hex = which % 9 < 2;
    assert!(
        shown == text || (is_hex && shown == text.to_ascii_lowercase()),
        "{text:?} was read as {shown:?}"
    );
    true
}

/// A cluster file; behind a zero byte variables, one a line.
pub(crate) fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let (file, variables) = text.split_once('\0').unwrap_or((text, ""));
    let variables: Vec<(String, String)> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    match ClusterConfig::from_toml(file, variables) {
        Err(error) => {
            assert!(!error.to_string().is_empty(), "it says what is wrong");
            false
        }
        Ok(config) => {
            let Some(written) = config.to_toml() else { return false };
            let again = ClusterConfig::from_toml(&written, []);
            let again = again.unwrap_or_else(|error| panic!("{written}\n{error}"));
            assert_eq!(again.to_toml().as_deref(), Some(written.as_str()));
            true
        }
    }
}

/// Requests of Redis's clients.
pub(crate) fn redis(bytes: &[u8]) -> bool {
    same_again(bytes, kvhive_node::fuzz::redis)
}
