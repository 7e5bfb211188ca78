//! Clusters as processes: one process of a cluster file, or a whole cluster on this machine.

pub(crate) mod local;
pub(crate) mod process;
mod shape;

#[cfg(test)]
mod modes_test;
