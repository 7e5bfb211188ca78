//! What a request asks: its arguments, checked, as one of the commands that are known here. What cannot be honoured is refused
//! by name and never left out in silence.

use super::parse::{Request, number};
use super::reply::Reply;
use bytes::Bytes;
use kvhive_protocol::names::{Life, MAX_NAME_BYTES, When};
use std::time::{SystemTime, UNIX_EPOCH};

/// The most names that one scan is told at a time.
const MAX_COUNT: u32 = 1000;
/// Names that it is told if it does not say.
const COUNT: u32 = 10;
/// The longest pattern.
const MAX_PATTERN_BYTES: usize = 1024;

/// How commands are called, and how many arguments they have, themselves among them: at least so many where it is negative.
pub(super) const COMMANDS: &[(&str, i64)] = &[
    ("auth", -2),
    ("client", -2),
    ("command", -1),
    ("config", -2),
    ("dbsize", 1),
    ("del", -2),
    ("echo", 2),
    ("exists", -2),
    ("get", 2),
    ("hello", -1),
    ("info", -1),
    ("mget", -2),
    ("mset", -3),
    ("ping", -1),
    ("psetex", 4),
    ("pttl", 2),
    ("quit", -1),
    ("reset", 1),
    ("scan", -2),
    ("select", 2),
    ("set", -3),
    ("setex", 4),
    ("setnx", 3),
    ("strlen", 2),
    ("ttl", 2),
    ("type", 2),
    ("unlink", -2),
];

