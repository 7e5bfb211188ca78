//! A simulated node's memory: which frame holds which block's bytes, and who has a hand on it. It knows nothing of the shard's
//! rules, so it notices when the shard gives away what is not free.

use crate::breach::{Breach, Holds, breach};
use kvhive_cache::{BlockId, Tier};
use std::collections::BTreeMap;

/// A frame in use by a block.
struct Held {
    tier: Tier,
    word: u64,
    /// What its header says of its bytes.
    digest: u64,
    /// Readers, copies, and the shard itself while the block is resident.
    hands: u32,
}

/// What becomes of bytes that were not written.
const GARBAGE: u64 = u64::MAX;

pub(crate) struct Frames {
    free: [u32; 3],
    lost: [bool; 3],
    held: BTreeMap<BlockId, Held>,
}

impl Frames {
    pub(crate) fn new(free: [u32; 3]) -> Frames {
        Frames { free, lost: [false; 3], held: BTreeMap::new() }
    }

    /// Takes a frame that the shard says is free.
    pub(crate) fn take(&mut self, tier: Tier) -> Holds {
        let free = &mut self.free[tier as usize];
        match free.checked_sub(1) {
            Some(left) => *free = left,
            None => return breach("B6", format!("a frame of {tier:?} was given out, and all are in use")),
        }
        Ok(())
    }

    pub(crate) fn give_back(&mut self, tier: Tier) {
        self.free[tier as usize] += u32::from(!self.lost[tier as usize]);
    }

    /// A frame that was taken holds a block from now on.
    pub(crate) fn fill(&mut self, id: BlockId, tier: Tier, word: u64) {
        self.held.insert(id, Held { tier, word, digest: word, hands: 1 });
    }

    pub(crate) fn hold(&mut self, id: BlockId) -> Holds {
        match self.held.get_mut(&id) {
            Some(held) => held.hands += 1,
            None => return breach("B5", format!("{id:?} was never written, and it is found")),
        }
        Ok(())
    }

    pub(crate) fn let_go(&mut self, id: BlockId) -> Holds {
        let Some(held) = self.held.get_mut(&id) else {
            return breach("B5", format!("{id:?} was never written, and it is dropped"));
        };
        held.hands -= 1;
        if held.hands == 0 {
            let tier = held.tier;
            self.held.remove(&id);
            self.give_back(tier);
        }
        Ok(())
    }

    /// The copy is the block now.
    pub(crate) fn adopt(&mut self, id: BlockId, to: Tier, done: bool) -> Holds {
        if !done {
            return breach("B8", format!("the copy of {id:?} to {to:?} failed and was adopted"));
        }
        let Some(held) = self.held.get_mut(&id) else {
            return breach("B5", "what was never written was copied");
        };
        let from = std::mem::replace(&mut held.tier, to);
        self.give_back(from);
        Ok(())
    }

    /// Returns a block's bytes: none when they are not what its header says.
    pub(crate) fn read(&self, id: BlockId) -> Result<Option<u64>, Breach> {
        match self.held.get(&id) {
            Some(held) => Ok(Some(held.word).filter(|word| *word == held.digest)),
            None => breach("B6", format!("the frame of {id:?} was taken while it was read")),
        }
    }

    /// Turns a bit of some block's bytes over; says whether there was one.
    pub(crate) fn rot(&mut self, which: usize, bit: u32) -> bool {
        let at = which % self.held.len().max(1);
        let held = self.held.values_mut().nth(at);
        held.map(|held| held.word ^= 1 << (bit % 64)).is_some()
    }

    /// A tier is no more.
    pub(crate) fn lose(&mut self, tier: Tier) {
        (self.free[tier as usize], self.lost[tier as usize]) = (0, true);
        self.held.values_mut().filter(|held| held.tier == tier).for_each(|held| held.word = GARBAGE);
    }

    /// Returns how many blocks have bytes that somebody has a hand on.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn has(&self, id: BlockId) -> bool {
        self.held.contains_key(&id)
    }
}
