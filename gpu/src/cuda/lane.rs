//! Copies in one direction, by a thread of their own: those that wait together are done together, and whoever asked for one hears of
//! its end.
#![allow(unsafe_code, reason = "copies between addresses that its jobs vouch for")]

use super::copier::Copier;
use super::error::CudaError;
use super::gpu::Gpu;
use super::memory::Pinned;
use super::stream::{Direction, Piece};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of copies that are done together at most; one that is larger is alone.
pub(super) const BATCH_BYTES: usize = 64 << 20;
/// Copies that are done together at most.
const BATCH_PIECES: usize = 4096;
/// Bytes of copies that may wait; one more is refused.
const WAITING_BYTES: usize = 1 << 30;

/// What became of a GPU: nothing, or the error after which it did nothing more.
pub(super) type Fate = OnceLock<CudaError>;

/// How long a GPU is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Whoever asked for a copy, or wants to let go of the GPU, waits so long and no longer.
    pub copy: Duration,
    /// Copies that were begun together and take longer never end: the GPU hangs.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { copy: Duration::from_secs(2), stall: Duration::from_secs(30) }
    }
}

/// Tells whoever asked for a copy that it never ends.
type GiveUp = Box<dyn FnOnce(CudaError) + Send>;

/// What is copied, and where the slabs begin in which it lies at both ends: memory of two slabs may touch, and is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Placed {
    pub(super) piece: Piece,
    pub(super) slabs: [u64; 2],
}

/// In the place of a slab's first address: the end is in the host's memory.
pub(super) const HOST: u64 = 0;

/// One copy, and what is done when it has ended.
pub(super) struct Job {
    placed: Placed,
    done: Box<dyn FnOnce(Result<(), CudaError>) + Send>,
    give_up: GiveUp,
}

impl Job {
    /// Makes one. `give_up` is called where the copy never ends, before `done` if that is called all the same.
    ///
    /// # Safety
    /// The bytes at both ends of the piece are there until `done` has been called or dropped: nobody writes those that are read, and
    /// nobody else uses those that are written.
    pub(super) unsafe fn new(
        placed: Placed,
        done: impl FnOnce(Result<(), CudaError>) + Send + 'static,
        give_up: impl FnOnce(CudaError) + Send + 'static,
    ) -> Job {
        Job { placed, done: Box::new(done), give_up: Box::new(give_up) }
    }

    fn bytes(&self) -> usize {
        self.placed.piece.bytes
    }
}

/// A direction of copies. Dropped, it does what was asked of it and ends.
pub(super) struct Lane {
    thread: Option<JoinHandle<()>>,
    gpu: Arc<Gpu>,
    shared: Arc<Shared>,
}

/// What a lane and its thread share.
struct Shared {
    queue: Mutex<Queue>,
    /// Something has come, or has ended.
    changed: Condvar,
    patience: Patience,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Of all that are not done.
    waiting_bytes: usize,
    /// When the batch under way began, and how its jobs are given up.
    batch: Option<(Instant, Vec<GiveUp>)>,
    /// No more come.
    is_closed: bool,
    /// Why none is done any more.
    given_up: Option<CudaError>,
    /// Its thread has ended.
    is_over: bool,
}

