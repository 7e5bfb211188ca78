//! What the hands do with what the machines ask for, what NCCL does with what the workers enqueue, and what must hold.

use super::gpu::{Fate, Gpu, Operation, Worker, device, id, index, number};
use kvhive_links::pairs::{Answer, Command, Communicator, Effect, Event, Flaw, Ticket, Tuning};
use kvhive_protocol::pairs::{Incarnation, PairMessage, PairWord, TransferId};
use kvhive_protocol::{DeviceId, Generation, Moment};
use std::sync::Arc;

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
    }
}

impl Packet {
    /// Returns to which GPU's node it goes.
    pub(crate) fn to(&self) -> usize {
        index(match self {
            Packet::Say(said) => said.0.to,
            Packet::Store { peer, .. } => *peer,
            Packet::Map { to, .. } => *to,
            Packet::Refuse { sender, .. } => *sender,
        })
    }
}

/// What is known of an id.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Known {
    incarnation: Option<Incarnation>,
    /// Rank 1 has joined it.
    is_joined: bool,
    /// What was ever sent over it.
    sent: Vec<TransferId>,
    /// What has left its sender and was not received.
    buffered: Vec<TransferId>,
}

/// How NCCL and the nodes behave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manners {
    pub(crate) tuning: Tuning,
    pub(crate) flaw: Option<Flaw>,
    /// What is sent leaves its sender before the receiver is there.
    pub(crate) is_eager: bool,
    /// How long whoever expects something waits, beside who sends it.
    pub(crate) patience: std::time::Duration,
}

/// What follows from an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Out {
    Packet(Packet),
    /// Both ends of this id have enqueued.
    Matched(usize),
}

