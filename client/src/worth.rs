//! Whether blocks are worth fetching: bytes and measured bandwidth against tokens and the engine's prefill rate.

use crate::error::ClientError;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::waits::Sway;
use std::ops::Range;
use std::time::Duration;

/// What fetching some blocks and what recomputing them would take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advice {
    /// How long they are expected to travel; none while nothing was fetched yet, so that nobody knows.
    pub fetching: Option<Duration>,
    /// How long the engine would compute.
    pub recomputing: Duration,
}

impl Advice {
    /// Says whether fetching is expected to be quicker. What nobody knows is tried.
    pub fn is_worth_fetching(&self) -> bool {
        self.fetching.is_none_or(|fetching| fetching < self.recomputing)
    }
}

impl NamespaceClient {
    /// Compares fetching the blocks `range` of `prefix` with recomputing them on an engine that prefills
    /// `tokens_per_second`. Blocks travel as fast as they lately did to this client, after the longest wait that is expected
    /// at the devices that they are on.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when range and prefix do not fit together, or the rate is no positive number.
    pub fn advise(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        tokens_per_second: f64,
    ) -> Result<Advice, ClientError> {
        let blocks = range.len();
        self.check_range(prefix, &range, blocks)?;
        if !(tokens_per_second.is_finite() && tokens_per_second > 0.0) {
            return Err(ClientError::Misuse(format!(
                "a prefill rate of {tokens_per_second} tokens a second: say a positive number"
            )));
        }
        let map = self.shared().map();
        let plan = self.shared().plan_read(&map, prefix, range, Sway::FETCH);
        let now = self.shared().now();
        let waits = self.shared().waits();
        let wait = plan.jobs.iter().map(|job| waits.expected(job.device, now)).fold(0.0, f64::max);
        let bytes = blocks as f64 * self.block_bytes as f64;
        let tokens = blocks as f64 * f64::from(self.layout().tokens);
        Ok(Advice {
            fetching: waits.rate(now).map(|rate| seconds(wait + bytes / rate)),
            recomputing: seconds(tokens / tokens_per_second),
        })
    }
}

/// A time that nobody waits for is a day.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))
}
