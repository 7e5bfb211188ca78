//! Members that go: down by their lease or their own word, and off the map where nothing is expected of them any more. What becomes
//! of their slots is repair's.

use crate::registry::{Outcome, Registry};
use crate::{repair, validate};
use kvhive_protocol::control::CommandReply;
use kvhive_protocol::{
    ClusterMap, Generation, Lingering, Member, MemberId, MemberState, ReplicaSet, WireError,
};
use std::net::SocketAddr;
use std::sync::Arc;

impl Registry {
    /// Takes down a member that is up in this generation and silent: its process may be serving still.
    pub(crate) fn mark_down(&mut self, id: MemberId, generation: Generation) -> CommandReply {
        if !self.is_up(id, generation) {
            return self.unchanged();
        }
        self.take_down(id);
        let map = Arc::make_mut(self.map.as_mut().expect("a member of it was taken down"));
        let outlives = map.settings.outlives_lease();
        if let Some(member) = map.members.get_mut(&id).filter(|_| outlives) {
            let moved = member.lingers.is_some_and(|before| before.moved);
            member.lingers = Some(Lingering { generation, moved });
        }
        self.unchanged()
    }

    /// Notes that nothing serves any more that was over by the map: of one member up to and including this start, or of those that
    /// no map has.
    pub(crate) fn mark_ended(&mut self, start: Option<(MemberId, Generation)>) -> CommandReply {
        let Some(map) = self.map.as_ref() else { return self.unchanged() };
        let Some((id, generation)) = start else {
            if map.strangers {
                self.change().strangers = false;
            }
            return self.unchanged();
        };
        let is_it = |member: &Member| member.lingers.is_some_and(|lingers| lingers.generation == generation);
        if map.members.get(&id).is_some_and(is_it)
            && let Some(member) = self.change().members.get_mut(&id)
        {
            member.lingers = None;
        }
        self.unchanged()
    }

    fn take_down(&mut self, id: MemberId) {
        let map = self.change();
        if let Some(member) = map.members.get_mut(&id) {
            member.state = MemberState::Down;
        }
        let mut repair = repair::withdraw(map, id);
        repair::fill(map, &mut repair);
        self.repair = Some(repair);
    }

    /// Takes down a member that stops, or forgets it: one that was emptied to the end is not waited for. It serves nothing any
    /// more before it says so.
    pub(crate) fn leave(&mut self, id: MemberId, generation: Generation) -> CommandReply {
        if !self.is_up(id, generation) {
            // It was taken for lost, and was not.
            let lingers = Some(Lingering { generation, moved: false });
            let is_it = |member: &Member| member.state == MemberState::Down && member.lingers == lingers;
            return match self.map.as_ref().is_some_and(|map| map.members.get(&id).is_some_and(is_it)) {
                true => self.mark_ended(Some((id, generation))),
                false => self.unchanged(),
            };
        }
        match self.map.as_ref().is_some_and(|map| is_emptied(map, id)) {
            true => self.forget(id),
            false => self.take_down(id),
        }
        self.unchanged()
    }

    /// Forgets a member that is down. Whoever asks for it knows that its process has ended: it is not waited for.
    pub(crate) fn remove_member(&mut self, id: MemberId) -> Outcome {
        let known = self.map.as_ref().and_then(|map| map.members.get(&id));
        let member = known.ok_or_else(|| {
            WireError::rejected(format_args!("there is no member {id}: `kvhive nodes` shows them"))
        })?;
        if member.state == MemberState::Up {
            let name = &member.name;
            return Err(WireError::rejected(format_args!(
                "{name} is up: `kvhive drain {name}` and then end it, and it is removed by itself"
            )));
        }
        self.forget(id);
        Ok(self.unchanged())
    }

    /// Takes a member that holds no slot off the map, with what was decided of its devices.
    fn forget(&mut self, id: MemberId) {
        let map = self.change();
        let gone = map.members.remove(&id);
        if map.balanced.values().any(|set| holds(set, id)) {
            Arc::make_mut(&mut map.balanced).retain(|_, set| !holds(set, id));
        }
        if let Some(member) = gone {
            self.index.members.remove(&member.name);
            self.index.bytes -= validate::member_bytes(&member);
        }
    }

    fn is_up(&self, id: MemberId, generation: Generation) -> bool {
        let is_it = |member: &Member| member.generation == generation && member.state == MemberState::Up;
        self.map.as_ref().is_some_and(|map| map.members.get(&id).is_some_and(is_it))
    }
}

/// Says whether a member is being emptied and holds nothing any more, and nothing of it serves but its present start.
pub(crate) fn is_emptied(map: &ClusterMap, id: MemberId) -> bool {
    let is_to_go = |member: &Member| member.drains && member.lingers.is_none();
    map.members.get(&id).is_some_and(is_to_go) && !map.slots.iter().any(|set| holds(set, id))
}

/// Returns what of a member's earlier starts may be serving once it starts at `address`. Where it was before, whatever ran there has
/// ended: no two processes listen there. A name says nothing: it may lead to another host by now, as a pod's does.
pub(crate) fn lingering(before: &Member, address: &str) -> Option<Lingering> {
    if before.data_address == address && address.parse::<SocketAddr>().is_ok() {
        return before.lingers.filter(|lingers| lingers.moved);
    }
    match before.state {
        MemberState::Up => Some(Lingering { generation: before.generation, moved: true }),
        MemberState::Down => before.lingers.map(|lingers| Lingering { moved: true, ..lingers }),
    }
}

