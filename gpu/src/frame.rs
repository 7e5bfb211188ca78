//! Handles on frames. One writer or many readers, never both; the last handle gives the frame back.
#![allow(
    unsafe_code,
    reason = "turns a frame's place in host memory into a slice; the handles' counts keep it sound"
)]

use crate::arena::{ClassId, Left, Shared};
use crate::slab::Slab;
use crate::space::Space;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A frame's place in its arena.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameId {
    /// Its size class.
    pub class: ClassId,
    /// Its number within the class.
    pub index: u32,
}

/// Where a sealed frame's bytes are in memory that other processes can look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedPlace {
    /// The number of the memory: [`crate::SharedSlab::number`].
    pub slab: u64,
    /// Where in it they begin.
    pub at: u64,
}

/// Where a frame's bytes are, shared by both kinds of handle.
struct Place<S: Space> {
    arena: Arc<Shared<S>>,
    frame: FrameId,
    /// From the first byte of the arena's memory on.
    at: usize,
    len: usize,
    /// What it was taken for, and when.
    taken: Taken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// To hold a block, in this round.
    In(u32),
    /// To be wiped.
    Stale,
}

impl<S: Space> Place<S> {
    fn give_back(self) {
        // SAFETY: called by the last handle before the frame is given back: nobody else reads or writes it.
        unsafe { self.arena.space().forget(self.at, self.len) };
        let left = if self.taken == Taken::Stale { Left::Stale } else { Left::Used };
        self.arena.give_back(self.frame, left);
    }

    /// Hears that its bytes are written: what was in it before is gone, also where they do not reach.
    fn is_written(&self) {
        let state = self.arena.state(self.frame);
        let (filled, len) = (state.filled.load(Ordering::Relaxed) as usize, self.len);
        // SAFETY: whoever seals has the only handle on the frame, of which so many bytes were taken before.
        let is_rest_gone = filled <= len || unsafe { self.arena.space().wipe(self.at + len, filled - len) };
        if let (Taken::In(round), true) = (self.taken, is_rest_gone) {
            state.filled.store(len as u64, Ordering::Relaxed);
            state.since.store(round, Ordering::Relaxed);
        }
    }
}

impl Place<Slab> {
    fn slice(&self) -> &[u8] {
        // SAFETY: the frame holds `len` bytes inside the slab, which `arena` keeps mapped. A `WriteFrame` is the only handle on its
        // frame, so its shared borrow excludes its own `bytes_mut`; while `ReadFrame`s exist nobody writes.
        unsafe { std::slice::from_raw_parts(self.arena.space().address(self.at).as_ptr(), self.len) }
    }
}

/// The only handle on a frame that is being written. Dropped unsealed, it gives the frame back.
pub struct WriteFrame<S: Space = Slab> {
    place: Option<Place<S>>,
}

impl<S: Space> WriteFrame<S> {
    pub(crate) fn new(arena: Arc<Shared<S>>, frame: FrameId, len: usize, round: u32) -> Self {
        let at = arena.offset(frame);
        WriteFrame { place: Some(Place { arena, frame, at, len, taken: Taken::In(round) }) }
    }

    /// Makes the handle of who wipes the frame.
    pub(crate) fn stale(arena: Arc<Shared<S>>, frame: FrameId, len: usize) -> Self {
        let at = arena.offset(frame);
        WriteFrame { place: Some(Place { arena, frame, at, len, taken: Taken::Stale }) }
    }

    /// Gives back a frame that was taken to be wiped ([`crate::Arena::take_stale`]): all its bytes are 0 now.
    pub fn wiped(mut self) {
        let place = self.place.take_if(|place| place.taken == Taken::Stale);
        debug_assert!(place.is_some(), "what was taken for a block is not wiped");
        if let Some(place) = place {
            place.arena.give_back(place.frame, Left::Wiped);
        }
    }

    fn place(&self) -> &Place<S> {
        self.place.as_ref().expect("only seal and drop take the place")
    }

    /// Returns the memory that it is of, and where in it the frame begins.
    pub(crate) fn span(&self) -> (&S, usize) {
        (self.place().arena.space(), self.place().at)
    }

