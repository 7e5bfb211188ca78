//! Actors of a coordinator.

mod answers;
pub(crate) mod raft;
pub(crate) mod vitals;
