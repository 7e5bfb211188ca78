//! Tenants and their rules: whose keys a namespace makes, whose blocks it names, how it stores them.

use crate::fakes::{Cluster, LAYOUT, TENANT, device};
use kvhive_client::{Client, NamespaceClient, StoreOptions};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::DataRequest;
use kvhive_protocol::{BlockKey, Era, Layout, TenantId, TenantRules};
use std::collections::BTreeSet;

const NONE: TenantRules = TenantRules {
    strategy: None,
    device_quota_bytes: None,
    host_quota_bytes: None,
    disk_quota_bytes: None,
    quantization_bits: None,
    compression_per_mille: None,
    shares_with: None,
};

fn namespace(client: &Client, tenant: &str) -> NamespaceClient {
    client.namespace(tenant, "model@1", LAYOUT, 0).expect("the tenant is there")
}

fn keys(client: &Client, tenant: &str) -> BTreeSet<BlockKey> {
    let tokens: Vec<u32> = (0..64 * LAYOUT.tokens).collect();
    namespace(client, tenant).keys(&tokens).keys().iter().copied().collect()
}

#[tokio::test]
async fn tenants_that_share_nothing_have_no_key_in_common_for_the_same_tokens() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    client.create_tenant("acme").await.expect("the name is free");
    client.create_tenant("rival").await.expect("the name is free");
    let sets = ["default", "acme", "rival"].map(|tenant| keys(&client, tenant));
    assert!(sets.iter().all(|set| set.len() == 64));
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert!(sets[one].is_disjoint(&sets[other]), "{one} and {other}");
    }
}

#[tokio::test]
async fn a_tenant_that_shares_names_the_others_blocks_as_the_other_does() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let sharing = TenantRules { shares_with: Some(TENANT), ..NONE };
    client.create_tenant_with("guest", sharing).await.expect("the name is free");
    assert_eq!(keys(&client, "guest"), keys(&client, "default"));

    let guest = namespace(&client, "guest");
    let prefix = guest.keys(&[7; 16]);
    let bytes = vec![1; guest.block_bytes() as usize];
    let report = guest.store(&prefix, 0..1, &[&bytes], StoreOptions::default()).await;
    assert_eq!(report.expect("range and block fit").acknowledged(), 1);
    let matched = namespace(&client, "default").match_prefix(&prefix).await.expect("the node answers");
    assert_eq!(matched.covered, 1, "the owner finds what its guest has stored");
    for request in cluster.nodes[0].requests() {
        let tenant = match request {
            DataRequest::Match(request) => request.tenant,
            DataRequest::Release(request) => request.tenant,
            DataRequest::Strategies(_)
            | DataRequest::Watch(_)
            | DataRequest::Survey(_)
            | DataRequest::Explain(_)
            | DataRequest::Trace(_)
            | DataRequest::Recall(_)
            | DataRequest::Names(_)
            | DataRequest::Share(_)
            | DataRequest::Look(_)
            | DataRequest::Done(_)
            | DataRequest::Carry(_) => panic!("nobody asked for these"),
            DataRequest::Fetch(request) => request.tenant,
            DataRequest::Store(request) => request.tenant,
        };
        assert_eq!(tenant, TENANT);
    }
}

#[tokio::test]
async fn a_namespace_goes_on_with_the_pool_that_it_was_opened_with() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    client.create_tenant("acme").await.expect("the name is free");
    let before = namespace(&client, "acme").keys(&[7; 16]);
    let open = namespace(&client, "acme");
    cluster.coordinator.change(|map| {
        let acme = map.tenants.get_mut(&TenantId(2)).expect("it was made");
        acme.rules.shares_with = Some(TENANT);
    });
    client.refresh().await.expect("the coordinator answers");
    assert_eq!(open.keys(&[7; 16]).keys(), before.keys());
    assert_eq!(
        namespace(&client, "acme").keys(&[7; 16]).keys(),
        namespace(&client, "default").keys(&[7; 16]).keys()
    );
}

#[tokio::test]
async fn an_open_namespace_goes_on_by_a_new_secret_and_stores_nothing_under_old_keys() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let open = namespace(&client, "default");
    let before = open.keys(&[7; 16]);
    cluster.coordinator.change(|map| {
        let tenant = map.tenants.get_mut(&TENANT).expect("it is there");
        tenant.secret = [99; 32];
        tenant.era = tenant.era.next();
    });
    client.refresh().await.expect("the coordinator answers");
    let after = open.keys(&[7; 16]);
    assert_ne!(after.keys(), before.keys());
    assert_eq!(after.keys(), namespace(&client, "default").keys(&[7; 16]).keys());
    let bytes = vec![1; open.block_bytes() as usize];
    for prefix in [&before, &after] {
        let report = open.store(prefix, 0..1, &[&bytes], StoreOptions::default()).await;
        report.expect("range and block fit");
    }
    let stores = cluster.nodes[0].requests().into_iter().flat_map(|request| match request {
        DataRequest::Store(request) => request.blocks,
        _ => Vec::new(),
    });
    let eras: Vec<Era> = stores.map(|block| block.header.era).collect();
    assert_eq!(eras, [Era(0), Era(2)], "a node refuses a block of an era that is not its tenant's");
}

