//! Guests: blocks that a node has fetched from a replica for clients near it, and what never comes of them.

use super::asker::{Asker, Block, kept, key};
use super::coordinator::{FakeCoordinator, TENANT};
use super::{KIB, MIB, Setup, TOKEN, eventually};
use crate::{DeviceMemory, NodeHandle};
use kvhive_client::{Client, ClientConfig, StoreOptions};
use kvhive_protocol::data::{Ack, DataReply, DataRequest, Fetched, GuestRequest};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::{DeviceId, Epoch, Era, SLOTS, Slot, WireError};
use kvhive_wire::Fault;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As long as a node waits for anybody.
const LONG_MS: u32 = 2000;

fn setup() -> Setup {
    Setup { memory: DeviceMemory::Host, ..Setup::default() }
}

/// A coordinator and so many nodes, of which the first alone is a replica of every slot.
async fn one_replica_of(setup: &Setup, count: usize) -> (FakeCoordinator, Vec<NodeHandle>) {
    let (coordinator, nodes) = setup.several(count).await;
    only_the_first_is_a_replica(&coordinator, &nodes).await;
    (coordinator, nodes)
}

/// Has the first node be the only replica of every slot, and all know it.
pub(super) async fn only_the_first_is_a_replica(coordinator: &FakeCoordinator, nodes: &[NodeHandle]) {
    let first = DeviceId::new(nodes[0].member().expect("it is a member"), 0);
    coordinator.change(|map| map.slots = Arc::new(vec![ReplicaSet(vec![first]); usize::from(SLOTS)]));
    know(coordinator, nodes).await;
}

/// Waits until all nodes serve by the newest map.
pub(super) async fn know(coordinator: &FakeCoordinator, nodes: &[NodeHandle]) {
    let epoch = coordinator.epoch();
    for node in nodes {
        eventually("every node knows the newest map", || epoch_of(node) >= Some(epoch)).await;
    }
}

fn epoch_of(node: &NodeHandle) -> Option<Epoch> {
    node.plane.view.serving().map(|serving| serving.map.epoch)
}

impl Asker {
    fn guest_request(&self, numbers: &[u64], limit_ms: u32) -> DataRequest {
        let DataRequest::Fetch(fetch) = self.fetch_request(numbers) else { unreachable!("it is one") };
        DataRequest::Guest(Box::new(GuestRequest { fetch, limit_ms }))
    }

    /// Asks for guests; returns which came, and checks their bytes.
    pub(super) async fn visit(
        &mut self,
        numbers: &[u64],
        limit_ms: u32,
    ) -> Result<Vec<Option<Vec<u8>>>, WireError> {
        let request = self.guest_request(numbers, limit_ms);
        let found = match self.exchange(&request, &[]).await {
            Ok(DataReply::Fetched { blocks, .. }) => blocks,
            Err(Fault::Refused(error)) => return Err(error),
            other => panic!("it was answered by {other:?}"),
        };
        let mut blocks = Vec::new();
        for (number, one) in numbers.iter().zip(found) {
            let Fetched::Hit(header) = one else {
                blocks.push(None);
                continue;
            };
            assert_eq!(header.key, key(*number));
            let mut bytes = vec![0; header.payload_bytes as usize];
            let digest = self.connection.read_payload(&mut bytes).await.expect("the payload comes");
            assert_eq!(digest, header.digest);
            blocks.push(Some(bytes));
        }
        Ok(blocks)
    }
}

