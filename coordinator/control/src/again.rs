//! A cluster that goes on by a state of before: from a backup, or from what one coordinator had. Changes that came after it are
//! forgotten here and not elsewhere: nodes, clients and watchers hold maps, generations and event numbers of a time that never
//! was. All that counts therefore goes on far above anything that can have been given out.

use crate::registry::Registry;
use kvhive_protocol::{Epoch, Era};
use kvhive_protocol::{EventKind, Generation, Note, Origin, Subject, Tenant};
use std::sync::Arc;

/// Counters of a state that is taken up again begin at a multiple of this, the one of the millisecond in which it is: no cluster makes a
/// thousand changes in each millisecond of its life, so they are above all that was ever given out, also after other such states
/// that this one knows nothing of.
const STRIDE: u64 = 1 << 10;
/// At least so many multiples further, where the clock says less: none makes so many changes (2^32) between a backup and its use.
const LEAST: u64 = 1 << 22;
/// Milliseconds are counted from the first day of 2024: so, numbers stay exact in JSON (2^53) for two centuries.
const SINCE_MS: u64 = 1_704_067_200_000;

/// Whose blocks of before do not exist any more in a cluster that goes on by an older state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cleared<'a> {
    /// Of these tenants, which were cleared after that state.
    Tenants(&'a [String]),
    /// Of every tenant: nobody knows who was cleared.
    All,
}

impl Registry {
    /// Has the cluster go on from this state: epoch and event numbers rise above any that it can have given out since; members stay
    /// where they are until they are heard or their leases run out, and one that has registered since must do so anew, and may be
    /// serving by a map of before until it is told; tenants in `cleared` begin a new era.
    ///
    /// # Errors
    /// With what is wrong, when there is no cluster or no tenant of such a name. Nothing has changed then.
    pub fn go_on(&mut self, cleared: Cleared<'_>, origin: Origin) -> Result<Epoch, String> {
        let map = self.map.as_mut().ok_or("no cluster was ever started by this state")?;
        if let Cleared::Tenants(names) = cleared
            && let Some(name) = names.iter().find(|name| !map.tenants.values().any(|one| one.name == **name))
        {
            return Err(format!("there is no tenant {name:?} in this state"));
        }
        let map = Arc::make_mut(map);
        let (least, by_clock) = (map.epoch.0 / STRIDE + LEAST, origin.at_ms.saturating_sub(SINCE_MS));
        map.epoch = Epoch(least.max(by_clock) * STRIDE);
        map.strangers = true;
        let is_cleared = |tenant: &Tenant| match cleared {
            Cleared::Tenants(names) => names.contains(&tenant.name),
            Cleared::All => true,
        };
        let (era, mut ended) = (first_era(map.epoch), 0);
        for tenant in map.tenants.values_mut().filter(|tenant| is_cleared(tenant)) {
            tenant.era = era;
            ended += 1;
        }
        let note = Note::new(EventKind::ClusterRestored, Subject::default())
            .with("members", map.members.len() as u64)
            .with("tenants", map.tenants.len() as u64)
            .with_some("tenants_cleared", ended);
        let epoch = map.epoch;
        self.journal.renumber((LEAST * STRIDE).max(epoch.0.saturating_sub(self.journal.newest())));
        self.journal.push(note, origin, epoch);
        Ok(epoch)
    }
}

/// Returns the first generation that is given under a map of this epoch: one from before the cluster went on by an older state is
/// never given twice.
pub(crate) fn first_generation(epoch: Epoch) -> Generation {
    Generation(epoch.0 / STRIDE * STRIDE + 1)
}

