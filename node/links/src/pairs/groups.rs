//! Communicators of more than two. Whoever is to send to the same GPUs at once is rank 0 of one of its own: it has an id made, offers it to
//! each, and joins when all of them have said that they do. Each end knows one by rank 0 and its number.

use super::peer::Stage;
use super::words::{Command, Communicator, Counted, Effect, Why};
use super::{Over, Pairs, Slot, Worker};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{GroupWord, Incarnation, MAX_GROUP_MEMBERS, PairWord, TransferId, UniqueId};
use kvhive_protocol::{DeviceId, Moment};
use std::collections::BTreeSet;

/// Sets of GPUs that are remembered as wanted at once; of more, the one that was wanted longest ago is forgotten.
const MAX_WISHES: usize = 64;

/// Communicators of others that are remembered as given up, for an offer that comes after.
const MAX_GIVEN_UP: usize = 64;

/// Names a communicator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct GroupId {
    /// Its rank 0.
    pub(super) root: DeviceId,
    pub(super) incarnation: Incarnation,
}

/// One communicator as one end sees it: there is none that is idle or rests.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Group {
    /// The other ranks, from 1 on, ascending.
    pub(super) members: Vec<DeviceId>,
    pub(super) stage: Stage,
    pub(super) since: Moment,
    /// To rank 0: who joins.
    accepted: BTreeSet<DeviceId>,
    pub(super) used: Moment,
    pub(super) transfers: u64,
    pub(super) bytes: u64,
}

/// What is wanted of several at once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Wish {
    /// Bytes since a communicator was last given up, and when the last were.
    pub(super) wanted_bytes: u64,
    at: Moment,
    pub(super) failures: u32,
    /// Why the last one was given up.
    pub(super) why: Option<Why>,
    /// None is made before.
    pub(super) until: Moment,
    /// Since when there is none.
    pub(super) since: Moment,
    /// What was sent over all of them.
    pub(super) transfers: u64,
    pub(super) bytes: u64,
}

impl Pairs {
    /// Counts what is wanted of several at once.
    pub(super) fn wish(&mut self, peers: &[DeviceId], bytes: u64) {
        let (now, within) = (self.now, self.tuning.wanted_within);
        if !self.wishes.contains_key(peers) && self.wishes.len() >= MAX_WISHES {
            let oldest = self.wishes.iter().min_by_key(|(_, wish)| wish.at).map(|(peers, _)| peers.clone());
            oldest.and_then(|oldest| self.wishes.remove(&oldest));
        }
        let fresh = Wish {
            wanted_bytes: 0,
            at: now,
            failures: 0,
            why: None,
            until: Moment::ZERO,
            since: now,
            transfers: 0,
            bytes: 0,
        };
        let wish = self.wishes.entry(peers.to_vec()).or_insert(fresh);
        if now.since(wish.at) > within {
            wish.wanted_bytes = 0;
        }
        (wish.wanted_bytes, wish.at) = (wish.wanted_bytes.saturating_add(bytes), now);
    }

    /// Returns the communicator over which this GPU sends to all of these.
    pub(super) fn own_group(&self, peers: &[DeviceId]) -> Option<GroupId> {
        let mut groups = self.groups.iter();
        groups.find(|(id, group)| id.root == self.me && group.members == peers).map(|(id, _)| *id)
    }

    /// Has a communicator with all of these be made if enough was wanted, and returns why there is none yet.
    pub(super) fn seek_group(&mut self, peers: &[DeviceId], effects: &mut Vec<Effect>) -> Why {
        if self.is_without_any(peers) {
            return Why::Without;
        }
        if let Some(group) = self.own_group(peers).and_then(|id| self.groups.get(&id)) {
            return Why::of(group.stage.state(self.now, false));
        }
        let Some(wish) = self.wishes.get(peers) else { return Why::TooFewBytes };
        if wish.until > self.now {
            return Why::Cold;
        }
        if wish.wanted_bytes < self.tuning.make_after_bytes {
            return Why::TooFewBytes;
        }
        if !self.has_worker() {
            return Why::NoWorker;
        }
        if !self.has_room(effects) {
            return Why::NoRoom;
        }
        let id = GroupId { root: self.me, incarnation: self.next_incarnation() };
        match self.worker {
            Worker::Up => self.make_group(id, peers.to_vec(), effects),
            _ => self.wake_group(id, peers.to_vec(), None, effects),
        }
        Why::BeingMade
    }

