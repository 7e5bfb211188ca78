//! The thread that makes all calls of NCCL: it does what is told, one transfer after the other, and looks how far things are.
#![allow(unsafe_code, reason = "has a GPU send, receive and copy bytes of the slab")]

use super::channel::Channel;
use super::message::{Answer, Command, Extent, PairId, Setup, TransferId, Why};
use super::plan::{Copy, Packing, Place, Round, STAGED_BYTES, plan};
use super::watch::Watch;
use crate::cuda::{Copier, Cuda, CudaError, Gpu, GpuMemory, Imported, Mark, Piece};
use nccl_rs::{Code, Comm, Config, Group, Nccl, NcclError, Rank, Span, State};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How often it is looked how far things are. What waits for it is a transfer of a tenth of a millisecond at least.
const LOOK: Duration = Duration::from_micros(50);
/// How often one is looked at that stands idle: what breaks meanwhile costs no transfer its time.
const LOOK_AT_IDLE: Duration = Duration::from_secs(1);
/// Communicators at a time: each takes memory of the GPU.
const PAIRS: usize = 64;
/// Transfers that wait for the one under way.
const WAITING: usize = 256;

/// Why there is nothing here to work with.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error(transparent)]
    Nccl(#[from] NcclError),
    #[error("the slab is too large for this machine's addresses")]
    TooLarge,
}

impl OpenError {
    /// Says whether it will be the same the next time: it is what this machine lacks.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            OpenError::Cuda(error) => error.is_absence(),
            OpenError::Nccl(error) => error.code().is_none(),
            OpenError::TooLarge => true,
        }
    }
}

pub(super) struct Issuer {
    node: Node,
    watch: Watch,
    watchdog: Duration,
    nccl: Arc<Nccl>,
    config: Config,
    pairs: BTreeMap<PairId, Pair>,
    waiting: VecDeque<Transfer>,
    running: Option<Running>,
    mark: Mark,
    copier: Copier,
    /// Where small extents are gathered.
    staging: GpuMemory,
    slab: Imported,
    gpu: Arc<Gpu>,
}

/// Who hears the answers.
struct Node {
    channel: Arc<Channel>,
    is_gone: bool,
}

struct Pair {
    comm: Comm,
    rank: Rank,
    stage: Stage,
    /// When it was looked at last.
    looked: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Joining { until: Instant },
    Ready,
    Closing { until: Instant },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Send { to: u32 },
    Receive { from: u32 },
    Broadcast { root: u32 },
}

struct Transfer {
    pair: PairId,
    id: TransferId,
    way: Way,
    until: Instant,
    packing: Packing,
    extents: Vec<Extent>,
}

/// The transfer under way.
struct Running {
    transfer: Transfer,
    /// Whether the slab's bytes are read, and not written.
    is_source: bool,
    begun: Instant,
    /// What is still to be begun; its first is under way.
    rounds: VecDeque<Round>,
    /// NCCL has told the GPU all of the round, and the mark is behind it.
    is_told: bool,
}

impl Issuer {
    /// Opens the GPU and NCCL, and maps the slab.
    pub(super) fn open(
        setup: &Setup,
        slab: OwnedFd,
        channel: Arc<Channel>,
        watch: Watch,
    ) -> Result<Issuer, OpenError> {
        let gpu = Cuda::find()?.open(setup.gpu)?;
        let slab_bytes = usize::try_from(setup.slab_bytes).map_err(|_| OpenError::TooLarge)?;
        let slab = Imported::new(&gpu, slab.as_fd(), slab_bytes)?;
        let nccl = Nccl::find()?;
        let (min_ctas, max_ctas) = setup.ctas;
        let mut issuer = Issuer {
            node: Node { channel, is_gone: false },
            watch,
            watchdog: setup.watchdog,
            config: Config { min_ctas, max_ctas },
            pairs: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: None,
            mark: Mark::new(&gpu)?,
            copier: Copier::new(&gpu)?,
            staging: GpuMemory::new(&gpu, STAGED_BYTES as usize)?,
            slab,
            gpu,
            nccl,
        };
        issuer.node.answer(&Answer::Started { nccl: issuer.nccl.version().to_string() });
        Ok(issuer)
    }

