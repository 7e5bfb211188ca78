//! What becomes of slots when a member goes or comes: survivors are promoted, what is missing is placed again, and
//! whoever holds data keeps its slots. Part of applying a command, so the same on every coordinator.

use crate::placement::{self, Completion};
use crate::wanted;
use kvhive_protocol::{ClusterMap, DeviceId, Filling, MemberId, ReplicaSet, SLOTS, Slot};
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
    let (slots, filling) = (Arc::make_mut(&mut map.slots), Arc::make_mut(&mut map.filling));
    let members = &map.members;
    let takes = |device: &DeviceId| !members.get(&device.member).is_some_and(|member| member.cordoned);
    for (set, slot) in slots.iter_mut().zip(0..SLOTS).filter(|(set, _)| holds(set, member)) {
        let was_primary = set.primary().is_some_and(|primary| primary.member == member);
        set.0.retain(|device| device.member != member);
        let lacking = filling.remove(&Slot(slot));
        // Who is given what they lack by one that is gone waits for another to begin anew.
        let lacking: Vec<DeviceId> = lacking
            .into_iter()
            .flat_map(|lacking| lacking.devices)
            .filter(|device| device.member != member)
            .collect();
        let is_whole = |device: &DeviceId| !lacking.contains(device);
        // One that is cordoned becomes primary only where nobody else has the slot's blocks.
        let free = set.0.iter().position(|device| is_whole(device) && takes(device));
        let whole = free.filter(|_| was_primary).or_else(|| set.0.iter().position(is_whole));
        if let Some(whole) = whole {
            set.0[..=whole].rotate_right(1);
            if !lacking.is_empty() {
                filling.insert(Slot(slot), Filling { devices: lacking, streams: false });
            }
        }
        repair.promoted += u32::from(was_primary && whole.is_some());
        repair.lost += u32::from(whole.is_none());
    }
    repair
}

/// Gives every slot as many replicas as settings ask for and members allow, behind those that it has.
pub(crate) fn fill(map: &mut ClusterMap, repair: &mut Repair) {
    let candidates = placement::candidates(map);
    let replicas = placement::members(&candidates).min(usize::from(map.settings.replicas));
    // Fewer than that where nobody takes more: a member that is cordoned counts only where it is.
    if replicas > 0 && map.slots.iter().any(|set| set.0.len() < replicas) {
        let completion = Completion::of(&candidates);
        // Where the slot belongs comes first, so that later there is less to move.
        let mut wanted = wanted::map(&candidates, replicas);
        if !map.balanced.is_empty() {
            placement::balance(map, &candidates, Arc::make_mut(&mut wanted).as_mut_slice());
        }
        let filling = Arc::make_mut(&mut map.filling);
        for (slot, set) in Slot::all().zip(Arc::make_mut(&mut map.slots).iter_mut()) {
            let before = set.0.len();
            while set.0.len() < replicas
                && let Some(next) = completion.next(slot, &set.0, &wanted[usize::from(slot.0)].0)
            {
                set.0.push(next);
            }
            repair.filled += (set.0.len() - before) as u32;
            if before > 0 && set.0.len() > before {
                let lacking = &mut filling.entry(slot).or_default().devices;
                lacking.extend_from_slice(&set.0[before..]);
            }
        }
    }
    repair.unplaced = map.slots.iter().filter(|set| set.0.is_empty()).count() as u32;
}

fn holds(set: &ReplicaSet, member: MemberId) -> bool {
    set.0.iter().any(|device| device.member == member)
}
