//! Recalling: what a node remembers of a request that came with a trace context, a while later: which of its blocks were missing, and why
//! as of then. What engines do about a miss is to store the block, so that afterwards nothing is missing any more.

use crate::explain::Explained;
use crate::ids::{DeviceId, Epoch, TenantId};
use crate::key::BlockKey;
use crate::trace::TraceId;
use serde::{Deserialize, Serialize};

/// The most parts of one request that an answer has: what was asked of devices of one node.
pub const MAX_RECALLED: usize = 64;
/// The most missing blocks that are remembered of one part.
pub const MAX_MISSED: usize = 64;

/// What does this device's node remember of a request?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecallRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// Any device of the node asked.
    pub device: DeviceId,
    /// Which request.
    pub trace: TraceId,
}

/// One part of a request: what was asked of one device, once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recalled {
    /// The device.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// Whether they were to be sent, or only looked for.
    pub fetches: bool,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
    /// Blocks that were asked for.
    pub blocks: u32,
    /// Those of them that were there: of a match up to the first of each segment that was not.
    pub hits: u32,
    /// Those that were not, at most [`MAX_MISSED`], and what was known of each right after the request was answered.
    pub missed: Vec<(BlockKey, Explained)>,
}
