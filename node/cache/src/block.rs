//! A block's record within a shard, and the names by which the outside refers to it.
//!
//! The life of a block: a write ticket (*reserved*, *filling*) is invisible; sealing makes it *resident*; a resident
//! block that goes while somebody reads it is *leaving* until the last reader has gone. There is no way from a ticket
//! that was abandoned, or from a leaving block, back to a resident one.

use kvhive_protocol::block::Codec;
use kvhive_protocol::{BlockKey, Era, Moment, TenantId};

/// No record.
pub(crate) const NIL: u32 = u32::MAX;
/// No link to a parent.
pub(crate) const NO_PARENT: (u32, u32) = (NIL, 0);

/// Where a block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// The device's own memory.
    Device,
    /// Host memory over it.
    Host,
    /// Records in files.
    Disk,
}

impl Tier {
    /// All tiers, fastest first.
    pub const ALL: [Tier; 3] = [Tier::Device, Tier::Host, Tier::Disk];

    /// Returns the next slower tier.
    pub fn below(self) -> Option<Tier> {
        match self {
            Tier::Device => Some(Tier::Host),
            Tier::Host => Some(Tier::Disk),
            Tier::Disk => None,
        }
    }

    /// Returns the next faster tier.
    pub fn above(self) -> Option<Tier> {
        match self {
            Tier::Device => None,
            Tier::Host => Some(Tier::Device),
            Tier::Disk => Some(Tier::Host),
        }
    }
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
name! {
    /// Names one shrink under way.
    ShrinkTicket
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

/// How far a record's bytes are from being fewer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shrinking {
    /// Nothing was tried in vain.
    Open,
    /// They are being re-encoded.
    UnderWay,
    /// They do not get small enough.
    Unfit,
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) key: BlockKey,
    pub(crate) era: Era,
    pub(crate) held_until: Moment,
    pub(crate) tenant: TenantId,
    pub(crate) generation: u32,
    pub(crate) depth: u32,
    /// The parent's record and generation; dangles when that stay has ended.
    pub(crate) parent: (u32, u32),
    /// Records (resident or filling) that name this one as parent.
    pub(crate) children: u32,
    /// Blocks before it in its prefix that are resident without a gap, by the links to parents; at most so many as are.
    pub(crate) chain: u32,
    pub(crate) readers: u32,
    /// Neighbours in its tier's recency list.
    pub(crate) older: u32,
    pub(crate) newer: u32,
    /// The request that used it last (wraps).
    pub(crate) request: u32,
    pub(crate) slot: u16,
    pub(crate) party: u16,
    pub(crate) class: u8,
    pub(crate) tier: Tier,
    pub(crate) life: Life,
    /// Where a copy of it that is under way goes.
    pub(crate) copying: Option<Tier>,
    /// How its bytes are stored.
    pub(crate) codec: Codec,
    pub(crate) shrinking: Shrinking,
    /// It is in its tier's recency list.
    pub(crate) is_listed: bool,
    /// It was used since it came to its place in that list.
    pub(crate) is_used: bool,
    /// It was used since it was stored.
    pub(crate) is_reused: bool,
    /// It was brought up a tier ahead of its use, and has not been used since.
    pub(crate) is_ahead: bool,
}

impl Record {
    pub(crate) const EMPTY: Record = Record {
        key: BlockKey::NONE,
        era: Era(0),
        held_until: Moment::ZERO,
        tenant: TenantId(0),
        generation: 0,
        depth: 0,
        parent: NO_PARENT,
        children: 0,
        chain: 0,
        readers: 0,
        older: NIL,
        newer: NIL,
        request: 0,
        slot: 0,
        party: 0,
        class: 0,
        tier: Tier::Device,
        life: Life::Free,
        copying: None,
        codec: Codec::Raw,
        shrinking: Shrinking::Open,
        is_listed: false,
        is_used: false,
        is_reused: false,
        is_ahead: false,
    };

    /// Says whether the block's frame may be taken from it now.
    pub(crate) fn is_movable(&self) -> bool {
        self.life == Life::Resident && self.readers == 0 && !self.is_worked_on()
    }

    /// Says whether its frame is being copied from or re-encoded.
    pub(crate) fn is_worked_on(&self) -> bool {
        self.copying.is_some() || self.shrinking == Shrinking::UnderWay
    }

    /// Says whether the block may be evicted now: it is a leaf that nobody reads, holds or copies.
    pub(crate) fn is_evictable(&self, now: Moment) -> bool {
        self.is_movable() && self.children == 0 && self.held_until <= now
    }
}

const _: () = assert!(size_of::<Record>() <= 112);
