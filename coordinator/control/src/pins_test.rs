//! Pins, as the registry keeps them.

use super::*;
use crate::registry::Registry;
use crate::registry::tests::Cluster;
use kvhive_protocol::control::CommandReply;
use kvhive_protocol::{BlockKey, Change, EventKind, PinMode, Reason, RulesChange, TenantRules};

const FIRST: TenantId = TenantId(1);

fn pin(tenant: TenantId, keys: usize, mode: PinMode) -> Pin {
    let key = |at: usize| {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&(at as u64).to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    Pin { tenant, keys: (0..keys).map(key).collect(), mode, reason: Reason::default() }
}

fn set(cluster: &mut Cluster, name: &str, pin: Pin) -> CommandReply {
    cluster.apply(Command::SetPin { name: name.into(), pin: Box::new(pin) })
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.registry.map().expect("bootstrapped").pins.keys().cloned().collect()
}

fn create(cluster: &mut Cluster, name: &str) -> TenantId {
    let command = Command::CreateTenant { name: name.into(), secret: [3; 32], rules: TenantRules::default() };
    match cluster.apply(command) {
        CommandReply::TenantCreated { tenant, .. } => tenant,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_clear_ends_the_pins_of_its_tenant_and_of_those_that_share_it() {
    let mut cluster = Cluster::with_replicas(1);
    let [own, canary] = ["own", "canary"].map(|name| create(&mut cluster, name));
    let change = RulesChange { shares_with: Change::Set(FIRST), ..RulesChange::default() };
    cluster.apply(Command::SetTenantRules { tenant: canary, change });
    for (name, tenant) in [("a", FIRST), ("b", own), ("c", canary)] {
        let reply = set(&mut cluster, name, pin(tenant, 3, PinMode::Hard));
        assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
    }
    assert_eq!(cluster.registry.map().expect("bootstrapped").pins["c"].tenant, FIRST);
    cluster.apply(Command::ClearTenant { tenant: FIRST });
    assert_eq!(names(&cluster), ["b"]);
}

#[test]
fn another_secret_and_a_tenants_end_end_its_pins_and_no_others() {
    let mut cluster = Cluster::with_replicas(1);
    let [rotated, deleted] = ["rotated", "deleted"].map(|name| create(&mut cluster, name));
    for (name, tenant) in [("a", FIRST), ("b", rotated), ("c", deleted), ("d", rotated)] {
        set(&mut cluster, name, pin(tenant, 3, PinMode::Hard));
    }
    let epoch = cluster.registry.epoch();
    cluster.apply(Command::RotateSecret { tenant: rotated, secret: [9; 32] });
    assert_eq!((names(&cluster), cluster.registry.epoch()), (vec!["a".into(), "c".into()], epoch.next()));
    // What was derived from the old secret names nothing; what is pinned from now on is the tenant's again.
    set(&mut cluster, "b", pin(rotated, 3, PinMode::Hard));
    cluster.apply(Command::DeleteTenant { tenant: deleted });
    assert_eq!(names(&cluster), ["a", "b"]);
    assert!(matches!(
        set(&mut cluster, "c", pin(deleted, 1, PinMode::Hard)),
        CommandReply::Rejected(WireError::UnknownTenant { .. })
    ));
}

#[test]
fn why_it_is_pinned_is_kept_and_told_with_the_pins_name() {
    let mut cluster = Cluster::with_replicas(1);
    let reason = Reason::new("each request begins so");
    set(&mut cluster, "a", Pin { reason: reason.clone(), ..pin(FIRST, 2, PinMode::Hard) });
    assert_eq!(cluster.registry.map().expect("bootstrapped").pins["a"].reason, reason);
    let told = cluster.registry.events(0, 100).events.last().cloned().expect("it is told");
    assert_eq!((told.note.kind, &told.reason), (EventKind::PinAdded, &reason));
    assert_eq!(told.note.subject.pin.as_deref(), Some("a"));
    // A pin whose reason alone is another is another pin.
    let other = Reason::new("still needed");
    set(&mut cluster, "a", Pin { reason: other.clone(), ..pin(FIRST, 2, PinMode::Hard) });
    assert_eq!(cluster.registry.map().expect("bootstrapped").pins["a"].reason, other);
}

#[test]
fn a_pin_that_lasts_until_now_is_removed_unless_it_lasts_longer_meanwhile() {
    let mut cluster = Cluster::with_replicas(1);
    let soft = |until_ms| pin(FIRST, 1, PinMode::Soft { until_ms });
    for (name, pin) in [("a", soft(1000)), ("b", soft(1001)), ("c", pin(FIRST, 1, PinMode::Hard))] {
        set(&mut cluster, name, pin);
    }
    let map = cluster.registry.map().expect("bootstrapped");
    assert_eq!(ended_pins(&map, 999), []);
    let ended: Vec<Command> = ended_pins(&map, 1000).into_iter().map(|(command, _)| command).collect();
    assert_eq!(ended, [Command::RemovePin { name: "a".into(), ended_ms: Some(1000) }]);
    drop(map);
    set(&mut cluster, "a", soft(1002));
    let epoch = cluster.registry.epoch();
    cluster.apply(ended[0].clone());
    assert_eq!((names(&cluster).len(), cluster.registry.epoch()), (3, epoch));
    cluster.apply(Command::RemovePin { name: "a".into(), ended_ms: Some(1002) });
    assert_eq!(names(&cluster), ["b", "c"]);
    cluster.apply(Command::RemovePin { name: "a".into(), ended_ms: Some(1002) });
    let refused = cluster.apply(Command::RemovePin { name: "a".into(), ended_ms: None });
    assert!(matches!(refused, CommandReply::Rejected(_)), "{refused:?}");
    cluster.apply(Command::RemovePin { name: "c".into(), ended_ms: None });
    assert_eq!(names(&cluster), ["b"]);
    let events = cluster.registry.events(0, 100).events;
    let of = |kind| events.iter().filter(|event| event.note.kind == kind).count();
    assert_eq!((of(EventKind::PinAdded), of(EventKind::PinRemoved)), (4, 2));
}

#[test]
fn pins_are_bounded_in_number_and_in_keys() {
    let mut cluster = Cluster::with_replicas(1);
    let words = |reply: CommandReply| match reply {
        CommandReply::Rejected(error) => error.to_string(),
        other => panic!("{other:?}"),
    };
    for keys in [0, MAX_PIN_KEYS + 1] {
        let said = words(set(&mut cluster, "a", pin(FIRST, keys, PinMode::Hard)));
        assert!(said.contains(&format!("keys is {keys}, allowed is 1 to {MAX_PIN_KEYS}")), "{said}");
    }
    let full = MAX_PINNED_KEYS / MAX_PIN_KEYS;
    for at in 0..full {
        set(&mut cluster, &format!("a{at}"), pin(FIRST, MAX_PIN_KEYS, PinMode::Hard));
    }
    let said = words(set(&mut cluster, "b", pin(FIRST, 1, PinMode::Hard)));
    assert!(said.contains("allowed are 16384"), "{said}");
    // One that takes its own place needs no more.
    set(&mut cluster, "a0", pin(FIRST, MAX_PIN_KEYS, PinMode::Soft { until_ms: 9 }));
    assert_eq!(names(&cluster).len(), full);
    assert!(matches!(
        set(&mut cluster, "c", pin(TenantId(99), 1, PinMode::Hard)),
        CommandReply::Rejected(WireError::UnknownTenant { .. })
    ));
    for at in 0..full {
        cluster.apply(Command::RemovePin { name: format!("a{at}"), ended_ms: None });
    }
    for at in 0..MAX_PINS {
        set(&mut cluster, &format!("n{at}"), pin(FIRST, 1, PinMode::Hard));
    }
    let said = words(set(&mut cluster, "b", pin(FIRST, 1, PinMode::Hard)));
    assert!(said.contains("1024 pins"), "{said}");
}

#[test]
fn a_snapshot_keeps_the_pins() {
    let mut cluster = Cluster::with_replicas(1);
    let reason = Reason::new("x".repeat(MAX_REASON_BYTES));
    set(&mut cluster, "a", Pin { reason, ..pin(FIRST, 40, PinMode::Soft { until_ms: 1 << 41 }) });
    set(&mut cluster, "b", pin(FIRST, 2, PinMode::Hard));
    let bytes = cluster.registry.snapshot();
    let again = Registry::restore(&bytes).expect("it is whole");
    assert_eq!(again.map(), cluster.registry.map());
    assert_eq!(again.snapshot(), bytes);
}
