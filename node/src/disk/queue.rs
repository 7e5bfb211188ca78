//! Transfers on their way to a file, and the bounded queue in which they wait for whoever does them: reads that a request waits
//! for before all others.

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

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Bytes between memory and a file. The memory, and what else it holds, belongs to the transfer until it has ended: not until
/// nobody waits for it any more.
pub(crate) struct Transfer {
    pub(crate) file: Arc<File>,
    /// Where in the file.
    pub(crate) at: u64,
    pub(crate) way: Way,
    /// A request waits for it.
    pub(crate) is_asked: bool,
    /// In the order of the file.
    pub(crate) pieces: Vec<Piece>,
    /// Let go of when it has ended, before whoever waits for it is told.
    pub(crate) holds: Option<Box<dyn Send>>,
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
    /// Lets go of transfers that nobody waits for any more, unless they have begun.
    fn forget_abandoned(&self);
}

/// Says that nobody moves the bytes any more.
fn given_up() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// A transfer and who waits for it.
struct Job {
    transfer: Transfer,
    bytes: usize,
    /// It was part of a run that failed: what it comes to is its own.
    alone: bool,
    /// None when whoever waits has been told.
    done: Option<oneshot::Sender<Done>>,
}

impl Job {
    fn end(self, result: io::Result<()>) {
        let Transfer { pieces, holds, .. } = self.transfer;
        drop(holds);
        // Who has stopped waiting takes no harm: the memory goes back here.
        let _ = self.done.map(|done| done.send(Done { result, pieces }));
    }

