//! The kernels: PTX that is committed beside its source and compiled by the driver, once for each GPU that is opened.
#![allow(unsafe_code, reason = "calls CUDA's driver")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Handle, call};
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

/// A file of `gpu/kernels`, compiled by `gpu/kernels/compile.py`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum File {
    Copy,
    Digest,
    Raw,
    Int8,
    Fp8,
    /// The same for GPUs with instructions for e4m3.
    Fp8OfSm89,
    Int4,
}

impl File {
    fn ptx(self) -> &'static str {
        match self {
            File::Copy => include_str!("../../kernels/copy.ptx"),
            File::Digest => include_str!("../../kernels/digest.ptx"),
            File::Raw => include_str!("../../kernels/raw.ptx"),
            File::Int8 => include_str!("../../kernels/int8.ptx"),
            File::Fp8 => include_str!("../../kernels/fp8.ptx"),
            File::Fp8OfSm89 => include_str!("../../kernels/fp8_sm89.ptx"),
            File::Int4 => include_str!("../../kernels/int4.ptx"),
        }
    }
}

/// The kernels of one GPU. Each file is loaded at its first use: the driver takes a second for the largest, the first time on a machine.
#[derive(Default)]
pub(super) struct Kernels(Mutex<Vec<Loaded>>);

struct Loaded {
    file: File,
    module: Handle,
}

// SAFETY: a handle, which any thread may use in which the GPU's context is current.
unsafe impl Send for Loaded {}

impl Kernels {
    /// Returns a kernel of a file, by its name.
    pub(super) fn find(&self, gpu: &Gpu, file: File, name: &CStr) -> Result<Handle, CudaError> {
        // Nothing is left half-done under this lock.
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _entered = gpu.enter()?;
        let module = match loaded.iter().find(|loaded| loaded.file == file) {
            Some(loaded) => loaded.module,
            None => {
                let module = load(gpu, file)?;
                loaded.push(Loaded { file, module });
                module
            }
        };
        let mut kernel = std::ptr::null_mut();
        // SAFETY: the module is loaded until the GPU is closed; the function reads the name and writes one handle.
        unsafe { call!(gpu.table(), cuModuleGetFunction(&raw mut kernel, module, CStr::as_ptr(name))) }?;
        Ok(kernel)
    }

    /// Lets go of them.
    pub(super) fn clear(&self, gpu: &Gpu) {
        for Loaded { module, .. } in
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
        {
            // SAFETY: it is this one's own, and no kernel of it is under way: who launches one waits for it.
            gpu.let_go(|table| unsafe { (table.cuModuleUnload)(module) });
        }
    }
}

/// Loads a file; the GPU's context is current.
fn load(gpu: &Gpu, file: File) -> Result<Handle, CudaError> {
    let text = CString::new(file.ptx()).expect("PTX is text");
    let mut module = std::ptr::null_mut();
    // SAFETY: the function reads text up to its 0, and writes one handle.
    unsafe { call!(gpu.table(), cuModuleLoadData(&raw mut module, text.as_ptr().cast())) }?;
    Ok(module)
}
