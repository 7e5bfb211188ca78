//! Members that are cordoned: they keep the slots that they have, serve them, and are given no others. Says what that makes of where
//! slots belong; who is a candidate at all is `placement`'s to say, and how a slot gets there `moves`'.

use crate::placement::{self, Candidate, Completion};
use crate::registry::{Outcome, Registry};
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, MemberState, ReplicaSet, Slot, WireError};
use std::collections::BTreeSet;

impl Registry {
    pub(crate) fn set_cordon(&mut self, id: MemberId, cordoned: bool) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        let member = map.members.get(&id).ok_or_else(|| {
            WireError::rejected(format_args!("there is no member {id}: `kvhive nodes` shows them"))
        })?;
        if cordoned && !member.cordoned && !others_take(map, id) {
            return Err(WireError::rejected(format_args!(
                "no other member is up and takes slots: start one before {} is cordoned",
                member.name
            )));
        }
        if member.cordoned != cordoned
            && let Some(member) = self.change().members.get_mut(&id)
        {
            member.cordoned = cordoned;
        }
        Ok(self.unchanged())
    }
}

/// Says whether any member but this one is given slots.
pub(crate) fn others_take(map: &ClusterMap, id: MemberId) -> bool {
    let takes = |(other, one): (&MemberId, &kvhive_protocol::Member)| {
        *other != id && one.state == MemberState::Up && !one.drains && !one.cordoned
    };
    map.members.iter().any(takes)
}

/// Lets slots belong where they can go while members are cordoned: what such a member holds stays there, whatever its hash says, and
/// what it does not hold goes to others. It stays primary where it is, and becomes it nowhere. A copy that is on its way to it ends.
pub(crate) fn heed(map: &ClusterMap, candidates: &[Candidate], wanted: &mut [ReplicaSet]) {
    let barred = placement::barred(candidates);
    if barred.is_empty() {
        return;
    }
    let completion = Completion::of(candidates);
    for (slot, wanted) in Slot::all().zip(wanted) {
        let now = &map.replicas(slot).0;
        let is_kept = |device: &DeviceId| barred.contains(device) && !map.is_filling(slot, *device);
        let kept: Vec<DeviceId> = now.iter().filter(|device| is_kept(device)).copied().collect();
        if kept.is_empty() && !wanted.0.iter().any(|device| barred.contains(device)) {
            continue;
        }
        let set = heeded(now, &kept, &barred, &wanted.0, |set| completion.next(slot, set, &wanted.0));
        wanted.0 = set;
    }
}

fn heeded(
    now: &[DeviceId],
    kept: &[DeviceId],
    barred: &BTreeSet<DeviceId>,
    wanted: &[DeviceId],
    next: impl Fn(&[DeviceId]) -> Option<DeviceId>,
) -> Vec<DeviceId> {
    let may_be = |device: &DeviceId| !barred.contains(device) || kept.contains(device);
    let mut set: Vec<DeviceId> = wanted.iter().filter(|device| may_be(device)).copied().collect();
    for device in kept.iter().filter(|device| !wanted.contains(device)) {
        // It keeps the place of whoever was to have the slot and has it not; where all have it already, it is one copy too many.
        let is_other_of_its_member = |one: &DeviceId| one.member == device.member;
        let newcomer = |one: &DeviceId| !now.contains(one);
        if set.iter().any(is_other_of_its_member) {
            continue;
        }
        if set.len() < wanted.len() {
            set.push(*device);
        } else if let Some(at) = set.iter().rposition(newcomer) {
            set[at] = *device;
        }
    }
    while set.len() < wanted.len()
        && let Some(device) = next(&set)
    {
        set.push(device);
    }
    let primary = now.first().filter(|primary| set.contains(primary));
    let stays = primary.filter(|primary| barred.contains(primary));
    let free = || primary.or_else(|| set.iter().find(|device| !barred.contains(device)));
    let first = match set.first() {
        Some(first) if barred.contains(first) => stays.or_else(free),
        _ => stays,
    };
    if let Some(at) = first.and_then(|first| set.iter().position(|device| device == first)) {
        set[..=at].rotate_right(1);
    }
    set
}

#[cfg(test)]
#[path = "cordon_test.rs"]
mod tests;
