//! Where slots are to be: what the planner and the balancer have coordinators agree on.

use crate::events::Reason;
use crate::ids::{DeviceId, Epoch, Slot};
use crate::map::Filling;
use serde::{Deserialize, Serialize};

/// Where one slot is to be. A device that is no replica of it yet comes to lack its blocks, so a block is somewhere at any time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placing {
    /// Which.
    pub slot: Slot,
    /// Its replicas, the primary first: one that has been its replica before and lacks nothing.
    pub set: Vec<DeviceId>,
    /// Those of them that lack older blocks; all others are taken to have them.
    pub filling: Filling,
}

/// Where one slot belongs from then on, because of how much it is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Balancing {
    /// Which.
    pub slot: Slot,
    /// Its replicas, the primary first; none: where its hash says.
    pub set: Vec<DeviceId>,
    /// Why.
    pub reason: Reason,
}

/// How evenly work is spread over devices, and what would make it more even.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BalanceReport {
    /// The epoch that it is based on.
    pub epoch: Epoch,
    /// What each device is asked for a second, and what it would be with the changes.
    pub rates: Vec<(DeviceId, u64, u64)>,
    /// What would be changed.
    pub changes: Vec<Balancing>,
    /// Why nothing would be, where nothing is.
    pub because: String,
}
