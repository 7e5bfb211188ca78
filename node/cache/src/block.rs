//! A block's record within a shard, and the names by which the outside refers to it.
//!
//! The life of a block: a write ticket (*reserved*, *filling*) is invisible; sealing makes it *resident*; a resident
//! block that goes while somebody reads it is *leaving* until the last reader has gone. There is no way from a ticket
//! that was abandoned, or from a leaving block, back to a resident one.

use kvhive_protocol::{BlockKey, Era, Moment, TenantId};

/// No record.
pub(crate) const NIL: u32 = u32::MAX;
/// No link to a parent.
pub(crate) const NO_PARENT: (u32, u32) = (NIL, 0);

/// Where a block's frame is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// The device's own memory.
    Device,
    /// Host memory over it.
    Host,
}

impl BlockId {
    /// Returns the number of its record: below the shard's number of frames, one block at a time.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name {
            pub(crate) index: u32,
            pub(crate) generation: u32,
        }
    };
}

name! {
    /// Names one stay of a block in a shard. Never names another block, nor another stay of the same one.
    BlockId
}
name! {
    /// Names one write under way.
    WriteTicket
}
name! {
    /// Names one copy between tiers under way.
    CopyTicket
}

/// What a record is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Nothing: the record is free.
    Free,
    /// A write ticket is out; invisible.
    Filling,
    /// Visible.
    Resident,
    /// Invisible; its frame is still being read or copied.
    Leaving,
}

/// One record. 112 bytes; the index adds about 6 and the order about 30 for a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) key: BlockKey,
    pub(crate) era: Era,
    pub(crate) touch: u64,
    /// The touch under which the order knows it, while it is a leaf.
    pub(crate) ranked: u64,
    pub(crate) held_until: Moment,
    pub(crate) tenant: TenantId,
    pub(crate) generation: u32,
    pub(crate) depth: u32,
    /// The parent's record and generation; dangles when that stay has ended.
    pub(crate) parent: (u32, u32),
    /// Records (resident or filling) that name this one as parent.
    pub(crate) children: u32,
    pub(crate) readers: u32,
    pub(crate) slot: u16,
    pub(crate) class: u8,
    pub(crate) tier: Tier,
    pub(crate) life: Life,
    /// A copy to the other tier is under way.
    pub(crate) copying: bool,
    pub(crate) is_ranked: bool,
}

impl Record {
    pub(crate) const EMPTY: Record = Record {
        key: BlockKey::NONE,
        era: Era(0),
        touch: 0,
        ranked: 0,
        held_until: Moment::ZERO,
        tenant: TenantId(0),
        generation: 0,
        depth: 0,
        parent: NO_PARENT,
        children: 0,
        readers: 0,
        slot: 0,
        class: 0,
        tier: Tier::Device,
        life: Life::Free,
        copying: false,
        is_ranked: false,
    };

    /// Says whether the block may be evicted now.
    pub(crate) fn is_evictable(&self, now: Moment) -> bool {
        self.readers == 0 && !self.copying && self.held_until <= now
    }
}

const _: () = assert!(size_of::<Record>() <= 112);
