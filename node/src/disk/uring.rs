//! Transfers by io_uring: one thread keeps up to [`DEPTH`] of them with the kernel and hears of their ends.
#![allow(
    unsafe_code,
    reason = "the kernel reads and writes memory that a transfer owns until its completion has come"
)]

use super::buffer::Piece;
use super::crew::Crew;
use super::queue::{Backend, Done, Queue, Run, Transfer, Way};
use io_uring::{IoUring, Probe, opcode, types::Fd};
use rustix::event::{EventfdFlags, eventfd};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Transfers that the kernel has at a time.
const DEPTH: usize = 64;
/// Names the completion of the wait for more work.
const WAKE: u64 = u64::MAX;
/// A ring that takes nothing although nothing is ending is tried again after this, so many times.
const RETRY_AFTER: Duration = Duration::from_millis(1);
const MAX_RETRIES: u32 = 1000;

/// The ring's thread, and the way to it.
pub(crate) struct Uring {
    queue: Queue,
    bell: Arc<OwnedFd>,
    crew: Crew,
}

impl Uring {
    /// Makes a ring and starts its thread. So many reads of requests may pass one transfer that nobody waits for.
    ///
    /// # Errors
    /// When the kernel has no io_uring, forbids it, or lacks what is needed of it.
    pub(crate) fn start(priority: u32) -> io::Result<Uring> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let queue = Queue::new(priority);
        let (told, made) = mpsc::sync_channel(1);
        let (its_queue, its_bell) = (queue.clone(), bell.clone());
        // The ring belongs to the thread that makes it.
        let work = move || match ring() {
            Ok(ring) => {
                let driver = Driver::new(its_queue, its_bell);
                if told.send(Ok(())).is_ok() {
                    driver.run(ring);
                }
            }
            // Nobody waits only if this thread was given up.
            Err(error) => drop(told.send(Err(error))),
        };
        let mut crew = Crew::new();
        crew.add("disk-uring".to_owned(), work)?;
        made.recv().map_err(io::Error::other)??;
        Ok(Uring { queue, bell, crew })
    }

    fn ring_the_bell(&self) {
        // A bell that has rung already is as good.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }
}

impl Backend for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn submit(&self, transfer: Transfer) -> oneshot::Receiver<Done> {
        let (done, must_tell) = self.queue.push(transfer);
        if must_tell {
            self.ring_the_bell();
        }
        done
    }

    fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn forget_abandoned(&self) {
        self.queue.forget_abandoned();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.queue.close();
        self.ring_the_bell();
        self.crew.end();
    }
}

/// Makes a ring that can do what is asked of it.
fn ring() -> io::Result<IoUring> {
    let entries = (DEPTH + 1).next_power_of_two() as u32;
    // Completions wait for the thread instead of interrupting it, where the kernel knows how (6.1).
    let quiet = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    let ring = match quiet {
        Err(error) if error.kind() == ErrorKind::InvalidInput => IoUring::new(entries)?,
        made => made?,
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Read::CODE];
    let can_all = needed.into_iter().all(|code| probe.is_supported(code));
    if can_all { Ok(ring) } else { Err(ErrorKind::Unsupported.into()) }
}

/// As the kernel knows it.
#[repr(C)]
struct Iovec {
    base: *mut u8,
    len: usize,
}

/// What the kernel has.
struct Flight {
    run: Run,
    /// Where its memory is that is yet to be moved; the kernel reads this list when it is submitted.
    iovecs: Vec<Iovec>,
    /// Bytes in all, and those that were moved.
    bytes: usize,
    moved: usize,
}

impl Flight {
    fn new(mut run: Run) -> Flight {
        let way = run.way();
        let iovec = |piece: &mut Piece| match way {
            Way::Read => {
                let bytes = piece.bytes_mut();
                Iovec { base: bytes.as_mut_ptr(), len: bytes.len() }
            }
            // The kernel only reads what is written out.
            Way::Write => Iovec { base: piece.bytes().as_ptr().cast_mut(), len: piece.bytes().len() },
        };
        let iovecs: Vec<Iovec> = run.pieces_mut().map(iovec).collect();
        let bytes = run.bytes();
        Flight { run, iovecs, bytes, moved: 0 }
    }

    fn entry(&self, number: usize) -> io_uring::squeue::Entry {
        let (fd, at) = (Fd(self.run.file().as_raw_fd()), self.run.at() + self.moved as u64);
        let (list, len) = (self.iovecs.as_ptr().cast(), self.iovecs.len() as u32);
        let entry = match self.run.way() {
            Way::Read => opcode::Readv::new(fd, list, len).offset(at).build(),
            Way::Write => opcode::Writev::new(fd, list, len).offset(at).build(),
        };
        entry.user_data(number as u64)
    }

