//! Stories of tenants: their eras, their rules and whom they share with.

use super::*;
use kvhive_protocol::{Change, RulesChange};

#[test]
fn clearing_a_tenant_raises_its_era_only() {
    let mut cluster = Cluster::with_replicas(1);
    cluster.apply(Command::CreateTenant {
        name: "acme".into(),
        secret: [1; 32],
        rules: TenantRules::default(),
    });
    let reply = cluster.apply(Command::ClearTenant { tenant: TenantId(2) });
    assert_eq!(reply, CommandReply::TenantCleared { era: Era(2), epoch: Epoch(3) });
    assert_eq!(cluster.map().tenants[&TenantId(1)].era, Era(1));
    let unknown = cluster.apply(Command::ClearTenant { tenant: TenantId(9) });
    assert_eq!(unknown, CommandReply::Rejected(WireError::UnknownTenant { tenant: TenantId(9) }));
}

#[test]
fn a_tenant_with_another_secret_has_a_new_era_and_no_other_is_touched() {
    let mut cluster = Cluster::with_replicas(1);
    cluster.apply(create("acme", TenantRules::default()));
    let before = cluster.map().tenants.clone();
    let rotate = |tenant, secret| Command::RotateSecret { tenant: TenantId(tenant), secret: [secret; 32] };
    let reply = cluster.apply(rotate(2, 77));
    assert_eq!(reply, CommandReply::TenantCleared { era: Era(2), epoch: Epoch(3) });
    let expected = Tenant { secret: [77; 32], era: Era(2), ..before[&TenantId(2)].clone() };
    let after = cluster.map();
    assert_eq!(after.tenants[&TenantId(2)], expected);
    assert_eq!(after.tenants[&TenantId(1)], before[&TenantId(1)]);
    assert!(refused(&cluster.apply(rotate(2, 77)), "is this one already"));
    let unknown = CommandReply::Rejected(WireError::UnknownTenant { tenant: TenantId(9) });
    assert_eq!(cluster.apply(rotate(9, 1)), unknown);
}

#[test]
fn a_tenant_that_goes_leaves_its_name_and_its_bytes_but_never_its_number() {
    let mut cluster = Cluster::with_replicas(1);
    let delete = |tenant| Command::DeleteTenant { tenant: TenantId(tenant) };
    cluster.apply(create("kept", TenantRules::default()));
    cluster.apply(create("gone", TenantRules::default()));
    cluster.apply(share(2, 3));
    assert!(refused(&cluster.apply(delete(1)), "as long as the cluster"));
    assert!(refused(&cluster.apply(delete(3)), "tenant kept shares the blocks of gone"));
    let alone = RulesChange { shares_with: Change::Reset, ..RulesChange::default() };
    cluster.apply(set(2, alone));
    cluster.apply(Command::SetEngine(Box::new(crate::engines::tests::engine("vllm-1"))));
    let followed = cluster.registry.engines()["vllm-1"].clone();
    cluster.apply(Command::SetEngine(Box::new(Engine { tenant: TenantId(3), ..followed.clone() })));
    assert!(refused(&cluster.apply(delete(3)), "engine vllm-1 is followed for tenant gone"));
    cluster.apply(Command::SetEngine(Box::new(followed)));
    let epoch = cluster.registry.epoch();
    assert_eq!(cluster.apply(delete(3)), CommandReply::TenantDeleted { epoch: epoch.next() });
    assert_eq!(cluster.map().tenants.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2]);
    let unknown = CommandReply::Rejected(WireError::UnknownTenant { tenant: TenantId(3) });
    assert_eq!(cluster.apply(delete(3)), unknown);
    // A coordinator that comes by a snapshot gives no number twice either.
    cluster.registry = Registry::restore(&cluster.registry.snapshot()).expect("sound");
    cluster.apply(create("gone", TenantRules::default()));
    assert_eq!(cluster.map().tenant("gone").map(|(id, _)| id), Some(TenantId(4)));
}

fn create(name: &str, rules: TenantRules) -> Command {
    Command::CreateTenant { name: name.into(), secret: [1; 32], rules }
}

fn set(tenant: u32, change: RulesChange) -> Command {
    Command::SetTenantRules { tenant: TenantId(tenant), change }
}

fn sharing(pool: u32) -> TenantRules {
    TenantRules { shares_with: Some(TenantId(pool)), ..TenantRules::default() }
}

