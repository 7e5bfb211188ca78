//! NCCL pairs of one GPU: communicators of two ranks with those GPUs that it really talks to, and one transfer at a time over all
//! of them.
//!
//! A GPU has one slot. Whoever wants to send takes its own slot and proposes; the receiver grants when its slot is free; the sender
//! says that it goes on, and then both enqueue. So nothing is enqueued that waits for a slot somewhere else. Who holds a slot for a
//! proposal that is not granted yet gives it up for an older transfer (wound-wait: Rosenkrantz, Stearns and Lewis, 1978), so nobody
//! waits in a circle. Everything has a limit; what does not go in time goes by TCP.
//!
//! The library is called by a worker process, which may hang or die, and what is said between nodes may be lost. The machine opens
//! nothing and calls nothing: it is told, and asks ([`Event`], [`Effect`]).

use crate::pairs::peer::{Peer, Stage};
use kvhive_protocol::pairs::{PairMessage, PairWord, TransferId};
use kvhive_protocol::{DeviceId, Generation, Moment};
use std::collections::BTreeMap;

mod carrying;
mod ending;
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
    peer: DeviceId,
    bytes: u64,
    deadline: Moment,
    /// When it goes by TCP, unless its send is enqueued by then.
    until: Moment,
    /// Its newest proposal: the peer's node was asked to expect it.
    round: Option<u64>,
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
    /// A transfer of this GPU, not granted yet.
    Proposed {
        transfer: TransferId,
        peer: DeviceId,
        round: u64,
    },
    Sending {
        transfer: TransferId,
        peer: DeviceId,
        communicator: Communicator,
    },
    /// A transfer to this GPU whose sender has not said yet that it sends.
    Granted {
        transfer: TransferId,
        peer: DeviceId,
        round: u64,
        until: Moment,
    },
    Receiving {
        transfer: TransferId,
        peer: DeviceId,
        communicator: Communicator,
    },
    /// It was answered; what was enqueued is not closed yet.
    Clearing {
        communicator: Communicator,
        whose: Whose,
    },
}

impl Slot {
    fn peer(&self) -> Option<DeviceId> {
        match self {
            Slot::Proposed { peer, .. }
            | Slot::Sending { peer, .. }
            | Slot::Granted { peer, .. }
            | Slot::Receiving { peer, .. } => Some(*peer),
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
                self.on_want(ticket, peer, bytes, deadline, effects);
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
        let peers = self.peers.values().filter_map(Peer::until);
        slot.into_iter().chain(worker).chain(wants).chain(expects).chain(peers).min()
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
                let proposal = peer::Proposal { transfer, round, incarnation, bytes };
                self.on_propose(from, proposal, effects);
            }
            PairWord::Grant { transfer, round } => self.on_grant(from, transfer, round, effects),
            PairWord::Go { transfer, round } => self.on_go(from, transfer, round, effects),
            PairWord::Withdraw { transfer, round, is_last } => {
                self.on_withdraw(from, (transfer, round), is_last, effects);
            }
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
            None => drop(self.peers.insert(device, Peer::new(now, generation))),
            Some(peer) if peer.generation == generation => peer.leaving = false,
            Some(peer) if peer.generation > generation => {}
            Some(_) => {
                self.give_up(device, Why::Gone, false, effects);
                if let Some(peer) = self.peers.get_mut(&device) {
                    peer.starts_anew(generation);
                }
            }
        }
    }

    fn on_gone(&mut self, device: DeviceId, effects: &mut Vec<Effect>) {
        self.give_up(device, Why::Gone, false, effects);
        match self.peers.get_mut(&device) {
            Some(peer) if peer.communicator().is_some() => peer.leaving = true,
            _ => drop(self.peers.remove(&device)),
        }
    }

    /// It is not asked again before it starts anew.
    fn on_lacks(&mut self, device: DeviceId, generation: Generation, effects: &mut Vec<Effect>) {
        if let Some(peer) = self.peers.get_mut(&device).filter(|peer| peer.generation == generation) {
            peer.lacks = true;
            self.give_up(device, Why::Without, false, effects);
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

    fn holder_of(&self, communicator: Communicator) -> Option<DeviceId> {
        let mut peers = self.peers.iter();
        peers.find(|(_, peer)| peer.communicator() == Some(communicator)).map(|(device, _)| *device)
    }

    fn has_flaw(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

#[cfg(test)]
#[path = "pairs_test.rs"]
mod pairs_test;
