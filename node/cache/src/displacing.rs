//! What a device lets go of for slots that come to it from members that are being emptied: counted as blocks leave, by the map that it
//! serves by. New blocks of such a slot, which come while it is on its way, count as what it brings.

use kvhive_protocol::emptying::{Displaced, MAX_EMPTIED_TOLD};
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, Slot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one device has let go.
#[derive(Default)]
pub struct Displacing {
    /// Which device, and its map while somebody is being emptied.
    emptied: Option<(DeviceId, Arc<ClusterMap>)>,
    sums: BTreeMap<MemberId, Displaced>,
}

impl Displacing {
    /// Takes over a map, in which the node's device is known by this one.
    pub fn adopt(&mut self, map: &Arc<ClusterMap>, device: DeviceId) {
        self.sums.retain(|member, _| map.is_emptied(*member));
        let is_any = map.members.values().any(|member| member.drains);
        self.emptied = is_any.then(|| (device, map.clone()));
    }

    /// Returns which member is being emptied by what comes of this slot, if one is.
    pub fn empties(&self, slot: Slot) -> Option<MemberId> {
        let (device, map) = self.emptied.as_ref()?;
        if map.is_filling(slot, *device) { map.emptied_of(slot) } else { None }
    }

    /// Notes that a block of so many bytes has left for one that empties `member`.
    pub fn note(&mut self, member: MemberId, gone: Slot, bytes: u64) {
        let Some((device, map)) = &self.emptied else { return };
        // An older copy of a slot that has gone elsewhere lives there.
        if !map.replicas(gone).contains(*device) {
            return;
        }
        let sum = self.sums.entry(member).or_default();
        sum.blocks += 1;
        if !map.stays_elsewhere(gone, *device) {
            sum.lost_blocks += 1;
            sum.lost_bytes += bytes;
        }
    }

    /// Returns what has left for each member that is being emptied, ascending.
    pub fn told(&self) -> Vec<(MemberId, Displaced)> {
        self.sums.iter().take(MAX_EMPTIED_TOLD).map(|(member, sum)| (*member, *sum)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_map::{device, founded, member};
    use kvhive_protocol::{Filling, Member, ReplicaSet};

    const GOES: MemberId = MemberId(1);

    /// Slots 0 to 3: on its way from member 1 to 2; on 2 alone; on 2 and 3; on 3, where 2 had it before.
    fn map(drains: bool) -> Arc<ClusterMap> {
        let mut map = founded();
        for id in 1..=3 {
            map.members.insert(MemberId(id), Member { drains: drains && id == GOES.0, ..member(id) });
        }
        let slots = Arc::make_mut(&mut map.slots);
        for (slot, set) in [&[1, 2][..], &[2], &[2, 3], &[3]].into_iter().enumerate() {
            slots[slot] = ReplicaSet(set.iter().map(|member| device(*member)).collect());
        }
        let filling = Filling { devices: vec![device(2)], streams: true };
        Arc::make_mut(&mut map.filling).insert(Slot(0), filling);
        Arc::new(map)
    }

    #[test]
    fn a_block_is_lost_that_nobody_else_has_who_stays() {
        let mut displacing = Displacing::default();
        displacing.adopt(&map(true), device(2));
        assert_eq!([0, 1].map(|slot| displacing.empties(Slot(slot))), [Some(GOES), None]);
        for slot in 0..4 {
            displacing.note(GOES, Slot(slot), 10);
        }
        let sum = Displaced { blocks: 3, lost_blocks: 2, lost_bytes: 20 };
        assert_eq!(displacing.told(), [(GOES, sum)]);
    }

    #[test]
    fn nobody_is_emptied_any_more_and_nothing_is_told() {
        let mut displacing = Displacing::default();
        displacing.adopt(&map(true), device(2));
        displacing.note(GOES, Slot(1), 10);
        displacing.adopt(&map(false), device(2));
        assert_eq!((displacing.empties(Slot(0)), displacing.told()), (None, vec![]));
    }
}
