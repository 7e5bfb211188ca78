//! Blocks of the simulation. A block's bytes are one word that says whose they are: which key of which tenant and era, and which
//! writing of it. So any word tells where it came from.

use kvhive_protocol::{BlockKey, Era, Slot, TenantId};

/// Keys of one prefix, which is one segment.
pub(crate) const LENGTH: u64 = 3;
/// Prefixes: with all tenants more blocks than the shards hold.
pub(crate) const PREFIXES: u64 = 30;

/// A block by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Block {
    pub(crate) tenant: TenantId,
    pub(crate) number: u64,
    pub(crate) era: Era,
}

impl Block {
    pub(crate) fn key(self) -> BlockKey {
        key(self.number)
    }

    /// Returns the key before it in its prefix.
    pub(crate) fn parent(self) -> BlockKey {
        if self.depth() == 0 { BlockKey::NONE } else { key(self.number - 1) }
    }

    pub(crate) fn depth(self) -> u32 {
        (self.number % LENGTH) as u32
    }

    pub(crate) fn slot(self) -> Slot {
        slot_of(self.number)
    }

    /// Returns what a writing of it has as bytes.
    pub(crate) fn word(self, writing: u64) -> u64 {
        self.number << 56
            | u64::from(self.tenant.0 & 0xF) << 52
            | (self.era.0 & 0xFFFF) << 36
            | writing & WRITING
    }

    /// Returns whose these bytes are.
    pub(crate) fn of(word: u64) -> Block {
        let tenant = TenantId((word >> 52 & 0xF) as u32);
        Block { tenant, number: word >> 56, era: Era(word >> 36 & 0xFFFF) }
    }
}

const WRITING: u64 = (1 << 36) - 1;

/// Returns the slot of a whole prefix: where its first key puts it.
pub(crate) fn slot_of(number: u64) -> Slot {
    key(number / LENGTH * LENGTH).slot()
}

pub(crate) fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    let mut random = crate::Random(number + 1);
    for piece in bytes.chunks_exact_mut(8) {
        piece.copy_from_slice(&random.word().to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}
