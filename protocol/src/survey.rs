//! How much of some prefixes a node covers: what a client asks before it says where a request is to go.

use crate::data::Run;
use crate::ids::{DeviceId, Epoch, TenantId};
use crate::key::KeyList;
use serde::{Deserialize, Serialize};

/// See [`crate::data::DataRequest::Survey`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SurveyRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// Segments, as in [`crate::data::MatchRequest::runs`].
    pub runs: Vec<Run>,
    /// The blocks' keys, run after run; at most [`crate::data::MAX_KEYS_PER_MATCH`].
    pub keys: KeyList,
}

/// What is covered of one run, from its start, without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Surveyed {
    /// Blocks of it.
    pub covered: u32,
    /// Those of them that are in memory; the others are on disk.
    pub in_memory: u32,
}
