//! Coordinators of whom none did what was asked.

use crate::problem::{Refused, Unanswered};

/// What all said where none did what was asked.
#[derive(Default)]
pub(super) struct Nobody {
    pub(super) failures: Vec<String>,
    /// The answer of the last one who can do nothing now.
    pub(super) refused: Option<String>,
}

impl Nobody {
    /// Makes an error of it. Who and why is in its first line: it is all that many show.
    pub(super) fn told(self, who: &str) -> anyhow::Error {
        let failures = self.failures.join("; ");
        match self.refused {
            Some(text) => Refused::for_now(format!("no {who} does it now: {failures}"), &text).into(),
            None => Unanswered(format!("no {who} answered: {failures}")).into(),
        }
    }
}
