//! The actors of a node.

mod copies;
pub(crate) mod core;
pub(crate) mod device;
pub(crate) mod disk;
pub(crate) mod displace;
mod explain;
mod gpu;
mod load;
mod pins;
pub(crate) mod shrink;
pub(crate) mod uses;
mod wipe;
