//! A worker's process: it is set up, reads what it is told on one thread and does it on another, and ends with its node.

use super::channel::{self, Channel};
use super::issuer::Issuer;
use super::message::{Answer, Command, Garbled, Setup};
use super::watch::Watch;
use crate::cuda::CudaError;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use thiserror::Error;

/// Commands that were read and not begun; more are left in the socket.
const WAITING: usize = 256;

/// Why a worker could not go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// What it was started with is no socket of a node.
    #[error("standard input is no socket of a node: {0}")]
    Socket(Errno),
    /// The node said nothing, or lent no memory.
    #[error("the node has said nothing")]
    NoSetup,
    /// The node said something else.
    #[error(transparent)]
    Garbled(#[from] Garbled),
    /// No thread could be started.
    #[error("no thread could be started: {0}")]
    Thread(io::Error),
    /// The GPU has failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Works for the node at the other end of this socket until it is told to end, or the node is gone.
///
/// The process is this function's alone: it is ended at once when a call hangs, and NCCL's environment is that of the whole process.
///
/// # Errors
/// Why it could not go on. A GPU or a library that is not there is an answer to the node, and no error.
pub fn serve(socket: OwnedFd) -> Result<(), ServeError> {
    // It may be ended where it stands, and what it maps is a GPU's. Without the right to say so, there may be a large file.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let channel = Arc::new(Channel::over(socket));
    let mut room = channel::room();
    let first = channel.receive(&mut room).map_err(ServeError::Socket)?.ok_or(ServeError::NoSetup)?;
    let setup = Setup::decode(&room[..first.bytes])?;
    let slab = first.file.ok_or(ServeError::NoSetup)?;
    let watch = Watch::start(setup.start, setup.watchdog).map_err(ServeError::Thread)?;
    let mut issuer = match Issuer::open(&setup, slab, channel.clone(), watch.clone()) {
        Ok(issuer) => issuer,
        Err(error) => {
            // A node that is gone hears nothing.
            let unfit = Answer::Unfit { is_lasting: error.is_lasting(), said: error.to_string() };
            let _ = channel.send(&unfit.encode(), None, true);
            return Ok(());
        }
    };
    let (tell, told) = sync_channel(WAITING);
    let reader = channel.clone();
    let thread = std::thread::Builder::new().name("told".to_owned());
    let reading = thread.spawn(move || {
        // What is no command ends it, as a socket does that is closed: the issuer finds that nothing comes any more.
        while let Ok(Some(received)) = reader.receive(&mut room) {
            let Ok(command) = Command::decode(&room[..received.bytes]) else { break };
            if tell.send(command).is_err() {
                break;
            }
        }
    });
    let reading = reading.map_err(ServeError::Thread)?;
    let served = issuer.run(&told);
    // What is let go of now, and what libraries do when a process exits, may hang as well.
    watch.back_in(setup.watchdog);
    drop((issuer, told));
    channel.close();
    let _ = reading.join();
    watch.back_in(setup.watchdog);
    Ok(served?)
}
