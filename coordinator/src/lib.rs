//! The cluster's memory of itself: the raft group that agrees on the cluster map, the control plane that nodes and
//! clients ask, the admin API that operators use. Starts with [`start`].

mod actors;
mod admin;
mod alone;
mod backup;
mod blocks;
mod config;
mod control_plane;
mod engines;
#[doc(hidden)]
pub mod fuzz;
pub mod log;
mod log_thread;
mod membership;
mod offline;
mod peers;
mod server;
mod start;

pub use alone::{Alone, AloneError};
pub use backup::{Backup, BackupError, BackupHead, MAX_BACKUP_BYTES};
pub use blocks::BlockEventsConfig;
pub use config::{CoordinatorConfig, CoordinatorError, PeerConfig};
pub use kvhive_control::Cleared;
pub use membership::{Difference, Membership, MembershipError};
pub use offline::{Begun, OfflineError, Place, Recovery, restore};
pub use start::{CoordinatorHandle, start};
