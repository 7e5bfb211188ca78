//! The threads of a backend, and their end: waited for, but not for ever, for a disk that hangs holds whoever asked it.

use std::io;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle, ThreadId};
use std::time::Duration;

/// Threads that have not ended within this are left behind, with what they hold.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Threads that end together.
pub(super) struct Crew {
    threads: Vec<JoinHandle<()>>,
    /// Every thread has a clone for as long as it runs.
    alive: Option<mpsc::Sender<()>>,
    all_ended: Mutex<mpsc::Receiver<()>>,
}

impl Crew {
    /// Has no threads yet.
    pub(super) fn new() -> Crew {
        let (alive, all_ended) = mpsc::channel();
        Crew { threads: Vec::new(), alive: Some(alive), all_ended: Mutex::new(all_ended) }
    }

    /// Starts one.
    pub(super) fn add(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let alive = self.alive.clone();
        let work = move || {
            let _alive = alive;
            work();
        };
        self.threads.push(Builder::new().name(name).spawn(work)?);
        Ok(())
    }

    /// Waits a moment for all of them, which were told to end. Says whether they have; a thread of the crew itself waits for none.
    pub(super) fn end(&mut self) -> bool {
        let own: ThreadId = std::thread::current().id();
        if self.threads.iter().any(|thread| thread.thread().id() == own) {
            return true;
        }
        self.alive = None;
        let all_ended = self.all_ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if all_ended.recv_timeout(END_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("a thread of the disk hangs in the kernel, and is left behind");
            return false;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the disk panicked");
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_is_left_behind() {
        let (go, waits) = mpsc::channel::<()>();
        let mut crew = Crew::new();
        crew.add("ends".to_owned(), || ()).expect("a thread");
        let (told, ended) = mpsc::channel();
        crew.add("hangs".to_owned(), move || {
            let _ = waits.recv();
            let _ = told.send(());
        })
        .expect("a thread");
        assert!(!crew.end());
        drop(go);
        ended.recv().expect("it goes on by itself");
    }

    #[test]
    fn who_does_not_hang_is_waited_for() {
        let (told, ended) = mpsc::channel();
        let mut crew = Crew::new();
        for _ in 0..3 {
            let told = told.clone();
            crew.add("works".to_owned(), move || told.send(()).expect("heard")).expect("a thread");
        }
        assert!(crew.end());
        assert_eq!(ended.try_iter().count(), 3);
    }
}
