//! The kernels: PTX that is committed beside its source and compiled by the driver, once for each GPU that is opened.
#![allow(unsafe_code, reason = "calls CUDA's driver")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Handle, call};
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

/// `gpu/kernels/copy.cu`, by `gpu/kernels/compile.py`.
const COPY: &str = include_str!("../../kernels/copy.ptx");

/// The kernels of one GPU, loaded at their first use.
#[derive(Default)]
pub(super) struct Kernels(Mutex<Option<Loaded>>);

#[derive(Clone, Copy)]
struct Loaded {
    module: Handle,
    copy: Handle,
}

// SAFETY: handles, which any thread may use in which the GPU's context is current.
unsafe impl Send for Loaded {}

impl Kernels {
    /// Returns the kernel that copies pieces.
    pub(super) fn copy(&self, gpu: &Gpu) -> Result<Handle, CudaError> {
        // Nothing is left half-done under this lock.
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = *loaded {
            return Ok(loaded.copy);
        }
        let fresh = Loaded::new(gpu)?;
        *loaded = Some(fresh);
        Ok(fresh.copy)
    }

    /// Lets go of them.
    pub(super) fn clear(&self, gpu: &Gpu) {
        if let Some(loaded) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            loaded.unload(gpu);
        }
    }
}

impl Loaded {
    fn new(gpu: &Gpu) -> Result<Loaded, CudaError> {
        let table = gpu.table();
        let text = CString::new(COPY).expect("PTX is text");
        let _entered = gpu.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the function reads text up to its 0, and writes one handle.
        unsafe { call!(table, cuModuleLoadData(&raw mut module, text.as_ptr().cast())) }?;
        let mut loaded = Loaded { module, copy: std::ptr::null_mut() };
        // SAFETY: the module was just loaded; the function reads the name and writes one handle.
        let found = unsafe {
            call!(table, cuModuleGetFunction(&raw mut loaded.copy, module, CStr::as_ptr(c"kvhive_copy")))
        };
        match found {
            Ok(()) => Ok(loaded),
            Err(error) => {
                loaded.unload(gpu);
                Err(error)
            }
        }
    }

    fn unload(self, gpu: &Gpu) {
        // SAFETY: it is this one's own, and no kernel of it is under way: who launches one waits for it.
        gpu.let_go(|table| unsafe { (table.cuModuleUnload)(self.module) });
    }
}
