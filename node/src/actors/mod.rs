//! The actors of a node.

pub(crate) mod device;
