//! What the hands do with what the machines ask for, what NCCL does with what the workers enqueue, and what must hold.

use super::gpu::{Fate, Gpu, Worker, device, index, number};
use kvhive_links::pairs::{Answer, Effect, Event, Flaw, Ticket, Tuning};
use kvhive_protocol::pairs::{GroupWord, Incarnation, PairMessage, PairWord, TransferId};
use kvhive_protocol::{DeviceId, Generation, Moment};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// What goes from one node to another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Packet {
    Say(Box<Said>),
    Store {
        transfer: TransferId,
        ticket: Ticket,
        peer: DeviceId,
        bytes: u64,
    },
    /// The map says that a member has started anew.
    Map {
        to: DeviceId,
        device: DeviceId,
        generation: Generation,
    },
    /// The map says that a member has left.
    Left {
        to: DeviceId,
        device: DeviceId,
    },
    /// The node does not take what it was to store.
    Refuse {
        ticket: Ticket,
        sender: DeviceId,
        generation: Generation,
    },
}

/// A message, in some order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Said(pub(crate) PairMessage);

impl PartialOrd for Said {
    fn partial_cmp(&self, other: &Said) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Said {
    fn cmp(&self, other: &Said) -> std::cmp::Ordering {
        let key = |said: &Said| (said.0.to, said.0.from, said.0.generation, rank(&said.0.word));
        key(self).cmp(&key(other))
    }
}

/// Everything of a word, so that two that differ are not equal.
fn rank(word: &PairWord) -> (u8, Incarnation, Option<TransferId>, u64, bool) {
    let none = Incarnation::default();
    match word {
        PairWord::Ask { after } => (0, *after, None, 0, false),
        PairWord::Offer { incarnation, id } => (1, *incarnation, None, number(id) as u64, false),
        PairWord::Accept { incarnation } => (2, *incarnation, None, 0, false),
        PairWord::Broken { incarnation } => (3, *incarnation, None, 0, false),
        PairWord::Propose { transfer, round, incarnation, .. } => {
            (4, *incarnation, Some(*transfer), *round, false)
        }
        PairWord::Grant { transfer, round } => (5, none, Some(*transfer), *round, false),
        PairWord::Go { transfer, round } => (6, none, Some(*transfer), *round, false),
        PairWord::Withdraw { transfer, round, is_last } => (7, none, Some(*transfer), *round, *is_last),
        PairWord::Group(GroupWord::Offer { incarnation, id, .. }) => {
            (8, *incarnation, None, number(id) as u64, false)
        }
        PairWord::Group(GroupWord::Accept { incarnation }) => (9, *incarnation, None, 0, false),
        PairWord::Group(GroupWord::Broken { root, incarnation }) => {
            (10, *incarnation, None, index(*root) as u64, false)
        }
        PairWord::Group(GroupWord::Propose { transfer, round, incarnation, .. }) => {
            (11, *incarnation, Some(*transfer), *round, false)
        }
        PairWord::Group(GroupWord::Wound { transfer, round }) => (12, none, Some(*transfer), *round, false),
    }
}

impl Packet {
    /// Returns to which GPU's node it goes.
    pub(crate) fn to(&self) -> usize {
        index(match self {
            Packet::Say(said) => said.0.to,
            Packet::Store { peer, .. } => *peer,
            Packet::Map { to, .. } | Packet::Left { to, .. } => *to,
            Packet::Refuse { sender, .. } => *sender,
        })
    }
}

/// What is known of an id.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Known {
    pub(super) incarnation: Option<Incarnation>,
    /// How many ranks there are, and which but rank 0 have joined.
    pub(super) of: u8,
    pub(super) joined: BTreeSet<u8>,
    /// What was ever sent over it.
    pub(super) sent: Vec<TransferId>,
    /// What has left its sender and was not received by this GPU.
    pub(super) buffered: Vec<(usize, TransferId)>,
}

/// How NCCL and the nodes behave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manners {
    pub(crate) tuning: Tuning,
    pub(crate) flaw: Option<Flaw>,
    /// What is sent leaves its sender before the receiver is there.
    pub(crate) is_eager: bool,
    /// How long whoever expects something waits, beside who sends it.
    pub(crate) patience: Duration,
    /// How late a machine may be told of the time.
    pub(crate) lateness: Duration,
}

/// What follows from an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Out {
    Packet(Packet),
    /// All ends of this id have enqueued.
    Matched(usize),
}

/// All GPUs, and what was ever made of NCCL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rules {
    pub(crate) manners: Arc<Manners>,
    pub(crate) gpus: Vec<Arc<Gpu>>,
    pub(super) ids: Arc<Vec<Known>>,
}