    /// Does what it is told until it is told to end, or nobody is there to tell it.
    ///
    /// # Errors
    /// When the GPU fails: then nothing of this process touches the slab any more, once it has ended.
    pub(super) fn run(&mut self, told: &Receiver<Command>) -> Result<(), CudaError> {
        // NCCL takes the context that is current for that of its communicators.
        let gpu = self.gpu.clone();
        let _entered = gpu.enter()?;
        while !self.node.is_gone {
            let is_busy = self.running.is_some()
                || !self.waiting.is_empty()
                || self.pairs.values().any(|pair| pair.stage != Stage::Ready);
            let heard = if is_busy {
                self.watch.back_in(self.watchdog);
                told.recv_timeout(LOOK)
            } else if self.pairs.is_empty() {
                self.watch.idle();
                told.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.watch.idle();
                told.recv_timeout(LOOK_AT_IDLE)
            };
            self.watch.back_in(self.watchdog);
            match heard {
                Ok(Command::End) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => self.take(command)?,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look()?;
        }
        let pairs: Vec<PairId> = self.pairs.keys().copied().collect();
        for pair in pairs {
            self.watch.back_in(self.watchdog);
            self.fail(pair, Why::Aborted, "the worker ends")?;
        }
        Ok(())
    }

    fn take(&mut self, command: Command) -> Result<(), CudaError> {
        let now = Instant::now();
        match command {
            Command::MakeId { pair } => match self.nccl.unique_id() {
                Ok(id) => self.node.answer(&Answer::IdMade { pair, id }),
                Err(error) => self.fail_of(pair, &error)?,
            },
            Command::Join { pair, .. } if self.pairs.contains_key(&pair) => {
                self.fail(pair, Why::Senseless, "there is such a pair already")?;
            }
            Command::Join { pair, .. } if self.pairs.len() == PAIRS => {
                self.fail(pair, Why::Busy, "there are as many pairs as may be")?;
            }
            Command::Join { pair, id, rank, within } => {
                match Comm::join(&self.nccl, &id, rank, self.config) {
                    Ok(comm) => {
                        let stage = Stage::Joining { until: now + within };
                        self.pairs.insert(pair, Pair { comm, rank, stage, looked: now });
                    }
                    Err(error) => self.fail_of(pair, &error)?,
                }
            }
            Command::Send { pair, transfer, to, within, packing, extents } => {
                let way = Way::Send { to };
                self.wait(Transfer { pair, id: transfer, way, until: now + within, packing, extents })?;
            }
            Command::Receive { pair, transfer, from, within, packing, extents } => {
                let way = Way::Receive { from };
                self.wait(Transfer { pair, id: transfer, way, until: now + within, packing, extents })?;
            }
            Command::Broadcast { pair, transfer, root, within, packing, extents } => {
                let way = Way::Broadcast { root };
                self.wait(Transfer { pair, id: transfer, way, until: now + within, packing, extents })?;
            }
            Command::Abort { pair } => {
                if self.pairs.contains_key(&pair) {
                    self.let_go(pair, Why::Aborted, "as was told")?;
                }
                self.node.answer(&Answer::Closed { pair });
            }
            Command::Close { pair, within } => self.close(pair, now + within)?,
            Command::End => {}
        }
        Ok(())
    }

    /// Has a transfer wait for its turn.
    fn wait(&mut self, transfer: Transfer) -> Result<(), CudaError> {
        let length = self.slab.len() as u64;
        let is_inside = transfer.extents.iter().all(|extent| extent.at + extent.bytes <= length);
        let said = match self.pairs.get(&transfer.pair) {
            None => Some((Why::Senseless, "there is no such pair")),
            Some(pair) if pair.stage != Stage::Ready => Some((Why::Senseless, "the pair is not ready")),
            Some(pair) if !transfer.way.is_of(pair.rank) => Some((Why::Senseless, "there is no such rank")),
            Some(_) if !is_inside => Some((Why::Senseless, "extents lie outside of the slab")),
            Some(_) if self.waiting.len() == WAITING => Some((Why::Busy, "as much waits as may")),
            Some(_) => None,
        };
        let pair = transfer.pair;
        // It is among those that have an answer, whatever becomes of it.
        self.waiting.push_back(transfer);
        match said {
            Some((why, said)) => self.fail(pair, why, said),
            None => Ok(()),
        }
    }

    fn close(&mut self, id: PairId, until: Instant) -> Result<(), CudaError> {
        let is_used = self.transfers_of(id) > 0;
        let Some(pair) = self.pairs.get_mut(&id) else {
            self.node.answer(&Answer::Closed { pair: id });
            return Ok(());
        };
        if pair.stage == Stage::Ready && !is_used && pair.comm.finalize().is_ok() {
            pair.stage = Stage::Closing { until };
            return Ok(());
        }
        self.let_go(id, Why::Aborted, "it was closed")?;
        self.node.answer(&Answer::Closed { pair: id });
        Ok(())
    }

    fn transfers_of(&self, pair: PairId) -> usize {
        let waiting = self.waiting.iter().filter(|transfer| transfer.pair == pair).count();
        waiting + usize::from(self.running.as_ref().is_some_and(|running| running.transfer.pair == pair))
    }

    /// Looks how far everything is.
    fn look(&mut self) -> Result<(), CudaError> {
        let now = Instant::now();
        let ids: Vec<PairId> = self.pairs.keys().copied().collect();
        for id in ids {
            self.look_at(id, now)?;
        }
        if let Some(late) = self.waiting.iter().find(|transfer| transfer.until < now).map(|late| late.pair) {
            self.fail(late, Why::Late, "its turn has not come in its time")?;
        }
        if self.running.is_some() {
            self.advance(now)?;
        }
        if self.running.is_none()
            && let Some(transfer) = self.waiting.pop_front()
        {
            let rank = self.pairs.get(&transfer.pair).map_or(0, |pair| pair.rank.at);
            let is_source = match transfer.way {
                Way::Send { .. } => true,
                Way::Receive { .. } => false,
                Way::Broadcast { root } => root == rank,
            };
            let rounds = plan(transfer.packing, &transfer.extents).into();
            self.running = Some(Running { transfer, is_source, begun: now, rounds, is_told: false });
            self.begin_round()?;
        }
        Ok(())
    }

    /// Looks at a communicator that is being made or closed, and now and then at one that stands.
    fn look_at(&mut self, id: PairId, now: Instant) -> Result<(), CudaError> {
        let is_idle = self.running.is_none();
        let Some(pair) = self.pairs.get_mut(&id) else { return Ok(()) };
        match pair.stage {
            Stage::Ready if !is_idle || pair.looked + LOOK_AT_IDLE > now => Ok(()),
            Stage::Ready => {
                pair.looked = now;
                match pair.comm.state() {
                    Ok(_) => Ok(()),
                    Err(error) => self.fail_of(id, &error),
                }
            }
            Stage::Joining { until } => match pair.comm.state() {
                Ok(State::Ready) => {
                    pair.stage = Stage::Ready;
                    self.node.answer(&Answer::Ready { pair: id });
                    Ok(())
                }
                Ok(State::InProgress) if now < until => Ok(()),
                Ok(State::InProgress) => self.fail(id, Why::Late, "not all have joined in its time"),
                Err(error) => self.fail_of(id, &error),
            },
            Stage::Closing { until } => {
                match pair.comm.state() {
                    Ok(State::InProgress) if now < until => return Ok(()),
                    Ok(State::Ready) => {
                        // One that cannot be let go of in good order is gone all the same.
                        let _ = self.pairs.remove(&id).map(|pair| pair.comm.destroy());
                    }
                    _ => self.let_go(id, Why::Aborted, "it was closed")?,
                }
                self.node.answer(&Answer::Closed { pair: id });
                Ok(())
            }
        }
    }

    /// Has the first round of the transfer under way begin.
    fn begin_round(&mut self) -> Result<(), CudaError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let (id, way) = (running.transfer.pair, running.transfer.way);
        let (Some(round), Some(pair)) = (running.rounds.front(), self.pairs.get(&id)) else { return Ok(()) };
        let (slab, staged) = (self.slab.address(), self.staging.address());
        if running.is_source && !round.copies.is_empty() {
            let pieces = pieces(&round.copies, |copy| (slab + copy.slab, staged + copy.staged));
            // SAFETY: the extents were found to lie within the slab, which nobody writes there until the answer, as the node vouches; the
            // plan keeps to the staging memory, which is this transfer's. The round before has ended.
            unsafe { self.copier.begin_within(&pieces) }?;
        }
        running.is_told = false;
        let stream = self.copier.stream().number();
        let begun = pair.comm.group(|group: &Group<'_>| {
            for piece in &round.pieces {
                let address = match piece.place {
                    Place::Slab(at) => slab + at,
                    Place::Staged(at) => staged + at,
                };
                let span = Span { address, bytes: piece.bytes as usize };
                // SAFETY: as above, and where bytes come, nobody uses them until the answer, which comes after the stream is past this or
                // the communicator was aborted. The stream is of this GPU, whose context is current.
                unsafe {
                    match way {
                        Way::Send { to } => group.send(&pair.comm, to, span, stream),
                        Way::Receive { from } => group.receive(&pair.comm, from, span, stream),
                        Way::Broadcast { root } => group.broadcast(&pair.comm, root, span, stream),
                    }
                }?;
            }
            Ok(())
        });
        match begun {
            Ok(()) => Ok(()),
            Err(error) => self.fail_of(id, &error),
        }
    }

    /// Looks how far the transfer under way is.
    fn advance(&mut self, now: Instant) -> Result<(), CudaError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let id = running.transfer.pair;
        // Whether the GPU is past it is asked first: an end that is done may go before this one has seen that all has come.
        if running.is_told && self.mark.is_past()? {
            running.rounds.pop_front();
            if !running.rounds.is_empty() {
                return self.begin_round();
            }
            let (transfer, took) = (running.transfer.id, running.begun.elapsed());
            self.running = None;
            self.node.answer(&Answer::Done { pair: id, transfer, took });
            return Ok(());
        }
        let Some(pair) = self.pairs.get(&id) else { return Ok(()) };
        match pair.comm.state() {
            Err(error) => return self.fail_of(id, &error),
            Ok(State::Ready) if !running.is_told => {
                if let Some(round) = running.rounds.front().filter(|round| !round.copies.is_empty())
                    && !running.is_source
                {
                    let (slab, staged) = (self.slab.address(), self.staging.address());
                    let pieces = pieces(&round.copies, |copy| (staged + copy.staged, slab + copy.slab));
                    // SAFETY: as for what is gathered, in the other direction.
                    unsafe { self.copier.begin_within(&pieces) }?;
                }
                self.mark.set(self.copier.stream())?;
                running.is_told = true;
            }
            Ok(_) => {}
        }
        if running.transfer.until < now {
            return self.fail(id, Why::Late, "it was not over in its time");
        }
        Ok(())
    }

    fn fail_of(&mut self, pair: PairId, error: &NcclError) -> Result<(), CudaError> {
        let why = if error.code() == Some(Code::Remote) { Why::Peer } else { Why::Nccl };
        self.fail(pair, why, &error.to_string())
    }

    /// Lets go of a communicator that is lost, and says so: once for each of its transfers, or once.
    fn fail(&mut self, pair: PairId, why: Why, said: &str) -> Result<(), CudaError> {
        let transfers = self.transfers_of(pair);
        self.let_go(pair, why, said)?;
        if transfers == 0 {
            self.node.answer(&Answer::Failed { pair, transfer: None, why, said: said.to_owned() });
        }
        Ok(())
    }

    /// Aborts a communicator, and answers for its transfers once nothing of it touches the slab. When that takes too long, the process ends,
    /// which comes to the same.
    fn let_go(&mut self, id: PairId, why: Why, said: &str) -> Result<(), CudaError> {
        if let Some(pair) = self.pairs.remove(&id) {
            // An abort that fails leaves what the stream says.
            let _ = pair.comm.abort();
        }
        let mut ended = Vec::new();
        if let Some(running) = self.running.take_if(|running| running.transfer.pair == id) {
            self.mark.set(self.copier.stream())?;
            while !self.mark.is_past()? {
                std::thread::sleep(LOOK);
            }
            ended.push(running.transfer.id);
        }
        let waited = self.waiting.iter().filter(|transfer| transfer.pair == id);
        ended.extend(waited.map(|transfer| transfer.id));
        self.waiting.retain(|transfer| transfer.pair != id);
        for transfer in ended {
            let said = said.to_owned();
            self.node.answer(&Answer::Failed { pair: id, transfer: Some(transfer), why, said });
        }
        Ok(())
    }
}

impl Way {
    /// Says whether there is such a rank, and it is another where it must be.
    fn is_of(self, rank: Rank) -> bool {
        match self {
            Way::Send { to: peer } | Way::Receive { from: peer } => peer < rank.of && peer != rank.at,
            Way::Broadcast { root } => root < rank.of,
        }
    }
}

impl Node {
    /// Answers; a node that is not there any more is found so.
    fn answer(&mut self, answer: &Answer) {
        self.is_gone |= self.channel.send(&answer.encode(), None, true).is_err();
    }
}

fn pieces(copies: &[Copy], ends: impl Fn(&Copy) -> (u64, u64)) -> Vec<Piece> {
    let piece = |copy: &Copy| {
        let (from, to) = ends(copy);
        Piece { from, to, bytes: copy.bytes as usize }
    };
    copies.iter().map(piece).collect()
}
