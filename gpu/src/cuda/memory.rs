//! Memory: the GPU's own, and the host's where a GPU's copy engines reach it.
#![allow(unsafe_code, reason = "calls CUDA's driver and makes slices of what it gives")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Address, call};
use super::shelf::Shelf;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for every GPU. Not write-combined: the CPU reads it too, for digests and sockets.
const PORTABLE: u32 = 1;
/// `CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`: kernels reach such memory by the host's addresses.
const HOST_POINTERS: i32 = 91;

/// Memory of the host that stays where it is, so that a GPU copies from and to it by itself.
pub struct Pinned {
    gpu: Arc<Gpu>,
    raw: RawPinned,
    /// It is kept for others when it is let go of.
    is_kept: bool,
}

/// Pinned memory without the GPU that it was taken through.
pub(super) struct RawPinned {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory of the host.
unsafe impl Send for RawPinned {}
// SAFETY: as above.
unsafe impl Sync for RawPinned {}

impl RawPinned {
    pub(super) fn new(gpu: &Gpu, bytes: usize) -> Result<RawPinned, CudaError> {
        if bytes == 0 {
            return Ok(RawPinned { start: NonNull::dangling(), bytes });
        }
        let _entered = gpu.enter()?;
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        unsafe { call!(gpu.table(), cuMemHostAlloc(&raw mut start, bytes, PORTABLE)) }?;
        let start =
            NonNull::new(start.cast::<u8>()).expect("the driver gives memory when it says that it does");
        // SAFETY: so many bytes were given. Bytes that nobody wrote may not be read.
        unsafe { start.write_bytes(0, bytes) };
        gpu.note_pinned(start.as_ptr().expose_provenance() as u64, bytes);
        Ok(RawPinned { start, bytes })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Gives it back.
    pub(super) fn free(&mut self, gpu: &Gpu) {
        if std::mem::take(&mut self.bytes) > 0 {
            gpu.forget_pinned(self.start.as_ptr().expose_provenance() as u64);
            // SAFETY: it is the driver's, freed once, and no slice of it is left.
            gpu.let_go(|table| unsafe { (table.cuMemFreeHost)(self.start.as_ptr().cast()) });
        }
    }
}

/// Memory of the host that is another's and was pinned where it is; it is not any more when this is dropped.
pub(crate) struct Registered {
    gpu: Arc<Gpu>,
    start: NonNull<u8>,
}

// SAFETY: it only remembers an address.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Registered {
    /// Pins memory.
    ///
    /// # Safety
    /// The memory stays mapped until this is dropped.
    pub(crate) unsafe fn new(
        gpu: &Arc<Gpu>,
        start: NonNull<u8>,
        bytes: usize,
    ) -> Result<Registered, CudaError> {
        let _entered = gpu.enter()?;
        if gpu.attribute(HOST_POINTERS)? == 0 {
            return Err(CudaError::Failed {
                call: "cuMemHostRegister_v2",
                code: 801,
                name: "CUDA_ERROR_NOT_SUPPORTED".to_owned(),
                what: "this GPU does not find registered memory by the host's addresses".to_owned(),
            });
        }
        // SAFETY: as the caller says; pinning changes no byte of it.
        unsafe { call!(gpu.table(), cuMemHostRegister_v2(start.as_ptr().cast(), bytes, PORTABLE)) }?;
        gpu.note_pinned(start.as_ptr().expose_provenance() as u64, bytes);
        Ok(Registered { gpu: gpu.clone(), start })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.gpu.forget_pinned(self.start.as_ptr().expose_provenance() as u64);
        // SAFETY: it was pinned once, and no copy from or to it is under way: who copies holds frames, and they hold their slab.
        self.gpu.let_go(|table| unsafe { (table.cuMemHostUnregister)(self.start.as_ptr().cast()) });
    }
}

impl Pinned {
    /// Takes so many bytes, all 0.
    ///
    /// # Errors
    /// When the host has not that much that may be pinned.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned, CudaError> {
        Ok(Pinned { raw: RawPinned::new(gpu, bytes)?, is_kept: false, gpu: gpu.clone() })
    }

    /// Takes at least so many bytes, for a short time: what others let go of, where there is some. What they left in it is still there.
    ///
    /// # Errors
    /// As for [`Pinned::new`].
    pub fn for_a_while(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned, CudaError> {
        gpu.shelf.sweep(gpu);
        let raw = gpu.shelf.take(bytes).map_or_else(|| RawPinned::new(gpu, Shelf::size(bytes)), Ok)?;
        Ok(Pinned { raw, is_kept: true, gpu: gpu.clone() })
    }

    /// Returns its address and size.
    pub(super) fn span(&self) -> (u64, usize) {
        (self.raw.start.as_ptr().expose_provenance() as u64, self.raw.bytes)
    }

    /// Returns its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are there for as long as `self` lives; they are zeroed when they are taken, and copies into them
        // are over before anybody may call this.
        unsafe { std::slice::from_raw_parts(self.raw.start.as_ptr(), self.raw.bytes) }
    }

    /// Returns its bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.raw.start.as_ptr(), self.raw.bytes) }
    }
}

/// Memory of the host by whose way bytes go to a GPU or come from it: pinned, where some was kept, else plain.
pub struct Staging {
    memory: Stage,
    bytes: usize,
}

enum Stage {
    Pinned(Pinned),
    Plain(Vec<u8>),
}

impl Staging {
    /// Takes so many bytes at once: no memory is pinned for it that is not already. What was left in them is still there.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Staging {
        let kept = gpu.shelf.take(bytes);
        let memory = match kept {
            Some(raw) => Stage::Pinned(Pinned { raw, is_kept: true, gpu: gpu.clone() }),
            None => Stage::Plain(vec![0; bytes]),
        };
        Staging { memory, bytes }
    }
}

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            Stage::Pinned(pinned) => &pinned.bytes()[..self.bytes],
            Stage::Plain(plain) => plain,
        }
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Stage::Pinned(pinned) => &mut pinned.bytes_mut()[..self.bytes],
            Stage::Plain(plain) => plain,
        }
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.is_kept {
            let nothing = RawPinned { start: NonNull::dangling(), bytes: 0 };
            self.gpu.shelf.put(std::mem::replace(&mut self.raw, nothing));
        } else {
            self.raw.free(&self.gpu);
        }
    }
}

/// Memory of a GPU.
pub struct GpuMemory {
    gpu: Arc<Gpu>,
    address: Address,
    bytes: usize,
}

impl GpuMemory {
    /// Takes nothing.
    pub(super) fn none(gpu: &Arc<Gpu>) -> GpuMemory {
        GpuMemory { gpu: gpu.clone(), address: 0, bytes: 0 }
    }

    /// Takes so many bytes. What is in them is nobody's business.
    ///
    /// # Errors
    /// When the GPU has not that much left.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<GpuMemory, CudaError> {
        let mut address = 0;
        if bytes > 0 {
            let _entered = gpu.enter()?;
            // SAFETY: the function writes one address.
            unsafe { call!(gpu.table(), cuMemAlloc_v2(&raw mut address, bytes)) }?;
        }
        Ok(GpuMemory { gpu: gpu.clone(), address, bytes })
    }

    /// Returns the address of its first byte, which means something to the GPU alone.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns whose it is.
    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub(super) fn span(&self) -> (u64, usize) {
        (self.address, self.bytes)
    }

    /// Returns its size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Says whether it has no memory at all.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: it is the driver's, freed once; the driver waits for what still uses it.
            self.gpu.let_go(|table| unsafe { (table.cuMemFree_v2)(self.address) });
        }
    }
}
