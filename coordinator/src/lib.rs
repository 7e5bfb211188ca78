//! The cluster's memory of itself: the raft group that agrees on the cluster map, the control plane that nodes and
//! clients ask, the admin API that operators use. Starts with [`start`].

mod actors;
mod admin;
mod config;
mod control_plane;
pub mod log;
mod log_thread;
mod peers;
mod server;
mod start;

pub use config::{CoordinatorConfig, CoordinatorError, PeerConfig};
pub use start::{CoordinatorHandle, start};
