//! Guests that come from a replica's GPU to that of the node which keeps them.

use super::super::asker::{Asker, kept, key};
use super::super::coordinator::{FakeCoordinator, TENANT};
use super::super::gpu;
use super::super::guests::{know, only_the_first_is_a_replica};
use super::super::share::ask_as_node;
use super::super::{KIB, Setup, eventually};
use super::groups::has_made_up_its_mind;
use super::{
    BOTH, CARRIES_WITHIN, FIRST, NodeHandle, SECOND, Wrong, blocks, by_nccl, device, gone_by, in_order,
    member, whatever_a_call_does,
};
use futures_util::future::join_all;
use kvhive_cache::GuestKey;
use kvhive_protocol::data::{Accept, Ack, DataRequest, ReceiveRequest, StoreRequest};
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::pairs::TransferId;
use kvhive_protocol::{BlockKey, Era, Generation, Slot, WireError};
use kvhive_wire::Fault;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// As long as a node waits for a replica.
const LIMIT: Duration = Duration::from_secs(2);
const LIMIT_MS: u32 = 2000;
const BLOCK_BYTES: u64 = 64 * KIB as u64;

/// Nodes of which the first alone is a replica.
async fn with_one_replica<const N: usize>(setup: &Setup) -> (FakeCoordinator, [NodeHandle; N]) {
    let (coordinator, nodes) = in_order([setup; N]).await;
    only_the_first_is_a_replica(&coordinator, &nodes).await;
    (coordinator, nodes)
}

/// Returns how many frames are free that guests pass.
fn passing(node: &NodeHandle) -> u32 {
    node.plane.passing(device(node)).expect("its GPU has some").free()
}

fn bytes(number: u64) -> Vec<u8> {
    blocks(number, 1).remove(0).bytes
}

fn failures(node: &NodeHandle) -> u64 {
    node.counted(|counters| &counters.guest_failures)
}

/// Has a node's client read blocks that the first node was just given, from this number on; says whether all came. One that does not has cost
/// all the time that there was, or what the node told the first one: no block is missing for any other reason.
async fn visit(asker: &mut Asker, node: &NodeHandle, numbers: &[u64], of: &str) -> bool {
    let (begun, before) = (Instant::now(), failures(node));
    let visit = asker.visit(numbers, LIMIT_MS);
    let answer = timeout(CARRIES_WITHIN, visit).await.expect("it is answered").expect("it is not refused");
    // A node of whom there is a busy machine's time left is told in whole milliseconds, and takes less.
    let is_late = begun.elapsed() >= LIMIT * 9 / 10;
    for (number, one) in numbers.iter().zip(&answer) {
        match one {
            Some(found) => assert!(*found == bytes(*number), "{of}: block {number} is another"),
            None => assert!(is_late || failures(node) > before, "{of}: block {number} went no other way"),
        }
    }
    answer.iter().all(Option::is_some)
}

/// Gives a node blocks, numbered from here on; says whether it has them. One whose GPU is not in time refuses some.
async fn are_given(writer: &mut Asker, from: u64, count: u64) -> bool {
    let stored = writer.store(&blocks(from, count), Ack::All).await.expect("it is not refused");
    stored.iter().all(|one| *one == kept(1))
}

