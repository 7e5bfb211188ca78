//! Actors of a coordinator.

mod answers;
mod group;
pub(crate) mod raft;
mod tidings;
pub(crate) mod vitals;