fn holds(set: &ReplicaSet, id: MemberId) -> bool {
    set.0.iter().any(|device| device.member == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::Cluster;
    use kvhive_protocol::control::{Balancing, Command, CommandReply, Placing};
    use kvhive_protocol::{DeviceId, EventKind, Filling, Reason, Slot};

    /// Two members that share the slots out, of which the second is being emptied.
    fn draining() -> (Cluster, MemberId, MemberId) {
        let mut cluster = Cluster::with_replicas(1);
        let (stays, goes) = (cluster.register("stays", 1), cluster.register("goes", 1));
        place_all(&mut cluster, goes);
        cluster.apply(Command::SetDrains { member: goes, drains: true });
        (cluster, stays, goes)
    }

    /// Has all slots be on one member, in the steps that moves take: placed there too, given what it lacks, and left alone with it.
    fn place_all(cluster: &mut Cluster, member: MemberId) {
        let to = DeviceId::new(member, 0);
        for step in 0..3 {
            let map = cluster.map();
            let placing = |slot: Slot| {
                let now = &map.replicas(slot).0;
                let others = now.iter().copied().filter(|device| *device != to);
                let is_there = now.first() == Some(&to);
                let set = if step == 2 || is_there { vec![to] } else { others.chain([to]).collect() };
                let devices = if step == 0 && !is_there { vec![to] } else { Vec::new() };
                Placing { slot, set, filling: Filling { devices, streams: false } }
            };
            let changes = Slot::all().map(placing).collect();
            let reply = cluster.apply(Command::PlaceSlots { based_on: map.epoch, changes });
            assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
        }
        assert!(cluster.map().slots.iter().all(|set| set.0 == [to]));
    }

    fn leave(cluster: &mut Cluster, member: MemberId) {
        let generation = cluster.map().members[&member].generation;
        cluster.apply(Command::Leave { member, generation });
    }

    fn newest(cluster: &Cluster) -> (EventKind, Option<String>) {
        let last = cluster.registry.events(0, 1000).events.pop().expect("something happened");
        (last.note.kind, last.note.subject.member.clone())
    }

    #[test]
    fn who_was_emptied_to_the_end_and_leaves_is_no_member_any_more() {
        let (mut cluster, stays, goes) = draining();
        place_all(&mut cluster, stays);
        leave(&mut cluster, goes);
        assert_eq!(cluster.map().members.keys().copied().collect::<Vec<_>>(), [stays]);
        assert_eq!(newest(&cluster), (EventKind::MemberRemoved, Some("goes".to_owned())));
        let again = cluster.register("goes", 1);
        assert_eq!(again, MemberId(goes.0 + 1), "its number is nobody's again");
        assert!(!cluster.map().members[&again].drains, "and a node of its name is a new one");
        let restored = Registry::restore(&cluster.registry.snapshot()).expect("it is a state like any other");
        assert_eq!(restored.map(), Some(cluster.map()));
    }

    #[test]
    fn the_last_number_is_not_given_again_after_a_restart_either() {
        let (mut cluster, stays, goes) = draining();
        place_all(&mut cluster, stays);
        leave(&mut cluster, goes);
        cluster.registry = Registry::restore(&cluster.registry.snapshot()).expect("a state");
        assert_eq!(cluster.register("other", 1), MemberId(goes.0 + 1));
    }

    #[test]
    fn who_leaves_with_slots_or_is_lost_or_was_not_to_be_emptied_stays_listed() {
        let (mut cluster, _, goes) = draining();
        leave(&mut cluster, goes);
        assert_eq!(cluster.map().members[&goes].state, MemberState::Down, "it had slots");
        assert_eq!(newest(&cluster).0, EventKind::MemberLeft);

        let (mut cluster, stays, goes) = draining();
        place_all(&mut cluster, stays);
        cluster.mark_down(goes);
        assert_eq!(cluster.map().members[&goes].state, MemberState::Down, "it may come back");

        let (mut cluster, stays, goes) = draining();
        place_all(&mut cluster, stays);
        cluster.apply(Command::SetDrains { member: goes, drains: false });
        leave(&mut cluster, goes);
        assert_eq!(cluster.map().members[&goes].state, MemberState::Down, "that was taken back");
    }

    #[test]
    fn who_is_down_can_be_forgotten_and_takes_what_was_decided_of_it_along() {
        let mut cluster = Cluster::with_replicas(1);
        let (stays, lost) = (cluster.register("stays", 1), cluster.register("lost", 1));
        let set = vec![DeviceId::new(lost, 0)];
        let changes = vec![Balancing { slot: Slot(3), set, reason: Reason::default() }];
        cluster.apply(Command::Balance { based_on: cluster.map().epoch, changes });
        let refused = cluster.apply(Command::RemoveMember { member: lost });
        let CommandReply::Rejected(error) = refused else { panic!("it is up: {refused:?}") };
        assert!(error.to_string().contains("lost is up: `kvhive drain lost`"), "{error}");
        cluster.mark_down(lost);
        assert_eq!(cluster.map().balanced.len(), 1, "it may come back");
        cluster.apply(Command::RemoveMember { member: lost });
        let map = cluster.map();
        assert_eq!((map.members.keys().next(), map.members.len(), map.balanced.len()), (Some(&stays), 1, 0));
        assert_eq!(newest(&cluster), (EventKind::MemberRemoved, Some("lost".to_owned())));
        let again = cluster.apply(Command::RemoveMember { member: lost });
        assert!(matches!(again, CommandReply::Rejected(_)), "{again:?}");
    }
}
