//! A client of a kvhive cluster: names blocks, finds where they live, matches, fetches and stores them.
//!
//! The cache is an accelerator: what cannot be reached in time is a miss, never a reason to wait. Every fetched block is
//! checked against its header after the last copy, in the caller's own memory; one that does not match is a miss too.
//!
//! ```no_run
//! use kvhive_client::{Client, ClientConfig, StoreOptions};
//! use kvhive_protocol::{AxisOrder, Dtype, Layout};
//!
//! # async fn run() -> Result<(), kvhive_client::ClientError> {
//! let client = Client::connect(ClientConfig::new(vec!["10.0.0.1:7801".into()], b"the cluster's token".to_vec())).await?;
//! let layout = Layout { layers: 32, kv_heads: 8, head_dim: 128, tokens: 16, dtype: Dtype::F16, order: AxisOrder::LayersFirst };
//! let blocks = client.namespace("default", "llama-8b@1", layout, 0)?;
//! let prefix = blocks.keys(&[1; 64]);
//! let covered = blocks.match_prefix(&prefix).await?.covered;
//! let bytes = layout.block_bytes().expect("a layout of ordinary size") as usize;
//! let mut memory = vec![vec![0u8; bytes]; covered];
//! let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
//! let loaded = blocks.fetch_into(&prefix, 0..covered, &mut targets).await?.delivered();
//! // … compute what is missing, then:
//! let computed = vec![vec![0u8; bytes]; prefix.len() - loaded];
//! let computed: Vec<&[u8]> = computed.iter().map(|block| &block[..]).collect();
//! blocks.store(&prefix, loaded..prefix.len(), &computed, StoreOptions::default()).await?;
//! # Ok(())
//! # }
//! ```

mod call;
mod client;
pub mod codec;
mod control;
mod error;
mod explain;
mod fetch;
mod hedge;
mod line;
mod look;
mod matching;
mod namespace;
mod pins;
mod pool;
mod prefix;
mod queue;
mod recall;
mod release;
mod retry;
mod rounds;
mod route;
mod staged;
mod stages;
mod stats;
mod store;
mod strain;
mod strategies;
mod survey;
mod targets;
mod traces;
mod transfer;
mod values;
mod waits;
mod watch;
mod windows;
mod worth;

pub use client::{Client, ClientConfig};
pub use control::Coordinators;
pub use error::ClientError;
pub use explain::{BlockExplained, Explanation, Place, Replica, Silence, Verdict};
pub use fetch::{FetchOutcome, FetchReport, Loaded, MissReason};
pub use kvhive_spans::{Tracer, TracerConfig, TracerError};
pub use matching::PrefixMatch;
pub use namespace::NamespaceClient;
pub use pool::{Lease, Pool};
pub use prefix::Prefix;
pub use recall::RequestRecalled;
pub use release::ReleaseReport;
pub use stages::StageLease;
pub use stats::ClientStats;
pub use store::{StoreOptions, StoreOutcome, StoreReport};
pub use strain::{Mean, Strain};
pub use strategies::DeviceStrategies;
pub use survey::{Stretch, Survey};
pub use traces::NodeTraces;
pub use values::{Kept, Put, PutOutcome, Values};
pub use watch::{Block, BlockChange, BlockWatch, Follower, Taken, WatchReport};
pub use windows::{Attempt, Fallback, Opened, Sight, Windows};
pub use worth::Advice;
