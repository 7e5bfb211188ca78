//! What always holds of a machine, checked by tests after every event.

use crate::machine::Consensus;
use crate::standing::Standing;
use crate::types::Role;

impl Consensus {
    /// Checks what always holds.
    ///
    /// # Errors
    /// A sentence that says what does not.
    pub fn invariants(&self) -> Result<(), String> {
        let log = &self.raw.raft.raft_log;
        if self.applied > log.committed || log.committed > log.last_index() {
            return Err(format!(
                "applied {} ≤ committed {} ≤ last {} does not hold",
                self.applied,
                log.committed,
                log.last_index()
            ));
        }
        let (stored, snapshot) = (self.raw.store().last(), self.raw.store().snapshot_index());
        if stored != log.last_index() || snapshot > self.applied || log.persisted > stored {
            return Err(format!(
                "the log here ends at {stored}, raft's at {}; snapshot {snapshot}, applied {}, durable {}",
                log.last_index(),
                self.applied,
                log.persisted
            ));
        }
        if self.installing.is_some() && self.role.0 != Role::Follower {
            return Err(format!("a {:?} waits for a leader's snapshot to be durable", self.role.0));
        }
        let may_lead = matches!(self.standing, Standing::Founder | Standing::Settled);
        if !may_lead && self.role.0 != Role::Follower {
            return Err(format!("a {:?} is {:?}", self.role.0, self.standing));
        }
        if self.role.0 != Role::Leader && (!self.proposed.is_empty() || self.reads.len() > 0) {
            return Err(format!("a {:?} has proposals or reads waiting", self.role.0));
        }
        if self.changing.is_some() && self.role.0 != Role::Leader {
            return Err(format!("a {:?} waits for a change of the group", self.role.0));
        }
        if self.proposed.len() > self.config.max_inflight || self.reads.len() > self.config.max_inflight {
            return Err("more waits than is allowed".to_owned());
        }
        Ok(())
    }
}
