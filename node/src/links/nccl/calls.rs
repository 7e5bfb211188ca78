//! The process that makes a GPU's calls of NCCL: it is started, told what the machine asks for, and heard.

use super::hand::Hand;
use super::state::Life;
use crate::config::NcclConfig;
use kvhive_gpu::worker::{
    Answer, Command, Extent, Heard, Packing, PairId, Rank, Setup, TellError, UniqueId, Worker,
};
use kvhive_links::pairs::{self, Communicator, Event};
use kvhive_protocol::Moment;
use kvhive_protocol::pairs::UniqueId as WireId;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A communicator that does nothing is closed within this, or given up.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// What is sent of a batch that is not there: the command is refused, and costs the pair.
const NOTHING: (Packing, Vec<Extent>) = (Packing::Apart, Vec::new());

impl Hand {
    /// Has a worker be started on a thread of its own, which then hears it: neither takes the time of whoever tells the machine something.
    pub(super) fn start_worker(self: &Arc<Self>, life: &mut Life, workers: &mut u64) -> Option<Event> {
        let died = Some(Event::Worker(pairs::Answer::Died));
        let slab = self.gpu.slab.as_ref().and_then(|slab| slab.try_clone().ok());
        let Some(slab) = slab else { return died };
        *workers += 1;
        self.figures.started();
        let (number, hand) = (*workers, Arc::downgrade(self));
        let NcclConfig { program, arguments, environment, max_ctas, buffer_bytes, start, watchdog, .. } =
            &self.config;
        let setup = Setup {
            gpu: self.gpu.ordinal,
            slab_bytes: self.gpu.slab_bytes,
            watchdog: *watchdog,
            start: *start,
            ctas: (1, (*max_ctas).max(1)),
            buffer_bytes: Some(*buffer_bytes),
        };
        let mut command = std::process::Command::new(program);
        command.args(arguments).envs(environment.iter().cloned());
        let work = move || {
            let (tell, told) = channel();
            let started = Worker::start(command, &setup, slab, move |heard| drop(tell.send(heard)));
            let Some(own) = hand.upgrade() else { return };
            own.has_started(number, started);
            drop(own);
            for heard in told {
                let Some(own) = hand.upgrade() else { return };
                own.hear_worker(number, heard);
            }
        };
        match std::thread::Builder::new().name("gpu-worker-start".to_owned()).spawn(work) {
            Ok(_) => {
                life.starts = Some(number);
                None
            }
            Err(_) => died,
        }
    }

