//! `[traces]`: whether requests are traced, and where their spans go. Without the table no process records any.

use crate::keys::{Absent, Key, Rule};
use crate::ledger::Ledger;
use crate::parse;
use crate::section::Section;

/// How the processes of a cluster trace requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traces {
    /// The base URL of the collector that gets spans by OTLP over HTTP; none exports none.
    pub endpoint: Option<String>,
    /// How many of a thousand requests are traced that come without a trace context.
    pub sample_per_mille: u16,
    /// Traces that each process keeps in memory.
    pub keep: usize,
}

/// `[traces]`.
pub(crate) const TRACES: &[Key] = &[
    Key {
        name: "endpoint",
        rule: Rule::Url,
        absent: Absent::Derived("none: spans are kept in memory alone"),
        meaning: "The OpenTelemetry collector to which every process sends its spans, by OTLP over HTTP (protobuf): `/v1/traces` is added. One \
                  on the same host, such as `http://127.0.0.1:4318`, may pass them on encrypted.",
    },
    Key {
        name: "sample",
        rule: Rule::Share { min: 0, max: 1000 },
        absent: Absent::Value("0"),
        meaning: "The part of the requests that is traced though whoever asks has not chosen; who sends a trace context has, by its sampled \
                  flag. 0: those alone.",
    },
    Key {
        name: "keep",
        rule: Rule::Whole { min: 0, max: 65_536 },
        absent: Absent::Value("256"),
        meaning: "Traces that each process keeps in memory for `kvhive trace`, the newest, with 32 spans each on average and 512 at most.",
    },
];

impl Traces {
    pub(crate) fn read(section: &Section<'_>, ledger: &mut Ledger) -> Traces {
        let keep = section.read(ledger, "keep", parse::whole).unwrap_or_default();
        Traces {
            endpoint: section.read(ledger, "endpoint", parse::url),
            sample_per_mille: section.read(ledger, "sample", parse::share).unwrap_or_default(),
            keep: usize::try_from(keep).expect("it is bounded above"),
        }
    }
}
