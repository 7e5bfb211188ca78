//! Shared memory: how a peer on the same host is let look at a node's memory, and how it is told where blocks lie there instead of being
//! sent them.
//!
//! Over the data plane a peer asks to be let look ([`ShareRequest`]) and is offered a door: a local socket's name, and a pass that opens it
//! once. Behind it there are descriptors of the node's memory, to be read alone. From then on it may ask for blocks by [`LookRequest`]: what
//! lies there is answered by its place and held until the asker is done, or a limit has passed.

use crate::block::BlockHeader;
use crate::data::{FetchRequest, StoreRequest};
use crate::ids::{DeviceId, Epoch, MemberId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Blocks smaller than this are sent: telling their place and hearing that the asker is done costs as much.
pub const LEAST_SHARED_BYTES: u64 = 32 << 10;
/// Bytes of the longest name of a door.
pub const MAX_DOOR_BYTES: usize = 100;
/// The most pieces of memory that one node shares.
pub const MAX_SHARED: usize = 64;

/// Says which host a process is on, as far as local sockets reach: one start of one system, and its network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct HostId(pub [u8; 32]);

impl HostId {
    /// Makes it from what the system says of both.
    pub fn new(start: &str, network: (u64, u64)) -> HostId {
        let mut hasher = blake3::Hasher::new_derive_key("kvhive 2026-11 host v1");
        hasher.update(&network.0.to_le_bytes());
        hasher.update(&network.1.to_le_bytes());
        hasher.update(start.as_bytes());
        HostId(*hasher.finalize().as_bytes())
    }
}

/// What opens a door once. It is for the asker alone.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass(pub [u8; 32]);

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass(secret)")
    }
}

/// See [`crate::data::DataRequest::Share`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShareRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// A device of the node asked: its memory is shared as a whole.
    pub device: DeviceId,
    /// Where the asker is.
    pub host: HostId,
}

/// What an asker to be let look is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ShareAnswer {
    /// It may.
    Offered(ShareOffer),
    /// It may not, or cannot.
    Not(NotShared),
}

/// Where a node's memory is to be had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShareOffer {
    /// This start of the node: no other has the same memory.
    pub start: u64,
    /// The name of an abstract local socket; at most [`MAX_DOOR_BYTES`].
    pub door: String,
    /// Opens it, for a few seconds.
    pub pass: Pass,
}

/// Why an asker may not look.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum NotShared {
    /// It is on another host.
    Elsewhere,
    /// Nobody of its role may.
    Role,
    /// The node has no memory that can be shared.
    Nothing,
    /// As many as may look do so already, or are about to.
    Full,
}

impl NotShared {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            NotShared::Elsewhere => "elsewhere",
            NotShared::Role => "role",
            NotShared::Nothing => "nothing",
            NotShared::Full => "full",
        }
    }
}

/// See [`crate::data::DataRequest::Look`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LookRequest {
    /// The start of the node whose memory the asker sees; another's places would mean nothing to it.
    pub start: u64,
    /// The blocks.
    pub fetch: FetchRequest,
}

/// Where a block's bytes are in a node's memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct SharedAt {
    /// Which piece of it.
    pub slab: u64,
    /// From which byte on.
    pub at: u64,
}

/// What a look found of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Looked {
    /// It is there: `header.payload_bytes` bytes.
    At(BlockHeader, SharedAt),
    /// It is sent: as many bytes of the payload are its.
    Sent(BlockHeader),
    /// It is not here.
    Miss,
}

/// See [`crate::data::DataRequest::Done`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DoneRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// What the look's answer was called.
    pub grant: u64,
}

/// See [`crate::data::DataRequest::Carry`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CarryRequest {
    /// The node that has the bytes.
    pub source: MemberId,
    /// The start of that node.
    pub start: u64,
    /// Where in its memory each block of the store is; none of those whose bytes are the payload, in order.
    pub places: Vec<Option<SharedAt>>,
    /// The store; it is a copy.
    pub store: StoreRequest,
}
