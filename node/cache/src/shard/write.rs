//! Writing: a frame for a block that is to come, and what becomes of it: a block that can be found, or nothing.

use super::Shard;
use crate::answers::{Effect, Reserve};
use crate::block::{BlockId, Life, Mark, NO_PARENT, Record, WriteTicket};
use crate::policy::{Removal, Request, Visit};
use crate::stats::Reason;
use kvhive_planted::{Bug, is};
use kvhive_protocol::data::{About, Refusal, StoreBlock};
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{BlockKey, Era, Moment, SLOTS, Slot, TenantId};

impl Shard {
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
        self.note_time(now);
        self.tell_few();
        let declined = self.stats.declined;
        match self.try_reserve(now, tenant, block, slot, about, effects) {
            Ok(reserve) => reserve,
            Err(refusal) => {
                self.stats.count_refusal(refusal);
                self.load_of(tenant).refused_blocks += 1;
                if let Some(why) = Shard::why_refused(refusal, self.stats.declined > declined) {
                    self.note_refused(tenant, &block.header.key, why);
                }
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
        self.tell_own();
        if let Some(parent) = parent {
            // Whatever becomes of this block: whoever matched that one needs it no more.
            self.index.records[parent as usize].came();
        }
        if let Some(at) = self.find(tenant, &header.key) {
            if self.index.records[at as usize].life == Life::Filling {
                return Err(Refusal::InFlight);
            }
            let record = &self.index.records[at as usize];
            if self.owners.of(record.owner).1 == header.era && !is(Bug::PresentIsTaken) {
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
        let is_pinned = self.would_pin(tenant, &header.key, slot, class);
        if parent.is_none() && !block.parent.is_none() && !is_pinned {
            let party = self.party_of(tenant);
            if self.parties[usize::from(party)].declined.goes_on(tenant, &salt.key(&block.parent), visit.key)
            {
                self.stats.declined += 1;
                return Err(Refusal::NoRoom);
            }
        }
        // Before the frame: a victim may be the last of its owner.
        let owner = self.owners.enter(tenant, header.era).ok_or(Refusal::NoRoom)?;
        // What a name means has a key of its own, which nobody has asked for before: its owner says that it is wanted, by storing it.
        let is_wanted = is_pinned || header.fingerprint.is_of_any_length();
        let frame = self.take_frame(now, (tenant, is_wanted), class, &visit, effects);
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
        match parent {
            Some(parent) => self.add_child(parent),
            None => self.note_orphan(at, &block.parent),
        }
        self.heed_store(now, at, parent, about.hint);
        self.writes += 1;
        self.writes_of[tier as usize][usize::from(class)] += 1;
        // What is being written counts: a slot that is about to be moved must not look empty because of it.
        self.occupied[usize::from(slot.0)] += 1;
        // Only now that its parent has a child: before, that could be what leaves.
        self.move_down_early(now, class, effects);
        let generation = self.index.records[at as usize].generation;
        Ok(Reserve::Take { ticket: WriteTicket { index: at, generation }, tier, class: usize::from(class) })
    }

    /// A session goes on from this block: it is over no more, nor is it one session's own if another went on from it before.
    pub(super) fn add_child(&mut self, parent: u32) {
        let record = &mut self.index.records[parent as usize];
        record.children += 1;
        record.set(Mark::OVER, false);
        if record.children > 1 {
            record.set(Mark::SHARED, true);
        }
    }

    pub(super) fn check_era(&self, tenant: TenantId, of_block: TenantId, era: Era) -> Result<(), Refusal> {
        let stands = of_block == tenant && self.tenants.get(&tenant) == Some(&era);
        if stands { Ok(()) } else { Err(Refusal::WrongEra) }
    }

    pub(super) fn class_of(&self, bytes: u64) -> Option<u8> {
        self.config.classes.iter().position(|frame| *frame >= bytes).map(|class| class as u8)
    }

    pub(super) fn parent_of(&self, tenant: TenantId, key: &BlockKey) -> Option<u32> {
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
    pub(super) fn is_of_session(&self, request: u32) -> bool {
        request == self.request.number as u32 || request == self.session
    }

    /// Makes a written block visible. None when a clear has ended its era meanwhile: the host drops the frame.
    pub fn seal(&mut self, ticket: WriteTicket) -> Option<BlockId> {
        let at = self.filling(ticket)?;
        let record = &self.index.records[at as usize];
        if self.ledger.is_lost(record.tier) || !self.stands(record) {
            let gone = if self.ledger.is_lost(record.tier) { Gone::Lost } else { Gone::Cleared };
            self.end_write(at, gone);
            return None;
        }
        self.tell_few();
        self.count_ended_write(at);
        Some(self.appear(at))
    }

    /// Makes a filled record resident, and tells everybody who ranks it.
    pub(super) fn appear(&mut self, at: u32) -> BlockId {
        let link = self.index.records[at as usize].parent;
        let parent = self.linked(link);
        self.index.records[at as usize].life = Life::Resident;
        self.adopt(at);
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
        self.pin_named(at);
        id
    }

    /// Ends a write without a block; its frame is free again, its handle dropped before.
    pub fn abandon(&mut self, ticket: WriteTicket) {
        let Some(at) = self.index.named(ticket.index, ticket.generation) else { return };
        match self.index.records[at as usize].life {
            Life::Filling if is(Bug::AbandonedIsSeen) => drop(self.seal(ticket)),
            Life::Filling => self.end_write(at, Gone::Unwritten),
            Life::GivenUp => {
                self.given_up -= 1;
                self.let_frame_go(at);
            }
            Life::Free | Life::Resident | Life::Leaving => {}
        }
    }

    /// Ends a write without a block whose frame something may write to yet: the block can be stored anew at once, elsewhere. The frame is
    /// nobody's until [`Shard::abandon`].
    pub fn give_up(&mut self, ticket: WriteTicket) {
        let Some(at) = self.filling(ticket) else { return };
        self.take_out(at, Gone::Unwritten);
        self.index.records[at as usize].life = Life::GivenUp;
        self.given_up += 1;
    }

    fn end_write(&mut self, at: u32, why: Gone) {
        self.take_out(at, why);
        if !is(Bug::AbandonedLeaks) {
            self.let_frame_go(at);
        }
    }

    /// Has a write be under way no more.
    fn take_out(&mut self, at: u32, why: Gone) {
        self.count_ended_write(at);
        self.said.remove(&at);
        self.occupied[usize::from(self.index.records[at as usize].slot)] -= 1;
        self.stats.abandoned += 1;
        let hash = self.index.hide(&self.owners, at);
        self.note_gone(at, hash, why);
        let bared = self.unlink(at);
        self.tell_leaf(bared, true);
    }

    fn count_ended_write(&mut self, at: u32) {
        let Record { tier, class, .. } = self.index.records[at as usize];
        self.writes -= 1;
        self.writes_of[tier as usize][usize::from(class)] -= 1;
    }

    fn let_frame_go(&mut self, at: u32) {
        let Record { tier, class, party, .. } = self.index.records[at as usize];
        self.give(tier, class, party);
        self.free(at);
    }

    fn filling(&self, ticket: WriteTicket) -> Option<u32> {
        let at = self.index.named(ticket.index, ticket.generation)?;
        (self.index.records[at as usize].life == Life::Filling).then_some(at)
    }
}