impl Rules {
    pub(crate) fn new(count: usize, manners: Manners) -> Rules {
        let gpu = |at| Arc::new(Gpu::start(at, Generation(1), &manners.tuning, manners.flaw));
        let gpus = (0..count).map(gpu).collect();
        Rules { gpus, ids: Arc::default(), manners: Arc::new(manners) }
    }

    pub(crate) fn gpu(&mut self, at: usize) -> &mut Gpu {
        Arc::make_mut(&mut self.gpus[at])
    }

    /// Returns what is known of all ids.
    pub(crate) fn ids(&self) -> &[Known] {
        &self.ids
    }

    pub(super) fn id(&mut self, at: usize) -> &mut Known {
        &mut Arc::make_mut(&mut self.ids)[at]
    }

    /// Forgets what a GPU wanted and is over; returns it, and whether it went by NCCL.
    pub(crate) fn forget_wants(&mut self, at: usize) -> Vec<(Ticket, bool)> {
        let is_over = |fate: &Fate| fate.answer.filter(|_| fate.is_quiet);
        let wants = self.gpus[at].wants.iter();
        let over: Vec<_> = wants.filter_map(|(ticket, fate)| Some((*ticket, is_over(fate)?))).collect();
        if !over.is_empty() {
            self.gpu(at).wants.retain(|_, fate| is_over(fate).is_none());
        }
        over
    }

    /// Forgets what a GPU expected and is over; returns how many of it have arrived.
    pub(crate) fn forget_rooms(&mut self, at: usize) -> u64 {
        let is_over = |fate: &Fate| fate.answer.is_some() && fate.is_quiet;
        let rooms = self.gpus[at].rooms.values();
        let arrived = rooms.filter(|fate| is_over(fate) && fate.answer == Some(true)).count();
        if self.gpus[at].rooms.values().any(is_over) {
            self.gpu(at).rooms.retain(|_, fate| !is_over(fate));
        }
        arrived as u64
    }

    /// Has a GPU know of all others.
    pub(crate) fn meet(&mut self, at: usize, now: Moment) -> Result<(), String> {
        for other in (0..self.gpus.len()).filter(|other| *other != at) {
            let generation = self.gpus[other].generation;
            self.step(at, now, Event::Peer { device: device(other), generation })?;
        }
        Ok(())
    }

    /// The process of a GPU's node ends and starts anew. Others hear of it by the map.
    pub(crate) fn restart(&mut self, at: usize, now: Moment) -> Result<Vec<Out>, String> {
        let generation = self.gpus[at].generation.next();
        self.gpus[at] = Arc::new(Gpu::start(at, generation, &self.manners.tuning, self.manners.flaw));
        self.meet(at, now)?;
        let others = (0..self.gpus.len()).filter(|other| *other != at);
        let told = others.map(|to| Packet::Map { to: device(to), device: device(at), generation });
        Ok(told.map(Out::Packet).collect())
    }

    /// Something is wanted; its ticket is new.
    pub(crate) fn want(
        &mut self,
        at: usize,
        now: Moment,
        want: (Ticket, &[usize], u64),
        deadline: Moment,
    ) -> Result<Vec<Out>, String> {
        let (ticket, peers, bytes) = want;
        self.gpu(at).wants.insert(ticket, Fate { deadline, ..Fate::default() });
        let event = match peers {
            [peer] => Event::Want { ticket, peer: device(*peer), bytes, deadline },
            peers => {
                let peers = peers.iter().map(|peer| device(*peer)).collect();
                Event::WantAll { ticket, peers, bytes, deadline }
            }
        };
        self.step(at, now, event)
    }

    /// A packet arrives.
    pub(crate) fn deliver(&mut self, now: Moment, packet: Packet) -> Result<Vec<Out>, String> {
        let at = packet.to();
        match packet {
            Packet::Say(said) => self.step(at, now, Event::Message(said.0)),
            Packet::Store { transfer, ticket, bytes, .. } => {
                let deadline = now + self.manners.patience;
                if self.gpus[at].rooms.contains_key(&transfer) {
                    return Ok(Vec::new());
                }
                self.gpu(at).rooms.insert(transfer, Fate { deadline, ..Fate::default() });
                let mut outs = self.step(at, now, Event::Expect { transfer, bytes, deadline })?;
                let fate = &self.gpus[at].rooms[&transfer];
                if fate.answer == Some(false) {
                    let (sender, generation) = (transfer.sender, transfer.generation);
                    outs.push(Out::Packet(Packet::Refuse { ticket, sender, generation }));
                }
                Ok(outs)
            }
            Packet::Map { device, generation, .. } => self.step(at, now, Event::Peer { device, generation }),
            Packet::Left { device, .. } => self.step(at, now, Event::Gone { device }),
            Packet::Refuse { ticket, generation, .. } => match self.gpus[at].generation == generation {
                true => self.step(at, now, Event::Refused { ticket }),
                false => Ok(Vec::new()),
            },
        }
    }

