//! What kinds of memory arenas are cut from.
#![allow(unsafe_code, reason = "says who may call what writes to freed frames")]

/// Memory that an arena is cut from: the host's or a GPU's. Made by this crate alone.
pub trait Space: sealed::Memory {}

impl<M: sealed::Memory> Space for M {}

pub(crate) mod sealed {
    /// What an arena asks of its memory.
    pub trait Memory: Send + Sync + 'static {
        /// Returns its size in bytes.
        fn bytes(&self) -> usize;

        /// Returns the address of its first byte, where it is.
        fn base(&self) -> u64;

        /// Hears that `len` bytes from byte `at` on are of no use any more.
        ///
        /// # Safety
        /// They lie within the memory, and nobody reads or writes them until they are given out again.
        unsafe fn forget(&self, at: usize, len: usize);

        /// Overwrites `len` bytes from byte `at` on with zeros, where it can do so by itself; says whether it did.
        ///
        /// # Safety
        /// As for `forget`.
        unsafe fn wipe(&self, at: usize, len: usize) -> bool;
    }
}