/// Has a node's client read block after block, from this number on, until one has come from GPU to GPU; returns the number of that. Those before
/// go by TCP: there is no pair yet, or a busy machine is not in time.
async fn comes_by_nccl(source: &NodeHandle, node: &NodeHandle, asker: &mut Asker, from: u64) -> u64 {
    let (begun, before) = (Instant::now(), gone_by(source, "nccl"));
    let mut writer = source.ask().await;
    for number in from.. {
        let pairs = || source.plane.replicator.links.pairs();
        assert!(begun.elapsed() < CARRIES_WITHIN, "nothing goes by NCCL: {:?}", pairs());
        if !are_given(&mut writer, number, 1).await {
            continue;
        }
        let came = visit(asker, node, &[number], "nothing goes wrong").await;
        if came && gone_by(source, "nccl") > before {
            return number;
        }
        eventually("a pair stands, or is found to be of no use", || has_made_up_its_mind(source)).await;
    }
    unreachable!("there are more numbers than time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_come_from_gpu_to_gpu_once_a_pair_stands() {
    let (_coordinator, nodes) = with_one_replica::<3>(&by_nccl()).await;
    let free = passing(&nodes[1]);
    let mut last = 0;
    for node in &nodes[1..] {
        let mut asker = node.ask().await;
        let came = || node.counted(|counters| &counters.guests_came);
        let first = last + 1;
        last = comes_by_nccl(&nodes[0], node, &mut asker, first).await;
        assert!(came() <= last + 1 - first, "each is counted once, whichever way it came");
        eventually("all frames are free again", || passing(node) == free).await;
        let stats = node.shard_stats().await;
        assert_eq!((stats.blocks(), stats.filling, stats.evicted), (0, 0, 0), "no shard knows them");
        // From here on it is at hand.
        let sent = || nodes[0].counted(|counters| &counters.fetched_bytes);
        let before = sent();
        assert!(visit(&mut asker, node, &[last], "it is here").await);
        assert_eq!(sent(), before);
    }
    nodes[0].settles("nobody reads", |stats| stats.readers == 0).await;
    let gone = gone_by(&nodes[0], "nccl") + gone_by(&nodes[0], "tcp");
    let sent = nodes[0].counted(|counters| &counters.fetched_bytes);
    assert_eq!(gone, sent, "each has left it by one way");
    assert!(sent <= last * BLOCK_BYTES, "and once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_find_frames_where_all_of_the_tier_are_blocks() {
    let setup = Setup { device_frames: 4, ..by_nccl() };
    let (coordinator, nodes) = with_one_replica::<2>(&setup).await;
    let own_slot = Slot(1);
    coordinator.change(|map| {
        Arc::make_mut(&mut map.slots)[usize::from(own_slot.0)] = ReplicaSet(vec![device(&nodes[1])]);
    });
    know(&coordinator, &nodes).await;
    let mut writer = nodes[1].ask().await;
    writer.slot = own_slot;
    writer.epoch = coordinator.epoch();
    assert_eq!(writer.store(&blocks(1000, 4), Ack::All).await, Ok(vec![kept(1); 4]));
    let full = async || {
        let stats = nodes[1].shard_stats().await;
        assert_eq!(stats.device.capacity_bytes, 4 * BLOCK_BYTES, "those that are set aside are none of it");
        assert_eq!((stats.device.blocks, stats.evicted), (4, 0));
    };
    full().await;
    comes_by_nccl(&nodes[0], &nodes[1], &mut nodes[1].ask().await, 1).await;
    full().await;
}

/// Announces blocks to a node as another one does whose GPU sends them; returns why they are not taken.
async fn refusal(to: &NodeHandle, from: &NodeHandle, (number, is_guest): (u64, bool)) -> String {
    let mut asker = ask_as_node(to, u64::from(member(from).0)).await;
    let DataRequest::Store(mut store) = asker.store_request(&blocks(number, 1), Ack::Primary) else {
        unreachable!("it is one")
    };
    for block in &mut store.blocks {
        block.parent = if is_guest { block.header.key } else { BlockKey::NONE };
    }
    let store = StoreRequest { copy: true, device: device(to), ..store };
    let transfer = TransferId { number, sender: device(from), generation: Generation(1) };
    let answer = asker.exchange(&DataRequest::Receive(ReceiveRequest { store, transfer }), &[]).await;
    match answer {
        Err(Fault::Refused(WireError::NotCarried { why })) => why,
        other => panic!("nothing was sent: {other:?}"),
    }
}

const NOBODY: &str = "nobody here waits for these guests";
const ENDED: &str = "their era has ended";

fn of_era(number: u64, era: Era) -> GuestKey {
    GuestKey { tenant: TENANT, era, key: key(number), accept: Accept::Stored }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_guests_as_there_are_frames_go_by_nccl_and_none_of_it_counts_as_slow() {
    const COUNT: u64 = 20;
    let (_coordinator, nodes) = with_one_replica::<2>(&by_nccl()).await;
    let frames = u64::from(passing(&nodes[1]));
    assert!(frames < COUNT);
    let (mut writer, mut asker) = (nodes[0].ask().await, nodes[1].ask().await);
    comes_by_nccl(&nodes[0], &nodes[1], &mut asker, 100_000).await;
    let read = &nodes[0].devices[0].traffic;
    let told = || (read.fetches().count(), read.tell(nodes[0].view.now()).read_bytes);
    let began = Instant::now();
    // On a busy machine the pair may not be free in time: then all of it goes otherwise.
    for from in (1..).step_by(COUNT as usize) {
        assert!(began.elapsed() < CARRIES_WITHIN, "none have gone by NCCL");
        if !are_given(&mut writer, from, COUNT).await {
            continue;
        }
        let (before, (fetches, given)) = (gone_by(&nodes[0], "nccl"), told());
        let numbers: Vec<u64> = (from..from + COUNT).collect();
        let came = visit(&mut asker, &nodes[1], &numbers, "nothing goes wrong").await;
        let gone = gone_by(&nodes[0], "nccl") - before;
        if gone == 0 || !came {
            continue;
        }
        assert_eq!(gone, frames * BLOCK_BYTES);
        // Counted when the answer has been sent, which its asker may have before.
        eventually("all of it is counted", || told().1 == given + COUNT * BLOCK_BYTES).await;
        assert_eq!(told().0, fetches, "how long it waits is the pair's");
        break;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_is_no_guest_nor_a_copy_for_a_replica() {
    // Both are replicas of all: what is not announced as a guest is a copy.
    let (_coordinator, nodes) = in_order([&by_nccl(); 2]).await;
    assert_eq!(refusal(&nodes[1], &nodes[0], (7, true)).await, NOBODY);
    let book = nodes[1].plane.view.guests.as_ref().expect("it keeps some");
    let awaited = book.awaits(member(&nodes[0]), [of_era(7, Era(1))].into_iter());
    let free = passing(&nodes[1]);
    assert_ne!(refusal(&nodes[1], &nodes[0], (7, true)).await, NOBODY, "its bytes did not come");
    eventually("its frame is free again", || passing(&nodes[1]) == free).await;
    drop(awaited);
    assert_eq!(refusal(&nodes[1], &nodes[0], (7, true)).await, NOBODY, "it was given up");
    assert_eq!(nodes[1].counted(|counters| &counters.guests_came), 0);
    assert_ne!(refusal(&nodes[1], &nodes[0], (8, false)).await, NOBODY);
    nodes[1].settles("nobody writes", |stats| stats.blocks() + stats.filling == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_of_an_ended_era_comes_to_no_frame() {
    let (coordinator, nodes) = with_one_replica::<2>(&by_nccl()).await;
    let book = nodes[1].plane.view.guests.as_ref().expect("it keeps some");
    let keys = [of_era(7, Era(1)), of_era(8, Era(1))];
    let _awaited = book.awaits(member(&nodes[0]), keys.into_iter()).expect("nobody does yet");
    let free = passing(&nodes[1]);
    assert_ne!(refusal(&nodes[1], &nodes[0], (7, true)).await, ENDED);
    // The source goes by a map of before.
    coordinator.keep_behind(Some(member(&nodes[0])));
    let (_, epoch) = coordinator.clear();
    eventually("it is known here", || {
        nodes[1].plane.view.serving().is_some_and(|serving| serving.map.epoch >= epoch)
    })
    .await;
    assert_eq!(refusal(&nodes[1], &nodes[0], (8, true)).await, ENDED);
    eventually("all frames are free", || passing(&nodes[1]) == free).await;
    eventually("nothing is left", || nodes[1].inside.memories[0].unwiped_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_its_gpu_does_not_give_costs_no_frame() {
    if super::is_real() {
        return;
    }
    let (_coordinator, nodes) = with_one_replica::<2>(&by_nccl()).await;
    let passing = nodes[1].plane.passing(device(&nodes[1])).expect("its GPU has some");
    let free = passing.free();
    let header = blocks(7, 1).remove(0).header;
    for _ in 0..2 {
        let mut guards = passing.take(&[header]).expect("one is free");
        let landing = guards.remove(0).verify_as(header.digest).expect("it is one of a GPU");
        let block = landing.landed().await.expect("it is there");
        assert_eq!(passing.free(), free - 1);
        gpu::fail("cuStreamSynchronize", 1, 1);
        assert!(passing.bring(block).await.is_none());
        eventually("its frame is free", || passing.free() == free).await;
    }
}

/// A replica and two nodes whose clients want the same at the same time, in one of whose workers something goes wrong once, in this call after
/// whatever it takes to come to that: each is given the right bytes, by another way where one fails, and nobody's frames are lost.
async fn visits_go_on(node: &'static str, call: &str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), ..by_nccl() };
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let (_coordinator, nodes) = with_one_replica::<3>(&setup).await;
    let free = [1, 2].map(|at| passing(&nodes[at]));
    let mut writer = nodes[0].ask().await;
    let mut askers = [nodes[1].ask().await, nodes[2].ask().await];
    let of = format!("{wrong} at {node}");
    let (began, mut batches, mut is_whole) = (Instant::now(), 0, false);
    // On a busy machine a pair may have to be made more than once before it comes to that. What comes after it is whole, if there is time.
    while batches < 8 || !planned.has_come_to(call) || !is_whole {
        assert!(began.elapsed() < CARRIES_WITHIN, "{of}: it has not come to that, or nothing is whole");
        let has_come = planned.has_come_to(call);
        let numbers = [1 + batches * 2, 2 + batches * 2];
        batches += 1;
        if !are_given(&mut writer, numbers[0], 2).await {
            continue;
        }
        let visits =
            askers.iter_mut().zip(&nodes[1..]).map(|(asker, node)| visit(asker, node, &numbers, &of));
        is_whole = join_all(visits).await.into_iter().all(|all_came| all_came) && has_come;
        eventually("pairs stand, or are found to be of no use", || has_made_up_its_mind(&nodes[0])).await;
    }
    for (node, free) in nodes[1..].iter().zip(free) {
        eventually("all frames are free again", || passing(node) == free).await;
    }
    nodes[0].settles("nobody reads", |stats| stats.readers == 0).await;
    println!("{of}: {batches} batches");
}

whatever_a_call_does! { visits_go_on;
    guests_come_when_no_version_is_told: BOTH, "" "ncclGetVersion" 1,
    guests_come_when_no_id_is_made: FIRST, "" "ncclGetUniqueId" 1,
    guests_come_when_nobody_joins: BOTH, "" "ncclCommInitRankConfig" 1,
    guests_come_when_errors_are_not_told: BOTH, "" "ncclCommGetAsyncError" 1,
    guests_come_when_errors_are_not_told_under_way: BOTH, "" "asked" 1,
    guests_come_when_no_group_begins: BOTH, "" "ncclGroupStart" 1,
    guests_come_when_no_group_ends: BOTH, "" "ncclGroupEnd" 1,
    guests_come_when_nothing_is_sent: FIRST, "" "ncclSend" 1,
    guests_come_when_nothing_is_received: SECOND, "" "ncclRecv" 1,
    guests_come_when_a_transfer_stops_in_its_middle: BOTH, "" "transfer" 1,
    guests_come_when_nothing_is_aborted: BOTH, "transfer:1:fail," "ncclCommAbort" 1,
}
