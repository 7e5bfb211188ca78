//! What a device can do: describe itself, give its memory, move bytes between frames and the host.

use crate::frame::{ReadFrame, WriteFrame};
use crate::space::Space;
use thiserror::Error;

/// A GPU, or host memory standing in for one.
pub trait Device: Send + Sync + 'static {
    /// The memory that it gives.
    type Space: Space;

    /// Describes the device.
    fn info(&self) -> DeviceInfo;

    /// Takes `bytes` of its memory, all at once; it goes back when what was taken is dropped.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] when the device has not that much.
    fn open_slab(&self, bytes: u64) -> Result<Self::Space, DeviceError>;

    /// Writes as many bytes of the host's memory to a frame as it was taken for.
    ///
    /// # Errors
    /// [`DeviceError::Length`] when they are not as many, and nothing was written; else why the device does not take them.
    fn write(&self, from: &[u8], to: &mut WriteFrame<Self::Space>) -> Result<(), DeviceError>;

    /// Reads all bytes of a sealed frame into the host's memory.
    ///
    /// # Errors
    /// As for [`Device::write`].
    fn read(&self, from: &ReadFrame<Self::Space>, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Copies a sealed frame's bytes into a frame of the same length, both of this device's memory.
    ///
    /// # Errors
    /// As for [`Device::write`].
    fn copy(
        &self,
        from: &ReadFrame<Self::Space>,
        to: &mut WriteFrame<Self::Space>,
    ) -> Result<(), DeviceError>;
}

/// What kind of memory a device is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// The host's own memory.
    Host,
    /// An NVIDIA GPU's memory.
    Cuda,
}

impl DeviceKind {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            DeviceKind::Host => "host",
            DeviceKind::Cuda => "cuda",
        }
    }
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
    /// A copy between places of different lengths.
    #[error("cannot copy {from} bytes to where {to} are to be")]
    Length {
        /// Bytes of the source.
        from: u64,
        /// Bytes of the target.
        to: u64,
    },
    /// A copy failed, and the next may not.
    #[error("{device}: {reason}")]
    Failed {
        /// Which device.
        device: String,
        /// What the system says.
        reason: String,
    },
    /// The device does nothing any more: what it held is lost.
    #[error("{device} is lost: {reason}")]
    Lost {
        /// Which device.
        device: String,
        /// What the system said when it was.
        reason: String,
    },
}

impl DeviceError {
    /// Makes an error of a copy between places of different lengths.
    pub(crate) fn unless_equal(from: usize, to: usize) -> Result<(), DeviceError> {
        if from == to { Ok(()) } else { Err(DeviceError::Length { from: from as u64, to: to as u64 }) }
    }
}
