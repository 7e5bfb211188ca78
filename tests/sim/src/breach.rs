//! What did not hold: which rule, when, and after which faults.

use std::fmt;

/// A rule that did not hold. `docs/simulator.md` says what each rule is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Breach {
    pub(crate) rule: &'static str,
    pub(crate) what: String,
}

pub(crate) type Holds = Result<(), Breach>;

/// Says that a rule does not hold.
pub(crate) fn breach<T>(rule: &'static str, what: impl Into<String>) -> Result<T, Breach> {
    Err(Breach { rule, what: what.into() })
}

/// What a seed has shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// Which seed.
    pub seed: u64,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// Which rule.
    pub rule: &'static str,
    /// What did not hold.
    pub what: String,
    /// The faults before it, each with its number and its time.
    pub faults: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { seed, at_ms, rule, what, faults } = self;
        write!(out, "{rule} does not hold: seed {seed} at {at_ms} ms: {what}")?;
        faults.iter().try_for_each(|fault| write!(out, "\n  {fault}"))
    }
}
