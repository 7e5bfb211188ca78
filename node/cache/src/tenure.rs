//! Since when a device has had which slots, and when its node had no lease last: a block that was stored before, or meanwhile, is
//! not there for that reason alone.

use kvhive_protocol::explain::{Explained, Lapse, Since};
use kvhive_protocol::{ClusterMap, DeviceId, Moment, SLOTS, Slot};

/// Since when a device has had its slots.
#[derive(Default)]
pub struct Tenure {
    /// Of each slot, while it has it; empty before the first map.
    since: Vec<Option<Moment>>,
}

impl Tenure {
    /// Takes over a map, in which the node's devices are known by this one.
    pub fn adopt(&mut self, now: Moment, map: &ClusterMap, device: DeviceId) {
        let is_first = self.since.is_empty();
        self.since.resize(usize::from(SLOTS), None);
        for (slot, since) in (0..SLOTS).map(Slot).zip(&mut self.since) {
            if !map.replicas(slot).contains(device) {
                *since = None;
            } else if since.is_none() {
                // What it has from the first map on it has had since it began.
                *since = Some(if is_first { Moment::ZERO } else { now });
            }
        }
    }

    /// Says whether the device has a slot.
    pub fn has(&self, slot: Slot) -> bool {
        self.since.get(usize::from(slot.0)).is_some_and(Option::is_some)
    }

    /// Returns what is known of a block of a slot: of what has not been here no more than since the slot has.
    pub fn explain(&self, now: Moment, slot: Slot, explained: Explained) -> Explained {
        let (Explained::Unknown { for_s, .. }, Some(Some(since))) =
            (explained, self.since.get(usize::from(slot.0)))
        else {
            return explained;
        };
        let placed_for = seconds(now) - seconds(*since).min(seconds(now));
        if placed_for < for_s {
            Explained::Unknown { since: Since::Placed, for_s: placed_for }
        } else {
            explained
        }
    }

    /// Returns the bytes that it takes.
    pub const fn bytes() -> u64 {
        SLOTS as u64 * size_of::<Option<Moment>>() as u64
    }
}

/// When a node had no lease last, since it had its first.
#[derive(Clone, Copy, Default, Debug)]
pub struct Lapses {
    /// When its lease ends, or ended.
    end: Option<Moment>,
    last: Option<(Moment, Moment)>,
}

impl Lapses {
    /// The node serves until then from now on; until a moment that has passed: not at all.
    pub fn serve_until(&mut self, now: Moment, lease: Moment) {
        if lease > now {
            if let Some(end) = self.end.filter(|end| *end < now) {
                self.last = Some((end, now));
            }
            self.end = Some(lease);
        } else {
            self.end = self.end.map(|end| end.min(now));
        }
    }

    /// Returns the last time without a lease that has ended.
    pub fn last(&self, now: Moment) -> Option<Lapse> {
        self.last.map(|(from, until)| Lapse {
            ago_s: seconds(Moment::ZERO + now.since(until)),
            for_ms: u64::try_from(until.since(from).as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// Returns a moment in whole seconds.
pub(crate) fn seconds(at: Moment) -> u32 {
    u32::try_from(at.as_nanos() / 1_000_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::{ReplicaSet, Settings};
    use kvhive_protocol::{ClusterId, MemberId};
    use std::sync::Arc;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1000)
    }

    fn map(slots: &[u16]) -> ClusterMap {
        let settings = Settings {
            replicas: 1,
            segment_blocks: 4,
            ack: Ack::Primary,
            lease_ms: 3000,
            heartbeat_ms: 1000,
            serving_lease_ms: 3000,
        };
        let mut map = ClusterMap::founded(ClusterId(1), "test", settings);
        let all = Arc::make_mut(&mut map.slots);
        slots.iter().for_each(|slot| all[usize::from(*slot)] = ReplicaSet(vec![device()]));
        map
    }

    fn device() -> DeviceId {
        DeviceId::new(MemberId(3), 1)
    }

    fn unknown(since: Since, for_s: u32) -> Explained {
        Explained::Unknown { since, for_s }
    }

    #[test]
    fn a_slot_that_came_later_is_known_since_then() {
        let mut tenure = Tenure::default();
        let began = unknown(Since::Began, 90);
        assert_eq!(tenure.explain(at(100), Slot(5), began), began, "no map yet");
        tenure.adopt(at(11), &map(&[5]), device());
        tenure.adopt(at(60), &map(&[5, 6]), device());
        tenure.adopt(at(70), &map(&[5, 6]), device());
        assert_eq!(tenure.explain(at(100), Slot(5), began), began);
        assert_eq!(tenure.explain(at(100), Slot(6), began), unknown(Since::Placed, 40));
        let forgotten = unknown(Since::Forgotten, 30);
        assert_eq!(tenure.explain(at(100), Slot(6), forgotten), forgotten);
        assert_eq!(tenure.explain(at(100), Slot(7), began), began, "it is not here");
        tenure.adopt(at(80), &map(&[6]), device());
        tenure.adopt(at(90), &map(&[5, 6]), device());
        assert_eq!(tenure.explain(at(100), Slot(5), began), unknown(Since::Placed, 10), "it came back");
        assert_eq!(tenure.explain(at(100), Slot(5), Explained::Coming), Explained::Coming);
    }

    #[test]
    fn a_lease_that_was_renewed_too_late_is_told_with_its_gap() {
        let mut lapses = Lapses::default();
        lapses.serve_until(at(1), Moment::ZERO);
        assert_eq!(lapses.last(at(2)), None, "it had none yet");
        lapses.serve_until(at(2), at(5));
        lapses.serve_until(at(4), at(7));
        assert_eq!(lapses.last(at(5)), None);
        lapses.serve_until(at(9), at(12));
        assert_eq!(lapses.last(at(20)), Some(Lapse { ago_s: 11, for_ms: 2000 }));
        lapses.serve_until(at(10), Moment::ZERO);
        lapses.serve_until(at(11), Moment::ZERO);
        assert_eq!(lapses.last(at(20)), Some(Lapse { ago_s: 11, for_ms: 2000 }), "it has not ended");
        lapses.serve_until(at(14), at(17));
        assert_eq!(lapses.last(at(20)), Some(Lapse { ago_s: 6, for_ms: 4000 }));
    }
}