fn kept_bytes(node: &NodeHandle) -> (usize, u64) {
    let (kept, bytes, _) = node.plane.view.guests.as_ref().expect("it keeps some").kept();
    (kept, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_of_anothers_slot_is_fetched_once_and_is_no_block_of_this_node() {
    let (coordinator, nodes) = one_replica_of(&setup(), 2).await;
    let blocks = [Block::new(1, 64 * KIB), Block::new(2, KIB)];
    assert_eq!(nodes[0].ask().await.store(&blocks, Ack::All).await, Ok(vec![kept(1); 2]));
    let mut asker = nodes[1].ask().await;
    let all = Ok(blocks.iter().map(|block| Some(block.bytes.clone())).collect());
    for _ in 0..3 {
        assert_eq!(asker.visit(&[1, 2], LONG_MS).await, all);
    }
    let sent = nodes[0].counted(|counters| &counters.fetched_bytes);
    assert_eq!(sent, 65 * KIB as u64, "it has left the replica once");
    assert_eq!(nodes[1].counted(|counters| &counters.guests_fetched), 2);
    assert_eq!(nodes[1].counted(|counters| &counters.guests_here), 4);
    assert_eq!(kept_bytes(&nodes[1]), (2, 65 * KIB as u64));
    // No shard knows it: what replicas tell of themselves, it does not tell.
    let stats = nodes[1].shard_stats().await;
    assert_eq!((stats.blocks(), stats.hits, stats.stored), (0, 0, 0));
    assert!(asker.fetch(&[1]).await.is_err(), "it is no replica");
    assert!(asker.covered(&[1]).await.is_err(), "nor says that it covers anything");
    // When it becomes a replica, its device lacks the block until it is given it.
    let members: Vec<DeviceId> =
        nodes.iter().map(|node| DeviceId::new(node.member().expect("it is one"), 0)).collect();
    coordinator.change(|map| map.slots = Arc::new(vec![ReplicaSet(members); usize::from(SLOTS)]));
    know(&coordinator, &nodes).await;
    asker.epoch = coordinator.epoch();
    assert_eq!(asker.covered(&[1]).await, Ok(0));
    assert_eq!(kept_bytes(&nodes[1]), (0, 0));
    let refused = asker.visit(&[1], LONG_MS).await;
    assert!(matches!(refused, Err(WireError::StaleEpoch { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_are_read_out_of_a_replicas_memory_on_the_same_host() {
    let (_coordinator, nodes) = one_replica_of(&setup(), 2).await;
    // The second is too small to be worth a look.
    let blocks = [Block::new(1, 64 * KIB), Block::new(2, KIB)];
    assert_eq!(nodes[0].ask().await.store(&blocks, Ack::All).await, Ok(vec![kept(1); 2]));
    let mut asker = nodes[1].ask().await;
    let all = Ok(blocks.iter().map(|block| Some(block.bytes.clone())).collect());
    assert_eq!(asker.visit(&[1, 2], LONG_MS).await, all);
    let windows = nodes[1].plane.windows.clone().expect("Linux says which host this is");
    assert_eq!((windows.open(), windows.bytes()), (1, 64 * KIB as u64));
    assert_eq!(nodes[0].counted(|counters| &counters.shown_bytes), 64 * KIB as u64);
    nodes[0].settles("nobody reads", |stats| stats.readers == 0).await;
    let told = serde_json::to_value(nodes[0].plane.replicator.links.report()).expect("it is plain");
    let gone = |way: &str| {
        let ways = told[0]["transports"].as_array().cloned().unwrap_or_default();
        ways.iter().find(|one| one["transport"] == way).and_then(|one| one["bytes"].as_u64())
    };
    assert_eq!((gone("shared-memory"), gone("tcp")), (Some(64 * KIB as u64), Some(KIB as u64)), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_come_over_the_connection_where_nobody_may_look() {
    let hidden = Setup { share_memory: crate::ShareMemory::Off, ..setup() };
    let (_coordinator, nodes) = one_replica_of(&hidden, 2).await;
    let block = Block::new(1, 64 * KIB);
    assert_eq!(nodes[0].ask().await.store(std::slice::from_ref(&block), Ack::All).await, Ok(vec![kept(1)]));
    assert!(nodes[1].ask().await.visit(&[1], LONG_MS).await == Ok(vec![Some(block.bytes)]));
    assert_eq!(nodes[0].counted(|counters| &counters.shown_bytes), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_have_it_fetched_once() {
    let (_coordinator, nodes) = one_replica_of(&Setup { frame_bytes: MIB, ..setup() }, 2).await;
    let block = Block::new(1, MIB);
    let stored = nodes[0].ask().await.store(std::slice::from_ref(&block), Ack::All).await;
    assert_eq!(stored, Ok(vec![kept(1)]));
    let mut askers = Vec::new();
    for _ in 0..8 {
        askers.push(nodes[1].ask().await);
    }
    let visits = askers.iter_mut().map(|asker| asker.visit(&[1], LONG_MS));
    for came in futures_util::future::join_all(visits).await {
        assert!(came == Ok(vec![Some(block.bytes.clone())]));
    }
    assert_eq!(nodes[0].counted(|counters| &counters.fetched_bytes), MIB as u64);
    assert_eq!(nodes[1].counted(|counters| &counters.guests_fetched), 1);
    let shared = [nodes[1].counted(|one| &one.guests_here), nodes[1].counted(|one| &one.guests_joined)];
    assert_eq!(shared.iter().sum::<u64>(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_ends_guests_as_it_ends_blocks() {
    let (coordinator, nodes) = one_replica_of(&setup(), 2).await;
    let block = Block::new(1, KIB);
    assert_eq!(nodes[0].ask().await.store(&[block], Ack::All).await, Ok(vec![kept(1)]));
    let mut asker = nodes[1].ask().await;
    assert!(asker.visit(&[1], LONG_MS).await.expect("it is answered")[0].is_some());
    assert_eq!(kept_bytes(&nodes[1]), (1, KIB as u64));
    let (era, epoch) = coordinator.clear();
    know(&coordinator, &nodes).await;
    assert_eq!(kept_bytes(&nodes[1]), (0, 0));
    assert_eq!(asker.visit(&[1], LONG_MS).await, Ok(vec![None]));
    // What is stored under the key in the new era is another block.
    let mut writer = nodes[0].ask().await;
    writer.epoch = epoch;
    let anew = Block::in_era(1, 2 * KIB, era);
    assert_eq!(writer.store(std::slice::from_ref(&anew), Ack::All).await, Ok(vec![kept(1)]));
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match asker.visit(&[1], LONG_MS).await.expect("it is answered").remove(0) {
            Some(bytes) => break assert_eq!(bytes, anew.bytes),
            // That it was not there is remembered for a moment.
            None => assert!(Instant::now() < until, "it never came"),
        }
    }
    assert_ne!(era, Era(1));
    // And a tenant that is deleted has none.
    coordinator.delete_tenants();
    know(&coordinator, &nodes).await;
    assert_eq!(kept_bytes(&nodes[1]), (0, 0));
    let gone = asker.visit(&[1], LONG_MS).await;
    assert_eq!(gone, Err(WireError::UnknownTenant { tenant: TENANT }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_lease_gives_no_guests() {
    let (coordinator, nodes) = one_replica_of(&setup(), 2).await;
    assert_eq!(nodes[0].ask().await.store(&[Block::new(1, KIB)], Ack::All).await, Ok(vec![kept(1)]));
    let mut asker = nodes[1].ask().await;
    assert!(asker.visit(&[1], LONG_MS).await.expect("it is answered")[0].is_some());
    coordinator.be_silent(true);
    eventually("its lease has ended", || nodes[1].plane.view.check_serving_lease().is_err()).await;
    assert_eq!(asker.visit(&[1], LONG_MS).await, Err(WireError::NoLease));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_has_or_says_in_time_is_a_miss() {
    let (coordinator, mut nodes) = one_replica_of(&setup(), 3).await;
    let mut asker = nodes[2].ask().await;
    assert_eq!(asker.visit(&[1, 2], LONG_MS).await, Ok(vec![None; 2]));
    let asked = nodes[0].counted(|counters| &counters.fetches);
    assert_eq!(asked, 1, "both were asked for at once");
    // Their only replica goes without a word; whoever holds its place answers nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("it is bound").to_string();
    let first = nodes[0].member().expect("it is a member");
    coordinator.change(|map| {
        map.members.get_mut(&first).expect("it is there").data_address = address;
    });
    drop(nodes.remove(0));
    know(&coordinator, &nodes).await;
    let begun = Instant::now();
    assert_eq!(asker.visit(&[3], 50).await, Ok(vec![None]));
    assert!(begun.elapsed() < Duration::from_secs(2), "it did not wait for as long as it may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_be_asked_says_so() {
    let (_coordinator, nodes) = one_replica_of(&Setup { guest_bytes: 0, ..setup() }, 2).await;
    let mut asker = nodes[1].ask().await;
    let refused = asker.visit(&[1], LONG_MS).await;
    assert!(matches!(refused, Err(WireError::NotCarried { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_not_ask_for_guests() {
    let (_coordinator, nodes) = one_replica_of(&setup(), 2).await;
    assert_eq!(nodes[0].ask().await.store(&[Block::new(1, KIB)], Ack::All).await, Ok(vec![kept(1)]));
    let (address, member) = (nodes[1].data_address().to_string(), nodes[1].member().expect("it is a member"));
    let as_node = Asker::connect_as(&address, member, TOKEN, Role::Node).await;
    let refused = as_node.expect("the token is right").visit(&[1], LONG_MS).await;
    assert!(matches!(refused, Err(WireError::Forbidden { .. })), "{refused:?}");
    let fetched = nodes[0].counted(|counters| &counters.fetches);
    assert_eq!((fetched, kept_bytes(&nodes[1])), (0, (0, 0)), "nobody was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_of_a_slot_that_there_is_not_is_a_miss_and_nobody_is_asked() {
    let (_coordinator, nodes) = one_replica_of(&setup(), 2).await;
    let mut asker = nodes[1].ask().await;
    asker.slot = Slot(SLOTS);
    assert_eq!(asker.visit(&[1], LONG_MS).await, Ok(vec![None]));
    assert_eq!(nodes[0].counted(|counters| &counters.fetches), 0);
    assert_eq!(nodes[1].counted(|counters| &counters.guests_missed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_memory_is_taken_than_was_given() {
    let room = 256 * KIB;
    let (_coordinator, nodes) = one_replica_of(&Setup { guest_bytes: room, ..setup() }, 2).await;
    let blocks: Vec<Block> = (0..16).map(|number| Block::new(number, 64 * KIB)).collect();
    let numbers: Vec<u64> = (0..16).collect();
    let stored = nodes[0].ask().await.store(&blocks, Ack::All).await;
    assert_eq!(stored, Ok(vec![kept(1); 16]));
    let mut asker = nodes[1].ask().await;
    for at in numbers {
        let came = asker.visit(&[at], LONG_MS).await.expect("it is answered");
        assert!(came[0].as_ref() == Some(&blocks[at as usize].bytes));
        let (_, bytes, memory) = nodes[1].plane.view.guests.as_ref().expect("it keeps some").kept();
        assert!(bytes <= memory && memory <= room as u64, "{bytes} of {memory}");
    }
    assert_eq!(kept_bytes(&nodes[1]).0, 3);
    // More at once than there is room for: some are misses, and nothing breaks.
    let all: Vec<u64> = (0..16).collect();
    let came = asker.visit(&all, LONG_MS).await.expect("it is answered");
    assert!((1..=16).contains(&came.iter().flatten().count()));
}

/// A client near a node, and the blocks of one prefix.
async fn client(coordinator: &FakeCoordinator, near: Option<&str>) -> Client {
    let config = ClientConfig {
        near: near.map(str::to_owned),
        ..ClientConfig::new(vec![coordinator.address()], TOKEN.to_vec())
    };
    Client::connect(config).await.expect("the coordinator answers")
}

const BLOCKS: usize = 6;

fn layout() -> kvhive_protocol::Layout {
    kvhive_protocol::Layout {
        layers: 4,
        kv_heads: 2,
        head_dim: 64,
        tokens: 16,
        dtype: kvhive_protocol::Dtype::F16,
        order: kvhive_protocol::AxisOrder::LayersFirst,
    }
}

fn bytes(at: usize, len: u64) -> Vec<u8> {
    (0..len as usize).map(|byte| (byte * 7 + at * 31) as u8).collect()
}

/// Stores the prefix that [`reads`] reads.
async fn stores(client: &Client) {
    let blocks = client.namespace("default", "tiny@1", layout(), 0).expect("there is such a tenant");
    let prefix = blocks.keys(&(0..BLOCKS as u32 * 16).collect::<Vec<_>>());
    let whole: Vec<Vec<u8>> = (0..BLOCKS).map(|at| bytes(at, blocks.block_bytes())).collect();
    let whole: Vec<&[u8]> = whole.iter().map(|block| &block[..]).collect();
    let report = blocks.store(&prefix, 0..BLOCKS, &whole, StoreOptions::default()).await;
    assert_eq!(report.expect("it fits").acknowledged(), BLOCKS);
}

/// Reads all of it, and checks every byte.
async fn reads(client: &Client) {
    let blocks = client.namespace("default", "tiny@1", layout(), 0).expect("there is such a tenant");
    let prefix = blocks.keys(&(0..BLOCKS as u32 * 16).collect::<Vec<_>>());
    assert_eq!(blocks.match_prefix(&prefix).await.expect("it is short").covered, BLOCKS);
    let mut memory = vec![vec![0u8; blocks.block_bytes() as usize]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let report = blocks.fetch_into(&prefix, 0..BLOCKS, &mut targets).await.expect("it fits");
    assert_eq!(report.delivered(), BLOCKS, "{report:?}");
    for (at, block) in memory.iter().enumerate() {
        assert!(*block == bytes(at, blocks.block_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_near_a_node_have_a_block_leave_its_replica_once() {
    let (coordinator, nodes) = one_replica_of(&setup(), 3).await;
    let far = client(&coordinator, None).await;
    stores(&far).await;
    let sent = || nodes[0].counted(|counters| &counters.fetched_bytes);
    let one = {
        let before = sent();
        reads(&far).await;
        sent() - before
    };
    let name = |node: &NodeHandle| {
        let serving = node.plane.view.serving().expect("it serves");
        serving.map.members[&serving.member].name.clone()
    };
    let near = name(&nodes[1]);
    let before = sent();
    for _ in 0..4 {
        reads(&client(&coordinator, Some(&near)).await).await;
    }
    assert_eq!(sent() - before, one, "four clients, and each block has left once");
    let other = name(&nodes[2]);
    reads(&client(&coordinator, Some(&other)).await).await;
    assert_eq!(sent() - before, 2 * one, "another node has none of these");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_near_node_gives_nothing_replicas_are_asked_in_the_same_call() {
    // One that keeps none, and one that is gone.
    for (guest_bytes, stays) in [(0, true), (4 * MIB, false)] {
        let (coordinator, mut nodes) = one_replica_of(&Setup { guest_bytes, ..setup() }, 2).await;
        stores(&client(&coordinator, None).await).await;
        let serving = nodes[1].plane.view.serving().expect("it serves");
        let near = serving.map.members[&serving.member].name.clone();
        let client = client(&coordinator, Some(&near)).await;
        if !stays {
            drop(nodes.remove(1));
        }
        reads(&client).await;
        reads(&client).await;
    }
}
