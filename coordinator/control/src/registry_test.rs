//! Stories of the registry: each command's rule, once.

use super::*;
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::{ClusterId, DeviceId, Generation, Level, SLOTS, Slot, TenantRules};

#[path = "registry_tenants_test.rs"]
mod tenants;

/// A cluster that was started, and an asker that counts its requests.
pub(crate) struct Cluster {
    pub(crate) registry: Registry,
    asked: u64,
}

impl Cluster {
    pub(crate) fn with_replicas(replicas: u8) -> Self {
        Self::begun_by(bootstrap(replicas))
    }

    pub(crate) fn at_level(at: Level) -> Self {
        let mut begin = bootstrap(1);
        if let Command::Bootstrap { level, .. } = &mut begin {
            *level = at;
        }
        Self::begun_by(begin)
    }

    pub(crate) fn serving_for(serving_lease_ms: u64) -> Self {
        let mut begin = bootstrap(1);
        if let Command::Bootstrap { settings, .. } = &mut begin {
            settings.serving_lease_ms = serving_lease_ms;
        }
        Self::begun_by(begin)
    }

    pub(crate) fn begun_by(begin: Command) -> Self {
        let mut cluster = Cluster { registry: Registry::new(), asked: 0 };
        assert_eq!(cluster.apply(begin), applied(1));
        cluster
    }

    pub(crate) fn apply(&mut self, command: Command) -> CommandReply {
        self.asked += 1;
        let request = RequestId { client: 1, sequence: self.asked };
        let reply = self.registry.apply(self.registry.applied() + 1, Proposal { request, command });
        self.map().check().expect("a map always holds what it must");
        reply
    }

    /// Applies a command under a name of its asker's choice.
    pub(crate) fn apply_as(&mut self, request: RequestId, command: Command) -> CommandReply {
        self.registry.apply(self.registry.applied() + 1, Proposal { request, command })
    }

    pub(crate) fn register(&mut self, name: &str, devices: usize) -> MemberId {
        match self.apply(registration(name, devices)) {
            CommandReply::Registered { member, .. } => member,
            other => panic!("{name} was not registered: {other:?}"),
        }
    }

    pub(crate) fn register_at(&mut self, name: &str, address: &str) {
        let mut register = registration(name, 1);
        if let Command::Register(registration) = &mut register {
            registration.data_address = address.to_owned();
        }
        let reply = self.apply(register);
        assert!(matches!(reply, CommandReply::Registered { .. }), "{reply:?}");
    }

    pub(crate) fn register_speaking(&mut self, name: &str, level: Level) {
        let reply = self.try_register_speaking(name, level);
        assert!(matches!(reply, CommandReply::Registered { .. }), "{reply:?}");
    }

    pub(crate) fn try_register_speaking(&mut self, name: &str, level: Level) -> CommandReply {
        let mut register = registration(name, 1);
        if let Command::Register(registration) = &mut register {
            registration.speaks = level;
        }
        self.apply(register)
    }

    pub(crate) fn register_in(&mut self, name: &str, rack: &str) {
        let mut register = registration(name, 1);
        if let Command::Register(registration) = &mut register {
            registration.labels = BTreeMap::from([("rack".to_owned(), rack.to_owned())]);
            registration.data_address = format!("{name}:1");
        }
        let reply = self.apply(register);
        assert!(matches!(reply, CommandReply::Registered { .. }), "{reply:?}");
    }

    pub(crate) fn mark_down(&mut self, member: MemberId) -> CommandReply {
        let generation = self.map().members[&member].generation;
        self.apply(Command::MarkDown { member, generation })
    }

    /// Has every replica be given what it lacks, where slots are.
    pub(crate) fn fill(&mut self) {
        let map = self.map();
        let whole = |slot: &Slot| Placing {
            slot: *slot,
            set: map.replicas(*slot).0.clone(),
            filling: Filling::default(),
        };
        let changes = map.filling.keys().map(whole).collect();
        self.apply(Command::PlaceSlots { based_on: map.epoch, changes });
    }

    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.registry.map().expect("it was started")
    }

    fn primaries(&self, member: MemberId) -> usize {
        self.map()
            .slots
            .iter()
            .filter(|set| set.primary().is_some_and(|device| device.member == member))
            .count()
    }
}

