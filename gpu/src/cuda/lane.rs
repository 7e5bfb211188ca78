//! Copies in one direction, by a thread of their own: those that wait together are done together, and whoever asked for one hears of
//! its end.
#![allow(unsafe_code, reason = "copies between addresses that its jobs vouch for")]

use super::copier::Copier;
use super::error::CudaError;
use super::gpu::Gpu;
use super::memory::Pinned;
use super::stream::{Direction, Piece};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of copies that are done together at most; one that is larger is alone.
pub(super) const BATCH_BYTES: usize = 64 << 20;
/// Copies that are done together at most.
const BATCH_PIECES: usize = 4096;
/// Bytes of copies that may wait; one more is refused.
const WAITING_BYTES: usize = 1 << 30;
/// A batch that takes longer than this never ends: the GPU hangs.
const STALL: Duration = Duration::from_secs(30);

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
    shared: Arc<Shared>,
}

/// What a lane and its thread share.
struct Shared {
    waiting_bytes: AtomicUsize,
    made: Instant,
    /// When the batch under way began, in milliseconds since the lane was made and one more; 0 where there is none.
    began_ms: AtomicU64,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_stalled(&self) -> bool {
        let began = self.began_ms.load(Ordering::Relaxed);
        began > 0 && self.now_ms().saturating_sub(began - 1) > STALL.as_millis() as u64
    }
}

impl Lane {
    pub(super) fn start(gpu: &Arc<Gpu>, direction: Direction, fate: &Arc<Fate>) -> Result<Lane, LaneError> {
        let (jobs, queue) = channel();
        let shared = Arc::new(Shared {
            waiting_bytes: AtomicUsize::new(0),
            made: Instant::now(),
            began_ms: AtomicU64::new(0),
        });
        let hand = Hand {
            copier: Copier::new(gpu)?,
            gpu: gpu.clone(),
            direction,
            fate: fate.clone(),
            shared: shared.clone(),
        };
        let to = match direction {
            Direction::ToGpu => "up",
            Direction::ToHost => "down",
            Direction::Within => "within",
        };
        let name = format!("gpu-{}-{to}", gpu.info().ordinal);
        let thread = std::thread::Builder::new().name(name).spawn(move || hand.run(&queue))?;
        Ok(Lane { jobs: Some(jobs), thread: Some(thread), shared })
    }

