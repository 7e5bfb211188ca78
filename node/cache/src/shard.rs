//! The shard: every rule of what one device actor keeps, in three tiers.
//!
//! Two questions are kept apart. *What leaves the pool* is decided over all tiers together by the policy of the party whose
//! turn it is ([`crate::policy`], [`crate::party`]). *In which tier a block rests* is a matter of speed: recency moves it
//! down, use brings it up. A full tier is never a reason to lose a block while another has room.
//!
//! Only leaves leave, so a prefix never loses its head before its tail (as in RadixAttention: Zheng et al., SGLang, 2024). That
//! makes a match a search for the deepest resident block instead of a walk: see [`find`].

use crate::answers::{Effect, ShardConfig};
use crate::block::{BlockId, HoldClock, Life, MAX_HOLD, Record, Tier};
use crate::departed::Departed;
use crate::expected::Expected;
use crate::feed::Feed;
use crate::frames::Ledger;
use crate::index::Index;
use crate::orphans::Orphans;
use crate::owners::Owners;
use crate::party::{COMMONS, Party, Rules};
use crate::policy::{Removal, Request, Strategy, most_bytes, shrinks};
use crate::recency::Recency;
use crate::reuse::ReuseCurve;
use crate::stats::{Reason, ShardStats};
use crate::table::Table;
use kvhive_protocol::data::Hint;
use kvhive_protocol::load::TenantLoad;
use kvhive_protocol::scaling::Reuse;
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{Era, Moment, SLOTS, TenantId};
use make_way::Elsewhere;
use std::collections::{BTreeMap, VecDeque};

mod adopt;
mod collect;
mod explain;
mod find;
mod invariants;
mod leave;
mod make_way;
mod mend;
mod moves;
mod pins;
mod release;
mod restore;
mod room;
mod rules;
mod shrink;
mod strategies;
mod tenants;
mod uses;
mod watch;
mod write;

pub use explain::Known;
pub use pins::Pinned;

/// Records looked at by one [`Shard::tend`] when a clear has left dead blocks behind, or a block has gone before its children.
const SWEEP: usize = 4096;

/// The rules of one device's shard.
pub struct Shard {
    config: ShardConfig,
    index: Index,
    recency: Recency,
    ledger: Ledger,
    tenants: BTreeMap<TenantId, Era>,
    owners: Owners,
    parties: Vec<Party>,
    party_of: BTreeMap<TenantId, u16>,
    occupied: Vec<u32>,
    /// The request that came last; stores go on with it.
    request: Request,
    /// The request by which the session at hand has used what its stores go on from: others may have come between.
    session: u32,
    /// Uses that the policies have not been told of yet.
    uses: uses::Uses,
    /// Blocks to be brought up a tier.
    wanted: VecDeque<moves::Wanted>,
    closed: [bool; 3],
    writes: usize,
    /// Those under way by tier and class.
    writes_of: [Vec<u32>; 3],
    /// Those that were given up and whose frames may be written to yet.
    given_up: usize,
    copies: usize,
    /// Those under way by class, and by the tiers from and to which they go.
    copies_between: Vec<[[u32; 3]; 3]>,
    /// What was said of blocks that are being written, by record; of those of which nothing was said there is none.
    said: BTreeMap<u32, Hint>,
    /// Shrinks under way, by record.
    shrinks: BTreeMap<u32, shrink::UnderWay>,
    /// Some party's strategy shrinks.
    may_shrink: bool,
    /// Sessions that are expected back.
    expected: Expected,
    /// Blocks that nobody is expected to use.
    garbage: collect::Garbage,
    /// Where the sweep for dead blocks goes on, if one is under way.
    sweep: Option<usize>,
    mending: mend::Mending,
    /// Where to look next for copies whose slots have gone elsewhere.
    elsewhere: Elsewhere,
    /// Blocks that came before their parents.
    orphans: Orphans,
    /// Lost blocks whose children are looked for.
    torn: adopt::AllTorn,
    /// What is pinned.
    pins: pins::Pins,
    /// What other sizes would have been worth.
    reuse: ReuseCurve,
    stats: ShardStats,
    /// Figures of each tenant that was ever seen.
    loads: BTreeMap<TenantId, TenantLoad>,
    /// What happens, while somebody follows.
    feed: Option<Box<Feed>>,
    /// What has left, and why.
    departed: Departed,
    /// The time, in seconds, as far as it was told; and the first that was.
    now_s: u32,
    began_s: Option<u32>,
}

