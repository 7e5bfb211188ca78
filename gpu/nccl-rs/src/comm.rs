//! One rank of a communicator.
#![allow(unsafe_code, reason = "calls NCCL with addresses")]

use crate::error::NcclError;
use crate::library::{Handle, IN_PROGRESS, RawConfig, RawId, SUCCESS, Table, call};
use crate::nccl::{Nccl, UniqueId};
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// `ncclUint8`.
const BYTES: c_int = 1;

/// Which of how many.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rank {
    /// Its number, from 0.
    pub at: u32,
    /// How many there are.
    pub of: u32,
}

/// How much of a GPU a communicator takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// The fewest thread blocks that one operation runs on.
    pub min_ctas: u32,
    /// The most: each has buffers of its own.
    pub max_ctas: u32,
}

/// How far a communicator is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// What was asked of it last goes on: nothing else may be asked.
    InProgress,
    /// It waits for what is asked of it. What it sends and receives may be under way.
    Ready,
}

/// A rank of a communicator, which is this process. Dropped, it is aborted.
///
/// NCCL wants all calls for the communicators of one GPU to come from one thread, with the GPU's context current; nothing here sees
/// to that.
pub struct Comm {
    nccl: Arc<Nccl>,
    /// Null once it was let go of.
    raw: Handle,
}

// SAFETY: NCCL lets any thread call, one at a time, and no method is called but by who has this alone.
unsafe impl Send for Comm {}

/// Operations that begin together.
pub struct Group<'a> {
    table: &'a Table,
}

impl Comm {
    /// Begins to join a communicator, as soon as the others do. [`Comm::state`] says when it is ready.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn join(nccl: &Arc<Nccl>, id: &UniqueId, rank: Rank, config: Config) -> Result<Comm, NcclError> {
        let mut raw_config = RawConfig {
            blocking: 0,
            min_ctas: number(config.min_ctas),
            max_ctas: number(config.max_ctas),
            ..RawConfig::default()
        };
        // Before the call: what it makes is let go of, whatever it answers.
        let mut comm = Comm { nccl: nccl.clone(), raw: std::ptr::null_mut() };
        let (of, at) = (number(rank.of), number(rank.at));
        // SAFETY: the function reads the id and the configuration before it returns, and writes one handle.
        unsafe {
            call!(
                &nccl.table,
                ncclCommInitRankConfig(&raw mut comm.raw, of, RawId(id.0), at, &raw mut raw_config)
            )
        }?;
        Ok(comm)
    }

    /// Says how far it is.
    ///
    /// # Errors
    /// What has gone wrong in it, now or while something was under way: it is lost, and can only be aborted.
    pub fn state(&self) -> Result<State, NcclError> {
        let table = &self.nccl.table;
        let mut state = SUCCESS;
        // SAFETY: the handle is this one's own; the function writes one number.
        unsafe { call!(table, ncclCommGetAsyncError(self.raw, &raw mut state)) }?;
        match state {
            SUCCESS => Ok(State::Ready),
            IN_PROGRESS => Ok(State::InProgress),
            code => Err(table.error("ncclCommGetAsyncError", code)),
        }
    }

    /// Begins some operations of communicators together; [`Comm::state`] of each says when they have been told to the GPU, and its stream
    /// when they are over.
    ///
    /// # Errors
    /// What the closure says, else what NCCL says of them as a group.
    pub fn group(
        &self,
        operations: impl FnOnce(&Group<'_>) -> Result<(), NcclError>,
    ) -> Result<(), NcclError> {
        let table = &self.nccl.table;
        // SAFETY: the function takes nothing; a group is this thread's.
        unsafe { call!(table, ncclGroupStart()) }?;
        let begun = operations(&Group { table });
        // Ended in any case: one that stays open would swallow what comes later.
        // SAFETY: as above.
        let ended = unsafe { call!(table, ncclGroupEnd()) };
        begun.and(ended)
    }

    /// Begins to end it in good order, once all that is under way is over. [`State::Ready`] says when that is done at all ranks.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn finalize(&mut self) -> Result<(), NcclError> {
        // SAFETY: the handle is this one's own.
        unsafe { call!(&self.nccl.table, ncclCommFinalize(self.raw)) }
    }

    /// Lets go of one that was finalized.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn destroy(mut self) -> Result<(), NcclError> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        // SAFETY: the handle is this one's own, and used no more.
        unsafe { call!(&self.nccl.table, ncclCommDestroy(raw)) }
    }

    /// Lets go of it, whatever is under way.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn abort(mut self) -> Result<(), NcclError> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), NcclError> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: the handle is this one's own, and used no more.
        unsafe { call!(&self.nccl.table, ncclCommAbort(raw)) }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        // What fails now has nobody to be told to.
        let _ = self.let_go();
    }
}

impl Group<'_> {
    /// Sends bytes to another rank, which receives as many.
    ///
    /// # Safety
    /// The bytes are there, and written by nobody, until the stream has come past this or the communicator was aborted. The stream is one of
    /// the GPU whose context is current.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub unsafe fn send(&self, comm: &Comm, to: u32, span: Span, stream: usize) -> Result<(), NcclError> {
        let from = std::ptr::with_exposed_provenance::<c_void>(span.address as usize);
        let (peer, stream) = (number(to), std::ptr::with_exposed_provenance_mut(stream));
        // SAFETY: as the caller says.
        unsafe { call!(self.table, ncclSend(from, span.bytes, BYTES, peer, comm.raw, stream)) }
    }

    /// Receives bytes of another rank, which sends as many.
    ///
    /// # Safety
    /// The bytes are there, and used by nobody, until the stream has come past this or the communicator was aborted. The stream is one of the
    /// GPU whose context is current.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub unsafe fn receive(&self, comm: &Comm, from: u32, span: Span, stream: usize) -> Result<(), NcclError> {
        let to = std::ptr::with_exposed_provenance_mut::<c_void>(span.address as usize);
        let (peer, stream) = (number(from), std::ptr::with_exposed_provenance_mut(stream));
        // SAFETY: as the caller says.
        unsafe { call!(self.table, ncclRecv(to, span.bytes, BYTES, peer, comm.raw, stream)) }
    }

    /// Has bytes of one rank be those of all, each of which calls this.
    ///
    /// # Safety
    /// As for [`Group::send`] at the root, and as for [`Group::receive`] elsewhere.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub unsafe fn broadcast(
        &self,
        comm: &Comm,
        root: u32,
        span: Span,
        stream: usize,
    ) -> Result<(), NcclError> {
        let at = std::ptr::with_exposed_provenance_mut::<c_void>(span.address as usize);
        let (root, stream) = (number(root), std::ptr::with_exposed_provenance_mut(stream));
        // SAFETY: as the caller says; a root sends from where the others receive.
        unsafe {
            call!(self.table, ncclBroadcast(at.cast_const(), at, span.bytes, BYTES, root, comm.raw, stream))
        }
    }
}

/// Bytes of a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span {
    /// Where they are.
    pub address: u64,
    /// How many.
    pub bytes: usize,
}

/// Returns a number as NCCL takes it; one that is none of any communicator is refused by it.
fn number(number: u32) -> c_int {
    c_int::try_from(number).unwrap_or(-1)
}
