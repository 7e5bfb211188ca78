//! NCCL pairs of one GPU: communicators of two ranks with those GPUs that it really talks to, and one transfer at a time over all
//! of them.
//!
//! A GPU has one slot. Whoever wants to send takes its own slot and proposes; the receiver grants when its slot is free; the sender
//! says that it goes on, and then both enqueue. So nothing is enqueued that waits for a slot somewhere else. Who holds a slot for a
//! proposal that is not granted yet gives it up for an older transfer (wound-wait: Rosenkrantz, Stearns and Lewis, 1978), so nobody
//! waits in a circle. Everything has a limit; what does not go in time goes by TCP.
//!
//! What is to go to several GPUs at once goes over a communicator of all of them, whose rank 0 sends it: it proposes to each, and says that
//! it goes on when all have granted. Who has granted may have to wait for others then, and asks for its slot back for what is older.
//!
//! The library is called by a worker process, which may hang or die, and what is said between nodes may be lost. The machine opens
//! nothing and calls nothing: it is told, and asks ([`Event`], [`Effect`]).

use crate::pairs::groups::{Group, GroupId, Wish};
use crate::pairs::peer::{Peer, Stage};
use kvhive_protocol::pairs::{GroupWord, Incarnation, PairMessage, PairWord, TransferId};
use kvhive_protocol::{DeviceId, Generation, Moment};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

mod carrying;
mod ending;
mod groups;
mod invariants;
mod making;
mod peer;
mod report;
mod tuning;
mod words;

pub use tuning::{Flaw, Tuning};
pub use words::{Answer, Command, Communicator, Counted, Effect, Event, Ticket, Why};

/// Peers that are remembered at a time; more are not told apart from those that are not in the map.
pub const MAX_PEERS: usize = 4096;

/// The process that calls NCCL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Worker {
    /// There is none, and none is started before.
    Down {
        until: Moment,
    },
    Starting {
        until: Moment,
    },
    Up,
    /// It is being killed.
    Dying,
    /// There can be none: NCCL is not here.
    Unfit,
}

/// A transfer that is to go to a peer and is not answered yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Want {
    ticket: Ticket,
    /// To whom: to one over a pair, to several at once over a group.
    peers: Vec<DeviceId>,
    bytes: u64,
    deadline: Moment,
    /// When it goes by TCP, unless its send is enqueued by then.
    until: Moment,
    /// Its newest proposal: the peers' nodes were asked to expect it.
    round: Option<u64>,
}

/// Between whom a communicator is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Over {
    Pair(DeviceId),
    Group(GroupId),
}

/// A communicator that stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Standing {
    over: Over,
    incarnation: Incarnation,
    communicator: Communicator,
}

/// A transfer that frames are reserved for and that is not answered yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Expected {
    bytes: u64,
    deadline: Moment,
}

/// Whose frames are touched by what is being given up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Whose {
    Source(Ticket),
    Room(TransferId),
}

/// What the slot is held for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Slot {
    /// A transfer of this GPU, not granted yet by all.
    Proposed {
        transfer: TransferId,
        over: Over,
        round: u64,
        granted: BTreeSet<DeviceId>,
    },
    Sending {
        transfer: TransferId,
        over: Over,
        communicator: Communicator,
    },
    /// A transfer to this GPU whose sender has not said yet that it sends.
    Granted {
        transfer: TransferId,
        over: Over,
        round: u64,
        until: Moment,
        /// Its sender was asked to give it up for an older one, where it is not granted by all.
        is_wounded: bool,
    },
    Receiving {
        transfer: TransferId,
        over: Over,
        communicator: Communicator,
    },
    /// It was answered; what was enqueued is not closed yet.
    Clearing {
        communicator: Communicator,
        whose: Whose,
    },
}

impl Slot {
    fn over(&self) -> Option<Over> {
        match self {
            Slot::Proposed { over, .. }
            | Slot::Sending { over, .. }
            | Slot::Granted { over, .. }
            | Slot::Receiving { over, .. } => Some(*over),
            Slot::Clearing { .. } => None,
        }
    }

    fn transfer(&self) -> Option<TransferId> {
        match self {
            Slot::Proposed { transfer, .. }
            | Slot::Sending { transfer, .. }
            | Slot::Granted { transfer, .. }
            | Slot::Receiving { transfer, .. } => Some(*transfer),
            Slot::Clearing { .. } => None,
        }
    }
}

/// The pairs of one GPU.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pairs {
    me: DeviceId,
    generation: Generation,
    tuning: Tuning,
    flaw: Option<Flaw>,
    now: Moment,
    worker: Worker,
    /// Times in a row that the worker died without having carried anything.
    worker_failures: u32,
    peers: BTreeMap<DeviceId, Peer>,
    /// The newest communicators with those who have left: none is joined a second time when they come back.
    left: BTreeMap<DeviceId, Incarnation>,
    groups: BTreeMap<GroupId, Group>,
    /// Those of others that were given up.
    given_up: VecDeque<GroupId>,
    /// What was wanted of whom at once.
    wishes: BTreeMap<Vec<DeviceId>, Wish>,
    wants: BTreeMap<TransferId, Want>,
    expects: BTreeMap<TransferId, Expected>,
    slot: Option<Slot>,
    /// Counters: of transfers, as far as this GPU has heard; of its proposals; of what its worker has made; of what it has offered.
    clock: u64,
    rounds: u64,
    communicators: u64,
    incarnations: u64,
}