/// What is asked, whoever asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command {
    Ping(Option<Bytes>),
    Echo(Bytes),
    Quit,
    Reset,
    Hello { version: Option<i64>, auth: Option<(Bytes, Bytes)>, name: Option<Bytes> },
    Auth { user: Option<Bytes>, password: Bytes },
    Select(i64),
    Client(Client),
    Commands(Commands),
    Config(Vec<Bytes>),
    Info(Vec<String>),
    Values(Ask),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Client {
    SetName(Bytes),
    GetName,
    Id,
    SetInfo,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Commands {
    All,
    Some(Vec<String>),
    Count,
    Docs,
}

/// What is asked of values: what takes a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Get(Bytes),
    MGet(Vec<Bytes>),
    Set(Set),
    MSet(Vec<(Bytes, Bytes)>),
    Exists(Vec<Bytes>),
    Drop(Vec<Bytes>),
    Scan(Scan),
    Size,
    Length(Bytes),
    /// Milliseconds or seconds that are left.
    Left {
        name: Bytes,
        ms: bool,
    },
    Type(Bytes),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Set {
    pub(super) name: Bytes,
    pub(super) value: Bytes,
    pub(super) when: When,
    pub(super) life: Life,
    pub(super) says: Says,
}

/// What is answered to a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Says {
    /// That it was done, or nothing.
    Done,
    /// What was there before.
    Before,
    /// 1 or 0.
    Number,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Scan {
    pub(super) cursor: u64,
    pub(super) pattern: Option<Bytes>,
    pub(super) count: u32,
    /// No name is of the type that is asked for.
    pub(super) nothing: bool,
}

type Parsed = Result<Command, Reply>;

impl Command {
    /// Reads a request.
    ///
    /// # Errors
    /// What the caller is told.
    pub(super) fn read(request: &Request, now: SystemTime, value_bytes: usize) -> Parsed {
        let args = &request.args;
        let name = args[0].to_ascii_lowercase();
        let known = COMMANDS.iter().find(|(known, _)| known.as_bytes() == name);
        let Some((name, arity)) = known.copied() else {
            let shown = String::from_utf8_lossy(&args[0][..args[0].len().min(64)]).into_owned();
            return Err(Reply::wrong(format_args!(
                "unknown command '{shown}'; see COMMAND for those that kvhive has"
            )));
        };
        let fits = if arity < 0 { args.len() as i64 >= -arity } else { args.len() as i64 == arity };
        if !fits {
            return Err(arguments(name));
        }
        if let Some(bytes) = request.too_long {
            let most =
                format_args!("an argument of {bytes} bytes; allowed are {value_bytes} (redis_max_value)");
            return Err(Reply::wrong(most));
        }
        let rest = &args[1..];
        match name {
            "ping" if rest.len() > 1 => Err(arguments(name)),
            "ping" => Ok(Command::Ping(rest.first().cloned())),
            "echo" => Ok(Command::Echo(rest[0].clone())),
            "quit" => Ok(Command::Quit),
            "reset" => Ok(Command::Reset),
            "hello" => hello(rest),
            "auth" => match rest {
                [password] => Ok(Command::Auth { user: None, password: password.clone() }),
                [user, password] => {
                    Ok(Command::Auth { user: Some(user.clone()), password: password.clone() })
                }
                _ => Err(syntax()),
            },
            "select" => number(&rest[0]).map(Command::Select).ok_or_else(no_integer),
            "client" => client(rest),
            "command" => commands(rest),
            "config" => match rest {
                [verb, patterns @ ..] if is(verb, "get") && !patterns.is_empty() => {
                    Ok(Command::Config(patterns.to_vec()))
                }
                [verb, ..] => Err(unknown_verb("CONFIG", verb)),
                [] => Err(arguments(name)),
            },
            "info" => Ok(Command::Info(rest.iter().map(lower).collect())),
            _ => values(name, rest, now).map(Command::Values),
        }
    }
}

fn values(name: &'static str, rest: &[Bytes], now: SystemTime) -> Result<Ask, Reply> {
    let plain = |value: &Bytes, life, when, says| {
        Ok(Ask::Set(Set { name: named(&rest[0])?, value: value.clone(), when, life, says }))
    };
    match name {
        "get" => Ok(Ask::Get(named(&rest[0])?)),
        "mget" => Ok(Ask::MGet(all_named(rest)?)),
        "set" => set(rest, now).map(Ask::Set),
        "setnx" => plain(&rest[1], Life::Open, When::Absent, Says::Number),
        "setex" => plain(&rest[2], life(&rest[1], 1000, name)?, When::Always, Says::Done),
        "psetex" => plain(&rest[2], life(&rest[1], 1, name)?, When::Always, Says::Done),
        "mset" if !rest.len().is_multiple_of(2) => Err(arguments(name)),
        "mset" => {
            let pairs = rest.chunks_exact(2).map(|pair| Ok((named(&pair[0])?, pair[1].clone())));
            pairs.collect::<Result<_, Reply>>().map(Ask::MSet)
        }
        "exists" => Ok(Ask::Exists(all_named(rest)?)),
        "del" | "unlink" => Ok(Ask::Drop(all_named(rest)?)),
        "scan" => scan(rest).map(Ask::Scan),
        "dbsize" => Ok(Ask::Size),
        "strlen" => Ok(Ask::Length(named(&rest[0])?)),
        "ttl" => Ok(Ask::Left { name: named(&rest[0])?, ms: false }),
        "pttl" => Ok(Ask::Left { name: named(&rest[0])?, ms: true }),
        _ => Ok(Ask::Type(named(&rest[0])?)),
    }
}

fn set(rest: &[Bytes], now: SystemTime) -> Result<Set, Reply> {
    let mut set = Set {
        name: named(&rest[0])?,
        value: rest[1].clone(),
        when: When::Always,
        life: Life::Open,
        says: Says::Done,
    };
    let mut options = rest[2..].iter();
    while let Some(option) = options.next() {
        let option = lower(option);
        let mut time = |unit| life(options.next().ok_or_else(syntax)?, unit, "set");
        let wanted = match option.as_str() {
            "ex" => time(1000)?,
            "px" => time(1)?,
            "exat" => until(time(1000)?, now),
            "pxat" => until(time(1)?, now),
            "keepttl" => Life::Kept,
            "nx" if set.when == When::Always => {
                set.when = When::Absent;
                continue;
            }
            "xx" if set.when == When::Always => {
                set.when = When::Present;
                continue;
            }
            "get" => {
                set.says = Says::Before;
                continue;
            }
            _ => return Err(syntax()),
        };
        if set.life != Life::Open {
            return Err(syntax());
        }
        set.life = wanted;
    }
    Ok(set)
}

fn scan(rest: &[Bytes]) -> Result<Scan, Reply> {
    let cursor = number(&rest[0]).and_then(|cursor| u64::try_from(cursor).ok());
    let cursor = cursor.ok_or_else(|| Reply::wrong("invalid cursor"))?;
    let mut scan = Scan { cursor, pattern: None, count: COUNT, nothing: false };
    for pair in rest[1..].chunks(2) {
        let [option, value] = pair else { return Err(syntax()) };
        match lower(option).as_str() {
            "match" if value.len() > MAX_PATTERN_BYTES => {
                let most =
                    format_args!("a pattern of {} bytes; allowed are {MAX_PATTERN_BYTES}", value.len());
                return Err(Reply::wrong(most));
            }
            "match" => scan.pattern = Some(value.clone()),
            "count" => {
                let count = number(value).filter(|count| *count > 0).ok_or_else(no_integer)?;
                scan.count = u32::try_from(count).unwrap_or(u32::MAX).min(MAX_COUNT);
            }
            "type" => scan.nothing = !is(value, "string"),
            _ => return Err(syntax()),
        }
    }
    Ok(scan)
}

fn hello(rest: &[Bytes]) -> Parsed {
    let (version, mut rest) = match rest {
        [version, rest @ ..] => {
            let wrong = || Reply::wrong("Protocol version is not an integer or out of range");
            (Some(number(version).ok_or_else(wrong)?), rest)
        }
        [] => (None, rest),
    };
    let (mut auth, mut name) = (None, None);
    loop {
        rest = match rest {
            [] => return Ok(Command::Hello { version, auth, name }),
            [option, user, password, rest @ ..] if is(option, "auth") => {
                auth = Some((user.clone(), password.clone()));
                rest
            }
            [option, given, rest @ ..] if is(option, "setname") => {
                name = Some(client_name(given)?);
                rest
            }
            _ => return Err(syntax()),
        };
    }
}

fn client(rest: &[Bytes]) -> Parsed {
    let verb = lower(&rest[0]);
    match (verb.as_str(), &rest[1..]) {
        ("setname", [name]) => Ok(Command::Client(Client::SetName(client_name(name)?))),
        ("getname", []) => Ok(Command::Client(Client::GetName)),
        ("id", []) => Ok(Command::Client(Client::Id)),
        ("setinfo", [what, _]) if is(what, "lib-name") || is(what, "lib-ver") => {
            Ok(Command::Client(Client::SetInfo))
        }
        _ => Err(unknown_verb("CLIENT", &rest[0])),
    }
}

fn commands(rest: &[Bytes]) -> Parsed {
    let some = |names: &[Bytes]| Commands::Some(names.iter().map(lower).collect());
    let asked = match rest {
        [] => Commands::All,
        [verb] if is(verb, "count") => Commands::Count,
        [verb, ..] if is(verb, "docs") => Commands::Docs,
        [verb] if is(verb, "info") => Commands::All,
        [verb, names @ ..] if is(verb, "info") => some(names),
        [verb, ..] => return Err(unknown_verb("COMMAND", verb)),
    };
    Ok(Command::Commands(asked))
}

/// Reads a time to live, in units of so many milliseconds.
fn life(text: &Bytes, unit_ms: u64, name: &str) -> Result<Life, Reply> {
    let units = number(text).ok_or_else(no_integer)?;
    let ms =
        u64::try_from(units).ok().filter(|units| *units > 0).and_then(|units| units.checked_mul(unit_ms));
    ms.map(Life::Ms).ok_or_else(|| Reply::wrong(format_args!("invalid expire time in '{name}' command")))
}

/// Turns a time of the clock into one from now on; one that is over into the shortest.
fn until(life: Life, now: SystemTime) -> Life {
    let Life::Ms(at) = life else { return life };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Life::Ms(at.saturating_sub(u64::try_from(now).unwrap_or(u64::MAX)).max(1))
}

fn named(name: &Bytes) -> Result<Bytes, Reply> {
    if name.len() > MAX_NAME_BYTES {
        let most = format_args!("a key of {} bytes; allowed are {MAX_NAME_BYTES}", name.len());
        return Err(Reply::wrong(most));
    }
    Ok(name.clone())
}

fn all_named(names: &[Bytes]) -> Result<Vec<Bytes>, Reply> {
    names.iter().map(named).collect()
}

/// Checks what a connection wants to be called.
fn client_name(name: &Bytes) -> Result<Bytes, Reply> {
    let is_good = name.len() <= 256 && name.iter().all(u8::is_ascii_graphic);
    let wrong = || Reply::wrong("a client's name has at most 256 characters, without spaces or line ends");
    is_good.then(|| name.clone()).ok_or_else(wrong)
}

fn is(given: &Bytes, word: &str) -> bool {
    given.eq_ignore_ascii_case(word.as_bytes())
}

fn lower(given: &Bytes) -> String {
    String::from_utf8_lossy(given).to_ascii_lowercase()
}

fn syntax() -> Reply {
    Reply::wrong("syntax error")
}

fn no_integer() -> Reply {
    Reply::wrong("value is not an integer or out of range")
}

fn arguments(name: &str) -> Reply {
    Reply::wrong(format_args!("wrong number of arguments for '{name}' command"))
}

fn unknown_verb(of: &str, verb: &Bytes) -> Reply {
    let shown = String::from_utf8_lossy(&verb[..verb.len().min(64)]).into_owned();
    Reply::wrong(format_args!("kvhive has no {of} {shown} with these arguments"))
}

#[cfg(test)]
#[path = "command_test.rs"]
mod tests;