impl Shard {
    /// Makes an empty shard. Its index takes its memory at once.
    pub fn new(config: ShardConfig) -> Shard {
        let classes = config.classes.len();
        let ledger = Ledger::new(classes, [&config.device, &config.host, &config.disk]);
        // Leaving blocks hold both a record and a frame, so frames bound the records.
        let index = Index::new(ledger.total() as usize, config.hash_seed);
        let orphans = Orphans::new(ledger.total() as usize);
        let departed = Departed::new(ledger.total() as usize);
        let mut shard = Shard {
            recency: Recency::new(classes),
            reuse: ReuseCurve::new(ledger.total()),
            index,
            ledger,
            tenants: BTreeMap::new(),
            owners: Owners::new(config.hash_seed),
            parties: Vec::new(),
            party_of: BTreeMap::new(),
            occupied: vec![0; usize::from(SLOTS)],
            request: Request::default(),
            session: 0,
            uses: uses::Uses::NONE,
            wanted: VecDeque::new(),
            closed: [false; 3],
            writes: 0,
            writes_of: Tier::ALL.map(|_| vec![0; classes]),
            given_up: 0,
            copies: 0,
            copies_between: vec![[[0; 3]; 3]; classes],
            said: BTreeMap::new(),
            shrinks: BTreeMap::new(),
            may_shrink: shrinks(config.rules.strategy).is_some(),
            expected: Expected::default(),
            garbage: collect::Garbage::new(classes),
            sweep: None,
            mending: mend::Mending::default(),
            elsewhere: Elsewhere::default(),
            orphans,
            torn: adopt::AllTorn::default(),
            pins: pins::Pins::new(classes),
            stats: ShardStats::default(),
            loads: BTreeMap::new(),
            feed: None,
            departed,
            now_s: 0,
            began_s: None,
            config,
        };
        shard.config.max_hold = shard.config.max_hold.min(MAX_HOLD);
        shard.parties.push(shard.party(usize::from(COMMONS), shard.config.rules));
        shard
    }

    /// Returns how it would have done with other room.
    pub fn reuse(&self) -> &Reuse {
        self.reuse.report()
    }

