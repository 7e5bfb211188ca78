//! Memory that another process took by `cuMemAlloc`, or by the runtime's `cudaMalloc` as torch does, and lends by a handle of 64 bytes
//! (CUDA's older way between processes). A handle is of a whole allocation; what is meant lies in it.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Address, IpcHandle, call};
use std::sync::Arc;

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, the only flag and always to be given.
const LAZY: u32 = 1;

/// Bytes of a GPU's that their owner lends to other processes of this host. They are there until the owner frees them, and nobody keeps it
/// from doing so: what is read afterwards is anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loan {
    /// The driver's handle of the allocation.
    pub handle: [u8; 64],
    /// Where in the allocation the bytes begin.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

impl Loan {
    /// Lends bytes of this process, as many as begin at an address of a GPU's.
    ///
    /// # Errors
    /// When that is no memory which can be lent so, or not all of it is one allocation's.
    pub fn new(gpu: &Gpu, address: u64, bytes: u64) -> Result<Loan, CudaError> {
        let _entered = gpu.enter()?;
        let (base, length) = allocation(gpu, address)?;
        let offset = address.wrapping_sub(base);
        within(offset, bytes, length)?;
        let mut handle = IpcHandle([0; 64]);
        // SAFETY: the function writes one handle, of memory that the driver has just named.
        unsafe { call!(gpu.table(), cuIpcGetMemHandle(&raw mut handle, base)) }?;
        Ok(Loan { handle: handle.0, offset, bytes })
    }
}

/// Another process's memory, opened in this one. It is closed when this is dropped; the bytes are the owner's to free.
pub struct Borrowed {
    gpu: Arc<Gpu>,
    base: Address,
    loan: Loan,
}

impl Borrowed {
    /// Opens memory that another process lent. A process cannot open its own.
    ///
    /// # Errors
    /// When the handle is of no memory, or the allocation has not so many bytes there.
    pub fn new(gpu: &Arc<Gpu>, loan: Loan) -> Result<Borrowed, CudaError> {
        let _entered = gpu.enter()?;
        let mut base = 0;
        // SAFETY: the driver checks the handle, which may be any 64 bytes, and writes one address.
        unsafe { call!(gpu.table(), cuIpcOpenMemHandle_v2(&raw mut base, IpcHandle(loan.handle), LAZY)) }?;
        // Closed again from here on, whatever happens.
        let borrowed = Borrowed { gpu: gpu.clone(), base, loan };
        let (start, length) = allocation(gpu, base)?;
        let offset = base.wrapping_sub(start).saturating_add(loan.offset);
        within(offset, loan.bytes, length)?;
        Ok(borrowed)
    }

    /// Returns the address of its first byte, which means something to this process's GPU alone.
    pub fn address(&self) -> u64 {
        self.base + self.loan.offset
    }

    /// Returns its size in bytes.
    pub fn len(&self) -> u64 {
        self.loan.bytes
    }

    /// Says whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.loan.bytes == 0
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // SAFETY: it was opened once by this one, and who copies from it or to it vouches that no copy is under way.
        self.gpu.let_go(|table| unsafe { (table.cuIpcCloseMemHandle)(self.base) });
    }
}

/// Returns where the allocation begins that an address lies in, and its size. The context is current.
fn allocation(gpu: &Gpu, address: Address) -> Result<(Address, u64), CudaError> {
    let (mut base, mut length) = (0, 0);
    // SAFETY: the function writes two numbers; an address that is no memory's is an error.
    unsafe { call!(gpu.table(), cuMemGetAddressRange_v2(&raw mut base, &raw mut length, address)) }?;
    Ok((base, length as u64))
}

/// Says whether so many bytes there lie within an allocation.
fn within(offset: u64, bytes: u64, length: u64) -> Result<(), CudaError> {
    match offset.checked_add(bytes).is_some_and(|end| end <= length) {
        true => Ok(()),
        false => Err(CudaError::Beyond { offset, bytes, length }),
    }
}