    /// Has a copy be done, some time; refused at once where too much waits.
    pub(super) fn ask(&self, job: Job) {
        let (bytes, waiting) = (job.piece.bytes, &self.shared.waiting_bytes);
        let add =
            |waiting: usize| (waiting == 0 || waiting + bytes <= WAITING_BYTES).then_some(waiting + bytes);
        if waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
            return (job.done)(Err(CudaError::Busy { bytes: WAITING_BYTES as u64 }));
        }
        let jobs = self.jobs.as_ref().expect("only drop takes it");
        // Its thread ends when this does. Had it panicked, the job would be dropped here.
        let _ = jobs.send(job);
    }

    /// Says whether what it does never ends.
    pub(super) fn is_stalled(&self) -> bool {
        self.shared.is_stalled()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.jobs = None;
        let is_other = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        // What a GPU that hangs has been asked for is its own to the end of the process.
        if let Some(thread) = self.thread.take().filter(is_other).filter(|_| !self.shared.is_stalled()) {
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
    shared: Arc<Shared>,
}

impl Drop for Hand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody copies in this direction any more.
            let _ = self.fate.set(CudaError::Ended);
        }
    }
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
            self.shared.began_ms.store(self.shared.now_ms() + 1, Ordering::Relaxed);
            self.perform(batch);
            self.shared.began_ms.store(0, Ordering::Relaxed);
            self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.gpu.shelf.sweep(&self.gpu);
            next = next.or_else(|| queue.recv().ok());
        }
    }

    fn perform(&mut self, batch: Vec<Job>) {
        let pieces: Vec<Piece> = batch.iter().map(|job| job.piece).collect();
        let together = self.copy_or_die(&pieces);
        let is_alone = batch.len() == 1;
        for job in batch {
            // An error of one copy is not the others'.
            let ended = match &together {
                Err(_) if !is_alone && self.fate.get().is_none() => self.copy_or_die(&[job.piece]),
                ended => ended.clone(),
            };
            (job.done)(ended);
        }
    }

    /// Copies pieces, and finds out whether the GPU has died of it.
    fn copy_or_die(&mut self, pieces: &[Piece]) -> Result<(), CudaError> {
        if let Some(error) = self.fate.get() {
            return Err(error.clone());
        }
        let ended = self.copy(pieces);
        if let Err(error) = &ended
            && self.is_dead()
        {
            // Who was first knows the cause.
            self.fate.get_or_init(|| error.clone());
        }
        ended
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
                let bytes = piece.bytes;
                let here = here(direction, piece);
                if !self.gpu.is_pinned(*here, bytes) {
                    let mut by = Pinned::for_a_while(&self.gpu, bytes)?;
                    let own = std::mem::replace(here, by.bytes_mut().as_mut_ptr().expose_provenance() as u64);
                    detours.push(Detour { own, bytes, by });
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
        // One copy may not go from one piece of pinned memory over into the next; on the GPU's side all is of one slab.
        let is_one = |piece: &Piece| {
            let mut piece = *piece;
            direction == Direction::Within || self.gpu.is_pinned(*here(direction, &mut piece), piece.bytes)
        };
        let joined = joined(&pieces, is_one);
        // SAFETY: the jobs vouch for their bytes; on the host's side they are pinned, or a detour's own.
        unsafe { self.copier.copy(direction, &joined) }?;
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

/// Returns a piece's end in the host's memory.
fn here(direction: Direction, piece: &mut Piece) -> &mut u64 {
    if direction == Direction::ToGpu { &mut piece.from } else { &mut piece.to }
}

/// Joins pieces that follow each other at both ends and are one piece of memory together: a copy engine is slow on small ones.
fn joined(pieces: &[Piece], is_one: impl Fn(&Piece) -> bool) -> Vec<Piece> {
    let follows = |last: &Piece, next: &Piece| {
        let bytes = last.bytes as u64;
        last.from.checked_add(bytes) == Some(next.from) && last.to.checked_add(bytes) == Some(next.to)
    };
    let mut all: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces.iter().filter(|piece| piece.bytes > 0) {
        let both = all.last().filter(|last| follows(last, piece));
        let both = both.map(|last| Piece { bytes: last.bytes + piece.bytes, ..*last }).filter(&is_one);
        match (all.last_mut(), both) {
            (Some(last), Some(both)) => *last = both,
            _ => all.push(*piece),
        }
    }
    all
}

/// Pinned memory by whose way bytes go that are in none.
struct Detour {
    own: u64,
    bytes: usize,
    by: Pinned,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_follow_each_other_at_both_ends_are_one_within_one_piece_of_memory() {
        let piece = |from, to, bytes| Piece { from, to, bytes };
        let pieces =
            [piece(0, 100, 10), piece(10, 110, 5), piece(15, 0, 0), piece(15, 200, 5), piece(20, 205, 1)];
        assert_eq!(joined(&pieces, |_| true), [piece(0, 100, 15), piece(15, 200, 6)]);
        let within_twelve = |piece: &Piece| piece.from / 12 == (piece.from + piece.bytes as u64 - 1) / 12;
        assert_eq!(joined(&pieces[..2], within_twelve), pieces[..2], "what begins another is another's");
        assert_eq!(
            joined(&[piece(10, 110, 5), piece(0, 100, 10)], |_| true).len(),
            2,
            "the order is the caller's"
        );
        assert_eq!(joined(&[piece(u64::MAX, 0, 2), piece(1, 2, 1)], |_| true).len(), 2);
    }
}
