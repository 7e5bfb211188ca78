//! All machines of a cluster on one seeded event heap: raft, registry and overseer of three coordinators, membership and
//! shard of three nodes, clients that store, match, read and clear. Messages are delayed, lost, repeated and reordered;
//! processes crash and return, disks forget what was not synced, links are cut. Invariants are checked after every event.
//! [`pairs`] does the same with NCCL pairs of GPUs.
//!
//! Everything follows from the seed: the same seed gives the same trace hash, and a failing seed replays with
//! `KVHIVE_SIM_SEED=N scripts/test sim`.

mod block;
mod breach;
mod coordinator;
mod crowd;
mod frames;
mod node;
pub mod pairs;
mod random;
mod shrink;
mod world;

pub use breach::Broken;
pub use crowd::Crowd;
pub use random::Random;
pub use shrink::shrink;
pub use world::{Muted, Outcome, World};
