//! Copies in one direction, by a thread of their own: those that wait together are done together, and whoever asked for one hears of
//! its end.
#![allow(unsafe_code, reason = "copies between addresses that its jobs vouch for")]

use super::copier::Copier;
use super::error::CudaError;
use super::gpu::Gpu;
use super::memory::Pinned;
use super::stream::{Direction, Piece};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Bytes of copies that are done together at most; one that is larger is alone.
const BATCH_BYTES: usize = 256 << 20;
/// Copies that are done together at most.
const BATCH_PIECES: usize = 4096;

/// What became of a GPU: nothing, or the error after which it did nothing more.
pub(super) type Fate = OnceLock<CudaError>;

/// One copy, and what is done when it has ended.
pub(super) struct Job {
    piece: Piece,
    done: Box<dyn FnOnce(Result<(), CudaError>) + Send>,
}

impl Job {
    /// Makes one.
    ///
    /// # Safety
    /// The bytes at both ends of the piece are there until `done` has been called or dropped: nobody writes those that are read, and
    /// nobody else uses those that are written.
    pub(super) unsafe fn new(piece: Piece, done: impl FnOnce(Result<(), CudaError>) + Send + 'static) -> Job {
        Job { piece, done: Box::new(done) }
    }
}

/// A direction of copies. Dropped, it does what was asked of it and ends.
pub(super) struct Lane {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    pub(super) fn start(gpu: &Arc<Gpu>, direction: Direction, fate: &Arc<Fate>) -> Result<Lane, LaneError> {
        let (jobs, queue) = channel();
        let hand = Hand { copier: Copier::new(gpu)?, gpu: gpu.clone(), direction, fate: fate.clone() };
        let to = match direction {
            Direction::ToGpu => "up",
            Direction::ToHost => "down",
            Direction::Within => "within",
        };
        let name = format!("gpu-{}-{to}", gpu.info().ordinal);
        let thread = std::thread::Builder::new().name(name).spawn(move || hand.run(&queue))?;
        Ok(Lane { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has a copy be done, some time.
    pub(super) fn ask(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("only drop takes it");
        // Its thread ends when this does. Had it panicked, the job would be dropped here.
        let _ = jobs.send(job);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.jobs = None;
        let thread = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        if let Some(thread) = thread {
            // A panic of its is told by the hook.
            let _ = thread.join();
        }
    }
}

/// Why a lane could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    #[error(transparent)]
    Cuda(#[from] CudaError),
    #[error("no thread could be made: {0}")]
    Thread(#[from] io::Error),
}

/// What a lane's thread works with.
struct Hand {
    copier: Copier,
    gpu: Arc<Gpu>,
    direction: Direction,
    fate: Arc<Fate>,
}

impl Hand {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut next = queue.recv().ok();
        while let Some(first) = next.take() {
            let mut bytes = first.piece.bytes;
            let mut batch = vec![first];
            while batch.len() < BATCH_PIECES
                && let Ok(job) = queue.try_recv()
            {
                if bytes + job.piece.bytes > BATCH_BYTES {
                    next = Some(job);
                    break;
                }
                bytes += job.piece.bytes;
                batch.push(job);
            }
            self.perform(batch);
            next = next.or_else(|| queue.recv().ok());
        }
    }

    fn perform(&mut self, batch: Vec<Job>) {
        let pieces: Vec<Piece> = batch.iter().map(|job| job.piece).collect();
        let ended = match self.fate.get() {
            Some(error) => Err(error.clone()),
            None => self.copy(&pieces),
        };
        if let Err(error) = &ended
            && self.is_dead()
        {
            // Not this copy alone: nothing is done any more. Who was first knows the cause.
            self.fate.get_or_init(|| error.clone());
        }
        for job in batch {
            (job.done)(ended.clone());
        }
    }

    /// Says whether the GPU does nothing more: after an error that ends its context, every call that needs it fails.
    fn is_dead(&self) -> bool {
        self.gpu.enter().and_then(|_entered| self.copier.stream().wait()).is_err()
    }

    /// Copies pieces, those that are not in pinned memory by way of some.
    fn copy(&mut self, pieces: &[Piece]) -> Result<(), CudaError> {
        let mut pieces = pieces.to_vec();
        let direction = self.direction;
        let mut detours: Vec<Detour> = Vec::new();
        if direction != Direction::Within {
            for piece in pieces.iter_mut().filter(|piece| piece.bytes > 0) {
                let here = if direction == Direction::ToGpu { &mut piece.from } else { &mut piece.to };
                if !self.gpu.is_pinned(*here, piece.bytes) {
                    let by = Pinned::for_a_while(&self.gpu, piece.bytes)?;
                    let own = std::mem::replace(here, by.bytes().as_ptr().expose_provenance() as u64);
                    detours.push(Detour { own, bytes: piece.bytes, by });
                }
            }
        }
        if direction == Direction::ToGpu {
            for Detour { own, bytes, by } in &mut detours {
                let own = std::ptr::with_exposed_provenance(*own as usize);
                // SAFETY: the job vouches for so many bytes there, which nobody writes.
                by.bytes_mut()[..*bytes].copy_from_slice(unsafe { std::slice::from_raw_parts(own, *bytes) });
            }
        }
        // SAFETY: the jobs vouch for their bytes; on the host's side they are pinned, or a detour's own.
        unsafe { self.copier.copy(direction, &pieces) }?;
        if direction == Direction::ToHost {
            for Detour { own, bytes, by } in &detours {
                let own: *mut u8 = std::ptr::with_exposed_provenance_mut(*own as usize);
                // SAFETY: the job vouches for so many bytes there, which nobody else uses.
                unsafe { own.copy_from_nonoverlapping(by.bytes().as_ptr(), *bytes) };
            }
        }
        Ok(())
    }
}

/// Pinned memory by whose way bytes go that are in none.
struct Detour {
    own: u64,
    bytes: usize,
    by: Pinned,
}
