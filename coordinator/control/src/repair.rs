//! What becomes of slots when a member goes or comes: survivors are promoted, what is missing is placed again, and
//! whoever holds data keeps its slots. Part of applying a command, so the same on every coordinator.

use crate::placement;
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, ReplicaSet, Slot};
use std::sync::Arc;

/// What a change of members did to the slots; for logs and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Repair {
    /// Slots whose primary went and whose next replica is primary now.
    pub promoted: u32,
    /// Slots whose every replica went: the blocks they held are lost.
    pub lost: u32,
    /// Replicas placed on members that do not hold the slot's older blocks.
    pub filled: u32,
    /// Slots that are nowhere, because no member is up.
    pub unplaced: u32,
}

/// Takes `member` out of every set.
pub(crate) fn withdraw(map: &mut ClusterMap, member: MemberId) -> Repair {
    let mut repair = Repair::default();
    if !map.slots.iter().any(|set| holds(set, member)) {
        return repair;
    }
    for set in Arc::make_mut(&mut map.slots) {
        let was_primary = set.primary().is_some_and(|primary| primary.member == member);
        let held = holds(set, member);
        set.0.retain(|device| device.member != member);
        repair.promoted += u32::from(was_primary && !set.0.is_empty());
        repair.lost += u32::from(held && set.0.is_empty());
    }
    repair
}

/// Gives every slot as many replicas as settings ask for and members allow, behind those that it has.
pub(crate) fn fill(map: &mut ClusterMap, repair: &mut Repair) {
    let candidates = placement::candidates(map);
    let mut members: Vec<MemberId> = candidates.iter().map(|candidate| candidate.device.member).collect();
    members.dedup();
    let replicas = members.len().min(usize::from(map.settings.replicas));
    if replicas > 0 && map.slots.iter().any(|set| set.0.len() < replicas) {
        // Where the slot belongs comes first, so that later there is less to move.
        let wanted = placement::wanted_map(&candidates, replicas);
        for (at, set) in Arc::make_mut(&mut map.slots).iter_mut().enumerate() {
            repair.filled += append(set, &wanted[at].0, replicas);
            if set.0.len() < replicas {
                repair.filled += append(set, &placement::rank(&candidates, Slot(at as u16)), replicas);
            }
        }
    }
    repair.unplaced = map.slots.iter().filter(|set| set.0.is_empty()).count() as u32;
}

fn append(set: &mut ReplicaSet, from: &[DeviceId], replicas: usize) -> u32 {
    let before = set.0.len();
    for device in from {
        if set.0.len() >= replicas {
            break;
        }
        if !holds(set, device.member) {
            set.0.push(*device);
        }
    }
    (set.0.len() - before) as u32
}

fn holds(set: &ReplicaSet, member: MemberId) -> bool {
    set.0.iter().any(|device| device.member == member)
}