impl Queue {
    /// Takes the jobs that are done next, together.
    fn batch(&mut self) -> Option<Vec<Job>> {
        let first = self.jobs.pop_front()?;
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < BATCH_PIECES
            && self.jobs.front().is_some_and(|job| bytes + job.bytes() <= BATCH_BYTES)
            && let Some(job) = self.jobs.pop_front()
        {
            bytes += job.bytes();
            batch.push(job);
        }
        Some(batch)
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing is left half-done under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something as long as a GPU is waited for.
    fn wait(&self, until: impl Fn(&Queue) -> bool) -> bool {
        let limit = self.patience.copy;
        let waited = self.changed.wait_timeout_while(self.queue(), limit, |queue| !until(queue));
        until(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn give_up(&self, error: &CudaError) {
        let mut queue = self.queue();
        queue.given_up.get_or_insert_with(|| error.clone());
        let under_way = queue.batch.as_mut().map(|(_, jobs)| std::mem::take(jobs));
        let (waiting, under_way) = (std::mem::take(&mut queue.jobs), under_way.unwrap_or_default());
        queue.waiting_bytes = 0;
        drop(queue);
        under_way.into_iter().for_each(|give_up| give_up(error.clone()));
        waiting.into_iter().for_each(|job| (job.done)(Err(error.clone())));
    }
}

impl Lane {
    pub(super) fn start(
        gpu: &Arc<Gpu>,
        direction: Direction,
        fate: &Arc<Fate>,
        patience: Patience,
    ) -> Result<Lane, LaneError> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), patience });
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
            Direction::FromPeer => "beside",
        };
        let name = format!("gpu-{}-{to}", gpu.info().ordinal);
        let thread = std::thread::Builder::new().name(name).spawn(move || hand.run())?;
        Ok(Lane { thread: Some(thread), gpu: gpu.clone(), shared })
    }

    /// Has a copy be done, some time; refused at once where too much waits, or nothing is done any more.
    pub(super) fn ask(&self, job: Job) {
        let bytes = job.bytes();
        let mut queue = self.shared.queue();
        let refusal = match &queue.given_up {
            Some(error) => Some(error.clone()),
            None if queue.waiting_bytes > 0 && queue.waiting_bytes + bytes > WAITING_BYTES => {
                Some(CudaError::Busy { bytes: WAITING_BYTES as u64 })
            }
            None => None,
        };
        if let Some(error) = refusal {
            drop(queue);
            return (job.done)(Err(error));
        }
        queue.waiting_bytes += bytes;
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Says whether what it does never ends.
    pub(super) fn is_stalled(&self) -> bool {
        let queue = self.shared.queue();
        queue.batch.as_ref().is_some_and(|(begun, _)| begun.elapsed() > self.shared.patience.stall)
    }

    /// Has nothing be done any more. What is under way keeps its memory, and whoever asked for it hears that it never ends.
    pub(super) fn give_up(&self, error: &CudaError) {
        self.gpu.leave();
        self.shared.give_up(error);
    }

    /// Waits until nothing is under way or waits, as long as a GPU is waited for; says whether that is so.
    pub(super) fn is_soon_idle(&self) -> bool {
        self.shared.wait(|queue| queue.batch.is_none() && queue.jobs.is_empty())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_all();
        let is_other = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        let Some(thread) = self.thread.take().filter(is_other) else { return };
        if self.shared.wait(|queue| queue.is_over) {
            // A panic of its is told by the hook.
            let _ = thread.join();
        } else {
            self.give_up(&CudaError::Stalled);
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
            self.shared.give_up(&CudaError::Ended);
        }
        self.shared.queue().is_over = true;
        self.shared.changed.notify_all();
    }
}

impl Hand {
    fn run(mut self) {
        while let Some(mut batch) = self.next() {
            let bytes: usize = batch.iter().map(Job::bytes).sum();
            self.perform(&mut batch);
            self.gpu.shelf.sweep(&self.gpu);
            let mut queue = self.shared.queue();
            queue.batch = None;
            queue.waiting_bytes = queue.waiting_bytes.saturating_sub(bytes);
            drop(queue);
            self.shared.changed.notify_all();
        }
    }

