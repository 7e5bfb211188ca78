//! An arena: one slab cut into frames of a few sizes, and the lists of those that are free.

use crate::cuda::{CudaError, Gpu, GpuSlab};
use crate::device::{Device, DeviceError};
use crate::frame::{FrameId, WriteFrame};
use crate::slab::{PageKind, SharedSlab, Slab};
use crate::space::Space;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;

/// Frames begin at multiples of this, so that direct IO and copy engines can use them.
const ALIGN_BYTES: u64 = 4096;
/// Frames smaller than a page begin at multiples of this: a cache line.
const ALIGN_SMALL_BYTES: u64 = 64;
/// The most size classes of one arena.
const MAX_CLASSES: usize = 64;
/// How long a frame that is being wiped is waited for, where it is the last.
const WIPE_LIMIT: Duration = Duration::from_millis(20);

/// Frames of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeClass {
    /// The most bytes that a frame holds.
    pub frame_bytes: u64,
    /// How many frames.
    pub frames: u32,
}

/// Names a size class: its position among the arena's classes, smallest frames first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClassId(pub u8);

/// Why an arena could not be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ArenaError {
    /// Sizes must differ, grow and not be 0; at most 64 of them.
    #[error(
        "size class {at} has frames of {frame_bytes} bytes; sizes must grow from class to class, at most {MAX_CLASSES} classes"
    )]
    Classes {
        /// Which class.
        at: usize,
        /// Its frame size.
        frame_bytes: u64,
    },
    /// The sizes and counts come to more than can be addressed.
    #[error("the frames together are more than can be addressed")]
    Overflow,
    /// The device has not the memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Frames cut from one slab. Cheap to clone; the memory goes back when the last clone and the last frame are gone.
pub struct Arena<S: Space = Slab> {
    shared: Arc<Shared<S>>,
}

impl<S: Space> Clone for Arena<S> {
    fn clone(&self) -> Self {
        Arena { shared: self.shared.clone() }
    }
}

/// What an arena and its frames hold together.
pub(crate) struct Shared<S> {
    space: S,
    classes: Vec<Class>,
}

struct Class {
    size: SizeClass,
    stride: u64,
    start: u64,
    frames: Vec<State>,
    free: Mutex<Free>,
    /// Told when a frame that was being wiped is free again.
    wiped: Condvar,
    used_bytes: AtomicU64,
}

/// A class's free frames.
struct Free {
    /// Such as hold nothing: zeros.
    clean: Vec<u32>,
    /// Such as hold what was written since the last time that all was called stale.
    used: Vec<u32>,
    /// Such as hold what is older.
    stale: Vec<u32>,
    /// How many are being wiped.
    wiping: u32,
    /// How often all was called stale.
    round: u32,
}

/// One frame's counters.
pub(crate) struct State {
    /// Read handles; 0 while free or being written.
    pub(crate) readers: AtomicU32,
    /// How often the frame was taken.
    pub(crate) generation: AtomicU32,
    /// How many bytes from its start may be something else than zeros.
    pub(crate) filled: AtomicU64,
    /// The round in which the oldest of what it holds was written.
    pub(crate) since: AtomicU32,
}

/// How a frame is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// It was taken to be used.
    Used,
    /// It was taken to be wiped, and was not.
    Stale,
    /// It was taken to be wiped, and holds zeros.
    Wiped,
}

