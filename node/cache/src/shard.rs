//! The shard: every rule of what one device actor keeps, in three tiers.
//!
//! Two questions are kept apart. *What leaves the pool* is decided over all tiers together by the policy of the party whose
//! turn it is ([`crate::policy`], [`crate::party`]). *In which tier a block rests* is a matter of speed: recency moves it
//! down, use brings it up. A full tier is never a reason to lose a block while another has room.
//!
//! Only leaves leave, so a prefix never loses its head before its tail (as in RadixAttention: Zheng et al., SGLang, 2024). That
//! makes a match a search for the deepest resident block instead of a walk: see [`find`].

use crate::answers::{Effect, Reserve, ShardConfig};
use crate::block::{BlockId, HoldClock, Life, MAX_HOLD, Mark, NO_PARENT, Record, Tier, WriteTicket};
use crate::expected::Expected;
use crate::feed::Feed;
use crate::frames::Ledger;
use crate::index::Index;
use crate::owners::Owners;
use crate::party::{COMMONS, Party, Rules};
use crate::policy::{Removal, Request, Strategy, Visit, most_bytes, shrinks};
use crate::recency::Recency;
use crate::stats::{Reason, ShardStats};
use crate::table::Table;
use kvhive_protocol::data::{About, Hint, Refusal, StoreBlock};
use kvhive_protocol::load::TenantLoad;
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{BlockKey, Era, Moment, SLOTS, Slot, TenantId};
use std::collections::{BTreeMap, VecDeque};

mod collect;
mod find;
mod invariants;
mod leave;
mod mend;
mod moves;
mod release;
mod restore;
mod room;
mod rules;
mod shrink;
mod strategies;
mod tenants;
mod watch;

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
    uses: VecDeque<find::Use>,
    /// Blocks to be brought up a tier.
    wanted: VecDeque<moves::Wanted>,
    closed: [bool; 3],
    writes: usize,
    /// Those under way by class.
    writes_of: Vec<u32>,
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
    stats: ShardStats,
    /// Figures of each tenant that was ever seen.
    loads: BTreeMap<TenantId, TenantLoad>,
    /// What happens, while somebody follows.
    feed: Option<Box<Feed>>,
}

impl Shard {
    /// Makes an empty shard. Its index takes its memory at once.
    pub fn new(config: ShardConfig) -> Shard {
        let classes = config.classes.len();
        let ledger = Ledger::new(classes, [&config.device, &config.host, &config.disk]);
        // Leaving blocks hold both a record and a frame, so frames bound the records.
        let index = Index::new(ledger.total() as usize, config.hash_seed);
        let mut shard = Shard {
            recency: Recency::new(classes),
            index,
            ledger,
            tenants: BTreeMap::new(),
            owners: Owners::new(config.hash_seed),
            parties: Vec::new(),
            party_of: BTreeMap::new(),
            occupied: vec![0; usize::from(SLOTS)],
            request: Request::default(),
            session: 0,
            uses: VecDeque::new(),
            wanted: VecDeque::new(),
            closed: [false; 3],
            writes: 0,
            writes_of: vec![0; classes],
            copies: 0,
            copies_between: vec![[[0; 3]; 3]; classes],
            said: BTreeMap::new(),
            shrinks: BTreeMap::new(),
            may_shrink: shrinks(config.rules.strategy).is_some(),
            expected: Expected::default(),
            garbage: collect::Garbage::new(classes),
            sweep: None,
            mending: mend::Mending::default(),
            stats: ShardStats::default(),
            loads: BTreeMap::new(),
            feed: None,
            config,
        };
        shard.config.max_hold = shard.config.max_hold.min(MAX_HOLD);
        shard.parties.push(shard.party(usize::from(COMMONS), shard.config.rules));
        shard
    }

