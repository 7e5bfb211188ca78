//! Why a block is here, or not. Nothing is used, kept or counted by asking.

use super::Shard;
use crate::block::{BlockId, Life, Mark};
use crate::tenure::seconds;
use kvhive_protocol::data::Refusal;
use kvhive_protocol::explain::{Departure, Explained};
use kvhive_protocol::watch::{BlockTier, Gone};
use kvhive_protocol::{BlockKey, Moment, Slot, TenantId};

/// What a shard knows of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// It is here.
    Here {
        /// Names it.
        id: BlockId,
        /// Where it lies.
        tier: BlockTier,
        /// The slot that it was stored in.
        slot: Slot,
        /// It is pinned: it does not leave to make room.
        pinned: bool,
    },
    /// It is not.
    Not(Explained),
}

impl Shard {
    /// Says what is known of a tenant's block.
    pub fn explain(&self, now: Moment, tenant: TenantId, key: &BlockKey) -> Known {
        if let Some(at) = self.find(tenant, key) {
            let record = &self.index.records[at as usize];
            if self.stands(record) {
                return match record.life {
                    Life::Filling => Known::Not(Explained::Coming),
                    _ => Known::Here {
                        id: BlockId { index: at, generation: record.generation },
                        tier: record.tier.into(),
                        slot: Slot(record.slot),
                        pinned: record.is(Mark::PINNED),
                    },
                };
            }
            // Not swept yet.
            let strategy = self.parties[usize::from(record.party)].rules.strategy;
            let from = (record.life == Life::Resident).then(|| record.tier.into());
            return Known::Not(Explained::Gone(Departure { why: Gone::Cleared, from, strategy, ago_s: 0 }));
        }
        let hash = self.index.hash_for(&self.owners, tenant, key);
        Known::Not(self.departed.explain(hash, self.began_s.unwrap_or(seconds(now)), seconds(now)))
    }

    /// Notes that a tenant's block was to come and does not.
    pub fn note_refused(&mut self, tenant: TenantId, key: &BlockKey, why: Gone) {
        let strategy = self.parties[usize::from(self.party_of(tenant))].rules.strategy;
        let hash = self.index.hash_for(&self.owners, tenant, key);
        self.departed.note(hash, why, None, strategy, self.now_s);
    }

    /// Says why a refused block never came. One that is being written comes; of what the asker had wrong there is no word.
    pub(super) fn why_refused(refusal: Refusal, is_declined: bool) -> Option<Gone> {
        match refusal {
            Refusal::NoRoom if is_declined => Some(Gone::Declined),
            Refusal::NoRoom => Some(Gone::NoRoom),
            Refusal::TooLarge => Some(Gone::TooLarge),
            Refusal::InFlight | Refusal::Corrupt | Refusal::WrongEra => None,
        }
    }

    /// Notes that a block, just hidden, has left or will not be.
    pub(super) fn note_gone(&mut self, at: u32, hash: u64, why: Gone) {
        let record = &self.index.records[at as usize];
        let strategy = self.parties[usize::from(record.party)].rules.strategy;
        let from = (record.life == Life::Resident).then_some(record.tier);
        self.departed.note(hash, why, from, strategy, self.now_s);
    }

    /// Time has passed.
    pub(super) fn note_time(&mut self, now: Moment) {
        self.now_s = seconds(now);
        self.began_s.get_or_insert(self.now_s);
    }
}
