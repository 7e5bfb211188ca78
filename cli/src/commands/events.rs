//! `kvhive events`: what happened to the cluster and what was decided, from the coordinators' journal.

use super::status::text;
use crate::admin::{Admin, Followed, Target};
use crate::report;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// How many of the last events are shown when nobody says after which.
const LAST: u64 = 20;
/// Events of one page.
const PAGE: u64 = 1024;
/// Wait before the coordinators are tried again when none answered.
const PAUSE: Duration = Duration::from_millis(250);

/// Show what happened to the cluster and what was decided, each with its reason: the last 20 events, or all after a number
#[derive(Args, Debug)]
pub(crate) struct Events {
    #[command(flatten)]
    target: Target,
    /// Go on as events happen, with another coordinator when one goes away: none is missed or shown twice
    #[arg(short, long)]
    follow: bool,
    /// Begin after the event of this number; 0 for all that are remembered
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// Only events of this kind, such as member-down or slots-placed; several separated by commas
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Print each event as JSON on a line of its own
    #[arg(long)]
    json: bool,
}

impl Events {
    /// Prints events.
    ///
    /// # Errors
    /// When no coordinator answers (unless it follows and one did before), or there is no such kind.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        let kind = self.kind.as_deref().unwrap_or_default();
        if !kind.bytes().all(|byte| byte.is_ascii_lowercase() || b"-, ".contains(&byte)) {
            bail!("--kind is {kind:?}: kinds are words of a-z and -, such as member-down");
        }
        let kind = if kind.is_empty() { String::new() } else { format!("&kind={}", kind.replace(' ', "")) };
        let mut after = match (self.after, &self.kind) {
            (Some(after), _) => after,
            (None, Some(_)) => 0,
            (None, None) => {
                let page: Value = admin.get("/v1/events?limit=1")?;
                page["newest"].as_u64().unwrap_or(0).saturating_sub(LAST)
            }
        };
        loop {
            let page: Value = admin.get(&format!("/v1/events?after={after}&limit={PAGE}{kind}"))?;
            if let (Some(asked), Some(newest)) = (self.after, page["newest"].as_u64())
                && asked > newest
            {
                // Which may be behind others by a moment.
                eprintln!(
                    "nothing has happened after {asked}: the newest event of the coordinator that answers is {newest}"
                );
            }
            if page["lost"] == true && after > 0 {
                self.tell_gap(after, page["oldest"].as_u64().unwrap_or(0));
            }
            for event in super::status::list(&page["events"]) {
                self.print(event)?;
            }
            let next = page["next_after"].as_u64().unwrap_or(after);
            if next == after {
                break;
            }
            after = next;
        }
        if self.follow { self.follow_from(&admin, after, &kind) } else { Ok(()) }
    }

    fn follow_from(&self, admin: &Admin, mut after: u64, kind: &str) -> Result<()> {
        let mut is_alone = false;
        loop {
            let path = format!("/v1/events/stream?after={after}{kind}");
            let followed = admin.follow(&path, |event| {
                is_alone = false;
                let data: Value = serde_json::from_str(&event.data)?;
                if event.kind == "gap" {
                    self.tell_gap(after, data["oldest"].as_u64().unwrap_or(0));
                } else if let Some(sequence) = data["sequence"].as_u64().filter(|sequence| *sequence > after)
                {
                    after = sequence;
                    self.print(&data)?;
                }
                Ok(())
            })?;
            if let Followed::NobodyAnswered(failures) = followed {
                if !is_alone {
                    eprintln!("no coordinator answers, trying again:\n  {}", failures.join("\n  "));
                    is_alone = true;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn tell_gap(&self, after: u64, oldest: u64) {
        eprintln!("events between {after} and {oldest} are not remembered any more");
    }

    fn print(&self, event: &Value) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{event}")?;
        } else {
            writeln!(out, "{}", line(event))?;
        }
        out.flush()?;
        Ok(())
    }
}

/// Writes an event as one line: number, time, kind, subject, reason, numbers.
fn line(event: &Value) -> String {
    let subject = &event["subject"];
    let names = ["member", "tenant", "coordinator", "engine", "pin"]
        .iter()
        .filter_map(|what| subject[*what].as_str());
    let mut about: Vec<String> = names.map(str::to_owned).collect();
    if let Some(slots) = subject["slots"].as_u64() {
        about.push(report::counted(slots, "slot"));
    }
    let facts = event["facts"].as_object().into_iter().flatten();
    let facts: Vec<String> = facts.map(|(name, value)| format!("{name}={value}")).collect();
    let parts = [
        format!("{:>6}", text(event, "sequence")),
        report::utc(event["at_ms"].as_u64().unwrap_or(0)),
        format!("{:<18}", text(event, "kind")),
        about.join(" "),
        text(event, "reason"),
        facts.join(" "),
    ];
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_one_line_that_says_when_whom_and_why() {
        let event = json!({
            "sequence": 12, "at_ms": 1_700_000_000_123_u64, "epoch": 9, "kind": "member-down",
            "subject": {"member": "node-2"}, "facts": {"slots_promoted": 210}, "reason": "no heartbeat for 2071 ms",
        });
        assert_eq!(
            line(&event),
            "    12  2023-11-14 22:13:20.123Z  member-down         node-2  no heartbeat for 2071 ms  slots_promoted=210"
        );
    }
}
