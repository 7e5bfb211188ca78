//! Transfers by threads that wait for each of theirs: for kernels without io_uring, or that forbid it.

use super::crew::Crew;
use super::queue::{Backend, Done, Queue, Run, Transfer, Way};
use rustix::io::{Errno, preadv, pwritev};
use std::io::{self, IoSlice, IoSliceMut};
use tokio::sync::oneshot;

/// Transfers at a time.
const THREADS: usize = 16;

/// The threads.
pub(crate) struct Threads {
    queue: Queue,
    crew: Crew,
}

/// Breaks the queue off when a thread panics: nothing that waits hangs for want of somebody who takes it.
struct Whole(Queue);

impl Drop for Whole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_off();
        }
    }
}

impl Threads {
    /// Starts them. So many reads of requests may pass one transfer that nobody waits for.
    pub(crate) fn start(priority: u32) -> io::Result<Threads> {
        let mut started = Threads { queue: Queue::new(priority), crew: Crew::new() };
        for number in 0..THREADS {
            let whole = Whole(started.queue.clone());
            let work = move || {
                let Whole(queue) = &whole;
                while let Some(mut run) = queue.wait() {
                    let result = transfer(&mut run);
                    run.end(result, queue);
                }
            };
            started.crew.add(format!("disk-{number}"), work)?;
        }
        Ok(started)
    }
}

impl Backend for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn submit(&self, transfer: Transfer) -> oneshot::Receiver<Done> {
        self.queue.push(transfer).0
    }

    fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn forget_abandoned(&self) {
        self.queue.forget_abandoned();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue.close();
        self.crew.end();
    }
}

/// Moves all bytes, however few the kernel takes at a time.
fn transfer(run: &mut Run) -> io::Result<()> {
    let mut at = run.at();
    let file = run.file().clone();
    match run.way() {
        Way::Read => {
            let mut slices: Vec<IoSliceMut<'_>> =
                run.pieces_mut().map(|piece| IoSliceMut::new(piece.bytes_mut())).collect();
            let mut left = &mut slices[..];
            while left.iter().any(|slice| !slice.is_empty()) {
                let moved = again(|| preadv(&file, left, at))?;
                if moved == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                at += moved as u64;
                IoSliceMut::advance_slices(&mut left, moved);
            }
        }
        Way::Write => {
            let mut slices: Vec<IoSlice<'_>> =
                run.pieces_mut().map(|piece| IoSlice::new(piece.bytes())).collect();
            let mut left = &mut slices[..];
            while left.iter().any(|slice| !slice.is_empty()) {
                let moved = again(|| pwritev(&file, left, at))?;
                if moved == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                at += moved as u64;
                IoSlice::advance_slices(&mut left, moved);
            }
        }
    }
    Ok(())
}

fn again(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
