//! A GPU's memory, taken once: by the driver's virtual-memory API, so that it can be lent to another process of this host as a file
//! handle, or plainly where the GPU has none.
#![allow(unsafe_code, reason = "hears, as all memory does, that bytes are free")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::mapped::Mapped;
use super::memory::GpuMemory;
use crate::space::sealed::Memory;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// `CUDA_ERROR_NOT_PERMITTED` and `CUDA_ERROR_NOT_SUPPORTED`: as a GPU that is shared by machines answers.
const ABSENT: [c_int; 2] = [800, 801];

/// Memory of a GPU; given back when dropped. [`crate::Arena`] cuts it into frames.
pub struct GpuSlab {
    gpu: Arc<Gpu>,
    memory: Taken,
    bytes: usize,
    /// What its device has given, to be lowered again.
    given: Arc<AtomicU64>,
    /// Which other GPUs reach it, of those that were to.
    reached_by: Mutex<BTreeMap<u32, bool>>,
}

enum Taken {
    Mapped(Mapped),
    Plain(GpuMemory),
}

impl GpuSlab {
    /// Takes memory. `given` counts the device's budget and is lowered again by `bytes` when the slab goes.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: u64, given: Arc<AtomicU64>) -> Result<GpuSlab, CudaError> {
        // From here on the budget is given back whatever happens.
        let none = Taken::Plain(GpuMemory::none(gpu));
        let mut slab = GpuSlab {
            gpu: gpu.clone(),
            memory: none,
            bytes: bytes as usize,
            given,
            reached_by: Mutex::default(),
        };
        if bytes > 0 {
            slab.memory = match Mapped::new(gpu, slab.bytes) {
                Ok(mapped) => Taken::Mapped(mapped),
                Err(CudaError::Failed { code, .. }) if ABSENT.contains(&code) => {
                    Taken::Plain(GpuMemory::new(gpu, slab.bytes)?)
                }
                Err(error) => return Err(error),
            };
        }
        Ok(slab)
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Has another GPU of this process read its bytes by itself; says whether it can.
    pub(super) fn let_reach(&self, other: &Gpu) -> Result<bool, CudaError> {
        // Nothing is left half-done under this lock.
        let mut reached = self.reached_by.lock().unwrap_or_else(PoisonError::into_inner);
        let ordinal = other.info().ordinal;
        if let Some(known) = reached.get(&ordinal) {
            return Ok(*known);
        }
        let reaches = match &self.memory {
            Taken::Mapped(mapped) if other.reaches(&self.gpu)? => {
                mapped.let_reach(other)?;
                true
            }
            _ => false,
        };
        reached.insert(ordinal, reaches);
        Ok(reaches)
    }

    /// Returns a handle by which another process of this host may map the same memory; none where the GPU has no such thing.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn export(&self) -> Result<Option<OwnedFd>, CudaError> {
        let Taken::Mapped(mapped) = &self.memory else { return Ok(None) };
        mapped.export().map(Some)
    }
}

impl Drop for GpuSlab {
    fn drop(&mut self) {
        self.given.fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

impl Memory for GpuSlab {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn base(&self) -> u64 {
        match &self.memory {
            Taken::Mapped(mapped) => mapped.address(),
            Taken::Plain(memory) => memory.address(),
        }
    }

    unsafe fn forget(&self, _at: usize, _len: usize) {}

    unsafe fn wipe(&self, _at: usize, _len: usize) -> bool {
        // Copies are its device's.
        false
    }
}
