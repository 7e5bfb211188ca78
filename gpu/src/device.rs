//! What a device can do: describe itself, give its memory, copy between frames.

use crate::frame::{ReadFrame, WriteFrame};
use crate::slab::Slab;
use thiserror::Error;

/// A GPU, or host memory standing in for one.
pub trait Device: Send + Sync + 'static {
    /// Describes the device.
    fn info(&self) -> DeviceInfo;

    /// Takes `bytes` of its memory, all at once; it goes back when the slab is dropped.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when the device has not that much.
    fn open_slab(&self, bytes: u64) -> Result<Slab, DeviceError>;

    /// Copies a sealed frame's bytes into a frame of the same length, on this device or another of its kind.
    ///
    /// # Errors
    /// [`DeviceError::Length`] when the lengths differ; nothing was copied.
    fn copy(&self, from: &ReadFrame, to: &mut WriteFrame) -> Result<(), DeviceError>;
}

/// What kind of memory a device is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// The host's own memory.
    Host,
}

/// A device as it describes itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// What kind of memory it is.
    pub kind: DeviceKind,
    /// Its name, for people.
    pub name: String,
    /// How much memory it may give, in bytes.
    pub memory_bytes: u64,
}

/// Why a device did not do what it should.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DeviceError {
    /// The device has not that much memory left.
    #[error("{device} cannot give {bytes} bytes: {reason}")]
    OutOfMemory {
        /// Which device.
        device: String,
        /// How much was asked.
        bytes: u64,
        /// What the system says.
        reason: String,
    },
    /// A copy between frames of different lengths.
    #[error("cannot copy a frame of {from} bytes into one of {to}")]
    Length {
        /// Bytes of the source.
        from: u64,
        /// Bytes of the target.
        to: u64,
    },
}
