//! When to try again: back-off with jitter, inside a deadline.

use std::time::Duration;
use tokio::time::Instant;

/// The first wait.
const LEAST: Duration = Duration::from_millis(5);
/// The longest wait.
const MOST: Duration = Duration::from_millis(200);

/// No call lasts longer, whatever its caller configured.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Returns the moment `limit` from now; a limit of more than a day is a day, so that no sum overflows.
pub(crate) fn in_time(limit: Duration) -> Instant {
    Instant::now() + limit.min(LONGEST)
}

/// Returns a number that others hardly have.
pub(crate) fn random_seed() -> u64 {
    let mut seed = [0; 8];
    // Without random bytes nothing is jittered and clients choose alike, which only costs politeness.
    let _ = getrandom::fill(&mut seed);
    u64::from_le_bytes(seed)
}

/// Waits that double, each between half and all of its length (Brooker, "Exponential backoff and jitter", 2015).
pub(crate) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { next: LEAST, random: random_seed() | 1 }
    }

    /// Waits; false when the deadline would pass meanwhile.
    pub(crate) async fn wait(&mut self, deadline: Instant) -> bool {
        // Xorshift (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = self.next / 2;
        let pause = half + half.mul_f64((self.random % 1024) as f64 / 1024.0);
        self.next = (self.next * 2).min(MOST);
        if Instant::now() + pause >= deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}
