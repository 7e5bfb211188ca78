//! What the raft actor tells without being asked: those who watch what it knows of itself, the journal, the log.

use super::levels::Belonging;
use super::raft::RaftActor;
use super::vitals::Vitals;
use kvhive_consensus::Standing;
use kvhive_protocol::control::Command;
use kvhive_protocol::{EventKind, Levels, Note, Reason, Subject};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

impl RaftActor {
    pub(super) fn tell_vitals(&self) {
        let status = self.parts.consensus.status();
        let lease = self.parts.registry.map().map(|map| Duration::from_millis(map.settings.lease_ms));
        let (has_failed, standing, level) = (self.has_failed, status.standing, self.parts.registry.level());
        let vitals = Vitals { has_failed, standing, knows_leader: status.leader.is_some(), lease, level };
        self.parts.vitals.send_if_modified(|known| std::mem::replace(known, vitals) != vitals);
    }

    pub(super) fn tell_cluster(&self) {
        let registry = &self.parts.registry;
        let cluster = registry.map().map(|map| map.cluster);
        let levels = Levels { newest: self.parts.speaks, cluster: registry.level() };
        let belongs = Belonging { cluster, levels };
        self.parts.cluster.send_if_modified(|known| std::mem::replace(known, belongs) != belongs);
    }

    pub(super) fn tell_events(&self) {
        let newest = self.parts.registry.newest_event();
        self.parts.events.send_if_modified(|known| std::mem::replace(known, newest) != newest);
    }

    pub(super) fn tell_engines(&self) {
        let engines = self.parts.registry.engines();
        self.parts.engines.send_if_modified(|known| {
            let news = !Arc::ptr_eq(known, &engines) && *known != engines;
            if news {
                *known = engines;
            }
            news
        });
    }

    /// Writes the election into the journal: after it has been performed, as a proposal is a step of its own.
    pub(super) fn tell_election(&mut self) {
        if self.parts.registry.map().is_none() {
            return;
        }
        let Some(term) = self.elected.take() else { return };
        let name = self.status().name;
        let note = Note::new(EventKind::LeaderElected, Subject::coordinator(name)).with("term", term);
        let reason = Reason::new("a majority of coordinators voted for it");
        self.propose_own(Command::Record(Box::new(note)), reason);
    }

    pub(super) fn tell_standing(&mut self) {
        let standing = self.parts.consensus.status().standing;
        if standing == self.standing {
            return;
        }
        self.standing = standing;
        match standing {
            Standing::Newborn => info!(
                "the log is empty: no vote before every coordinator has said that its own is too, or a leader has given back \
                 what was lost"
            ),
            Standing::Founder => info!("every coordinator's log is empty: a new cluster begins"),
            Standing::Rejoining => {
                warn!(
                    "the log is empty and others' are not: following a leader, and no vote before everything is back"
                )
            }
            Standing::Settled => info!("has everything that could have been lost"),
            Standing::Removed => {
                warn!(
                    "is no coordinator of this cluster any more, and takes no part: stop it and empty its data_dir"
                )
            }
        }
    }
}
