//! What the raft actor does about levels: it hears what its peers speak, has the cluster's rise once all speak a newer one, and ends
//! where the cluster is at one that it does not speak.

use super::raft::RaftActor;
use kvhive_consensus::{PeerId, Role};
use kvhive_protocol::{ClusterId, Level, Levels, WireError};
use std::collections::BTreeSet;
use std::time::Duration;

/// How often a leader looks whether the level can rise.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a coordinator knows of its cluster, for handshakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Belonging {
    /// Which it is, once it has begun.
    pub(crate) cluster: Option<ClusterId>,
    /// What this coordinator speaks, and the cluster's level.
    pub(crate) levels: Levels,
}

impl RaftActor {
    /// Notes what another coordinator speaks.
    pub(super) fn hear_level(&mut self, from: PeerId, speaks: Level) {
        if self.heard.get(&from) != Some(&speaks) && self.coordinators().contains(&from) {
            self.heard.insert(from, speaks);
        }
    }

    /// Forgets those who are coordinators no longer.
    pub(super) fn forget_levels(&mut self) {
        let all = self.coordinators();
        self.heard.retain(|peer, _| all.contains(peer));
    }

    /// Returns what each coordinator speaks; none where it has not been heard since this coordinator started.
    pub(super) fn spoken(&self) -> Vec<Option<Level>> {
        let own = (self.parts.us, self.parts.speaks);
        let speaks = |peer: PeerId| if peer == own.0 { Some(own.1) } else { self.heard.get(&peer).copied() };
        self.coordinators().into_iter().map(speaks).collect()
    }

    /// Returns who is of the group, and who the cluster file says will be.
    fn coordinators(&self) -> BTreeSet<PeerId> {
        let group = self.parts.consensus.group();
        let all = group.voters.into_iter().chain(group.outgoing).chain(group.learners);
        all.chain(self.parts.directory.all().keys().copied()).collect()
    }

    /// Returns the level that a cluster begins at: those who have not been heard may be as old as can be.
    pub(super) fn first_level(&self) -> Level {
        let spoken = self.spoken().into_iter().map(Option::unwrap_or_default);
        spoken.min().unwrap_or_default().max(Level::OLDEST)
    }

    /// Has the cluster's level rise if it can; a leader's to do.
    pub(super) fn look_at_level(&mut self) {
        let now = self.parts.clock.now();
        if self.parts.consensus.status().role != Role::Leader || now < self.next_rise {
            return;
        }
        let Some(map) = self.parts.registry.map() else { return };
        self.next_rise = now + LOOK_EVERY;
        let raise = kvhive_control::rise(&map, self.spoken());
        // Held on, it would be copied by the change.
        drop(map);
        if let Some((command, reason)) = raise {
            self.propose_own(command, reason);
        }
    }

    /// Ends this coordinator if the cluster is beyond what it speaks: what comes next in the log it may not know. Says whether it is.
    pub(super) fn is_left_behind(&mut self) -> bool {
        let (cluster, speaks) = (self.parts.registry.level(), self.parts.speaks);
        if cluster > speaks {
            self.fail(WireError::TooOld { speaks, cluster }.to_string());
        }
        cluster > speaks
    }
}
