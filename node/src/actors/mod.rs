//! The actors of a node.

pub(crate) mod core;
pub(crate) mod device;
pub(crate) mod disk;
mod explain;
mod load;
pub(crate) mod shrink;
pub(crate) mod uses;
