//! Why a command did not do what was asked, for programs: with `--json` the last line on standard error is a problem document (RFC 9457), that
//! of the coordinator that refused or one of the command line's own.

use crate::admin::Unacknowledged;
use crate::drains::{Lost, Short};
use crate::scaling::Unfit;
use kvhive_protocol::WireError;
use serde_json::{Map, Value, json};
use std::ffi::OsStr;

/// What comes before a code in a problem's type.
const TYPES: &str = "urn:kvhive:problem:";

/// A coordinator or node that refused.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub(crate) struct Refused {
    /// In words, with who did.
    said: String,
    /// Its answer, as it came; null if that was none of an admin API.
    problem: Value,
    /// All were asked, and none could do it now.
    is_for_now: bool,
}

impl Refused {
    pub(crate) fn new(said: String, answer: &str) -> Refused {
        let problem = serde_json::from_str::<Value>(answer).ok().filter(Value::is_object);
        Refused { said, problem: problem.unwrap_or_default(), is_for_now: false }
    }

    /// What all have answered of whom none can do it now, by the answer of one.
    pub(crate) fn for_now(said: String, answer: &str) -> Refused {
        Refused { is_for_now: true, ..Refused::new(said, answer) }
    }
}

/// Says whether a coordinator has answered that it is none of the cluster any more.
pub(crate) fn was_removed(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|Refused { problem, .. }| problem["code"] == "misdirected")
}

/// Returns the status with which a coordinator has refused, if one has and that is what failed.
pub(crate) fn status(error: &anyhow::Error) -> Option<u64> {
    error.downcast_ref().and_then(|Refused { problem, .. }| problem["status"].as_u64())
}

/// Returns the code with which a coordinator has refused, if one has and that is what failed.
pub(crate) fn code(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref().and_then(|Refused { problem, .. }| problem["code"].as_str())
}

/// Nobody answered.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unanswered(pub(crate) String);

/// Says whether nobody did what was asked for a reason that may pass: none answered, or none of those that did could do it now.
pub(crate) fn may_pass(error: &anyhow::Error) -> bool {
    error.is::<Unanswered>() || error.downcast_ref().is_some_and(|refused: &Refused| refused.is_for_now)
}

/// Says whether these words ask for JSON: not those that are for a program of somebody else's.
pub(crate) fn is_json(mut words: impl Iterator<Item = impl AsRef<OsStr>>) -> bool {
    words
        .find(|word| word.as_ref() == "--json" || word.as_ref() == "--")
        .is_some_and(|word| word.as_ref() != "--")
}

/// Returns the problem document of what went wrong.
pub(crate) fn document(error: &anyhow::Error) -> Value {
    let detail = format!("{error:#}");
    if let Some(Refused { problem: Value::Object(known), .. }) = error.downcast_ref() {
        return whole(known.clone(), "refused", "Refused", detail);
    }
    if let Some(Unacknowledged { problem: Value::Object(known), .. }) = error.downcast_ref() {
        return whole(known.clone(), "still_served", "Not acknowledged yet", detail);
    }
    if let Some(Lost(came_to)) = error.downcast_ref() {
        let facts = [("lost_blocks", came_to.lost_blocks), ("lost_bytes", came_to.lost_bytes)];
        let facts = facts.map(|(name, figure)| (name.to_owned(), json!(figure)));
        return whole(facts.into_iter().collect(), "blocks_lost", "Blocks were lost", detail);
    }
    if let Some(Short(room)) = error.downcast_ref() {
        let facts = [
            ("blocks", room.blocks),
            ("bytes", room.bytes),
            ("unsure_blocks", room.unsure_blocks),
            ("margin_bytes", room.margin_bytes),
            ("free_bytes", room.free_bytes),
            ("short_bytes", room.short_bytes),
        ];
        let facts = facts.map(|(name, figure)| (name.to_owned(), json!(figure)));
        return whole(facts.into_iter().collect(), "too_little_room", "Too little room", detail);
    }
    if let Some(WireError::BeyondPolicy { size, floor, ceiling }) = error.downcast_ref() {
        let facts = [("size", size), ("floor", floor), ("ceiling", ceiling)];
        let facts = facts.map(|(name, figure)| (name.to_owned(), json!(figure)));
        return whole(facts.into_iter().collect(), "beyond_policy", "Beyond the policy", detail);
    }
    if let Some(Unfit::BelowFloor { size, floor }) = error.downcast_ref() {
        let facts = [("size", size), ("floor", floor)];
        let facts = facts.map(|(name, figure)| (name.to_owned(), json!(figure)));
        return whole(facts.into_iter().collect(), "beyond_policy", "Beyond the policy", detail);
    }
    let (code, title) = match error.is::<Unanswered>() {
        true => ("unanswered", "Nobody answered"),
        false => ("failed", "Failed"),
    };
    whole(Map::new(), code, title, detail)
}

