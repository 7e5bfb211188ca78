//! When nodes are whole again, by a map and by who was hit: a map that has not heard of a death looks whole. What is promised is, before
//! everything is.

use kvhive_protocol::{ClusterMap, DeviceId, Generation, MemberState, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of nodes besides the map.
pub(super) struct Whole {
    /// How many there are.
    nodes: usize,
    /// Those that were hit, in the start that they had: they have to be heard anew.
    hit: BTreeMap<String, Generation>,
}

impl Whole {
    /// Begins with a cluster of so many nodes, none of which was hit.
    pub(super) fn of(nodes: usize) -> Whole {
        Whole { nodes, hit: BTreeMap::new() }
    }

    /// A node loses what it holds: it has to be heard anew, in another start than this.
    pub(super) fn renews(&mut self, id: &str, generation: Generation) {
        self.hit.insert(id.to_owned(), generation);
    }

    /// A node's lease has ended in this start, by itself: as [`Whole::renews`], unless it was hit in a later one.
    pub(super) fn lapses(&mut self, id: &str, generation: Generation) {
        let known = self.hit.entry(id.to_owned()).or_insert(generation);
        *known = generation.max(*known);
    }

    /// A node has lost nothing after all.
    pub(super) fn stays(&mut self, id: &str) {
        self.hit.remove(id);
    }

    /// Everything is whole without these: who is among them has still to be heard anew.
    pub(super) fn renewed(&mut self, gone: &BTreeSet<String>) {
        self.hit.retain(|id, _| gone.contains(id));
    }

    /// Names those that are not gone, and that have to be heard anew.
    pub(super) fn unheard(&self, map: &ClusterMap, gone: &BTreeSet<String>) -> BTreeSet<String> {
        let is_old = |(id, old): &(&String, &Generation)| {
            !gone.contains(*id) && map.member(id).is_none_or(|(_, member)| member.generation <= **old)
        };
        self.hit.iter().filter(is_old).map(|(id, _)| id.clone()).collect()
    }

    /// Says whether one of these slots has fewer copies that lack nothing than it could have, at nodes that are there and were heard
    /// since they were hit.
    pub(super) fn is_thin(&self, map: &ClusterMap, gone: &BTreeSet<String>, slots: &BTreeSet<Slot>) -> bool {
        let (wanted, unheard) = (self.copies(map, gone), self.unheard(map, gone));
        let is_there = |device: &DeviceId| {
            let member = map.members.get(&device.member).filter(|member| member.state == MemberState::Up);
            member.is_some_and(|member| !gone.contains(&member.name) && !unheard.contains(&member.name))
        };
        slots.iter().any(|slot| {
            let whole = |device: &&DeviceId| is_there(device) && !map.is_filling(*slot, **device);
            map.replicas(*slot).0.iter().filter(whole).count() < wanted
        })
    }

    /// Says whether a node has a copy of one of these slots that lacks nothing.
    pub(super) fn holds(map: &ClusterMap, id: &str, slots: &BTreeSet<Slot>) -> bool {
        let Some((member, _)) = map.member(id) else { return false };
        slots.iter().any(|slot| {
            let is_its = |device: &&DeviceId| device.member == member && !map.is_filling(*slot, **device);
            map.replicas(*slot).0.iter().any(|device| is_its(&device))
        })
    }

    /// Says what a map lacks until everything is whole, but for these that are gone: of them it has to know that they are.
    pub(super) fn lacking(&self, map: &ClusterMap, gone: &BTreeSet<String>) -> Option<String> {
        let is_up = |id: &&String| map.member(id).is_some_and(|(_, member)| member.state == MemberState::Up);
        if let Some(id) = gone.iter().find(is_up) {
            return Some(format!("{id} is gone and is taken to be up"));
        }
        if let Some(id) = self.unheard(map, gone).first() {
            return Some(format!("{id} has not registered anew"));
        }
        let nodes = self.nodes.saturating_sub(gone.len());
        let up = map.members.values().filter(|member| member.state == MemberState::Up).count();
        let wanted = self.copies(map, gone);
        let thin = map.slots.iter().filter(|set| set.0.len() < wanted).count();
        let filling = map.filling.len();
        let is_whole = up >= nodes && thin == 0 && filling == 0;
        (!is_whole).then(|| {
            format!("{up} of {nodes} nodes are up, {thin} slots lack a replica, {filling} are being filled")
        })
    }

    /// Returns how many copies there are to be where these are gone.
    fn copies(&self, map: &ClusterMap, gone: &BTreeSet<String>) -> usize {
        usize::from(map.settings.replicas).min(self.nodes.saturating_sub(gone.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::Settings;
    use kvhive_protocol::{ClusterId, Epoch, Filling, Level, Member, MemberId, ReplicaSet};
    use std::sync::Arc;

    fn device(node: u32) -> DeviceId {
        DeviceId::new(MemberId(node), 0)
    }

    /// Three nodes that are up, and one slot at two of them.
    fn cluster() -> (Whole, ClusterMap) {
        let settings = Settings {
            replicas: 2,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 1000,
            heartbeat_ms: 200,
            serving_lease_ms: 5000,
        };
        let mut map = ClusterMap::founded(ClusterId(1), "test", settings);
        for node in 1..=3 {
            let member = Member {
                name: format!("node-{node}"),
                generation: Generation(1),
                state: MemberState::Up,
                data_address: String::new(),
                metrics_address: String::new(),
                labels: BTreeMap::new(),
                devices: Vec::new(),
                codec: Codec::Raw,
                drains: false,
                speaks: Level::NEWEST,
                cordoned: false,
                lingers: None,
                drains_since: Epoch(0),
            };
            map.members.insert(MemberId(node), member);
        }
        let sets = vec![ReplicaSet(vec![device(1), device(2)]); map.slots.len()];
        map.slots = Arc::new(sets);
        (Whole::of(3), map)
    }

    fn names(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn state_of(map: &mut ClusterMap, node: u32) -> &mut Member {
        map.members.get_mut(&MemberId(node)).expect("it is one of them")
    }

    #[test]
    fn what_is_promised_is_thin_until_as_many_have_it_as_are_to() {
        let slots = BTreeSet::from([Slot(7)]);
        let (mut whole, mut map) = cluster();
        assert!(!whole.is_thin(&map, &names(&[]), &slots));
        // Killed, and nobody has heard of it: the map looks as before.
        whole.renews("node-2", Generation(1));
        assert!(whole.is_thin(&map, &names(&["node-2"]), &slots));
        assert!(whole.is_thin(&map, &names(&[]), &slots), "it is there again and was not heard");
        state_of(&mut map, 2).generation = Generation(2);
        assert!(!whole.is_thin(&map, &names(&[]), &slots), "it was heard, and lacks nothing");
        let lacks =
            |device| Arc::new(BTreeMap::from([(Slot(7), Filling { devices: vec![device], streams: true })]));
        map.filling = lacks(device(2));
        assert!(whole.is_thin(&map, &names(&[]), &slots));
        assert!(
            !whole.is_thin(&map, &names(&[]), &BTreeSet::from([Slot(8)])),
            "nothing is promised of the other"
        );
        // A third is being given what the two have.
        Arc::make_mut(&mut map.slots)[7].0.push(device(3));
        map.filling = lacks(device(3));
        assert!(!whole.is_thin(&map, &names(&[]), &slots));
        let holders = ["node-1", "node-2", "node-3", "node-4"].map(|id| Whole::holds(&map, id, &slots));
        assert_eq!(holders, [true, true, false, false]);
        assert!(whole.is_thin(&map, &names(&["node-1"]), &slots));
        state_of(&mut map, 1).state = MemberState::Down;
        assert!(whole.is_thin(&map, &names(&[]), &slots), "one that is down has no copy");
    }

    #[test]
    fn one_whose_lease_has_ended_by_itself_has_to_be_heard_in_another_start() {
        let (mut whole, mut map) = cluster();
        whole.lapses("node-2", Generation(1));
        assert_eq!(whole.unheard(&map, &names(&[])), names(&["node-2"]));
        state_of(&mut map, 2).generation = Generation(2);
        assert!(whole.unheard(&map, &names(&[])).is_empty());
        // It is told late, and was hit since.
        whole.renews("node-2", Generation(2));
        whole.lapses("node-2", Generation(1));
        assert_eq!(whole.unheard(&map, &names(&[])), names(&["node-2"]));
    }

    #[test]
    fn everything_is_whole_when_all_are_heard_and_no_slot_lacks_anything() {
        let (mut whole, mut map) = cluster();
        assert_eq!(whole.lacking(&map, &names(&[])), None);
        whole.renews("node-3", Generation(1));
        let gone = names(&["node-3"]);
        assert_eq!(whole.lacking(&map, &gone).as_deref(), Some("node-3 is gone and is taken to be up"));
        state_of(&mut map, 3).state = MemberState::Down;
        assert_eq!(whole.lacking(&map, &gone), None, "it is whole without the one that is gone");
        whole.renewed(&gone);
        assert_eq!(whole.lacking(&map, &names(&[])).as_deref(), Some("node-3 has not registered anew"));
        let member = state_of(&mut map, 3);
        (member.state, member.generation) = (MemberState::Up, Generation(2));
        assert_eq!(whole.lacking(&map, &names(&[])), None);
        map.filling = Arc::new(BTreeMap::from([(Slot(1), Filling::default())]));
        let said = "3 of 3 nodes are up, 0 slots lack a replica, 1 are being filled";
        assert_eq!(whole.lacking(&map, &names(&[])).as_deref(), Some(said));
    }
}
