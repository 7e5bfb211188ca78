//! Traces of requests: what says that a request is traced (W3C Trace Context), and the spans that processes keep of it. A request
//! that is not traced carries nothing of this; one that is, is a frame of a kind of its own.

use crate::ids::{DeviceId, Epoch};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The most spans that are kept and told of one trace.
pub const MAX_SPANS: usize = 512;
/// The most facts of one span; more are left out.
pub const MAX_FACTS: usize = 16;
/// The longest text in a span, in bytes; what is longer is cut.
pub const MAX_TEXT_BYTES: usize = 256;
/// The most traces that one answer lists.
pub const MAX_LISTED: usize = 256;

/// A trace's name: one request, in whatever processes it goes through. Not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u8; 16]", into = "[u8; 16]")]
pub struct TraceId([u8; 16]);

/// A span's name within its trace. Not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u8; 8]", into = "[u8; 8]")]
pub struct SpanId([u8; 8]);

/// What is not the name of a trace or span.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a trace is named by {0} hexadecimal digits that are not all zero")]
pub struct NotAnId(usize);

macro_rules! id {
    ($name:ident, $bytes:literal) => {
        impl $name {
            /// Makes one of bytes; zero is none.
            pub fn new(bytes: [u8; $bytes]) -> Option<$name> {
                (bytes != [0; $bytes]).then_some($name(bytes))
            }

            /// Returns its bytes.
            pub fn bytes(self) -> [u8; $bytes] {
                self.0
            }
        }

        impl TryFrom<[u8; $bytes]> for $name {
            type Error = NotAnId;

            fn try_from(bytes: [u8; $bytes]) -> Result<$name, NotAnId> {
                $name::new(bytes).ok_or(NotAnId(2 * $bytes))
            }
        }

        impl From<$name> for [u8; $bytes] {
            fn from(id: $name) -> [u8; $bytes] {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<$name, NotAnId> {
                hex(text.as_bytes()).and_then($name::new).ok_or(NotAnId(2 * $bytes))
            }
        }
    };
}

id!(TraceId, 16);
id!(SpanId, 8);

impl TraceId {
    /// Returns the trace of an engine's request by its own id, so that whoever knows the id finds the trace: the last 32 hexadecimal
    /// digits in it where it has as many on end (a UUID, with or without hyphens, whatever stands before it), else a hash of it.
    pub fn of_request(id: &str) -> TraceId {
        let mut digits: Vec<u8> = Vec::with_capacity(32);
        for byte in id.bytes().rev() {
            match byte {
                b'-' => {}
                byte if byte.is_ascii_hexdigit() => digits.push(byte.to_ascii_lowercase()),
                _ => break,
            }
            if digits.len() == 32 {
                digits.reverse();
                if let Some(trace) = hex(&digits).and_then(TraceId::new) {
                    return trace;
                }
                break;
            }
        }
        let hash = blake3::derive_key("kvhive 2026-11 trace of a request v1", id.as_bytes());
        let first = hash.first_chunk().copied().expect("a hash has 32 bytes");
        TraceId::new(first).unwrap_or(TraceId([1; 16]))
    }
}

/// Reads lower-case hexadecimal digits, as W3C Trace Context has them, that fill `N` bytes.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = digit(text[2 * at])? << 4 | digit(text[2 * at + 1])?;
    }
    Some(out)
}

/// Says that a request is traced, and which span asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that asked.
    pub span: SpanId,
}

/// What a `traceparent` says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Parent {
    /// Whoever asks records spans, and so does whoever is asked.
    Sampled(TraceContext),
    /// Whoever asks has chosen to record nothing.
    Unsampled,
}

/// Why a text is no `traceparent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("not a traceparent: expected 00-<32 hexadecimal digits>-<16>-<2>, neither id all zero")]
pub struct NotAParent;

impl FromStr for Parent {
    type Err = NotAParent;

    /// Reads a `traceparent` header of any version (W3C Trace Context, 3.2).
    fn from_str(text: &str) -> Result<Parent, NotAParent> {
        let mut parts = text.trim().splitn(5, '-');
        let mut part = || parts.next().unwrap_or_default().as_bytes();
        let (version, trace, span, flags) = (part(), part(), part(), part());
        let [version] = hex::<1>(version).ok_or(NotAParent)?;
        let [flags] = hex::<1>(flags).ok_or(NotAParent)?;
        // Later versions may say more behind; the first may not, and the last of all is none.
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return Err(NotAParent);
        }
        let trace = hex(trace).and_then(TraceId::new).ok_or(NotAParent)?;
        let span = hex(span).and_then(SpanId::new).ok_or(NotAParent)?;
        Ok(if flags & 1 == 1 { Parent::Sampled(TraceContext { trace, span }) } else { Parent::Unsampled })
    }
}