    /// Goes on after the bytes that the kernel has moved; says whether some are left. It moves as many as it likes at a time.
    fn goes_on(&mut self, moved: i32) -> bool {
        let Ok(mut moved) = usize::try_from(moved) else { return false };
        if moved == 0 || moved >= self.bytes - self.moved {
            return false;
        }
        self.moved += moved;
        while let Some(first) = self.iovecs.first_mut() {
            if moved < first.len {
                // Never dereferenced here: it is the kernel's to go on from.
                (first.base, first.len) = (first.base.wrapping_add(moved), first.len - moved);
                break;
            }
            moved -= first.len;
            self.iovecs.remove(0);
        }
        true
    }

    fn end(self, moved: i32, queue: &Queue) {
        let result = match usize::try_from(moved) {
            Err(_) => Err(io::Error::from_raw_os_error(-moved)),
            Ok(moved) if moved == self.bytes - self.moved => Ok(()),
            // A file that is shorter, or a disk that takes no more.
            Ok(_) if self.run.way() == Way::Read => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(ErrorKind::WriteZero.into()),
        };
        self.run.end(result, queue);
    }
}

/// What the kernel may touch. While any of it is with the kernel nothing of it is freed: not even by a panic, which leaks it.
struct Flying {
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Those that the kernel has moved a part of and is to have again.
    again: Vec<usize>,
    /// Where the wait for more work reads to.
    woken: Box<[u8; 8]>,
    is_listening: bool,
}

impl Flying {
    fn new() -> Flying {
        let flights = (0..DEPTH).map(|_| None).collect();
        let (free, again) = ((0..DEPTH).collect(), Vec::new());
        Flying { flights, free, again, woken: Box::new([0; 8]), is_listening: false }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == DEPTH
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        if !self.is_empty() || self.is_listening {
            std::mem::forget(std::mem::take(&mut self.flights));
            std::mem::forget(std::mem::take(&mut self.woken));
        }
    }
}

/// The ring's side.
struct Driver {
    flying: Flying,
    queue: Queue,
    bell: Arc<OwnedFd>,
}

impl Driver {
    fn new(queue: Queue, bell: Arc<OwnedFd>) -> Driver {
        Driver { flying: Flying::new(), queue, bell }
    }

    fn run(mut self, mut ring: IoUring) {
        let mut retries = 0;
        loop {
            self.fill(&mut ring);
            if self.flying.is_empty() && !self.flying.is_listening {
                // Closed, and all is done.
                return;
            }
            match ring.submit_and_wait(1) {
                Ok(_) => retries = 0,
                // A signal, or completions that must be taken first.
                Err(error) if is_passing(&error) && retries < MAX_RETRIES => {
                    retries += 1;
                    if ring.completion().is_empty() && error.kind() != ErrorKind::Interrupted {
                        std::thread::sleep(RETRY_AFTER);
                    }
                }
                Err(error) => {
                    // Dropped, it tells everybody.
                    tracing::error!(%error, "io_uring failed; the disk takes no more transfers until the node starts anew");
                    return;
                }
            }
            self.hear(&mut ring);
        }
    }

    /// Hears of what has ended.
    fn hear(&mut self, ring: &mut IoUring) {
        for completion in ring.completion() {
            if completion.user_data() == WAKE {
                self.flying.is_listening = false;
                continue;
            }
            let number = completion.user_data() as usize;
            let Some(place) = self.flying.flights.get_mut(number) else { continue };
            if place.as_mut().is_some_and(|flight| flight.goes_on(completion.result())) {
                self.flying.again.push(number);
            } else if let Some(flight) = place.take() {
                self.flying.free.push(number);
                flight.end(completion.result(), &self.queue);
            }
        }
    }

    /// Hands the kernel what waits, as far as it may have it.
    fn fill(&mut self, ring: &mut IoUring) {
        let Driver { flying, queue, bell } = self;
        let mut submission = ring.submission();
        // Asked before the queue is looked at: a bell rung after that look wakes the thread.
        if !flying.is_listening && !queue.is_closed() {
            let read = opcode::Read::new(Fd(bell.as_raw_fd()), flying.woken.as_mut_ptr(), 8);
            // SAFETY: `woken` and the bell live as long as the driver, and `Flying` leaks the former rather than free it while
            // this read is out. There is room: the ring has more entries than are ever out together.
            flying.is_listening = unsafe { submission.push(&read.build().user_data(WAKE)) }.is_ok();
        }
        loop {
            let number = match (flying.again.pop(), flying.free.last()) {
                (Some(number), _) => number,
                (None, Some(number)) => {
                    let number = *number;
                    let Some(run) = queue.take() else { return };
                    flying.free.pop();
                    flying.flights[number] = Some(Flight::new(run));
                    number
                }
                (None, None) => return,
            };
            let Some(flight) = &flying.flights[number] else { continue };
            let entry = flight.entry(number);
            // SAFETY: the entry names memory and a file that the flight owns; it stays in `flights`, where nothing touches it,
            // until its completion has come, and `Flying` leaks it rather than free it before.
            let is_in = unsafe { submission.push(&entry) }.is_ok();
            if !is_in && let Some(flight) = flying.flights[number].take() {
                flying.free.push(number);
                flight.end(-rustix::io::Errno::AGAIN.raw_os_error(), queue);
            }
        }
    }
}