pub(crate) fn bootstrap(replicas: u8) -> Command {
    let settings = Settings {
        replicas,
        segment_blocks: 16,
        ack: Ack::Primary,
        lease_ms: 1000,
        heartbeat_ms: 200,
        serving_lease_ms: 1000,
    };
    Command::Bootstrap {
        cluster: ClusterId(42),
        name: "laptop".into(),
        settings,
        default_secret: [7; 32],
        scaling: Default::default(),
        coordinators: Vec::new(),
        level: kvhive_protocol::Level::NEWEST,
    }
}

pub(crate) fn registration(name: &str, devices: usize) -> Command {
    let device =
        DeviceDescription { kind: "host".into(), device_bytes: 1 << 20, host_bytes: 1 << 20, disk_bytes: 0 };
    Command::Register(Registration {
        request: RequestId { client: 5, sequence: 5 },
        name: name.into(),
        data_address: "127.0.0.1:7810".into(),
        metrics_address: "127.0.0.1:7811".into(),
        labels: BTreeMap::from([("rack".into(), "r1".into())]),
        devices: vec![device; devices],
        codec: Default::default(),
        speaks: Level::NEWEST,
    })
}

fn applied(epoch: u64) -> CommandReply {
    CommandReply::Applied { epoch: Epoch(epoch) }
}

fn refused(reply: &CommandReply, because: &str) -> bool {
    matches!(reply, CommandReply::Rejected(error) if error.to_string().contains(because))
}

#[test]
fn a_cluster_starts_once() {
    let mut cluster = Cluster::with_replicas(2);
    let other = Command::Bootstrap {
        cluster: ClusterId(43),
        name: "other".into(),
        settings: cluster.map().settings.clone(),
        default_secret: [0; 32],
        scaling: Default::default(),
        coordinators: Vec::new(),
        level: kvhive_protocol::Level::NEWEST,
    };
    let before = cluster.map();
    assert_eq!(cluster.apply(other), applied(1));
    assert_eq!(cluster.map(), before);
    assert_eq!(before.tenant("default").map(|(id, _)| id), Some(TenantId(1)));
}

#[test]
fn nothing_happens_before_the_start_and_bad_settings_do_not_start() {
    let mut registry = Registry::new();
    let ask = |sequence, command| Proposal { request: RequestId { client: 1, sequence }, command };
    assert!(refused(&registry.apply(1, ask(1, registration("a", 1))), "bootstrap first"));
    assert!(refused(&registry.apply(2, ask(2, bootstrap(0))), "replicas"));
    assert!(refused(&registry.apply(3, ask(3, bootstrap(9))), "1 to 8"));
    assert_eq!((registry.map(), registry.epoch(), registry.applied()), (None, Epoch(0), 3));
    assert_eq!(registry.apply(4, ask(4, bootstrap(8))), applied(1));
}

#[test]
fn a_repeat_happens_once_and_tells_its_first_reply() {
    let mut cluster = Cluster::with_replicas(1);
    let proposal = Proposal {
        request: RequestId { client: 77, sequence: 1 },
        command: Command::CreateTenant {
            name: "acme".into(),
            secret: [1; 32],
            rules: TenantRules::default(),
        },
    };
    assert_eq!(cluster.registry.outcome(proposal.request), None);
    let first = cluster.registry.apply(2, proposal.clone());
    cluster.apply(Command::SetAck { ack: Ack::All });
    let map = cluster.map();
    assert_eq!(cluster.registry.apply(4, proposal.clone()), first);
    assert_eq!(cluster.registry.outcome(proposal.request), Some(first.clone()));
    assert_eq!(cluster.map(), map);
    // The same entry, and an entry from the past, change nothing either.
    let before = cluster.registry.snapshot();
    assert_eq!(cluster.registry.apply(4, proposal), first);
    let late = Proposal {
        request: RequestId { client: 78, sequence: 1 },
        command: Command::SetAck { ack: Ack::Quorum },
    };
    assert!(refused(&cluster.registry.apply(3, late), "not after 4"));
    assert_eq!(cluster.registry.snapshot(), before);
}

#[test]
fn a_rejected_request_stays_rejected() {
    let mut cluster = Cluster::with_replicas(1);
    let request = RequestId { client: 77, sequence: 1 };
    let take = |name: &str| Command::CreateTenant {
        name: name.into(),
        secret: [1; 32],
        rules: TenantRules::default(),
    };
    let reply = cluster.registry.apply(2, Proposal { request, command: take("default") });
    assert!(refused(&reply, "choose another name"));
    assert_eq!(cluster.registry.apply(3, Proposal { request, command: take("free") }), reply);
    assert_eq!(cluster.map().tenants.len(), 1);
}