    /// The machine hears what its worker has said first.
    pub(crate) fn hear(&mut self, at: usize, now: Moment) -> Result<Vec<Out>, String> {
        let gpu = self.gpu(at);
        let Some(answer) = gpu.answers.pop_front() else { return Ok(Vec::new()) };
        if let (Answer::Closed { communicator }, Some(worker)) = (&answer, &mut gpu.worker) {
            worker.ends.remove(communicator);
        }
        self.step(at, now, Event::Worker(answer))
    }

    /// Tells a machine something and does what it asks for.
    pub(crate) fn step(&mut self, at: usize, now: Moment, event: Event) -> Result<Vec<Out>, String> {
        let (mut effects, mut outs) = (Vec::new(), Vec::new());
        let said = match &event {
            Event::Message(message) if matches!(message.word, PairWord::Broken { .. }) => {
                // What is given up as time has passed is not given up for it.
                outs = self.step(at, now, Event::Tick)?;
                Some(message.word.clone())
            }
            _ => None,
        };
        self.gpu(at).machine.step(now, event, &mut effects);
        self.gpus[at].machine.invariants()?;
        for effect in effects {
            self.perform(at, now, effect, said.as_ref(), &mut outs)?;
        }
        Ok(outs)
    }

    fn perform(
        &mut self,
        at: usize,
        now: Moment,
        effect: Effect,
        said: Option<&PairWord>,
        outs: &mut Vec<Out>,
    ) -> Result<(), String> {
        match effect {
            Effect::Say(message) => {
                if let PairWord::Offer { incarnation, id }
                | PairWord::Group(GroupWord::Offer { incarnation, id, .. }) = &message.word
                {
                    self.id(number(id)).incarnation = Some(*incarnation);
                }
                outs.push(Out::Packet(Packet::Say(Box::new(Said(message)))));
            }
            Effect::Store { ticket, transfer, peer, bytes } => {
                outs.push(Out::Packet(Packet::Store { transfer, ticket, peer, bytes }));
            }
            Effect::StartWorker => {
                let gpu = self.gpu(at);
                if gpu.worker.is_some() {
                    return Err("a second worker is started".to_owned());
                }
                gpu.worker = Some(Worker::default());
                gpu.answers.push_back(Answer::Started);
            }
            Effect::KillWorker => self.gpu(at).end_worker(),
            Effect::Worker(command) => self.command(at, command, said, outs)?,
            Effect::Carried { ticket } => self.answer_want(at, now, ticket, true)?,
            Effect::UseTcp { ticket, .. } => self.answer_want(at, now, ticket, false)?,
            Effect::SourceQuiet { ticket } => {
                let fate = self.gpu(at).wants.get_mut(&ticket).ok_or("a want that never was is quiet")?;
                if fate.answer.is_none() || std::mem::replace(&mut fate.is_quiet, true) {
                    return Err(format!("{ticket:?} is quiet twice, or before it is answered"));
                }
            }
            Effect::Count(_) => {}
            Effect::Arrived { transfer } => self.answer_room(at, transfer, true)?,
            Effect::NotArrived { transfer, .. } => self.answer_room(at, transfer, false)?,
            Effect::RoomQuiet { transfer } => {
                let fate = self.gpu(at).rooms.get_mut(&transfer).ok_or("a room that never was is quiet")?;
                if fate.answer.is_none() || std::mem::replace(&mut fate.is_quiet, true) {
                    return Err(format!("the room of {transfer} is quiet twice, or before it is answered"));
                }
            }
        }
        Ok(())
    }

    fn answer_want(&mut self, at: usize, now: Moment, ticket: Ticket, by_nccl: bool) -> Result<(), String> {
        let lateness = self.manners.lateness;
        let fate = self.gpu(at).wants.get_mut(&ticket).ok_or("a want that never was is answered")?;
        if fate.answer.replace(by_nccl).is_some() {
            return Err(format!("{ticket:?} is answered twice"));
        }
        if now > fate.deadline + lateness {
            return Err(format!("{ticket:?} is answered {:?} after its deadline", now.since(fate.deadline)));
        }
        Ok(())
    }

    fn answer_room(&mut self, at: usize, transfer: TransferId, by_nccl: bool) -> Result<(), String> {
        let fate = self.gpu(at).rooms.get_mut(&transfer).ok_or("a room that never was is answered")?;
        if fate.answer.replace(by_nccl).is_some() {
            return Err(format!("the room of {transfer} is answered twice"));
        }
        if by_nccl && fate.content != Some(transfer) {
            return Err(format!("{transfer} is to have arrived; its frames hold {:?}", fate.content));
        }
        Ok(())
    }
}
