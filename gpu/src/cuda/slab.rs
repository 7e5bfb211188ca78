//! A GPU's memory, taken once: by the driver's virtual-memory API, so that it can be lent to another process of this host as a file
//! handle, or plainly where the GPU has none.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Access, Address, Location, Properties, call};
use super::memory::GpuMemory;
use crate::space::sealed::Memory;
use std::ffi::{c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `CU_MEM_ALLOCATION_TYPE_PINNED`, and `CU_MEM_LOCATION_TYPE_DEVICE`.
const PINNED: c_int = 1;
const DEVICE: c_int = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const FILE: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: c_int = 3;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
const LEAST: c_int = 0;
/// `CUDA_ERROR_NOT_PERMITTED` and `CUDA_ERROR_NOT_SUPPORTED`: as a GPU that is shared by machines answers.
const ABSENT: [c_int; 2] = [800, 801];

/// Memory of a GPU; given back when dropped. [`crate::Arena`] cuts it into frames.
pub struct GpuSlab {
    gpu: Arc<Gpu>,
    memory: Taken,
    bytes: usize,
    /// What its device has given, to be lowered again.
    given: Arc<AtomicU64>,
}

enum Taken {
    Mapped(Mapped),
    Plain(GpuMemory),
}

/// Memory at addresses of its own. What could not be made is 0.
struct Mapped {
    gpu: Arc<Gpu>,
    handle: u64,
    address: Address,
    length: usize,
    is_mapped: bool,
}

impl GpuSlab {
    /// Takes memory. `given` counts the device's budget and is lowered again by `bytes` when the slab goes.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: u64, given: Arc<AtomicU64>) -> Result<GpuSlab, CudaError> {
        // From here on the budget is given back whatever happens.
        let none = Taken::Plain(GpuMemory::none(gpu));
        let mut slab = GpuSlab { gpu: gpu.clone(), memory: none, bytes: bytes as usize, given };
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

    /// Returns a handle by which another process of this host may map the same memory; none where the GPU has no such thing.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn export(&self) -> Result<Option<OwnedFd>, CudaError> {
        let Taken::Mapped(mapped) = &self.memory else { return Ok(None) };
        let mut file: c_int = -1;
        let table = mapped.gpu.table();
        let _entered = mapped.gpu.enter()?;
        // SAFETY: the memory is this one's own and was made to be exported; the function writes one file descriptor.
        unsafe {
            call!(
                table,
                cuMemExportToShareableHandle((&raw mut file).cast::<c_void>(), mapped.handle, FILE, 0)
            )
        }?;
        // SAFETY: the driver gave the descriptor away.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(file) }))
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
            Taken::Mapped(mapped) => mapped.address,
            Taken::Plain(memory) => memory.address(),
        }
    }

    unsafe fn forget(&self, _at: usize, _len: usize) {}
}

impl Mapped {
    fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Mapped, CudaError> {
        let table = gpu.table();
        let location = Location { kind: DEVICE, id: gpu.device() };
        let properties = Properties { kind: PINNED, handles: FILE, location, ..Properties::default() };
        let _entered = gpu.enter()?;
        let mut unit = 0;
        // SAFETY: the function reads the properties and writes one number.
        unsafe { call!(table, cuMemGetAllocationGranularity(&raw mut unit, &raw const properties, LEAST)) }?;
        let length = bytes.checked_next_multiple_of(unit.max(1)).unwrap_or(usize::MAX);
        let mut mapped = Mapped { gpu: gpu.clone(), handle: 0, address: 0, length, is_mapped: false };
        // SAFETY: each function writes one number, or uses what the one before it has made; dropping `mapped` undoes as much as was done.
        unsafe {
            call!(table, cuMemCreate(&raw mut mapped.handle, length, &raw const properties, 0))?;
            call!(table, cuMemAddressReserve(&raw mut mapped.address, length, 0, 0, 0))?;
            call!(table, cuMemMap(mapped.address, length, 0, mapped.handle, 0))?;
            mapped.is_mapped = true;
            let access = Access { location, flags: READ_WRITE };
            call!(table, cuMemSetAccess(mapped.address, length, &raw const access, 1))?;
        }
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let Mapped { address, length, handle, is_mapped, .. } = *self;
        // SAFETY: all of it is this one's own, and no copy of its bytes is under way: who copies holds frames, and they hold the slab.
        self.gpu.let_go(|table| unsafe {
            if is_mapped {
                (table.cuMemUnmap)(address, length);
            }
            if address != 0 {
                (table.cuMemAddressFree)(address, length);
            }
            if handle == 0 { 0 } else { (table.cuMemRelease)(handle) }
        });
    }
}
