//! NVIDIA's NCCL: found at run time, never linked. A machine without it builds and runs all the same; what is missing is an error that
//! says so.
//!
//! Every call is a [`Result`], none panics, and a [`Comm`] that is dropped is aborted. Communicators are non-blocking, as only such can
//! be given up at any point; who uses one polls its [`Comm::state`]. Knows nothing of CUDA but addresses and a stream's number.
//!
//! ```
//! use nccl_rs::{Nccl, NcclError};
//!
//! match Nccl::find() {
//!     Ok(nccl) => println!("NCCL {}", nccl.version()),
//!     Err(error @ NcclError::NoLibrary { .. }) => println!("no NCCL here: {error}"),
//!     Err(error) => println!("{error}"),
//! }
//! ```

mod comm;
mod error;
mod library;
mod nccl;

pub use comm::{Comm, Config, Group, Rank, Span, State};
pub use error::{Code, NcclError, Version};
pub use nccl::{Nccl, UniqueId};
