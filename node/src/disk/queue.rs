//! Transfers on their way to a file, and the bounded queue in which they wait for whoever does them: reads before writes,
//! for somebody waits for a read.

use super::buffer::Piece;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Transfers that may wait; one more fails at once.
const MAX_WAITING: usize = 2048;
/// Bytes and transfers that are done as one where they lie side by side in a file: blocks that came together do.
const MAX_RUN_BYTES: usize = 1 << 20;
const MAX_RUN: usize = 32;
/// Reads that may pass a waiting write.
const READS_A_WRITE: u32 = 16;

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Bytes between memory and a file. The memory belongs to the transfer until it has ended.
pub(crate) struct Transfer {
    pub(crate) file: Arc<File>,
    /// Where in the file.
    pub(crate) at: u64,
    pub(crate) way: Way,
    /// In the order of the file.
    pub(crate) pieces: Vec<Piece>,
}

/// A transfer that has ended.
pub(crate) struct Done {
    /// Whether all bytes went over.
    pub(crate) result: io::Result<()>,
    pub(crate) pieces: Vec<Piece>,
}

/// Whoever does transfers.
pub(crate) trait Backend: Send + Sync {
    /// Returns its name in the log and in metrics.
    fn name(&self) -> &'static str;
    /// Takes a transfer on; one that there is no room for fails as [`io::ErrorKind::QuotaExceeded`].
    fn submit(&self, transfer: Transfer) -> oneshot::Receiver<Done>;
    /// Returns how many wait to begin.
    fn waiting(&self) -> usize;
}

/// A transfer and who waits for it.
struct Job {
    transfer: Transfer,
    bytes: usize,
    /// It was part of a run that failed: what it comes to is its own.
    alone: bool,
    done: oneshot::Sender<Done>,
}

impl Job {
    fn end(self, result: io::Result<()>) {
        // Who has stopped waiting takes no harm: the memory goes back here.
        let _ = self.done.send(Done { result, pieces: self.transfer.pieces });
    }

    /// Says whether `next` goes on in the file where this one ends.
    fn is_followed_by(&self, next: &Job) -> bool {
        let (this, next_one) = (&self.transfer, &next.transfer);
        !next.alone && Arc::ptr_eq(&this.file, &next_one.file) && this.at + self.bytes as u64 == next_one.at
    }
}

/// Transfers that lie side by side in a file, done as one. Never empty.
pub(super) struct Run(Vec<Job>);

impl Run {
    pub(super) fn file(&self) -> &Arc<File> {
        &self.0[0].transfer.file
    }

    /// Returns where in the file it begins.
    pub(super) fn at(&self) -> u64 {
        self.0[0].transfer.at
    }

    pub(super) fn way(&self) -> Way {
        self.0[0].transfer.way
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|job| job.bytes).sum()
    }

    /// Returns all its memory, in the order of the file.
    pub(super) fn pieces_mut(&mut self) -> impl Iterator<Item = &mut Piece> {
        self.0.iter_mut().flat_map(|job| &mut job.transfer.pieces)
    }

    /// Tells everybody how it ended. Of a run that failed each transfer is done again by itself: one bad sector is not its
    /// neighbours' end.
    pub(super) fn end(mut self, result: io::Result<()>, queue: &Queue) {
        match result {
            Ok(()) => self.0.into_iter().for_each(|job| job.end(Ok(()))),
            Err(_) if self.0.len() > 1 => queue.again(self.0),
            Err(error) => {
                if let Some(job) = self.0.pop() {
                    job.end(Err(error));
                }
            }
        }
    }
}

#[derive(Default)]
struct Waiting {
    reads: VecDeque<Job>,
    writes: VecDeque<Job>,
    /// Reads that have passed the first write.
    passed: u32,
    /// Whoever takes has found nothing, and looks again when it is told to.
    is_idle: bool,
    closed: bool,
}

