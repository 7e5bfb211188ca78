//! What a connection holds of a device actor's blocks. Dropping a guard is what the actor hears: it drains the returns
//! before each message. The typed way of a block into sight: [`WriteGuard`] → [`Landing`] → [`Verified`] → sealed by the actor; there
//! is no other, so a store that failed or stopped half-way is never seen.

use crate::actors::shrink::Shrunk;
use crate::disk::{Payload, Place};
use crate::far::{FarGuard, Source, Unsound};
use crate::frames::{Brought, Frame, Fresh, FreshGpu, GpuFrame};
use kvhive_cache::{BlockId, CopyTicket, ShrinkTicket, WriteTicket};
use kvhive_gpu::worker::Extent;
use kvhive_gpu::{ReadFrame, SharedPlace};
use kvhive_protocol::BlockHeader;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// What came back to an actor.
pub(crate) enum Return {
    /// A reader has gone.
    Reader(BlockId),
    /// A write ended without a block, and its frame is free.
    Write(WriteTicket),
    /// A write ended without a block, and something may write to its frame yet. Its guard goes later.
    GivenUp(WriteTicket),
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
    Frame(Frame),
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

/// A copy between tiers under way. Dropped, it has ended, well if there is where its bytes are then.
pub(crate) struct CopyEnd {
    ticket: CopyTicket,
    returns: Returns,
    rest: Option<Rest>,
}

impl CopyEnd {
    pub(crate) fn new(ticket: CopyTicket, returns: Returns) -> CopyEnd {
        CopyEnd { ticket, returns, rest: None }
    }

    /// Ends it.
    pub(crate) fn with(mut self, rest: Option<Rest>) {
        self.rest = rest;
    }
}

impl Drop for CopyEnd {
    fn drop(&mut self) {
        self.returns.push(Return::Copy(self.ticket, self.rest.take()));
    }
}

/// One reader, as the shard counts them. The actor hears of it when it is dropped.
pub(crate) struct Pin {
    id: BlockId,
    returns: Returns,
}

impl Pin {
    /// Tells the actor something of the block.
    pub(crate) fn push(&self, what: impl FnOnce(BlockId) -> Return) {
        self.returns.push(what(self.id));
    }

    /// Tells the actor whether a block on disk that is fetched has come.
    pub(crate) fn tell_brought(&self, is_fetched: bool, came: bool) {
        if is_fetched {
            self.push(|id| Return::Brought(id, came));
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.returns.push(Return::Reader(self.id));
    }
}

/// The bytes that a reader holds.
pub(crate) enum Held {
    Frame(ReadFrame),
    /// Read from disk.
    Read(Payload),
    /// Copied from a GPU.
    Brought(Brought),
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
        ReadGuard::of(Held::Frame(frame), header, Pin { id, returns })
    }

    pub(crate) fn of(held: Held, header: BlockHeader, pin: Pin) -> ReadGuard {
        ReadGuard { held, header, _pin: pin }
    }

    pub(crate) fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// Says that the block's bytes are of no use: it goes, and can be stored anew.
    pub(crate) fn report_lost(&self) {
        self._pin.push(Return::Lost);
    }

    /// Looks at the block's bytes; one that is not what was stored goes.
    ///
    /// # Errors
    /// [`Unsound::Damaged`].
    pub(crate) fn check(&self) -> Result<(), Unsound> {
        let checked = self.header.check_bytes(self.bytes()).map_err(|_| Unsound::Damaged);
        if checked.is_err() {
            self.report_lost();
        }
        checked
    }

    /// Returns where other processes see the block's bytes, if they can.
    pub(crate) fn shared_place(&self) -> Option<SharedPlace> {
        match &self.held {
            Held::Frame(frame) => frame.shared_place(),
            Held::Read(_) | Held::Brought(_) => None,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Frame(frame) => frame.bytes(),
            Held::Read(payload) => payload.bytes(),
            Held::Brought(brought) => brought.bytes(),
        }
    }
}

/// Why the bytes of a block that must be brought are not at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unread {
    /// They did not come in time. The block is where it was.
    Late,
    /// They are no more, or the disk has something else: the block is lost, and counted.
    Lost,
}

/// A block that is held for a reader.
pub(crate) enum Lent {
    /// Its bytes are at hand.
    Guard(ReadGuard),
    /// Its bytes must be brought first.
    Far(FarGuard),
}

impl Lent {
    pub(crate) fn header(&self) -> &BlockHeader {
        match self {
            Lent::Guard(guard) => guard.header(),
            Lent::Far(far) => far.header(),
        }
    }

