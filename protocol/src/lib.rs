//! What kvhive's processes say to each other: ids, block keys, layouts, block headers, the cluster map, frames and
//! messages. Everything here is a value or a pure function: no IO, no clock, no threads.
//!
//! A frame on the wire is a fixed header ([`frame::FrameHeader`]), a bincode-encoded message ([`data`], [`control`],
//! [`handshake`]) and raw payload bytes. Block bytes never pass through the codec.

pub mod block;
pub mod codec;
mod command;
pub mod control;
mod counted;
pub mod data;
pub mod emptying;
pub mod engines;
pub mod error;
pub mod events;
pub mod explain;
pub mod frame;
mod growing;
pub mod handshake;
pub mod ids;
pub mod key;
pub mod layout;
pub mod level;
pub mod links;
pub mod load;
pub mod map;
pub mod moment;
pub mod names;
pub mod number;
mod outcomes;
pub mod pairs;
pub mod pins;
pub mod placing;
pub mod raft;
pub mod recall;
pub mod routing;
pub mod scaling;
pub mod share;
pub mod stage;
pub mod strategy;
pub mod survey;
pub mod tenant;
pub mod trace;
pub mod watch;

pub use block::{BlockDigest, BlockHeader, HeaderError};
pub use counted::{counted, counted_are};
pub use error::{StillServing, WireError};
pub use events::{ClusterEvent, EventKind, LogEntry, Note, Origin, Reason, Subject};
pub use ids::{ClusterId, DeviceId, Epoch, Era, Generation, MemberId, RequestId, Slot, TenantId};
pub use key::{BlockKey, KeyList, Namespace, NamespaceKey};
pub use layout::{AxisOrder, Dtype, Layout, LayoutFingerprint};
pub use level::{Level, Levels};
pub use map::{ClusterMap, Filling, Lingering, Member, MemberState, ReplicaSet, Tenant};
pub use moment::Moment;
pub use pins::{Pin, PinMode};
pub use strategy::Strategy;
pub use tenant::{Change, RulesChange, TenantRules};
pub use trace::{TraceContext, TraceId};

/// Slots of a cluster: the unit of placement. A home key belongs to slot `hash(home key) mod SLOTS`.
pub const SLOTS: u16 = 4096;
