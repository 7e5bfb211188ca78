//! What a connection holds of a device actor's blocks. Dropping a guard is what the actor hears: it drains the returns
//! before each message. The typed way of a block into sight: [`WriteGuard`] → [`Verified`] → sealed by the actor; there
//! is no other, so a store that failed or stopped half-way is never seen.

use crate::actors::shrink::Shrunk;
use crate::disk::{Payload, Place, ReadError, Room};
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
    /// A copy between tiers has ended, with where the block's bytes are now if it worked.
    Copy(CopyTicket, Option<Rest>),
    /// A block on disk was fetched: its bytes came, or they did not.
    Brought(BlockId, bool),
    /// A block's record is of no use.
    Lost(BlockId),
    /// A shrink has ended.
    Shrunk(ShrinkTicket, BlockId, Shrunk),
}

/// Where the bytes of a resident block are.
pub(crate) enum Rest {
    /// In memory.
    Frame(ReadFrame),
    /// On disk.
    Record(Place),
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

/// One reader, as the shard counts them. The actor hears of it when it is dropped.
struct Pin {
    id: BlockId,
    returns: Returns,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.returns.push(Return::Reader(self.id));
    }
}

/// The bytes that a reader holds.
enum Held {
    Frame(ReadFrame),
    /// Read from disk.
    Read(Payload),
}

/// A reader's hold on a block: its bytes stay as they are until this is dropped.
pub(crate) struct ReadGuard {
    /// Goes before the pin: the shard counts the frame free when it hears of that.
    held: Held,
    header: BlockHeader,
    _pin: Pin,
}

impl ReadGuard {
    pub(crate) fn new(frame: ReadFrame, header: BlockHeader, id: BlockId, returns: Returns) -> ReadGuard {
        ReadGuard { held: Held::Frame(frame), header, _pin: Pin { id, returns } }
    }

    pub(crate) fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// Says that the block's bytes are of no use: it goes, and can be stored anew.
    pub(crate) fn report_lost(&self) {
        self._pin.returns.push(Return::Lost(self._pin.id));
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Frame(frame) => frame.bytes(),
            Held::Read(payload) => payload.bytes(),
        }
    }
}

/// A reader's hold on a block whose bytes are on disk.
pub(crate) struct RecordGuard {
    /// Goes before the pin, as a frame does.
    place: Place,
    header: BlockHeader,
    pin: Pin,
    /// It is a hit if it comes, else a miss.
    is_fetched: bool,
}

/// Why the bytes of a block on disk are not at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unread {
    /// They did not come in time. The block is where it was.
    Late,
    /// The disk has something else: the block is lost, and counted.
    Lost,
}

impl RecordGuard {
    pub(crate) fn bytes(&self) -> u64 {
        self.header.payload_bytes
    }

    /// Says whether its disk gives what it is asked for.
    pub(crate) fn disk_answers(&self) -> bool {
        self.place.store().answers()
    }

    /// Reads the block. The room that it takes is given back when the disk and the reader have let go of its memory.
    pub(crate) async fn read(self, room: Option<Room>) -> Result<ReadGuard, Unread> {
        let read = self.place.read(&self.header, room).await;
        self.tell(read.is_ok());
        let RecordGuard { place, header, pin, .. } = self;
        drop(place);
        match read {
            Ok(payload) => Ok(ReadGuard { held: Held::Read(payload), header, _pin: pin }),
            Err(ReadError::Bad(..)) => {
                pin.returns.push(Return::Lost(pin.id));
                Err(Unread::Lost)
            }
            Err(ReadError::Late) => Err(Unread::Late),
        }
    }

    /// Gives up a block that is not to be read.
    pub(crate) fn give_up(self) {
        self.place.store().count_late();
        self.tell(false);
    }

    /// Gives up a block that there was no room to read, although that was waited for.
    pub(crate) fn starve(self) {
        self.place.store().starved();
        self.tell(false);
    }

    fn tell(&self, came: bool) {
        if self.is_fetched {
            self.pin.returns.push(Return::Brought(self.pin.id, came));
        }
    }
}

/// A block that is held for a reader.
pub(crate) enum Lent {
    /// Its bytes are at hand.
    Guard(ReadGuard),
    /// Its bytes must be read first.
    Record(RecordGuard),
}

impl Lent {
    pub(crate) fn new(
        rest: &Rest,
        header: BlockHeader,
        id: BlockId,
        returns: Returns,
        is_fetched: bool,
    ) -> Lent {
        match rest {
            Rest::Frame(frame) => Lent::Guard(ReadGuard::new(frame.clone(), header, id, returns)),
            Rest::Record(place) => {
                let (place, pin) = (place.clone(), Pin { id, returns });
                Lent::Record(RecordGuard { place, header, pin, is_fetched })
            }
        }
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
