//! What NCCL does with what the workers enqueue: ends that find each other join, what matches is done, what does not match hangs.

use super::gpu::{Gpu, Operation, id, number};
use super::rules::{Known, Out, Rules};
use kvhive_links::pairs::{Answer, Command, Communicator, Flaw};
use kvhive_protocol::Moment;
use kvhive_protocol::pairs::{PairWord, TransferId};
use std::sync::Arc;

impl Rules {
    /// Returns which GPUs have an end of an id.
    pub(crate) fn ends(&self, id: usize) -> Vec<usize> {
        let has = |gpu: &Gpu| {
            gpu.worker.iter().flat_map(|worker| worker.ends.values()).any(|end| end.id == Some(id))
        };
        let gpus = self.gpus.iter().enumerate();
        gpus.filter(|(_, gpu)| has(gpu)).map(|(at, _)| at).collect()
    }

    /// Returns the other end of an id that is not being closed.
    fn other(&self, at: usize, id: usize) -> Option<(usize, Communicator)> {
        self.gpus.iter().enumerate().filter(|(other, _)| *other != at).find_map(|(other, gpu)| {
            let worker = gpu.worker.as_ref()?;
            let end = worker.ends.iter().find(|(_, end)| end.id == Some(id) && !end.is_closing);
            end.map(|(communicator, _)| (other, *communicator))
        })
    }

    pub(super) fn command(
        &mut self,
        at: usize,
        command: Command,
        said: Option<&PairWord>,
        outs: &mut Vec<Out>,
    ) -> Result<(), String> {
        let most = self.manners.tuning.max_live;
        let worker = self.gpus[at].worker.as_ref();
        if worker.is_none_or(|worker| worker.hangs) {
            // Of its death the machine may not have heard yet. What it has promised to the other end it has.
            match command {
                Command::Send { communicator, transfer, .. } => {
                    let end = worker.and_then(|worker| worker.ends.get(&communicator));
                    if let Some(id) = end.and_then(|end| end.id) {
                        self.id(id).sent.push(transfer);
                    }
                }
                Command::Join { id, rank: 1, .. } => self.id(number(&id)).is_joined = true,
                Command::Abort { communicator } | Command::Close { communicator } => {
                    let ends = self.gpu(at).worker.as_mut().map(|worker| &mut worker.ends);
                    if let Some(end) = ends.and_then(|ends| ends.get_mut(&communicator)) {
                        end.is_closing = true;
                    }
                }
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
