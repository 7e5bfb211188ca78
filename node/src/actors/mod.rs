//! The actors of a node.

pub(crate) mod core;
pub(crate) mod device;
