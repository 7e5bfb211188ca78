//! Slots that move from GPU to GPU by NCCL, and nodes that are emptied so.

use super::super::asker::{Asker, kept};
use super::super::coordinator::FakeCoordinator;
use super::super::guests::know;
use super::super::moves::place;
use super::super::{KIB, Setup, eventually};
use super::{
    BOTH, NodeHandle, PairState, Wrong, blocks, by_nccl, carries, device, gone_by, in_order, pair,
    whatever_a_call_does,
};
use futures_util::future::join_all;
use kvhive_protocol::data::Ack;
use kvhive_protocol::emptying::{Displaced, Given};
use kvhive_protocol::{DeviceId, Slot};

/// What moves, of which no other story's blocks are.
const MOVING: Slot = Slot(77);
const COUNT: u64 = 20;
const BYTES: u64 = COUNT * 64 * KIB as u64;

/// Two nodes between whose GPUs a pair stands over which nothing has gone, and a slot of which the first alone has blocks.
async fn with_a_slot_to_move(setup: &Setup) -> (FakeCoordinator, [NodeHandle; 2], [DeviceId; 2]) {
    let (coordinator, nodes) = in_order([setup; 2]).await;
    let devices = nodes.each_ref().map(device);
    place(&coordinator, MOVING, &devices[..1], &[]);
    know(&coordinator, &nodes).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&blocks(1000, 1), Ack::All).await, Ok(vec![kept(2)]), "by TCP meanwhile");
    eventually("a pair stands", || pair(&nodes[0]) == Some(PairState::Ready)).await;
    client.slot = MOVING;
    assert_eq!(client.store(&blocks(0, COUNT), Ack::Primary).await, Ok(vec![kept(1); COUNT as usize]));
    (coordinator, nodes, devices)
}

/// Has the slot move, and the second node have it alone; that one then gives all of it as it was.
async fn moves(coordinator: &FakeCoordinator, nodes: &[NodeHandle; 2], devices: [DeviceId; 2]) {
    place(coordinator, MOVING, &devices, &devices[1..]);
    eventually("it is given", || coordinator.is_filled(MOVING, devices[1])).await;
    place(coordinator, MOVING, &devices[1..], &[]);
    know(coordinator, nodes).await;
    let mut client: Asker = nodes[1].ask().await;
    client.slot = MOVING;
    let numbers: Vec<u64> = (0..COUNT).collect();
    let expected: Vec<_> = blocks(0, COUNT).into_iter().map(|block| Some(block.bytes)).collect();
    assert!(client.fetch(&numbers).await == Ok(expected));
    for node in nodes {
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
    assert!(nodes[0].counted(|counters| &counters.moved_blocks) >= COUNT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_from_gpu_to_gpu_once_a_pair_stands() {
    let (coordinator, nodes, devices) = with_a_slot_to_move(&by_nccl()).await;
    let before = gone_by(&nodes[0], "tcp");
    moves(&coordinator, &nodes, devices).await;
    went_by_nccl(&nodes[0], before);
}

/// Checks that what moved has left a node by one way each, and some of it by NCCL: on a busy machine the pair may not be free in time.
fn went_by_nccl(node: &NodeHandle, by_tcp_before: u64) {
    let (by_nccl, by_tcp) = (gone_by(node, "nccl"), gone_by(node, "tcp") - by_tcp_before);
    assert!(by_nccl > 0 && by_nccl + by_tcp == BYTES, "{by_nccl} by NCCL, {by_tcp} by TCP");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_emptied_from_gpu_to_gpu_and_tells_what_it_gave() {
    let (coordinator, nodes, devices) = with_a_slot_to_move(&by_nccl()).await;
    let (old, before) = (devices[0].member, gone_by(&nodes[0], "tcp"));
    coordinator.change(|map| map.members.get_mut(&old).expect("it is one").drains = true);
    place(&coordinator, MOVING, &devices, &devices[1..]);
    eventually("it is given", || coordinator.is_filled(MOVING, devices[1])).await;
    let given = Given { moved_blocks: COUNT, moved_bytes: BYTES, ..Given::default() };
    eventually("it has told", || coordinator.emptying(old) == (given, Displaced::default())).await;
    went_by_nccl(&nodes[0], before);
    moves(&coordinator, &nodes, devices).await;
    // Once is enough.
    went_by_nccl(&nodes[0], before);
}

/// A slot that moves while a transfer goes wrong in one of the workers: what was in it comes by TCP, in its time.
async fn goes_on(node: &'static str, call: &str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), device_frames: 64, ..by_nccl() };
    let (coordinator, nodes, devices) = with_a_slot_to_move(&setup).await;
    let before = gone_by(&nodes[0], "tcp");
    moves(&coordinator, &nodes, devices).await;
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let (by_nccl, by_tcp) = (gone_by(&nodes[0], "nccl"), gone_by(&nodes[0], "tcp") - before);
    assert_eq!(by_nccl + by_tcp, BYTES, "{wrong} at {node}: each by one way");
    let has_gone_wrong = planned.has_come_to(call);
    assert!(by_tcp > 0 || !has_gone_wrong, "{wrong} at {node}: what failed went another way");
    // What failed rests, is made anew, and carries.
    println!("{wrong} at {node}: {by_nccl} bytes by NCCL, {by_tcp} by TCP");
    carries(&nodes[0], 2000).await;
}

whatever_a_call_does! { goes_on;
    moves_go_on_when_a_transfer_stops_in_its_middle: BOTH, "" "transfer" 1,
}
