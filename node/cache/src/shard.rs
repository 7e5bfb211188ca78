//! The shard: every rule of what one device actor keeps, in two tiers.
//!
//! Both tiers together act as one LRU over all their frames; which tier a block is in is a matter of speed, decided
//! apart from what is kept. A full tier is never a reason to lose a block while the other has room.

use crate::answers::{CopyVerdict, Effect, Reserve, ShardConfig};
use crate::block::{BlockId, CopyTicket, Life, NIL, NO_PARENT, Record, Tier, WriteTicket};
use crate::frames::Ledger;
use crate::index::Index;
use crate::order::Order;
use crate::stats::ShardStats;
use kvhive_protocol::data::{Refusal, Run, StoreBlock};
use kvhive_protocol::{BlockKey, Era, KeyList, Moment, SLOTS, Slot, TenantId};
use std::collections::BTreeMap;
use std::time::Duration;

mod invariants;

/// Copies between tiers under way at a time.
const MAX_COPIES: usize = 16;
/// Records looked at by one [`Shard::tend`] when a clear has left dead blocks behind.
const SWEEP: usize = 4096;

/// The rules of one device's shard.
pub struct Shard {
    config: ShardConfig,
    index: Index,
    order: Order,
    ledger: Ledger,
    tenants: BTreeMap<TenantId, Era>,
    occupied: Vec<u32>,
    touch: u64,
    writes: usize,
    copies: usize,
    /// Where the sweep for dead blocks goes on, if one is under way.
    sweep: Option<usize>,
    stats: ShardStats,
}

impl Shard {
    /// Makes an empty shard. Its index takes its memory at once.
    pub fn new(config: ShardConfig) -> Shard {
        let ledger = Ledger::new(&config.device, &config.host);
        // Leaving blocks hold both a record and a frame, so frames bound the records.
        let index = Index::new(ledger.total() as usize, config.hash_seed);
        Shard {
            order: Order::new(config.classes.len()),
            index,
            ledger,
            tenants: BTreeMap::new(),
            occupied: vec![0; usize::from(SLOTS)],
            touch: 0,
            writes: 0,
            copies: 0,
            sweep: None,
            stats: ShardStats::default(),
            config,
        }
    }

    /// Says how far each run is covered, from its start, without a gap. Covered blocks count as used now, and are kept
    /// for `hold` (bounded by the configuration).
    pub fn match_runs(
        &mut self,
        now: Moment,
        tenant: TenantId,
        runs: &[Run],
        keys: &KeyList,
        hold: Duration,
    ) -> Vec<u32> {
        self.touch += 1;
        let until = now + hold.min(self.config.max_hold);
        let mut covered = Vec::with_capacity(runs.len());
        let mut keys = keys.iter();
        for run in runs {
            let mut count = 0;
            let mut gap = false;
            for key in keys.by_ref().take(run.keys as usize) {
                self.stats.matched_keys += 1;
                if gap {
                    continue;
                }
                match self.visible(tenant, &key) {
                    Some(at) => {
                        let record = &mut self.index.records[at as usize];
                        record.touch = self.touch;
                        record.held_until = record.held_until.max(until);
                        count += 1;
                    }
                    None => gap = true,
                }
            }
            self.stats.covered_keys += u64::from(count);
            covered.push(count);
        }
        covered
    }

    /// Finds blocks for reading; each one found has one reader more until [`Shard::unread`].
    pub fn read(&mut self, tenant: TenantId, keys: &KeyList) -> Vec<Option<BlockId>> {
        self.touch += 1;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys.iter() {
            let id = self.visible(tenant, &key).map(|at| {
                let record = &mut self.index.records[at as usize];
                record.touch = self.touch;
                record.readers += 1;
                self.stats.readers += 1;
                BlockId { index: at, generation: record.generation }
            });
            if id.is_some() {
                self.stats.hits += 1
            } else {
                self.stats.misses += 1
            }
            found.push(id);
        }
        found
    }

    /// Adds a reader to a block that was just named by [`Reserve::Present`] or [`Shard::seal`]. False when it is gone.
    pub fn pin(&mut self, id: BlockId) -> bool {
        let Some(at) = self.index.named(id.index, id.generation) else { return false };
        let record = &mut self.index.records[at as usize];
        if record.life != Life::Resident {
            return false;
        }
        record.readers += 1;
        self.stats.readers += 1;
        true
    }

