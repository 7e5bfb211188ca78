//! A GPU's memory at addresses of its own, by the driver's virtual-memory API: made here, or by another process of this host that lent
//! it as a file descriptor.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Access, Address, Location, Properties, call};
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`, and `CU_MEM_LOCATION_TYPE_DEVICE`.
const PINNED: c_int = 1;
const DEVICE: c_int = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const FILE: c_int = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: c_int = 3;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
const LEAST: c_int = 0;

/// Memory at addresses of its own. What could not be made is 0.
pub(super) struct Mapped {
    gpu: Arc<Gpu>,
    handle: u64,
    address: Address,
    length: usize,
    is_mapped: bool,
}

impl Mapped {
    /// Takes at least so many bytes of the GPU's.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Mapped, CudaError> {
        let _entered = gpu.enter()?;
        let mut mapped = Mapped::none(gpu, bytes)?;
        let (table, length, properties) = (gpu.table(), mapped.length, properties(gpu));
        // SAFETY: the function reads the properties and writes one number; dropping `mapped` gives back what was given.
        unsafe { call!(table, cuMemCreate(&raw mut mapped.handle, length, &raw const properties, 0)) }?;
        mapped.map()?;
        Ok(mapped)
    }

    /// Maps memory that another process took as so many bytes and lent. The descriptor may be closed afterwards.
    fn import(gpu: &Arc<Gpu>, file: BorrowedFd<'_>, bytes: usize) -> Result<Mapped, CudaError> {
        let _entered = gpu.enter()?;
        let mut mapped = Mapped::none(gpu, bytes)?;
        // The driver takes the descriptor's number in the place of an address, and refuses 0 as none: a copy has another number.
        let copy = (file.as_raw_fd() == 0).then(|| file.try_clone_to_owned()).and_then(Result::ok);
        let file = copy.as_ref().map_or(file, AsFd::as_fd);
        let number = std::ptr::without_provenance_mut::<c_void>(file.as_raw_fd() as usize);
        let handle = &raw mut mapped.handle;
        // SAFETY: the function looks at an open descriptor and writes one number; dropping `mapped` gives back what was given.
        unsafe { call!(gpu.table(), cuMemImportFromShareableHandle(handle, number, FILE)) }?;
        mapped.map()?;
        Ok(mapped)
    }

    /// Makes one of whole units, with nothing in it. The context is current.
    fn none(gpu: &Arc<Gpu>, bytes: usize) -> Result<Mapped, CudaError> {
        let (mut unit, properties) = (0, properties(gpu));
        // SAFETY: the function reads the properties and writes one number.
        unsafe {
            call!(gpu.table(), cuMemGetAllocationGranularity(&raw mut unit, &raw const properties, LEAST))
        }?;
        let length = bytes.checked_next_multiple_of(unit.max(1)).unwrap_or(usize::MAX);
        Ok(Mapped { gpu: gpu.clone(), handle: 0, address: 0, length, is_mapped: false })
    }

    /// Gives the memory addresses, at which its GPU may read and write it. The context is current.
    fn map(&mut self) -> Result<(), CudaError> {
        let (table, length) = (self.gpu.table(), self.length);
        let access = Access { location: location(&self.gpu), flags: READ_WRITE };
        // SAFETY: each function writes one number, or uses what the one before it has made; dropping `self` undoes as much as was done.
        // The driver refuses to map more than there is.
        unsafe {
            call!(table, cuMemAddressReserve(&raw mut self.address, length, 0, 0, 0))?;
            call!(table, cuMemMap(self.address, length, 0, self.handle, 0))?;
            self.is_mapped = true;
            call!(table, cuMemSetAccess(self.address, length, &raw const access, 1))
        }
    }

    /// Has another GPU of this process read and write it by itself.
    pub(super) fn let_reach(&self, other: &Gpu) -> Result<(), CudaError> {
        let access = Access { location: location(other), flags: READ_WRITE };
        let _entered = self.gpu.enter()?;
        // SAFETY: the memory is mapped there for as long as `self` lives; more may use it than before, and none less.
        unsafe { call!(self.gpu.table(), cuMemSetAccess(self.address, self.length, &raw const access, 1)) }
    }

    /// Returns the address of its first byte.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// Returns a handle by which another process of this host may map the same memory.
    pub(super) fn export(&self) -> Result<OwnedFd, CudaError> {
        let mut file: c_int = -1;
        let table = self.gpu.table();
        let _entered = self.gpu.enter()?;
        // SAFETY: the memory is this one's own and was made to be exported; the function writes one file descriptor.
        unsafe {
            call!(table, cuMemExportToShareableHandle((&raw mut file).cast::<c_void>(), self.handle, FILE, 0))
        }?;
        // SAFETY: the driver gave the descriptor away.
        Ok(unsafe { OwnedFd::from_raw_fd(file) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let Mapped { address, length, handle, is_mapped, .. } = *self;
        // SAFETY: all of it is this one's own, and no copy of its bytes is under way: who copies holds frames, and they hold the slab, or
        // vouches for memory that was imported.
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

fn location(gpu: &Gpu) -> Location {
    Location { kind: DEVICE, id: gpu.device() }
}

fn properties(gpu: &Gpu) -> Properties {
    Properties { kind: PINNED, handles: FILE, location: location(gpu), ..Properties::default() }
}

/// Memory of a GPU that another process of this host took and lent by a descriptor ([`super::GpuSlab::export`]). It stays for as long as this
/// does, also where that process has ended. Who writes what when is for the two to agree: copies between it and other memory are
/// [`super::Copier::copy`]'s, whose caller vouches for that.
pub struct Imported {
    mapped: Mapped,
    bytes: usize,
}

impl Imported {
    /// Maps the memory of a descriptor, of which its owner says that it is so many bytes.
    ///
    /// # Errors
    /// When it is no memory of a GPU, or fewer bytes.
    pub fn new(gpu: &Arc<Gpu>, file: BorrowedFd<'_>, bytes: usize) -> Result<Imported, CudaError> {
        Ok(Imported { mapped: Mapped::import(gpu, file, bytes)?, bytes })
    }

    /// Returns the address of its first byte, which means something to this process's GPU alone.
    pub fn address(&self) -> u64 {
        self.mapped.address()
    }

    /// Returns its size in bytes, as it was told.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Says whether it was told to be of no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}
