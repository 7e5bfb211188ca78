//! How much each slot is read, lately: rates that follow what is counted, and forget what was.

use kvhive_protocol::load::SlotHits;
use kvhive_protocol::{Moment, SLOTS, Slot};
use std::time::Duration;

/// After so long half of a rate is what was counted since.
const HALF: Duration = Duration::from_secs(5);

/// Rates of all slots.
#[derive(Clone, Debug)]
pub struct Heat {
    /// Bytes a second, by slot.
    rates: Vec<u64>,
    /// Keys asked by match and those that were covered, in a thousand seconds, by slot.
    matched: Vec<[u64; 2]>,
    /// What is averaged besides.
    wait_us: u64,
    since: Moment,
}

impl Heat {
    /// Makes rates of slots that nobody has read.
    pub fn new(now: Moment) -> Heat {
        let slots = usize::from(SLOTS);
        Heat { rates: vec![0; slots], matched: vec![[0; 2]; slots], wait_us: 0, since: now }
    }

    /// Takes in the bytes that each slot was read, the keys that matches asked for in each and those that were covered, and how
    /// long requests waited in sum and how many there were, since the last time.
    pub fn take(&mut self, now: Moment, bytes: &[u64], matched: &[[u64; 2]], waited_us: u64, waits: u64) {
        let passed = now.since(self.since).as_millis();
        self.since = now;
        let half = HALF.as_millis();
        // The weight of what is new grows with the time that it took, up to all of it.
        let mixed = |rate: u64, count: u64| {
            let sum = u128::from(rate) * half + u128::from(count) * 1000;
            u64::try_from(sum / (half + passed)).unwrap_or(u64::MAX)
        };
        for (rate, bytes) in self.rates.iter_mut().zip(bytes) {
            *rate = mixed(*rate, *bytes);
        }
        for (rates, counts) in self.matched.iter_mut().zip(matched) {
            for (rate, count) in rates.iter_mut().zip(counts) {
                *rate = mixed(*rate, count.saturating_mul(1000));
            }
        }
        if let Some(mean) = waited_us.checked_div(waits) {
            let sum = u128::from(self.wait_us) * half + u128::from(mean) * passed;
            self.wait_us = u64::try_from(sum / (half + passed)).unwrap_or(u64::MAX);
        }
    }

    /// Returns the rate of all slots together.
    pub fn sum(&self) -> u64 {
        self.rates.iter().copied().fold(0, u64::saturating_add)
    }

    /// Returns how much of what is asked of these slots is there; nothing of one of which nothing is asked.
    pub fn hits(&self, of: &[(Slot, u64)]) -> Vec<SlotHits> {
        let hits = |(slot, _): &(Slot, u64)| {
            let [asked, covered] = *self.matched.get(usize::from(slot.0))?;
            (asked > 0).then_some(SlotHits { slot: *slot, asked, covered })
        };
        of.iter().filter_map(hits).collect()
    }

    /// Returns how long requests waited, in microseconds.
    pub fn wait_us(&self) -> u32 {
        u32::try_from(self.wait_us).unwrap_or(u32::MAX)
    }

    /// Returns the slots that are read most, ascending, with their rates.
    pub fn hottest(&self, limit: usize) -> Vec<(Slot, u64)> {
        let read = |(slot, rate): (Slot, &u64)| (*rate > 0).then_some((slot, *rate));
        let mut hot: Vec<(Slot, u64)> = Slot::all().zip(&self.rates).filter_map(read).collect();
        if hot.len() > limit {
            hot.select_nth_unstable_by_key(limit, |(slot, rate)| (std::cmp::Reverse(*rate), *slot));
            hot.truncate(limit);
            hot.sort_unstable();
        }
        hot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    fn bytes(of: &[(u16, u64)]) -> Vec<u64> {
        let mut bytes = vec![0; usize::from(SLOTS)];
        of.iter().for_each(|(slot, count)| bytes[usize::from(*slot)] = *count);
        bytes
    }

    #[test]
    fn a_steady_rate_is_found_and_one_that_ends_is_forgotten() {
        let mut heat = Heat::new(at(0));
        for second in 1..=60 {
            heat.take(at(second), &bytes(&[(3, 1000), (9, 10)]), &[], 500, 10);
        }
        let [(first, rate), (other, less)] = heat.hottest(64)[..] else { panic!("two slots were read") };
        assert_eq!((first, other), (Slot(3), Slot(9)));
        assert!((950..=1000).contains(&rate) && less <= 10, "{rate} {less}");
        assert!((40..=50).contains(&heat.wait_us()), "{}", heat.wait_us());
        for second in 61..=120 {
            heat.take(at(second), &bytes(&[]), &[], 0, 0);
        }
        assert!(heat.sum() < 20, "{}", heat.sum());
    }

    #[test]
    fn the_hottest_are_found_and_named_in_order() {
        let mut heat = Heat::new(at(0));
        heat.take(at(1), &bytes(&[(4000, 900_000), (7, 800_000), (8, 100), (2, 700_000)]), &[], 0, 0);
        let slots: Vec<u16> = heat.hottest(3).iter().map(|(slot, _)| slot.0).collect();
        assert_eq!(slots, [2, 7, 4000]);
        assert_eq!(heat.hottest(0), []);
    }

    #[test]
    fn what_is_counted_in_no_time_is_not_lost() {
        let mut heat = Heat::new(at(5));
        heat.take(at(5), &bytes(&[(1, 5000), (2, u64::MAX)]), &[], 1, 1);
        assert_eq!(heat.hottest(2), [(Slot(1), 1000), (Slot(2), u64::MAX / 5)]);
        heat.take(at(6), &bytes(&[(1, u64::MAX)]), &[], 1, 1);
        assert_eq!(heat.hottest(1).len(), 1);
    }
}
