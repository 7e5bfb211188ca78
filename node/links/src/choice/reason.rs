//! Why a transfer goes by a way, in words.

use kvhive_protocol::links::{PairState, TransportKind};
use std::fmt;

/// Why a way is taken, and why the one that comes before it is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reason {
    /// Why it is taken.
    pub why: Why,
    /// The first way that both ends have and that could not be taken.
    pub passed_over: Option<(TransportKind, PassedOver)>,
}

/// Why a way is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Both ends are of one process: nothing is faster.
    OneProcess,
    /// The ends have nothing else that could be taken.
    NothingElse,
    /// It comes before others, and is not measured yet.
    First,
    /// It comes before others, which are not measured yet.
    FirstMeasured {
        /// Bytes a second.
        rate: u64,
    },
    /// It is the fastest, or not clearly slower than another and in use.
    Fastest {
        /// Bytes a second.
        rate: u64,
        /// The fastest of the others.
        other: TransportKind,
        /// Its bytes a second.
        other_rate: u64,
    },
    /// Its last measurement is old.
    Measures,
    /// It has failed and rested.
    Tries {
        /// Failures in a row.
        failures: u32,
    },
    /// Everything has failed and rests.
    AllRest,
    /// Its target fetches it so.
    Fetched,
}

/// Why a way is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PassedOver {
    /// The pair is not ready.
    Pair(PairState),
    /// It has failed so many times in a row.
    Rests {
        /// How many.
        failures: u32,
        /// For how long it is not taken yet.
        rest_ms: u64,
    },
}

impl Reason {
    /// Returns it in one word: where another way was passed over, why that was; else why this one is taken.
    pub const fn as_str(&self) -> &'static str {
        match (self.passed_over, self.why) {
            (Some((_, PassedOver::Rests { .. })), _) => "other-rests",
            (Some((_, PassedOver::Pair(state))), _) => match state {
                PairState::Idle => "pair-idle",
                PairState::Offered => "pair-offered",
                PairState::Joining => "pair-joining",
                PairState::Ready => "pair-ready",
                PairState::Busy => "pair-busy",
                PairState::Aborting => "pair-aborting",
                PairState::Cold => "pair-cold",
            },
            (None, Why::OneProcess) => "one-process",
            (None, Why::NothingElse) => "nothing-else",
            (None, Why::First | Why::FirstMeasured { .. }) => "first",
            (None, Why::Fastest { .. }) => "fastest",
            (None, Why::Measures) => "measures",
            (None, Why::Tries { .. }) => "tries-again",
            (None, Why::AllRest) => "all-rest",
            (None, Why::Fetched) => "fetched",
        }
    }
}

/// Bytes a second, for people.
pub(super) struct PerSecond(pub(super) u64);

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.0 as f64;
        match self.0 {
            1_000_000_000.. => write!(f, "{:.1} GB/s", rate / 1e9),
            1_000_000.. => write!(f, "{:.1} MB/s", rate / 1e6),
            _ => write!(f, "{:.1} kB/s", rate / 1e3),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Why::OneProcess => f.write_str("both ends are one process"),
            Why::NothingElse => f.write_str("there is no other way"),
            Why::First => f.write_str("not measured yet"),
            Why::FirstMeasured { rate } => write!(f, "{}, others are not measured yet", PerSecond(rate)),
            Why::Fastest { rate, other, other_rate } => {
                write!(f, "{}, {other} {}", PerSecond(rate), PerSecond(other_rate))
            }
            Why::Measures => f.write_str("its last measurement is old"),
            Why::Tries { failures } => write!(f, "tried again after {failures} failures"),
            Why::AllRest => f.write_str("everything has failed and rests"),
            Why::Fetched => f.write_str("the other end fetches it so"),
        }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PassedOver::Pair(state) => write!(f, "its pair is {state}"),
            PassedOver::Rests { failures, rest_ms } => {
                write!(f, "rests for {rest_ms} ms after {failures} failures")
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)?;
        match &self.passed_over {
            Some((transport, why)) => write!(f, "; {transport}: {why}"),
            None => Ok(()),
        }
    }
}