#[test]
fn a_name_keeps_its_member_id_over_restarts() {
    let mut cluster = Cluster::with_replicas(1);
    let a = cluster.register("a", 2);
    let b = cluster.register("b", 1);
    assert_eq!((a, b), (MemberId(1), MemberId(2)));
    let reply = cluster.apply(registration("a", 1));
    assert_eq!(
        reply,
        CommandReply::Registered { member: a, generation: Generation(2), epoch: cluster.registry.epoch() }
    );
    assert_eq!(cluster.map().members[&a].devices.len(), 1);
}

#[test]
fn a_description_that_is_not_allowed_is_refused_whole() {
    let mut cluster = Cluster::with_replicas(1);
    let change = |edit: fn(&mut Registration)| {
        let Command::Register(mut registration) = registration("a", 1) else { unreachable!() };
        edit(&mut registration);
        Command::Register(registration)
    };
    let before = cluster.map();
    assert!(refused(&cluster.apply(change(|r| r.name = "../a".into())), "a-z 0-9"));
    assert!(refused(&cluster.apply(change(|r| r.data_address = "h".into())), "host:port"));
    assert!(refused(&cluster.apply(change(|r| r.metrics_address = "h:0".into())), "metrics_address"));
    assert!(refused(&cluster.apply(change(|r| r.devices.clear())), "1 to 16"));
    assert!(refused(
        &cluster.apply(change(|r| r.labels.insert("a b".into(), "".into()).map_or((), drop))),
        "label"
    ));
    assert_eq!(cluster.map(), before);
}

#[test]
fn the_holder_of_the_data_stays_primary_when_another_joins() {
    let mut cluster = Cluster::with_replicas(2);
    let a = cluster.register("a", 2);
    assert_eq!(cluster.primaries(a), usize::from(SLOTS));
    let b = cluster.register("b", 2);
    assert_eq!(cluster.primaries(a), usize::from(SLOTS));
    assert!(cluster.map().slots.iter().all(|set| set.0.len() == 2 && set.0[1].member == b));
    let c = cluster.register("c", 2);
    assert!(cluster.map().slots.iter().all(|set| set.0.iter().all(|device| device.member != c)));
}

#[test]
fn survivors_are_promoted_and_the_gaps_filled() {
    let mut cluster = Cluster::with_replicas(2);
    let [a, b, c] = ["a", "b", "c"].map(|name| cluster.register(name, 1));
    cluster.fill();
    assert!(matches!(cluster.mark_down(a), CommandReply::Applied { .. }));
    assert_eq!(
        cluster.registry.last_repair(),
        Some(Repair { promoted: u32::from(SLOTS), lost: 0, filled: u32::from(SLOTS), unplaced: 0 })
    );
    assert!(cluster.map().slots.iter().all(|set| set.0[0].member == b && set.0[1].member == c));
    assert_eq!(cluster.map().members[&a].state, MemberState::Down);
}

#[test]
fn survivors_keep_their_order() {
    let mut cluster = Cluster::with_replicas(4);
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| cluster.register(name, 1));
    cluster.fill();
    let members = |cluster: &Cluster| -> Vec<MemberId> {
        cluster.map().replicas(Slot(9)).0.iter().map(|device| device.member).collect()
    };
    assert_eq!(members(&cluster), [a, b, c, d]);
    cluster.mark_down(b);
    assert_eq!(members(&cluster), [a, c, d]);
    cluster.mark_down(a);
    assert_eq!(members(&cluster), [c, d]);
}

#[test]
fn the_last_copy_lost_is_said_and_its_slot_placed_anew() {
    let mut cluster = Cluster::with_replicas(1);
    let a = cluster.register("a", 1);
    let b = cluster.register("b", 1);
    cluster.mark_down(a);
    let repair = cluster.registry.last_repair().expect("members changed");
    assert_eq!((repair.lost, repair.filled), (u32::from(SLOTS), u32::from(SLOTS)));
    assert_eq!(cluster.primaries(b), usize::from(SLOTS));
    cluster.mark_down(b);
    assert_eq!(cluster.registry.last_repair().map(|repair| repair.unplaced), Some(u32::from(SLOTS)));
    cluster.apply(Command::SetAck { ack: Ack::All });
    assert_eq!(cluster.registry.last_repair(), None);
    cluster.register("a", 1);
    assert_eq!(cluster.primaries(a), usize::from(SLOTS));
}