    /// Returns what it was made with.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    fn party(&self, at: usize, rules: Rules) -> Party {
        let records = self.index.records.len() as u32;
        Party::new(at, rules, self.config.classes.len(), records, self.config.hash_seed)
    }

    /// Adds a reader to a block that was just named by [`crate::Reserve::Present`] or [`Shard::seal`]. False when it is gone, or read
    /// by 65,535 at once.
    pub fn pin(&mut self, id: BlockId) -> bool {
        let Some(at) = self.index.named(id.index, id.generation) else { return false };
        let record = &mut self.index.records[at as usize];
        if record.life != Life::Resident || !record.add_reader() {
            return false;
        }
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

    fn party_of(&self, tenant: TenantId) -> u16 {
        self.party_of.get(&tenant).copied().unwrap_or(COMMONS)
    }

    /// Says whether a record's block exists: no clear has ended its era.
    fn stands(&self, record: &Record) -> bool {
        let (tenant, era) = self.owners.of(record.owner);
        self.tenants.get(&tenant) == Some(&era)
    }

    /// Does a bounded piece of what can wait: tells the policies what was used ([`Shard::tell_some`]), drops blocks of ended eras,
    /// moves blocks between tiers.
    pub fn tend(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.note_time(now);
        self.tell_some();
        self.rest_feed(now);
        self.begin_collections();
        if let Some(from) = self.sweep {
            let until = self.index.records.len().min(from + SWEEP);
            for at in from..until {
                let record = &self.index.records[at];
                if record.life == Life::Resident && !self.stands(record) {
                    if self.garbage.is_collecting(record.class) && record.tier != Tier::Disk {
                        self.count_collected(record.class, Reason::Cleared);
                    }
                    self.drop_block(at as u32, Removal::Dropped, Gone::Cleared, effects);
                    self.stats.cleared += 1;
                }
            }
            self.sweep = (until < self.index.records.len()).then_some(until);
        }
        self.mend(SWEEP);
        self.collect(now, effects);
        self.await_sessions(now);
        self.bring_up(effects);
        for class in 0..self.config.classes.len() as u8 {
            self.shrink_cold(class, effects);
        }
        self.move_down(now, effects);
    }

    fn hold_clock(&self, now: Moment) -> HoldClock {
        HoldClock::at(now, self.config.max_hold)
    }

    /// Takes a frame if one is free, on a party's account.
    fn take(&mut self, tier: Tier, class: u8, party: u16) -> bool {
        let taken = self.ledger.take(tier, class);
        if taken {
            self.parties[usize::from(party)].used[tier as usize] += self.config.classes[usize::from(class)];
        }
        taken
    }

    fn give(&mut self, tier: Tier, class: u8, party: u16) {
        self.ledger.give_back(tier, class);
        self.parties[usize::from(party)].used[tier as usize] -= self.config.classes[usize::from(class)];
    }

    /// Returns the shard's figures.
    pub fn stats(&self) -> ShardStats {
        let mut stats = self.stats;
        for tier in Tier::ALL {
            let figures = stats.tier(tier);
            for (class, bytes) in self.config.classes.iter().enumerate() {
                let capacity = u64::from(self.ledger.capacity(tier, class as u8));
                let free = u64::from(self.ledger.free(tier, class as u8));
                figures.capacity_bytes += capacity * bytes;
                figures.used_bytes += (capacity - free) * bytes;
            }
        }
        let own = self.parties.iter().skip(usize::from(COMMONS) + 1);
        stats.own_policy_bytes = own.map(|party| party.memory_bytes() as u64).sum();
        stats.filling = self.writes as u64;
        stats.untold = self.untold() as u64;
        stats.shrinking = self.shrinks.len() as u64;
        (stats.pinned_blocks, stats.pinned_bytes) = self.pinned();
        stats.given_up = self.given_up as u64;
        stats.leaving = (self.index.taken() - self.index.findable() - self.given_up) as u64;
        stats
    }

    /// Returns one bit a slot: whether any block of it is resident or being written.
    pub fn occupied(&self) -> Vec<u8> {
        let mut bits = vec![0u8; usize::from(SLOTS) / 8];
        for (slot, count) in self.occupied.iter().enumerate() {
            bits[slot / 8] |= u8::from(*count > 0) << (slot % 8);
        }
        bits
    }

    /// Returns the bytes of memory that the index of so many frames takes, with what is remembered of blocks that left, and at most what a policy takes for each class of
    /// frames. Tenants with rules of their own have policies of their own, which come on top
    /// ([`ShardStats::own_policy_bytes`]): sized by the most that they held, and each at most as large and
    /// 11 bytes a block larger.
    pub fn index_bytes(frames: u32, classes: usize, strategy: Strategy) -> u64 {
        let index = frames as usize * size_of::<Record>()
            + Table::bytes(frames as usize)
            + Departed::bytes(frames as usize)
            + Orphans::bytes(frames as usize);
        (index + classes * most_bytes(strategy, frames)) as u64
    }

    /// Returns the bytes of memory that a shard takes at most besides, whatever its size: its events, while somebody follows, the
    /// uses by which other sizes are judged, those that its policies have not been told of yet, and the keys that are pinned.
    pub const fn fixed_bytes() -> u64 {
        (Feed::bytes() + ReuseCurve::bytes() + uses::Uses::bytes() + pins::Pins::bytes()) as u64
    }

    /// Returns the bytes of memory that the policies hold.
    pub fn policy_bytes(&self) -> usize {
        self.parties.iter().map(Party::memory_bytes).sum()
    }
}
