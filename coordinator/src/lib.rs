//! The cluster's memory of itself: the raft group that agrees on the cluster map, the control plane that nodes and
//! clients ask, the admin API that operators use. Starts with [`start`].

mod actors;
mod admin;
mod config;
mod control_plane;
mod engines;
pub mod log;
mod log_thread;
mod membership;
mod peers;
mod server;
mod start;

pub use config::{CoordinatorConfig, CoordinatorError, PeerConfig};
pub use membership::{Difference, Membership, MembershipError};
pub use start::{CoordinatorHandle, start};
