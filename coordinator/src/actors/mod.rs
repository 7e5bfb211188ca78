//! Actors of a coordinator.

mod answers;
pub(crate) mod directory;
mod emptying;
pub(crate) mod founding;
mod group;
pub(crate) mod levels;
pub(crate) mod mailbox;
pub(crate) mod raft;
mod scaling;
mod tidings;
pub(crate) mod vitals;

pub(crate) use answers::HAND_OVER_FIRST;
