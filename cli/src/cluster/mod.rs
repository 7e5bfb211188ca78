//! Clusters as processes: one process of a cluster file, or a whole cluster on this machine.

pub mod local;
pub mod process;