    pub(crate) fn new(
        rest: &Rest,
        header: BlockHeader,
        id: BlockId,
        returns: Returns,
        is_fetched: bool,
    ) -> Lent {
        let far = |source, returns| Lent::Far(FarGuard::new(source, header, Pin { id, returns }, is_fetched));
        match rest {
            Rest::Frame(Frame::Host(frame)) => {
                Lent::Guard(ReadGuard::new(frame.clone(), header, id, returns))
            }
            Rest::Frame(Frame::Gpu(frame)) => far(Source::Gpu(frame.clone()), returns),
            Rest::Record(place) => far(Source::Disk(place.clone()), returns),
        }
    }
}

/// A writer's hold on the frame of a block that nobody sees yet.
pub(crate) struct WriteGuard {
    write: Option<Write>,
    returns: Returns,
}

struct Write {
    frame: Fresh,
    header: BlockHeader,
    ticket: WriteTicket,
}

/// Writes whose frames a thread or a copy has that a GPU keeps waiting. Who waits for it no longer, or is cancelled, gives them up: their frames go when
/// the GPU comes back, and until then their blocks can be stored elsewhere.
#[derive(Default)]
pub(crate) struct UnderWay(Vec<(WriteTicket, Returns)>);

impl UnderWay {
    pub(crate) fn add(&mut self, guard: &WriteGuard) {
        self.0.extend(guard.write.as_ref().map(|write| (write.ticket, guard.returns.clone())));
    }

    /// Hears that the thread has let go of them.
    pub(crate) fn end(mut self) {
        self.0.clear();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(ticket, returns)| returns.push(Return::GivenUp(ticket)));
    }
}

impl WriteGuard {
    pub(crate) fn new(
        frame: Fresh,
        header: BlockHeader,
        ticket: WriteTicket,
        returns: Returns,
    ) -> WriteGuard {
        WriteGuard { write: Some(Write { frame, header, ticket }), returns }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.write.as_mut().map_or(&mut [], |write| write.frame.bytes_mut())
    }

    /// Returns where its frame is in its GPU's slab, if it is on a GPU.
    pub(crate) fn extent(&self) -> Option<Extent> {
        match &self.write.as_ref()?.frame {
            Fresh::Host(_) => None,
            Fresh::Gpu(frame) => Some(frame.extent()),
        }
    }

    /// Ends the write, whose frame something may write to yet: the block can be stored anew, elsewhere. The frame is free when this is dropped.
    pub(crate) fn give_up(&self) {
        if let Some(write) = &self.write {
            self.returns.push(Return::GivenUp(write.ticket));
        }
    }

    /// Returns how many bytes its block has.
    pub(crate) fn header_bytes(&self) -> u64 {
        self.write.as_ref().map_or(0, |write| write.header.payload_bytes)
    }

    /// Returns its frame and what is announced of its block, for what writes it otherwise than byte by byte.
    pub(crate) fn parts_mut(&mut self) -> Option<(&mut Fresh, &BlockHeader)> {
        self.write.as_mut().map(|write| (&mut write.frame, &write.header))
    }

    /// Turns into a verified block whose digest was not known before: it was taken of what is in the frame, after that was written.
    pub(crate) fn verify_as(mut self, digest: u64) -> Option<Landing> {
        let Write { frame, header, ticket } = self.write.take()?;
        let header = BlockHeader { digest, ..header };
        let frame = match frame {
            Fresh::Host(frame) => Frame::Host(frame.seal()),
            Fresh::Gpu(frame) => frame.written(),
        };
        let returns = self.returns.clone();
        Some(Landing(Way::Landed(Verified { frame: Some(frame), header, ticket, returns, is_taken: false })))
    }

    /// Has the bytes of another frame come to its own, both on GPUs of this process. None where they do not, or not in time.
    pub(crate) async fn filled_from(mut self, from: GpuFrame) -> Option<WriteGuard> {
        let on_gpu = |write: &mut Write| matches!(write.frame, Fresh::Gpu(_));
        let mut under_way = UnderWay::default();
        under_way.add(&self);
        let Write { frame, header, ticket } = self.write.take_if(on_gpu)?;
        let Fresh::Gpu(frame) = frame else { return None };
        let (tell, told) = oneshot::channel();
        let (limit, returns) = (frame.limit(), self.returns.clone());
        // The copy has the frame, after it is no more waited for too: the write is over when it lets go of that.
        let over = Unwritten(Some((ticket, returns)));
        frame.take(from, over, move |taken| {
            if let Some((frame, mut over)) = taken
                && let Some((ticket, returns)) = over.0.take()
            {
                // Nobody may be waiting: then its write is over.
                let _ = tell.send(WriteGuard::new(Fresh::Gpu(frame), header, ticket, returns));
            }
        });
        let filled = timeout(limit, told).await.ok()?.ok()?;
        under_way.end();
        Some(filled)
    }

