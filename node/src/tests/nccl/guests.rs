//! Guests that come from a replica's GPU to that of the node which keeps them.

use super::super::asker::kept;
use super::super::coordinator::FakeCoordinator;
use super::super::guests::only_the_first_is_a_replica;
use super::super::share::ask_as_node;
use super::super::{KIB, Setup, eventually};
use super::groups::has_made_up_its_mind;
use super::{
    BOTH, CARRIES_WITHIN, FIRST, NodeHandle, SECOND, Wrong, blocks, by_nccl, gone_by, in_order, tells,
};
use futures_util::future::join_all;
use kvhive_protocol::data::{Ack, DataReply, DataRequest, ReceiveRequest, StoreRequest};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::TransferId;
use kvhive_protocol::{DeviceId, Generation};
use std::time::{Duration, Instant};

/// As long as a node waits for a replica.
const LIMIT: Duration = Duration::from_secs(2);
const LIMIT_MS: u32 = 2000;

/// Nodes of which the first alone is a replica, and holds so many blocks.
async fn with_blocks<const N: usize>(setup: &Setup, count: u64) -> (FakeCoordinator, [NodeHandle; N]) {
    let (coordinator, nodes) = in_order([setup; N]).await;
    only_the_first_is_a_replica(&coordinator, &nodes).await;
    let stored = nodes[0].ask().await.store(&blocks(0, count), Ack::All).await;
    assert_eq!(stored, Ok(vec![kept(1); count as usize]));
    (coordinator, nodes)
}

/// Returns how many pairs a node could send over.
fn ready(node: &NodeHandle) -> usize {
    let pairs = node.plane.replicator.links.pairs();
    pairs.iter().flat_map(|gpu| &gpu.pairs).filter(|pair| pair.state == PairState::Ready).count()
}

/// Returns how many frames are free that guests pass.
fn passing(node: &NodeHandle) -> u32 {
    let own = DeviceId::new(node.member().expect("it is a member"), 0);
    node.plane.passing(own).expect("its GPU has some").free()
}

