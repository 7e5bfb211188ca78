//! What clients and members were told, and so what they may be told from now on.

use crate::block::Block;
use crate::breach::{Holds, breach};
use crate::coordinator::Applied;
use kvhive_control::EventPage;
use kvhive_protocol::{Epoch, Era, Generation, MemberId, RequestId, TenantId};
use std::collections::{BTreeMap, BTreeSet};

/// What was told so far.
#[derive(Default)]
pub(super) struct Oracle {
    /// The newest epoch that anybody was told.
    told: Epoch,
    /// The newest era of each tenant whose clear was acknowledged.
    cleared: BTreeMap<TenantId, Era>,
    /// What each clear came to, acknowledged or not.
    outcomes: BTreeMap<RequestId, Era>,
    clears: BTreeMap<(TenantId, Era), RequestId>,
    /// How often each request was sent, and those of which nothing has happened for certain.
    sent: BTreeMap<RequestId, u64>,
    refused: BTreeSet<RequestId>,
    /// Which start of which node each generation of a member is.
    starts: BTreeMap<(MemberId, Generation), (usize, u64)>,
    /// The term and request of each entry that any coordinator has applied.
    committed: BTreeMap<u64, (u64, RequestId)>,
    /// The number of the last event that was heard.
    heard: u64,
}

impl Oracle {
    /// Returns the epoch that whoever asks from now on must be told at least.
    pub(super) fn told(&self) -> Epoch {
        self.told
    }

    /// Returns a tenant's oldest era that may be read from now on.
    pub(super) fn oldest(&self, tenant: TenantId) -> Era {
        self.cleared.get(&tenant).copied().unwrap_or(Era(0))
    }

    pub(super) fn cleared(&self) -> impl Iterator<Item = (&TenantId, &Era)> {
        self.cleared.iter()
    }

    /// Somebody who asked when `floor` had been told was told of this epoch.
    pub(super) fn tell(&mut self, floor: Epoch, epoch: Epoch) -> Holds {
        if epoch < floor {
            return breach("M1", format!("epoch {epoch} was told after {floor} had been"));
        }
        self.told = self.told.max(epoch);
        Ok(())
    }

    pub(super) fn sends(&mut self, request: RequestId) {
        *self.sent.entry(request).or_default() += 1;
        self.refused.remove(&request);
    }

    /// A request was refused: nothing has happened.
    pub(super) fn refuse(&mut self, request: RequestId) {
        // What was asked twice may have happened the other time.
        if self.sent.get(&request) == Some(&1) {
            self.refused.insert(request);
        }
    }

    /// A clear is acknowledged: nobody serves older blocks.
    pub(super) fn clear(&mut self, request: RequestId, tenant: TenantId, era: Era) -> Holds {
        let first = *self.outcomes.entry(request).or_insert(era);
        if first != era {
            return breach("M3", format!("a clear that was asked for twice made eras {first} and {era}"));
        }
        let other = *self.clears.entry((tenant, era)).or_insert(request);
        if other != request {
            return breach("M2", format!("two clears were acknowledged as era {era}: the first was lost"));
        }
        let oldest = self.cleared.entry(tenant).or_insert(era);
        *oldest = era.max(*oldest);
        Ok(())
    }

    /// A coordinator has applied an entry.
    pub(super) fn applied(&mut self, applied: &Applied) -> Holds {
        let Applied { at: (index, term), request, based_on, before, after } = applied;
        let first = *self.committed.entry(*index).or_insert((*term, *request));
        if first != (*term, *request) {
            return breach("M2", format!("entry {index} was {first:?} and is {:?}", (term, request)));
        }
        if before != after && self.refused.contains(request) {
            return breach("M3", format!("{request:?} was refused, and made epoch {after}"));
        }
        if before != after && based_on.is_some_and(|based_on| based_on != *before) {
            return breach("M13", format!("what was decided by epoch {based_on:?} changed epoch {before}"));
        }
        Ok(())
    }

    /// A start of a node is a member in this generation.
    pub(super) fn starts(&mut self, member: MemberId, generation: Generation, start: (usize, u64)) -> Holds {
        let other = *self.starts.entry((member, generation)).or_insert(start);
        if other != start {
            return breach("M5", format!("{other:?} and {start:?} are member {member} of one generation"));
        }
        Ok(())
    }

    /// Whoever follows the events is given a page of them.
    pub(super) fn hears(&mut self, page: &EventPage) -> Holds {
        // Some may be forgotten; the page says so.
        self.heard = self.heard.max(page.oldest.saturating_sub(1));
        for event in &page.events {
            if event.sequence != self.heard + 1 {
                return breach("M6", format!("event {} came after {}", event.sequence, self.heard));
            }
            self.heard = event.sequence;
        }
        Ok(())
    }

    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// A client that asked when eras before `oldest` had been cleared was given these bytes.
    pub(super) fn hit(&self, tenant: TenantId, number: u64, oldest: Era, word: u64) -> Holds {
        let block = Block::of(word);
        if block.tenant != tenant {
            return breach("B10", format!("tenant {tenant} was given a block of {}", block.tenant));
        }
        if block.number != number {
            return breach("B1", format!("key {number} brought the bytes of {}", block.number));
        }
        if block.era < oldest {
            let era = block.era;
            return breach("B11", format!("a block of era {era} after era {oldest} was acknowledged"));
        }
        Ok(())
    }

    /// Says what is acknowledged and is not in the newest state that there is.
    pub(super) fn check_kept(&self, era_of: impl Fn(TenantId) -> Option<Era>) -> Holds {
        for (tenant, era) in &self.cleared {
            if era_of(*tenant).is_none_or(|now| now < *era) {
                return breach("M2", format!("era {era} of tenant {tenant} was acknowledged and is lost"));
            }
        }
        Ok(())
    }
}
