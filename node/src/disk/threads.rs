//! Transfers by threads that wait for each of theirs: for kernels without io_uring, or that forbid it.

use super::queue::{Backend, Done, Queue, Run, Transfer, Way};
use rustix::io::{Errno, preadv, pwritev};
use std::io::{self, IoSlice, IoSliceMut};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Transfers at a time.
const THREADS: usize = 16;

/// The threads.
pub(crate) struct Threads {
    queue: Queue,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts them.
    pub(crate) fn start() -> io::Result<Threads> {
        let mut started = Threads { queue: Queue::default(), threads: Vec::with_capacity(THREADS) };
        for number in 0..THREADS {
            let queue = started.queue.clone();
            let work = move || {
                while let Some(mut run) = queue.wait() {
                    let result = transfer(&mut run);
                    run.end(result, &queue);
                }
            };
            started.threads.push(std::thread::Builder::new().name(format!("disk-{number}")).spawn(work)?);
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
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the disk panicked");
            }
        }
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
