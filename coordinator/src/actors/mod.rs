//! Actors of a coordinator.

pub(crate) mod raft;
