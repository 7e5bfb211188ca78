//! Where block bytes live: devices, arenas of block-sized frames, copies between them. Knows bytes and frames, never
//! keys, tenants or sockets.
//!
//! A [`Device`] gives one piece of memory, taken once: the host's, a [`Slab`], or a GPU's, a [`cuda::GpuSlab`]. An [`Arena`] cuts
//! it into frames of a few sizes. A [`WriteFrame`] is the only handle on its frame; sealed, it becomes a [`ReadFrame`] that may be
//! cloned, and the frame is free again when the last clone is gone, never earlier. What kind of memory a frame is of is in its type:
//! only those of the host have bytes that the processor sees. Host memory may be shared: another process of the host maps it as a
//! [`Window`], to read.
//!
//! ```
//! use kvhive_gpu::{Arena, HostDevice, SizeClass};
//!
//! let device = HostDevice::new(1 << 20);
//! let arena = Arena::new(&device, &[SizeClass { frame_bytes: 4096, frames: 16 }])?;
//! let class = arena.class_for(1000).expect("4096 bytes hold 1000");
//! let mut frame = arena.take(class, 1000).expect("16 frames are free");
//! frame.bytes_mut().fill(7);
//! let block = frame.seal();
//! assert_eq!(arena.free_frames(class), 15);
//! drop(block);
//! assert_eq!(arena.free_frames(class), 16);
//! # Ok::<(), kvhive_gpu::ArenaError>(())
//! ```

mod arena;
pub mod codec;
pub mod contract;
pub mod cuda;
mod device;
mod frame;
mod host;
pub mod pages;
mod shared;
mod slab;
mod space;
mod whole;
mod window;
pub mod worker;

pub use arena::{Arena, ArenaError, ClassId, SizeClass};
pub use device::{Device, DeviceError, DeviceInfo, DeviceKind};
pub use frame::{FrameId, ReadFrame, SharedPlace, WriteFrame};
pub use host::HostDevice;
pub use slab::{PageKind, SharedSlab, Slab};
pub use space::Space;
pub use window::{Window, WindowError};
