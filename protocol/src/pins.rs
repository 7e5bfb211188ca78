//! Pins: prefixes whose blocks do not leave to make room for others, and are repaired first. Part of the cluster map, so that they
//! outlive every node and follow their slots.

use crate::events::Reason;
use crate::ids::{Slot, TenantId};
use crate::key::KeyList;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most pins of a cluster.
pub const MAX_PINS: usize = 1024;
/// The most keys of one pin.
pub const MAX_PIN_KEYS: usize = 4096;
/// The most keys of all pins together: everybody has them with every map.
pub const MAX_PINNED_KEYS: usize = 16_384;

/// How long a pin lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PinMode {
    /// Until a time, in milliseconds since 1970: nodes let go of it by their own wall clocks.
    Soft {
        /// When it ends.
        until_ms: u64,
    },
    /// Until it is removed.
    Hard,
}

/// One pinned prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// Whose blocks: never a tenant that shares another's.
    pub tenant: TenantId,
    /// The blocks, in order from token 0; at most [`MAX_PIN_KEYS`].
    pub keys: KeyList,
    /// How long.
    pub mode: PinMode,
    /// Why, for whoever wonders later whether it is still needed.
    pub reason: Reason,
}

impl Pin {
    /// Says whether it has ended by this time.
    pub fn has_ended(&self, wall_ms: u64) -> bool {
        self.ends_ms().is_some_and(|until| until <= wall_ms)
    }

    /// Returns when it ends by itself, if it does.
    pub fn ends_ms(&self) -> Option<u64> {
        match self.mode {
            PinMode::Soft { until_ms } => Some(until_ms),
            PinMode::Hard => None,
        }
    }

    /// Returns the slots of its blocks.
    pub fn slots(&self, segment_blocks: u32) -> BTreeSet<Slot> {
        let step = (segment_blocks as usize).max(1);
        self.keys.iter().step_by(step).map(|home| home.slot()).collect()
    }
}