    /// Says whether one of those who would be in a communicator does without NCCL.
    fn is_without_any(&self, peers: &[DeviceId]) -> bool {
        let lacks = |device: &DeviceId| self.peers.get(device).is_some_and(|peer| peer.lacks);
        self.is_without() || peers.iter().any(lacks)
    }

    fn enter_group(&mut self, id: GroupId, members: Vec<DeviceId>, stage: Stage) {
        let (since, used, accepted) = (self.now, self.now, BTreeSet::new());
        self.groups.insert(id, Group { members, stage, since, accepted, used, transfers: 0, bytes: 0 });
    }

    fn advance_group(&mut self, id: GroupId, stage: Stage) {
        let now = self.now;
        if let Some(group) = self.groups.get_mut(&id) {
            (group.stage, group.since) = (stage, now);
        }
    }

    fn wake_group(
        &mut self,
        id: GroupId,
        members: Vec<DeviceId>,
        offer: Option<(Incarnation, UniqueId)>,
        effects: &mut Vec<Effect>,
    ) {
        let until = self.start_worker(effects);
        self.enter_group(id, members, Stage::Waking { until, offer });
    }

    fn make_group(&mut self, id: GroupId, members: Vec<DeviceId>, effects: &mut Vec<Effect>) {
        let (communicator, until) = (self.next_communicator(), self.now + self.tuning.offer_limit);
        let incarnation = id.incarnation;
        self.enter_group(id, members, Stage::Making { incarnation, communicator, until });
        effects.push(Effect::Worker(Command::Id { communicator }));
    }

