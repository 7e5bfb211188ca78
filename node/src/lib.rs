//! One cache server: a device actor for each device, the data plane that moves blocks between sockets and their arenas,
//! and membership in a cluster. Starts with [`start`]; may live inside a serving process.

mod actors;
mod config;
mod data;
mod guards;
mod membership;
mod memory;
mod metrics;
mod start;
mod view;

pub use config::{DeviceConfig, NodeConfig, NodeError};
pub use start::{NodeHandle, start};