fn bytes(number: u64) -> Vec<u8> {
    blocks(number, 1).remove(0).bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_come_from_gpu_to_gpu_once_a_pair_stands() {
    let (_coordinator, nodes) = with_blocks::<3>(&by_nccl(), 9).await;
    let free = passing(&nodes[1]);
    let mut askers = [nodes[1].ask().await, nodes[2].ask().await];
    for (at, asker) in askers.iter_mut().enumerate() {
        assert!(asker.visit(&[0], LIMIT_MS).await == Ok(vec![Some(bytes(0))]), "by TCP meanwhile");
        eventually("a pair stands", || ready(&nodes[0]) == at + 1).await;
    }
    let before = gone_by(&nodes[0], "nccl");
    let numbers: Vec<u64> = (1..9).collect();
    let all: Vec<_> = numbers.iter().map(|number| Some(bytes(*number))).collect();
    // Both at the same time.
    let visits = askers.iter_mut().map(|asker| asker.visit(&numbers, LIMIT_MS));
    for came in join_all(visits).await {
        assert!(came.as_ref() == Ok(&all), "{:?}", came.map(|came| came.iter().flatten().count()));
    }
    assert_eq!((before, gone_by(&nodes[0], "nccl")), (0, 2 * 8 * 64 * KIB as u64));
    assert_eq!(gone_by(&nodes[0], "tcp"), 2 * 64 * KIB as u64);
    let sent = nodes[0].counted(|counters| &counters.fetched_bytes);
    assert_eq!(sent, 2 * 9 * 64 * KIB as u64, "each block has left it once for each node");
    for node in &nodes[1..] {
        assert_eq!(node.counted(|counters| &counters.guests_came), 9);
        assert_eq!(node.counted(|counters| &counters.guest_failures), 0);
        eventually("all frames are free again", || passing(node) == free).await;
        let stats = node.shard_stats().await;
        assert_eq!((stats.blocks(), stats.filling, stats.evicted), (0, 0, 0), "no shard knows them");
        let line = "nccl_transfers_total{device=\"0\",direction=\"received\",outcome=\"done\"} 1";
        tells(node, line).await;
    }
    nodes[0].settles("nobody reads", |stats| stats.readers == 0).await;
    // From here on they are at hand.
    assert!(askers[0].visit(&numbers, LIMIT_MS).await == Ok(all));
    assert_eq!(nodes[0].counted(|counters| &counters.fetched_bytes), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_find_frames_where_all_of_the_tier_are_blocks() {
    let setup = Setup { device_frames: 4, ..by_nccl() };
    let (_coordinator, nodes) = with_blocks::<2>(&setup, 4).await;
    let mut asker = nodes[1].ask().await;
    assert!(asker.visit(&[0], LIMIT_MS).await == Ok(vec![Some(bytes(0))]));
    eventually("a pair stands", || ready(&nodes[0]) == 1).await;
    let stats = nodes[1].shard_stats().await;
    assert_eq!(stats.device.capacity_bytes, 4 * 64 * KIB as u64, "those that are set aside are none of it");
    assert!(asker.visit(&[1, 2, 3], LIMIT_MS).await == Ok((1..4).map(|one| Some(bytes(one))).collect()));
    assert_eq!(gone_by(&nodes[0], "nccl"), 3 * 64 * KIB as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_guests_as_there_are_frames_go_by_nccl_and_none_of_it_counts_as_slow() {
    const COUNT: u64 = 20;
    let (_coordinator, nodes) = with_blocks::<2>(&by_nccl(), 1).await;
    let frames = u64::from(passing(&nodes[1]));
    assert!(frames < COUNT);
    let (mut writer, mut asker) = (nodes[0].ask().await, nodes[1].ask().await);
    assert!(asker.visit(&[0], LIMIT_MS).await == Ok(vec![Some(bytes(0))]), "by TCP meanwhile");
    eventually("a pair stands", || ready(&nodes[0]) == 1).await;
    let read = &nodes[0].devices[0].traffic;
    let told = || (read.fetches().count(), read.tell(nodes[0].view.now()).read_bytes);
    let began = Instant::now();
    // On a busy machine the pair may not be free in time: then all of it goes otherwise.
    for from in (1..).step_by(COUNT as usize) {
        assert!(began.elapsed() < CARRIES_WITHIN, "none have gone by NCCL");
        let stored = writer.store(&blocks(from, COUNT), Ack::All).await;
        assert_eq!(stored, Ok(vec![kept(1); COUNT as usize]));
        let (before, (fetches, given)) = (gone_by(&nodes[0], "nccl"), told());
        let numbers: Vec<u64> = (from..from + COUNT).collect();
        let came = asker.visit(&numbers, LIMIT_MS).await.expect("it is answered");
        let gone = gone_by(&nodes[0], "nccl") - before;
        if gone == 0 {
            continue;
        }
        assert!(came.into_iter().eq(numbers.iter().map(|number| Some(bytes(*number)))));
        assert_eq!(gone, frames * 64 * KIB as u64);
        // Counted when the answer has been sent, which its asker may have before.
        eventually("all of it is counted", || told().1 == given + COUNT * 64 * KIB as u64).await;
        assert_eq!(told().0, fetches, "how long it waits is the pair's");
        break;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_asked_for_is_no_guest() {
    let (_coordinator, nodes) = with_blocks::<2>(&by_nccl(), 1).await;
    let [first, second] = nodes.each_ref().map(|node| node.member().expect("it is a member"));
    let mut asker = ask_as_node(&nodes[1], u64::from(first.0)).await;
    let DataRequest::Store(store) = asker.store_request(&blocks(7, 1), Ack::Primary) else {
        unreachable!("it is one")
    };
    let store = StoreRequest { copy: true, device: DeviceId::new(second, 0), ..store };
    let transfer = TransferId { number: 1, sender: DeviceId::new(first, 0), generation: Generation(1) };
    let answer = asker.exchange(&DataRequest::Receive(ReceiveRequest { store, transfer }), &[]).await;
    assert!(!matches!(answer, Ok(DataReply::Stored { .. })), "{answer:?}");
    assert_eq!(nodes[1].counted(|counters| &counters.guests_came), 0);
}

/// A replica and two nodes whose clients want the same at the same time, in one of whose workers something goes wrong once, in this call after
/// whatever it takes to come to that: each is answered in time, by the right bytes or a miss, and nobody's frames are lost.
async fn visits_go_on(node: &'static str, call: &str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), ..by_nccl() };
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let (_coordinator, nodes) = with_blocks::<3>(&setup, 1).await;
    let free = [1, 2].map(|at| passing(&nodes[at]));
    let mut writer = nodes[0].ask().await;
    let mut askers = [nodes[1].ask().await, nodes[2].ask().await];
    let (began, mut came, mut batches) = (Instant::now(), 0, 0);
    // On a busy machine a pair may have to be made more than once before it comes to that.
    while batches < 8 || !planned.has_come_to(call) {
        assert!(began.elapsed() < CARRIES_WITHIN, "{wrong} at {node}: it has not come to that");
        let numbers = [1 + batches * 2, 2 + batches * 2];
        assert_eq!(writer.store(&blocks(numbers[0], 2), Ack::All).await, Ok(vec![kept(1); 2]));
        let visits = askers.iter_mut().map(|asker| async {
            let begun = Instant::now();
            (asker.visit(&numbers, LIMIT_MS).await, begun.elapsed())
        });
        for (answer, took) in join_all(visits).await {
            assert!(
                took <= LIMIT + Duration::from_millis(100),
                "{wrong} at {node}, batch {batches}: {took:?}"
            );
            for (number, one) in numbers.iter().zip(answer.expect("it is answered")) {
                came += usize::from(one.is_some());
                assert!(one.is_none_or(|found| found == bytes(*number)), "{wrong} at {node}: block {number}");
            }
        }
        eventually("pairs stand, or are found to be of no use", || has_made_up_its_mind(&nodes[0])).await;
        if batches >= 8 {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        batches += 1;
    }
    for (node, free) in nodes[1..].iter().zip(free) {
        eventually("all frames are free again", || passing(node) == free).await;
    }
    nodes[0].settles("nobody reads", |stats| stats.readers == 0).await;
    println!("{wrong} at {node}: {came} of {} came", batches * 4);
}

macro_rules! calls {
    ($($test:ident: $nodes:ident, $before:literal $call:literal,)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            for how in ["fail", "hang", "die"] {
                let wrong = format!("{}{}:1:{how}", $before, $call);
                join_all($nodes.iter().map(|node| visits_go_on(node, $call, &wrong))).await;
            }
        }
    )+};
}

calls! {
    guests_come_when_no_id_is_made: FIRST, "" "ncclGetUniqueId",
    guests_come_when_nobody_joins: BOTH, "" "ncclCommInitRankConfig",
    guests_come_when_errors_are_not_told: BOTH, "" "ncclCommGetAsyncError",
    guests_come_when_no_group_begins: BOTH, "" "ncclGroupStart",
    guests_come_when_no_group_ends: BOTH, "" "ncclGroupEnd",
    guests_come_when_nothing_is_sent: FIRST, "" "ncclSend",
    guests_come_when_nothing_is_received: SECOND, "" "ncclRecv",
    guests_come_when_a_transfer_stops_in_its_middle: BOTH, "" "transfer",
    guests_come_when_nothing_is_aborted: BOTH, "transfer:1:fail," "ncclCommAbort",
}
