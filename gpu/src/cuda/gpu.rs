//! One GPU, open in this process.
#![allow(unsafe_code, reason = "calls CUDA's driver")]

use super::driver::{Cuda, GpuInfo};
use super::error::CudaError;
use super::kernels::Kernels;
use super::library::{Handle, Table, call};
use super::shelf::Shelf;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A GPU with its primary context, which it keeps alive.
pub struct Gpu {
    cuda: Arc<Cuda>,
    info: GpuInfo,
    device: c_int,
    context: Handle,
    pub(super) shelf: Shelf,
    pub(super) kernels: Kernels,
    /// Bytes of the host's memory that were pinned by way of this GPU, by their first address.
    pinned: Mutex<BTreeMap<u64, usize>>,
    /// It hangs: nothing that it may still use is given back, and nobody waits for it any more.
    is_left: AtomicBool,
}

// SAFETY: a context is made current on whichever thread uses it, and the driver locks what it shares.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// While it lives, the GPU's context is the current one of this thread; then the former is again.
pub struct Entered<'a> {
    gpu: &'a Gpu,
    /// It belongs to its thread.
    _stays: PhantomData<*const ()>,
}

impl Gpu {
    pub(super) fn open(cuda: Arc<Cuda>, info: GpuInfo, device: c_int) -> Result<Arc<Gpu>, CudaError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the function writes one handle, of a device that the driver named.
        unsafe { call!(&cuda.table, cuDevicePrimaryCtxRetain(&raw mut context, device)) }?;
        Ok(Arc::new(Gpu {
            cuda,
            info,
            device,
            context,
            shelf: Shelf::default(),
            kernels: Kernels::default(),
            pinned: Mutex::default(),
            is_left: AtomicBool::new(false),
        }))
    }

    /// Describes the GPU.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Returns how much of its memory nobody has, of whatever process.
    ///
    /// # Errors
    /// When the driver refuses to say.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        let (mut free, mut total) = (0, 0);
        let _entered = self.enter()?;
        // SAFETY: the function writes two numbers.
        unsafe { call!(self.table(), cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok(free as u64)
    }

    pub(super) fn note_pinned(&self, start: u64, bytes: usize) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(start, bytes);
    }

    pub(super) fn forget_pinned(&self, start: u64) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).remove(&start);
    }

    /// Says whether these bytes of the host's are all in one piece of memory that was pinned by way of this GPU.
    pub(super) fn is_pinned(&self, start: u64, bytes: usize) -> bool {
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((first, length)) = pinned.range(..=start).next_back() else { return false };
        let before = start - first;
        before.checked_add(bytes as u64).is_some_and(|end| end <= *length as u64)
    }

    /// Asks the driver for one of the GPU's attributes.
    pub(super) fn attribute(&self, which: c_int) -> Result<c_int, CudaError> {
        let mut told = 0;
        // SAFETY: the function writes one number.
        unsafe { call!(self.table(), cuDeviceGetAttribute(&raw mut told, which, self.device)) }?;
        Ok(told)
    }

    /// Says whether it reads and writes another's memory by itself. GPUs of two drivers, as tests have them, do not.
    pub(super) fn reaches(&self, other: &Gpu) -> Result<bool, CudaError> {
        if !Arc::ptr_eq(&self.cuda, &other.cuda) || self.device == other.device {
            return Ok(false);
        }
        self.cuda.reaches(self.info.ordinal, other.info.ordinal)
    }

    /// Says whether both are one GPU, opened twice: a process has one context of it.
    pub(super) fn is_same(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.cuda, &other.cuda) && self.device == other.device
    }

    pub(super) fn device(&self) -> c_int {
        self.device
    }

    pub(super) fn table(&self) -> &Table {
        &self.cuda.table
    }

    /// Makes the GPU's context the current one of this thread. Others in the process, on the same threads, have theirs.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn enter(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { call!(self.table(), cuCtxPushCurrent_v2(self.context)) }?;
        Ok(Entered { gpu: self, _stays: PhantomData })
    }

    /// Hears that the GPU hangs. The driver waits for copies that use memory before it takes that back, so that whoever gives some back would
    /// hang too: what it was given stays its own to the end of the process.
    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Lets go of something that the driver gave. What fails then has nobody to be told to, and a context that is broken gives
    /// back all it had when the process ends.
    pub(super) fn let_go(&self, free: impl FnOnce(&Table) -> c_int) {
        if self.is_left.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(_entered) = self.enter() {
            free(self.table());
        }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: what was pushed when this was made is popped, on the same thread.
        let _ = unsafe { call!(self.gpu.table(), cuCtxPopCurrent_v2(&raw mut popped)) };
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.shelf.clear(self);
        self.kernels.clear(self);
        if self.is_left.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: it was retained once, and nothing that was made in it is left: all of that keeps its GPU.
        let _ = unsafe { call!(self.table(), cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}
