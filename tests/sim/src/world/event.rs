//! What can happen, where, and who asked.

use super::Host;
use crate::block::Block;
use crate::node::{Copying, Reading};
use kvhive_protocol::control::{ControlReply, Heartbeat, Proposal};
use kvhive_protocol::data::Stored;
use kvhive_protocol::{ClusterMap, DeviceId, Epoch, Era, Moment, RequestId, TenantId};
use std::sync::Arc;

pub(super) enum Event {
    Raft { from: Host, to: Host, bytes: Vec<u8> },
    CoordinatorTick(Host),
    Sync(Host),
    Ask { to: Host, ask: u64, what: What },
    Answer { ask: u64, reply: ControlReply },
    AskLimit { ask: u64 },
    Client,
    Trouble,
    Node(usize, u64, AtNode),
}

/// What happens at a node. What another start of it asked for is not heard.
#[derive(Clone)]
pub(super) enum AtNode {
    Tick,
    Adopt(Arc<ClusterMap>),
    Store {
        block: Block,
        word: u64,
    },
    /// A block for a replica; `source` waits for its word on it.
    Copy {
        block: Block,
        word: u64,
        source: (usize, u64, u64),
    },
    Copied {
        store: u64,
        device: DeviceId,
        said: Option<Stored>,
    },
    CopyLimit {
        store: u64,
    },
    /// A copy between tiers ends.
    Moved {
        copy: Copying,
        done: bool,
    },
    Give {
        source: (usize, u64, u64),
        blocks: Vec<(Block, u64)>,
    },
    Given {
        round: u64,
    },
    Fetch {
        tenant: TenantId,
        numbers: Vec<u64>,
        oldest: Era,
    },
    Read {
        reading: Reading,
        oldest: Era,
    },
}

#[derive(Clone)]
pub(super) enum What {
    Submit(Proposal),
    Beat(Heartbeat),
    Map(Epoch),
}

/// Who asked, and the epoch that had been told then.
pub(super) enum Asker {
    Register { node: usize, start: u64, floor: Epoch },
    Beat { node: usize, start: u64, sent: Moment, floor: Epoch, have: Epoch },
    Clear { request: RequestId, tenant: TenantId },
    Map { floor: Epoch, have: Epoch },
    Other(RequestId),
}

impl Event {
    pub(super) fn tag(&self) -> u64 {
        match self {
            Event::Raft { from, to, bytes } => {
                1 + (*from as u64) * 16 + (*to as u64) * 256 + ((bytes.len() as u64) << 12)
            }
            Event::CoordinatorTick(host) => 2 + (*host as u64) * 16,
            Event::Sync(host) => 3 + (*host as u64) * 16,
            Event::Ask { to, ask, .. } => 5 + (*to as u64) * 16 + ask * 256,
            Event::Answer { ask, .. } => 6 + ask * 256,
            Event::AskLimit { ask } => 7 + ask * 256,
            Event::Client => 10,
            Event::Trouble => 11,
            Event::Node(node, start, what) => 4 + (*node as u64) * 16 + (start << 8) + (what.tag() << 16),
        }
    }
}

impl AtNode {
    pub(super) fn tag(&self) -> u64 {
        match self {
            AtNode::Tick => 0,
            AtNode::Adopt(map) => 1 + map.epoch.0 * 16,
            AtNode::Store { word, .. } => 2 + (word << 4),
            AtNode::Copy { word, .. } => 3 + (word << 4),
            AtNode::Copied { store, .. } => 4 + store * 16,
            AtNode::CopyLimit { store } => 5 + store * 16,
            AtNode::Moved { done, .. } => 6 + u64::from(*done) * 16,
            AtNode::Give { blocks, .. } => 7 + blocks.len() as u64 * 16,
            AtNode::Given { round } => 8 + round * 16,
            AtNode::Fetch { numbers, .. } => 9 + numbers[0] * 16,
            AtNode::Read { reading, .. } => 10 + reading.ids.len() as u64 * 16,
        }
    }
}