impl Pairs {
    /// Makes the pairs of a GPU in this start of its member: none.
    pub fn new(me: DeviceId, generation: Generation, tuning: Tuning) -> Pairs {
        Pairs {
            me,
            generation,
            tuning,
            flaw: None,
            now: Moment::ZERO,
            worker: Worker::Down { until: Moment::ZERO },
            worker_failures: 0,
            peers: BTreeMap::new(),
            left: BTreeMap::new(),
            groups: BTreeMap::new(),
            given_up: VecDeque::new(),
            wishes: BTreeMap::new(),
            wants: BTreeMap::new(),
            expects: BTreeMap::new(),
            slot: None,
            clock: 0,
            rounds: 0,
            communicators: 0,
            incarnations: 0,
        }
    }

    /// Leaves out a rule, so that a test can show that it would be missed.
    #[doc(hidden)]
    #[must_use]
    pub fn with_flaw(self, flaw: Option<Flaw>) -> Pairs {
        Pairs { flaw, ..self }
    }

    /// Takes in an event. A moment before the last one counts as the last one.
    pub fn step(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        self.now = now.max(self.now);
        self.expire(effects);
        match event {
            Event::Tick => {}
            Event::Peer { device, generation } => self.on_peer(device, generation, effects),
            Event::Gone { device } => self.on_gone(device, effects),
            Event::Want { ticket, peer, bytes, deadline } => {
                self.on_want(ticket, vec![peer], bytes, deadline, effects);
            }
            Event::WantAll { ticket, mut peers, bytes, deadline } => {
                peers.sort_unstable();
                peers.dedup();
                self.on_want(ticket, peers, bytes, deadline, effects);
            }
            Event::Refused { ticket } => self.on_refused(ticket, effects),
            Event::Expect { transfer, bytes, deadline } => {
                self.on_expect(transfer, bytes, deadline, effects);
            }
            Event::Message(message) => self.on_message(message, effects),
            Event::Lacks { device, generation } => self.on_lacks(device, generation, effects),
            Event::Worker(answer) => self.on_answer(answer, effects),
        }
        self.fill_slot(effects);
    }

    /// Returns its limits.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Returns the peers that are in the map, as far as it was told.
    pub fn peers(&self) -> Vec<DeviceId> {
        let there = self.peers.iter().filter(|(_, peer)| !peer.leaving);
        there.map(|(device, _)| *device).collect()
    }

    /// Returns when it is to be told of the time at the latest.
    pub fn wakes(&self) -> Option<Moment> {
        let slot = match self.slot {
            Some(Slot::Granted { until, .. }) => Some(until),
            _ => None,
        };
        let worker = match self.worker {
            Worker::Starting { until } => Some(until),
            _ => None,
        };
        let sending = match self.slot {
            Some(Slot::Sending { transfer, .. }) => Some(transfer),
            _ => None,
        };
        let wants = self.wants.iter().map(|(transfer, want)| match sending == Some(*transfer) {
            true => want.deadline,
            false => want.until,
        });
        let expects = self.expects.values().map(|expected| expected.deadline);
        let peers = self.peers.values().filter_map(|peer| peer.stage.until());
        let groups = self.groups.values().filter_map(|group| group.stage.until());
        slot.into_iter().chain(worker).chain(wants).chain(expects).chain(peers).chain(groups).min()
    }

    fn on_message(&mut self, message: PairMessage, effects: &mut Vec<Effect>) {
        let PairMessage { from, generation, to, to_generation, .. } = message;
        let is_for_me = to == self.me && to_generation == self.generation;
        if !is_for_me || !message.is_sound() || !self.peers.contains_key(&from) {
            return;
        }
        if self.peers[&from].generation < generation {
            self.on_peer(from, generation, effects);
        }
        if self.peers.get(&from).is_none_or(|peer| peer.generation != generation || peer.leaving) {
            return;
        }
        match message.word {
            PairWord::Ask { after } => self.on_ask(from, after, effects),
            PairWord::Offer { incarnation, id } => self.on_offer(from, incarnation, id, effects),
            PairWord::Accept { incarnation } => self.on_accept(from, incarnation, effects),
            PairWord::Broken { incarnation } => self.on_broken(from, incarnation, effects),
            PairWord::Propose { transfer, round, incarnation, bytes } => {
                let over = Over::Pair(from);
                let proposal = peer::Proposal { transfer, round, over, incarnation, bytes };
                self.on_propose(from, proposal, effects);
            }
            PairWord::Grant { transfer, round } => self.on_grant(from, transfer, round, effects),
            PairWord::Go { transfer, round } => self.on_go(from, transfer, round, effects),
            PairWord::Withdraw { transfer, round, is_last } => {
                self.on_withdraw(from, (transfer, round), is_last, effects);
            }
            PairWord::Group(word) => self.on_group(from, word, effects),
        }
    }

