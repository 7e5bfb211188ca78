//! What is asked of one device, counted by whoever serves it and told in heartbeats.

use kvhive_cache::Heat;
use kvhive_protocol::data::Run;
use kvhive_protocol::load::{MAX_HOT_SLOTS, REQUEST_BYTES, SlotHits, Work};
use kvhive_protocol::{Moment, SLOTS, Slot};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One device's counters.
pub(crate) struct WorkCounters {
    requests: AtomicU64,
    waited_us: AtomicU64,
    waits: AtomicU64,
    /// What matches and fetches came to, by slot, since it was last told.
    read: Box<[AtomicU64]>,
    /// Keys of matches by slot, and those of them that were covered, since it was last told.
    matched: Box<[[AtomicU64; 2]]>,
    heat: Mutex<Heat>,
}

impl Default for WorkCounters {
    fn default() -> Self {
        WorkCounters {
            requests: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            read: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            matched: (0..SLOTS).map(|_| Default::default()).collect(),
            heat: Mutex::new(Heat::new(Moment::ZERO)),
        }
    }
}

impl WorkCounters {
    /// Counts how long a request has waited for the device's answer.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a match or a fetch of what is in these slots.
    pub(crate) fn asked(&self, slots: impl Iterator<Item = Slot>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        for slot in slots {
            self.read_of(slot, REQUEST_BYTES);
        }
    }

    /// Counts the keys of a match, and those of each run that were covered.
    pub(crate) fn matched(&self, runs: &[Run], covered: &[u32]) {
        for (run, covered) in runs.iter().zip(covered) {
            if let Some([asked, there]) = self.matched.get(usize::from(run.slot.0)) {
                asked.fetch_add(run.keys.into(), Ordering::Relaxed);
                there.fetch_add((*covered).into(), Ordering::Relaxed);
            }
        }
    }

    /// Counts a block given out.
    pub(crate) fn gave(&self, slot: Slot, bytes: u64) {
        self.read_of(slot, bytes);
    }

    /// Counts a store.
    pub(crate) fn stored(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn read_of(&self, slot: Slot, bytes: u64) {
        if let Some(read) = self.read.get(usize::from(slot.0)) {
            read.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Tells what was counted and what it comes to a second, and how much of what is asked of the slots that are read most is there.
    pub(crate) fn tell(&self, now: Moment) -> (Work, Vec<SlotHits>) {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let mut heat = self.heat.lock().unwrap_or_else(|poison| poison.into_inner());
        let read: Vec<u64> = self.read.iter().map(take).collect();
        // A match in between may be counted as asked now and as covered the next time: it evens out.
        let matched: Vec<[u64; 2]> = self.matched.iter().map(|counts| counts.each_ref().map(take)).collect();
        heat.take(now, &read, &matched, take(&self.waited_us), take(&self.waits));
        let hot = heat.hottest(MAX_HOT_SLOTS);
        let hits = heat.hits(&hot);
        let requests = self.requests.load(Ordering::Relaxed);
        (Work { requests, read_rate: heat.sum(), wait_us: heat.wait_us(), hot }, hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_with_the_slots_that_are_read_most() {
        let work = WorkCounters::default();
        work.asked([Slot(3), Slot(5)].into_iter());
        work.gave(Slot(3), 1 << 20);
        work.stored();
        work.waited(Duration::from_micros(30));
        work.matched(&[Run { slot: Slot(3), keys: 16 }, Run { slot: Slot(5), keys: 4 }], &[16, 1]);
        let (told, hits) = work.tell(Moment::ZERO + Duration::from_secs(1));
        let [three, five] = hits[..] else { panic!("{hits:?}") };
        assert!(three.slot == Slot(3) && three.asked > 0 && three.covered == three.asked, "{three:?}");
        assert!(five.slot == Slot(5) && five.covered > 0 && five.covered < five.asked, "{five:?}");
        assert_eq!(told.requests, 2);
        let slots: Vec<Slot> = told.hot.iter().map(|(slot, _)| *slot).collect();
        assert_eq!(slots, [Slot(3), Slot(5)]);
        assert!(told.hot[0].1 > told.hot[1].1 && told.read_rate == told.hot[0].1 + told.hot[1].1);
        let (later, hits) = work.tell(Moment::ZERO + Duration::from_secs(2));
        assert!(later.read_rate < told.read_rate && later.requests == 2);
        assert!(hits[0].asked < three.asked);
    }

    #[test]
    fn what_is_told_twice_at_once_is_not_lost_between() {
        let (work, at) = (WorkCounters::default(), Moment::ZERO + Duration::from_secs(1));
        work.tell(at);
        work.gave(Slot(5), 1 << 20);
        assert!(work.tell(at).0.read_rate > 0);
    }
}