    pub(super) fn groups_wake(&mut self, effects: &mut Vec<Effect>) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            let Some(group) = self.groups.get(&id) else { continue };
            let members = group.members.clone();
            match group.stage.clone() {
                Stage::Waking { offer: None, .. } => self.make_group(id, members, effects),
                Stage::Waking { offer: Some((_, unique)), .. } => {
                    self.join_group(id, members, unique, effects);
                }
                _ => {}
            }
        }
    }

    pub(super) fn on_group_made(&mut self, id: GroupId, unique: UniqueId, effects: &mut Vec<Effect>) {
        let Some(group) = self.groups.get(&id) else { return };
        let Stage::Making { incarnation, communicator, .. } = group.stage else { return };
        let (members, until) = (group.members.clone(), self.now + self.tuning.offer_limit);
        self.advance_group(id, Stage::Offered { incarnation, communicator, id: unique.clone(), until });
        for member in &members {
            let offer = GroupWord::Offer { incarnation, id: unique.clone(), members: members.clone() };
            self.say(*member, PairWord::Group(offer), effects);
        }
    }

    /// Joins what was offered, and says so.
    fn join_group(
        &mut self,
        id: GroupId,
        members: Vec<DeviceId>,
        unique: UniqueId,
        effects: &mut Vec<Effect>,
    ) {
        let (communicator, until) = (self.next_communicator(), self.now + self.tuning.join_limit);
        let incarnation = id.incarnation;
        let before = members.iter().take_while(|member| **member != self.me).count();
        let (rank, of) = (before as u8 + 1, members.len() as u8 + 1);
        self.enter_group(id, members, Stage::Joining { incarnation, communicator, until });
        effects.push(Effect::Worker(Command::Join { communicator, id: unique, rank, of }));
        self.say(id.root, PairWord::Group(GroupWord::Accept { incarnation }), effects);
    }

    pub(super) fn on_group_offer(
        &mut self,
        id: GroupId,
        unique: UniqueId,
        members: Vec<DeviceId>,
        effects: &mut Vec<Effect>,
    ) {
        if self.groups.contains_key(&id) {
            return;
        }
        if self.given_up.contains(&id) || !self.has_worker() || !self.has_room(effects) {
            self.say_group_broken(id.root, id, effects);
        } else if self.worker == Worker::Up {
            self.join_group(id, members, unique, effects);
        } else {
            self.wake_group(id, members, Some((id.incarnation, unique)), effects);
        }
    }

    pub(super) fn on_group_accept(
        &mut self,
        from: DeviceId,
        accepted: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        let id = GroupId { root: self.me, incarnation: accepted };
        let until = self.now + self.tuning.join_limit;
        match self.groups.get_mut(&id).filter(|group| group.members.contains(&from)) {
            Some(group) => {
                let Stage::Offered { incarnation, communicator, id: unique, .. } = group.stage.clone() else {
                    // It came twice; what is being given up was said to be.
                    return;
                };
                group.accepted.insert(from);
                if group.accepted.len() == group.members.len() {
                    let of = group.members.len() as u8 + 1;
                    self.advance_group(id, Stage::Joining { incarnation, communicator, until });
                    effects.push(Effect::Worker(Command::Join { communicator, id: unique, rank: 0, of }));
                }
            }
            None => self.say_group_broken(from, id, effects),
        }
    }

    pub(super) fn on_group_ready(&mut self, id: GroupId, effects: &mut Vec<Effect>) {
        let (now, grant_limit) = (self.now, self.tuning.grant_limit);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Stage::Joining { incarnation, communicator, .. } = group.stage else { return };
        effects.push(Effect::Count(Counted::GroupMade));
        (group.stage, group.since) = (Stage::Ready { incarnation, communicator }, now);
        group.used = now;
        let is_own = id.root == self.me;
        for want in self.wants.values_mut().filter(|want| is_own && want.peers == group.members) {
            want.until = want.deadline.min(now + grant_limit);
        }
    }

    pub(super) fn on_group_broken(&mut self, from: DeviceId, id: GroupId, effects: &mut Vec<Effect>) {
        match self.groups.get(&id) {
            Some(group) if id.root == from || (id.root == self.me && group.members.contains(&from)) => {
                self.give_up_group(id, Why::PeerBroke, Some(from), effects);
            }
            // Its offer may come yet.
            None if id.root == from => self.note_given_up(id),
            _ => {}
        }
    }

    /// Somebody who has granted a transfer to all would have his slot for an older one. What all have granted goes on.
    pub(super) fn on_wound(
        &mut self,
        from: DeviceId,
        (wounded, wounded_round): (TransferId, u64),
        effects: &mut Vec<Effect>,
    ) {
        let is_proposed = matches!(self.slot, Some(Slot::Proposed { transfer, round, .. })
            if (transfer, round) == (wounded, wounded_round));
        let is_of = self.wants.get(&wounded).is_some_and(|want| want.peers.contains(&from));
        if is_proposed && is_of {
            self.slot = None;
            self.withdraw(wounded, wounded_round, false, effects);
        }
    }

    /// Remembers that another's communicator is given up: it is not joined a second time.
    fn note_given_up(&mut self, id: GroupId) {
        if self.given_up.contains(&id) {
            return;
        }
        if self.given_up.len() == MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back(id);
    }

    fn say_group_broken(&self, to: DeviceId, id: GroupId, effects: &mut Vec<Effect>) {
        let GroupId { root, incarnation } = id;
        self.say(to, PairWord::Group(GroupWord::Broken { root, incarnation }), effects);
    }

    /// Gives up a communicator, and answers all transfers over it. All who are in it are told but who said so.
    pub(super) fn give_up_group(
        &mut self,
        id: GroupId,
        why: Why,
        said_by: Option<DeviceId>,
        effects: &mut Vec<Effect>,
    ) {
        let over = Over::Group(id);
        let is_enqueued = self.end_transfers_over(over, why, effects);
        let Some(group) = self.groups.get(&id) else { return };
        if matches!(group.stage, Stage::Aborting { .. }) {
            return;
        }
        let (members, stage) = (group.members.clone(), group.stage.clone());
        effects.push(Effect::Count(Counted::GroupGivenUp(why)));
        let told: &[DeviceId] = match stage {
            // Nobody has heard of it.
            Stage::Waking { offer: None, .. } | Stage::Making { .. } => &[],
            _ if id.root == self.me => &members,
            _ => std::slice::from_ref(&id.root),
        };
        for one in told.iter().filter(|one| Some(**one) != said_by) {
            self.say_group_broken(*one, id, effects);
        }
        if id.root == self.me {
            let (now, rests) = (self.now, why.rests());
            if let Some(wish) = self.wishes.get_mut(&members) {
                wish.failures = if rests { wish.failures.saturating_add(1) } else { wish.failures };
                wish.wanted_bytes = 0;
                wish.why = Some(why);
                wish.until = if rests { now + self.tuning.rest(wish.failures) } else { now };
            }
        } else {
            self.note_given_up(id);
        }
        match stage.communicator() {
            None => self.forget_group(id),
            Some(communicator) => {
                let is_joining = matches!(stage, Stage::Joining { .. });
                let until = self.abort_communicator(communicator, is_enqueued || is_joining, why, effects);
                self.advance_group(id, Stage::Aborting { communicator, until, rests: why.rests() });
            }
        }
    }

    /// Forgets one that nothing is left of.
    pub(super) fn forget_group(&mut self, id: GroupId) {
        let members = self.groups.remove(&id).map(|group| group.members);
        if let Some(wish) = members.filter(|_| id.root == self.me).and_then(|own| self.wishes.get_mut(&own)) {
            wish.since = self.now;
        }
    }

    /// Gives up all communicators of several that a GPU is in, which it is not told.
    pub(super) fn give_up_groups_with(&mut self, device: DeviceId, why: Why, effects: &mut Vec<Effect>) {
        let groups = self.groups.iter();
        let of_it = groups.filter(|(id, group)| id.root == device || group.members.contains(&device));
        let ids: Vec<GroupId> = of_it.map(|(id, _)| *id).collect();
        for id in ids {
            self.give_up_group(id, why, Some(device), effects);
        }
    }

    /// Returns how far the communicator is over which this GPU sends to all of these; none where one of them is not known, or does without NCCL.
    pub fn group_state(&self, peers: &[DeviceId]) -> Option<PairState> {
        let is_known = |device: &DeviceId| self.peers.get(device).is_some_and(|peer| !peer.leaving);
        if !(2..=MAX_GROUP_MEMBERS).contains(&peers.len())
            || !peers.iter().all(is_known)
            || self.is_without_any(peers)
        {
            return None;
        }
        let (id, cold) = (self.own_group(peers), self.wishes.get(peers).map(|wish| wish.until));
        Some(match id.and_then(|id| self.groups.get(&id).map(|group| (id, group))) {
            Some((id, group)) => {
                let is_busy = self.slot.as_ref().and_then(Slot::over) == Some(Over::Group(id));
                group.stage.state(self.now, is_busy)
            }
            None if cold.is_some_and(|until| until > self.now) => PairState::Cold,
            None => PairState::Idle,
        })
    }

    /// A transfer over it was done.
    pub(super) fn group_carried(&mut self, id: GroupId, bytes: u64) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.used = now;
        group.transfers += 1;
        group.bytes = group.bytes.saturating_add(bytes);
        if id.root == self.me
            && let Some(wish) = self.wishes.get_mut(&group.members)
        {
            wish.failures = 0;
            wish.transfers += 1;
            wish.bytes = wish.bytes.saturating_add(bytes);
        }
    }

    /// Says whether a transfer from this GPU may come over a communicator of several: one is being joined, or stands.
    pub(super) fn has_group_of(&self, root: DeviceId) -> bool {
        let mut groups = self.groups.iter().filter(|(id, _)| id.root == root);
        groups.any(|(_, group)| matches!(group.stage, Stage::Joining { .. } | Stage::Ready { .. }))
    }

    /// Returns the communicator that was used longest ago of those that nothing is wanted of.
    pub(super) fn closable_group(&self) -> Option<(Moment, GroupId)> {
        let in_use = self.slot.as_ref().and_then(Slot::over);
        let is_wanted = |id: &GroupId, group: &Group| match id.root == self.me {
            true => self.wants.values().any(|want| want.peers == group.members),
            false => self.expects.keys().any(|transfer| transfer.sender == id.root),
        };
        let closable = self.groups.iter().filter(|(id, group)| {
            let is_old = group.used + self.tuning.keep <= self.now;
            let is_ready = group.stage.ready().is_some();
            is_ready && is_old && in_use != Some(Over::Group(**id)) && !is_wanted(id, group)
        });
        closable.map(|(id, group)| (group.used, *id)).min()
    }

    pub(super) fn next_communicator(&mut self) -> Communicator {
        self.communicators += 1;
        Communicator(self.communicators)
    }

    pub(super) fn next_incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        Incarnation { generation: self.generation, number: self.incarnations }
    }
}