/// Returns a tenant's first era under a map of this epoch.
pub fn first_era(epoch: Epoch) -> Era {
    Era(epoch.0 / STRIDE * STRIDE + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::control::{Command, CommandReply, Proposal, Registration};
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::Settings;
    use kvhive_protocol::{ClusterId, MemberId, Reason, RequestId, TenantRules};

    struct Cluster {
        registry: Registry,
        done: u64,
    }

    impl Cluster {
        fn begun() -> Cluster {
            let mut cluster = Cluster { registry: Registry::new(), done: 0 };
            let settings = Settings {
                replicas: 1,
                segment_blocks: 16,
                ack: Ack::Primary,
                lease_ms: 2000,
                heartbeat_ms: 500,
                serving_lease_ms: 2000,
            };
            let name = "test".to_owned();
            cluster.apply(Command::Bootstrap {
                cluster: ClusterId(7),
                name,
                settings,
                default_secret: [1; 32],
                scaling: Default::default(),
                coordinators: Vec::new(),
                level: kvhive_protocol::Level::NEWEST,
            });
            cluster
        }

        fn apply(&mut self, command: Command) -> CommandReply {
            self.done += 1;
            let request = RequestId { client: 9, sequence: self.done };
            self.registry.apply(self.done, Proposal { request, command })
        }

        fn register(&mut self, name: &str) -> (MemberId, Generation) {
            let device = kvhive_protocol::map::DeviceDescription {
                kind: "host".into(),
                device_bytes: 1 << 20,
                host_bytes: 0,
                disk_bytes: 0,
            };
            let reply = self.apply(Command::Register(Registration {
                request: RequestId { client: 10, sequence: self.done },
                name: name.into(),
                data_address: "127.0.0.1:1".into(),
                metrics_address: "127.0.0.1:2".into(),
                labels: Default::default(),
                devices: vec![device],
                codec: Default::default(),
                speaks: kvhive_protocol::Level::NEWEST,
            }));
            match reply {
                CommandReply::Registered { member, generation, .. } => (member, generation),
                other => panic!("{other:?}"),
            }
        }

        fn create(&mut self, name: &str) {
            let (name, rules) = (name.to_owned(), TenantRules::default());
            let reply = self.apply(Command::CreateTenant { name, secret: [2; 32], rules });
            assert!(matches!(reply, CommandReply::TenantCreated { .. }), "{reply:?}");
        }

        fn eras(&self) -> Vec<(String, u64)> {
            let map = self.registry.map().expect("it was started");
            map.tenants.values().map(|tenant| (tenant.name.clone(), tenant.era.0)).collect()
        }

        fn go_on(&mut self, cleared: Cleared<'_>) -> Result<Epoch, String> {
            let went = self.registry.go_on(cleared, Origin { at_ms: 5, reason: Reason::new("a test") });
            // What goes on is what a coordinator can write down and read again.
            let bytes = self.registry.snapshot();
            self.registry = Registry::restore(&bytes).expect("it is a state like any other");
            went
        }
    }

    #[test]
    fn what_went_on_after_the_state_that_is_taken_up_again_never_passes_for_what_goes_on_now() {
        let mut cluster = Cluster::begun();
        assert_eq!(cluster.register("node-1"), (MemberId(1), Generation(1)));
        let backup = cluster.registry.clone();
        // Forgotten: node-1 starts again, and node-2 comes as member 2.
        let (again, lost) = (cluster.register("node-1"), cluster.register("node-2"));
        let (forgotten, events) = (cluster.registry.epoch(), cluster.registry.newest_event());

        let placed = backup.map().expect("it was started").slots.clone();
        let mut cluster = Cluster { registry: backup, done: 100 };
        let epoch = cluster.go_on(Cleared::Tenants(&[])).expect("there is a cluster");
        assert!(epoch > forgotten && cluster.registry.newest_event() > events);
        let page = cluster.registry.events(events, 100);
        assert!(page.lacks(events), "who has seen what is forgotten is told so");
        assert_eq!(page.events.last().map(|event| event.note.kind), Some(EventKind::ClusterRestored));
        let map = cluster.registry.map().expect("it was started");
        assert_eq!(
            (map.members[&MemberId(1)].generation, &map.slots),
            (Generation(1), &placed),
            "it serves on"
        );

        let (member, generation) = cluster.register("node-3");
        assert_eq!(member, lost.0, "the number is given again");
        assert!(generation > lost.1, "and is another member");
        assert!(cluster.register("node-1").1 > again.1);
        let second = cluster.go_on(Cleared::Tenants(&[])).expect("there is a cluster");
        assert_eq!(second.0, epoch.0 + LEAST * STRIDE, "and so every time");
    }

    #[test]
    fn one_backup_that_is_taken_up_twice_gives_out_nothing_twice() {
        let backup = Cluster::begun().registry;
        let at = |at_ms| Origin { at_ms, reason: Reason::new("a test") };
        let taken_up = |origin| {
            let mut cluster = Cluster { registry: backup.clone(), done: 100 };
            cluster.registry.go_on(Cleared::Tenants(&[]), origin).expect("there is a cluster");
            cluster.create("one");
            cluster
        };
        let first = taken_up(at(SINCE_MS + 60_000_000_000));
        let again = taken_up(at(SINCE_MS + 60_000_000_007));
        assert!(again.registry.epoch() > first.registry.epoch());
        assert!(again.registry.newest_event() > first.registry.newest_event());
        let (eras, later) = (first.eras(), again.eras());
        assert!(later[1].1 > eras[1].1, "a tenant of the same number is another: {eras:?} {later:?}");
        // A clock that is years behind is no reason to begin below what the state itself has.
        let mut behind = again;
        let before = behind.registry.epoch();
        behind.registry.go_on(Cleared::All, at(0)).expect("there is a cluster");
        assert!(behind.registry.epoch() > before);
    }

    #[test]
    fn who_was_cleared_since_begins_anew_and_others_keep_what_they_have() {
        let mut cluster = Cluster::begun();
        cluster.create("kept");
        cluster.create("cleared");
        let before = cluster.eras();
        let unknown = cluster.go_on(Cleared::Tenants(&["other".to_owned()]));
        assert_eq!(unknown, Err("there is no tenant \"other\" in this state".to_owned()));
        assert_eq!((cluster.eras(), cluster.registry.epoch()), (before, Epoch(3)));

        cluster.go_on(Cleared::Tenants(&["cleared".to_owned()])).expect("it is there");
        let named = |name: &str, era| (name.to_owned(), era);
        let now = [named("default", 1), named("kept", 1), named("cleared", LEAST * STRIDE + 1)];
        assert_eq!(cluster.eras(), now);
        cluster.create("new");
        assert_eq!(cluster.eras()[3], named("new", LEAST * STRIDE + 1));
        cluster.go_on(Cleared::All).expect("there is a cluster");
        assert!(cluster.eras().iter().all(|(_, era)| *era == 2 * LEAST * STRIDE + 1), "{:?}", cluster.eras());
        assert!(Registry::new().go_on(Cleared::All, Origin::default()).is_err());
    }
}