#[test]
fn a_member_that_starts_anew_gives_way_to_its_replicas() {
    let mut cluster = Cluster::with_replicas(2);
    let a = cluster.register("a", 1);
    let b = cluster.register("b", 1);
    assert_eq!(cluster.primaries(a), usize::from(SLOTS));
    cluster.fill();
    cluster.register("a", 1);
    assert_eq!(cluster.primaries(b), usize::from(SLOTS));
    assert!(cluster.map().slots.iter().all(|set| set.0[1].member == a));
}

#[test]
fn only_the_generation_named_goes_down_and_only_once() {
    let mut cluster = Cluster::with_replicas(1);
    let a = cluster.register("a", 1);
    cluster.register("a", 1);
    let epoch = cluster.registry.epoch();
    let old = Command::MarkDown { member: a, generation: Generation(1) };
    assert_eq!(cluster.apply(old), CommandReply::Applied { epoch });
    let unknown = Command::Leave { member: MemberId(99), generation: Generation(1) };
    assert_eq!(cluster.apply(unknown), CommandReply::Applied { epoch });
    let leave = Command::Leave { member: a, generation: Generation(2) };
    assert_eq!(cluster.apply(leave.clone()), CommandReply::Applied { epoch: epoch.next() });
    assert_eq!(cluster.apply(leave), CommandReply::Applied { epoch: epoch.next() });
}

fn placing(slot: u16, set: &[DeviceId], lacking: &[DeviceId]) -> Placing {
    let filling = Filling { devices: lacking.to_vec(), streams: !lacking.is_empty() };
    Placing { slot: Slot(slot), set: set.to_vec(), filling }
}

#[test]
fn slots_move_only_on_the_map_that_was_planned_on() {
    let mut cluster = Cluster::with_replicas(1);
    let a = DeviceId::new(cluster.register("a", 1), 0);
    let b = DeviceId::new(cluster.register("b", 1), 0);
    let based_on = cluster.registry.epoch();
    let place = |based_on, changes| Command::PlaceSlots { based_on, changes };
    let stays = cluster.apply(place(based_on, vec![placing(0, &[a], &[])]));
    assert_eq!(stays, CommandReply::Applied { epoch: based_on });
    let joined =
        cluster.apply(place(based_on, vec![placing(0, &[a, b], &[b]), placing(4095, &[a, b], &[b])]));
    assert_eq!(joined, CommandReply::Applied { epoch: based_on.next() });
    assert!(cluster.map().is_filling(Slot(0), b) && !cluster.map().is_filling(Slot(1), b));
    let stale = cluster.apply(place(based_on, vec![placing(0, &[b], &[])]));
    assert_eq!(stale, CommandReply::Rejected(WireError::StaleEpoch { epoch: based_on.next() }));
    let moved = vec![placing(0, &[b], &[]), placing(4095, &[b], &[])];
    cluster.apply(place(based_on.next(), moved));
    assert_eq!(cluster.primaries(b.member), 2);
    assert!(cluster.map().filling.is_empty());
}