/// Returns the problem document of words that are no command.
pub(crate) fn usage(error: &clap::Error) -> Value {
    whole(Map::new(), "usage", "Not a command as it is said", error.to_string().trim_end().to_owned())
}

/// Adds what a problem document has and this one has not yet; the detail is what people are told.
fn whole(mut known: Map<String, Value>, code: &str, title: &str, detail: String) -> Value {
    known.entry("code").or_insert_with(|| json!(code));
    known.entry("title").or_insert_with(|| json!(title));
    let code = known["code"].as_str().unwrap_or(code).to_owned();
    known.entry("type").or_insert_with(|| json!(format!("{TYPES}{code}")));
    known.insert("detail".to_owned(), json!(detail));
    Value::Object(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_answer_of_a_coordinator_is_handed_on_with_who_gave_it() {
        let answer = r#"{"type":"urn:kvhive:problem:not_found","title":"Not Found","status":404,"detail":"no node x","code":"not_found"}"#;
        let refused = Refused::new("http://a answered 404: no node x".to_owned(), answer);
        let error =
            Err::<(), _>(anyhow::Error::from(refused)).context("while looking").expect_err("it was refused");
        let expected = json!({
            "type": "urn:kvhive:problem:not_found", "title": "Not Found", "status": 404, "code": "not_found",
            "detail": "while looking: http://a answered 404: no node x",
        });
        assert_eq!(document(&error), expected);
    }

    #[test]
    fn what_has_no_answer_is_a_problem_too() {
        let told = |error: anyhow::Error| {
            let document = document(&error);
            assert_eq!(document["type"], format!("{TYPES}{}", document["code"].as_str().expect("a code")));
            (document["code"].clone(), document["detail"].clone())
        };
        assert_eq!(
            told(anyhow::anyhow!("a file is not there")),
            (json!("failed"), json!("a file is not there"))
        );
        assert_eq!(told(Unanswered("nobody".to_owned()).into()), (json!("unanswered"), json!("nobody")));
        let beyond = WireError::BeyondPolicy { size: 4, floor: 1, ceiling: 3 };
        assert_eq!(document(&beyond.clone().into())["ceiling"], json!(3));
        assert_eq!(told(beyond.into()).0, json!("beyond_policy"));
        assert_eq!(told(Unfit::BelowFloor { size: 1, floor: 2 }.into()).0, json!("beyond_policy"));
        let page = Refused::new("that is no answer".to_owned(), "<html>");
        assert_eq!(told(page.into()).0, json!("failed"));
    }

    #[test]
    fn words_behind_two_dashes_are_another_programs() {
        let is_json = |words: &str| is_json(words.split(' '));
        assert!(is_json("kvhive status --json") && is_json("kvhive scale to 3 --json -- resize"));
        assert!(!is_json("kvhive status") && !is_json("kvhive scale to 3 -- resize --json"));
    }
}
