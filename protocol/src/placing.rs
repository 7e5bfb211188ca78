//! Where slots are to be: what the planner and the balancer have coordinators agree on.

use crate::events::Reason;
use crate::ids::{DeviceId, Epoch, MemberId, Slot};
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

/// How far a slot is on its way to where it belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MoveStage {
    /// Decided; nobody new has it yet.
    Planned,
    /// Who is to have it gets its new blocks, and waits to be given the older ones.
    Waiting,
    /// Its primary is giving its blocks away.
    Copying,
}

/// Why a slot is not where it belongs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MoveCause {
    /// This member is being emptied.
    Drain(MemberId),
    /// A replica was lost, or there are members for one more.
    Repair,
    /// Work is spread: the slot belongs elsewhere than its hash says.
    Balance,
    /// Another of its replicas is to be primary.
    Primary,
    /// Its hash says another place since members came, went or have other capacities.
    Hash,
}

/// One slot on its way to where it belongs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlotMove {
    /// Which.
    pub slot: Slot,
    /// Its primary, which serves it and gives its blocks away; none where the slot is nowhere.
    pub from: Option<DeviceId>,
    /// Who is to be given its blocks, in that order.
    pub to: Vec<DeviceId>,
    /// Whose copies go once that is done.
    pub leaves: Vec<DeviceId>,
    /// How far it is.
    pub stage: MoveStage,
    /// Why.
    pub cause: MoveCause,
    /// For how long it has been placed as it is now, as far as this leader has seen, in milliseconds.
    pub for_ms: u64,
}

/// Every slot on its way, as the leader sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MovesReport {
    /// The epoch of the map that this is of.
    pub epoch: Epoch,
    /// Ascending by slot.
    pub moves: Vec<SlotMove>,
}