impl<S: Space> Arena<S> {
    /// Takes memory for all `classes` (smallest frames first) from `device` and cuts it into frames.
    ///
    /// # Errors
    /// See [`ArenaError`].
    pub fn new(device: &impl Device<Space = S>, classes: &[SizeClass]) -> Result<Arena<S>, ArenaError> {
        let mut total = 0u64;
        let mut made = Vec::with_capacity(classes.len());
        for (at, size) in classes.iter().enumerate() {
            let before = if at == 0 { 0 } else { classes[at - 1].frame_bytes };
            if size.frame_bytes <= before || at >= MAX_CLASSES {
                return Err(ArenaError::Classes { at, frame_bytes: size.frame_bytes });
            }
            let unit = if size.frame_bytes < ALIGN_BYTES { ALIGN_SMALL_BYTES } else { ALIGN_BYTES };
            let stride = size.frame_bytes.checked_next_multiple_of(unit).ok_or(ArenaError::Overflow)?;
            let start = total.checked_next_multiple_of(ALIGN_BYTES).ok_or(ArenaError::Overflow)?;
            let bytes = stride.checked_mul(u64::from(size.frames)).ok_or(ArenaError::Overflow)?;
            total = start.checked_add(bytes).ok_or(ArenaError::Overflow)?;
            made.push((*size, stride, start));
        }
        // The device may refuse; the counters below are only made when it gave the memory.
        let space = device.open_slab(total)?;
        let classes = made
            .into_iter()
            .map(|(size, stride, start)| Class {
                size,
                stride,
                start,
                frames: (0..size.frames)
                    .map(|_| State {
                        readers: AtomicU32::new(0),
                        generation: AtomicU32::new(0),
                        filled: AtomicU64::new(0),
                        since: AtomicU32::new(0),
                    })
                    .collect(),
                // Taken from the end: the lowest frames first.
                free: Mutex::new(Free {
                    clean: (0..size.frames).rev().collect(),
                    used: Vec::new(),
                    stale: Vec::new(),
                    wiping: 0,
                    round: 0,
                }),
                wiped: Condvar::new(),
                used_bytes: AtomicU64::new(0),
            })
            .collect();
        Ok(Arena { shared: Arc::new(Shared { space, classes }) })
    }

    /// Returns the size classes, smallest frames first.
    pub fn classes(&self) -> Vec<SizeClass> {
        self.shared.classes.iter().map(|class| class.size).collect()
    }

    /// Returns the class with the smallest frames that hold `bytes`, if any do.
    pub fn class_for(&self, bytes: u64) -> Option<ClassId> {
        let at = self.shared.classes.iter().position(|class| class.size.frame_bytes >= bytes)?;
        Some(ClassId(at as u8))
    }

    /// Takes a free frame for `len` bytes. None when the class does not exist, its frames are smaller than `len`, or
    /// none of them is free.
    pub fn take(&self, class: ClassId, len: u64) -> Option<WriteFrame<S>> {
        let from =
            self.shared.classes.get(usize::from(class.0)).filter(|from| len <= from.size.frame_bytes)?;
        let (index, round) = from.take_free()?;
        from.used_bytes.fetch_add(from.stride, Ordering::Relaxed);
        let state = &from.frames[index as usize];
        state.generation.fetch_add(1, Ordering::Relaxed);
        // Counted before anything is written, and of the length that it is taken for: it may be made shorter.
        state.filled.fetch_max(len, Ordering::Relaxed);
        Some(WriteFrame::new(self.shared.clone(), FrameId { class, index }, len as usize, round))
    }

    /// Calls stale whatever the frames hold now: what is in free ones is to be wiped, and what is in others when they are free. Says nothing of
    /// what is written to frames that are taken later.
    pub fn call_stale(&self) {
        for class in &self.shared.classes {
            let mut free = class.free_list();
            let Free { used, stale, round, .. } = &mut *free;
            *round = round.wrapping_add(1);
            stale.append(used);
        }
    }

    /// Takes a free frame that holds what was called stale, to write zeros to all of it and say so ([`WriteFrame::wiped`]). None when there is
    /// none. Nobody else gets it meanwhile.
    pub fn take_stale(&self) -> Option<WriteFrame<S>> {
        for (at, class) in self.shared.classes.iter().enumerate() {
            let mut free = class.free_list();
            let Some(index) = free.stale.pop() else { continue };
            free.wiping += 1;
            let filled = class.frames[index as usize].filled.load(Ordering::Relaxed);
            let frame = FrameId { class: ClassId(at as u8), index };
            return Some(WriteFrame::stale(self.shared.clone(), frame, filled as usize));
        }
        None
    }

    /// Returns the bytes of the free frames that hold what was called stale, whole frames counted.
    pub fn stale_bytes(&self) -> u64 {
        let of = |class: &Class| {
            let free = class.free_list();
            (free.stale.len() as u64 + u64::from(free.wiping)) * class.size.frame_bytes
        };
        self.shared.classes.iter().map(of).sum()
    }

    /// Returns how many frames of a class are free; 0 for a class that does not exist.
    pub fn free_frames(&self, class: ClassId) -> u32 {
        let of = |class: &Class| {
            let free = class.free_list();
            (free.clean.len() + free.used.len() + free.stale.len()) as u32 + free.wiping
        };
        self.shared.classes.get(usize::from(class.0)).map_or(0, of)
    }

