//! One thing that was looked at.

use serde::Serialize;

/// How it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should.
    Holds,
    /// It costs speed or safety.
    Warns,
    /// It does not serve.
    Fails,
}

impl State {
    /// Returns it as tables show it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            State::Holds => "ok",
            State::Warns => "warn",
            State::Fails => "FAIL",
        }
    }
}

/// What was found, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    /// `host`, `cluster` or `engine`.
    pub(super) area: &'static str,
    pub(super) what: String,
    pub(super) state: State,
    pub(super) found: String,
    /// None where there is nothing to do.
    pub(super) advice: Option<String>,
}

impl Finding {
    fn new(area: &'static str, what: impl Into<String>, state: State, found: impl Into<String>) -> Finding {
        Finding { area, what: what.into(), state, found: found.into(), advice: None }
    }

    pub(super) fn holds(area: &'static str, what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding::new(area, what, State::Holds, found)
    }

    pub(super) fn warns(
        area: &'static str,
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { advice: Some(advice.into()), ..Finding::new(area, what, State::Warns, found) }
    }

    pub(super) fn fails(
        area: &'static str,
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding { advice: Some(advice.into()), ..Finding::new(area, what, State::Fails, found) }
    }
}