impl fmt::Display for TraceContext {
    /// Writes it as a `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.trace, self.span)
    }
}

/// What part of a request a span is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum SpanKind {
    /// Something done within a process.
    Inner,
    /// A request that somebody else made.
    Served,
    /// A request to somebody else, and the wait for the answer.
    Asked,
}

/// What a span says of itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Fact {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

impl From<u64> for Fact {
    fn from(number: u64) -> Fact {
        Fact::Number(number)
    }
}

impl From<usize> for Fact {
    fn from(number: usize) -> Fact {
        Fact::Number(number as u64)
    }
}

impl From<&str> for Fact {
    fn from(text: &str) -> Fact {
        Fact::Text(cut(text))
    }
}

impl From<String> for Fact {
    fn from(text: String) -> Fact {
        Fact::Text(cut(&text))
    }
}

impl From<DeviceId> for Fact {
    fn from(device: DeviceId) -> Fact {
        Fact::Text(device.to_string())
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::Number(number) => number.fmt(f),
            Fact::Text(text) => f.write_str(text),
        }
    }
}

/// Cuts a text to what a span may say.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A span that is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Its name in it.
    pub id: SpanId,
    /// The span that it is a part of, if any.
    pub parent: Option<SpanId>,
    /// What part of a request it is.
    pub kind: SpanKind,
    /// What was done.
    pub name: Cow<'static, str>,
    /// When it began, in nanoseconds since 1970 by its process's clock.
    pub began_ns: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// What it says of itself; at most [`MAX_FACTS`].
    pub facts: Vec<(Cow<'static, str>, Fact)>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

/// A trace in short, as one process knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceSummary {
    /// The trace.
    pub trace: TraceId,
    /// The name of its outermost span there.
    pub name: Cow<'static, str>,
    /// When its first span there began, in nanoseconds since 1970.
    pub began_ns: u64,
    /// From then to the end of its last one there.
    pub took_ns: u64,
    /// Its spans there.
    pub spans: u32,
    /// One of them failed.
    pub failed: bool,
}

/// A question about the traces that a process keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TraceAsk {
    /// The spans of this one.
    One(TraceId),
    /// The newest, this many at most.
    Newest(u32),
}

/// See [`crate::data::DataRequest::Trace`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// A device of the node asked.
    pub device: DeviceId,
    /// What is asked.
    pub ask: TraceAsk,
}

/// The answer to a [`TraceAsk`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TraceAnswer {
    /// The process keeps no traces.
    Off,
    /// What is kept of the one that was asked for; at most [`MAX_SPANS`].
    Spans(Vec<Span>),
    /// The newest, newest first; at most [`MAX_LISTED`].
    Newest(Vec<TraceSummary>),
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_alike() {
        let Ok(Parent::Sampled(context)) = PARENT.parse() else { panic!("it is sampled") };
        assert_eq!(context.to_string(), PARENT);
        assert_eq!(PARENT.replace("-01", "-00").parse(), Ok(Parent::Unsampled));
        // Of later versions what is known counts, and other flags mean nothing here.
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        assert_eq!(later.parse(), Ok(Parent::Sampled(context)));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1é",
        ] {
            assert_eq!(wrong.parse::<Parent>(), Err(NotAParent), "{wrong}");
        }
    }

    #[test]
    fn a_request_by_its_uuid_is_the_trace_of_that_name() {
        let trace: TraceId = "4bf92f3577b34da6a3ce929d0e0e4736".parse().expect("an id");
        for id in [
            "4bf92f3577b34da6a3ce929d0e0e4736",
            "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
            "chatcmpl-4BF92F3577B34DA6A3CE929D0E0E4736",
        ] {
            assert_eq!(TraceId::of_request(id), trace, "{id}");
        }
        let named = TraceId::of_request("request 7");
        assert_eq!(named, TraceId::of_request("request 7"));
        assert_ne!(named, TraceId::of_request("request 8"));
        assert_ne!(TraceId::of_request(&"0".repeat(32)).bytes(), [0; 16]);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "é".repeat(MAX_TEXT_BYTES);
        assert_eq!(Fact::from(text.as_str()), Fact::Text("é".repeat(MAX_TEXT_BYTES / 2)));
    }
}
