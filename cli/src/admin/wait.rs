//! Waiting for a change that is made and not acknowledged yet: who is waited for is told on standard error as long as it lasts.

use crate::report;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often it is asked again.
const POLL: Duration = Duration::from_secs(1);

/// A change that is made, and not acknowledged within the time that its asker has.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Unacknowledged {
    detail: String,
    /// The answer as it came.
    pub(crate) problem: Value,
}

/// One wait, for as long as its asker has patience.
pub(super) struct Wait {
    patience: Option<Duration>,
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Wait {
    /// Waits for as long as that, or until it is over.
    pub(super) fn new(patience: Option<Duration>) -> Wait {
        Wait { patience, begun: Instant::now(), bar: None }
    }

    /// Says who is waited for and pauses, if `text` is such an answer.
    ///
    /// # Errors
    /// When there is no patience left.
    pub(super) fn goes_on(&mut self, text: &str) -> Result<bool, Unacknowledged> {
        let Ok(problem) = serde_json::from_str::<Value>(text) else { return Ok(false) };
        if problem["code"] != "still_served" {
            return Ok(false);
        }
        if self.patience.is_some_and(|patience| self.begun.elapsed() + POLL > patience) {
            let detail = problem["detail"].as_str().unwrap_or_default().to_owned();
            return Err(Unacknowledged { detail, problem });
        }
        let waits = awaited(&problem, SystemTime::now());
        let bar = self.bar.get_or_insert_with(|| {
            // Also where no bar is seen.
            eprintln!(
                "made; waiting for {waits}. A node that is gone is waited for no more once it is started anew or, by `kvhive drain \
                 NODE --forget`, taken off the list; `--wait 30s` waits for no longer than that"
            );
            let style = ProgressStyle::with_template("{spinner} {elapsed} waiting for {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        bar.set_message(waits);
        bar.tick();
        std::thread::sleep(POLL);
        Ok(true)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Says who is waited for, and until when by what the leader knows.
fn awaited(problem: &Value, now: SystemTime) -> String {
    let all = problem["waits_for"].as_array().map_or(&[][..], Vec::as_slice);
    let one = |one: &Value| {
        let name = one["member"].as_str().unwrap_or("nodes that registered after the restored state");
        let left = Duration::from_millis(one["for_ms"].as_u64().unwrap_or_default());
        let until = (now + left).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        format!(
            "{name} (until {} UTC, later if another coordinator comes to lead)",
            report::utc(u64::try_from(until).unwrap_or(u64::MAX))
        )
    };
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> Value {
        let waits_for = json!([{ "member": "node-2", "for_ms": 61_000 }, { "member": null, "for_ms": 1000 }]);
        json!({ "code": "still_served", "detail": "made, but node-2", "waits_for": waits_for })
    }

    #[test]
    fn who_is_waited_for_is_told_with_when_that_ends() {
        assert_eq!(
            awaited(&answer(), UNIX_EPOCH + Duration::from_secs(3600)),
            "node-2 (until 1970-01-01 01:01:01.000Z UTC, later if another coordinator comes to lead), nodes that registered after the \
             restored state (until 1970-01-01 01:00:01.000Z UTC, later if another coordinator comes to lead)"
        );
    }

    #[test]
    fn another_answer_is_not_waited_for_and_patience_ends() {
        let mut wait = Wait::new(Some(Duration::ZERO));
        assert!(!wait.goes_on("{\"code\":\"unavailable\"}").expect("it is another"));
        let ended = wait.goes_on(&answer().to_string()).expect_err("no patience");
        assert_eq!(
            (ended.to_string(), &ended.problem["waits_for"][0]["member"]),
            ("made, but node-2".to_owned(), &json!("node-2"))
        );
    }
}