#[test]
fn an_impossible_placement_is_refused() {
    let mut cluster = Cluster::with_replicas(2);
    let a = cluster.register("a", 2);
    let b = cluster.register("b", 1);
    let c = cluster.register("c", 1);
    let d = cluster.register("d", 1);
    cluster.mark_down(c);
    let at = |member, index| DeviceId::new(member, index);
    let before = cluster.map();
    let slot =
        Slot::all().find(|slot| before.replicas(*slot).0 == [at(a, 0), at(b, 0)]).expect("the first two").0;
    for (changes, because) in [
        (vec![placing(4096, &[at(a, 0), at(b, 0)], &[])], "does not exist"),
        (
            vec![placing(slot, &[at(a, 0), at(b, 0)], &[]), placing(slot, &[at(b, 0), at(a, 0)], &[])],
            "named twice",
        ),
        (vec![placing(slot, &[], &[])], "0 replicas"),
        (vec![placing(slot, &[at(a, 0)], &[])], "1 replicas"),
        (vec![placing(slot, &[at(a, 0), at(a, 1), at(b, 0)], &[])], "two replicas on member"),
        (vec![placing(slot, &[at(a, 0), at(b, 1)], &[at(b, 1)])], "not one of a member that is up"),
        (vec![placing(slot, &[at(a, 0), at(c, 0)], &[at(c, 0)])], "not one of a member that is up"),
        (vec![placing(slot, &[at(a, 0); 17], &[])], "17 replicas"),
        (vec![placing(slot, &[at(a, 0), at(d, 0)], &[])], "lose blocks"),
        (vec![placing(slot, &[at(d, 0), at(a, 0)], &[at(d, 0)])], "lose blocks"),
        (vec![placing(slot, &[at(a, 0), at(b, 0)], &[at(a, 0)])], "lose blocks"),
        (vec![placing(slot, &[at(a, 0), at(b, 0)], &[at(d, 0)])], "one of its replicas"),
        (vec![placing(slot, &[at(a, 0), at(b, 0)], &[at(b, 0), at(b, 0)])], "named once"),
    ] {
        let reply = cluster.apply(Command::PlaceSlots { based_on: before.epoch, changes });
        assert!(refused(&reply, because), "{reply:?} instead of {because}");
    }
    assert_eq!(cluster.map(), before);
}

#[test]
fn who_takes_over_has_what_was_lost_if_anybody_has() {
    let mut cluster = Cluster::with_replicas(2);
    let [a, b, c] = ["a", "b", "c"].map(|name| DeviceId::new(cluster.register(name, 1), 0));
    cluster.fill();
    // What a and b hold is asked of c, which lacks it, when b goes; then only a has it.
    cluster.mark_down(b.member);
    let map = cluster.map();
    let slot = Slot::all().find(|slot| map.replicas(*slot).primary() == Some(a)).expect("a has some");
    assert_eq!(map.replicas(slot).0, [a, c]);
    assert_eq!(map.filling[&slot], Filling { devices: vec![c], streams: false });
    cluster.mark_down(a.member);
    assert_eq!(cluster.registry.last_repair().map(|repair| repair.lost > 0), Some(true));
    assert_eq!(cluster.map().replicas(slot).0, [c]);
    assert!(cluster.map().filling.is_empty(), "there is nobody to give it");
    let back = DeviceId::new(cluster.register("b", 1), 0);
    assert_eq!(cluster.map().filling[&slot].devices, [back]);
    assert_eq!(cluster.map().check(), Ok(()));
}

#[test]
fn a_map_too_large_to_send_cannot_come_about() {
    let mut cluster = Cluster::with_replicas(1);
    cluster.registry.index.bytes = validate::MAX_MAP_BYTES - 100;
    let create = |name: &str| Command::CreateTenant {
        name: name.into(),
        secret: [1; 32],
        rules: TenantRules::default(),
    };
    assert!(matches!(cluster.apply(create("a")), CommandReply::TenantCreated { .. }));
    assert!(refused(&cluster.apply(create("b")), "fewer tenants"));
    assert!(refused(&cluster.apply(registration("m", 1)), "fewer labels"));
    assert!(cluster.map().member("m").is_none() && cluster.map().tenant("b").is_none());
}

#[test]
fn sizes_are_never_counted_too_small() {
    let mut cluster = Cluster::with_replicas(1);
    cluster.register("a-member-with-a-name", 16);
    cluster.apply(Command::CreateTenant {
        name: "acme".into(),
        secret: [1; 32],
        rules: TenantRules::default(),
    });
    let map = cluster.map();
    let size = |bytes: Result<Vec<u8>, WireError>| bytes.expect("small").len();
    for member in &map.members {
        assert!(size(kvhive_protocol::codec::encode(&member)) <= validate::member_bytes(member.1));
    }
    for tenant in &map.tenants {
        assert!(size(kvhive_protocol::codec::encode(&tenant)) <= validate::tenant_bytes(tenant.1));
    }
}

#[test]
fn a_map_in_use_is_left_alone() {
    let mut cluster = Cluster::with_replicas(1);
    let held = cluster.map();
    cluster.apply(Command::SetAck { ack: Ack::Quorum });
    assert_eq!((held.settings.ack, held.epoch), (Ack::Primary, Epoch(1)));
    let next = cluster.map();
    assert!(Arc::ptr_eq(&held.slots, &next.slots));
}
