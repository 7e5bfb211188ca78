//! Actors of a node.

pub(crate) mod device;