    /// One reader of the block has gone, its handle on the frame dropped before.
    pub fn unread(&mut self, id: BlockId) {
        let Some(at) = self.index.named(id.index, id.generation) else { return };
        let record = &mut self.index.records[at as usize];
        let Some(readers) = record.readers.checked_sub(1) else { return };
        record.readers = readers;
        self.stats.readers -= 1;
        self.finish_leaving(at);
    }

    /// Takes a frame for a block that is to be written. Of several writers of one key the first wins.
    pub fn reserve(
        &mut self,
        now: Moment,
        tenant: TenantId,
        block: &StoreBlock,
        slot: Slot,
        effects: &mut Vec<Effect>,
    ) -> Reserve {
        self.touch += 1;
        match self.try_reserve(now, tenant, block, slot, effects) {
            Ok(reserve) => reserve,
            Err(refusal) => {
                self.stats.count_refusal(refusal);
                Reserve::Refused(refusal)
            }
        }
    }

    fn try_reserve(
        &mut self,
        now: Moment,
        tenant: TenantId,
        block: &StoreBlock,
        slot: Slot,
        effects: &mut Vec<Effect>,
    ) -> Result<Reserve, Refusal> {
        let header = &block.header;
        let era = self.tenants.get(&tenant).ok_or(Refusal::WrongEra)?;
        if header.tenant != tenant || header.era != *era || slot.0 >= SLOTS {
            return Err(Refusal::WrongEra);
        }
        let class = self.config.classes.iter().position(|bytes| *bytes >= header.payload_bytes);
        let class = class.ok_or(Refusal::TooLarge)? as u8;
        if let Some(at) = self.index.find(&header.key) {
            let record = &mut self.index.records[at as usize];
            if record.life == Life::Filling {
                return Err(Refusal::InFlight);
            }
            if record.tenant == tenant && record.era == header.era {
                record.touch = self.touch;
                self.stats.already += 1;
                return Ok(Reserve::Present(BlockId { index: at, generation: record.generation }));
            }
            // A block that a clear has ended is still here under this key.
            self.drop_block(at, effects);
            self.stats.cleared += 1;
        }
        if self.writes >= self.config.max_writes {
            return Err(Refusal::NoRoom);
        }
        let parent = if block.parent.is_none() { None } else { self.index.find(&block.parent) };
        let parent = parent.filter(|at| self.index.records[*at as usize].tenant == tenant);
        let (tier, class) =
            self.take_frame(now, class, parent.unwrap_or(NIL), effects).ok_or(Refusal::NoRoom)?;
        let record = Record {
            key: header.key,
            era: header.era,
            touch: self.touch,
            tenant,
            depth: header.depth,
            parent: parent.map_or(NO_PARENT, |at| (at, self.index.records[at as usize].generation)),
            slot: slot.0,
            class,
            tier,
            life: Life::Filling,
            ..Record::EMPTY
        };
        let at = self.index.insert(record).expect("there are as many records as frames");
        if let Some(parent) = parent {
            let record = &mut self.index.records[parent as usize];
            record.children += 1;
            self.order.remove(record, parent);
        }
        self.writes += 1;
        let generation = self.index.records[at as usize].generation;
        Ok(Reserve::Take { ticket: WriteTicket { index: at, generation }, tier, class: usize::from(class) })
    }

    /// Finds a frame of at least this class: a free one of the device, of the host, of a larger class, or the victim's.
    fn take_frame(
        &mut self,
        now: Moment,
        class: u8,
        parent: u32,
        effects: &mut Vec<Effect>,
    ) -> Option<(Tier, u8)> {
        let larger = class..self.config.classes.len() as u8;
        for class in larger.clone() {
            for tier in [Tier::Device, Tier::Host] {
                if self.ledger.take(tier, class) {
                    return Some((tier, class));
                }
            }
        }
        for class in larger {
            if let Some(victim) = self.victim(now, class, parent) {
                let tier = self.index.records[victim as usize].tier;
                self.drop_block(victim, effects);
                self.stats.evicted += 1;
                let taken = self.ledger.take(tier, class);
                debug_assert!(taken, "a victim without readers frees its frame");
                return taken.then_some((tier, class));
            }
        }
        None
    }

    /// Returns the least recently used leaf of both tiers that may go.
    fn victim(&mut self, now: Moment, class: u8, except: u32) -> Option<u32> {
        let device = self.order.oldest(&mut self.index.records, Tier::Device, class, now, except);
        let host = self.order.oldest(&mut self.index.records, Tier::Host, class, now, except);
        match (device, host) {
            (Some(device), Some(host)) => Some(device.min(host).2),
            (one, other) => one.or(other).map(|rank| rank.2),
        }
    }

