//! Handles on frames. One writer or many readers, never both; the last handle gives the frame back.
#![allow(
    unsafe_code,
    reason = "turns a frame's place in the slab into a slice; the handles' counts keep it sound"
)]

use crate::arena::{ClassId, Shared};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Freed frames are filled with this in debug builds: a use after free shows.
const POISON: u8 = 0xDB;

/// A frame's place in its arena.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameId {
    /// Its size class.
    pub class: ClassId,
    /// Its number within the class.
    pub index: u32,
}

/// Where a frame's bytes are, shared by both kinds of handle.
struct Place {
    arena: Arc<Shared>,
    frame: FrameId,
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: the address points into a slab that `arena` keeps mapped; the handles below decide who reads and who writes.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    fn slice(&self) -> &[u8] {
        // SAFETY: the frame holds `len` bytes inside the mapped slab. A `WriteFrame` is the only handle on its frame, so
        // its shared borrow excludes its own `bytes_mut`; while `ReadFrame`s exist nobody writes.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }

    fn poison(&mut self) {
        if cfg!(debug_assertions) {
            // SAFETY: called by the last handle before the frame is given back: nobody else reads or writes it.
            unsafe { self.address.as_ptr().write_bytes(POISON, self.len) };
        }
    }
}

/// The only handle on a frame that is being written. Dropped unsealed, it gives the frame back.
pub struct WriteFrame {
    place: Option<Place>,
}

impl WriteFrame {
    pub(crate) fn new(arena: Arc<Shared>, frame: FrameId, len: usize) -> Self {
        let address = arena.address(frame);
        WriteFrame { place: Some(Place { arena, frame, address, len }) }
    }

    fn place(&self) -> &Place {
        self.place.as_ref().expect("only seal and drop take the place")
    }

    /// Returns the frame's bytes as they are: whatever was there before, until they are written.
    pub fn bytes(&self) -> &[u8] {
        self.place().slice()
    }

    /// Returns the frame's bytes for writing, as many as were asked for when it was taken.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let place = self.place.as_mut().expect("only seal and drop take the place");
        // SAFETY: the frame holds `len` bytes inside the mapped slab, and this is its only handle, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(place.address.as_ptr(), place.len) }
    }

    /// Returns how many bytes the frame was taken for.
    pub fn len(&self) -> usize {
        self.place().len
    }

    /// Says whether the frame was taken for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the frame hold its first `len` bytes only: it was taken for more, to be filled by whole pages.
    pub fn truncate(&mut self, len: usize) {
        let place = self.place.as_mut().expect("only seal and drop take the place");
        place.len = place.len.min(len);
    }

    /// Returns the frame's place.
    pub fn frame_id(&self) -> FrameId {
        self.place().frame
    }

    /// Returns how often the frame was taken, this time included.
    pub fn generation(&self) -> u32 {
        self.place().arena.state(self.frame_id()).generation.load(Ordering::Relaxed)
    }

    /// Ends the writing: from now on the bytes do not change.
    pub fn seal(mut self) -> ReadFrame {
        let place = self.place.take().expect("only seal and drop take the place");
        place.arena.state(place.frame).readers.store(1, Ordering::Relaxed);
        ReadFrame { place }
    }
}

impl Drop for WriteFrame {
    fn drop(&mut self) {
        if let Some(mut place) = self.place.take() {
            place.poison();
            place.arena.give_back(place.frame);
        }
    }
}

impl fmt::Debug for WriteFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteFrame").field("frame", &self.frame_id()).field("len", &self.len()).finish()
    }
}

/// A handle on a sealed frame. The last one dropped gives the frame back.
pub struct ReadFrame {
    place: Place,
}

impl ReadFrame {
    /// Returns the frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.place.slice()
    }

    /// Returns how many bytes the frame holds.
    pub fn len(&self) -> usize {
        self.place.len
    }

    /// Says whether the frame holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.place.len == 0
    }

    /// Returns the frame's place.
    pub fn frame_id(&self) -> FrameId {
        self.place.frame
    }

    /// Returns how often the frame was taken, this time included.
    pub fn generation(&self) -> u32 {
        self.place.arena.state(self.place.frame).generation.load(Ordering::Relaxed)
    }

    /// Returns how many handles there are on the frame, this one included.
    pub fn readers(&self) -> u32 {
        self.place.arena.state(self.place.frame).readers.load(Ordering::Relaxed)
    }
}

impl Clone for ReadFrame {
    fn clone(&self) -> Self {
        // As in Arc: a new handle is made from one that lives, so the count cannot reach 0 meanwhile.
        self.place.arena.state(self.place.frame).readers.fetch_add(1, Ordering::Relaxed);
        let Place { arena, frame, address, len } = &self.place;
        ReadFrame { place: Place { arena: arena.clone(), frame: *frame, address: *address, len: *len } }
    }
}

impl Drop for ReadFrame {
    fn drop(&mut self) {
        // Release orders this handle's reads before the frame's next writer; acquire makes the last handle see them done.
        if self.place.arena.state(self.place.frame).readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.place.poison();
            self.place.arena.give_back(self.place.frame);
        }
    }
}

impl AsRef<[u8]> for ReadFrame {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for ReadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadFrame").field("frame", &self.frame_id()).field("len", &self.len()).finish()
    }
}
