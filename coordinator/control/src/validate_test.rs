//! What is allowed in a map, and what is refused beforehand.

use super::*;
use kvhive_protocol::{Change, Era, RulesChange, TenantId};

#[test]
fn names_are_plain() {
    for good in ["a", "node-1", "0", "a.b_c-d", &"x".repeat(63)] {
        assert_eq!(name("member name", good), Ok(()), "{good}");
    }
    for bad in ["", "-a", ".", "../x", "_default", "A", "a b", "a\n", "nöde", "\u{0430}", &"x".repeat(64)] {
        assert!(name("member name", bad).is_err(), "{bad:?}");
    }
    let long = name("tenant name", &"x".repeat(10 << 20)).unwrap_err().to_string();
    assert!(long.len() < 300 && long.contains("1 to 63"), "{long}");
}

#[test]
fn addresses_have_a_host_and_a_port() {
    for good in ["127.0.0.1:7810", "[::1]:7810", "gpu-3.rack_1.example:1", "h:65535"] {
        assert_eq!(address("data_address", good), Ok(()), "{good}");
    }
    for bad in
        ["", "h", "h:", ":1", "h:0", "h:65536", "h:+1", "h h:1", "::1:1", "[::1:1", "[x]:1", "u@h:1", "h/x:1"]
    {
        assert!(address("data_address", bad).is_err(), "{bad:?}");
    }
    assert!(address("data_address", &format!("{}:1", "h".repeat(300))).is_err());
}

