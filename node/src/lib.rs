//! One cache server: a device actor for each device, the data plane that moves blocks between sockets and their arenas,
//! and membership in a cluster. Starts with [`start`]; may live inside a serving process: it keeps nothing global and
//! ends no process.

mod actors;
mod admin;
mod book;
mod budget;
mod config;
mod data;
mod disk;
mod disks;
pub mod engine;
mod far;
mod ferrying;
mod fill;
mod frames;
#[doc(hidden)]
pub mod fuzz;
mod guards;
mod handle;
mod latency;
mod layouts;
mod links;
mod membership;
mod memory;
mod metrics;
mod pace;
mod passing;
mod persist;
mod redis;
mod rules;
mod settle;
mod share;
mod start;
mod stats;
mod traffic;
mod view;
mod work;

#[cfg(test)]
mod tests;

pub use config::{
    ClassConfig, DeviceConfig, DeviceMemory, DiskKeys, NcclConfig, NodeConfig, NodeError, PersistConfig,
    RedisConfig, Tuning,
};
pub use disk::{DiskBench, DiskError};
pub use handle::NodeHandle;
pub use latency::{Latencies, LatencySummary};
pub use pace::MoveLimits;
pub use persist::{Loaded, PersistError, PersistProgress, Saved};
pub use share::ShareMemory;
pub use start::start;
pub use stats::{
    CodecFigures, CollectedFor, Collections, Evictions, NodeStats, Prefetches, Shrinks, StrategyFigures,
    TierUse, TransportUse,
};