/// The codecs of the blocks that were stored, in order.
fn stored(cluster: &Cluster) -> Vec<Codec> {
    stored_on(cluster, 0)
}

/// Those that one node was sent.
fn stored_on(cluster: &Cluster, node: usize) -> Vec<Codec> {
    let stores = cluster.nodes[node].requests().into_iter().filter_map(|request| match request {
        DataRequest::Store(request) => Some(request.blocks),
        _ => None,
    });
    stores.flatten().map(|block| block.header.codec).collect()
}

#[tokio::test]
async fn a_store_that_names_no_codec_takes_the_one_of_its_tenants_rules_of_that_time() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let layout = Layout { head_dim: 64, ..LAYOUT };
    let namespace = client.namespace("default", "model@1", layout, 0).expect("the tenant is there");
    let bytes = vec![0; namespace.block_bytes() as usize];
    let rules = [
        NONE,
        TenantRules { quantization_bits: Some(4), ..NONE },
        TenantRules { compression_per_mille: Some(800), ..NONE },
        TenantRules { quantization_bits: Some(16), compression_per_mille: Some(300), ..NONE },
    ];
    for (at, rules) in (0u32..).zip(rules) {
        cluster.coordinator.change(|map| map.tenants.get_mut(&TENANT).expect("it is there").rules = rules);
        client.refresh().await.expect("the coordinator answers");
        for (more, codec) in [(0, None), (100, Some(Codec::Int8))] {
            let prefix = namespace.keys(&[at + more; 16]);
            let options = StoreOptions { codec, ..StoreOptions::default() };
            let report = namespace.store(&prefix, 0..1, &[&bytes], options).await;
            assert_eq!(report.expect("range and block fit").acknowledged(), 1);
        }
    }
    let by_rules: Vec<Codec> = stored(&cluster).into_iter().step_by(2).collect();
    assert_eq!(by_rules, [Codec::Raw, Codec::Int4, Codec::Lossless, Codec::Raw]);
    assert!(stored(&cluster).into_iter().skip(1).step_by(2).all(|codec| codec == Codec::Int8));
}

#[tokio::test]
async fn a_tenant_that_asks_for_nothing_is_stored_as_the_node_of_each_block_stores() {
    let cluster = Cluster::placed(2, |slot| vec![device(usize::from(slot.0 % 2))]).await;
    let client = cluster.client().await;
    let layout = Layout { head_dim: 64, ..LAYOUT };
    let namespace = client.namespace("default", "model@1", layout, 0).expect("the tenant is there");
    let bytes = vec![0; namespace.block_bytes() as usize];
    cluster.coordinator.change(|map| {
        map.members.get_mut(&device(1).member).expect("it is there").codec = Codec::Lossless;
    });
    client.refresh().await.expect("the coordinator answers");
    // Over more segments than one: each node is the first to hold some.
    let tokens: Vec<u32> = (0..64 * LAYOUT.tokens).collect();
    let prefix = namespace.keys(&tokens);
    let report = namespace.store(&prefix, 0..64, &[&bytes[..]; 64], StoreOptions::default()).await;
    assert_eq!(report.expect("range and blocks fit").acknowledged(), 64);
    for (at, codec) in [(0, Codec::Raw), (1, Codec::Lossless)] {
        let stored = stored_on(&cluster, at);
        assert!(!stored.is_empty() && stored.iter().all(|one| *one == codec), "node {at}: {stored:?}");
    }
    let whole = TenantRules { quantization_bits: Some(16), ..NONE };
    cluster.coordinator.change(|map| map.tenants.get_mut(&TENANT).expect("it is there").rules = whole);
    client.refresh().await.expect("the coordinator answers");
    let before = stored_on(&cluster, 1).len();
    let tokens: Vec<u32> = (1000..1000 + 64 * LAYOUT.tokens).collect();
    let prefix = namespace.keys(&tokens);
    let report = namespace.store(&prefix, 0..64, &[&bytes[..]; 64], StoreOptions::default()).await;
    assert_eq!(report.expect("range and blocks fit").acknowledged(), 64);
    let since = &stored_on(&cluster, 1)[before..];
    assert!(!since.is_empty() && since.iter().all(|one| *one == Codec::Raw), "what a tenant says wins");
}
