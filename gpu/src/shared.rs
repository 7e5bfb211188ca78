//! Memory of this process that others of its host can be let look at: a file without a name, sealed so that nobody who maps it can have it
//! shrink under the mapping, nor ever write to it.
#![allow(unsafe_code, reason = "maps memory; the only way to get pages that two processes see")]

use crate::slab::{HUGE_BYTES, PAGE_BYTES, PageKind, keep_from_dumps, populate, unmap};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

/// What is sealed: its size, writing through any descriptor or mapping that is yet to come, and the seals.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// Memory as it was mapped, and what lets others map it too, to read.
pub(crate) struct Shared {
    pub(crate) base: NonNull<u8>,
    pub(crate) mapped: usize,
    pub(crate) pages: PageKind,
    pub(crate) reader: OwnedFd,
}

/// Maps `length` bytes that others can be let look at, every page of it taken; as large pages as memory of one's own would have. None where
/// the system gives no such memory or smaller pages: sharing is to cost nothing who does not share.
pub(crate) fn map(length: usize) -> Option<Shared> {
    let is_small = length < HUGE_BYTES;
    let kinds: &[PageKind] =
        if is_small { &[PageKind::Small] } else { &[PageKind::Huge, PageKind::Transparent] };
    kinds.iter().find_map(|kind| attempt(length, *kind).ok())
}

fn attempt(length: usize, pages: PageKind) -> Result<Shared, Errno> {
    let unit = if pages == PageKind::Huge { HUGE_BYTES } else { PAGE_BYTES };
    let mapped = length.checked_next_multiple_of(unit).ok_or(Errno::NOMEM)?;
    let kind = if pages == PageKind::Huge { MemfdFlags::HUGETLB } else { MemfdFlags::empty() };
    let file = memfd_create(c"kvhive", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC | kind)?;
    ftruncate(&file, mapped as u64)?;
    let base = map_aligned(mapped, ProtFlags::READ | ProtFlags::WRITE, &file)?;
    let taken = match pages {
        PageKind::Transparent => join_pages(base, mapped),
        PageKind::Huge | PageKind::Small => Ok(()),
    };
    let reader = taken.and_then(|()| populate(base, mapped)).and_then(|()| {
        // Opened anew, since a copy of the descriptor would have its right to write.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reader = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // After the mapping: from here on nobody gets another that can be written to.
        fcntl_add_seals(&file, SEALS)?;
        Ok(reader)
    });
    match reader {
        Ok(reader) => Ok(Shared { base, mapped, pages, reader }),
        Err(errno) => {
            unmap(base, mapped);
            Err(errno)
        }
    }
}

/// Has a fresh mapping's pages joined into huge ones, whatever the system's rule for shared memory is: that is meant for files. Where too
/// little of the memory lies together, some stay small, as they would of any other memory.
fn join_pages(base: NonNull<u8>, mapped: usize) -> Result<(), Errno> {
    let whole = mapped / HUGE_BYTES * HUGE_BYTES;
    for at in (0..whole).step_by(HUGE_BYTES) {
        // A hole has nothing to be joined.
        // SAFETY: `at` is inside the mapping, which nobody else knows yet.
        unsafe { base.as_ptr().add(at).write_volatile(0) };
    }
    // SAFETY: advice on a range just mapped; joining pages changes no byte of it.
    if unsafe { libc::madvise(base.as_ptr().cast(), whole, libc::MADV_COLLAPSE) } == 0 {
        return Ok(());
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        // Before Linux 6.1, or built without.
        Some(Errno::INVAL) | None => Err(Errno::INVAL),
        Some(_) => Ok(()),
    }
}

/// Maps a file from its start, at an address where its pages can be huge ones.
pub(crate) fn map_aligned(
    mapped: usize,
    protection: ProtFlags,
    file: impl AsFd,
) -> Result<NonNull<u8>, Errno> {
    let around = mapped.checked_add(HUGE_BYTES).ok_or(Errno::NOMEM)?;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice replaces nothing.
    let address =
        unsafe { mmap_anonymous(std::ptr::null_mut(), around, ProtFlags::empty(), MapFlags::PRIVATE) }?;
    let address = NonNull::new(address.cast::<u8>()).ok_or(Errno::NOMEM)?;
    let before = address.align_offset(HUGE_BYTES).min(HUGE_BYTES);
    // SAFETY: `before + mapped` is at most `around`.
    let base = unsafe { address.add(before) };
    // SAFETY: what this replaces is a part of the mapping made above, which nobody else knows.
    let file = unsafe {
        mmap(base.as_ptr().cast(), mapped, protection, MapFlags::SHARED | MapFlags::FIXED, file, 0)
    };
    if let Err(errno) = file {
        unmap(address, around);
        return Err(errno);
    }
    if before > 0 {
        unmap(address, before);
    }
    if before < HUGE_BYTES {
        // SAFETY: `before + mapped` is less than `around`.
        unmap(unsafe { base.add(mapped) }, HUGE_BYTES - before);
    }
    if let Err(errno) = keep_from_dumps(base, mapped) {
        unmap(base, mapped);
        return Err(errno);
    }
    Ok(base)
}