    /// Takes the digests of frames that were written on their GPU, there. None when it does not give them in time.
    pub(crate) async fn digests_on_gpu(guards: Vec<WriteGuard>) -> Option<(Vec<WriteGuard>, Vec<u64>)> {
        let Fresh::Gpu(first) = &guards.first()?.write.as_ref()?.frame else { return None };
        let limit = first.limit();
        let mut under_way = UnderWay::default();
        guards.iter().for_each(|guard| under_way.add(guard));
        let work = move || {
            let frames: Option<Vec<&FreshGpu>> = guards
                .iter()
                .map(|guard| match &guard.write.as_ref()?.frame {
                    Fresh::Host(_) => None,
                    Fresh::Gpu(frame) => Some(frame),
                })
                .collect();
            let digests = FreshGpu::digests(&frames?)?;
            Some((guards, digests))
        };
        let taken = timeout(limit, spawn_blocking(work)).await.ok()?;
        under_way.end();
        taken.ok()?
    }

    /// As [`WriteGuard::verify`], of a block whose bytes are in its GPU's memory already.
    pub(crate) fn verify_on_gpu(mut self, digest: u64) -> Option<Landing> {
        let is_right =
            |write: &mut Write| write.header.digest == digest && matches!(write.frame, Fresh::Gpu(_));
        let Write { frame, header, ticket } = self.write.take_if(is_right)?;
        let Fresh::Gpu(frame) = frame else { return None };
        let (frame, returns) = (Some(frame.written()), self.returns.clone());
        Some(Landing(Way::Landed(Verified { frame, header, ticket, returns, is_taken: false })))
    }

    /// Turns into a verified block when `digest`, taken of its bytes after the last copy, is its header's. Those that belong on a GPU begin
    /// to go there.
    pub(crate) fn verify(mut self, digest: u64) -> Option<Landing> {
        let Write { frame, header, ticket } = self.write.take_if(|write| write.header.digest == digest)?;
        let returns = self.returns.clone();
        match frame {
            Fresh::Host(frame) => {
                let frame = Some(Frame::Host(frame.seal()));
                Some(Landing(Way::Landed(Verified { frame, header, ticket, returns, is_taken: false })))
            }
            Fresh::Gpu(frame) => {
                let (tell, told) = oneshot::channel();
                let limit = frame.limit();
                let under_way = UnderWay(vec![(ticket, returns.clone())]);
                // The copy has the frame, after it is no more waited for too, and after its GPU is lost: the write is over when it lets go of that.
                let over = Unwritten(Some((ticket, returns)));
                frame.send(over, move |sent| {
                    if let Some((frame, mut over)) = sent
                        && let Some((ticket, returns)) = over.0.take()
                    {
                        // Nobody may be waiting: then its write is over.
                        let frame = Some(frame);
                        let _ = tell.send(Verified { frame, header, ticket, returns, is_taken: false });
                    }
                });
                Some(Landing(Way::Going { told, limit, under_way }))
            }
        }
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

/// A write whose frame a copy has. Dropped after that, it has ended without a block.
struct Unwritten(Option<(WriteTicket, Returns)>);

impl Drop for Unwritten {
    fn drop(&mut self) {
        if let Some((ticket, returns)) = self.0.take() {
            returns.push(Return::Write(ticket));
        }
    }
}

/// A block whose bytes were checked, on their way to where they belong. Dropped before they are there, its write is given up.
pub(crate) struct Landing(Way);

enum Way {
    Landed(Verified),
    /// Waited for so long.
    Going {
        told: oneshot::Receiver<Verified>,
        limit: Duration,
        under_way: UnderWay,
    },
}

impl Landing {
    /// Waits until the bytes are where they belong. None when their GPU does not take them in time: then the write is given up.
    pub(crate) async fn landed(self) -> Option<Verified> {
        match self.0 {
            Way::Landed(block) => Some(block),
            Way::Going { told, limit, under_way } => {
                let landed = timeout(limit, told).await.ok()?.ok()?;
                under_way.end();
                Some(landed)
            }
        }
    }
}

/// A block whose bytes were checked and are in its frame, and that nobody sees yet.
pub(crate) struct Verified {
    frame: Option<Frame>,
    header: BlockHeader,
    ticket: WriteTicket,
    returns: Returns,
    is_taken: bool,
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
    pub(crate) fn take(mut self) -> Option<(Frame, BlockHeader)> {
        let frame = self.frame.take()?;
        self.is_taken = true;
        Some((frame, self.header))
    }
}

impl Drop for Verified {
    fn drop(&mut self) {
        if !self.is_taken {
            drop(self.frame.take());
            self.returns.push(Return::Write(self.ticket));
        }
    }
}