/// Says whether a ring that did not take what was handed to it may take it later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::ResourceBusy)
}

impl Drop for Driver {
    /// However the thread ends: who waits for what the kernel has, or for what it was not handed yet, hears of it.
    fn drop(&mut self) {
        self.queue.break_off();
        for flight in self.flying.flights.iter_mut().flatten() {
            flight.run.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::buffer::Buffers;
    use std::fs::File;
    use std::io::Write;

    /// A read that does not end while nobody writes, and what does.
    fn hanging(buffers: &Buffers) -> (Transfer, io::PipeWriter) {
        let (reads, writes) = io::pipe().expect("a pipe");
        let pieces = vec![Piece::Own(buffers.take(4096))];
        (
            Transfer {
                file: Arc::new(File::from(OwnedFd::from(reads))),
                at: 0,
                way: Way::Read,
                is_asked: true,
                pieces,
                holds: None,
            },
            writes,
        )
    }

    fn has_uring() -> bool {
        // Where there is none, threads move the bytes, and there is nothing to test here.
        ring().is_ok()
    }

    #[test]
    fn who_waits_for_a_ring_that_breaks_is_told() {
        if !has_uring() {
            return;
        }
        let buffers = Buffers::new([]).expect("a little memory");
        let queue = Queue::new(16);
        let (transfer, _writes) = hanging(&buffers);
        let held = Arc::new(());
        let (mut with_kernel, _) = queue.push(Transfer { holds: Some(Box::new(held.clone())), ..transfer });
        let mut ring = ring().expect("there is one");
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("a bell"));
        let mut driver = Driver::new(queue.clone(), bell);
        driver.fill(&mut ring);
        ring.submit().expect("the kernel takes it");
        let (mut waiting, _) = queue.push(hanging(&buffers).0);
        drop(driver);
        for waits in [&mut with_kernel, &mut waiting] {
            let done = waits.try_recv().expect("it has ended");
            assert_eq!(done.result.expect_err("it failed").kind(), ErrorKind::BrokenPipe);
        }
        assert_eq!(Arc::strong_count(&held), 2, "what the kernel may write to is not free");
    }

    #[test]
    fn the_rest_of_what_the_kernel_has_moved_in_part_is_moved_too() {
        if !has_uring() {
            return;
        }
        let buffers = Buffers::new([]).expect("a little memory");
        let queue = Queue::new(16);
        let (transfer, mut writes) = hanging(&buffers);
        // Of two pieces: a part ends within the first, one at its end, one within the second.
        let pieces = vec![Piece::Own(buffers.take(4096)), Piece::Own(buffers.take(4096))];
        let (mut waits, _) = queue.push(Transfer { pieces, ..transfer });
        let sent: Vec<u8> = (0..8192u32).map(|at| (at % 251) as u8).collect();
        let mut ring = ring().expect("there is one");
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("a bell"));
        let mut driver = Driver::new(queue.clone(), bell);
        for part in [&sent[..1000], &sent[1000..4096], &sent[4096..5000], &sent[5000..]] {
            assert!(waits.try_recv().is_err(), "it has not all");
            writes.write_all(part).expect("the pipe has room");
            driver.fill(&mut ring);
            ring.submit_and_wait(1).expect("the kernel takes it");
            driver.hear(&mut ring);
        }
        let done = waits.try_recv().expect("it has ended");
        done.result.expect("all came");
        let came: Vec<u8> = done.pieces.iter().flat_map(|piece| piece.bytes().to_vec()).collect();
        assert!(came == sent);
    }

    #[test]
    fn a_ring_whose_transfer_hangs_is_left_behind() {
        if !has_uring() {
            return;
        }
        let buffers = Buffers::new([]).expect("a little memory");
        let ring = Uring::start(16).expect("there is one");
        let (transfer, _writes) = hanging(&buffers);
        let mut waits = ring.submit(transfer);
        let (told, ended) = mpsc::channel();
        std::thread::spawn(move || {
            drop(ring);
            let _ = told.send(());
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("it does not wait for the kernel");
        assert!(waits.try_recv().is_err(), "and the kernel has it still");
    }
}
