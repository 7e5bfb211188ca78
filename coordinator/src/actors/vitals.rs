//! What a coordinator knows of itself, for those who must not cost the raft actor anything: strangers who ask whether it is
//! ready, and handlers that must know how long a lease is.

use kvhive_consensus::Standing;
use kvhive_protocol::Level;
use std::time::Duration;

/// A coordinator at a glance, as of its raft actor's last message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vitals {
    /// It must end.
    pub(crate) has_failed: bool,
    /// What its log is worth.
    pub(crate) standing: Standing,
    /// It leads, or knows who does.
    pub(crate) knows_leader: bool,
    /// How long a lease is; none before it has the cluster's map.
    pub(crate) lease: Option<Duration>,
    /// The cluster's level.
    pub(crate) level: Level,
}

impl Vitals {
    /// A coordinator that has not looked yet.
    pub(crate) const UNKNOWN: Vitals = Vitals {
        has_failed: false,
        standing: Standing::Newborn,
        knows_leader: false,
        lease: None,
        level: Level::OLDEST,
    };

    /// Returns whether it has left the group: what it knows is old, and nobody tells it what is new.
    pub(crate) fn is_removed(&self) -> bool {
        self.standing == Standing::Removed
    }

    /// Says whether this coordinator can serve: it votes, knows a leader and has the cluster's map.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn ready(&self) -> Result<(), &'static str> {
        if self.has_failed {
            return Err("this coordinator has failed and ends");
        }
        match self.standing {
            Standing::Newborn => return Err("its log is empty and too few coordinators have answered yet"),
            Standing::Rejoining => return Err("its log was empty and is not whole again yet"),
            Standing::Removed => return Err("it is no coordinator of this cluster any more"),
            Standing::Founder | Standing::Settled => {}
        }
        if !self.knows_leader {
            return Err("no leader is known");
        }
        self.lease.map(|_| ()).ok_or("the cluster has not started yet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_votes_knows_a_leader_and_has_the_map() {
        let ready = Vitals {
            has_failed: false,
            standing: Standing::Settled,
            knows_leader: true,
            lease: Some(Duration::from_secs(2)),
            level: Level::NEWEST,
        };
        assert_eq!(ready.ready(), Ok(()));
        for missing in [
            Vitals::UNKNOWN,
            Vitals { has_failed: true, ..ready },
            Vitals { standing: Standing::Newborn, ..ready },
            Vitals { standing: Standing::Rejoining, ..ready },
            Vitals { standing: Standing::Removed, ..ready },
            Vitals { knows_leader: false, ..ready },
            Vitals { lease: None, ..ready },
        ] {
            assert!(missing.ready().is_err(), "{missing:?}");
        }
    }
}
