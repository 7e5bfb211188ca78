//! Who has what is promised, by the cluster's maps as they come one after the other. A node that has left a map, or is there in another
//! start, has nothing any more, whatever the reason: a lease that ended as the machine had no time for it is as good as a kill. As long
//! as one stays who had a block, nothing excuses its loss. Who asks for maps and what becomes of promises is not said here.

use kvhive_protocol::{ClusterMap, Epoch, Generation, MemberId, MemberState, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// One start of a node.
type Start = (MemberId, Generation);

/// What is known of who has some slots.
#[derive(Default)]
pub(super) struct Holders {
    epoch: Epoch,
    /// How many are to have each.
    replicas: usize,
    /// Starts that a fault has ended, with all before: the map may not have heard of it.
    hit: BTreeMap<MemberId, Generation>,
    /// Who is up by the newest map, with their names.
    up: BTreeMap<Start, String>,
    slots: BTreeMap<Slot, Held>,
    /// Starts that have left and that no fault had ended, of which the plan was not told yet, by name.
    lapsed: BTreeMap<String, Generation>,
}

/// Who has one slot.
#[derive(Default)]
struct Held {
    /// Who has every block of it that was promised.
    by: BTreeSet<Start>,
    /// How often nobody was left who had.
    emptied: u64,
}

/// A promise that may be made while nothing it goes by has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    slot: Slot,
    emptied: u64,
}

/// What a map says that none before has said.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// Nodes that have left and that no fault had ended.
    pub(super) lapsed: Vec<String>,
    /// Slots of which everybody has left who had them.
    pub(super) emptied: Vec<Slot>,
}

impl Holders {
    /// Begins with those who have these slots by a map.
    pub(super) fn of(map: &ClusterMap, slots: &BTreeSet<Slot>) -> Holders {
        let mut holders = Holders::default();
        holders.note(map);
        for slot in slots {
            let held = Held { by: holders.whole(map, *slot), emptied: 0 };
            holders.slots.insert(*slot, held);
        }
        holders
    }

    /// Goes on by a map. One that is older than the newest says nothing.
    pub(super) fn sees(&mut self, map: &ClusterMap) -> Seen {
        let mut seen = Seen::default();
        if map.epoch < self.epoch {
            return seen;
        }
        for (start, name) in self.note(map) {
            if !self.up.contains_key(&start) && !self.was_hit(&start) {
                self.lapsed.insert(name.clone(), start.1);
                seen.lapsed.push(name);
            }
        }
        let mut slots = std::mem::take(&mut self.slots);
        for (slot, held) in &mut slots {
            let stayed: BTreeSet<Start> =
                held.by.iter().filter(|start| self.is_there(start)).copied().collect();
            let mut by = self.whole(map, *slot);
            // One that has it and is given it anew has it still.
            let replicas = map.replicas(*slot);
            by.extend(stayed.iter().filter(|(member, _)| replicas.0.iter().any(|one| one.member == *member)));
            // Who has given a slot away has given all of it. Without anybody who was there all along nobody has, whatever the map says.
            if stayed.is_empty() || by.is_empty() {
                held.emptied += 1;
                seen.emptied.push(*slot);
            }
            held.by = by;
        }
        self.slots = slots;
        seen
    }

    /// A fault ends this start of a node.
    pub(super) fn hits(&mut self, member: MemberId, generation: Generation) {
        let known = self.hit.entry(member).or_default();
        *known = generation.max(*known);
    }

    /// The fault has ended nothing after all.
    pub(super) fn spares(&mut self, member: MemberId) {
        self.hit.remove(&member);
    }

    /// Returns what a promise of a block of this slot goes by that is made from now on; none while fewer have the slot than are to.
    pub(super) fn claim(&self, slot: Slot) -> Option<Claim> {
        let held = self.slots.get(&slot)?;
        let there = held.by.iter().filter(|start| self.is_there(start)).count();
        (there >= self.replicas).then_some(Claim { slot, emptied: held.emptied })
    }

    /// Says whether somebody has been there all along since then who had the slot.
    pub(super) fn stands(&self, claim: Claim) -> bool {
        self.slots.get(&claim.slot).is_some_and(|held| held.emptied == claim.emptied)
    }

    /// Returns the nodes that have left and that no fault had ended, in the start that they had, since this was asked last.
    pub(super) fn take_lapsed(&mut self) -> BTreeMap<String, Generation> {
        std::mem::take(&mut self.lapsed)
    }

    /// Notes who is up by a map; returns who was before.
    fn note(&mut self, map: &ClusterMap) -> BTreeMap<Start, String> {
        self.epoch = map.epoch;
        self.replicas = usize::from(map.settings.replicas);
        let up = map.members.iter().filter(|(_, member)| member.state == MemberState::Up);
        let up = up.map(|(id, member)| ((*id, member.generation), member.name.clone()));
        std::mem::replace(&mut self.up, up.collect())
    }

    /// Returns those who have all of a slot by the map, and are there.
    fn whole(&self, map: &ClusterMap, slot: Slot) -> BTreeSet<Start> {
        let devices = map.replicas(slot).0.iter().filter(|device| !map.is_filling(slot, **device));
        let starts = devices.filter_map(|device| {
            map.members.get(&device.member).map(|member| (device.member, member.generation))
        });
        starts.filter(|start| self.is_there(start)).collect()
    }

    fn is_there(&self, start: &Start) -> bool {
        self.up.contains_key(start) && !self.was_hit(start)
    }

    fn was_hit(&self, (member, generation): &Start) -> bool {
        self.hit.get(member).is_some_and(|hit| generation <= hit)
    }
}

#[cfg(test)]
#[path = "holders_test.rs"]
pub(super) mod tests;