    /// Waits for jobs that are done together; none come any more once the lane is dropped.
    fn next(&self) -> Option<Vec<Job>> {
        let mut queue = self.shared.queue();
        loop {
            if let Some(mut batch) = queue.batch() {
                let none = || -> GiveUp { Box::new(|_| ()) };
                let give_up = batch.iter_mut().map(|job| std::mem::replace(&mut job.give_up, none()));
                queue.batch = Some((Instant::now(), give_up.collect()));
                return Some(batch);
            }
            if queue.is_closed {
                return None;
            }
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn perform(&mut self, batch: &mut Vec<Job>) {
        let pieces: Vec<Placed> = batch.iter().map(|job| job.placed).collect();
        let together = self.copy_or_die(&pieces);
        let is_alone = batch.len() == 1;
        for job in batch.drain(..) {
            // An error of one copy is not the others'.
            let ended = match &together {
                Err(_) if !is_alone && self.fate.get().is_none() => self.copy_or_die(&[job.placed]),
                ended => ended.clone(),
            };
            (job.done)(ended);
        }
    }

    /// Copies pieces, and finds out whether the GPU has died of it.
    fn copy_or_die(&mut self, pieces: &[Placed]) -> Result<(), CudaError> {
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
    fn copy(&mut self, pieces: &[Placed]) -> Result<(), CudaError> {
        let mut pieces = pieces.to_vec();
        let direction = self.direction;
        let mut detours: Vec<Detour> = Vec::new();
        if direction.has_host() {
            let all = pieces.iter_mut().map(|placed| &mut placed.piece);
            for piece in all.filter(|piece| piece.bytes > 0) {
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
        // One copy may not go from one piece of pinned memory over into the next, as it may not from one slab of a GPU's.
        let is_one = |piece: &Piece| {
            !direction.has_host() || self.gpu.is_pinned(*here(direction, &mut { *piece }), piece.bytes)
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

/// Joins pieces that follow each other at both ends, within the same slabs, and are one piece of memory together: a copy engine is slow on
/// small ones.
fn joined(pieces: &[Placed], is_one: impl Fn(&Piece) -> bool) -> Vec<Piece> {
    let follows = |Placed { piece: last, slabs }: &Placed, next: &Placed| {
        let end = |start: u64| start.checked_add(last.bytes as u64);
        *slabs == next.slabs && end(last.from) == Some(next.piece.from) && end(last.to) == Some(next.piece.to)
    };
    let mut all: Vec<Placed> = Vec::with_capacity(pieces.len());
    for placed in pieces.iter().filter(|placed| placed.piece.bytes > 0) {
        let last = all.last().filter(|last| follows(last, placed)).map(|last| last.piece);
        let both = last.map(|last| Piece { bytes: last.bytes + placed.piece.bytes, ..last }).filter(&is_one);
        match (all.last_mut(), both) {
            (Some(last), Some(both)) => last.piece = both,
            _ => all.push(*placed),
        }
    }
    all.into_iter().map(|placed| placed.piece).collect()
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
        let placed = |pieces: &[Piece]| -> Vec<Placed> {
            pieces.iter().map(|piece| Placed { piece: *piece, slabs: [HOST, 7] }).collect()
        };
        let pieces =
            [piece(0, 100, 10), piece(10, 110, 5), piece(15, 0, 0), piece(15, 200, 5), piece(20, 205, 1)];
        assert_eq!(joined(&placed(&pieces), |_| true), [piece(0, 100, 15), piece(15, 200, 6)]);
        let within_twelve = |piece: &Piece| piece.from / 12 == (piece.from + piece.bytes as u64 - 1) / 12;
        let first = placed(&pieces[..2]);
        assert_eq!(joined(&first, within_twelve), pieces[..2], "what begins another is another's");
        for slabs in [[HOST, 8], [1, 7]] {
            let others = [first[0], Placed { slabs, ..first[1] }];
            assert_eq!(joined(&others, |_| true), pieces[..2], "slabs may touch");
        }
        let turned = placed(&[piece(10, 110, 5), piece(0, 100, 10)]);
        assert_eq!(joined(&turned, |_| true).len(), 2, "the order is the caller's");
        assert_eq!(joined(&placed(&[piece(u64::MAX, 0, 2), piece(1, 2, 1)]), |_| true).len(), 2);
    }
}
