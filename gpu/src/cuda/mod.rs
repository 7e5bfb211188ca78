//! NVIDIA GPUs: found at run time, never linked. A machine without one builds and runs all the same; what is missing is an error
//! that says so.
//!
//! Everything goes through one table of the driver's functions, each looked up when the library is loaded: a library that is not
//! there, lacks a function, or is too old is a [`CudaError`], never a panic.
//!
//! ```
//! use kvhive_gpu::cuda::{Cuda, CudaError};
//!
//! match Cuda::find().and_then(|cuda| cuda.gpus()) {
//!     Ok(gpus) => gpus.iter().for_each(|gpu| println!("{gpu}")),
//!     Err(error @ CudaError::NoLibrary { .. }) => println!("no GPU here: {error}"),
//!     Err(error) => println!("{error}"),
//! }
//! ```

mod copier;
mod device;
mod digester;
mod driver;
mod error;
mod gpu;
mod ipc;
mod kernels;
mod lane;
mod library;
mod list;
mod mapped;
mod mark;
mod memory;
mod nvml;
mod pager;
mod shelf;
mod slab;
mod stage;
mod stream;

pub use copier::Copier;
pub use device::CudaDevice;
pub use digester::{Digester, Span};
pub use driver::{Cuda, GpuInfo};
pub use error::{CudaError, Version};
pub use gpu::{Entered, Gpu};
pub use ipc::{Borrowed, Loan};
pub use lane::Patience;
pub use mapped::Imported;
pub(crate) use mark::Mark;
pub(crate) use memory::Registered;
pub use memory::{GpuMemory, Pinned, Staging};
pub use nvml::{Nvml, NvmlError, Topology, Trouble, Watch};
pub use pager::{Paged, Pager, PagerError, Way};
pub use slab::GpuSlab;
pub use stage::{Ferry, Stage};
pub use stream::{Between, Direction, Part, Piece, Stream, Timer};