    fn on_group(&mut self, from: DeviceId, word: GroupWord, effects: &mut Vec<Effect>) {
        match word {
            GroupWord::Offer { incarnation, id, members } => {
                self.on_group_offer(GroupId { root: from, incarnation }, id, members, effects);
            }
            GroupWord::Accept { incarnation } => self.on_group_accept(from, incarnation, effects),
            GroupWord::Broken { root, incarnation } => {
                self.on_group_broken(from, GroupId { root, incarnation }, effects);
            }
            GroupWord::Propose { transfer, round, incarnation, bytes } => {
                let over = Over::Group(GroupId { root: from, incarnation });
                let proposal = peer::Proposal { transfer, round, over, incarnation, bytes };
                self.on_propose(from, proposal, effects);
            }
            GroupWord::Wound { transfer, round } => self.on_wound(from, (transfer, round), effects),
        }
    }

    fn on_answer(&mut self, answer: Answer, effects: &mut Vec<Effect>) {
        match answer {
            Answer::Started => self.on_started(effects),
            Answer::Unfit => self.on_unfit(effects),
            Answer::Made { communicator, id } => self.on_made(communicator, id, effects),
            Answer::Ready { communicator } => self.on_ready(communicator, effects),
            Answer::Done { communicator, transfer } => self.on_done(communicator, transfer, effects),
            Answer::Failed { communicator } => self.on_failed(communicator, effects),
            Answer::Closed { communicator } => self.on_closed(communicator, effects),
            Answer::Died => self.on_died(effects),
        }
    }

    fn on_peer(&mut self, device: DeviceId, generation: Generation, effects: &mut Vec<Effect>) {
        let (now, is_full) = (self.now, self.peers.len() >= MAX_PEERS);
        match self.peers.get_mut(&device) {
            None if is_full || device == self.me => {}
            None => {
                let mut peer = Peer::new(now, generation);
                peer.newest = self.left.remove(&device).unwrap_or_default();
                self.peers.insert(device, peer);
            }
            Some(peer) if peer.generation == generation => peer.leaving = false,
            Some(peer) if peer.generation > generation => {}
            Some(_) => {
                self.give_up_all_with(device, effects);
                if let Some(peer) = self.peers.get_mut(&device) {
                    peer.starts_anew(generation);
                }
            }
        }
    }

    fn on_gone(&mut self, device: DeviceId, effects: &mut Vec<Effect>) {
        self.give_up_all_with(device, effects);
        match self.peers.get_mut(&device) {
            Some(peer) if peer.stage.communicator().is_some() => peer.leaving = true,
            _ => self.forget_peer(device),
        }
    }

    /// Forgets one that has left, when nothing is left of its communicator.
    fn forget_peer(&mut self, device: DeviceId) {
        if let Some(peer) = self.peers.remove(&device) {
            if self.left.len() >= MAX_PEERS {
                self.left.pop_first();
            }
            self.left.insert(device, peer.newest);
        }
    }

    /// It is not asked again before it starts anew.
    fn on_lacks(&mut self, device: DeviceId, generation: Generation, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.peers.get_mut(&device).filter(|peer| peer.generation == generation) {
            peer.lacks = true;
            self.give_up(device, Why::Without, false, effects);
            self.give_up_groups_with(device, Why::Without, effects);
        }
    }

    /// Says whether this end does without NCCL, as it turned out.
    pub fn is_without(&self) -> bool {
        self.worker == Worker::Unfit
    }

    fn say(&self, to: DeviceId, word: PairWord, effects: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get(&to) else { return };
        effects.push(Effect::Say(PairMessage {
            from: self.me,
            generation: self.generation,
            to,
            to_generation: peer.generation,
            word,
        }));
    }

    fn holder_of(&self, communicator: Communicator) -> Option<Over> {
        let pairs = self.peers.iter().map(|(device, peer)| (Over::Pair(*device), &peer.stage));
        let groups = self.groups.iter().map(|(id, group)| (Over::Group(*id), &group.stage));
        let mut all = pairs.chain(groups);
        all.find(|(_, stage)| stage.communicator() == Some(communicator)).map(|(over, _)| over)
    }

    fn stage_of(&self, over: Over) -> Option<&Stage> {
        match over {
            Over::Pair(device) => self.peers.get(&device).map(|peer| &peer.stage),
            Over::Group(id) => self.groups.get(&id).map(|group| &group.stage),
        }
    }

    /// Returns the communicator between these, if it stands.
    fn standing(&self, over: Over) -> Option<Standing> {
        let (incarnation, communicator) = self.stage_of(over)?.ready()?;
        Some(Standing { over, incarnation, communicator })
    }

    /// Returns by which communicator something gets from here to all of these, if it stands.
    fn way_to(&self, peers: &[DeviceId]) -> Option<Standing> {
        match peers {
            [peer] => self.standing(Over::Pair(*peer)),
            _ => self.standing(Over::Group(self.own_group(peers)?)),
        }
    }

    fn has_flaw(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

#[cfg(test)]
#[path = "pairs_test.rs"]
mod pairs_test;
