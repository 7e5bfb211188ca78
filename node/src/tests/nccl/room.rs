//! Pairs that are closed in good order, as a GPU has room for one and talks to two.

use super::super::asker::{Asker, kept};
use super::super::coordinator::FakeCoordinator;
use super::super::guests::know;
use super::super::moves::place;
use super::super::{Setup, eventually};
use super::groups::has_made_up_its_mind;
use super::{
    BOTH, CARRIES_WITHIN, NodeHandle, Wrong, blocks, by_nccl, device, gone_by, in_order, tells,
    whatever_a_call_does,
};
use futures_util::future::join_all;
use kvhive_protocol::data::Ack;
use kvhive_protocol::{DeviceId, Slot};
use std::time::Instant;

/// What the first node shares with the second, and with the third.
const SHARED: [Slot; 2] = [Slot(1), Slot(2)];

/// Three nodes, the first of which copies to the second what is of one slot, and to the third what is of another; with its clients for both.
async fn one_of_two_ways(setup: &Setup) -> (FakeCoordinator, [NodeHandle; 3], [Asker; 2]) {
    let (coordinator, nodes) = in_order([setup; 3]).await;
    let [own, second, third] = nodes.each_ref().map(device);
    place(&coordinator, SHARED[0], &[own, second], &[]);
    place(&coordinator, SHARED[1], &[own, third], &[]);
    know(&coordinator, &nodes).await;
    let mut clients = [nodes[0].ask().await, nodes[0].ask().await];
    for (client, slot) in clients.iter_mut().zip(SHARED) {
        client.slot = slot;
    }
    (coordinator, nodes, clients)
}

/// Returns how many communicators a node's GPU has, and how often one was closed to make room.
async fn had(node: &NodeHandle) -> (u64, u64) {
    let page = super::super::life::get(node.metrics_address(), "/metrics").await;
    let name = "kvhive_node_nccl_pairs_given_up_total{device=\"0\",reason=\"made-room\"} ";
    let closed = page.lines().find_map(|line| line.strip_prefix(name)).expect("it is told");
    let live = node.plane.replicator.links.pairs().first().map_or(0, |gpu| gpu.live);
    (live, closed.parse().expect("it is a number"))
}

/// Checks that a node has a block of a slot.
async fn has(node: &NodeHandle, slot: Slot, number: u64, of: &str) {
    let mut asker = node.ask().await;
    asker.slot = slot;
    asker.device = DeviceId::new(node.member().expect("it is a member"), 0);
    let found = asker.fetch(&[number]).await;
    assert!(found == Ok(vec![Some(blocks(number, 1).remove(0).bytes)]), "{of}: block {number}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_is_closed_for_another_where_there_is_room_for_one() {
    let setup = Setup { max_pairs: 1, device_frames: 128, ..by_nccl() };
    let (_coordinator, nodes, mut clients) = one_of_two_ways(&setup).await;
    let mut number = 0;
    for turn in 0..4 {
        let (begun, before) = (Instant::now(), gone_by(&nodes[0], "nccl"));
        while gone_by(&nodes[0], "nccl") == before {
            assert!(begun.elapsed() < CARRIES_WITHIN, "turn {turn}: nothing goes by NCCL");
            number += 1;
            let stored = clients[turn % 2].store(&blocks(number, 1), Ack::All).await;
            assert_eq!(stored, Ok(vec![kept(2)]));
            eventually("what is made is made", || has_made_up_its_mind(&nodes[0])).await;
            assert!(had(&nodes[0]).await.0 <= 1, "turn {turn}");
        }
        has(&nodes[1 + turn % 2], SHARED[turn % 2], number, "nothing goes wrong").await;
    }
    let (live, closed) = had(&nodes[0]).await;
    assert!(live == 1 && closed >= 3, "{live} live, {closed} closed");
    for node in &nodes {
        tells_of_no_death(node).await;
    }
}

/// Checks that no worker of a node has ended: what was closed was closed in good order.
async fn tells_of_no_death(node: &NodeHandle) {
    tells(node, "nccl_worker_deaths_total{device=\"0\"} 0").await;
}

/// A node that talks to two and has room for one, in one of whose workers a pair cannot be closed once: each store is kept by both,
/// and both ends have the right bytes.
async fn goes_on(node: &'static str, call: &str, wrong: &str) {
    let wrong_at = Some(Wrong::at(node, wrong));
    let setup = Setup { max_pairs: 1, device_frames: 128, wrong: wrong_at, ..by_nccl() };
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let (_coordinator, nodes, mut clients) = one_of_two_ways(&setup).await;
    let of = format!("{wrong} at {node}");
    let (began, mut batches, mut after) = (Instant::now(), 0, 0);
    while after < 6 {
        assert!(began.elapsed() < CARRIES_WITHIN, "{of}: it has not come to that");
        batches += 1;
        after += u64::from(planned.has_come_to(call));
        // As many to each as have a pair made and go over it.
        let at = (batches / 4 % 2) as usize;
        let stored = clients[at].store(&blocks(batches, 1), Ack::All).await;
        assert_eq!(stored, Ok(vec![kept(2)]), "{of}, batch {batches}");
        has(&nodes[0], SHARED[at], batches, &of).await;
        has(&nodes[1 + at], SHARED[at], batches, &of).await;
        eventually("what is made is made", || has_made_up_its_mind(&nodes[0])).await;
    }
    for node in &nodes {
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
    println!("{of}: {batches} batches");
}

// Where the first node closes a pair, and where the second does as it is told so.
whatever_a_call_does! { goes_on;
    stores_go_on_when_a_pair_is_not_finalized: BOTH, "" "ncclCommFinalize" 1,
    stores_go_on_when_a_pair_is_not_destroyed: BOTH, "" "ncclCommDestroy" 1,
}
