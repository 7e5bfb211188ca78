//! Which devices are slower than the others, by how long requests wait for them. Bytes say what a device carries, not what it can: one
//! on a slower host or behind a busy link is given less by counting what it carries for more.
//!
//! An integral controller with a dead band (Åström and Murray, Feedback Systems, 2008, ch. 10): between the two bounds nothing is
//! learned, so that neither side is hunted for.

use kvhive_protocol::DeviceId;
use kvhive_protocol::load::Work;
use std::collections::BTreeMap;

/// Counts as it is.
pub(crate) const NONE: u64 = 100;
/// The most that a device is counted for, in per cent.
const MOST: u64 = 400;
/// Requests that wait no longer, in microseconds, wait for no device.
const LEAST_WAIT_US: u64 = 1000;
/// Requests wait so many times as long as for the others, in per cent: it is slower.
const SLOW_PERCENT: u64 = 300;
/// No longer than this as for the others, in per cent: it is slower no more than it is taken for.
const EVEN_PERCENT: u64 = 150;

/// What devices count for, in per cent of what they carry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Handicaps(BTreeMap<DeviceId, u64>);

impl Handicaps {
    /// Returns what a device counts for.
    pub(crate) fn of(&self, device: DeviceId) -> u64 {
        self.0.get(&device).copied().unwrap_or(NONE)
    }

    /// Learns from what every device has reported. Called once after each change of what they carry has been reported, or every so often.
    pub(crate) fn learn(&mut self, work: &BTreeMap<DeviceId, Work>) {
        self.0.retain(|device, _| work.contains_key(device));
        let mut waits: Vec<u64> = work.values().map(|work| u64::from(work.wait_us)).collect();
        if waits.len() < 2 {
            return self.0.clear();
        }
        // The lower median: of two the faster is what the other is measured by.
        let middle = (waits.len() - 1) / 2;
        let (_, median, _) = waits.select_nth_unstable(middle);
        let usual = (*median).max(1);
        for (device, work) in work {
            let wait = u64::from(work.wait_us);
            let now = self.of(*device);
            let next = if wait >= LEAST_WAIT_US && wait * 100 >= usual * SLOW_PERCENT {
                (now * 5 / 4).min(MOST)
            } else if wait < LEAST_WAIT_US / 2 || wait * 100 <= usual * EVEN_PERCENT {
                (now * 19 / 20).max(NONE)
            } else {
                now
            };
            match next {
                NONE => self.0.remove(device),
                _ => self.0.insert(*device, next),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::MemberId;

    fn waits(us: &[u32]) -> BTreeMap<DeviceId, Work> {
        let work = |us: &u32| Work { wait_us: *us, ..Work::default() };
        (1..).map(|member| DeviceId::new(MemberId(member), 0)).zip(us.iter().map(work)).collect()
    }

    fn learned(rounds: &[&[u32]]) -> Vec<u64> {
        let mut handicaps = Handicaps::default();
        rounds.iter().for_each(|us| handicaps.learn(&waits(us)));
        let devices = waits(rounds[0]);
        devices.keys().map(|device| handicaps.of(*device)).collect()
    }

    #[test]
    fn who_is_waited_for_longer_than_the_others_counts_for_more_up_to_a_bound() {
        assert_eq!(learned(&[&[500, 400, 6000]]), [100, 100, 125]);
        assert_eq!(learned(&[&[500, 400, 6000][..]; 20]), [100, 100, 400]);
        assert_eq!(learned(&[&[10, 4000][..]; 2]), [100, 156], "of two the slower");
    }

    #[test]
    fn waits_that_are_short_or_alike_say_nothing() {
        assert_eq!(learned(&[&[10, 12, 900][..]; 5]), [100; 3], "nobody waits");
        assert_eq!(learned(&[&[9000, 8000, 12_000][..]; 5]), [100; 3], "everybody does");
        assert_eq!(learned(&[&[50_000][..]; 5]), [100], "nobody to compare with");
        assert_eq!(learned(&[&[0, 0, 0]]), [100; 3]);
    }

    #[test]
    fn between_the_bounds_it_stays_and_below_it_is_forgotten_slowly() {
        let slow: &[u32] = &[1000, 1000, 4000];
        let between: &[u32] = &[1000, 1000, 2000];
        let even: &[u32] = &[1000, 1000, 1400];
        assert_eq!(learned(&[slow, slow, between, between]), [100, 100, 156]);
        assert_eq!(learned(&[slow, slow, even]), [100, 100, 148]);
        let mut long = vec![slow, slow];
        long.resize(20, even);
        assert_eq!(learned(&long), [100; 3]);
    }

    #[test]
    fn who_reports_no_more_is_forgotten() {
        let mut handicaps = Handicaps::default();
        handicaps.learn(&waits(&[1000, 1000, 9000]));
        handicaps.learn(&waits(&[1000, 1000]));
        assert_eq!(handicaps, Handicaps::default());
    }
}
