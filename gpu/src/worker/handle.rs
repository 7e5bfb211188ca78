//! A node's side of its worker: a process that is started, told, heard, and killed at will.

use super::channel::{self, Channel};
use super::message::{Answer, Command, Setup};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// A worker that has closed its end has so long to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(1);

/// A worker. Dropped, it is killed.
pub struct Worker {
    shared: Arc<Shared>,
    process: u32,
}

struct Shared {
    channel: Channel,
    /// Locked for short: to kill it, or to see whether it has ended.
    child: Mutex<Child>,
}

/// What is heard of a worker, in this order: answers, then that it is gone, then that it has ended.
#[derive(Debug)]
pub enum Heard {
    /// An answer.
    Answer(Answer),
    /// It has closed its end, or said what is no answer and is killed for that: no answer comes any more. It may still touch the slab.
    Gone,
    /// Its process has ended, and with it all that it had of the GPU: it touches the slab no more.
    Ended(ExitStatus),
}

/// Why a worker was not told something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TellError {
    /// It does not read what it was told before: it hangs, or has too much to do.
    #[error("the GPU's worker does not read what it is told")]
    Full,
    /// It is gone.
    #[error("the GPU's worker is gone")]
    Gone,
    /// There is more in it than may be, or what makes no sense.
    #[error("the command is not one that may be sent: too many extents, or too large, or too long a time")]
    Senseless,
}

impl Worker {
    /// Starts a worker: a program that calls [`super::serve`] with its standard input. The slab's handle is lent to it.
    ///
    /// Each thing that is heard of it is told to `hear`, from a thread of its own, which must not wait there: a worker whose answers are not
    /// taken ends itself. What NCCL reads from the environment is set, unless it is set already.
    ///
    /// # Errors
    /// When the program cannot be started, or no thread can: then it has ended.
    pub fn start(
        mut program: std::process::Command,
        setup: &Setup,
        slab: OwnedFd,
        mut hear: impl FnMut(Heard) + Send + 'static,
    ) -> io::Result<Worker> {
        let (channel, there) = Channel::pair()?;
        // A group of its own: what is typed at the node's terminal is the node's to hear, which lets this one go when it ends.
        program.stdin(Stdio::from(there)).stdout(Stdio::null()).process_group(0);
        // What each pair takes of the GPU; one order for all communicators of a GPU; no port that is the same for all processes.
        let buffer = setup.buffer_bytes.map(|bytes| ("NCCL_BUFFSIZE", bytes.to_string()));
        let rest = [("NCCL_LAUNCH_ORDER_IMPLICIT", "1".to_owned()), ("NCCL_RAS_ENABLE", "0".to_owned())];
        for (name, value) in buffer.into_iter().chain(rest) {
            let is_said =
                program.get_envs().any(|(said, _)| said == name) || std::env::var_os(name).is_some();
            if !is_said {
                program.env(name, value);
            }
        }
        let child = program.spawn()?;
        // The other end is the child's alone from here on: it was given away with the command's standard input.
        drop(program);
        let process = child.id();
        let shared = Arc::new(Shared { channel, child: Mutex::new(child) });
        let worker = Worker { shared: shared.clone(), process };
        // A program that has ended already is heard of as one that does later.
        let _ = shared.channel.send(&setup.encode(), Some(slab.as_fd()), false);
        let thread = std::thread::Builder::new().name("gpu-worker".to_owned());
        let begun = thread.spawn(move || {
            let mut room = channel::room();
            let is_closed = loop {
                let Ok(Some(received)) = shared.channel.receive(&mut room) else { break true };
                match Answer::decode(&room[..received.bytes]) {
                    Ok(answer) => hear(Heard::Answer(answer)),
                    // Whatever it is that speaks there, it is no worker.
                    Err(_) => break false,
                }
            };
            hear(Heard::Gone);
            let ended = if is_closed { shared.wait(Some(GRACE)) } else { None };
            let ended = ended.or_else(|| {
                shared.kill();
                shared.wait(None)
            });
            // Nobody else waits for it: it has ended, whatever the system says.
            hear(Heard::Ended(ended.unwrap_or_default()));
        });
        if let Err(error) = begun {
            // Nobody else waits for it, and until somebody does its process is not gone.
            worker.shared.kill();
            worker.shared.wait(None);
            return Err(error);
        }
        Ok(worker)
    }

    /// Tells it something. Never waits.
    ///
    /// # Errors
    /// [`TellError`]; a worker that does not read is one to kill.
    pub fn tell(&self, command: &Command) -> Result<(), TellError> {
        let bytes = command.encode().ok_or(TellError::Senseless)?;
        self.shared.channel.send(&bytes, None, false).map_err(|errno| match errno {
            Errno::AGAIN | Errno::NOBUFS => TellError::Full,
            _ => TellError::Gone,
        })
    }

    /// Returns its process's number.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Kills it, whatever it does. That it has ended is heard.
    pub fn kill(&self) {
        self.shared.kill();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.kill();
    }
}

impl Shared {
    fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails where the process has ended, and is not sent to another of the same number.
        let _ = child.kill();
        self.channel.close();
    }

    /// Waits until the process has ended, so long at most; one that was killed may yet be where the system waits for a device. Returns none
    /// where it has not, or where that is not known.
    fn wait(&self, limit: Option<Duration>) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            let looked = self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
            match looked {
                Ok(Some(status)) => return Some(status),
                Ok(None) if limit.is_none_or(|limit| begun.elapsed() < limit) => std::thread::sleep(LOOK),
                _ => return None,
            }
        }
    }
}
