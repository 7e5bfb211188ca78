//! A window into another process's memory: mapped to be read, never to be written, and copied out of. What it shows may change while it is
//! copied; whoever copies looks at the copy's digest, not at the window.
#![allow(unsafe_code, reason = "maps and copies memory that another process writes to")]

use crate::shared::map_aligned;
use crate::slab::unmap;
use rustix::fs::{OFlags, SealFlags, fcntl_get_seals, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::mm::ProtFlags;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use thiserror::Error;

/// Why a descriptor does not become a window.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WindowError {
    /// It may shrink, and reading what is gone would end this process.
    #[error("the memory is not sealed against shrinking")]
    Unsealed,
    /// It may be written by who gets it.
    #[error("the memory could be written from here")]
    Writable,
    /// It is not as large as was said.
    #[error("the memory has {bytes} bytes instead of {announced}")]
    Size {
        /// Bytes that it has.
        bytes: u64,
        /// Bytes that were announced.
        announced: u64,
    },
    /// The system does not map it.
    #[error("the memory cannot be mapped: {0}")]
    Refused(Errno),
}

/// Memory of another process. Unmapped when dropped.
pub struct Window {
    base: NonNull<u8>,
    mapped: usize,
}

// SAFETY: a window is a plain read-only mapping that it alone unmaps.
unsafe impl Send for Window {}
// SAFETY: as above; its methods copy out of it and change nothing.
unsafe impl Sync for Window {}

impl Window {
    /// Maps memory that another process shares, as large as it announced.
    ///
    /// # Errors
    /// When it is not sealed, not of that size, could be written, or is not to be mapped at all.
    pub fn map(file: impl AsFd, announced: u64) -> Result<Window, WindowError> {
        let file = file.as_fd();
        // What is no memory has no seals at all.
        let seals = fcntl_get_seals(file).map_err(|_| WindowError::Unsealed)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::SEAL) {
            return Err(WindowError::Unsealed);
        }
        if fcntl_getfl(file).map_err(WindowError::Refused)?.intersects(OFlags::WRONLY | OFlags::RDWR) {
            return Err(WindowError::Writable);
        }
        let bytes = fstat(file).map_err(WindowError::Refused)?.st_size as u64;
        if bytes != announced || bytes == 0 {
            return Err(WindowError::Size { bytes, announced });
        }
        let mapped = usize::try_from(bytes).map_err(|_| WindowError::Refused(Errno::NOMEM))?;
        let base = map_aligned(mapped, ProtFlags::READ, file).map_err(WindowError::Refused)?;
        Ok(Window { base, mapped })
    }

    /// Returns its size.
    pub fn bytes(&self) -> u64 {
        self.mapped as u64
    }

    /// Copies what lies at byte `at` into memory of one's own. False where that reaches beyond the window: nothing was copied then.
    #[must_use]
    pub fn copy(&self, at: u64, into: &mut [u8]) -> bool {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.mapped as u64) {
            return false;
        }
        // SAFETY: the range is within the mapping, checked above, and never shrinks: `map` saw to the seal. No reference to it is made. Its
        // owner may write to it meanwhile, as a device does that copies by itself: any bytes may then come out, and all bytes are fine.
        unsafe {
            let from = self.base.as_ptr().cast_const().add(at as usize);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
        }
        true
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // What was copied out of it is the caller's own: nobody looks at it any more.
        unmap(self.base, self.mapped);
    }
}
