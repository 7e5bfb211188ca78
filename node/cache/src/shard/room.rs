//! Room for a block that comes: a free frame, or one that another block leaves for it.

use super::Shard;
use crate::answers::Effect;
use crate::block::{Record, Tier};
use crate::party::{Donors, MEMORY, Want};
use crate::policy::{Removal, Verdict, Visit};
use kvhive_protocol::data::{Refusal, StoreBlock};
use kvhive_protocol::emptying::FrameLoad;
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{Moment, Slot, TenantId};

/// Blocks at the old end of a list that are looked at for the one that was not used for longest.
const LOOKED_AT: usize = 4;

/// Blocks at the old end of a list that are looked at for one that may go.
const SEARCHED: usize = 4096;

/// What a search for room came to.
pub(super) enum Leaves {
    /// This block leaves.
    Block(u32),
    /// Whoever would leave is worth more.
    Nobody,
    /// Nobody may leave.
    Stuck,
}

impl Shard {
    /// Finds a frame in memory of at least this class: a free one of the device, of the host, of a larger class, or a victim's. For a
    /// block that is wanted (it is going to be pinned, say) another leaves whatever it is worth.
    pub(super) fn take_frame(
        &mut self,
        now: Moment,
        (tenant, is_wanted): (TenantId, bool),
        class: u8,
        visit: &Visit,
        effects: &mut Vec<Effect>,
    ) -> Result<(Tier, u8), Refusal> {
        let party = self.party_of(tenant);
        let larger = class..self.config.classes.len() as u8;
        for class in larger.clone() {
            if let Some(tier) = MEMORY.iter().copied().find(|tier| self.take(*tier, class, party)) {
                // Evict last, shrink first.
                self.shrink_cold(class, effects);
                // What is kept free below is kept free by what leaves the pool, wherever that is worth least.
                self.keep_some_free(now, party, class, visit, effects);
                return Ok((tier, class));
            }
        }
        for class in larger {
            let bytes = self.config.classes[usize::from(class)];
            // If memory alone gave, a full disk would keep what it has for good, and take nothing more.
            if self.has_disk(class) {
                self.keep_some_free(now, party, class, visit, effects);
                if let Some(tier) = MEMORY.iter().copied().find(|tier| self.take(*tier, class, party)) {
                    return Ok((tier, class));
                }
            }
            let leaves = match self.leaves_memory(now, (party, bytes), class, visit) {
                Leaves::Nobody if is_wanted => self.coldest_in_memory(now, (party, bytes), class, visit),
                leaves => leaves,
            };
            match leaves {
                Leaves::Block(at) => {
                    let tier = self.index.records[at as usize].tier;
                    self.evict(at, effects);
                    let taken = self.take(tier, class, party);
                    self.shrink_cold(class, effects);
                    debug_assert!(taken, "a victim without readers frees its frame");
                    return if taken { Ok((tier, class)) } else { Err(Refusal::NoRoom) };
                }
                Leaves::Nobody => {
                    self.parties[usize::from(party)].declined.note(tenant, visit.key);
                    self.stats.declined += 1;
                    return Err(Refusal::NoRoom);
                }
                Leaves::Stuck => {}
            }
        }
        Err(Refusal::NoRoom)
    }

    /// Says whether a block can come without any other leaving for it: it is here already, or a frame is free over what the tiers
    /// keep free. Where it is going to be pinned, others may.
    pub fn has_spare(&self, tenant: TenantId, block: &StoreBlock, slot: Slot) -> bool {
        if self.find(tenant, &block.header.key).is_some() {
            return true;
        }
        let Some(least) = self.class_of(block.header.payload_bytes) else { return false };
        if self.would_pin(tenant, &block.header.key, slot, least) {
            return true;
        }
        let frames = |tiers: &[Tier], class| {
            tiers.iter().map(|tier| u64::from(self.ledger.free(*tier, class))).sum::<u64>()
        };
        let free_in_memory = |class: &u8| frames(MEMORY, *class) > 0;
        let Some(class) = (least..self.config.classes.len() as u8).find(free_in_memory) else { return false };
        // What comes was not used yet: where such blocks do not go to disk, room there is none for it.
        let counts = |tier: &Tier| *tier != Tier::Disk || self.config.unused_to_disk;
        let is_open = |tier: &Tier| !self.closed[*tier as usize];
        let open: Vec<Tier> = Tier::ALL.into_iter().filter(counts).filter(is_open).collect();
        let kept: u64 = open.iter().map(|tier| u64::from(self.low_water(*tier, class))).sum();
        frames(&open, class) > kept
    }

