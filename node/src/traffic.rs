//! What one device's blocks weigh on the wire and how long their readers waited, counted by whoever serves it and told in
//! heartbeats.

use crate::latency::{Latencies, LatencyRecorder};
use kvhive_protocol::Moment;
use kvhive_protocol::load::Traffic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Latencies are told of the last one to two stretches of this.
const STRETCH: Duration = Duration::from_secs(5);

/// One device's counters.
#[derive(Default)]
pub(crate) struct TrafficCounters {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    fetches: LatencyRecorder,
    marks: Mutex<Marks>,
}

/// What had been recorded when the last two stretches began.
#[derive(Default)]
struct Marks {
    before: Latencies,
    last: Latencies,
    last_at: Moment,
}

impl TrafficCounters {
    /// Counts a fetch: its blocks' bytes, and how long it took from the whole question to the whole answer.
    pub(crate) fn fetched(&self, bytes: u64, took: Duration) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.fetches.record(took);
    }

    /// Counts blocks given in an answer that has waited for another node: how long it took says nothing of the device.
    pub(crate) fn gave(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how long fetches took, since the start.
    pub(crate) fn fetches(&self) -> Latencies {
        self.fetches.read()
    }

    /// Counts blocks taken in.
    pub(crate) fn stored(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells what was counted since the start, and how long fetches took lately.
    pub(crate) fn tell(&self, now: Moment) -> Traffic {
        let all = self.fetches.read();
        // Nothing is left half-done under this lock.
        let mut marks = self.marks.lock().unwrap_or_else(|poison| poison.into_inner());
        let lately = all.since(&marks.before);
        if now.since(marks.last_at) >= STRETCH {
            marks.before = std::mem::replace(&mut marks.last, all);
            marks.last_at = now;
        }
        let us = |share| lately.quantile(share).map_or(0, |took| took.as_micros() as u64);
        Traffic {
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            fetch_p50_us: us(0.5),
            fetch_p99_us: us(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_add_up_and_latencies_are_forgotten() {
        let traffic = TrafficCounters::default();
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        (0..99).for_each(|_| traffic.fetched(1000, Duration::from_micros(100)));
        traffic.fetched(1000, Duration::from_millis(50));
        traffic.stored(7);
        let told = traffic.tell(at(1));
        assert_eq!((told.read_bytes, told.written_bytes), (100_000, 7));
        assert!((100..=126).contains(&told.fetch_p50_us) && told.fetch_p99_us < 1000, "{told:?}");
        traffic.gave(10);
        assert_eq!((traffic.tell(at(1)).read_bytes, traffic.fetches().count()), (100_010, 100));
        traffic.fetched(0, Duration::from_millis(50));
        assert!(traffic.tell(at(6)).fetch_p99_us >= 50_000);
        assert!(traffic.tell(at(11)).fetch_p99_us >= 50_000, "one to two stretches ago");
        let told = traffic.tell(at(16));
        assert_eq!((told.read_bytes, told.fetch_p50_us, told.fetch_p99_us), (100_010, 0, 0));
    }
}