fn share(tenant: u32, pool: u32) -> Command {
    set(tenant, RulesChange { shares_with: Change::Set(TenantId(pool)), ..RulesChange::default() })
}

#[test]
fn rules_of_a_tenant_change_one_by_one_and_a_change_to_the_same_is_none() {
    let mut cluster = Cluster::with_replicas(1);
    let quota = RulesChange { device_quota_bytes: Change::Set(1 << 30), ..RulesChange::default() };
    let strategy =
        RulesChange { strategy: Change::Set(kvhive_protocol::Strategy::Adaptive), ..RulesChange::default() };
    assert_eq!(cluster.apply(set(1, quota)), applied(2));
    assert_eq!(cluster.apply(set(1, strategy)), applied(3));
    assert_eq!(cluster.apply(set(1, strategy)), applied(3), "nothing changed");
    let rules = TenantRules {
        strategy: Some(kvhive_protocol::Strategy::Adaptive),
        device_quota_bytes: Some(1 << 30),
        ..TenantRules::default()
    };
    assert_eq!(cluster.map().tenants[&TenantId(1)].rules, rules);
    let reset = RulesChange { strategy: Change::Reset, ..RulesChange::default() };
    assert_eq!(cluster.apply(set(1, reset)), applied(4));
    assert_eq!(
        cluster.map().tenants[&TenantId(1)].rules,
        TenantRules { device_quota_bytes: Some(1 << 30), ..TenantRules::default() }
    );
    let unknown = cluster.apply(set(9, strategy));
    assert_eq!(unknown, CommandReply::Rejected(WireError::UnknownTenant { tenant: TenantId(9) }));
}

#[test]
fn a_tenant_weighs_what_was_said_last_and_nothing_of_its_own_while_it_shares() {
    let mut cluster = Cluster::with_replicas(1);
    let weigh = |tenant, weight| Command::WeighTenant {
        tenant: TenantId(tenant),
        change: RulesChange::default(),
        weight,
    };
    assert_eq!(weigh(1, Change::Keep).needs(), kvhive_protocol::Level::DAYS);
    assert!(matches!(
        cluster.apply(create("other", TenantRules::default())),
        CommandReply::TenantCreated { .. }
    ));
    let weights = |cluster: &Cluster| [1, 2].map(|tenant| cluster.map().weight(TenantId(tenant)));
    assert_eq!(weights(&cluster), [1, 1]);
    assert_eq!(cluster.apply(weigh(2, Change::Set(4))), applied(3));
    assert_eq!(cluster.apply(weigh(2, Change::Set(4))), applied(3), "nothing changed");
    assert_eq!(cluster.apply(weigh(1, Change::Set(1))), applied(3), "it weighed as much");
    assert_eq!((weights(&cluster), cluster.map().weights.len()), ([1, 4], 1));
    // With another rule in one change.
    let change = RulesChange { quantization_bits: Change::Set(8), ..RulesChange::default() };
    let both = Command::WeighTenant { tenant: TenantId(2), change, weight: Change::Set(5) };
    assert_eq!(cluster.apply(both), applied(4));
    assert_eq!(cluster.map().tenants[&TenantId(2)].rules.quantization_bits, Some(8));
    let reset = RulesChange { quantization_bits: Change::Reset, ..RulesChange::default() };
    assert_eq!((cluster.apply(set(2, reset)), weights(&cluster)), (applied(5), [1, 5]));
    for wrong in [0, 1001] {
        assert!(refused(&cluster.apply(weigh(2, Change::Set(wrong))), "allowed is 1 to 1000"));
    }
    let unknown = cluster.apply(weigh(9, Change::Set(2)));
    assert_eq!(unknown, CommandReply::Rejected(WireError::UnknownTenant { tenant: TenantId(9) }));

    assert_eq!((cluster.apply(share(2, 1)), weights(&cluster)), (applied(6), [1, 1]));
    assert!(refused(&cluster.apply(weigh(2, Change::Set(2))), "no weight: set it there"));
    assert_eq!(cluster.apply(weigh(1, Change::Set(9))), applied(7));
    let alone = RulesChange { shares_with: Change::Reset, ..RulesChange::default() };
    let alone = Command::WeighTenant { tenant: TenantId(2), change: alone, weight: Change::Set(1000) };
    assert_eq!((cluster.apply(alone), weights(&cluster)), (applied(8), [9, 1000]));
    let restored = Registry::restore(&cluster.registry.snapshot()).expect("it was written down");
    assert_eq!(restored.map().map(|map| map.weights.clone()), Some(cluster.map().weights.clone()));
    let gone = cluster.apply(Command::DeleteTenant { tenant: TenantId(2) });
    assert!(matches!(gone, CommandReply::TenantDeleted { .. }), "{gone:?}");
    assert_eq!((weights(&cluster), cluster.map().weights.len()), ([9, 1], 1));
}

