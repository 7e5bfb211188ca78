//! `kvhive events`: what happened to the cluster and what was decided, from the coordinators' journal.

use super::status::text;
use crate::admin::{Admin, Followed, Target};
use crate::{problem, report};
use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;
use std::time::Duration;

/// How many of the last events are shown when nobody says after which.
const LAST: u64 = 20;
/// Events of one page.
const PAGE: u64 = 1024;
/// Wait before the coordinators are tried again when none answered; doubled each time, up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Show what happened to the cluster and what was decided, each with its reason: the last 20 events, or all after a number
#[derive(Args, Debug)]
pub(crate) struct Events {
    #[command(flatten)]
    target: Target,
    /// Go on as events happen, with another coordinator when one goes away, and as soon as one answers where none does: none is missed or shown twice
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
    /// When no coordinator answers (unless it follows), or there is no such kind.
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
                let page = self.page(&admin, "/v1/events?limit=1")?;
                page["newest"].as_u64().unwrap_or(0).saturating_sub(LAST)
            }
        };
        loop {
            let page = self.page(&admin, &format!("/v1/events?after={after}&limit={PAGE}{kind}"))?;
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
                self.print(event);
            }
            let next = page["next_after"].as_u64().unwrap_or(after);
            if next == after {
                break;
            }
            after = next;
        }
        if self.follow { self.follow_from(&admin, after, &kind) } else { Ok(()) }
    }

    /// Gets a page. Whoever follows waits until somebody gives it.
    fn page(&self, admin: &Admin, path: &str) -> Result<Value> {
        let mut silence = Silence::default();
        loop {
            match admin.get(path) {
                Err(error) if self.follow && problem::may_pass(&error) => silence.wait(&format!("{error:#}")),
                answer => return answer,
            }
        }
    }

    fn follow_from(&self, admin: &Admin, mut after: u64, kind: &str) -> Result<()> {
        let mut silence = Silence::default();
        loop {
            let path = format!("/v1/events/stream?after={after}{kind}");
            let followed = admin.follow(&path, |event| {
                let data: Value = serde_json::from_str(&event.data)?;
                if event.kind == "gap" {
                    self.tell_gap(after, data["oldest"].as_u64().unwrap_or(0));
                } else if let Some(sequence) = data["sequence"].as_u64().filter(|sequence| *sequence > after)
                {
                    after = sequence;
                    self.print(&data);
                }
                Ok(())
            })?;
            match followed {
                Followed::Ended => silence = Silence::default(),
                Followed::NobodyAnswered(failures) => silence.wait(&failures.join("\n  ")),
            }
        }
    }

    fn tell_gap(&self, after: u64, oldest: u64) {
        eprintln!("events between {after} and {oldest} are not remembered any more");
    }

    fn print(&self, event: &Value) {
        if self.json {
            println!("{event}");
        } else {
            println!("{}", line(event));
        }
    }
}

/// A time in which nobody answers.
#[derive(Default)]
struct Silence {
    pauses: u32,
}

impl Silence {
    /// Waits before all are asked again; says why when it begins.
    fn wait(&mut self, why: &str) {
        if self.pauses == 0 {
            eprintln!("no coordinator answers, trying again:\n  {why}");
        }
        std::thread::sleep(self.next());
    }

    /// Returns how long to wait, longer each time.
    fn next(&mut self) -> Duration {
        let pause = PAUSE.saturating_mul(1 << self.pauses.min(10)).min(LONGEST_PAUSE);
        self.pauses = self.pauses.saturating_add(1);
        pause
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
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// Asks for a page of a coordinator that breaks off the first time.
    fn page(follow: bool) -> Result<Value> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        // Ends with the test's process where it is asked once.
        std::thread::spawn(move || {
            for is_first in [true, false] {
                let (mut stream, _) = listener.accept().expect("somebody asks");
                let reader = BufReader::new(stream.try_clone().expect("a second hold"));
                let asked = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                assert!(asked.count() > 0, "a request");
                if !is_first {
                    let answer = r#"{"newest":7}"#;
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close", answer.len());
                    write!(stream, "{head}\r\n\r\n{answer}").expect("it reads");
                }
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "a token of a test").expect("a file");
        let dir = folder.path().to_owned();
        let target = Target { admin: Some(url), token_file: Some(token_file), ca: None, dir };
        let events = Events { target, follow, after: None, kind: None, json: true };
        events.page(&events.target.resolve()?, "/v1/events?limit=1")
    }

    #[test]
    fn who_follows_waits_for_the_first_answer_too_and_nobody_else_does() {
        assert_eq!(page(true).expect("it answers the second time"), json!({"newest": 7}));
        let error = page(false).expect_err("nobody answers");
        assert!(problem::may_pass(&error), "{error:#}");
    }

    #[test]
    fn who_hears_nothing_asks_ever_more_rarely_and_never_stops() {
        let mut silence = Silence::default();
        let pauses: Vec<u128> = (0..40).map(|_| silence.next().as_millis()).collect();
        assert_eq!(pauses[..6], [250, 500, 1000, 2000, 4000, 4000]);
        assert!(pauses[6..].iter().all(|pause| *pause == LONGEST_PAUSE.as_millis()), "{pauses:?}");
    }

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
