//! Tenants with rules of their own on one node: what a change of rules leaves untouched, what a promise is worth.

use super::asker::{Asker, Block, kept};
use super::coordinator::{FakeCoordinator, TENANT};
use super::proxy::{Proxy, Then};
use super::{KIB, MIB, Setup, eventually};
use crate::NodeHandle;
use kvhive_protocol::data::{Accept, Ack};
use kvhive_protocol::load::TenantLoad;
use kvhive_protocol::map::Tenant;
use kvhive_protocol::{BlockHeader, Era, Layout, Strategy, TenantId, TenantRules};

const OTHER: TenantId = TenantId(2);
const FRAME: usize = 64 * KIB;

fn add_other(coordinator: &FakeCoordinator, rules: TenantRules) {
    let other = Tenant { name: "other".into(), era: Era(1), secret: [8; 32], rules };
    coordinator.change(|map| drop(map.tenants.insert(OTHER, other)));
}

fn set_rules(coordinator: &FakeCoordinator, tenant: TenantId, rules: TenantRules) {
    coordinator.change(|map| map.tenants.get_mut(&tenant).expect("it is there").rules = rules);
}

/// Waits until the node has told the coordinator that it serves by the map of now.
async fn has_adopted(coordinator: &FakeCoordinator, node: &NodeHandle) {
    let (member, epoch) = (node.member().expect("it is a member"), coordinator.epoch());
    eventually("the node serves by the new map", || coordinator.has_confirmed(member, epoch)).await;
}

fn block_of(tenant: TenantId, number: u64) -> Block {
    let mut block = Block::new(number, FRAME);
    block.header.tenant = tenant;
    block
}

async fn store(client: &mut Asker, tenant: TenantId, number: u64) {
    store_sized(client, tenant, number, FRAME).await;
}

async fn store_sized(client: &mut Asker, tenant: TenantId, number: u64, len: usize) {
    client.tenant = tenant;
    // As engines do: what is stored was looked for before.
    assert_eq!(client.covered(&[number]).await, Ok(0));
    let mut block = Block::new(number, len);
    block.header.tenant = tenant;
    assert_eq!(client.store(&[block], Ack::Primary).await, Ok(vec![kept(1)]));
}

