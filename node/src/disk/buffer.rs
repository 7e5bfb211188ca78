//! Memory that transfers read into and write from: whole pages that begin at a page, used again and again.

use super::record::{PAGE, whole_pages};
use kvhive_gpu::{Arena, ArenaError, HostDevice, ReadFrame, SizeClass, WriteFrame};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedSemaphorePermit;

/// Bytes of buffers in huge pages, a device: a transfer to or from one page after the other is many small ones to the disk.
const ARENA_BYTES: u64 = 32 << 20;
/// Buffers of one size in huge pages.
const MAX_FRAMES: u64 = 256;
/// Bytes of other buffers that are kept for their next use, a device.
const MAX_IDLE_BYTES: usize = 32 << 20;

/// Whole pages.
struct Pages {
    memory: Vec<u8>,
    /// Where the first page begins.
    start: usize,
    len: usize,
}

impl Pages {
    fn new(len: usize) -> Pages {
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Pages { memory, start, len }
    }
}

#[derive(Default)]
struct Idle {
    /// By their length.
    pages: BTreeMap<usize, Vec<Pages>>,
    bytes: usize,
}

/// Buffers that wait for their next use. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Buffers {
    arena: Arena,
    idle: Arc<Mutex<Idle>>,
}

impl Buffers {
    /// Takes memory for pages and for blocks of up to these bytes.
    pub(crate) fn new(block_bytes: impl IntoIterator<Item = u64>) -> Result<Buffers, ArenaError> {
        let sizes: BTreeSet<u64> =
            block_bytes.into_iter().map(|bytes| whole_pages(bytes.max(1))).chain([PAGE as u64]).collect();
        let part = ARENA_BYTES / sizes.len() as u64;
        let class = |frame_bytes: &u64| SizeClass {
            frame_bytes: *frame_bytes,
            frames: (part / frame_bytes).min(MAX_FRAMES) as u32,
        };
        let classes: Vec<SizeClass> = sizes.iter().map(class).collect();
        let arena = Arena::new(&HostDevice::new(u64::MAX), &classes)?;
        Ok(Buffers { arena, idle: Arc::default() })
    }

    /// Returns the most bytes that it keeps.
    pub(crate) fn most_bytes(&self) -> u64 {
        self.arena.total_bytes() + MAX_IDLE_BYTES as u64
    }

    /// Takes a buffer of whole pages that holds `bytes`; what is in it is left from before.
    pub(crate) fn take(&self, bytes: usize) -> Buffer {
        let len = bytes.next_multiple_of(PAGE);
        let class = self.arena.class_for(len as u64);
        if let Some(frame) = class.and_then(|class| self.arena.take(class, len as u64)) {
            return Buffer { memory: Memory::Frame(frame), _room: None };
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = idle.pages.get_mut(&len).and_then(Vec::pop);
        idle.bytes -= pages.as_ref().map_or(0, |pages| pages.len);
        drop(idle);
        let pages = pages.unwrap_or_else(|| Pages::new(len));
        Buffer { memory: Memory::Pages(Some(pages), self.clone()), _room: None }
    }

    fn give_back(&self, pages: Pages) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + pages.len <= MAX_IDLE_BYTES {
            idle.bytes += pages.len;
            idle.pages.entry(pages.len).or_default().push(pages);
        }
    }
}

enum Memory {
    Frame(WriteFrame),
    /// And where they go back to.
    Pages(Option<Pages>, Buffers),
}

/// What a read takes of the memory that reads may take: of its device's part, and of all of it.
pub(crate) struct Room {
    pub(crate) of_device: OwnedSemaphorePermit,
    pub(crate) of_all: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Makes room that is of one part alone.
    pub(crate) fn alone(own: OwnedSemaphorePermit) -> Room {
        Room { of_device: own, of_all: None }
    }
}

/// A buffer in use; dropped, it waits for its next.
pub(crate) struct Buffer {
    memory: Memory,
    /// Given back when the memory is, whoever has it until then.
    _room: Option<Room>,
}

impl Buffer {
    /// Takes the room that was waited for over.
    pub(crate) fn in_room(mut self, room: Option<Room>) -> Buffer {
        self._room = room;
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Frame(frame) => frame.bytes(),
            Memory::Pages(Some(pages), _) => &pages.memory[pages.start..pages.start + pages.len],
            Memory::Pages(None, _) => &[],
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Frame(frame) => frame.bytes_mut(),
            Memory::Pages(Some(pages), _) => &mut pages.memory[pages.start..pages.start + pages.len],
            Memory::Pages(None, _) => &mut [],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Pages(pages, home) = &mut self.memory
            && let Some(pages) = pages.take()
        {
            home.give_back(pages);
        }
    }
}

/// A piece of a transfer's memory, owned by the transfer while it is under way.
pub(crate) enum Piece {
    /// A buffer.
    Own(Buffer),
    /// A frame that is filled.
    Fill(WriteFrame),
    /// A frame that is written out.
    Sealed(ReadFrame),
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Piece::Own(buffer) => buffer.bytes(),
            Piece::Fill(frame) => frame.bytes(),
            Piece::Sealed(frame) => frame.bytes(),
        }
    }

    /// Returns its bytes to be read into; a sealed frame has none.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Piece::Own(buffer) => buffer.bytes_mut(),
            Piece::Fill(frame) => frame.bytes_mut(),
            Piece::Sealed(_) => &mut [],
        }
    }
}

/// Says whether memory may be read into and written from past the page cache.
pub(crate) fn is_direct(bytes: &[u8]) -> bool {
    bytes.len().is_multiple_of(PAGE) && bytes.as_ptr().align_offset(PAGE) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_whole_pages_and_used_again() {
        let buffers = Buffers::new([5000]).expect("a little memory");
        let place = |buffer: &Buffer| buffer.bytes().as_ptr();
        let first = buffers.take(5000);
        assert!(is_direct(first.bytes()) && first.bytes().len() == 2 * PAGE);
        let was = place(&first);
        drop(first);
        let (second, third) = (buffers.take(2 * PAGE), buffers.take(2 * PAGE));
        assert!(place(&second) == was && place(&third) != was);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_taken_is_not() {
        let buffers = Buffers::new([1 << 20]).expect("a little memory");
        let mut taken: Vec<Buffer> = (0..100).map(|_| buffers.take(1 << 20)).collect();
        for (number, buffer) in taken.iter_mut().enumerate() {
            assert!(is_direct(buffer.bytes()) && buffer.bytes().len() == 1 << 20);
            buffer.bytes_mut().fill(number as u8);
        }
        assert!(taken.iter().enumerate().all(|(at, buffer)| buffer.bytes().iter().all(|b| *b == at as u8)));
        drop(taken);
        let idle = buffers.idle.lock().expect("whole");
        assert!(idle.bytes <= MAX_IDLE_BYTES && idle.bytes > 0);
        drop(idle);
        // No block is so large that there is no buffer for it.
        assert_eq!(buffers.take(100 << 20).bytes().len(), 100 << 20);
        assert!(Buffers::new([64 << 20, 4096]).expect("a little memory").most_bytes() <= 64 << 20);
    }
}
