//! How bytes get from one device to another, pure: nothing here knows sockets, GPUs, threads or clocks; time comes in with each
//! call.
//!
//! - [`Links`]: by which way a transfer goes: within the process, through shared memory, by NCCL or by TCP.
//! - [`Pairs`]: the NCCL communicators of one GPU with others, and whose turn it is.

pub mod choice;
pub mod pairs;

pub use choice::{Choice, Ends, Links, Reason};
pub use pairs::Pairs;
