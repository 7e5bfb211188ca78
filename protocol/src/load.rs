//! What devices report of their tiers, their traffic, their tenants and of the work that is asked of them.

use crate::ids::{Slot, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most tenants that one device reports: those that use most of it.
pub const MAX_TENANT_LOADS: usize = 256;
/// The most tenants whose sums an overview carries.
pub const MAX_TENANT_SUMS: usize = 4096;

/// The most slots whose rates one device reports: those that are read most.
pub const MAX_HOT_SLOTS: usize = 64;
/// The most of them that an overview of the whole cluster carries.
pub const MAX_HOTTEST: usize = 32;
/// The most slots of which one device tells what it has given so far: as many as it usually gives at a time.
pub const MAX_SLOTS_TOLD: usize = 64;
/// What a request counts as beside its bytes, in bytes: one without any is work too.
pub const REQUEST_BYTES: u64 = 16 << 10;

/// How much is asked of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Work {
    /// Matches, fetches and stores, since its start.
    pub requests: u64,
    /// What matches and fetches came to a second, lately: their bytes, and [`REQUEST_BYTES`] each.
    pub read_rate: u64,
    /// How long requests waited for its answer, lately and on average, in microseconds.
    pub wait_us: u32,
    /// The slots that are read most, ascending, each with its part of the rate; at most [`MAX_HOT_SLOTS`].
    pub hot: Vec<(Slot, u64)>,
}

/// What a node keeps of other nodes' slots for clients near it, and what that spares their replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GuestLoad {
    /// Blocks that are kept.
    pub blocks: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Blocks that clients were given, since this start.
    pub given_blocks: u64,
    /// Blocks that were fetched from replicas for them.
    pub fetched_blocks: u64,
}

/// How much of what matches ask for of a slot is there, lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SlotHits {
    /// Which.
    pub slot: Slot,
    /// Keys asked by match, in a thousand seconds.
    pub asked: u64,
    /// Keys of those that were covered.
    pub covered: u64,
}

/// What one device has given so far of a slot that is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SlotGiven {
    /// Which.
    pub slot: Slot,
    /// Blocks that another device did not have and has now.
    pub moved_blocks: u64,
    /// Their bytes.
    pub moved_bytes: u64,
}

/// One tier of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TierLoad {
    /// Resident blocks.
    pub blocks: u64,
    /// Bytes of all frames that are not free.
    pub used_bytes: u64,
    /// Bytes of all frames.
    pub capacity_bytes: u64,
    /// Blocks that fetches got from here, since the device's start.
    pub hits: u64,
    /// It has failed and takes no blocks: the node does without it until it works again, and without a GPU's until it starts anew itself.
    pub closed: bool,
}

/// What a device is read and given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes of blocks given out, since the node's start.
    pub read_bytes: u64,
    /// Bytes of blocks taken in, since the node's start.
    pub written_bytes: u64,
    /// Half of the fetches of the last seconds took no longer, in microseconds; 0 when there were none.
    pub fetch_p50_us: u64,
    /// 99 of 100 of them.
    pub fetch_p99_us: u64,
}

/// What a device holds of one tenant and has done for it. Counters count since the device's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TenantLoad {
    /// Resident blocks per tier, fastest first: device, host, disk.
    pub blocks: [u64; 3],
    /// Bytes of their frames per tier.
    pub used_bytes: [u64; 3],
    /// Keys asked by match.
    pub matched_keys: u64,
    /// Keys of those that were covered.
    pub covered_keys: u64,
    /// Blocks given out.
    pub fetched_blocks: u64,
    /// Blocks asked for that were not there.
    pub missed_blocks: u64,
    /// Blocks taken in.
    pub stored_blocks: u64,
    /// Blocks evicted.
    pub evicted_blocks: u64,
    /// Blocks that were not taken in.
    pub refused_blocks: u64,
    /// Bytes of resident blocks as they are stored.
    pub stored_bytes: u64,
    /// Bytes of those blocks before they were encoded.
    pub raw_bytes: u64,
}

