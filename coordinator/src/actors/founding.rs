//! How a cluster begins: what the first leader of coordinators whose logs are empty proposes.

use super::raft::RaftActor;
use kvhive_protocol::control::Command;
use kvhive_protocol::map::Settings;
use kvhive_protocol::scaling::ScalingPolicy;
use kvhive_protocol::{ClusterId, Reason};

/// What a first leader proposes.
#[derive(Clone)]
pub(crate) struct Bootstrap {
    pub(crate) cluster: ClusterId,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) default_secret: [u8; 32],
    pub(crate) scaling: ScalingPolicy,
}

impl RaftActor {
    /// Proposes that the cluster begin: where its coordinators are, and at the level that all of them speak.
    pub(super) fn found(&mut self) {
        let Bootstrap { cluster, name, settings, default_secret, scaling } = self.parts.bootstrap.clone();
        // Who is elected by a group that it has not heard of yet in any other way leads before it has been told where they are.
        self.parts.directory.follow(&self.parts.consensus.group());
        let coordinators = self.parts.directory.voting().unwrap_or_default().to_vec();
        let level = self.first_level();
        self.propose_own(
            Command::Bootstrap { cluster, name, settings, default_secret, scaling, coordinators, level },
            Reason::new("every coordinator's log was empty"),
        );
    }
}