/// The queue between those who ask and those who do. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<(Mutex<Waiting>, Condvar)>);

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a transfer. Says whether somebody who found nothing in [`Queue::take`] must be told of it.
    pub(super) fn push(&self, transfer: Transfer) -> (oneshot::Receiver<Done>, bool) {
        let (done, waits) = oneshot::channel();
        let bytes = transfer.pieces.iter().map(|piece| piece.bytes().len()).sum();
        let job = Job { transfer, bytes, alone: false, done };
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            job.end(Err(io::Error::from(io::ErrorKind::BrokenPipe)));
            return (waits, false);
        }
        if waiting.reads.len() + waiting.writes.len() >= MAX_WAITING {
            drop(waiting);
            job.end(Err(io::Error::from(io::ErrorKind::QuotaExceeded)));
            return (waits, false);
        }
        match job.transfer.way {
            Way::Read => waiting.reads.push_back(job),
            Way::Write => waiting.writes.push_back(job),
        }
        let was_idle = std::mem::take(&mut waiting.is_idle);
        drop(waiting);
        self.0.1.notify_one();
        (waits, was_idle)
    }

    /// Has these done again, each by itself, before all others.
    fn again(&self, jobs: Vec<Job>) {
        let mut waiting = self.lock();
        for mut job in jobs.into_iter().rev() {
            job.alone = true;
            match job.transfer.way {
                Way::Read => waiting.reads.push_front(job),
                Way::Write => waiting.writes.push_front(job),
            }
        }
        drop(waiting);
        self.0.1.notify_all();
    }

    /// Takes what is next, if anything is.
    pub(super) fn take(&self) -> Option<Run> {
        let mut waiting = self.lock();
        let next = waiting.next();
        waiting.is_idle = next.is_none();
        next
    }

    /// Waits for the next; none when the queue was closed and is empty.
    pub(super) fn wait(&self) -> Option<Run> {
        let mut waiting = self.lock();
        loop {
            if let Some(run) = waiting.next() {
                return Some(run);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.0.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more; what waits is still done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.reads.len() + waiting.writes.len()
    }
}

impl Waiting {
    fn next(&mut self) -> Option<Run> {
        let is_write_due = self.passed >= READS_A_WRITE && !self.writes.is_empty();
        if !is_write_due && let Some(read) = self.reads.pop_front() {
            self.passed += 1;
            return Some(run(read, &mut self.reads));
        }
        self.passed = 0;
        self.writes.pop_front().map(|write| run(write, &mut self.writes))
    }
}

/// Adds to a transfer those that wait next and go on where it ends.
fn run(first: Job, waiting: &mut VecDeque<Job>) -> Run {
    let mut bytes = first.bytes;
    let mut jobs = vec![first];
    while jobs.len() < MAX_RUN
        && !jobs[0].alone
        && let Some(next) = waiting.front()
        && bytes + next.bytes <= MAX_RUN_BYTES
        && jobs.last().is_some_and(|last| last.is_followed_by(next))
        && let Some(next) = waiting.pop_front()
    {
        bytes += next.bytes;
        jobs.push(next);
    }
    Run(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::buffer::Buffers;

    fn transfer(way: Way, at: u64) -> Transfer {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        Transfer { file, at, way, pieces: Vec::new() }
    }

    #[test]
    fn reads_pass_writes_but_not_for_ever() {
        let queue = Queue::default();
        let _writes = [1, 2].map(|at| queue.push(transfer(Way::Write, at)));
        let _reads: Vec<_> = (10..10 + 20).map(|at| queue.push(transfer(Way::Read, at))).collect();
        let order: Vec<u64> = std::iter::from_fn(|| queue.take()).map(|run| run.at()).collect();
        assert_eq!((order[0], order[15], order[16], order[17], order[21]), (10, 25, 1, 26, 2));
    }

    #[test]
    fn transfers_side_by_side_are_one_until_it_fails() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let buffers = Buffers::new([]).expect("a little memory");
        let read = |at: u64, bytes: usize| Transfer {
            file: file.clone(),
            at,
            way: Way::Read,
            pieces: vec![Piece::Own(buffers.take(bytes))],
        };
        let queue = Queue::default();
        let places = [(0, 8192), (8192, 4096), (12288, 4096), (20480, 4096), (24576, 1 << 20)];
        let mut waits: Vec<_> = places.map(|(at, bytes)| queue.push(read(at, bytes)).0).into();
        let mut runs: Vec<Run> = std::iter::from_fn(|| queue.take()).collect();
        let shape = |run: &Run| (run.at(), run.bytes(), run.0.len());
        assert_eq!(
            runs.iter().map(shape).collect::<Vec<_>>(),
            [(0, 16384, 3), (20480, 4096, 1), (24576, 1 << 20, 1)]
        );
        runs.remove(0).end(Err(io::ErrorKind::UnexpectedEof.into()), &queue);
        let alone: Vec<Run> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(
            alone.iter().map(shape).collect::<Vec<_>>(),
            [(0, 8192, 1), (8192, 4096, 1), (12288, 4096, 1)]
        );
        for (at, run) in alone.into_iter().enumerate() {
            let result = if at == 1 { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) };
            run.end(result, &queue);
        }
        let results: Vec<_> =
            waits.drain(..3).map(|mut done| done.try_recv().expect("it has ended").result).collect();
        assert!(results[0].is_ok() && results[2].is_ok());
        assert_eq!(results[1].as_ref().expect_err("it failed").raw_os_error(), Some(5));
    }

    #[test]
    fn who_found_nothing_is_told_once() {
        let queue = Queue::default();
        assert!(queue.take().is_none());
        let told = [0, 1].map(|at| queue.push(transfer(Way::Read, at)).1);
        assert_eq!(told, [true, false]);
    }

    #[test]
    fn a_full_or_closed_queue_answers_at_once() {
        let queue = Queue::default();
        let waits: Vec<_> = (0..MAX_WAITING).map(|_| queue.push(transfer(Way::Read, 0))).collect();
        let failed = |queue: &Queue| {
            let (mut waits, must_tell) = queue.push(transfer(Way::Write, 0));
            assert!(!must_tell);
            waits.try_recv().expect("it has ended").result.expect_err("it failed").kind()
        };
        assert_eq!(failed(&queue), io::ErrorKind::QuotaExceeded);
        queue.close();
        assert_eq!(failed(&queue), io::ErrorKind::BrokenPipe);
        let left = std::iter::from_fn(|| queue.wait()).count();
        assert_eq!((left, waits.len()), (MAX_WAITING, MAX_WAITING), "what waited is still done");
    }
}