impl TenantLoad {
    /// Returns resident blocks of all tiers.
    pub fn all_blocks(&self) -> u64 {
        self.blocks.iter().copied().fold(0, u64::saturating_add)
    }

    /// Returns bytes of frames in use in all tiers.
    pub fn all_bytes(&self) -> u64 {
        self.used_bytes.iter().copied().fold(0, u64::saturating_add)
    }

    /// Adds another device's figures. Sums that pass any figure stay at the greatest.
    pub fn add(&mut self, other: &TenantLoad) {
        for (sum, more) in self.blocks.iter_mut().zip(other.blocks) {
            *sum = sum.saturating_add(more);
        }
        for (sum, more) in self.used_bytes.iter_mut().zip(other.used_bytes) {
            *sum = sum.saturating_add(more);
        }
        for (sum, more) in [
            (&mut self.matched_keys, other.matched_keys),
            (&mut self.covered_keys, other.covered_keys),
            (&mut self.fetched_blocks, other.fetched_blocks),
            (&mut self.missed_blocks, other.missed_blocks),
            (&mut self.stored_blocks, other.stored_blocks),
            (&mut self.evicted_blocks, other.evicted_blocks),
            (&mut self.refused_blocks, other.refused_blocks),
            (&mut self.stored_bytes, other.stored_bytes),
            (&mut self.raw_bytes, other.raw_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Sums up what several devices report, for the tenants that use most, in the order of their ids.
    pub fn sums<'a>(
        reports: impl Iterator<Item = &'a (TenantId, TenantLoad)>,
        limit: usize,
    ) -> Vec<(TenantId, TenantLoad)> {
        let mut sums: BTreeMap<TenantId, TenantLoad> = BTreeMap::new();
        for (tenant, load) in reports {
            sums.entry(*tenant).or_default().add(load);
        }
        most(sums.into_iter().collect(), limit)
    }
}

/// Returns the tenants that use most bytes, or ask most, in the order of their ids.
pub fn most(mut loads: Vec<(TenantId, TenantLoad)>, limit: usize) -> Vec<(TenantId, TenantLoad)> {
    if loads.len() > limit {
        let rank = |(tenant, load): &(TenantId, TenantLoad)| {
            (std::cmp::Reverse((load.all_bytes(), load.matched_keys)), *tenant)
        };
        loads.select_nth_unstable_by_key(limit, rank);
        loads.truncate(limit);
    }
    loads.sort_unstable_by_key(|(tenant, _)| *tenant);
    loads
}

/// What one device keeps because of pins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PinnedLoad {
    /// Pinned blocks.
    pub blocks: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Times that a block that a pin names was not pinned, because as much is as may be; since this start.
    pub refused: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: u64) -> TenantLoad {
        TenantLoad { used_bytes: [bytes, 0, 1], blocks: [1, 0, 1], matched_keys: 5, ..TenantLoad::default() }
    }

    #[test]
    fn reports_of_several_devices_add_up_and_who_uses_least_is_left_out() {
        let reports = [(TenantId(3), load(10)), (TenantId(1), load(5)), (TenantId(2), load(7))];
        let again = [(TenantId(1), load(5))];
        let sums = TenantLoad::sums(reports.iter().chain(&again), 2);
        let one = TenantLoad {
            used_bytes: [10, 0, 2],
            blocks: [2, 0, 2],
            matched_keys: 10,
            ..TenantLoad::default()
        };
        assert_eq!(sums, [(TenantId(1), one), (TenantId(3), load(10))]);
        assert_eq!((sums[0].1.all_bytes(), sums[0].1.all_blocks()), (12, 4));
        let mut most = load(u64::MAX);
        most.add(&load(1));
        assert_eq!(most.used_bytes, [u64::MAX, 0, 2]);
    }
}