    /// Makes a written block visible. None when a clear has ended its era meanwhile: the host drops the frame.
    pub fn seal(&mut self, ticket: WriteTicket) -> Option<BlockId> {
        let at = self.filling(ticket)?;
        let record = &self.index.records[at as usize];
        if self.tenants.get(&record.tenant) != Some(&record.era) {
            self.abandon(ticket);
            return None;
        }
        self.writes -= 1;
        self.touch += 1;
        let record = &mut self.index.records[at as usize];
        record.life = Life::Resident;
        record.touch = self.touch;
        self.occupied[usize::from(record.slot)] += 1;
        if record.children == 0 {
            self.order.insert(record, at);
        }
        let generation = record.generation;
        self.count_resident(at, 1);
        self.stats.stored += 1;
        Some(BlockId { index: at, generation })
    }

    /// Ends a write without a block; its frame is free again, its handle dropped before.
    pub fn abandon(&mut self, ticket: WriteTicket) {
        let Some(at) = self.filling(ticket) else { return };
        self.writes -= 1;
        self.stats.abandoned += 1;
        self.index.hide(at);
        self.unlink(at);
        let record = self.index.records[at as usize];
        self.ledger.give_back(record.tier, record.class);
        self.index.free(at);
    }

    fn filling(&self, ticket: WriteTicket) -> Option<u32> {
        let at = self.index.named(ticket.index, ticket.generation)?;
        (self.index.records[at as usize].life == Life::Filling).then_some(at)
    }

    /// A copy between tiers has ended. The verdict says which frame is the block's from now on.
    pub fn copied(&mut self, ticket: CopyTicket, done: bool) -> CopyVerdict {
        let Some(at) = self.index.named(ticket.index, ticket.generation) else { return CopyVerdict::Discard };
        let record = &mut self.index.records[at as usize];
        if !record.copying {
            return CopyVerdict::Discard;
        }
        record.copying = false;
        self.copies -= 1;
        let (from, to) = (record.tier, other(record.tier));
        // Readers hold the old frame: it would not be free.
        if record.life != Life::Resident || !done || record.readers > 0 {
            let class = record.class;
            self.ledger.give_back(to, class);
            self.finish_leaving(at);
            return CopyVerdict::Discard;
        }
        let ranked = record.is_ranked;
        self.order.remove(record, at);
        self.count_resident(at, -1);
        let record = &mut self.index.records[at as usize];
        record.tier = to;
        if ranked {
            self.order.insert(record, at);
        }
        let (class, generation) = (record.class, record.generation);
        self.count_resident(at, 1);
        self.ledger.give_back(from, class);
        self.stats.demoted += u64::from(to == Tier::Host);
        CopyVerdict::Adopt(BlockId { index: at, generation })
    }

    /// Takes over the tenants' eras. Blocks of older eras and of unknown tenants do not exist from now on; their frames
    /// come back as [`Shard::tend`] gets to them.
    pub fn set_tenants(&mut self, tenants: BTreeMap<TenantId, Era>) {
        let ended = self.tenants.iter().any(|(tenant, era)| tenants.get(tenant) != Some(era));
        self.tenants = tenants;
        if ended {
            self.sweep = Some(0);
        }
    }

    /// Does a bounded piece of what can wait: drops blocks of ended eras, copies cold blocks from device to host.
    pub fn tend(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if let Some(from) = self.sweep {
            let until = self.index.records.len().min(from + SWEEP);
            for at in from..until {
                let record = &self.index.records[at];
                if record.life == Life::Resident && self.tenants.get(&record.tenant) != Some(&record.era) {
                    self.drop_block(at as u32, effects);
                    self.stats.cleared += 1;
                }
            }
            self.sweep = (until < self.index.records.len()).then_some(until);
        }
        if self.config.low_water_per_mille > 0 {
            for class in 0..self.config.classes.len() as u8 {
                self.demote(now, class, effects);
            }
        }
    }

