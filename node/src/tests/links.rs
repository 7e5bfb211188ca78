//! By which way blocks get from device to device.

use super::asker::{Block, kept};
use super::gpu::{hang, is_real, on_some_gpu, reach_each_other, release};
use super::moves::place;
use super::{KIB, Setup, eventually};
use crate::NodeHandle;
use crate::actors::core::DeviceMessage;
use kvhive_cache::{ShardStats, Tier};
use kvhive_gpu::cuda::Patience;
use kvhive_protocol::data::Ack;
use kvhive_protocol::{DeviceId, WireError};
use serde_json::Value;
use std::time::Duration;

fn links(node: &NodeHandle) -> Vec<Value> {
    let report = serde_json::to_value(node.plane.replicator.links.report()).expect("it is plain");
    report.as_array().expect("a list").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_between_devices_of_one_node_without_a_socket() {
    let setup = Setup { devices: 2, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let member = node.member().expect("it is a member");
    let [old, new] = [0, 1].map(|index| DeviceId::new(member, index));
    let mut client = node.ask().await;
    let slot = client.slot;
    place(&coordinator, slot, &[old], &[]);
    eventually("the node serves by the map", || coordinator.has_confirmed(member, coordinator.epoch())).await;
    let blocks: Vec<Block> = (0..20).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 20]));
    let connections = node.counted(|counters| &counters.connections);

    place(&coordinator, slot, &[old, new], &[new]);
    eventually("it is given", || coordinator.is_filled(slot, new)).await;
    place(&coordinator, slot, &[new], &[]);
    eventually("the node serves by the map", || coordinator.has_confirmed(member, coordinator.epoch())).await;
    let numbers: Vec<u64> = (0..20).collect();
    assert!(matches!(
        client.covered(&numbers).await,
        Err(WireError::WrongDevice { .. } | WireError::StaleEpoch { .. })
    ));
    let mut after = node.ask().await;
    after.device = new;
    let expected: Vec<_> = blocks.into_iter().map(|block| Some(block.bytes)).collect();
    assert!(after.fetch(&numbers).await == Ok(expected));
    assert_eq!(node.counted(|counters| &counters.moved_blocks), 20);

    let told = links(&node);
    let [link] = &told[..] else { panic!("one pair of devices: {told:?}") };
    assert_eq!((&link["source"], &link["target"]), (&old.to_string().into(), &new.to_string().into()));
    assert_eq!(
        (&link["transport"], &link["reason"]),
        (&"in-process".into(), &"both ends are one process".into())
    );
    assert_eq!(link["transports"][0]["bytes"], 20 * 4 * KIB);
    // The asker's, and the one by which it was asked which blocks it lacks.
    assert!(node.counted(|counters| &counters.connections) <= connections + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_between_gpus_of_one_node_goes_from_frame_to_frame() {
    // Within one GPU too; by the host's memory where two do not reach each other.
    for (gpus_apart, reach) in [(false, true), (true, true), (true, false)] {
        if gpus_apart && is_real() {
            println!("SKIPPED: this machine may have one GPU");
            continue;
        }
        if !is_real() {
            reach_each_other(reach);
        }
        let (setup, _) = on_some_gpu();
        let setup = Setup { devices: 2, gpus_apart, host_frames: 32, ..setup };
        let (coordinator, node) = setup.one().await;
        let member = node.member().expect("it is a member");
        let [old, new] = [0, 1].map(|index| DeviceId::new(member, index));
        let mut client = node.ask().await;
        let slot = client.slot;
        place(&coordinator, slot, &[old, new], &[]);
        eventually("the node serves by it", || coordinator.has_confirmed(member, coordinator.epoch())).await;
        let blocks: Vec<Block> = (0..8).map(|number| Block::new(number, 64 * KIB)).collect();
        assert_eq!(client.store(&blocks, Ack::All).await, Ok(vec![kept(2); 8]));
        let bytes = 8 * 64 * KIB as u64;
        let by_peers = node.counted(|counters| &counters.peer_bytes);
        assert_eq!(by_peers, if reach { bytes } else { 0 }, "apart: {gpus_apart}");
        let mut other = node.ask().await;
        other.device = new;
        let numbers: Vec<u64> = (0..8).collect();
        let expected: Vec<_> = blocks.iter().map(|block| Some(block.bytes.clone())).collect();
        assert!(other.fetch(&numbers).await == Ok(expected));
        assert_eq!(links(&node)[0]["transports"][0]["bytes"], bytes);
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
        assert_eq!(node.counted(|counters| &counters.replication_failures), 0);
        assert_eq!(node.counted(|counters| &counters.stores), 2, "the client's and the copy's");
        let there = shard_stats_of(&node, 1).await;
        assert_eq!((there.stored, there.abandoned), (8, 0), "no frame is taken in vain: {there:?}");
    }
}

async fn shard_stats_of(node: &NodeHandle, device: usize) -> ShardStats {
    let load = |reply| DeviceMessage::Load { reply };
    let (_, stats) = node.devices[device].ask(Duration::from_secs(5), load).await.expect("it answers");
    stats
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_from_frame_to_frame_goes_by_the_hosts_memory_and_its_frame_is_nobodys_meanwhile() {
    if is_real() {
        return println!("SKIPPED: no real GPU hangs when it is told to");
    }
    let patience = Patience { copy: Duration::from_millis(200), stall: Duration::from_secs(3600) };
    let (setup, _) = on_some_gpu();
    let setup = Setup { devices: 2, gpus_apart: true, device_frames: 8, patience, ..setup };
    let (coordinator, node) = setup.one().await;
    let member = node.member().expect("it is a member");
    let [old, new] = [0, 1].map(|index| DeviceId::new(member, index));
    let mut client = node.ask().await;
    place(&coordinator, client.slot, &[old, new], &[]);
    eventually("the node serves by it", || coordinator.has_confirmed(member, coordinator.epoch())).await;
    hang("cuMemcpyDtoDAsync_v2", 1);
    let block = Block::new(1, 64 * KIB);
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::All).await, Ok(vec![kept(2)]));
    assert_eq!(node.counted(|counters| &counters.peer_bytes), 0);
    let there = shard_stats_of(&node, 1).await;
    assert_eq!((there.given_up, there.filling, there.device.blocks), (1, 0, 1));
    assert_eq!(node.inside.memories[1].free_frames(Tier::Device), 6, "the copy has one");
    let mut other = node.ask().await;
    other.device = new;
    assert!(other.fetch(&[1]).await == Ok(vec![Some(block.bytes)]));
    release();
    eventually("the copy lets go of its frame", || node.inside.memories[1].free_frames(Tier::Device) == 7)
        .await;
    for _ in 0..1000 {
        if shard_stats_of(&node, 1).await.given_up == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("its write never ended: {:?}", shard_stats_of(&node, 1).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_to_another_node_are_measured_and_forgotten_when_it_starts_anew() {
    let setup = Setup { share_memory: crate::ShareMemory::Off, ..Setup::default() };
    let (coordinator, mut nodes) = setup.several(2).await;
    let mut client = nodes[0].ask().await;
    let blocks: Vec<Block> = (0..8).map(|number| Block::new(number, 64 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::All).await, Ok(vec![kept(2); 8]));
    let told = links(&nodes[0]);
    let [link] = &told[..] else { panic!("one pair of devices: {told:?}") };
    assert_eq!((&link["transport"], &link["node"]), (&"tcp".into(), &"node-1".into()));
    let rate = &link["transports"][0]["rates"][0];
    assert!(rate["bytes_per_s"].as_u64() > Some(0) && rate["samples"] == 1, "{link}");

    let name =
        nodes[1].member().map(|_| link["node"].as_str().expect("a name").to_owned()).expect("it is one");
    nodes.remove(1).shutdown(std::time::Duration::from_secs(10));
    let again = setup.start(&name, &coordinator);
    eventually("it serves again", || again.is_serving()).await;
    let epoch = coordinator.epoch();
    let member = nodes[0].member().expect("it is a member");
    eventually("the other knows", || coordinator.has_confirmed(member, epoch)).await;
    eventually("what was known of it is forgotten", || links(&nodes[0]).is_empty()).await;
}