    /// Says whether nobody waits for it.
    fn is_abandoned(&self) -> bool {
        self.done.as_ref().is_none_or(oneshot::Sender::is_closed)
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

    /// Tells everybody that nobody moves the bytes any more. The memory stays: the kernel may have it.
    pub(super) fn give_up(&mut self) {
        for done in self.0.iter_mut().filter_map(|job| job.done.take()) {
            let _ = done.send(Done { result: Err(given_up()), pieces: Vec::new() });
        }
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
    /// Reads that requests wait for.
    asked: VecDeque<Job>,
    /// Reads that nobody waits for.
    ahead: VecDeque<Job>,
    writes: VecDeque<Job>,
    /// Those of requests that may pass one of the others.
    priority: u32,
    /// As many have since one of the others was taken.
    passed: u32,
    /// That was a write.
    was_write: bool,
    /// Whoever takes has found nothing, and looks again when it is told to.
    is_idle: bool,
    closed: bool,
    /// Nobody takes anything any more.
    broken: bool,
}

/// The queue between those who ask and those who do. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queue(Arc<(Mutex<Waiting>, Condvar)>);

impl Queue {
    /// Makes an empty one, in which so many reads of requests may pass one transfer that nobody waits for.
    pub(super) fn new(priority: u32) -> Queue {
        Queue(Arc::new((Mutex::new(Waiting { priority, ..Waiting::default() }), Condvar::new())))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a transfer. Says whether somebody who found nothing in [`Queue::take`] must be told of it.
    pub(super) fn push(&self, transfer: Transfer) -> (oneshot::Receiver<Done>, bool) {
        let (done, waits) = oneshot::channel();
        let bytes = transfer.pieces.iter().map(|piece| piece.bytes().len()).sum();
        let job = Job { transfer, bytes, alone: false, done: Some(done) };
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            job.end(Err(given_up()));
            return (waits, false);
        }
        if waiting.len() >= MAX_WAITING {
            drop(waiting);
            job.end(Err(io::Error::from(io::ErrorKind::QuotaExceeded)));
            return (waits, false);
        }
        waiting.line_of(&job).push_back(job);
        let was_idle = std::mem::take(&mut waiting.is_idle);
        drop(waiting);
        self.0.1.notify_one();
        (waits, was_idle)
    }

    /// Has these done again, each by itself, before all others.
    fn again(&self, jobs: Vec<Job>) {
        let mut waiting = self.lock();
        if waiting.broken {
            drop(waiting);
            jobs.into_iter().for_each(|job| job.end(Err(given_up())));
            return;
        }
        for mut job in jobs.into_iter().rev() {
            job.alone = true;
            waiting.line_of(&job).push_front(job);
        }
        drop(waiting);
        self.0.1.notify_all();
    }

    /// Takes what is next, if anything is.
    pub(super) fn take(&self) -> Option<Run> {
        // Let go of when the lock is: with the last transfer a store may go, which closes this queue.
        let mut abandoned = Vec::new();
        let mut waiting = self.lock();
        let next = waiting.next(&mut abandoned);
        waiting.is_idle = next.is_none();
        drop(waiting);
        next
    }

    /// Waits for the next; none when the queue was closed and is empty.
    pub(super) fn wait(&self) -> Option<Run> {
        let mut abandoned = Vec::new();
        let mut waiting = self.lock();
        loop {
            let next = waiting.next(&mut abandoned);
            if !abandoned.is_empty() {
                drop(waiting);
                abandoned.clear();
                if next.is_some() {
                    return next;
                }
                waiting = self.lock();
                continue;
            }
            if next.is_some() || waiting.closed {
                return next;
            }
            waiting = self.0.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets go of what nobody waits for any more.
    pub(super) fn forget_abandoned(&self) {
        let mut waiting = self.lock();
        let mut abandoned = Vec::new();
        for jobs in waiting.lines() {
            for job in std::mem::take(jobs) {
                if job.is_abandoned() { abandoned.push(job) } else { jobs.push_back(job) }
            }
        }
        drop(waiting);
    }

    /// Nobody does transfers any more: those that wait end now, as do those that come.
    pub(super) fn break_off(&self) {
        let mut waiting = self.lock();
        (waiting.closed, waiting.broken) = (true, true);
        let left: Vec<Job> = waiting.lines().into_iter().flat_map(|jobs| jobs.drain(..)).collect();
        drop(waiting);
        self.0.1.notify_all();
        left.into_iter().for_each(|job| job.end(Err(given_up())));
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
        self.lock().len()
    }
}

impl Waiting {
    /// Takes what is next. Those that nobody waits for any more are not begun.
    fn next(&mut self, abandoned: &mut Vec<Job>) -> Option<Run> {
        for jobs in self.lines() {
            while jobs.front().is_some_and(Job::is_abandoned) {
                abandoned.extend(jobs.pop_front());
            }
        }
        let is_anothers_turn = self.passed >= self.priority && self.len() > self.asked.len();
        if !is_anothers_turn && let Some(read) = self.asked.pop_front() {
            self.passed += 1;
            return Some(run(read, &mut self.asked));
        }
        self.passed = 0;
        // By turns: reads ahead of use must not keep memory full, nor writes keep what is expected away.
        self.was_write = !self.writes.is_empty() && (!self.was_write || self.ahead.is_empty());
        let jobs = if self.was_write { &mut self.writes } else { &mut self.ahead };
        jobs.pop_front().map(|first| run(first, jobs))
    }

    fn lines(&mut self) -> [&mut VecDeque<Job>; 3] {
        [&mut self.asked, &mut self.ahead, &mut self.writes]
    }

    fn line_of(&mut self, job: &Job) -> &mut VecDeque<Job> {
        match job.transfer.way {
            Way::Read if job.transfer.is_asked => &mut self.asked,
            Way::Read => &mut self.ahead,
            Way::Write => &mut self.writes,
        }
    }

    fn len(&self) -> usize {
        self.asked.len() + self.ahead.len() + self.writes.len()
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
        Transfer { file, at, way, is_asked: way == Way::Read, pieces: Vec::new(), holds: None }
    }

    #[test]
    fn what_requests_wait_for_passes_all_else_by_its_priority_but_not_for_ever() {
        let order = |priority: u32| -> Vec<u64> {
            let queue = Queue::new(priority);
            let ahead = |at| Transfer { is_asked: false, ..transfer(Way::Read, at) };
            let _ahead = [11, 12].map(|at| queue.push(ahead(at)));
            let _writes = [21, 22].map(|at| queue.push(transfer(Way::Write, at)));
            let _asked = [1, 2, 3, 4, 5, 6].map(|at| queue.push(transfer(Way::Read, at)));
            std::iter::from_fn(|| queue.take()).map(|run| run.at()).collect()
        };
        assert_eq!(order(1), [1, 21, 2, 11, 3, 22, 4, 12, 5, 6]);
        assert_eq!(order(4), [1, 2, 3, 4, 21, 5, 6, 11, 22, 12]);
        assert_eq!(order(64), [1, 2, 3, 4, 5, 6, 21, 11, 22, 12]);
    }

    #[test]
    fn transfers_side_by_side_are_one_until_it_fails() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let buffers = Buffers::new([]).expect("a little memory");
        let read = |at: u64, bytes: usize| Transfer {
            file: file.clone(),
            at,
            way: Way::Read,
            is_asked: true,
            pieces: vec![Piece::Own(buffers.take(bytes))],
            holds: None,
        };
        let queue = Queue::new(16);
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
        let queue = Queue::new(16);
        assert!(queue.take().is_none());
        let told = [0, 1].map(|at| queue.push(transfer(Way::Read, at)).1);
        assert_eq!(told, [true, false]);
    }

    #[test]
    fn a_full_or_closed_queue_answers_at_once() {
        let queue = Queue::new(16);
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

    #[test]
    fn a_transfer_that_nobody_waits_for_is_not_begun() {
        let queue = Queue::new(16);
        let held = Arc::new(());
        let mut wants: Vec<_> = (0..4)
            .map(|at| {
                let one = Transfer { holds: Some(Box::new(held.clone())), ..transfer(Way::Read, at) };
                Some(queue.push(one).0)
            })
            .collect();
        wants[0] = None;
        wants[2] = None;
        assert_eq!(queue.take().map(|run| run.at()), Some(1), "the first was given up");
        queue.forget_abandoned();
        assert_eq!(
            (queue.len(), Arc::strong_count(&held)),
            (1, 2),
            "the third was let go of where it waited"
        );
    }

    #[test]
    fn what_a_broken_queue_had_has_ended() {
        let queue = Queue::new(16);
        let mut waits: Vec<_> = (0..3).map(|at| queue.push(transfer(Way::Read, at)).0).collect();
        let mut begun = queue.take().expect("the first");
        queue.break_off();
        begun.give_up();
        waits.push(queue.push(transfer(Way::Write, 9)).0);
        let ends: Vec<_> = waits
            .iter_mut()
            .map(|waits| waits.try_recv().expect("it has ended").result.expect_err("it failed").kind())
            .collect();
        assert_eq!(ends, [io::ErrorKind::BrokenPipe; 4]);
        assert!(queue.wait().is_none());
    }
}