#[test]
fn a_coordinator_has_a_number_a_name_and_addresses() {
    let sound = Seat {
        name: "c-1".to_owned(),
        raft_address: format!("{}:7801", "h".repeat(253)),
        admin_address: "[::1]:7800".to_owned(),
    };
    assert_eq!((check_seat(1, &sound), check_seat(65_535, &sound)), (Ok(()), Ok(())));
    for (peer, seat, says) in [
        (0, sound.clone(), "peer is 0"),
        (65_536, sound.clone(), "peer is 65536"),
        (1, Seat { name: String::new(), ..sound.clone() }, "coordinator name"),
        (1, Seat { raft_address: "h".to_owned(), ..sound.clone() }, "raft_address"),
        (1, Seat { admin_address: ":1".to_owned(), ..sound }, "admin_address"),
    ] {
        let refused = check_seat(peer, &seat).expect_err("it cannot be").to_string();
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn labels_and_devices_are_bounded() {
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(labels(&label("rack", "Row 3, über")), Ok(()));
    assert_eq!(labels(&label("topology.kubernetes.io/Zone", "a")), Ok(()));
    assert!(labels(&label("rack", &"x".repeat(129))).is_err());
    assert!(labels(&label("rack", "a\u{7}")).is_err());
    assert!(labels(&label("", "a")).is_err());
    assert!(labels(&label("rack name", "a")).is_err());
    assert!(labels(&label(&"x".repeat(64), "a")).is_err());
    assert!(labels(&(0..33).map(|at| (format!("l{at}"), String::new())).collect()).is_err());

    let device = |kind: &str, bytes| DeviceDescription {
        kind: kind.into(),
        device_bytes: bytes,
        host_bytes: 0,
        disk_bytes: 7,
    };
    assert_eq!(devices(&[device("NVIDIA H100 80GB HBM3", 1)]), Ok(()));
    assert!(devices(&[]).is_err());
    assert!(devices(&vec![device("host", 1); 17]).is_err());
    assert!(devices(&[device("host", 0)]).is_err());
    assert!(devices(&[device("", 1)]).is_err());
    assert!(devices(&[device("hôst", 1)]).is_err());
}

#[test]
fn a_tenant_takes_no_more_bytes_than_are_counted() {
    let full = TenantRules {
        strategy: kvhive_protocol::Strategy::ALL.into_iter().max_by_key(|strategy| strategy.name().len()),
        device_quota_bytes: Some(u64::MAX),
        host_quota_bytes: Some(u64::MAX),
        disk_quota_bytes: Some(u64::MAX),
        quantization_bits: Some(u8::MAX),
        compression_per_mille: Some(u16::MAX),
        shares_with: Some(TenantId(u32::MAX)),
    };
    for rules in [TenantRules::default(), full] {
        let tenant = Tenant { name: "x".repeat(63), era: Era(u64::MAX), secret: [255; 32], rules };
        let encoded = kvhive_protocol::codec::encode(&(TenantId(u32::MAX), &tenant)).expect("small");
        assert!(encoded.len() <= tenant_bytes(&tenant), "{} of {}", encoded.len(), tenant_bytes(&tenant));
    }
}

#[test]
fn what_no_map_would_take_is_known_beforehand() {
    let device = DeviceId::new(MemberId(1), 0);
    let place = |slots: &[u16], replicas: usize| Command::PlaceSlots {
        based_on: kvhive_protocol::Epoch(1),
        changes: slots
            .iter()
            .map(|slot| Placing {
                slot: Slot(*slot),
                set: vec![device; replicas],
                filling: kvhive_protocol::Filling::default(),
            })
            .collect(),
    };
    let tenant =
        |name: String| Command::CreateTenant { name, secret: [0; 32], rules: TenantRules::default() };
    let set = |change| Command::SetTenantRules { tenant: TenantId(2), change };
    let none = RulesChange::default();
    let with = |other| RulesChange { shares_with: Change::Set(TenantId(other)), ..none };
    let created = |rules| Command::CreateTenant { name: "a".into(), secret: [0; 32], rules };
    let sharing = TenantRules { shares_with: Some(TenantId(1)), ..TenantRules::default() };
    for good in [
        tenant("a".into()),
        created(sharing),
        place(&[0, SLOTS - 1], 16),
        place(&[], 0),
        set(none),
        set(RulesChange { quantization_bits: Change::Reset, ..with(1) }),
        set(RulesChange { disk_quota_bytes: Change::Set(1 << 60), ..none }),
    ] {
        assert_eq!(check_command(&good), Ok(()), "{good:?}");
    }
    for bad in [
        tenant(String::new()),
        tenant("x".repeat(4 << 20)),
        created(TenantRules { quantization_bits: Some(7), ..TenantRules::default() }),
        created(TenantRules { quantization_bits: Some(8), ..sharing }),
        set(RulesChange { quantization_bits: Change::Set(7), ..none }),
        set(RulesChange { compression_per_mille: Change::Set(0), ..none }),
        set(RulesChange { disk_quota_bytes: Change::Set(u64::MAX), ..none }),
        set(RulesChange { host_quota_bytes: Change::Set(1), ..with(1) }),
        set(with(2)),
        place(&[SLOTS], 1),
        place(&[3, 3], 1),
        place(&[3], 0),
        place(&[3], 17),
    ] {
        let refused = check_command(&bad).expect_err("no map takes it").to_string();
        assert!(refused.len() < 300, "{refused}");
    }
}

#[test]
fn settings_are_bounded_and_agree_with_each_other() {
    let good = Settings {
        replicas: 2,
        segment_blocks: 16,
        ack: kvhive_protocol::data::Ack::Primary,
        lease_ms: 2000,
        heartbeat_ms: 500,
        serving_lease_ms: 2000,
    };
    assert_eq!(settings(&good), Ok(()));
    for bad in [
        Settings { replicas: 0, ..good.clone() },
        Settings { replicas: 9, ..good.clone() },
        Settings { segment_blocks: 0, ..good.clone() },
        Settings { segment_blocks: 1025, ..good.clone() },
        Settings { lease_ms: 99, ..good.clone() },
        Settings { lease_ms: 300_001, ..good.clone() },
        Settings { heartbeat_ms: 9, ..good.clone() },
        Settings { heartbeat_ms: 1001, ..good.clone() },
    ] {
        assert!(settings(&bad).is_err(), "{bad:?}");
    }
}
