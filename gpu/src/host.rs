//! Host memory as a device.

use crate::device::{Device, DeviceError, DeviceInfo, DeviceKind};
use crate::frame::{ReadFrame, WriteFrame};
use crate::slab::Slab;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Host memory with a budget: the backend of machines without a GPU, and of every host tier.
pub struct HostDevice {
    memory_bytes: u64,
    given: Arc<AtomicU64>,
    is_shared: bool,
}

impl HostDevice {
    /// Makes a device that gives at most `memory_bytes` in all its slabs together.
    pub fn new(memory_bytes: u64) -> Self {
        HostDevice { memory_bytes, given: Arc::new(AtomicU64::new(0)), is_shared: false }
    }

    /// As [`HostDevice::new`], of memory that other processes of this host can be let look at, where the system has such memory that is as
    /// good as any other.
    pub fn shared(memory_bytes: u64) -> Self {
        HostDevice { is_shared: true, ..HostDevice::new(memory_bytes) }
    }

    fn refuse(&self, bytes: u64, reason: String) -> DeviceError {
        DeviceError::OutOfMemory { device: self.info().name, bytes, reason }
    }
}

impl Device for HostDevice {
    type Space = Slab;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: DeviceKind::Host, name: "host memory".to_owned(), memory_bytes: self.memory_bytes }
    }

    fn open_slab(&self, bytes: u64) -> Result<Slab, DeviceError> {
        let reserve = |given: u64| given.checked_add(bytes).filter(|sum| *sum <= self.memory_bytes);
        self.given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).map_err(|given| {
            self.refuse(bytes, format!("{given} of its {} bytes are given", self.memory_bytes))
        })?;
        Slab::map(bytes, self.given.clone(), self.is_shared)
            .map_err(|error| self.refuse(bytes, error.to_string()))
    }

    fn write(&self, from: &[u8], to: &mut WriteFrame) -> Result<(), DeviceError> {
        DeviceError::unless_equal(from.len(), to.len())?;
        to.bytes_mut().copy_from_slice(from);
        Ok(())
    }

    fn read(&self, from: &ReadFrame, to: &mut [u8]) -> Result<(), DeviceError> {
        DeviceError::unless_equal(from.len(), to.len())?;
        to.copy_from_slice(from.bytes());
        Ok(())
    }

    fn copy(&self, from: &ReadFrame, to: &mut WriteFrame) -> Result<(), DeviceError> {
        self.write(from.bytes(), to)
    }
}
