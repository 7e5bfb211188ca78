//! One piece of memory, taken once and populated at once: stores never fault pages in, and memory that is configured
//! but not there shows at start.
#![allow(unsafe_code, reason = "maps memory; the only way to get pages of a chosen kind")]

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const HUGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

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

/// Memory of a device; unmapped when dropped. [`crate::Arena`] cuts it into frames.
pub struct Slab {
    base: NonNull<u8>,
    bytes: usize,
    mapped: usize,
    pages: PageKind,
    given: Arc<AtomicU64>,
}

// SAFETY: a slab is a plain mapping that it alone unmaps; who may touch which bytes is decided by the arena's frames.
unsafe impl Send for Slab {}
// SAFETY: as above; the slab's own methods only read its fields.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps `bytes` of memory. `given` counts the device's budget and is lowered again by `bytes` when the slab goes.
    pub(crate) fn map(bytes: u64, given: Arc<AtomicU64>) -> Result<Slab, Errno> {
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
            });
        }
        let (base, mapped, pages) = map_best(length).map_err(give_back)?;
        // Owned from here on: an error below unmaps it.
        let slab = Slab { base, bytes: length, mapped, pages, given };
        // SAFETY: the range was just mapped and nobody else knows it; populating writes nothing that was there.
        match unsafe { madvise(base.as_ptr().cast(), mapped, Advice::LinuxPopulateWrite) } {
            Ok(()) => Ok(slab),
            // Before Linux 5.14: touch each page instead.
            Err(Errno::INVAL) => {
                for at in (0..mapped).step_by(PAGE_BYTES) {
                    // SAFETY: `at` is inside the mapping, which nobody else knows yet.
                    unsafe { base.as_ptr().add(at).write_volatile(0) };
                }
                Ok(slab)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Returns which pages it got.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Returns its size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Says whether it has no memory at all.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
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

fn map_best(length: usize) -> Result<(NonNull<u8>, usize, PageKind), Errno> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let round = |unit: usize| length.div_ceil(unit) * unit;
    if length >= HUGE_BYTES {
        let mapped = round(HUGE_BYTES);
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice replaces nothing.
        if let Ok(address) = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, protection, flags) } {
            let base = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
            return Ok((base, mapped, PageKind::Huge));
        }
    }
    let mapped = round(PAGE_BYTES);
    // SAFETY: as above.
    let address = unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, protection, MapFlags::PRIVATE) }?;
    let base = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
    // SAFETY: advice on the range just mapped changes no byte of it.
    let advised = unsafe { madvise(address, mapped, Advice::LinuxHugepage) };
    Ok((base, mapped, if advised.is_ok() { PageKind::Transparent } else { PageKind::Small }))
}

impl Drop for Slab {
    fn drop(&mut self) {
        if self.mapped > 0 {
            // SAFETY: this slab made the mapping; frames hold the arena, and with it this slab, so none is left.
            let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
            debug_assert!(unmapped.is_ok(), "a slab's own mapping can be unmapped");
        }
        self.given.fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}