    /// Returns its frames by size, of the tiers that take blocks, and how many blocks can come to each before one leaves for another.
    pub fn frames(&self) -> Vec<FrameLoad> {
        let open: Vec<Tier> = Tier::ALL.into_iter().filter(|tier| !self.closed[*tier as usize]).collect();
        // What comes was not used yet: where such blocks do not go to disk, room there is none for it.
        let counts = |tier: &&Tier| **tier != Tier::Disk || self.config.unused_to_disk;
        let of_class = |(class, bytes): (usize, &u64)| {
            let class = class as u8;
            let sum = |of: &dyn Fn(Tier) -> u32| {
                open.iter().filter(counts).map(|tier| u64::from(of(*tier))).sum::<u64>()
            };
            let used = |tier: &Tier| self.ledger.capacity(*tier, class) - self.ledger.free(*tier, class);
            let free = sum(&|tier| self.ledger.free(tier, class));
            FrameLoad {
                bytes: *bytes,
                used: open.iter().map(|tier| u64::from(used(tier))).sum(),
                spare: free.saturating_sub(sum(&|tier| self.low_water(tier, class))),
            }
        };
        self.config.classes.iter().enumerate().map(of_class).collect()
    }

    /// Returns how many blocks of these slots are here or being written.
    pub fn blocks_of(&self, has: impl Fn(Slot) -> bool) -> u64 {
        let slots = self.occupied.iter().zip(0..).filter(|(count, slot)| **count > 0 && has(Slot(*slot)));
        slots.map(|(count, _)| u64::from(*count)).sum()
    }

    /// Says whether blocks of a class can move down to a disk.
    pub(super) fn has_disk(&self, class: u8) -> bool {
        !self.closed[Tier::Disk as usize] && self.ledger.capacity(Tier::Disk, class) > 0
    }

    /// Lets one block leave when the pool is down to what the tiers keep free for moves.
    fn keep_some_free(
        &mut self,
        now: Moment,
        party: u16,
        class: u8,
        visit: &Visit,
        effects: &mut Vec<Effect>,
    ) {
        let open = Tier::ALL.into_iter().filter(|tier| !self.closed[*tier as usize]);
        let (mut free, mut kept) = (u64::from(self.shrinking_of(class)), 0u64);
        for tier in open {
            free += u64::from(self.ledger.free(tier, class));
            kept += u64::from(self.low_water(tier, class));
        }
        if kept == 0 || free >= kept {
            return;
        }
        let leaves = if self.has_disk(class) {
            self.leaves_below(now, party, class, visit)
        } else {
            self.leaves_memory(now, (party, 0), class, visit)
        };
        if let Leaves::Block(at) = leaves {
            self.evict(at, effects);
        }
    }

    pub(super) fn evict(&mut self, at: u32, effects: &mut Vec<Effect>) {
        self.let_go(at, Gone::Evicted, effects);
    }

    /// Evicts a block for a reason of its own.
    pub(super) fn let_go(&mut self, at: u32, gone: Gone, effects: &mut Vec<Effect>) {
        let (tenant, _) = self.owners.of(self.index.records[at as usize].owner);
        self.drop_block(at, Removal::Evicted, gone, effects);
        self.stats.evicted += 1;
        self.load_of(tenant).evicted_blocks += 1;
    }

    /// Says what leaves memory for a newcomer, whose party wants so many bytes more than it has there.
    pub(super) fn leaves_memory(
        &mut self,
        now: Moment,
        coming: (u16, u64),
        class: u8,
        visit: &Visit,
    ) -> Leaves {
        let capacity = self.capacity_bytes();
        let want = Want { by: MEMORY, from: MEMORY, capacity, coming: Some(coming) };
        let donors = Donors::among(&self.parties, &want);
        self.ask(now, coming.0, class, visit, donors)
    }