/// All GPUs, and what was ever made of NCCL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rules {
    pub(crate) manners: Arc<Manners>,
    pub(crate) gpus: Vec<Arc<Gpu>>,
    ids: Arc<Vec<Known>>,
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

    fn id(&mut self, at: usize) -> &mut Known {
        &mut Arc::make_mut(&mut self.ids)[at]
    }

    /// Has every GPU know of a GPU, and it of them.
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
        want: (Ticket, usize, u64),
        deadline: Moment,
    ) -> Result<Vec<Out>, String> {
        let (ticket, peer, bytes) = want;
        self.gpu(at).wants.insert(ticket, Fate { deadline, ..Fate::default() });
        self.step(at, now, Event::Want { ticket, peer: device(peer), bytes, deadline })
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
            Event::Message(message) => Some(message.word.clone()),
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
                if let PairWord::Offer { incarnation, id } = &message.word {
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
        let fate = self.gpu(at).wants.get_mut(&ticket).ok_or("a want that never was is answered")?;
        if fate.answer.replace(by_nccl).is_some() {
            return Err(format!("{ticket:?} is answered twice"));
        }
        if by_nccl && now > fate.deadline {
            return Err(format!("{ticket:?} is carried after its deadline"));
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

    /// Returns the other end of an id that is not being closed.
    fn other(&self, at: usize, id: usize) -> Option<(usize, Communicator)> {
        self.gpus.iter().enumerate().filter(|(other, _)| *other != at).find_map(|(other, gpu)| {
            let worker = gpu.worker.as_ref()?;
            let end = worker.ends.iter().find(|(_, end)| end.id == Some(id) && !end.is_closing);
            end.map(|(communicator, _)| (other, *communicator))
        })
    }

    fn command(
        &mut self,
        at: usize,
        command: Command,
        said: Option<&PairWord>,
        outs: &mut Vec<Out>,
    ) -> Result<(), String> {
        let most = self.manners.tuning.max_live;
        // Of a worker that has died the machine may not have heard yet.
        let Some(worker) = self.gpus[at].worker.as_ref() else { return Ok(()) };
        if worker.hangs {
            // That it was to be sent is known, and that rank 1 was to join.
            match command {
                Command::Send { communicator, transfer, .. } => {
                    if let Some(id) = worker.ends.get(&communicator).and_then(|end| end.id) {
                        self.id(id).sent.push(transfer);
                    }
                }
                Command::Join { id, rank: 1, .. } => self.id(number(&id)).is_joined = true,
                _ => {}
            }
            return Ok(());
        }
        match command {
            Command::Id { communicator } => {
                let fresh = self.ids.len();
                Arc::make_mut(&mut self.ids).push(Known::default());
                let gpu = self.gpu(at);
                let ends = gpu.worker.as_mut().map(|worker| &mut worker.ends).ok_or("it is there")?;
                ends.entry(communicator).or_default().id = Some(fresh);
                gpu.answers.push_back(Answer::Made { communicator, id: id(fresh) });
            }
            Command::Join { communicator, id, rank } => self.join(at, communicator, number(&id), rank)?,
            Command::Send { communicator, transfer, ticket, .. } => {
                self.enqueue(at, communicator, Operation::Send(transfer, ticket), outs)?;
            }
            Command::Receive { communicator, transfer, .. } => {
                self.enqueue(at, communicator, Operation::Receive(transfer), outs)?;
            }
            Command::Abort { communicator } | Command::Close { communicator } => {
                let is_close = matches!(command, Command::Close { .. });
                let gpu = self.gpu(at);
                let ends = gpu.worker.as_mut().map(|worker| &mut worker.ends).ok_or("it is there")?;
                let end = ends.get_mut(&communicator).ok_or("what is not there is given up")?;
                if is_close && end.operation.is_some() {
                    return Err(format!("{communicator:?} is closed while {:?}", end.operation));
                }
                end.is_closing = true;
                let its = end.id;
                gpu.answers.push_back(Answer::Closed { communicator });
                if let (Some(PairWord::Broken { incarnation }), Some(its)) = (said, its) {
                    let known = self.ids[its].incarnation;
                    if known.is_some_and(|known| known != *incarnation) {
                        return Err(format!("{known:?} is given up as {incarnation:?} is broken"));
                    }
                }
            }
        }
        let live = self.gpus[at].worker.as_ref().map_or(0, |worker| worker.ends.len());
        if live > most.max(1) {
            return Err(format!("GPU {at} has {live} communicators"));
        }
        Ok(())
    }

    fn join(&mut self, at: usize, communicator: Communicator, id: usize, rank: u8) -> Result<(), String> {
        if rank == 1 {
            self.id(id).is_joined = true;
        } else if !self.ids[id].is_joined {
            return Err(format!("GPU {at} joins id {id}, which the other end has not joined"));
        }
        let worker = self.gpu(at).worker.as_mut().ok_or("it is there")?;
        let end = worker.ends.entry(communicator).or_default();
        (end.id, end.has_joined) = (Some(id), true);
        let Some((other, others)) = self.other(at, id) else { return Ok(()) };
        let is_whole = self.gpus[other]
            .worker
            .as_ref()
            .is_some_and(|worker| !worker.hangs && worker.ends[&others].has_joined);
        if is_whole {
            for (gpu, communicator) in [(at, communicator), (other, others)] {
                let gpu = self.gpu(gpu);
                if let Some(end) = gpu.worker.as_mut().and_then(|worker| worker.ends.get_mut(&communicator)) {
                    end.is_ready = true;
                }
                gpu.answers.push_back(Answer::Ready { communicator });
            }
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        at: usize,
        communicator: Communicator,
        operation: Operation,
        outs: &mut Vec<Out>,
    ) -> Result<(), String> {
        let ends = self.gpus[at].worker.as_ref().map(|worker| &worker.ends).ok_or("it is there")?;
        if let Some(other) = ends.values().find_map(|end| end.operation.as_ref()) {
            return Err(format!("GPU {at} has {other:?} enqueued and enqueues {operation:?}"));
        }
        let end = ends.get(&communicator).filter(|end| end.is_ready && !end.is_closing);
        let id =
            end.and_then(|end| end.id).ok_or(format!("{operation:?} is enqueued where nothing stands"))?;
        let other = self.other(at, id);
        let is_eager = self.manners.is_eager;
        match (&operation, other) {
            (Operation::Receive(transfer), Some(_)) if !self.ids[id].sent.contains(transfer) => {
                return Err(format!("GPU {at} receives {transfer}, which nobody has promised to send"));
            }
            (Operation::Send(transfer, _), Some((other, _))) => {
                let promised = format!("has granted {transfer}");
                let slot = self.gpus[other].machine.snapshot(Moment::ZERO).slot;
                if slot != promised && self.manners.flaw != Some(Flaw::EnqueuesEarly) {
                    return Err(format!("GPU {at} sends {transfer} to GPU {other}, whose slot is {slot}"));
                }
            }
            _ => {}
        }
        match operation {
            Operation::Send(transfer, _) if is_eager => {
                let known = self.id(id);
                known.sent.push(transfer);
                known.buffered.push(transfer);
                self.gpu(at).answers.push_back(Answer::Done { communicator, transfer });
            }
            Operation::Receive(transfer) if is_eager && !self.ids[id].buffered.is_empty() => {
                let content = self.id(id).buffered.remove(0);
                self.fill(at, transfer, content)?;
                self.gpu(at).answers.push_back(Answer::Done { communicator, transfer });
            }
            operation => {
                if let Operation::Send(transfer, _) = operation {
                    self.id(id).sent.push(transfer);
                }
                let worker = self.gpu(at).worker.as_mut().ok_or("it is there")?;
                worker.ends.entry(communicator).or_default().operation = Some(operation);
                if self.matched(id).is_some() {
                    outs.push(Out::Matched(id));
                }
            }
        }
        Ok(())
    }

    /// Returns sender and receiver of an id on which both have enqueued.
    fn matched(&self, id: usize) -> Option<[(usize, Communicator, Operation); 2]> {
        let mut found = Vec::new();
        for (at, gpu) in self.gpus.iter().enumerate() {
            let Some(worker) = gpu.worker.as_ref().filter(|worker| !worker.hangs) else { continue };
            for (communicator, end) in worker.ends.iter().filter(|(_, end)| end.id == Some(id)) {
                found.extend(end.operation.clone().map(|operation| (at, *communicator, operation)));
            }
        }
        found.sort_by_key(|(_, _, operation)| matches!(operation, Operation::Receive(_)));
        found.try_into().ok()
    }

    /// What both ends of an id have enqueued is done, if it still is.
    pub(crate) fn complete(&mut self, id: usize) -> Result<(), String> {
        let Some([(sender, from, sent), (receiver, to, received)]) = self.matched(id) else { return Ok(()) };
        let (Operation::Send(content, ticket), Operation::Receive(room)) = (sent, received) else {
            return Err(format!("two of a kind meet on id {id}"));
        };
        // A sender that has started anew has another memory; its worker would be gone.
        if self.gpus[sender].wants.get(&ticket).is_none_or(|fate| fate.is_quiet) {
            return Err(format!("{ticket:?} is sent from frames that are used again"));
        }
        self.fill(receiver, room, content)?;
        for (at, communicator, transfer) in [(sender, from, content), (receiver, to, room)] {
            let gpu = self.gpu(at);
            let Some(end) = gpu.worker.as_mut().and_then(|worker| worker.ends.get_mut(&communicator)) else {
                continue;
            };
            end.operation = None;
            // Of what is being given up nothing more is said.
            if !end.is_closing {
                gpu.answers.push_back(Answer::Done { communicator, transfer });
            }
        }
        Ok(())
    }

    fn fill(&mut self, at: usize, room: TransferId, content: TransferId) -> Result<(), String> {
        if room != content {
            return Err(format!("GPU {at} expects {room} and receives {content}"));
        }
        let fate = self.gpu(at).rooms.get_mut(&room).ok_or("frames that never were are written")?;
        if fate.is_quiet {
            return Err(format!("{room} is received into frames that are used again"));
        }
        fate.content = Some(content);
        Ok(())
    }
}
