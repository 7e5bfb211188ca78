//! The cluster's level: what needs one, and when it rises.

use crate::registry::{Outcome, Registry};
use kvhive_protocol::control::Command;
use kvhive_protocol::{ClusterMap, Level, Reason, WireError};

impl Registry {
    /// Returns the cluster's level, the oldest before there is a cluster.
    pub fn level(&self) -> Level {
        self.map.as_ref().map_or(Level::OLDEST, |map| map.level)
    }

    pub(crate) fn raise_level(&mut self, to: Level) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        // One may have come since it was asked for.
        if let Some(older) = map.members.values().find(|member| member.speaks < to) {
            return Err(WireError::rejected(format_args!(
                "node {} speaks no level after {}: the cluster cannot be at level {to}",
                older.name, older.speaks
            )));
        }
        // Not checked against what this build speaks: every build must come to the same.
        if to > map.level {
            self.change().level = to;
        }
        Ok(self.unchanged())
    }
}

/// Says whether a command may be written down in a cluster of this level.
///
/// # Errors
/// [`WireError::NotYet`] for one that members might not be able to read, [`WireError::TooOld`] for a node that comes and does not
/// speak the level.
pub fn check_level(command: &Command, cluster: Level) -> Result<(), WireError> {
    let needs = command.needs();
    if needs > cluster {
        return Err(WireError::NotYet { what: command.name().to_owned(), needs, cluster });
    }
    match command {
        Command::Register(registration) if registration.speaks < cluster => {
            Err(WireError::TooOld { speaks: registration.speaks, cluster })
        }
        _ => Ok(()),
    }
}

/// Asks for the newest level that all members speak, if that is newer than the cluster's. Of each coordinator it is told what it speaks,
/// none where that is not known yet. A node that is down counts as well: it may come back as it was.
pub fn rise(
    map: &ClusterMap,
    coordinators: impl IntoIterator<Item = Option<Level>>,
) -> Option<(Command, Reason)> {
    let nodes = map.members.values().map(|member| Some(member.speaks));
    let all: Option<Vec<Level>> = coordinators.into_iter().chain(nodes).collect();
    let to = all?.into_iter().min().filter(|lowest| *lowest > map.level)?;
    Some((Command::RaiseLevel { to }, Reason::new("every coordinator and every node speaks it")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::Cluster;
    use kvhive_protocol::control::CommandReply;
    use kvhive_protocol::{EventKind, Pin, PinMode, TenantId};

    fn at(level: u16) -> Cluster {
        let mut cluster = Cluster::at_level(Level(level));
        for (name, speaks) in [("a", 2), ("b", 1)] {
            cluster.register_speaking(name, Level(speaks));
        }
        cluster
    }

    fn told(cluster: &Cluster) -> Vec<(String, u64)> {
        let events = cluster.registry.events(0, 100).events;
        let raised = events.iter().filter(|event| event.note.kind == EventKind::LevelRaised);
        raised.flat_map(|event| event.note.facts.clone()).collect()
    }

    #[test]
    fn a_cluster_is_at_the_newest_level_that_all_speak_and_never_goes_back() {
        let mut cluster = at(1);
        let newest = [Some(Level(2)); 3];
        assert_eq!(rise(&cluster.map(), newest), None, "b is of before");
        let refused = cluster.apply(Command::RaiseLevel { to: Level(2) });
        assert!(
            matches!(&refused, CommandReply::Rejected(error) if error.to_string().contains("node b")),
            "{refused:?}"
        );
        cluster.register_speaking("b", Level(2));
        assert_eq!(rise(&cluster.map(), [Some(Level(2)), Some(Level(1)), Some(Level(2))]), None);
        assert_eq!(rise(&cluster.map(), [Some(Level(2)), None, Some(Level(2))]), None, "one was not heard");
        let (raise, _) = rise(&cluster.map(), newest).expect("all speak it");
        assert_eq!(raise, Command::RaiseLevel { to: Level(2) });
        cluster.apply(raise);
        assert_eq!((cluster.registry.level(), rise(&cluster.map(), newest)), (Level(2), None));
        let epoch = cluster.registry.epoch();
        for to in [1, 2] {
            cluster.apply(Command::RaiseLevel { to: Level(to) });
        }
        assert_eq!((cluster.registry.level(), cluster.registry.epoch()), (Level(2), epoch));
        assert_eq!(told(&cluster), [("from".to_owned(), 1), ("to".to_owned(), 2)]);
    }

    #[test]
    fn a_node_that_is_down_is_waited_for_until_it_is_removed_and_then_refused_where_it_is_too_old() {
        let mut cluster = at(1);
        let b = cluster.map().member("b").expect("it registered").0;
        cluster.mark_down(b);
        assert_eq!(rise(&cluster.map(), [Some(Level(2))]), None);
        cluster.apply(Command::RemoveMember { member: b });
        let (raise, _) = rise(&cluster.map(), [Some(Level(2))]).expect("all that are left speak it");
        cluster.apply(raise);
        let refused = cluster.try_register_speaking("b", Level(1));
        assert_eq!(
            refused,
            CommandReply::Rejected(WireError::TooOld { speaks: Level(1), cluster: Level(2) })
        );
        cluster.register_speaking("b", Level(2));
        // One that is ahead of the cluster waits for the others.
        cluster.register_speaking("c", Level(3));
        assert_eq!(cluster.registry.level(), Level(2));
    }

    #[test]
    fn what_some_could_not_read_is_not_written_down() {
        let mut cluster = at(1);
        let pin = Pin {
            tenant: TenantId(1),
            keys: [kvhive_protocol::BlockKey::from_bytes([1; 32])].iter().collect(),
            mode: PinMode::Hard,
            reason: Reason::default(),
        };
        let set = Command::SetPin { name: "a".into(), pin: Box::new(pin) };
        let refused = cluster.apply(set.clone());
        let CommandReply::Rejected(error) = refused else { panic!("{refused:?}") };
        assert_eq!(error, WireError::NotYet { what: "set-pin".into(), needs: Level(2), cluster: Level(1) });
        assert!(error.to_string().contains("upgrade those"), "{error}");
        cluster.register_speaking("b", Level(2));
        cluster.apply(Command::RaiseLevel { to: Level(2) });
        assert!(matches!(cluster.apply(set), CommandReply::Applied { .. }));
        // It is kept where the cluster is.
        let again = Registry::restore(&cluster.registry.snapshot()).expect("it is whole");
        assert_eq!((again.level(), again.map()), (Level(2), cluster.registry.map()));
    }
}