    /// Takes over a worker, if it is still wanted.
    fn has_started(self: &Arc<Self>, number: u64, started: io::Result<Worker>) {
        let mut state = self.lock();
        let Some(life) = state.life.as_mut().filter(|life| life.starts == Some(number)) else { return };
        life.starts = None;
        match started {
            Ok(worker) => {
                tracing::debug!(
                    device = self.index,
                    process = worker.process(),
                    "the GPU's worker is started"
                );
                life.worker = Some((number, worker));
            }
            Err(error) => {
                tracing::warn!(device = self.index, %error, "the GPU's worker cannot be started");
                self.step_in(&mut state, Event::Worker(pairs::Answer::Died));
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Hears something of a worker, on a thread of its own.
    fn hear_worker(self: &Arc<Self>, number: u64, heard: Heard) {
        let mut state = self.lock();
        let is_present =
            state.life.as_ref().and_then(|life| life.worker.as_ref()).is_some_and(|(own, _)| *own == number);
        match heard {
            Heard::Ended(status) if is_present => {
                tracing::debug!(device = self.index, %status, "the GPU's worker has ended");
                self.figures.died();
                self.step_in(&mut state, Event::Worker(pairs::Answer::Died));
            }
            // Nothing touches its frames any more.
            Heard::Ended(_) => drop(state.former.remove(&number)),
            Heard::Answer(answer) if is_present => {
                let life = state.life.as_mut().expect("it has a worker");
                if let Some(answer) = self.translate(life, answer) {
                    self.step_in(&mut state, Event::Worker(answer));
                }
            }
            Heard::Answer(_) | Heard::Gone => {}
        }
        drop(state);
        self.changed.notify_one();
    }

    fn translate(&self, life: &mut Life, answer: Answer) -> Option<pairs::Answer> {
        let communicator = |pair: PairId| Communicator(pair.0);
        Some(match answer {
            Answer::Started { nccl } => {
                tracing::info!(device = self.index, %nccl, "the GPU's worker has NCCL");
                pairs::Answer::Started
            }
            Answer::Unfit { is_lasting: true, said } => {
                tracing::warn!(device = self.index, %said, "nothing goes by NCCL, until this node is started anew");
                pairs::Answer::Unfit
            }
            Answer::Unfit { is_lasting: false, said } => {
                tracing::warn!(device = self.index, %said, "nothing goes by NCCL for now");
                return None;
            }
            Answer::IdMade { pair, id } => {
                pairs::Answer::Made { communicator: communicator(pair), id: WireId(id.0) }
            }
            Answer::Ready { pair } => pairs::Answer::Ready { communicator: communicator(pair) },
            Answer::Done { pair, transfer, .. } => {
                let transfer = life.named.remove(&transfer.0)?;
                pairs::Answer::Done { communicator: communicator(pair), transfer }
            }
            Answer::Failed { pair, transfer, why, said } => {
                tracing::debug!(device = self.index, pair = pair.0, ?why, %said, "a communicator failed");
                transfer.map(|transfer| life.named.remove(&transfer.0));
                // The worker has let go of it by itself, once.
                if !life.let_go.insert(pair.0) {
                    return None;
                }
                pairs::Answer::Failed { communicator: communicator(pair) }
            }
            Answer::Closed { pair } => {
                life.ranks.remove(&pair.0);
                life.let_go.remove(&pair.0);
                pairs::Answer::Closed { communicator: communicator(pair) }
            }
        })
    }
}

/// Tells the worker something; returns what came of it at once.
pub(super) fn command_worker(life: &mut Life, now: Moment, command: pairs::Command) -> Option<Event> {
    let pair = |communicator: Communicator| PairId(communicator.0);
    let within = |deadline: Moment| deadline.since(now);
    let of = match &command {
        pairs::Command::Id { communicator }
        | pairs::Command::Join { communicator, .. }
        | pairs::Command::Send { communicator, .. }
        | pairs::Command::Receive { communicator, .. }
        | pairs::Command::Abort { communicator }
        | pairs::Command::Close { communicator } => *communicator,
    };
    let told = match command {
        pairs::Command::Id { communicator } => Command::MakeId { pair: pair(communicator) },
        pairs::Command::Join { communicator, id, rank, of } => {
            let rank = Rank { at: u32::from(rank), of: u32::from(of) };
            life.ranks.insert(communicator.0, rank);
            Command::Join {
                pair: pair(communicator),
                id: UniqueId(id.0),
                rank,
                within: life.pairs.tuning().join_limit,
            }
        }
        pairs::Command::Send { communicator, transfer, ticket, deadline } => {
            let (packing, extents) = match life.outgoing.get(&ticket) {
                Some(batch) => (batch.packing, batch.extents.clone()),
                None => NOTHING,
            };
            let to = life.other_rank(communicator.0);
            let named = life.name(transfer);
            let (pair, transfer, within) = (pair(communicator), named, within(deadline));
            match to {
                Some(to) => Command::Send { pair, transfer, to, within, packing, extents },
                None => Command::Broadcast { pair, transfer, root: 0, within, packing, extents },
            }
        }
        pairs::Command::Receive { communicator, transfer, deadline } => {
            let (packing, extents) = match life.incoming.get(&transfer) {
                Some(batch) => (batch.packing, batch.extents.clone()),
                None => NOTHING,
            };
            let from = life.other_rank(communicator.0);
            let named = life.name(transfer);
            let (pair, transfer, within) = (pair(communicator), named, within(deadline));
            match from {
                Some(from) => Command::Receive { pair, transfer, from, within, packing, extents },
                None => Command::Broadcast { pair, transfer, root: 0, within, packing, extents },
            }
        }
        pairs::Command::Abort { communicator } | pairs::Command::Close { communicator }
            if life.let_go.remove(&communicator.0) =>
        {
            life.ranks.remove(&communicator.0);
            return Some(Event::Worker(pairs::Answer::Closed { communicator }));
        }
        pairs::Command::Abort { communicator } => Command::Abort { pair: pair(communicator) },
        pairs::Command::Close { communicator } => {
            Command::Close { pair: pair(communicator), within: CLOSE_LIMIT }
        }
    };
    let (_, worker) = life.worker.as_ref()?;
    match worker.tell(&told) {
        Ok(()) | Err(TellError::Gone) => {}
        // What may not be sent costs its pair alone.
        Err(TellError::Senseless) => return Some(Event::Worker(pairs::Answer::Failed { communicator: of })),
        // One that does not read is one to kill; that it has ended is heard.
        Err(error @ TellError::Full) => {
            tracing::debug!(%error, "the GPU's worker is killed");
            worker.kill();
        }
    }
    None
}
