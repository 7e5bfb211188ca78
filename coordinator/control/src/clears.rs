//! Clears that are made and wait until nobody serves the blocks whose era they have ended.

use crate::counters::Counters;
use crate::leases::{Leases, Server};
use crate::overseer::Effect;
use kvhive_planted::{Bug, is};
use kvhive_protocol::{Epoch, Moment, TenantId, WireError};
use std::collections::BTreeMap;

/// The most clears that wait for members at once.
pub const MAX_CLEARS: usize = 1024;

/// Names a clear that waits for members; its asker chooses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClearTicket(pub u64);

/// A clear that waits until every member has confirmed its epoch, or cannot be serving any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingClear {
    /// Its asker's name for it.
    pub ticket: ClearTicket,
    /// Whose blocks are gone.
    pub tenant: TenantId,
    /// The map that says so.
    pub epoch: Epoch,
    /// Since when it waits.
    pub since: Moment,
}

/// Those that wait.
#[derive(Clone, Default)]
pub(crate) struct Clears {
    pending: BTreeMap<ClearTicket, PendingClear>,
}

impl Clears {
    pub(crate) fn wait(&mut self, clear: PendingClear) -> Result<(), WireError> {
        if self.pending.len() >= MAX_CLEARS && !self.pending.contains_key(&clear.ticket) {
            return Err(WireError::busy("clears that wait for members"));
        }
        self.pending.insert(clear.ticket, clear);
        Ok(())
    }

    pub(crate) fn abandon(&mut self, ticket: ClearTicket) {
        self.pending.remove(&ticket);
    }

    pub(crate) fn pending(&self) -> impl Iterator<Item = &PendingClear> {
        self.pending.values()
    }

    /// Asks to answer those that are complete, and those that wait for nothing but silent members.
    pub(crate) fn finish(&mut self, leases: &Leases, counters: &mut Counters, effects: &mut Vec<Effect>) {
        self.pending.retain(|ticket, clear| {
            let serving: Vec<Server> = leases.serving_before(clear.epoch).collect();
            if serving.is_empty() || is(Bug::ClearIsDoneAtOnce) {
                counters.clears_done += 1;
                effects.push(Effect::ClearDone(*ticket));
                return false;
            }
            // One that holds its lease confirms within a heartbeat, or is silent a lease later.
            if serving.iter().any(|one| !one.is_silent) {
                return true;
            }
            counters.clears_waiting += 1;
            effects.push(Effect::ClearWaits(*ticket, serving));
            false
        });
    }
}
