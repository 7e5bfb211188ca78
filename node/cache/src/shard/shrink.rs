//! Blocks that become smaller before any leaves: where the strategy of a party says so, its coldest are re-encoded and move to
//! frames of a smaller class. Which codec makes how many bytes is the host's to know; what may be shrunk, when,
//! and into which frame is decided here.

use super::Shard;
use super::room::Leaves;
use crate::answers::{CopyVerdict, Effect};
use crate::block::{BlockId, Life, Mark, Record, ShrinkTicket, Shrinking, Tier};
use crate::party::MEMORY;
use crate::policy::{Removal, Shrink, shrinks};
use kvhive_protocol::Moment;
use kvhive_protocol::block::Codec;

/// Shrinks under way at a time: each takes a core while it lasts.
const MAX_SHRINKS: usize = 8;
/// Blocks that a policy is asked to name at a time.
const MAX_NAMED: usize = 16;

/// One shrink.
pub(super) struct UnderWay {
    /// Tier and class of the frame that is taken for it.
    pub(super) into: Option<(Tier, u8)>,
}

impl Shard {
    /// Starts to shrink the coldest blocks of a class when few of its frames in memory are free.
    pub(super) fn shrink_cold(&mut self, class: u8, effects: &mut Vec<Effect>) {
        if !self.may_shrink || !self.is_short_of(class) {
            return;
        }
        for party in 0..self.parties.len() {
            let Some(how) = shrinks(self.parties[party].rules.strategy) else { continue };
            let mut named = Vec::with_capacity(1);
            for _ in 0..MAX_NAMED {
                if self.shrinks.len() >= MAX_SHRINKS || !self.is_short_of(class) {
                    break;
                }
                // One at a time: who is named and not shrunk is not named again before its next use.
                self.parties[party].ranking(class).coldest(1, &mut named);
                let Some(at) = named.pop() else { break };
                self.start_shrink(at, how, effects);
            }
        }
    }

    /// Says whether few frames of a class are free or about to be, and smaller ones are there to shrink into.
    fn is_short_of(&self, class: u8) -> bool {
        let over = |of: &dyn Fn(Tier) -> u32| MEMORY.iter().copied().map(of).sum::<u32>();
        let capacity = over(&|tier| self.ledger.capacity(tier, class));
        let smaller = over(&|tier| (0..class).map(|smaller| self.ledger.capacity(tier, smaller)).sum());
        if capacity == 0 || smaller == 0 {
            return false;
        }
        let share = u64::from(capacity) * u64::from(self.config.low_water_per_mille);
        let wanted = share.div_ceil(1000).max(1) as u32;
        over(&|tier| self.ledger.free(tier, class)) + self.shrinking_of(class) < wanted
    }

    /// Returns how many blocks of a class are being shrunk: their frames are about to be free.
    pub(super) fn shrinking_of(&self, class: u8) -> u32 {
        self.shrinks.keys().filter(|at| self.index.records[**at as usize].class == class).count() as u32
    }

    fn start_shrink(&mut self, at: u32, how: Shrink, effects: &mut Vec<Effect>) {
        let record = &self.index.records[at as usize];
        // Nothing is shrunk twice to one codec, and what has lost bits loses no more.
        let denser = match how {
            Shrink::Lossless => record.codec == Codec::Raw,
            Shrink::Quantize => record.codec.is_exact(),
        };
        let stands = self.stands(record);
        // What is pinned stays as it was stored.
        let here = MEMORY.contains(&record.tier) && record.is_movable() && !record.is(Mark::PINNED);
        if !denser || !stands || !here || record.shrinking() != Shrinking::Open {
            return;
        }
        let record = &mut self.index.records[at as usize];
        record.set_shrinking(Shrinking::UnderWay);
        let generation = record.generation;
        self.shrinks.insert(at, UnderWay { into: None });
        effects.push(Effect::Shrink {
            ticket: ShrinkTicket { index: at, generation },
            id: BlockId { index: at, generation },
            how,
        });
    }

