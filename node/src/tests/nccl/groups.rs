//! Blocks that go from one GPU to several at once, by NCCL's broadcast.

use super::super::asker::kept;
use super::super::{KIB, Setup, eventually};
use super::{
    CARRIES_WITHIN, COPY_LIMIT, FIRST, NodeHandle, Wrong, blocks, by_nccl, in_order, is_real, tells,
    whatever_a_call_does,
};
use futures_util::future::join_all;
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::Ack;
use kvhive_protocol::links::PairState;
use std::time::{Duration, Instant};

const ALL: &[&str] = &["node-0", "node-1", "node-2"];

/// Says whether a node has a communicator over which it can send to several, and what has gone over it.
fn to_several(node: &NodeHandle) -> Option<u64> {
    let pairs = node.plane.replicator.links.pairs();
    let own = pairs.iter().flat_map(|gpu| gpu.groups.iter().filter(|group| group.root == gpu.device));
    own.filter(|group| group.state == PairState::Ready).map(|group| group.transfers).next()
}

/// Says that a node has these blocks.
async fn has(node: &NodeHandle, numbers: std::ops::Range<u64>) {
    let mut asker = node.ask().await;
    asker.device = DeviceId::new(node.member().expect("it is a member"), 0);
    let count = numbers.end - numbers.start;
    let expected: Vec<_> = blocks(numbers.start, count).into_iter().map(|block| Some(block.bytes)).collect();
    let found = asker.fetch(&numbers.collect::<Vec<_>>()).await;
    assert!(found.as_ref() == Ok(&expected), "{:?}", found.map(|found| found.iter().flatten().count()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_for_two_replicas_go_to_both_at_once_when_all_have_joined() {
    let (_coordinator, nodes) = by_nccl().several(3).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&blocks(0, 1), Ack::All).await, Ok(vec![kept(3)]), "by TCP meanwhile");
    eventually("all have joined", || to_several(&nodes[0]) == Some(0)).await;
    assert_eq!(client.store(&blocks(1, 6), Ack::All).await, Ok(vec![kept(3); 6]));
    assert_eq!(to_several(&nodes[0]), Some(1));
    assert_eq!(to_all(&nodes[0]), (true, "not measured yet".to_owned()));
    for (node, direction) in nodes.iter().zip(["sent", "received", "received"]) {
        let done =
            format!("nccl_transfers_total{{device=\"0\",direction=\"{direction}\",outcome=\"done\"}} 1");
        let given_up = "nccl_groups_given_up_total{device=\"0\",reason=\"failed\"} 0";
        for line in [
            "nccl_groups{device=\"0\",state=\"ready\"} 1",
            "nccl_groups_made_total{device=\"0\"} 1",
            given_up,
            &done,
        ] {
            tells(node, line).await;
        }
        has(node, 0..7).await;
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
}

/// Returns how a node's first set of targets was given its last batch, and why.
fn to_all(node: &NodeHandle) -> (bool, String) {
    let sets = serde_json::to_value(node.plane.replicator.links.sets()).expect("it is plain");
    let reason = sets[0]["reason"].as_str().expect("a set, with words").to_owned();
    (sets[0]["at_once"] == true, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_for_two_replicas_go_to_each_alone_where_that_is_measured_to_be_faster() {
    if is_real() {
        return println!("SKIPPED: no real NCCL is slow when it is told to be");
    }
    let wrong = Some(Wrong::at("node-", "transfer:0:slow"));
    // What goes over TCP before anything else stands is measured.
    let setup = Setup { wrong, after_bytes: 5 * 64 * KIB as u64, device_frames: 128, ..by_nccl() };
    let (_coordinator, nodes) = in_order([&setup; 3]).await;
    let mut client = nodes[0].ask().await;
    for number in 0..6 {
        assert_eq!(client.store(&blocks(number, 1), Ack::All).await, Ok(vec![kept(3)]));
    }
    eventually("all have joined", || to_several(&nodes[0]).is_some()).await;
    let (began, mut number) = (Instant::now(), 6);
    loop {
        assert_eq!(client.store(&blocks(number, 1), Ack::All).await, Ok(vec![kept(3)]));
        number += 1;
        match to_all(&nodes[0]) {
            (false, why) if why.contains("each by its own way") => break,
            told => assert!(began.elapsed() < CARRIES_WITHIN, "it goes to all at once: {told:?}"),
        }
    }
    let before = to_several(&nodes[0]);
    assert!(before >= Some(3), "{before:?}: it was measured by what went so");
    for _ in 0..4 {
        assert_eq!(client.store(&blocks(number, 1), Ack::All).await, Ok(vec![kept(3)]));
        number += 1;
    }
    assert_eq!(to_several(&nodes[0]), before, "none has gone to all at once any more");
    for node in &nodes {
        has(node, 0..number).await;
    }
}

/// Says whether all that a node has begun to make has come to something, or to nothing.
pub(super) fn has_made_up_its_mind(node: &NodeHandle) -> bool {
    use PairState::{Aborting, Joining, Offered};
    let reports = node.plane.replicator.links.pairs();
    let pairs = reports.iter().flat_map(|gpu| gpu.pairs.iter().map(|pair| pair.state));
    let groups = reports.iter().flat_map(|gpu| gpu.groups.iter().map(|group| group.state));
    !pairs.chain(groups).any(|state| matches!(state, Offered | Joining | Aborting))
}

/// Three nodes in one of whose workers something goes wrong once, in this call after whatever it takes to come to that: each store is answered
/// by its deadline and all have the right bytes.
async fn goes_on_to_two(node: &'static str, call: &str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), device_frames: 128, ..by_nccl() };
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let (_coordinator, nodes) = in_order([&setup; 3]).await;
    let mut client = nodes[0].ask().await;
    let (began, mut batches) = (Instant::now(), 0);
    // On a busy machine communicators may have to be made more than once before it comes to that.
    while batches < 5 || !planned.has_come_to(call) {
        assert!(
            began.elapsed() < CARRIES_WITHIN && batches < 64,
            "{wrong} at {node}: it has not come to that"
        );
        if batches >= 5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let begun = Instant::now();
        let stored = client.store(&blocks(batches * 2, 2), Ack::All).await;
        assert_eq!(stored, Ok(vec![kept(3); 2]), "{wrong} at {node}, batch {batches}");
        batches += 1;
        let took = begun.elapsed();
        assert!(took <= COPY_LIMIT + Duration::from_millis(100), "{wrong} at {node}: {took:?}");
        eventually("communicators stand, or are found to be of no use", || has_made_up_its_mind(&nodes[0]))
            .await;
    }
    for node in &nodes {
        for first in (0..batches * 2).step_by(10) {
            has(node, first..(first + 10).min(batches * 2)).await;
        }
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling + stats.given_up == 0)
            .await;
    }
    println!("{wrong} at {node}");
}

whatever_a_call_does! { goes_on_to_two;
    stores_go_on_when_of_three_one_makes_no_id: FIRST, "" "ncclGetUniqueId" 1,
    stores_go_on_when_of_three_one_does_not_join: ALL, "" "ncclCommInitRankConfig" 1,
    stores_go_on_when_of_three_one_does_not_join_another: ALL, "" "ncclCommInitRankConfig" 2,
    stores_go_on_when_of_three_one_begins_no_group: ALL, "" "ncclGroupStart" 1,
    stores_go_on_when_of_three_one_ends_no_group: ALL, "" "ncclGroupEnd" 1,
    stores_go_on_when_of_three_one_broadcasts_nothing: ALL, "" "ncclBroadcast" 1,
    stores_go_on_when_of_three_one_stops_in_the_middle: ALL, "" "transfer" 1,
    stores_go_on_when_of_three_one_aborts_nothing: ALL, "transfer:1:fail," "ncclCommAbort" 1,
}
