//! Actors of a coordinator.

mod answers;
mod group;
pub(crate) mod raft;
pub(crate) mod vitals;