#[test]
fn a_tenant_shares_with_one_that_shares_with_nobody_and_says_nothing_else() {
    let mut cluster = Cluster::with_replicas(1);
    let name = |reply: CommandReply| match reply {
        CommandReply::TenantCreated { tenant, .. } => tenant,
        other => panic!("{other:?}"),
    };
    let pool = name(cluster.apply(create("pool", TenantRules::default())));
    let user = name(cluster.apply(create("user", sharing(pool.0))));
    let other = name(cluster.apply(create("other", TenantRules::default())));
    assert_eq!(cluster.map().pool_of(user).map(|(id, _)| id), Some(pool));
    assert_eq!(cluster.map().pool_of(pool).map(|(id, _)| id), Some(pool));

    assert!(refused(&cluster.apply(create("third", sharing(user.0))), "tenant user shares another's"));
    assert!(refused(&cluster.apply(share(other.0, other.0)), "the tenant itself"));
    assert!(refused(&cluster.apply(share(pool.0, other.0)), "tenant user shares the blocks of this tenant"));
    assert_eq!(
        cluster.apply(share(other.0, 9)),
        CommandReply::Rejected(WireError::UnknownTenant { tenant: TenantId(9) })
    );
    let bits = RulesChange { quantization_bits: Change::Set(4), ..RulesChange::default() };
    assert!(refused(&cluster.apply(set(user.0, bits)), "set them on pool"));

    assert!(matches!(cluster.apply(share(other.0, pool.0)), CommandReply::Applied { .. }));
    let alone = RulesChange { shares_with: Change::Reset, ..bits };
    assert!(matches!(cluster.apply(set(user.0, alone)), CommandReply::Applied { .. }));
    assert_eq!(cluster.map().pool_of(user).map(|(id, _)| id), Some(user));
}

#[test]
fn a_tenant_that_begins_to_share_can_have_its_own_earlier_blocks_cleared_and_no_others() {
    let mut cluster = Cluster::with_replicas(1);
    cluster.apply(create("pool", TenantRules::default()));
    cluster.apply(create("user", TenantRules::default()));
    assert_eq!(cluster.apply(share(3, 2)), applied(4));
    let cleared = cluster.apply(Command::ClearTenant { tenant: TenantId(3) });
    assert_eq!(cleared, CommandReply::TenantCleared { era: Era(2), epoch: Epoch(5) });
    let eras: Vec<Era> = cluster.map().tenants.values().map(|tenant| tenant.era).collect();
    assert_eq!(eras, [Era(1), Era(1), Era(2)], "the pool's blocks stay");
}

#[test]
fn no_more_tenants_are_kept_apart_than_nodes_can_rank() {
    let mut cluster = Cluster::with_replicas(1);
    let apart = TenantRules { host_quota_bytes: Some(1), ..TenantRules::default() };
    for at in 0..crate::tenant_rules::MAX_TENANTS_APART {
        let reply = cluster.registry.apply(
            cluster.registry.applied() + 1,
            Proposal {
                request: RequestId { client: 2, sequence: at as u64 + 1 },
                command: create(&format!("t{at}"), apart),
            },
        );
        assert!(matches!(reply, CommandReply::TenantCreated { .. }), "{reply:?}");
    }
    assert!(refused(&cluster.apply(create("one-more", apart)), "at most 1024 may"));
    let bits = TenantRules { quantization_bits: Some(8), ..TenantRules::default() };
    assert!(matches!(cluster.apply(create("encoded", bits)), CommandReply::TenantCreated { .. }));
    // One of them may be ruled otherwise, as it is among them already.
    let more = RulesChange { host_quota_bytes: Change::Set(2), ..RulesChange::default() };
    assert!(matches!(cluster.apply(set(2, more)), CommandReply::Applied { .. }));
}
