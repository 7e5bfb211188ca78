//! When work is spread, and how far.

use std::time::Duration;

/// When work is spread, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BalanceTuning {
    /// It is done without being asked for.
    pub continuous: bool,
    /// Nothing is done while no device carries more than so many per cent of the mean.
    pub beyond_percent: u64,
    /// What a decision aims at.
    pub aim_percent: u64,
    /// What is taken back must leave every device that it goes to at no more than this.
    pub calm_percent: u64,
    /// Nothing is done while devices are read less than this on average, in bytes a second.
    pub least_rate: u64,
    /// How long slots must have been where they belong before reports are believed.
    pub settle: Duration,
    /// How long a slot must have been read little before it goes back.
    pub cool_for: Duration,
    /// The most slots that one decision changes.
    pub at_once: usize,
}

impl Default for BalanceTuning {
    fn default() -> Self {
        BalanceTuning {
            continuous: false,
            beyond_percent: 120,
            aim_percent: 108,
            calm_percent: 104,
            least_rate: 1 << 20,
            settle: Duration::from_secs(30),
            cool_for: Duration::from_secs(120),
            at_once: 64,
        }
    }
}
