//! Random logs: whatever is proposed, repeated, reordered, snapshotted and restored, the registry keeps its promises.

use kvhive_control::{MAX_CLIENTS, Registry, RestoreError, placement};
use kvhive_protocol::control::{Command, CommandReply, Placing, Proposal, Registration};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::scaling::Stretch;
use kvhive_protocol::{
    Change, ClusterId, ClusterMap, DeviceId, Epoch, Filling, Generation, MemberId, MemberState, ReplicaSet,
    RequestId, RulesChange, Slot, TenantId, TenantRules,
};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;
use std::collections::BTreeMap;

fn bootstrap(replicas: u8) -> Command {
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

fn register(name: String, devices: usize) -> Command {
    let device =
        DeviceDescription { kind: "host".into(), device_bytes: 1 << 20, host_bytes: 0, disk_bytes: 1 << 22 };
    Command::Register(Registration {
        request: RequestId { client: 5, sequence: 5 },
        name,
        data_address: "127.0.0.1:7810".into(),
        metrics_address: "127.0.0.1:7811".into(),
        labels: BTreeMap::new(),
        devices: vec![device; devices],
        codec: Default::default(),
        speaks: kvhive_protocol::Level::NEWEST,
    })
}

fn generation() -> impl Strategy<Value = Generation> {
    prop_oneof![4 => Just(Generation(1)), 1 => (0..4_u64).prop_map(Generation)]
}

fn a_strategy() -> impl Strategy<Value = kvhive_protocol::Strategy> {
    prop::sample::select(&kvhive_protocol::Strategy::ALL[..])
}

fn bits() -> impl Strategy<Value = u8> {
    prop::sample::select(&[4, 8, 16, 7][..])
}

fn pool() -> impl Strategy<Value = TenantId> {
    (0..6_u32).prop_map(TenantId)
}

fn rules() -> impl Strategy<Value = TenantRules> {
    let rare = |strategy| prop::option::weighted(0.2, strategy);
    (rare(a_strategy().boxed()), prop::option::weighted(0.2, bits()), prop::option::weighted(0.4, pool()))
        .prop_map(|(strategy, quantization_bits, shares_with)| TenantRules {
            strategy,
            quantization_bits,
            shares_with,
            ..TenantRules::default()
        })
}

fn of<T: Copy + std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Change<T>> {
    prop_oneof![3 => Just(Change::Keep), 1 => Just(Change::Reset), 1 => value.prop_map(Change::Set)]
}

fn rules_change() -> impl Strategy<Value = RulesChange> {
    (of(a_strategy()), of(any::<u64>()), of(bits()), of(0..1100_u16), of(pool())).prop_map(
        |(strategy, quota, quantization_bits, compression_per_mille, shares_with)| RulesChange {
            strategy,
            device_quota_bytes: quota,
            host_quota_bytes: quota,
            disk_quota_bytes: quota,
            quantization_bits,
            compression_per_mille,
            shares_with,
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let member = || (0..7_u32).prop_map(MemberId);
    let device = (0..7_u32, 0..3_u16).prop_map(|(member, index)| DeviceId::new(MemberId(member), index));
    let change =
        ((0..4100_u16).prop_map(Slot), prop::collection::vec(device, 0..4), 0..3_usize, any::<bool>())
            .prop_map(|(slot, set, lacking, streams)| {
                let devices = set[set.len().saturating_sub(lacking)..].to_vec();
                Placing { slot, set, filling: Filling { devices, streams } }
            });
    prop_oneof![
        1 => (0..5_u8).prop_map(bootstrap),
        6 => ("[a-e]", 1..4_usize).prop_map(|(name, devices)| register(name, devices)),
        1 => (".{0,3}", 0..18_usize).prop_map(|(name, devices)| register(name, devices)),
        3 => (member(), generation()).prop_map(|(member, generation)| Command::MarkDown { member, generation }),
        1 => (member(), generation()).prop_map(|(member, generation)| Command::Leave { member, generation }),
        2 => ("[a-f_]", rules()).prop_map(|(name, rules)| Command::CreateTenant { name, secret: [3; 32], rules }),
        4 => (0..6_u32, rules_change()).prop_map(|(tenant, change)| {
            Command::SetTenantRules { tenant: TenantId(tenant), change }
        }),
        2 => (0..6_u32, rules_change(), of(0..1100_u16)).prop_map(|(tenant, change, weight)| {
            Command::WeighTenant { tenant: TenantId(tenant), change, weight }
        }),
        2 => (0..6_u32).prop_map(|tenant| Command::ClearTenant { tenant: TenantId(tenant) }),
        2 => (0..6_u32, 0..3_u8)
            .prop_map(|(tenant, secret)| Command::RotateSecret { tenant: TenantId(tenant), secret: [secret; 32] }),
        1 => member().prop_map(|member| Command::RemoveMember { member }),
        1 => prop::option::of((member(), generation())).prop_map(|start| Command::MarkEnded { start }),
        1 => (1..4_u16).prop_map(|port| Command::SetCoordinators { addresses: vec![format!("coord:{port}")] }),
        1 => (0..8_u32).prop_map(|tenant| Command::DeleteTenant { tenant: TenantId(tenant) }),
        3 => (0..40_u64, prop::collection::vec(change, 0..4))
            .prop_map(|(epoch, changes)| Command::PlaceSlots { based_on: Epoch(epoch), changes }),
        1 => (member(), any::<bool>()).prop_map(|(member, drains)| Command::SetDrains { member, drains }),
        1 => (member(), any::<bool>()).prop_map(|(member, cordoned)| Command::SetCordon { member, cordoned }),
        1 => prop_oneof![Just(Ack::Primary), Just(Ack::Quorum), Just(Ack::All)].prop_map(|ack| Command::SetAck { ack }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Start,
    Propose { client: u128, sequence: u64, command: Command },
    Repeat(Index),
    SnapshotAndRestore,
    HoldMap,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..3_u128, 1..80_u64, command())
            .prop_map(|(client, sequence, command)| Step::Propose { client, sequence, command }),
        3 => any::<Index>().prop_map(Step::Repeat),
        1 => Just(Step::SnapshotAndRestore),
        1 => Just(Step::HoldMap),
    ];
    prop::collection::vec(step, 1..60)
}

/// Failing seeds are kept beside this file and run first from then on.
fn config() -> ProptestConfig {
    let failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")) as Box<_>);
    ProptestConfig { cases: 96, failure_persistence, ..ProptestConfig::default() }
}

/// What holds between any map and the one after it.
fn check(before: Option<&ClusterMap>, after: &ClusterMap) -> Result<(), TestCaseError> {
    prop_assert_eq!(after.check(), Ok(()));
    let takes = |member: &&kvhive_protocol::Member| {
        member.state == MemberState::Up && !member.drains && !member.cordoned
    };
    let least = after.members.values().filter(takes).count().min(usize::from(after.settings.replicas));
    prop_assert!(after.slots.iter().all(|set| set.0.len() >= least), "a slot has too few replicas");
    let Some(before) = before else { return Ok(()) };
    let grown = u64::from(before != after);
    prop_assert_eq!(after.epoch.0, before.epoch.0 + grown, "the epoch grows by one for a change, else not");
    let gone = before.tenants.keys().filter(|id| !after.tenants.contains_key(id)).count();
    prop_assert!(
        gone <= 1 && after.tenants.contains_key(&TenantId(1)),
        "one tenant at a time, never the first"
    );
    for (id, tenant) in &after.tenants {
        match before.tenants.get(id) {
            Some(known) => {
                prop_assert!(tenant.era >= known.era && tenant.name == known.name);
                prop_assert!(
                    tenant.secret == known.secret || tenant.era > known.era,
                    "a new secret, a new era"
                );
            }
            None => prop_assert!(before.tenants.keys().all(|known| known < id), "its number is the greatest"),
        }
    }
    for (id, member) in &before.members {
        match after.members.get(id) {
            Some(known) => {
                prop_assert!(known.generation >= member.generation && known.name == member.name);
            }
            None => {
                let holds = |set: &ReplicaSet| set.0.iter().any(|device| device.member == *id);
                prop_assert!(
                    member.state == MemberState::Down || member.drains,
                    "who serves is not forgotten"
                );
                prop_assert!(!before.slots.iter().any(holds), "who holds slots is not forgotten");
            }
        }
    }
    let new = after.members.keys().filter(|id| !before.members.contains_key(id));
    prop_assert!(new.into_iter().all(|id| before.members.keys().all(|known| known < id)));
    Ok(())
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn any_log_keeps_the_promises(replicas in 1..4_u8, steps in steps()) {
        let mut registry = Registry::new();
        let mut twin = Registry::new();
        let mut replies: BTreeMap<RequestId, CommandReply> = BTreeMap::new();
        let mut past: Vec<Proposal> =
            vec![Proposal { request: RequestId { client: 99, sequence: 1 }, command: bootstrap(replicas) }];
        let mut held = Vec::new();
        let mut index = 0;
        for step in std::iter::once(Step::Start).chain(steps) {
            let proposal = match step {
                Step::Start => past[0].clone(),
                Step::Propose { client, sequence, mut command } => {
                    // Half of the plans are made on the present map.
                    if let Command::PlaceSlots { based_on, .. } = &mut command
                        && based_on.0 % 2 == 0
                    {
                        *based_on = registry.epoch();
                    }
                    past.push(Proposal { request: RequestId { client, sequence }, command });
                    past[past.len() - 1].clone()
                }
                Step::Repeat(at) => past[at.index(past.len())].clone(),
                Step::SnapshotAndRestore => {
                    let restored = Registry::restore(&registry.snapshot()).expect("what it wrote it reads");
                    prop_assert_eq!(restored.snapshot(), registry.snapshot());
                    registry = restored;
                    continue;
                }
                Step::HoldMap => {
                    held.extend(registry.map().map(|map| (map.clone(), format!("{map:?}"))));
                    continue;
                }
            };
            index += 1;
            let (before, told) = (registry.map(), registry.newest_event());
            let request = proposal.request;
            let reply = registry.apply(index, proposal.clone());
            // The twin is never restored and its maps are never held: it must come to the same.
            prop_assert_eq!(&twin.apply(index, proposal), &reply);
            prop_assert_eq!(twin.snapshot(), registry.snapshot());
            if let Some(first) = replies.get(&request) {
                let forgotten = matches!(&reply, CommandReply::Rejected(error) if error.to_string().contains("no longer known"));
                prop_assert!(first == &reply || forgotten, "{:?} was {:?} and is {:?}", request, first, reply);
                prop_assert_eq!(&before, &registry.map(), "a repeat changed the map");
            } else {
                replies.insert(request, reply.clone());
            }
            if let (Some(before), CommandReply::Rejected(_)) = (&before, &reply) {
                prop_assert!(registry.map().as_ref() == Some(before), "a rejected command changed the map");
            }
            let changed = u64::from(before != registry.map());
            prop_assert_eq!(registry.newest_event(), told + changed, "each change is one event");
            if let Some(map) = registry.map() {
                check(before.as_deref(), &map)?;
            }
        }
        for (map, text) in held {
            prop_assert_eq!(format!("{map:?}"), text, "a map changed in its reader's hands");
        }
    }

    #[test]
    fn hostile_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Registry::restore(&bytes).is_err());
    }

    #[test]
    fn a_damaged_snapshot_is_an_error_even_if_its_checksum_is_right(at: Index, flip in 1..=255_u8, resealed: bool) {
        let mut bytes = populated().snapshot();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if resealed {
            reseal(&mut bytes);
        }
        // Resealed damage may decode to another possible registry; then it is one in every respect.
        match Registry::restore(&bytes) {
            Ok(registry) => {
                prop_assert!(resealed);
                registry.map().expect("the head says so").check().map_err(TestCaseError::fail)?;
                prop_assert_eq!(registry.snapshot().len(), bytes.len());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn a_snapshot_cut_short_is_an_error(at: Index, resealed: bool) {
        let mut bytes = populated().snapshot();
        bytes.truncate(at.index(bytes.len()));
        if resealed {
            reseal(&mut bytes);
        }
        prop_assert!(Registry::restore(&bytes).is_err());
    }
}

fn reseal(bytes: &mut [u8]) {
    if bytes.len() >= 8 {
        let body = bytes.len() - 8;
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..body]);
        bytes[body..].copy_from_slice(&sum.to_le_bytes());
    }
}

fn populated() -> Registry {
    let mut registry = Registry::new();
    let ruled = TenantRules { host_quota_bytes: Some(7), ..TenantRules::default() };
    let commands = [
        bootstrap(2),
        register("a".into(), 2),
        register("b".into(), 1),
        Command::CreateTenant { name: "acme".into(), secret: [9; 32], rules: ruled },
        Command::CreateTenant { name: "acme".into(), secret: [9; 32], rules: ruled },
        Command::ClearTenant { tenant: TenantId(2) },
    ];
    for (index, command) in (1..).zip(commands) {
        registry.apply(index, Proposal { request: RequestId { client: 3, sequence: index }, command });
    }
    registry
}

#[test]
fn a_snapshot_of_another_version_is_named_as_such() {
    let mut bytes = populated().snapshot();
    bytes[8] = 99;
    reseal(&mut bytes);
    assert_eq!(Registry::restore(&bytes).err(), Some(RestoreError::Version { found: 99 }));
}

#[test]
fn the_snapshot_is_the_same_on_every_machine() {
    // Changes only with STATE_VERSION, or with placement: then running clusters disagree with new ones. And with the newest level,
    // which this one begins at.
    assert_eq!(
        u64::from_le_bytes(*populated().snapshot().last_chunk().expect("a checksum ends it")),
        7_518_392_269_907_810_256
    );
}

#[test]
fn a_restored_registry_goes_on_alike() {
    let mut registry = populated();
    let mut restored = Registry::restore(&registry.snapshot()).expect("sound");
    let commands = [
        register("c".into(), 1),
        Command::MarkDown { member: MemberId(1), generation: Generation(1) },
        Command::CreateTenant { name: "acme".into(), secret: [9; 32], rules: TenantRules::default() },
        Command::CreateTenant { name: "other".into(), secret: [9; 32], rules: TenantRules::default() },
        register("a".into(), 1),
    ];
    for (at, command) in (7..).zip(commands) {
        let proposal = Proposal { request: RequestId { client: 3, sequence: at }, command };
        assert_eq!(restored.apply(at, proposal.clone()), registry.apply(at, proposal));
        assert_eq!(restored.last_repair(), registry.last_repair());
    }
    let repeat = Proposal { request: RequestId { client: 3, sequence: 2 }, command: register("x".into(), 1) };
    assert_eq!(restored.apply(12, repeat.clone()), registry.apply(12, repeat));
    assert_eq!(restored.snapshot(), registry.snapshot());
}

#[test]
fn what_sizes_would_have_covered_is_part_of_the_state_and_nonsense_is_not() {
    let mut registry = populated();
    let stretch = Stretch { bucket: 7, floor: 1, ceiling: 8, most_ppm: 900_000, ..Stretch::default() };
    let wrong = Stretch { bucket: 8, most_ppm: 1_000_001, ..stretch };
    for (at, stretch) in (7..).zip([stretch, stretch, wrong]) {
        let command = Command::RecordStretch { stretch };
        registry.apply(at, Proposal { request: RequestId { client: 3, sequence: at }, command });
    }
    let restored = Registry::restore(&registry.snapshot()).expect("sound");
    assert_eq!(restored.scaling().stretches().copied().collect::<Vec<_>>(), [stretch]);
    assert_eq!(restored.snapshot(), registry.snapshot());
}

#[test]
fn an_asker_that_repeats_is_remembered_longer() {
    let mut registry = populated();
    let ask = |client: u128| Proposal {
        request: RequestId { client, sequence: 1 },
        command: Command::SetAck { ack: Ack::All },
    };
    let clients = 100..100 + MAX_CLIENTS as u128 - 1;
    for (index, client) in (7..).zip(clients) {
        registry.apply(index, ask(client));
    }
    registry.apply(10_000, Proposal { request: RequestId { client: 3, sequence: 2 }, ..ask(0) });
    registry.apply(10_001, ask(1));
    assert!(registry.outcome(RequestId { client: 3, sequence: 2 }).is_some());
    assert_eq!(registry.outcome(RequestId { client: 100, sequence: 1 }), None);
}

#[test]
fn thousands_of_tenants_and_askers_survive_a_snapshot() {
    let mut registry = populated();
    for index in 7..9007_u64 {
        let command = Command::CreateTenant {
            name: format!("t{index}"),
            secret: [1; 32],
            rules: TenantRules::default(),
        };
        let request = RequestId { client: u128::from(index), sequence: 1 };
        let reply = registry.apply(index, Proposal { request, command });
        assert!(matches!(reply, CommandReply::TenantCreated { .. }), "{reply:?}");
    }
    let snapshot = registry.snapshot();
    let restored = Registry::restore(&snapshot).expect("sound");
    assert_eq!(restored.map().map(|map| map.tenants.len()), Some(9002));
    assert_eq!(restored.snapshot(), snapshot);
}

#[test]
fn a_command_copies_no_map_that_nobody_reads() {
    let mut registry = populated();
    let first = registry.map().map(|map| std::sync::Arc::as_ptr(&map));
    for index in 7..5000_u64 {
        let request = RequestId { client: u128::from(index % 32), sequence: index };
        registry.apply(index, Proposal { request, command: Command::ClearTenant { tenant: TenantId(1) } });
    }
    assert_eq!(registry.map().map(|map| std::sync::Arc::as_ptr(&map)), first);
}

#[test]
fn lost_slots_go_where_they_belong() {
    let mut registry = Registry::new();
    let commands = [
        bootstrap(1),
        register("a".into(), 1),
        register("b".into(), 2),
        register("c".into(), 1),
        Command::MarkDown { member: MemberId(1), generation: Generation(1) },
    ];
    for (index, command) in (1..).zip(commands) {
        registry.apply(index, Proposal { request: RequestId { client: 3, sequence: index }, command });
    }
    let map = registry.map().expect("started");
    assert_eq!(*map.slots, placement::wanted_map(&placement::candidates(&map), 1));
}
