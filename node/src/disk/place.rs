//! One record: a block written to it, a block read from it. Nothing that a read gives out is unverified: the page must be of this
//! record and this block, the bytes must match its digest. What a transfer uses it keeps until it has ended, also when nobody
//! waits for it any more: its buffers with the room that they take, the record's place, the folder.

use super::buffer::{Buffer, Piece, Room, is_direct};
use super::figures::{Bad, add};
use super::queue::{Transfer, Way};
use super::record::{PAGE, PageError, RecordHeader, TenantMark, whole_pages};
use super::store::Store;
use kvhive_gpu::{ReadFrame, WriteFrame};
use kvhive_protocol::BlockHeader;
use kvhive_protocol::Slot;
use kvhive_protocol::data::StoreBlock;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thiserror::Error;

/// Why a block did not come from its record.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    /// Its record is of no use: the block is lost.
    #[error("the record is of no use ({0:?}): {1}")]
    Bad(Bad, String),
    /// It does not come in time: too many wait for the disk, or it does not answer, or nobody moves its bytes any more.
    #[error("the disk does not give it in time")]
    Late,
}

/// A place for a record, taken until its last clone is gone.
#[derive(Clone)]
pub(crate) struct Place(pub(super) Arc<Taken>);

pub(super) struct Taken {
    pub(super) store: Arc<Store>,
    pub(super) class: usize,
    pub(super) number: u32,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.store.give_back(self.class, self.number);
    }
}

/// Bytes read from a record, and checked.
pub(crate) struct Payload {
    buffer: Buffer,
    len: usize,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Payload {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[..self.len]
    }
}

/// A write under way, counted before it is looked whether the folder is still ours.
pub(super) struct Writing(Arc<Store>);

impl Writing {
    pub(super) fn begin(store: &Arc<Store>) -> Option<Writing> {
        store.writing.fetch_add(1, Ordering::SeqCst);
        let writing = Writing(store.clone());
        (!store.has_ended.load(Ordering::SeqCst)).then_some(writing)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Says whether a transfer got no answer from the disk, rather than a bad one: there was no room in the queue, nobody moves the
/// bytes any more, it was not waited for any longer, or the kernel had no memory or time for it. That is not the record's end.
pub(super) fn is_no_answer(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, QuotaExceeded, TimedOut};
    const PASSING: [Errno; 5] = [Errno::AGAIN, Errno::INTR, Errno::NOMEM, Errno::NOBUFS, Errno::CANCELED];
    match error.raw_os_error() {
        Some(number) => PASSING.iter().any(|errno| errno.raw_os_error() == number),
        None => matches!(error.kind(), BrokenPipe | QuotaExceeded | TimedOut),
    }
}

/// Says whether a transfer found no room in the queue, which says nothing of the disk.
fn is_late(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded && error.raw_os_error().is_none()
}

impl Place {
    /// Returns its store.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Writes a block to it.
    pub(crate) async fn write(
        &self,
        block: StoreBlock,
        slot: Slot,
        mark: TenantMark,
        frame: ReadFrame,
    ) -> io::Result<()> {
        // What is encrypted is a copy: the frame is read by others meanwhile.
        let as_it_is = is_direct(frame.bytes()) && !self.0.store.is_sealed();
        let body = if as_it_is { Piece::Sealed(frame) } else { self.copied(frame.bytes()) };
        self.write_piece(block, slot, mark, body).await
    }

    /// Writes a block to it whose bytes are in no frame of the host's memory.
    pub(crate) async fn write_bytes(
        &self,
        block: StoreBlock,
        slot: Slot,
        mark: TenantMark,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.write_piece(block, slot, mark, self.copied(bytes)).await
    }

    /// Returns a copy in whole pages.
    fn copied(&self, bytes: &[u8]) -> Piece {
        let mut copy = self.0.store.buffers.take(bytes.len());
        copy.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        copy.bytes_mut()[bytes.len()..].fill(0);
        Piece::Own(copy)
    }

