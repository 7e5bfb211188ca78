//! One piece of memory, taken once and populated at once: stores never fault pages in, and memory that is configured
//! but not there shows at start.
#![allow(unsafe_code, reason = "maps memory; the only way to get pages of a chosen kind")]

use crate::cuda::{CudaError, Gpu, Registered};
use crate::shared::{self, Shared};
use crate::space::sealed::Memory;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) const HUGE_BYTES: usize = 2 << 20;
pub(crate) const PAGE_BYTES: usize = 4096;
/// Freed frames are filled with this in debug builds: a use after free shows.
const POISON: u8 = 0xDB;

/// Which pages a slab got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageKind {
    /// Reserved huge pages.
    Huge,
    /// Ordinary pages that the kernel may join into huge ones.
    Transparent,
    /// Ordinary pages.
    Small,
}

/// Memory that other processes of this host can be let look at.
#[derive(Clone, Copy, Debug)]
pub struct SharedSlab<'a> {
    /// Its number: no other of this process has had or will have it.
    pub number: u64,
    /// How much [`crate::Window::map`] maps of it.
    pub bytes: u64,
    /// What it is mapped by. It cannot be written, nor be made to be.
    pub file: BorrowedFd<'a>,
}

/// Memory of a device; unmapped when dropped. [`crate::Arena`] cuts it into frames.
pub struct Slab {
    base: NonNull<u8>,
    bytes: usize,
    mapped: usize,
    pages: PageKind,
    given: Arc<AtomicU64>,
    /// What lets others map it, where it is shared.
    reader: Option<OwnedFd>,
    /// Its number in this process.
    number: u64,
    /// Once a GPU's driver has pinned it.
    registered: Mutex<Option<Registered>>,
}

// SAFETY: a slab is a plain mapping that it alone unmaps; who may touch which bytes is decided by the arena's frames.
unsafe impl Send for Slab {}
// SAFETY: as above; the slab's own methods only read its fields.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps `bytes` of memory, such as can be shared if it is to be and there is any. `given` counts the device's budget and is lowered again
    /// by `bytes` when the slab goes.
    pub(crate) fn map(bytes: u64, given: Arc<AtomicU64>, is_shared: bool) -> Result<Slab, Errno> {
        // Never used twice, so that what is said of one slab is never taken for another's.
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let give_back = |errno| {
            given.fetch_sub(bytes, Ordering::Relaxed);
            errno
        };
        let length = usize::try_from(bytes).map_err(|_| give_back(Errno::NOMEM))?;
        if length == 0 {
            return Ok(Slab {
                base: NonNull::dangling(),
                bytes: 0,
                mapped: 0,
                pages: PageKind::Small,
                given,
                reader: None,
                number,
                registered: Mutex::default(),
            });
        }
        let shared = is_shared.then(|| shared::map(length)).flatten();
        let (base, mapped, pages, reader) = match shared {
            Some(Shared { base, mapped, pages, reader }) => (base, mapped, pages, Some(reader)),
            None => {
                let (base, mapped, pages) = map_best(length, populate).map_err(give_back)?;
                (base, mapped, pages, None)
            }
        };
        Ok(Slab { base, bytes: length, mapped, pages, given, reader, number, registered: Mutex::default() })
    }

    /// Returns what another process maps to look at it, if it is shared.
    pub(crate) fn share(&self) -> Option<SharedSlab<'_>> {
        let file = self.reader.as_ref()?.as_fd();
        Some(SharedSlab { number: self.number, bytes: self.mapped as u64, file })
    }

    /// Returns its number in this process, if it is shared.
    pub(crate) fn shared_number(&self) -> Option<u64> {
        self.reader.as_ref().map(|_| self.number)
    }

    /// Returns which pages it got.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Has its pages stay in memory, whatever else wants some: none is swapped out, and a GPU's driver can take them as they are.
    ///
    /// # Errors
    /// When this process may not lock so much (`ulimit -l`).
    pub(crate) fn lock(&self) -> Result<(), Errno> {
        if self.mapped == 0 {
            return Ok(());
        }
        // SAFETY: the range is this slab's own mapping; locking changes no byte of it, and unmapping unlocks it.
        unsafe { mlock(self.base.as_ptr().cast(), self.mapped) }
    }

    /// Has a GPU's driver pin its pages, so that the GPU copies from and to them by itself.
    pub(crate) fn register(&self, gpu: &Arc<Gpu>) -> Result<(), CudaError> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if self.mapped > 0 && registered.is_none() {
            // SAFETY: the mapping is this slab's own, and goes after what is kept here.
            *registered = Some(unsafe { Registered::new(gpu, self.base, self.mapped) }?);
        }
        Ok(())
    }

    /// Returns the address of byte `at`.
    ///
    /// # Panics
    /// When `at` lies behind the slab: the arena computed a frame wrongly.
    pub(crate) fn address(&self, at: usize) -> NonNull<u8> {
        assert!(at <= self.bytes, "frames are cut inside the slab");
        // SAFETY: `at` is within the mapping (or one past it), checked above.
        unsafe { self.base.add(at) }
    }
}

