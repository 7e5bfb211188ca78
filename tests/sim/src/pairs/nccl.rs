//! What NCCL does with what the workers enqueue: ends that find each other join, what matches is done, what does not match hangs.

use super::gpu::{Gpu, Operation, id, index, number};
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

    /// Returns the other ends of an id that are not being closed.
    fn others(&self, at: usize, id: usize) -> Vec<(usize, Communicator)> {
        let others = self.gpus.iter().enumerate().filter(|(other, _)| *other != at);
        let end_of = |(other, gpu): (usize, &Arc<Gpu>)| {
            let worker = gpu.worker.as_ref()?;
            let end = worker.ends.iter().find(|(_, end)| end.id == Some(id) && !end.is_closing);
            end.map(|(communicator, _)| (other, *communicator))
        };
        others.filter_map(end_of).collect()
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
                Command::Join { id, rank: rank @ 1.., .. } => {
                    self.id(number(&id)).joined.insert(rank);
                }
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
            Command::Join { communicator, id, rank, of } => {
                self.join(at, communicator, number(&id), (rank, of))?;
            }
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

    fn join(
        &mut self,
        at: usize,
        communicator: Communicator,
        id: usize,
        (rank, of): (u8, u8),
    ) -> Result<(), String> {
        self.id(id).of = of;
        if rank > 0 {
            self.id(id).joined.insert(rank);
        } else if self.ids[id].joined.len() + 1 < usize::from(of) {
            return Err(format!("GPU {at} joins id {id}, which the other end has not joined"));
        }
        let worker = self.gpu(at).worker.as_mut().ok_or("it is there")?;
        let end = worker.ends.entry(communicator).or_default();
        (end.id, end.has_joined) = (Some(id), true);
        let mut ends = self.others(at, id);
        ends.push((at, communicator));
        let has_joined = |(gpu, communicator): &(usize, Communicator)| {
            let worker = self.gpus[*gpu].worker.as_ref();
            worker.is_some_and(|worker| !worker.hangs && worker.ends[communicator].has_joined)
        };
        if ends.len() == usize::from(of) && ends.iter().all(has_joined) {
            for (gpu, communicator) in ends {
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
        let others = self.others(at, id);
        let is_eager = self.manners.is_eager;
        match &operation {
            // A sender that is no more may have promised.
            Operation::Receive(transfer)
                if others.iter().any(|(other, _)| *other == index(transfer.sender))
                    && !self.ids[id].sent.contains(transfer) =>
            {
                return Err(format!("GPU {at} receives {transfer}, which nobody has promised to send"));
            }
            Operation::Send(transfer, _) => {
                let promised = format!("has granted {transfer}");
                for (other, _) in &others {
                    let slot = self.gpus[*other].machine.snapshot(Moment::ZERO).slot;
                    if slot != promised && self.manners.flaw != Some(Flaw::EnqueuesEarly) {
                        return Err(format!(
                            "GPU {at} sends {transfer} to GPU {other}, whose slot is {slot}"
                        ));
                    }
                }
            }
            Operation::Receive(_) => {}
        }
        let content_of = |(to, _): &(usize, TransferId)| *to == at;
        let buffered = self.ids[id].buffered.iter().position(content_of);
        match operation {
            Operation::Send(transfer, _) if is_eager => {
                let known = self.id(id);
                known.sent.push(transfer);
                known.buffered.extend(others.iter().map(|(other, _)| (*other, transfer)));
                self.gpu(at).answers.push_back(Answer::Done { communicator, transfer });
            }
            Operation::Receive(transfer) if is_eager && buffered.is_some() => {
                let (_, content) = self.id(id).buffered.remove(buffered.unwrap_or_default());
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

    /// Returns sender and receivers of an id on which all have enqueued.
    fn matched(&self, id: usize) -> Option<Vec<(usize, Communicator, Operation)>> {
        let mut found = Vec::new();
        for (at, gpu) in self.gpus.iter().enumerate() {
            let Some(worker) = gpu.worker.as_ref().filter(|worker| !worker.hangs) else { continue };
            for (communicator, end) in worker.ends.iter().filter(|(_, end)| end.id == Some(id)) {
                found.extend(end.operation.clone().map(|operation| (at, *communicator, operation)));
            }
        }
        found.sort_by_key(|(_, _, operation)| matches!(operation, Operation::Receive(_)));
        (found.len() == usize::from(self.ids[id].of)).then_some(found)
    }

    /// What all ends of an id have enqueued is done, if it still is.
    pub(crate) fn complete(&mut self, id: usize) -> Result<(), String> {
        let Some(ends) = self.matched(id) else { return Ok(()) };
        let Some((sender, _, Operation::Send(content, ticket))) = ends.first().cloned() else {
            return Err(format!("nobody sends on id {id}"));
        };
        // A sender that has started anew has another memory; its worker would be gone.
        if self.gpus[sender].wants.get(&ticket).is_none_or(|fate| fate.is_quiet) {
            return Err(format!("{ticket:?} is sent from frames that are used again"));
        }
        for (at, communicator, operation) in ends {
            let transfer = match operation {
                Operation::Receive(room) => {
                    self.fill(at, room, content)?;
                    room
                }
                Operation::Send(transfer, _) if at == sender => transfer,
                Operation::Send(..) => return Err(format!("two of a kind meet on id {id}")),
            };
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