    /// Says what was not used for longest in memory among what may leave it, whatever the newcomer is worth.
    fn coldest_in_memory(&self, now: Moment, coming: (u16, u64), class: u8, visit: &Visit) -> Leaves {
        let capacity = self.capacity_bytes();
        let want = Want { by: MEMORY, from: MEMORY, capacity, coming: Some(coming) };
        let mut donors = Donors::among(&self.parties, &want);
        let clock = self.hold_clock(now);
        while let Some(donor) =
            donors.next(self.stats.evicted, |donor| self.age(donor.party, class, donor.from))
        {
            let coldest = donor.from.iter().find_map(|tier| {
                let mut list = self.recency.of(&self.index.records, *tier, donor.party, class).take(SEARCHED);
                list.find(|at| {
                    Some(*at) != visit.parent && self.index.records[*at as usize].is_evictable(clock)
                })
            });
            if let Some(at) = coldest {
                return Leaves::Block(at);
            }
        }
        Leaves::Stuck
    }

    /// Says what leaves all tiers when a newcomer has taken a free frame of memory that should have stayed free: memory will
    /// move a block down, and the disk has no room for it.
    fn leaves_below(&mut self, now: Moment, party: u16, class: u8, visit: &Visit) -> Leaves {
        let (capacity, turn) = (self.capacity_bytes(), self.stats.evicted);
        let want = Want { by: MEMORY, from: MEMORY, capacity, coming: None };
        let mut movers = Donors::among(&self.parties, &want);
        let Some(mover) = movers.next(turn, |donor| self.age(donor.party, class, donor.from)) else {
            return Leaves::Stuck;
        };
        let bytes = self.config.classes[usize::from(class)];
        let donors = Donors::below(&self.parties, &capacity, (mover.party, bytes));
        self.ask(now, party, class, visit, donors)
    }

    /// Asks the parties in turn, who owes most first, which of its blocks leaves for the newcomer.
    fn ask(&mut self, now: Moment, party: u16, class: u8, visit: &Visit, mut donors: Donors) -> Leaves {
        let (request, clock, turn) = (self.request, self.hold_clock(now), self.stats.evicted);
        while let Some(donor) = donors.next(turn, |donor| self.age(donor.party, class, donor.from)) {
            let records = &self.index.records;
            let mut may_go = |at: u32| {
                let record: &Record = &records[at as usize];
                Some(at) != visit.parent && record.is_evictable(clock) && donor.from.contains(&record.tier)
            };
            let ranking = self.parties[usize::from(donor.party)].ranking(class);
            ranking.begin(&request);
            match ranking.victim(visit, &mut may_go) {
                Verdict::Evict(at) => return Leaves::Block(at),
                Verdict::Refuse if donor.party == party => {
                    ranking.refused(visit);
                    return Leaves::Nobody;
                }
                Verdict::Stuck if donor.from.len() == Tier::ALL.len() => {}
                // Another party's worth is not compared with ours: it owes room. And who gives from some tiers alone may have
                // much in the others that its strategy would rather let go.
                Verdict::Refuse | Verdict::Stuck => {
                    let coldest = donor.from.iter().find_map(|tier| {
                        let list = self.recency.of(records, *tier, donor.party, class);
                        list.take(SEARCHED).find(|at| may_go(*at))
                    });
                    if let Some(at) = coldest {
                        return Leaves::Block(at);
                    }
                }
            }
        }
        Leaves::Stuck
    }

    /// Returns how many requests ago the coldest blocks of a party and class were used.
    pub(super) fn age(&self, party: u16, class: u8, tiers: &[Tier]) -> u32 {
        let coldest = tiers
            .iter()
            .flat_map(|tier| self.recency.of(&self.index.records, *tier, party, class).take(LOOKED_AT));
        let requests = coldest.map(|at| self.index.records[at as usize].request);
        requests.map(|last| (self.request.number as u32).wrapping_sub(last)).max().unwrap_or(0)
    }
}
