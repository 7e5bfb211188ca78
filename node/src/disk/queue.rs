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
pub(super) struct Job {
    pub(super) transfer: Transfer,
    done: oneshot::Sender<Done>,
}

impl Job {
    pub(super) fn end(self, result: io::Result<()>) {
        // Who has stopped waiting takes no harm: the memory goes back here.
        let _ = self.done.send(Done { result, pieces: self.transfer.pieces });
    }
}

#[derive(Default)]
struct Waiting {
    reads: VecDeque<Job>,
    writes: VecDeque<Job>,
    /// Reads that have passed the first write.
    passed: u32,
    closed: bool,
}

/// The queue between those who ask and those who do. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<(Mutex<Waiting>, Condvar)>);

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a transfer; false when it failed at once.
    pub(super) fn push(&self, transfer: Transfer) -> (oneshot::Receiver<Done>, bool) {
        let (done, waits) = oneshot::channel();
        let job = Job { transfer, done };
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
        self.0.1.notify_one();
        (waits, true)
    }

    /// Takes the next, if there is one.
    pub(super) fn take(&self) -> Option<Job> {
        self.lock().next()
    }

    /// Waits for the next; none when the queue was closed and is empty.
    pub(super) fn wait(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.next() {
                return Some(job);
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
    fn next(&mut self) -> Option<Job> {
        let is_write_due = self.passed >= READS_A_WRITE && !self.writes.is_empty();
        let read = if is_write_due { None } else { self.reads.pop_front() };
        if let Some(read) = read {
            self.passed += 1;
            return Some(read);
        }
        self.passed = 0;
        self.writes.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(way: Way, at: u64) -> Transfer {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        Transfer { file, at, way, pieces: Vec::new() }
    }

    #[test]
    fn reads_pass_writes_but_not_for_ever() {
        let queue = Queue::default();
        let _writes = [1, 2].map(|at| queue.push(transfer(Way::Write, at)));
        let _reads: Vec<_> = (10..10 + 20).map(|at| queue.push(transfer(Way::Read, at))).collect();
        let order: Vec<u64> = std::iter::from_fn(|| queue.take()).map(|job| job.transfer.at).collect();
        assert_eq!((order[0], order[15], order[16], order[17], order[21]), (10, 25, 1, 26, 2));
    }

    #[test]
    fn a_full_or_closed_queue_answers_at_once() {
        let queue = Queue::default();
        let waits: Vec<_> = (0..MAX_WAITING).map(|_| queue.push(transfer(Way::Read, 0))).collect();
        let failed = |queue: &Queue| {
            let (mut waits, is_in) = queue.push(transfer(Way::Write, 0));
            assert!(!is_in);
            waits.try_recv().expect("it has ended").result.expect_err("it failed").kind()
        };
        assert_eq!(failed(&queue), io::ErrorKind::QuotaExceeded);
        queue.close();
        assert_eq!(failed(&queue), io::ErrorKind::BrokenPipe);
        let left = std::iter::from_fn(|| queue.wait()).count();
        assert_eq!((left, waits.len()), (MAX_WAITING, MAX_WAITING), "what waited is still done");
    }
}