    /// Returns where in its arena's memory the frame begins.
    pub fn offset(&self) -> usize {
        self.place().at
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

    /// Ends the writing: from now on the bytes do not change. What is left behind them in the host's memory of a longer block is overwritten.
    pub fn seal(mut self) -> ReadFrame<S> {
        let place = self.place.take().expect("only seal and drop take the place");
        place.is_written();
        place.arena.state(place.frame).readers.store(1, Ordering::Relaxed);
        ReadFrame { place: Some(place) }
    }
}

impl WriteFrame {
    /// Returns the frame's bytes as they are: whatever was there before, until they are written.
    pub fn bytes(&self) -> &[u8] {
        self.place().slice()
    }

    /// Returns the frame's bytes for writing, as many as were asked for when it was taken.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let place = self.place.as_mut().expect("only seal and drop take the place");
        let address = place.arena.space().address(place.at);
        // SAFETY: the frame holds `len` bytes inside the mapped slab, and this is its only handle, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), place.len) }
    }
}

impl<S: Space> Drop for WriteFrame<S> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.give_back();
        }
    }
}

impl<S: Space> fmt::Debug for WriteFrame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteFrame").field("frame", &self.frame_id()).field("len", &self.len()).finish()
    }
}

/// A handle on a sealed frame. The last one dropped gives the frame back.
pub struct ReadFrame<S: Space = Slab> {
    place: Option<Place<S>>,
}

impl<S: Space> ReadFrame<S> {
    fn place(&self) -> &Place<S> {
        self.place.as_ref().expect("only drop takes the place")
    }

    /// Returns the memory that it is of, and where in it the frame begins.
    pub(crate) fn span(&self) -> (&S, usize) {
        (self.place().arena.space(), self.place().at)
    }

    /// Returns where in its arena's memory the frame begins.
    pub fn offset(&self) -> usize {
        self.place().at
    }

    /// Returns how many bytes the frame holds.
    pub fn len(&self) -> usize {
        self.place().len
    }

    /// Says whether the frame holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the frame's place.
    pub fn frame_id(&self) -> FrameId {
        self.place().frame
    }

    /// Returns how often the frame was taken, this time included.
    pub fn generation(&self) -> u32 {
        self.place().arena.state(self.frame_id()).generation.load(Ordering::Relaxed)
    }

    /// Calls stale what it holds: it is to be wiped when it is free ([`crate::Arena::call_stale`]).
    pub fn call_stale(&self) {
        let place = self.place();
        place.arena.call_stale(place.frame);
    }

    /// Returns how many handles there are on the frame, this one included.
    pub fn readers(&self) -> u32 {
        self.place().arena.state(self.frame_id()).readers.load(Ordering::Relaxed)
    }
}

impl ReadFrame {
    /// Returns the frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.place().slice()
    }

    /// Returns where other processes see its bytes, if they can.
    pub fn shared_place(&self) -> Option<SharedPlace> {
        let place = self.place();
        let slab = place.arena.space().shared_number()?;
        Some(SharedPlace { slab, at: place.at as u64 })
    }
}

impl<S: Space> Clone for ReadFrame<S> {
    fn clone(&self) -> Self {
        let Place { arena, frame, at, len, taken } = self.place();
        // As in Arc: a new handle is made from one that lives, so the count cannot reach 0 meanwhile.
        arena.state(*frame).readers.fetch_add(1, Ordering::Relaxed);
        let (frame, at, len, taken) = (*frame, *at, *len, *taken);
        ReadFrame { place: Some(Place { arena: arena.clone(), frame, at, len, taken }) }
    }
}

impl<S: Space> Drop for ReadFrame<S> {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        // Release orders this handle's reads before the frame's next writer; acquire makes the last handle see them done.
        if place.arena.state(place.frame).readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            place.give_back();
        }
    }
}

impl AsRef<[u8]> for ReadFrame {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsRef<[u8]> for WriteFrame {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsMut<[u8]> for WriteFrame {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

impl<S: Space> fmt::Debug for ReadFrame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadFrame").field("frame", &self.frame_id()).field("len", &self.len()).finish()
    }
}
