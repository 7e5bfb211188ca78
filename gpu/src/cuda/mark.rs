//! A place in a stream that can be asked whether the GPU has come to it, without waiting.
#![allow(unsafe_code, reason = "calls CUDA's driver")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Handle, call};
use super::stream::Stream;
use std::sync::Arc;

/// `CU_EVENT_DISABLE_TIMING`.
const UNTIMED: u32 = 2;
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: i32 = 600;

/// A place in a stream. One that was never set has been come to.
pub(crate) struct Mark {
    gpu: Arc<Gpu>,
    event: Handle,
}

impl Mark {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Mark, CudaError> {
        let _entered = gpu.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the function writes one handle.
        unsafe { call!(gpu.table(), cuEventCreate(&raw mut event, UNTIMED)) }?;
        Ok(Mark { gpu: gpu.clone(), event })
    }

    /// Sets it behind all that the stream was asked so far.
    pub(crate) fn set(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let _entered = self.gpu.enter()?;
        // SAFETY: both handles are of this GPU, and live.
        unsafe { call!(self.gpu.table(), cuEventRecord(self.event, stream.raw)) }
    }

    /// Says whether the GPU has come to it.
    pub(crate) fn is_past(&self) -> Result<bool, CudaError> {
        let _entered = self.gpu.enter()?;
        // SAFETY: the handle is this one's own.
        match unsafe { call!(self.gpu.table(), cuEventQuery(self.event)) } {
            Ok(()) => Ok(true),
            Err(CudaError::Failed { code: NOT_READY, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: it is this one's own.
        self.gpu.let_go(|table| unsafe { (table.cuEventDestroy_v2)(self.event) });
    }
}
