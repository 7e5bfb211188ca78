//! How bytes get from one device to another, pure: nothing here knows sockets, GPUs, threads or clocks; time comes in with each
//! call.
//!
//! - [`Links`]: by which way a transfer goes: within the process, through shared memory, by NCCL or by TCP.

pub mod choice;

pub use choice::{Choice, Ends, Links, Reason};