    /// Takes the frame that a shrink writes to: the smallest free one in memory that holds `bytes`, or where these are not
    /// known before, one of the next smaller class; of the block's own tier if there is one. It may be one that a colder block
    /// leaves: then a drop is asked for, and nothing else. None when there is none: then the shrink has ended.
    pub fn shrink_into(
        &mut self,
        now: Moment,
        ticket: ShrinkTicket,
        bytes: Option<u64>,
        effects: &mut Vec<Effect>,
    ) -> Option<(Tier, usize)> {
        let at = self.index.named(ticket.index, ticket.generation)?;
        if self.shrinks.get(&at)?.into.is_some() {
            return None;
        }
        let Record { tier, class, party, life, .. } = self.index.records[at as usize];
        if life != Life::Resident {
            self.end_shrink(at, Shrinking::Open);
            return None;
        }
        let there_is = |class: &u8| MEMORY.iter().any(|tier| self.ledger.capacity(*tier, *class) > 0);
        let holds = |class: &u8| bytes.is_none_or(|bytes| self.config.classes[usize::from(*class)] >= bytes);
        let mut classes: Vec<u8> = (0..class).filter(|class| there_is(class) && holds(class)).collect();
        if bytes.is_none() {
            // The largest alone.
            classes.drain(..classes.len().saturating_sub(1));
        }
        let Some(&tightest) = classes.first() else {
            self.end_shrink(at, Shrinking::Unfit);
            return None;
        };
        let own_first =
            if tier == Tier::Host { [Tier::Host, Tier::Device] } else { [Tier::Device, Tier::Host] };
        let places = classes.iter().flat_map(|class| own_first.map(|tier| (tier, *class)));
        let mut into = places.into_iter().find(|(tier, class)| self.take(*tier, *class, party));
        if into.is_none() {
            let visit = self.visit_of(at);
            let bytes = self.config.classes[usize::from(tightest)];
            if let Leaves::Block(victim) = self.leaves_memory(now, (party, bytes), tightest, &visit) {
                let tier = self.index.records[victim as usize].tier;
                self.evict(victim, effects);
                into = self.take(tier, tightest, party).then_some((tier, tightest));
            }
        }
        let Some((tier, class)) = into else {
            self.end_shrink(at, Shrinking::Open);
            return None;
        };
        self.shrinks.insert(at, UnderWay { into });
        Some((tier, usize::from(class)))
    }

    /// A shrink has ended: with the codec of what is in its frame now, or with none when it did not get small enough. The
    /// verdict says which frame is the block's from now on.
    pub fn shrunk(&mut self, ticket: ShrinkTicket, codec: Option<Codec>) -> CopyVerdict {
        let Some(at) = self.index.named(ticket.index, ticket.generation) else { return CopyVerdict::Discard };
        let Some(under_way) = self.shrinks.get(&at) else { return CopyVerdict::Discard };
        let Record { tier, class, party, life, readers, .. } = self.index.records[at as usize];
        let (Some(codec), Some((to, into))) = (codec, under_way.into) else {
            self.end_shrink(at, Shrinking::Unfit);
            return CopyVerdict::Discard;
        };
        // Readers hold the old frame: it would not be free. And a pin may have come meanwhile.
        let is_pinned = self.index.records[at as usize].is(Mark::PINNED);
        if life != Life::Resident || readers > 0 || is_pinned || self.ledger.is_lost(to) {
            self.end_shrink(at, Shrinking::Open);
            return CopyVerdict::Discard;
        }
        self.shrinks.remove(&at);
        self.recency.remove(&mut self.index.records, at);
        self.count_resident(at, -1);
        let visit = self.visit_of(at);
        self.parties[usize::from(party)].ranking(class).removed(at, &visit.key, Removal::Dropped);
        let record = &mut self.index.records[at as usize];
        (record.tier, record.class) = (to, into);
        record.codec = codec;
        record.set_shrinking(Shrinking::Open);
        let id = BlockId { index: at, generation: record.generation };
        self.give(tier, class, party);
        self.recency.insert(&mut self.index.records, at);
        self.count_resident(at, 1);
        let ranking = self.parties[usize::from(party)].ranking(into);
        ranking.begin(&self.request);
        ranking.inserted(at, &visit, self.index.records[at as usize].children > 0);
        self.stats.shrunk += 1;
        CopyVerdict::Adopt(id)
    }

    /// A shrink has come to nothing for now: by what is known of the block, or what its tenant's rules say, it is as small as it may
    /// be. It is tried again when it is cold after its next use.
    pub fn forgo(&mut self, ticket: ShrinkTicket) {
        if let Some(at) = self.index.named(ticket.index, ticket.generation) {
            self.end_shrink(at, Shrinking::Open);
        }
    }

    /// Ends a shrink without a smaller block.
    fn end_shrink(&mut self, at: u32, becomes: Shrinking) {
        let Some(UnderWay { into }) = self.shrinks.remove(&at) else { return };
        let record = &mut self.index.records[at as usize];
        record.set_shrinking(becomes);
        let party = record.party;
        if let Some((tier, class)) = into {
            self.give(tier, class, party);
        }
        match becomes {
            Shrinking::Unfit => self.stats.shrink_unfit += 1,
            _ => self.stats.shrink_dropped += 1,
        }
        self.finish_leaving(at);
    }

    /// Counts the frames taken for shrinks to parties that were made anew.
    pub(super) fn count_shrinks(&mut self) {
        for (at, under_way) in &self.shrinks {
            let record = &self.index.records[*at as usize];
            if let Some((tier, class)) = under_way.into {
                self.parties[usize::from(record.party)].used[tier as usize] +=
                    self.config.classes[usize::from(class)];
            }
        }
    }
}