/// Says how many of these the node has.
async fn present(client: &mut Asker, tenant: TenantId, numbers: std::ops::Range<u64>) -> usize {
    client.tenant = tenant;
    let mut count = 0;
    for number in numbers {
        let found = client.fetch(&[number]).await.expect("the node serves");
        if let Some(bytes) = &found[0] {
            assert!(*bytes == block_of(tenant, number).bytes, "block {number} of {tenant}");
            count += 1;
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_block_is_lost_when_a_tenants_strategy_changes_while_the_node_serves() {
    let setup = Setup { device_frames: 24, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    add_other(&coordinator, TenantRules::default());
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..10 {
        store(&mut client, TENANT, number).await;
        store(&mut client, OTHER, 100 + number).await;
    }
    for strategy in Strategy::ALL.map(Some).into_iter().chain([None]) {
        set_rules(&coordinator, OTHER, TenantRules { strategy, ..TenantRules::default() });
        has_adopted(&coordinator, &node).await;
        assert_eq!(present(&mut client, TENANT, 0..10).await, 10, "{strategy:?}");
        assert_eq!(present(&mut client, OTHER, 100..110).await, 10, "{strategy:?}");
    }
    let stats = node.shard_stats().await;
    assert_eq!((stats.evicted, stats.blocks()), (0, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_tenant_leaves_another_what_it_was_promised() {
    let setup = Setup { device_frames: 16, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    // Half of the node.
    let promised = TenantRules { device_quota_bytes: Some(8 * FRAME as u64), ..TenantRules::default() };
    add_other(&coordinator, promised);
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..8 {
        store(&mut client, OTHER, 100 + number).await;
    }
    for number in 0..100 {
        store(&mut client, TENANT, number).await;
    }
    assert_eq!(present(&mut client, OTHER, 100..108).await, 8);
    assert_eq!(present(&mut client, TENANT, 92..100).await, 8, "the rest is the flood's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promised_room_that_is_idle_is_lent_and_taken_back_when_it_is_needed() {
    let setup = Setup { device_frames: 16, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let promised = TenantRules { device_quota_bytes: Some(8 * FRAME as u64), ..TenantRules::default() };
    add_other(&coordinator, promised);
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..16 {
        store(&mut client, TENANT, number).await;
    }
    assert_eq!(present(&mut client, TENANT, 0..16).await, 16, "nobody else wanted the room");
    for number in 0..24 {
        store(&mut client, OTHER, 100 + number).await;
    }
    assert_eq!(
        present(&mut client, OTHER, 100..124).await,
        8,
        "it got back what it was promised, and no more"
    );
    assert_eq!(present(&mut client, TENANT, 0..16).await, 8);
    // A promise that ends is nobody's.
    set_rules(&coordinator, OTHER, TenantRules::default());
    has_adopted(&coordinator, &node).await;
    for number in 16..40 {
        store(&mut client, TENANT, number).await;
    }
    assert_eq!(present(&mut client, OTHER, 100..124).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_leaves_another_what_it_was_promised_of_the_disk_that_the_node_registered() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Some((folder.path().to_owned(), 32));
    let (coordinator, node) = Setup { device_frames: 8, disk, ..Setup::default() }.one().await;
    let described = coordinator.devices(node.member().expect("it is a member"));
    assert_eq!(described[0].disk_bytes, 32 * FRAME as u64);
    let promised = TenantRules { disk_quota_bytes: Some(16 * FRAME as u64), ..TenantRules::default() };
    add_other(&coordinator, promised);
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    let come_to_rest = || node.settles("memory has room", |stats| stats.device.used_bytes < 8 * FRAME as u64);
    for number in 0..20 {
        store(&mut client, OTHER, 100 + number).await;
        come_to_rest().await;
    }
    for number in 0..80 {
        store(&mut client, TENANT, number).await;
        come_to_rest().await;
    }
    let left = present(&mut client, OTHER, 100..120).await;
    assert!(left >= 16, "{left} are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_with_a_strategy_and_no_promise_competes_like_anybody_else() {
    let setup = Setup { device_frames: 16, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    add_other(&coordinator, TenantRules { strategy: Some(Strategy::Sieve), ..TenantRules::default() });
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..16 {
        store(&mut client, TENANT, number).await;
    }
    for number in 100..112 {
        store(&mut client, OTHER, number).await;
    }
    assert_eq!(present(&mut client, OTHER, 100..112).await, 12, "what was there before is older");
    for number in 16..32 {
        store(&mut client, TENANT, number).await;
    }
    assert_eq!(present(&mut client, OTHER, 100..112).await, 0, "and so is this by now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_tenant_holds_is_to_another_as_if_nobody_held_it() {
    let (coordinator, node) = Setup::default().one().await;
    add_other(&coordinator, TenantRules::default());
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    store(&mut client, TENANT, 1).await;
    // Key 1 is the first tenant's, key 2 nobody's.
    client.tenant = OTHER;
    assert_eq!((client.covered(&[1]).await, client.covered(&[2]).await), (Ok(0), Ok(0)));
    assert_eq!(client.fetch(&[1, 2]).await, Ok(vec![None, None]));
    let own = [1, 2].map(|number| {
        let mut block = Block::new(number + 50, FRAME);
        (block.header.key, block.header.tenant) = (Block::new(number, 1).header.key, OTHER);
        block
    });
    assert_eq!(client.store(&own, Ack::Primary).await, Ok(vec![kept(1); 2]));
    let found = client.fetch(&[1, 2]).await;
    assert!(found == Ok(own.map(|block| Some(block.bytes)).to_vec()), "each has its own bytes under the key");
    assert_eq!(present(&mut client, TENANT, 1..2).await, 1);
}

/// What a client is told about one key, by each message, until its own block is there.
async fn told(client: &mut Asker, number: u64) -> Vec<String> {
    let mut own = Block::new(number + 1000, MIB);
    own.header.key = Block::new(number, 1).header.key;
    let mut damaged = own.clone();
    damaged.bytes[7] ^= 1;
    let mut of_old_era = own.clone();
    of_old_era.header.era = Era(7);
    own.header.tenant = client.tenant;
    (damaged.header.tenant, of_old_era.header.tenant) = (client.tenant, client.tenant);
    let large =
        Block { bytes: vec![0; 2 * MIB], header: BlockHeader { payload_bytes: 2 << 20, ..own.header } };
    let mut told = Vec::new();
    told.push(format!("{:?}", client.covered(&[number]).await));
    told.push(format!("{:?}", client.fetch(&[number]).await));
    client.accept = Accept::Raw(Layout::opaque(MIB as u32, 16));
    told.push(format!("{:?}", client.fetch(&[number]).await));
    client.accept = Accept::Stored;
    for block in [&of_old_era, &damaged, &large] {
        told.push(format!("{:?}", client.store(std::slice::from_ref(block), Ack::All).await));
    }
    // A child of it, under a key that nobody has.
    let mut child = Block::new(number + 2000, MIB);
    child.header.tenant = client.tenant;
    told.push(format!("{:?}", client.store_after(&child, own.header.key).await));
    told.push(format!("{:?}", client.store(std::slice::from_ref(&own), Ack::All).await));
    told.push(format!("{:?}", client.store(std::slice::from_ref(&own), Ack::All).await));
    told.push(format!("{:?}", client.covered(&[number]).await));
    told.push(format!("{}", client.fetch(&[number]).await == Ok(vec![Some(own.bytes)])));
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_answered_alike_whether_another_tenant_holds_a_key_or_nobody_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Some((folder.path().to_owned(), 24));
    let setup = Setup { frame_bytes: MIB, device_frames: 16, disk, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    // Each has half of it all, so that the answers to one are not about its room.
    let half = TenantRules {
        device_quota_bytes: Some(8 << 20),
        disk_quota_bytes: Some(12 << 20),
        ..TenantRules::default()
    };
    add_other(&coordinator, half);
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..60 {
        store_sized(&mut client, TENANT, number, MIB).await;
        node.settles("memory has room", |stats| stats.device.used_bytes < 16 << 20).await;
    }
    let stats = node.shard_stats().await;
    assert!(stats.disk.blocks > 16 && stats.evicted > 16, "{stats:?}");
    // One that is being written all the while.
    let proxy = Proxy::before(node.data_address(), 512 * KIB, Then::Hold).await;
    let mut writer = Asker::connect(&proxy.address(), node.member().expect("it is a member"))
        .await
        .expect("the proxy passes it on");
    let writing = tokio::spawn(async move { writer.store(&[Block::new(70, MIB)], Ack::Primary).await });
    node.settles("the write is under way", |stats| stats.filling == 1).await;
    client.tenant = TENANT;
    let held = client.fetch_whole(&[0, 30, 59]).await.expect("the node serves");
    assert_eq!(held.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, true]);
    client.tenant = OTHER;
    let nobodys = told(&mut client, 500).await;
    assert!(nobodys.last().is_some_and(|own| own == "true"), "{nobodys:?}");
    for (number, what) in [(0, "gone"), (30, "on disk"), (59, "in memory"), (70, "being written")] {
        assert_eq!(told(&mut client, number).await, nobodys, "{what}");
    }
    proxy.release();
    assert_eq!(writing.await.expect("the store ends"), Ok(vec![kept(1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_interrupted_is_gone_on_with_for_each_tenant_by_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (coordinator, node) = Setup::default().one().await;
    add_other(&coordinator, TenantRules::default());
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    store(&mut client, TENANT, 1).await;
    node.persist(&path, |_| {}).expect("it is written");
    // As if it had been cut off; meanwhile another tenant has stored a block under the same key.
    std::fs::rename(&path, folder.path().join("snapshot.partial")).expect("movable");
    store(&mut client, OTHER, 1).await;
    assert_eq!(node.persist(&path, |_| {}).expect("it is written").blocks, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policies_of_tenants_with_rules_are_memory_that_is_counted() {
    let setup = Setup { device_frames: 16, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let figures = async || {
        let page = super::life::get(node.metrics_address(), "/metrics").await;
        ["memory_configured", "tenant_policies"].map(|name| {
            let name = format!("kvhive_node_{name}_bytes ");
            let line = page.lines().find_map(|line| line.strip_prefix(&name)).expect("it is a figure");
            line.parse::<f64>().expect("a number")
        })
    };
    let [without, none] = figures().await;
    add_other(&coordinator, TenantRules { strategy: Some(Strategy::Adaptive), ..TenantRules::default() });
    has_adopted(&coordinator, &node).await;
    store(&mut node.ask().await, OTHER, 1).await;
    let [with, own] = figures().await;
    assert_eq!((none, with), (0.0, without + own));
    assert!(own > 1000.0, "{own}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_for_each_tenant_is_counted_and_told() {
    let setup = Setup { device_frames: 4, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    add_other(&coordinator, TenantRules::default());
    has_adopted(&coordinator, &node).await;
    let mut client = node.ask().await;
    for number in 0..3 {
        store(&mut client, TENANT, number).await;
    }
    for number in 100..102 {
        store(&mut client, OTHER, number).await;
    }
    assert_eq!(present(&mut client, OTHER, 99..102).await, 2);
    let expected = |blocks, stored, evicted, hits| TenantLoad {
        blocks: [blocks, 0, 0],
        used_bytes: [blocks * FRAME as u64, 0, 0],
        matched_keys: stored,
        fetched_blocks: hits,
        missed_blocks: u64::from(hits > 0),
        stored_blocks: stored,
        evicted_blocks: evicted,
        stored_bytes: blocks * FRAME as u64,
        raw_bytes: blocks * FRAME as u64,
        ..TenantLoad::default()
    };
    let reported = [(TENANT, expected(2, 3, 1, 0)), (OTHER, expected(2, 2, 0, 2))];
    eventually("a heartbeat says so", || coordinator.tenants() == reported).await;
    let metrics = super::life::get(node.metrics_address(), "/metrics").await;
    for line in [
        "kvhive_node_tenant_used_bytes{tenant=\"other\",tier=\"device\"} 131072",
        "kvhive_node_tenant_hits_total{tenant=\"other\"} 2",
        "kvhive_node_tenant_misses_total{tenant=\"other\"} 1",
        "kvhive_node_tenant_evicted_blocks_total{tenant=\"default\"} 1",
        "kvhive_node_tenant_stored_blocks_total{tenant=\"default\"} 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}