    /// Returns what it was made with.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    fn party(&self, at: usize, rules: Rules) -> Party {
        Party::new(at, rules, self.config.classes.len(), self.ledger.total() as u32, self.config.hash_seed)
    }

    /// Adds a reader to a block that was just named by [`Reserve::Present`] or [`Shard::seal`]. False when it is gone, or read
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

    /// Takes a frame for a block that is to be written. Of several writers of one key the first wins.
    pub fn reserve(
        &mut self,
        now: Moment,
        tenant: TenantId,
        block: &StoreBlock,
        slot: Slot,
        about: About,
        effects: &mut Vec<Effect>,
    ) -> Reserve {
        self.tell_uses();
        match self.try_reserve(now, tenant, block, slot, about, effects) {
            Ok(reserve) => reserve,
            Err(refusal) => {
                self.stats.count_refusal(refusal);
                self.load_of(tenant).refused_blocks += 1;
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
        about: About,
        effects: &mut Vec<Effect>,
    ) -> Result<Reserve, Refusal> {
        let header = &block.header;
        self.check_era(tenant, header.tenant, header.era)?;
        if slot.0 >= SLOTS {
            return Err(Refusal::WrongEra);
        }
        let class = self.class_of(header.payload_bytes).ok_or(Refusal::TooLarge)?;
        let parent = self.parent_of(tenant, &block.parent);
        self.go_on_with(now, parent, header.depth, about);
        if let Some(parent) = parent {
            // Whatever becomes of this block: whoever matched that one needs it no more.
            self.index.records[parent as usize].came();
        }
        if let Some(at) = self.find(tenant, &header.key) {
            if self.index.records[at as usize].life == Life::Filling {
                return Err(Refusal::InFlight);
            }
            let record = &self.index.records[at as usize];
            if self.owners.of(record.owner).1 == header.era {
                let id = BlockId { index: at, generation: record.generation };
                self.used(at);
                self.heed_again(now, at, parent, about.hint);
                self.stats.already += 1;
                return Ok(Reserve::Present(id));
            }
            // A block that a clear has ended is still here under this key.
            self.drop_block(at, Removal::Dropped, Gone::Cleared, effects);
            self.stats.cleared += 1;
        }
        if self.writes >= self.config.max_writes {
            return Err(Refusal::NoRoom);
        }
        let salt = self.owners.salt(tenant);
        let visit = Visit { key: salt.key(&header.key), parent, depth: header.depth, partial: false };
        // A child of what was declined is not worth more, and nobody would find it.
        if parent.is_none() && !block.parent.is_none() {
            let party = self.party_of(tenant);
            if self.parties[usize::from(party)].declined.goes_on(tenant, &salt.key(&block.parent), visit.key)
            {
                self.stats.declined += 1;
                return Err(Refusal::NoRoom);
            }
        }
        // Before the frame: a victim may be the last of its owner.
        let owner = self.owners.enter(tenant, header.era).ok_or(Refusal::NoRoom)?;
        let frame = self.take_frame(now, tenant, class, &visit, effects);
        let (tier, class) = frame.inspect_err(|_| self.owners.leave(owner))?;
        let party = self.party_of(tenant);
        let record = Record {
            codec: header.codec,
            key: header.key,
            owner,
            depth: header.depth,
            parent: parent.map_or(NO_PARENT, |at| (at, self.index.records[at as usize].generation)),
            // As those before it: the session's blocks are known by that.
            request: self.session,
            slot: slot.0,
            party,
            class,
            tier,
            life: Life::Filling,
            ..Record::EMPTY
        };
        let at = self.index.insert(&self.owners, record).expect("there are as many records as frames");
        if let Some(parent) = parent {
            self.add_child(parent);
        }
        self.heed_store(now, at, parent, about.hint);
        self.writes += 1;
        self.writes_of[usize::from(class)] += 1;
        // What is being written counts: a slot that is about to be moved must not look empty because of it.
        self.occupied[usize::from(slot.0)] += 1;
        // Only now that its parent has a child: before, that could be what leaves.
        self.move_down_early(now, class, effects);
        let generation = self.index.records[at as usize].generation;
        Ok(Reserve::Take { ticket: WriteTicket { index: at, generation }, tier, class: usize::from(class) })
    }

    /// A session goes on from this block: it is over no more, nor is it one session's own if another went on from it before.
    fn add_child(&mut self, parent: u32) {
        let record = &mut self.index.records[parent as usize];
        record.children += 1;
        record.set(Mark::OVER, false);
        if record.children > 1 {
            record.set(Mark::SHARED, true);
        }
    }

    fn party_of(&self, tenant: TenantId) -> u16 {
        self.party_of.get(&tenant).copied().unwrap_or(COMMONS)
    }

    /// Says whether a record's block exists: no clear has ended its era.
    fn stands(&self, record: &Record) -> bool {
        let (tenant, era) = self.owners.of(record.owner);
        self.tenants.get(&tenant) == Some(&era)
    }

    fn check_era(&self, tenant: TenantId, of_block: TenantId, era: Era) -> Result<(), Refusal> {
        let stands = of_block == tenant && self.tenants.get(&tenant) == Some(&era);
        if stands { Ok(()) } else { Err(Refusal::WrongEra) }
    }

    fn class_of(&self, bytes: u64) -> Option<u8> {
        self.config.classes.iter().position(|frame| *frame >= bytes).map(|class| class as u8)
    }

    fn parent_of(&self, tenant: TenantId, key: &BlockKey) -> Option<u32> {
        let at = if key.is_none() { None } else { self.find(tenant, key) };
        at.filter(|at| {
            let parent = &self.index.records[*at as usize];
            // One of an ended era is not there for anybody.
            self.stands(parent)
        })
    }

    /// A store goes on with the request that used its parent last, if no other came since; else it is a request of its own. That
    /// of a session of which others' requests have come between stays that session's.
    fn go_on_with(&mut self, now: Moment, parent: Option<u32>, depth: u32, about: About) {
        let of_parent = parent.map(|at| self.index.records[at as usize].request);
        let goes_on = match of_parent {
            Some(request) => self.is_of_session(request),
            None => depth == 0 && self.request.covered == 0 && self.request.number > 0,
        };
        let About { input_tokens, output_tokens, hint } = about;
        let request = if goes_on {
            Request { input_tokens, output_tokens, hint, ..self.request }
        } else {
            let (number, blocks) = (self.request.number + 1, depth.saturating_add(1));
            Request { now, number, blocks, covered: depth, input_tokens, output_tokens, hint }
        };
        self.request = request;
        if !goes_on {
            self.session = of_parent.unwrap_or(request.number as u32);
        }
    }

    /// Says whether a block's last use was by the request at hand, or by the session that it goes on with.
    fn is_of_session(&self, request: u32) -> bool {
        request == self.request.number as u32 || request == self.session
    }

    /// Makes a written block visible. None when a clear has ended its era meanwhile: the host drops the frame.
    pub fn seal(&mut self, ticket: WriteTicket) -> Option<BlockId> {
        let at = self.filling(ticket)?;
        if !self.stands(&self.index.records[at as usize]) {
            self.abandon(ticket);
            return None;
        }
        self.tell_uses();
        self.writes -= 1;
        self.writes_of[usize::from(self.index.records[at as usize].class)] -= 1;
        Some(self.appear(at))
    }

    /// Makes a filled record resident, and tells everybody who ranks it.
    fn appear(&mut self, at: u32) -> BlockId {
        let link = self.index.records[at as usize].parent;
        let parent = self.linked(link);
        self.index.records[at as usize].life = Life::Resident;
        self.chain_anew(at);
        let record = &self.index.records[at as usize];
        let (tenant, _) = self.owners.of(record.owner);
        // A child may have been written in less time.
        let (party, class, has_children) = (record.party, record.class, record.children > 0);
        let id = BlockId { index: at, generation: record.generation };
        let visit = self.visit_of(at);
        self.recency.insert(&mut self.index.records, at);
        let ranking = self.parties[usize::from(party)].ranking(class);
        ranking.begin(&self.request);
        ranking.inserted(at, &visit, has_children);
        // Another request may have come since it was reserved.
        if let Some(hint) = self.said.remove(&at).filter(|hint| *hint != self.request.hint) {
            ranking.hinted(at, &visit.key, hint);
        }
        // A parent of another class is ranked elsewhere.
        self.tell_leaf(parent, false);
        if self.index.records[at as usize].take(Mark::OVER) {
            self.end_session(at, Reason::Over);
        }
        self.count_resident(at, 1);
        self.tell_stored(at);
        self.stats.stored += 1;
        self.load_of(tenant).stored_blocks += 1;
        id
    }

    /// Ends a write without a block; its frame is free again, its handle dropped before.
    pub fn abandon(&mut self, ticket: WriteTicket) {
        let Some(at) = self.filling(ticket) else { return };
        self.writes -= 1;
        self.writes_of[usize::from(self.index.records[at as usize].class)] -= 1;
        self.said.remove(&at);
        self.occupied[usize::from(self.index.records[at as usize].slot)] -= 1;
        self.stats.abandoned += 1;
        self.index.hide(&self.owners, at);
        let bared = self.unlink(at);
        self.tell_leaf(bared, true);
        let Record { tier, class, party, .. } = self.index.records[at as usize];
        self.give(tier, class, party);
        self.free(at);
    }

    fn filling(&self, ticket: WriteTicket) -> Option<u32> {
        let at = self.index.named(ticket.index, ticket.generation)?;
        (self.index.records[at as usize].life == Life::Filling).then_some(at)
    }

    /// Does a bounded piece of what can wait: tells the policies what was used, drops blocks of ended eras, moves blocks
    /// between tiers.
    pub fn tend(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.tell_uses();
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
        stats.shrinking = self.shrinks.len() as u64;
        stats.leaving = (self.index.taken() - self.index.findable()) as u64;
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

    /// Returns the bytes of memory that the index of so many frames takes, and at most what a policy takes for each class of
    /// frames. Tenants with rules of their own have policies of their own, which come on top
    /// ([`ShardStats::own_policy_bytes`]): sized by the most that they held, and each at most as large and
    /// 11 bytes a block larger.
    pub fn index_bytes(frames: u32, classes: usize, strategy: Strategy) -> u64 {
        let index = frames as usize * size_of::<Record>() + Table::bytes(frames as usize);
        (index + classes * most_bytes(strategy, frames)) as u64
    }

    /// Returns the bytes of memory that the policies hold.
    pub fn policy_bytes(&self) -> usize {
        self.parties.iter().map(Party::memory_bytes).sum()
    }
}