    /// Returns the bytes of the whole slab.
    pub fn total_bytes(&self) -> u64 {
        self.shared.space.bytes() as u64
    }

    /// Returns the bytes of all frames that are taken, whole frames counted.
    pub fn used_bytes(&self) -> u64 {
        self.shared.classes.iter().map(|class| class.used_bytes.load(Ordering::Relaxed)).sum()
    }
}

impl Arena {
    /// Has its memory stay where it is: none of it is swapped out.
    ///
    /// # Errors
    /// When this process may not lock so much (`ulimit -l`).
    pub fn lock(&self) -> io::Result<()> {
        self.shared.space.lock().map_err(io::Error::from)
    }

    /// Has a GPU's driver pin its memory, so that the GPU copies from and to its frames by itself.
    ///
    /// # Errors
    /// When the driver refuses, as where the system has no more memory that may be pinned.
    pub fn register(&self, gpu: &Arc<Gpu>) -> Result<(), CudaError> {
        self.shared.space.register(gpu)
    }

    /// Returns what another process maps to look at its memory; none where it is not shared.
    pub fn share(&self) -> Option<SharedSlab<'_>> {
        self.shared.space.share()
    }

    /// Returns which pages the slab got.
    pub fn pages(&self) -> PageKind {
        self.shared.space.pages()
    }
}

impl Arena<GpuSlab> {
    /// Returns the memory that it is cut from.
    pub(crate) fn slab(&self) -> &GpuSlab {
        &self.shared.space
    }

    /// Returns a handle by which another process of this host may map all of its memory; none where the GPU has no such thing.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn export(&self) -> Result<Option<OwnedFd>, CudaError> {
        self.shared.space.export()
    }
}

impl Class {
    /// Locks the free frames. A thread that panicked holding them left them whole: push and pop cannot tear.
    fn free_list(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a free frame; also says the round. One that waits to be wiped comes last; one that is being wiped is waited for, if it is all
    /// that there is.
    fn take_free(&self) -> Option<(u32, u32)> {
        let is_next = |free: &mut Free| free.wiping > 0 && free.next_is_none();
        let waited = self.wiped.wait_timeout_while(self.free_list(), WIPE_LIMIT, is_next);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let Free { clean, used, stale, round, .. } = &mut *free;
        // The one used last first: it may be in a cache yet.
        let index = used.pop().or_else(|| clean.pop()).or_else(|| stale.pop())?;
        Some((index, *round))
    }
}

impl Free {
    fn next_is_none(&self) -> bool {
        self.used.is_empty() && self.clean.is_empty() && self.stale.is_empty()
    }
}

impl<S> Shared<S> {
    /// Returns the memory.
    pub(crate) fn space(&self) -> &S {
        &self.space
    }

    /// Returns where in the memory a frame's bytes begin.
    pub(crate) fn offset(&self, frame: FrameId) -> usize {
        let class = &self.classes[usize::from(frame.class.0)];
        (class.start + class.stride * u64::from(frame.index)) as usize
    }

    /// Returns a frame's counters.
    pub(crate) fn state(&self, frame: FrameId) -> &State {
        &self.classes[usize::from(frame.class.0)].frames[frame.index as usize]
    }

    /// Calls stale what one frame holds.
    pub(crate) fn call_stale(&self, frame: FrameId) {
        let class = &self.classes[usize::from(frame.class.0)];
        let before = class.free_list().round.wrapping_sub(1);
        self.state(frame).since.store(before, Ordering::Relaxed);
    }

    /// Takes a frame back. Its last handle calls this, once.
    pub(crate) fn give_back(&self, frame: FrameId, left: Left) {
        let class = &self.classes[usize::from(frame.class.0)];
        let state = self.state(frame);
        if left == Left::Used {
            class.used_bytes.fetch_sub(class.stride, Ordering::Relaxed);
        }
        let mut free = class.free_list();
        match left {
            Left::Wiped => {
                state.filled.store(0, Ordering::Relaxed);
                free.clean.push(frame.index);
            }
            Left::Used if state.since.load(Ordering::Relaxed) == free.round => free.used.push(frame.index),
            Left::Used | Left::Stale => free.stale.push(frame.index),
        }
        debug_assert!(
            free.clean.len() + free.used.len() + free.stale.len() <= class.frames.len(),
            "once each"
        );
        if left != Left::Used {
            free.wiping -= 1;
            class.wiped.notify_one();
        }
    }
}