    async fn write_piece(
        &self,
        block: StoreBlock,
        slot: Slot,
        mark: TenantMark,
        mut body: Piece,
    ) -> io::Result<()> {
        let Taken { store, class, number } = &*self.0;
        let header = RecordHeader {
            number: *number,
            frame_bytes: store.frame_bytes(*class),
            sequence: store.sequence.fetch_add(1, Ordering::Relaxed),
            mark,
            block,
            slot,
        };
        let bytes = block.header.payload_bytes;
        let mut page = store.buffers.take(PAGE);
        match store.key_for(header.key_name()).await {
            Ok(None) => header.encode(page.bytes_mut()),
            Ok(Some(key)) => {
                let whole = body.bytes_mut().get_mut(..bytes as usize).ok_or(io::ErrorKind::InvalidInput)?;
                header.seal(&key, page.bytes_mut(), whole)?;
            }
            // Its era has ended: that says nothing of the disk.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(error) => {
                let failed = Err(error);
                store.note_write(&failed);
                return failed;
            }
        }
        let (file, at) = (store.file(*class), store.at(*class, *number));
        let pieces = vec![Piece::Own(page), body];
        let writing = Writing::begin(store).ok_or(io::ErrorKind::BrokenPipe)?;
        let holds: Option<Box<dyn Send>> = Some(Box::new((self.clone(), writing)));
        let write = Transfer { file, at, way: Way::Write, is_asked: false, pieces, holds };
        let (result, _) = store.transfer(write, store.patience.other).await;
        if result.as_ref().err().is_some_and(is_late) {
            return result;
        }
        store.note_write(&result);
        if result.is_ok() {
            add(&store.figures.writes, 1);
            add(&store.figures.written_bytes, bytes);
        }
        result
    }

    /// Reads the block that this record is of into a buffer. Whoever is given room for it waits for it, and goes before all others;
    /// the room is given back when the buffer is.
    pub(crate) async fn read(&self, wanted: &BlockHeader, room: Option<Room>) -> Result<Payload, ReadError> {
        self.read_within(self.0.store.patience.fetch, wanted, room).await
    }

    /// As [`Place::read`], for memory that nobody waits for room in, and with the patience of what nobody waits for.
    pub(crate) async fn read_for(&self, wanted: &BlockHeader) -> Result<Payload, ReadError> {
        self.read_within(self.0.store.patience.other, wanted, None).await
    }

    async fn read_within(
        &self,
        limit: Duration,
        wanted: &BlockHeader,
        room: Option<Room>,
    ) -> Result<Payload, ReadError> {
        let (len, is_asked) = (wanted.payload_bytes as usize, room.is_some());
        let body = Piece::Own(self.0.store.buffers.take(len).in_room(room));
        match self.read_piece(limit, is_asked, wanted, body).await? {
            Piece::Own(buffer) => Ok(Payload { buffer, len }),
            _ => Err(ReadError::Late),
        }
    }

    /// Returns for how many bytes a frame of `frame_bytes` is best taken that [`Place::read_into`] fills.
    pub(crate) fn fitting(wanted: &BlockHeader, frame_bytes: u64) -> u64 {
        let whole = whole_pages(wanted.payload_bytes);
        if whole <= frame_bytes { whole } else { wanted.payload_bytes }
    }

    /// Reads the block that this record is of into a frame.
    pub(crate) async fn read_into(
        &self,
        wanted: &BlockHeader,
        mut frame: WriteFrame,
    ) -> Result<ReadFrame, ReadError> {
        let len = wanted.payload_bytes as usize;
        let limit = self.0.store.patience.other;
        if is_direct(frame.bytes()) {
            return match self.read_piece(limit, false, wanted, Piece::Fill(frame)).await? {
                Piece::Fill(mut frame) => {
                    frame.truncate(len);
                    Ok(frame.seal())
                }
                _ => Err(ReadError::Late),
            };
        }
        let payload = self.read_for(wanted).await?;
        frame.truncate(len);
        frame.bytes_mut().copy_from_slice(payload.bytes());
        Ok(frame.seal())
    }