impl Memory for Slab {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn base(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    unsafe fn forget(&self, at: usize, len: usize) {
        if cfg!(debug_assertions) {
            debug_assert!(at + len <= self.bytes);
            // SAFETY: the bytes are within the mapping, and the caller vouches that nobody else uses them.
            unsafe { self.address(at).as_ptr().write_bytes(POISON, len) };
        }
    }

    unsafe fn wipe(&self, at: usize, len: usize) -> bool {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.bytes), "frames are cut inside the slab");
        // SAFETY: the bytes are within the mapping, and the caller vouches that nobody else uses them.
        unsafe { self.address(at).as_ptr().write_bytes(0, len) };
        true
    }
}

/// Maps memory and has it populated: on reserved huge pages if they are to be had, else on ordinary ones.
fn map_best(
    length: usize,
    populate: impl Fn(NonNull<u8>, usize) -> Result<(), Errno>,
) -> Result<(NonNull<u8>, usize, PageKind), Errno> {
    let round = |unit: usize| length.div_ceil(unit) * unit;
    if length >= HUGE_BYTES {
        let mapped = round(HUGE_BYTES);
        // Reserved pages can be promised and then not be there, where a control group has fewer than the host.
        if let Ok(base) = map_fresh(mapped, MapFlags::PRIVATE | MapFlags::HUGETLB) {
            match populate(base, mapped) {
                Ok(()) => return Ok((base, mapped, PageKind::Huge)),
                Err(_) => unmap(base, mapped),
            }
        }
    }
    let mapped = round(PAGE_BYTES);
    let base = map_fresh(mapped, MapFlags::PRIVATE)?;
    // SAFETY: advice on the range just mapped changes no byte of it.
    let advised = unsafe { madvise(base.as_ptr().cast(), mapped, Advice::LinuxHugepage) };
    match populate(base, mapped) {
        Ok(()) => Ok((base, mapped, if advised.is_ok() { PageKind::Transparent } else { PageKind::Small })),
        Err(errno) => {
            unmap(base, mapped);
            Err(errno)
        }
    }
}

fn map_fresh(mapped: usize, flags: MapFlags) -> Result<NonNull<u8>, Errno> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice replaces nothing.
    let address = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, protection, flags) }?;
    let base = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
    match keep_from_dumps(base, mapped) {
        Ok(()) => Ok(base),
        Err(errno) => {
            unmap(base, mapped);
            Err(errno)
        }
    }
}

/// Has no core dump hold a mapping's bytes: they are prompts.
pub(crate) fn keep_from_dumps(base: NonNull<u8>, mapped: usize) -> Result<(), Errno> {
    // SAFETY: advice on a range just mapped changes no byte of it.
    unsafe { madvise(base.as_ptr().cast(), mapped, Advice::LinuxDontDump) }
}

pub(crate) fn unmap(base: NonNull<u8>, mapped: usize) {
    // SAFETY: only called for a mapping that was made here and that nobody uses any more.
    let unmapped = unsafe { munmap(base.as_ptr().cast(), mapped) };
    debug_assert!(unmapped.is_ok(), "a mapping of one's own can be unmapped");
}

/// Has every page of a fresh mapping taken.
pub(crate) fn populate(base: NonNull<u8>, mapped: usize) -> Result<(), Errno> {
    // SAFETY: the range was just mapped and nobody else knows it; populating writes nothing that was there.
    match unsafe { madvise(base.as_ptr().cast(), mapped, Advice::LinuxPopulateWrite) } {
        // Before Linux 5.14: touch each page instead.
        Err(Errno::INVAL) => {
            for at in (0..mapped).step_by(PAGE_BYTES) {
                // SAFETY: `at` is inside the mapping, which nobody else knows yet.
                unsafe { base.as_ptr().add(at).write_volatile(0) };
            }
            Ok(())
        }
        populated => populated,
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        drop(self.registered.lock().unwrap_or_else(PoisonError::into_inner).take());
        if self.mapped > 0 {
            // Frames hold the arena, and with it this slab: none is left.
            unmap(self.base, self.mapped);
        }
        self.given.fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn huge_pages_that_are_promised_and_not_there_end_no_start() {
        let tried = RefCell::new(Vec::new());
        let length = HUGE_BYTES + PAGE_BYTES;
        // As a control group without huge pages answers: whatever is rounded to them is not to be had.
        let mapped = map_best(length, |_, mapped| {
            tried.borrow_mut().push(mapped);
            if mapped % HUGE_BYTES == 0 { Err(Errno::FAULT) } else { Ok(()) }
        });
        let (base, mapped, pages) = mapped.expect("ordinary pages are there");
        assert_eq!((tried.into_inner().pop(), mapped), (Some(length), length));
        assert_ne!(pages, PageKind::Huge);
        unmap(base, mapped);
        assert_eq!(map_best(length, |_, _| Err(Errno::NOMEM)).err(), Some(Errno::NOMEM));
    }
}
