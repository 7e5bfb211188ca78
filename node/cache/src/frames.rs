//! The ledger of frames: every frame of every tier and size class is free, or counted under what it is used for.

use crate::block::Tier;

/// How many frames a tier has, per size class.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TierCapacity {
    /// Frames per class, in the classes' order; classes that are not named have none.
    pub frames: Vec<u32>,
}

/// Free frames per tier and class.
pub(crate) struct Ledger {
    capacity: [Vec<u32>; 3],
    free: [Vec<u32>; 3],
    /// Tiers that are no more: what is given back of them is nobody's.
    lost: [bool; 3],
}

impl Ledger {
    pub(crate) fn new(classes: usize, tiers: [&TierCapacity; 3]) -> Ledger {
        let capacity = tiers.map(|tier| {
            let mut frames = tier.frames.clone();
            frames.resize(classes, 0);
            frames
        });
        Ledger { free: capacity.clone(), capacity, lost: [false; 3] }
    }

    /// Takes a frame if one is free.
    pub(crate) fn take(&mut self, tier: Tier, class: u8) -> bool {
        let free = &mut self.free[tier as usize][usize::from(class)];
        if *free == 0 {
            return false;
        }
        *free -= 1;
        true
    }

    pub(crate) fn give_back(&mut self, tier: Tier, class: u8) {
        if self.lost[tier as usize] {
            return;
        }
        let (tier, class) = (tier as usize, usize::from(class));
        debug_assert!(self.free[tier][class] < self.capacity[tier][class], "no frame is given back twice");
        self.free[tier][class] += 1;
    }

    /// Has a tier have no frames any more. Says whether it had any until now.
    pub(crate) fn lose(&mut self, tier: Tier) -> bool {
        let at = tier as usize;
        let had = !std::mem::replace(&mut self.lost[at], true);
        self.capacity[at].fill(0);
        self.free[at].fill(0);
        had
    }

    pub(crate) fn is_lost(&self, tier: Tier) -> bool {
        self.lost[tier as usize]
    }

    pub(crate) fn free(&self, tier: Tier, class: u8) -> u32 {
        self.free[tier as usize][usize::from(class)]
    }

    pub(crate) fn capacity(&self, tier: Tier, class: u8) -> u32 {
        self.capacity[tier as usize][usize::from(class)]
    }

    pub(crate) fn total(&self) -> u64 {
        self.capacity.iter().flatten().map(|frames| u64::from(*frames)).sum()
    }
}