    async fn read_piece(
        &self,
        limit: Duration,
        is_asked: bool,
        wanted: &BlockHeader,
        body: Piece,
    ) -> Result<Piece, ReadError> {
        let store = &self.0.store;
        let read = self.try_read(limit, is_asked, wanted, body).await;
        match &read {
            Ok(_) => {
                add(&store.figures.reads, 1);
                add(&store.figures.read_bytes, wanted.payload_bytes);
            }
            Err(error) => store.figures.count_bad(error),
        }
        read
    }

    async fn try_read(
        &self,
        limit: Duration,
        is_asked: bool,
        wanted: &BlockHeader,
        body: Piece,
    ) -> Result<Piece, ReadError> {
        let Taken { store, class, number } = &*self.0;
        if !store.answers() {
            return Err(ReadError::Late);
        }
        let (file, at) = (store.file(*class), store.at(*class, *number));
        let pieces = vec![Piece::Own(store.buffers.take(PAGE)), body];
        let holds: Option<Box<dyn Send>> = Some(Box::new(self.clone()));
        let read = Transfer { file, at, way: Way::Read, is_asked, pieces, holds };
        let (result, mut pieces) = store.transfer(read, limit).await;
        if result.as_ref().err().is_some_and(is_late) {
            return Err(ReadError::Late);
        }
        store.note_read(&result);
        if result.as_ref().err().is_some_and(is_no_answer) {
            return Err(ReadError::Late);
        }
        let bad = |bad, why: &dyn ToString| ReadError::Bad(bad, why.to_string());
        result.map_err(|error| bad(Bad::Io, &error))?;
        let (Some(mut body), Some(page)) = (pieces.pop(), pieces.pop()) else {
            return Err(bad(Bad::Io, &"its memory is gone"));
        };
        let (header, sealed) = store.open_page(page.bytes()).map_err(|error| bad(error.into(), &error))?;
        let is_this = header.number == *number && header.frame_bytes == store.frame_bytes(*class);
        if !is_this || header.block.header != *wanted {
            return Err(bad(Bad::Foreign, &"it is of another block"));
        }
        let len = wanted.payload_bytes as usize;
        if let Some(sealed) = sealed
            && !body.bytes_mut().get_mut(..len).is_some_and(|bytes| sealed.open(bytes))
        {
            return Err(bad(Bad::Torn, &"its bytes are not those that were written"));
        }
        let bytes = body.bytes().get(..len).unwrap_or_default();
        wanted.check_bytes(bytes).map_err(|error| bad(Bad::Torn, &error))?;
        Ok(body)
    }
}

impl From<PageError> for Bad {
    fn from(error: PageError) -> Bad {
        match error {
            PageError::Empty => Bad::Missing,
            PageError::Damaged => Bad::Damaged,
            PageError::Forged => Bad::Forged,
            PageError::NoKey(_) => Bad::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_told_from_a_bad_one() {
        let of_kind = |kind: io::ErrorKind| is_no_answer(&kind.into());
        assert!(
            [io::ErrorKind::TimedOut, io::ErrorKind::BrokenPipe, io::ErrorKind::QuotaExceeded].map(of_kind)
                == [true; 3]
        );
        let of_kernel = |errno: Errno| is_no_answer(&errno.into());
        assert_eq!([Errno::NOMEM, Errno::AGAIN, Errno::CANCELED].map(of_kernel), [true; 3]);
        assert_eq!([Errno::IO, Errno::NODATA, Errno::TIMEDOUT, Errno::PIPE].map(of_kernel), [false; 4]);
        assert!(!of_kind(io::ErrorKind::UnexpectedEof), "a file that is too short has no record there");
    }
}
