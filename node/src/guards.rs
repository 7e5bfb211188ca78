//! What a connection holds of a device actor's blocks. Dropping a guard is what the actor hears: it drains the returns
//! before each message. The typed way of a block into sight: [`WriteGuard`] → [`Verified`] → sealed by the actor; there
//! is no other, so a store that failed or stopped half-way is never seen.

use crate::actors::shrink::Shrunk;
use kvhive_cache::{BlockId, CopyTicket, ShrinkTicket, WriteTicket};
use kvhive_gpu::{ReadFrame, WriteFrame};
use kvhive_protocol::BlockHeader;
use std::sync::{Arc, Mutex};

/// What came back to an actor.
pub(crate) enum Return {
    /// A reader has gone.
    Reader(BlockId),
    /// A write ended without a block.
    Write(WriteTicket),
    /// A copy between tiers has ended, with its frame if it worked.
    Copy(CopyTicket, Option<ReadFrame>),
    /// A shrink has ended.
    Shrunk(ShrinkTicket, BlockId, Shrunk),
}

/// Returns on their way to one life of an actor. As many as there are guards at most.
#[derive(Clone, Default)]
pub(crate) struct Returns(Arc<Mutex<Vec<Return>>>);

impl Returns {
    /// Says whether both lead to the same life of an actor.
    fn is_same(&self, other: &Returns) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn push(&self, back: Return) {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner()).push(back);
    }

    /// Takes what has come back since the last call; `room` is left in its place, to keep its memory.
    pub(crate) fn take(&self, room: &mut Vec<Return>) {
        room.clear();
        std::mem::swap(&mut *self.0.lock().unwrap_or_else(|poison| poison.into_inner()), room);
    }
}

/// A reader's hold on a block: its bytes stay as they are until this is dropped.
pub(crate) struct ReadGuard {
    frame: Option<ReadFrame>,
    header: BlockHeader,
    id: BlockId,
    returns: Returns,
}

impl ReadGuard {
    pub(crate) fn new(frame: ReadFrame, header: BlockHeader, id: BlockId, returns: Returns) -> ReadGuard {
        ReadGuard { frame: Some(frame), header, id, returns }
    }

    pub(crate) fn header(&self) -> &BlockHeader {
        &self.header
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.frame.as_ref().map_or(&[], |frame| frame.bytes())
    }
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        // The frame first: the shard counts it free when it hears of this.
        self.frame = None;
        self.returns.push(Return::Reader(self.id));
    }
}

/// A writer's hold on the frame of a block that nobody sees yet.
pub(crate) struct WriteGuard {
    write: Option<Write>,
    returns: Returns,
}

struct Write {
    frame: WriteFrame,
    header: BlockHeader,
    ticket: WriteTicket,
}

impl WriteGuard {
    pub(crate) fn new(
        frame: WriteFrame,
        header: BlockHeader,
        ticket: WriteTicket,
        returns: Returns,
    ) -> WriteGuard {
        WriteGuard { write: Some(Write { frame, header, ticket }), returns }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.write.as_mut().map_or(&mut [], |write| write.frame.bytes_mut())
    }

    /// Turns into a verified block when `digest`, taken of its frame's bytes after the last copy, is its header's.
    pub(crate) fn verify(mut self, digest: u64) -> Option<Verified> {
        let write = self.write.take_if(|write| write.header.digest == digest)?;
        let Write { frame, header, ticket } = write;
        Some(Verified { frame: Some(frame.seal()), header, ticket, returns: self.returns.clone() })
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        if let Some(Write { frame, ticket, .. }) = self.write.take() {
            drop(frame);
            self.returns.push(Return::Write(ticket));
        }
    }
}

/// A block whose bytes were checked in its frame, and that nobody sees yet.
pub(crate) struct Verified {
    frame: Option<ReadFrame>,
    header: BlockHeader,
    ticket: WriteTicket,
    returns: Returns,
}

impl Verified {
    /// Says whether the write began in the life of an actor that `returns` lead to.
    pub(crate) fn is_of(&self, returns: &Returns) -> bool {
        self.returns.is_same(returns)
    }

    pub(crate) fn ticket(&self) -> WriteTicket {
        self.ticket
    }

    /// Gives the block over to the actor that seals it.
    pub(crate) fn take(mut self) -> Option<(ReadFrame, BlockHeader)> {
        Some((self.frame.take()?, self.header))
    }
}

impl Drop for Verified {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            drop(frame);
            self.returns.push(Return::Write(self.ticket));
        }
    }
}
