//! Lists that kernels read or write: in pinned memory, and sent to the GPU before the kernel or fetched after it.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::memory::{GpuMemory, Pinned};
use super::stream::{Direction, Piece, Stream};
use std::sync::Arc;

/// A list, with room for the longest that there was.
#[derive(Default)]
pub(super) struct List {
    room: Option<(Pinned, GpuMemory)>,
    bytes: usize,
}

impl List {
    /// Returns room for a list of so many bytes, of which none is under way.
    pub(super) fn write(&mut self, gpu: &Arc<Gpu>, bytes: usize) -> Result<&mut [u8], CudaError> {
        if self.room.as_ref().is_none_or(|(_, there)| there.len() < bytes) {
            self.room = None;
            let room = bytes.next_power_of_two();
            self.room = Some((Pinned::for_a_while(gpu, room)?, GpuMemory::new(gpu, room)?));
        }
        self.bytes = bytes;
        let (here, _) = self.room.as_mut().expect("it was just taken, if it was not there");
        Ok(&mut here.bytes_mut()[..bytes])
    }

    /// Returns where the GPU finds it.
    pub(super) fn address(&self) -> u64 {
        self.room.as_ref().map_or(0, |(_, there)| there.address())
    }

    /// Has it be sent, some time.
    ///
    /// # Safety
    /// It is not written again, nor let go of, until the stream was waited for.
    pub(super) unsafe fn begin(&self, stream: &Stream) -> Result<(), CudaError> {
        let Some((here, there)) = &self.room else { return Ok(()) };
        let from = here.bytes().as_ptr().expose_provenance() as u64;
        let list = Piece { from, to: there.address(), bytes: self.bytes };
        // SAFETY: both ends are this one's own and have room for it; the caller vouches for the time.
        unsafe { stream.begin(Direction::ToGpu, &list) }
    }

    /// Has it be fetched, some time.
    ///
    /// # Safety
    /// It is not touched, nor let go of, until the stream was waited for.
    pub(super) unsafe fn begin_back(&self, stream: &Stream) -> Result<(), CudaError> {
        let Some((here, there)) = &self.room else { return Ok(()) };
        let to = here.bytes().as_ptr().expose_provenance() as u64;
        let list = Piece { from: there.address(), to, bytes: self.bytes };
        // SAFETY: as above.
        unsafe { stream.begin(Direction::ToHost, &list) }
    }

    /// Returns what was fetched, once the stream was waited for.
    pub(super) fn bytes(&self) -> &[u8] {
        self.room.as_ref().map_or(&[], |(here, _)| &here.bytes()[..self.bytes])
    }
}