    fn demote(&mut self, now: Moment, class: u8, effects: &mut Vec<Effect>) {
        let share =
            u64::from(self.ledger.capacity(Tier::Device, class)) * u64::from(self.config.low_water_per_mille);
        let wanted = share.div_ceil(1000);
        let mut coming = 0;
        while self.copies < MAX_COPIES && u64::from(self.ledger.free(Tier::Device, class)) + coming < wanted {
            let coldest = self.order.oldest(&mut self.index.records, Tier::Device, class, now, NIL);
            let Some((_, _, at)) = coldest else { return };
            if !self.ledger.take(Tier::Host, class) {
                return;
            }
            let record = &mut self.index.records[at as usize];
            record.copying = true;
            self.copies += 1;
            coming += 1;
            let (index, generation) = (at, record.generation);
            effects.push(Effect::Copy {
                ticket: CopyTicket { index, generation },
                id: BlockId { index, generation },
                to: Tier::Host,
                class: usize::from(class),
            });
        }
    }

    /// Returns the record of a block that may be seen by `tenant`.
    fn visible(&self, tenant: TenantId, key: &BlockKey) -> Option<u32> {
        let at = self.index.find(key)?;
        let record = &self.index.records[at as usize];
        let exists = record.life == Life::Resident && record.tenant == tenant;
        (exists && self.tenants.get(&tenant) == Some(&record.era)).then_some(at)
    }

    /// Takes a resident block out of sight; its frame comes back now, or when its last reader and copy have gone.
    fn drop_block(&mut self, at: u32, effects: &mut Vec<Effect>) {
        self.index.hide(at);
        self.order.remove(&mut self.index.records[at as usize], at);
        self.unlink(at);
        self.count_resident(at, -1);
        let record = &mut self.index.records[at as usize];
        record.life = Life::Leaving;
        self.occupied[usize::from(record.slot)] -= 1;
        effects.push(Effect::Drop { id: BlockId { index: at, generation: record.generation } });
        self.finish_leaving(at);
    }

    fn finish_leaving(&mut self, at: u32) {
        let record = self.index.records[at as usize];
        if record.life == Life::Leaving && record.readers == 0 && !record.copying {
            self.ledger.give_back(record.tier, record.class);
            self.index.free(at);
        }
    }

    /// Takes a block off its parent. Its own children, if it goes before them (a clear, an abandoned write), find their
    /// link dangling: it names a stay that has ended.
    fn unlink(&mut self, at: u32) {
        let link = std::mem::replace(&mut self.index.records[at as usize].parent, NO_PARENT);
        self.index.records[at as usize].children = 0;
        let Some(parent) = self.linked(link) else { return };
        let record = &mut self.index.records[parent as usize];
        record.children -= 1;
        if record.children == 0 && record.life == Life::Resident {
            self.order.insert(record, parent);
        }
    }

    /// Returns the record that a link to a parent names, while that stay lasts.
    fn linked(&self, (index, generation): (u32, u32)) -> Option<u32> {
        let at = self.index.named(index, generation)?;
        matches!(self.index.records[at as usize].life, Life::Resident | Life::Filling).then_some(at)
    }

    fn count_resident(&mut self, at: u32, by: i64) {
        let tier = match self.index.records[at as usize].tier {
            Tier::Device => &mut self.stats.device,
            Tier::Host => &mut self.stats.host,
        };
        tier.blocks = tier.blocks.wrapping_add_signed(by);
    }

    /// Returns the shard's figures.
    pub fn stats(&self) -> ShardStats {
        let mut stats = self.stats;
        for (tier, figures) in [(Tier::Device, &mut stats.device), (Tier::Host, &mut stats.host)] {
            for (class, bytes) in self.config.classes.iter().enumerate() {
                let capacity = u64::from(self.ledger.capacity(tier, class as u8));
                let free = u64::from(self.ledger.free(tier, class as u8));
                figures.capacity_bytes += capacity * bytes;
                figures.used_bytes += (capacity - free) * bytes;
            }
        }
        stats.filling = self.writes as u64;
        stats.leaving = (self.index.taken() - self.index.findable()) as u64;
        stats
    }

    /// Returns one bit a slot: whether any block of it is resident.
    pub fn occupied(&self) -> Vec<u8> {
        let mut bits = vec![0u8; usize::from(SLOTS) / 8];
        for (slot, count) in self.occupied.iter().enumerate() {
            bits[slot / 8] |= u8::from(*count > 0) << (slot % 8);
        }
        bits
    }

    /// Returns the bytes of memory that the index takes for each frame, at most.
    pub const fn index_bytes_per_frame() -> u64 {
        // A record, its number in the table (with the table's slack) and free list, and its rank in the order's tree.
        (size_of::<Record>() + 10 + 4 + 40) as u64
    }
}

fn other(tier: Tier) -> Tier {
    match tier {
        Tier::Device => Tier::Host,
        Tier::Host => Tier::Device,
    }
}
