//! Clusters as processes: one process of a cluster file, or a whole cluster on this machine.

pub(crate) mod end;
pub(crate) mod local;
mod lock;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod process;

#[cfg(test)]
mod modes_test;
#[cfg(test)]
mod one_node;
