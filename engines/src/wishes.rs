//! What an orchestrator wishes for a request's blocks: the actions of vLLM's `kv_hints` that are kvhive's. vLLM carries them and defines none
//! itself: each component reads those that it knows, and leaves others alone.

use kvhive_protocol::data::Hint;
use serde::{Deserialize, Serialize};

/// Wishes of other components begin otherwise.
const OWN: &str = "kvhive.";
/// The only version that there is.
const VERSION: &str = "1";
/// The longest time that a wish may name, in seconds: a year.
const LONGEST: u32 = 31_536_000;
/// Bytes of an action's payload at most.
const MOST_BYTES: usize = 4096;

/// What is to become of a request's blocks once it is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Wish {
    /// They stay, under a name: for so many seconds, or until it is let go.
    Pin {
        /// What it is called.
        name: String,
        /// For how long; none: until it is let go.
        seconds: Option<u32>,
        /// Of its first tokens only.
        tokens: Option<u32>,
    },
    /// What stays under this name need not any more.
    Unpin {
        /// What it is called.
        name: String,
    },
    /// What is expected of its session.
    Session(Hint),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    name: String,
    seconds: Option<u32>,
    tokens: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unpin {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Session {
    over: Option<bool>,
    pending: Option<bool>,
    returns_after: Option<u32>,
}

impl Wish {
    /// Reads an action: its type, its version, its payload in JSON. None for one that is somebody else's.
    ///
    /// # Errors
    /// A sentence that says what is wrong, and what is allowed.
    pub fn read(kind: &str, version: &str, payload: &str) -> Result<Option<Wish>, String> {
        let Some(own) = kind.strip_prefix(OWN) else { return Ok(None) };
        if version != VERSION {
            return Err(format!("{kind} of version {version:?}: allowed is {VERSION:?}"));
        }
        if payload.len() > MOST_BYTES {
            return Err(format!("{kind}: a payload of {} bytes, at most {MOST_BYTES}", payload.len()));
        }
        let wish = match own {
            "pin" => {
                let Pin { name, seconds, tokens } = read(kind, payload)?;
                let is_named = !name.is_empty();
                let is_allowed =
                    |number: Option<u32>, most| number.is_none_or(|number| (1..=most).contains(&number));
                if !is_named || !is_allowed(seconds, LONGEST) || !is_allowed(tokens, u32::MAX) {
                    let what = "a name, seconds from 1 to a year or none, tokens from 1 on or none";
                    return Err(format!("{kind}: allowed is {what}"));
                }
                Wish::Pin { name, seconds, tokens }
            }
            "unpin" => Wish::Unpin { name: read::<Unpin>(kind, payload)?.name },
            "session" => match read(kind, payload)? {
                Session { over: Some(true), pending: None, returns_after: None } => Wish::Session(Hint::Over),
                Session { over: None, pending: Some(true), returns_after: None } => {
                    Wish::Session(Hint::Pending)
                }
                Session { over: None, pending: None, returns_after: Some(seconds) } if seconds <= LONGEST => {
                    Wish::Session(Hint::Returns(seconds))
                }
                _ => {
                    let what = r#"{"over": true}, {"pending": true} or {"returns_after": SECONDS}"#;
                    return Err(format!("{kind}: allowed is {what}"));
                }
            },
            _ => return Err(format!("{kind}: allowed is kvhive.pin, kvhive.unpin and kvhive.session")),
        };
        Ok(Some(wish))
    }
}

fn read<'a, T: Deserialize<'a>>(kind: &str, payload: &'a str) -> Result<T, String> {
    serde_json::from_str(payload).map_err(|why| format!("{kind}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_wishes_are_read_and_others_left_alone() {
        let read = |kind, payload| Wish::read(kind, "1", payload);
        assert_eq!(read("nvidia.prefetch", "{}"), Ok(None));
        let pin = |seconds, tokens| Ok(Some(Wish::Pin { name: "a".to_owned(), seconds, tokens }));
        assert_eq!(read("kvhive.pin", r#"{"name": "a"}"#), pin(None, None));
        assert_eq!(
            read("kvhive.pin", r#"{"name": "a", "seconds": 60, "tokens": 7}"#),
            pin(Some(60), Some(7))
        );
        let unpin = Wish::Unpin { name: "a".to_owned() };
        assert_eq!(read("kvhive.unpin", r#"{"name": "a"}"#), Ok(Some(unpin)));
        let session = |hint| Ok(Some(Wish::Session(hint)));
        assert_eq!(read("kvhive.session", r#"{"over": true}"#), session(Hint::Over));
        assert_eq!(read("kvhive.session", r#"{"pending": true}"#), session(Hint::Pending));
        assert_eq!(read("kvhive.session", r#"{"returns_after": 0}"#), session(Hint::Returns(0)));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_is_allowed() {
        let long = format!(r#"{{"name": "{}"}}"#, "a".repeat(5000));
        let wrong = [
            ("kvhive.pin", r#"{"seconds": 60}"#, "missing field `name`"),
            ("kvhive.pin", r#"{"name": "a", "until": 60}"#, "unknown field `until`"),
            ("kvhive.pin", r#"{"name": "a", "seconds": 0}"#, "seconds from 1 to a year"),
            ("kvhive.pin", r#"{"name": "", "seconds": 1}"#, "allowed is a name"),
            ("kvhive.pin", r#"{"name": "a", "tokens": 0}"#, "tokens from 1"),
            ("kvhive.pin", "[", "EOF"),
            ("kvhive.pin", &long, "at most 4096"),
            ("kvhive.session", r#"{"over": true, "pending": true}"#, "returns_after"),
            ("kvhive.session", r#"{"over": false}"#, "returns_after"),
            ("kvhive.keep", "{}", "allowed is kvhive.pin"),
        ];
        for (kind, payload, what) in wrong {
            let why = Wish::read(kind, "1", payload).expect_err(payload);
            assert!(why.starts_with(kind) && why.contains(what), "{why}");
        }
        assert!(
            Wish::read("kvhive.pin", "2", "{}").expect_err("no such version").contains("allowed is \"1\"")
        );
    }
}
