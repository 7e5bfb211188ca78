//! The cluster file: one TOML page that describes a kvhive cluster.
//!
//! This crate turns the file's text and the environment into a checked [`ClusterConfig`], or into every problem found,
//! each with its line. It opens no file, reads no environment and resolves no name: the caller hands the text over.
//!
//! ```
//! use kvhive_config::{ClusterConfig, Process};
//!
//! let text = r#"
//!     [cluster]
//!     name = "example"
//!     token_file = "token"
//!     [[coordinator]]
//!     id = "coord-a"
//!     host = "127.0.0.1"
//!     data_dir = "data/coord-a"
//!     [[node]]
//!     id = "node-a"
//!     host = "127.0.0.1"
//!     [[node.device]]
//!     memory = "128MiB"
//! "#;
//! let overrides = [("KVHIVE_NODE__NODE_A__IO_THREADS".to_owned(), "4".to_owned())];
//! let config = ClusterConfig::from_toml(text, overrides)?;
//! let Some(Process::Node(node)) = config.process("node-a") else { panic!("node-a is in the file") };
//! assert_eq!(node.io_threads, 4);
//! assert_eq!(node.data_address(), "127.0.0.1:7810");
//! # Ok::<(), kvhive_config::ConfigError>(())
//! ```

mod build;
mod check;
mod config;
mod environment;
mod hint;
mod keys;
mod ledger;
mod local;
mod mode;
mod nccl;
mod node;
mod parse;
mod problem;
mod reference;
mod render;
mod rule;
mod scaling;
mod section;
mod share;
mod tls;
mod token;
mod traces;
mod tree;
mod units;

pub use config::{
    Ack, ClusterConfig, ClusterParts, ClusterSettings, CoordinatorConfig, Newcomer, Process, RaftSettings,
    TokenSource,
};
pub use keys::{SHRINKING_STRATEGIES, STRATEGIES, TOKEN_VARIABLE};
pub use local::{LocalCluster, LocalShape};
pub use mode::{Codec, DiskAdmission, Mode, Tuning};
pub use nccl::{NcclSettings, NcclUse};
pub use node::{BlockClass, DeviceConfig, DeviceKind, NodeConfig, RedisSettings};
pub use problem::{ConfigError, Origin, Problem};
pub use reference::reference_markdown;
pub use scaling::{Executor, ScalingMode, ScalingSettings};
pub use share::ShareMemory;
pub use tls::TlsPaths;
pub use token::{Token, TokenError};
pub use traces::Traces;
pub use units::{Bytes, SizeError, format_share, format_time};

/// The longest cluster file, in bytes.
pub const MAX_FILE_BYTES: usize = 16 << 20;
