//! Following a stream of server-sent events, at whichever coordinator answers. What was read up to where is the caller's to
//! remember: it asks for the rest when a stream ends.

use super::{Admin, CONNECT_LIMIT, READ_LIMIT};
use anyhow::{Result, bail};
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

/// How long one stream is read before it is asked for anew: a coordinator whose machine is gone is noticed after that.
const STREAM_LIMIT: Duration = Duration::from_secs(40);
/// The longest line of a stream, in bytes; an event is far shorter.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// What came of following.
pub(crate) enum Followed {
    /// A coordinator answered; its stream has ended.
    Ended,
    /// None answered, and why.
    NobodyAnswered(Vec<String>),
}

/// One server-sent event.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Sent {
    /// Its `event` field.
    pub(crate) kind: String,
    /// Its `data` field.
    pub(crate) data: String,
}

impl Admin {
    /// Reads the stream at `path` of the first coordinator that answers, until it ends.
    ///
    /// # Errors
    /// When a coordinator refuses, or `take` fails.
    pub(crate) fn follow(&self, path: &str, mut take: impl FnMut(Sent) -> Result<()>) -> Result<Followed> {
        let mut failures = Vec::new();
        for url in &self.urls {
            let asked = self
                .reads
                .get(format!("{url}{path}"))
                .header("authorization", self.bearer())
                .config()
                .timeout_global(None)
                .timeout_connect(Some(CONNECT_LIMIT))
                .timeout_recv_response(Some(READ_LIMIT))
                .timeout_recv_body(Some(STREAM_LIMIT))
                .build()
                .call();
            let mut answer = match asked {
                Ok(answer) => answer,
                Err(error) => {
                    failures.push(format!("{url}: {}", super::told(&error)));
                    continue;
                }
            };
            let status = answer.status();
            if super::is_for_another(status) {
                failures.push(format!("{url}: {status}"));
                continue;
            }
            if !status.is_success() {
                bail!("{url} answered {status}: {}", answer.body_mut().read_to_string().unwrap_or_default());
            }
            let mut reader = BufReader::new(answer.body_mut().as_reader());
            while let Some(sent) = next(&mut reader) {
                take(sent)?;
            }
            return Ok(Followed::Ended);
        }
        Ok(Followed::NobodyAnswered(failures))
    }
}

/// Reads the next whole event; none where the stream ends or breaks off, in whose middle ever.
fn next(reader: &mut impl BufRead) -> Option<Sent> {
    let mut sent = Sent::default();
    loop {
        let mut line = String::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line).ok()?;
        if read == 0 || !line.ends_with('\n') {
            return None;
        }
        match line.trim_end_matches(['\r', '\n']) {
            "" if sent.data.is_empty() => sent = Sent::default(),
            "" => return Some(sent),
            line => match line.split_once(':') {
                Some(("event", value)) => sent.kind = value.trim_start().to_owned(),
                Some(("data", value)) => sent.data.push_str(value.trim_start()),
                // A comment, or a field that nobody here needs.
                _ => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whole_and_what_breaks_off_is_none() {
        let text = ":\n\nid: 7\nevent: member-down\ndata: {\"a\":1}\n\n: still here\n\nevent: gap\r\ndata:{}\r\n\r\nid: 8\ndata: {";
        let mut reader = text.as_bytes();
        let sent = |kind: &str, data: &str| Some(Sent { kind: kind.to_owned(), data: data.to_owned() });
        assert_eq!(next(&mut reader), sent("member-down", "{\"a\":1}"));
        assert_eq!(next(&mut reader), sent("gap", "{}"));
        assert_eq!(next(&mut reader), None);
    }
}
