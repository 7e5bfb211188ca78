//! A disk that is full, fails or does not answer: the node goes on without it, nobody waits for it for long, what it holds
//! meanwhile is bounded, and the node ends without it.

use super::asker::{Asker, Block, already, kept};
use super::disk::{
    FRAME, Records, bad, blocks, come, ended, fill, filled, knows_its_disk, setup, store_of, tuning,
};
use super::{FakeCoordinator, Setup, eventually};
use crate::NodeHandle;
use crate::actors::core::DeviceMessage;
use crate::actors::disk::DiskLife;
use crate::disk::fault::{Faulty, Trouble};
use crate::disk::{Backend, Bad, DiskError, DiskTuning, Geometry, Patience, Store, movers};
use kvhive_protocol::data::{Ack, Refusal, Stored};
use kvhive_protocol::{ClusterId, DeviceId, Epoch};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::time::timeout;

/// Nobody waits for long here.
fn impatient(mover: Arc<dyn Backend>) -> DiskTuning {
    let soon = Duration::from_millis(50);
    DiskTuning { patience: Patience { fetch: soon, other: soon, close: soon }, ..tuning(mover) }
}

fn stalling(folder: &Path) -> (Arc<Faulty>, Setup) {
    let faulty = Faulty::over(movers().remove(0));
    let setup = Setup { disk_tuning: impatient(faulty.clone()), ..setup(folder) };
    (faulty, setup)
}

/// A node of which these are on disk, and nothing moves.
async fn at_rest(setup: &Setup, all: &[Block]) -> (FakeCoordinator, NodeHandle) {
    let (coordinator, node) = filled(setup, all).await;
    node.settles("nothing moves", |stats| {
        // What moves has a frame where it is and one where it goes.
        let used = stats.device.used_bytes + stats.disk.used_bytes;
        let has_room = stats.device.used_bytes < (8 * FRAME) as u64;
        has_room && stats.readers == 0 && used == stats.blocks() * FRAME as u64
    })
    .await;
    (coordinator, node)
}

/// Which tiers the node's next heartbeat says it does without.
async fn told_closed(node: &NodeHandle) -> [bool; 3] {
    let asked = node.devices[0].ask(Duration::from_secs(10), |reply| DeviceMessage::Load { reply }).await;
    let (load, _) = asked.expect("the device answers");
    load.tiers.map(|tier| tier.closed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_done_without_until_it_has_room_again() {
    for mover in movers() {
        let folder = tempfile::tempdir().expect("a folder");
        let faulty = Faulty::over(mover);
        let setup = Setup { disk_tuning: tuning(faulty.clone()), ..setup(folder.path()) };
        let (_coordinator, node) = filled(&setup, &blocks(16)).await;
        let before = node.shard_stats().await.disk.blocks;
        faulty.has(Trouble::Full);
        let mut client = node.ask().await;
        for number in 100..140 {
            let stored = client.store(&[Block::new(number, FRAME)], Ack::Primary).await;
            assert_eq!(stored, Ok(vec![kept(1)]), "memory goes on");
        }
        eventually("the disk is closed", || !store_of(&node).is_open()).await;
        let page = super::life::get(node.metrics_address(), "/metrics").await;
        assert!(page.contains("kvhive_node_disk_open{device=\"0\"} 0\n"), "{page}");
        assert_eq!(told_closed(&node).await, [false, false, true], "the coordinators hear of it");
        assert!(!page.contains("kvhive_node_disk_write_failures_total{device=\"0\"} 0\n"), "{page}");
        assert!(come(&node, &blocks(1)).await[0], "what it has it still gives");
        let stats = node.shard_stats().await;
        assert!(stats.evicted > 0 && stats.lost == 0 && stats.disk.blocks <= before, "{stats:?}");
        faulty.has(Trouble::None);
        eventually("a probe opens it", || store_of(&node).is_open()).await;
        assert_eq!(told_closed(&node).await, [false; 3]);
        let more: Vec<Block> = (200..240).map(|number| Block::new(number, FRAME)).collect();
        fill(&node, &mut client, &more).await;
        assert!(node.shard_stats().await.disk.blocks > before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_disk_costs_what_it_held_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let faulty = Faulty::over(movers().remove(0));
    let setup = Setup { disk_tuning: tuning(faulty.clone()), ..setup(folder.path()) };
    let all = blocks(24);
    let (_coordinator, node) = filled(&setup, &all).await;
    faulty.has(Trouble::Broken);
    let come_now = come(&node, &all).await;
    assert!(come_now[..16].iter().all(|came| !came) && come_now[23], "{come_now:?}");
    let [(Bad::Io, unread)] = bad(&node)[..] else { panic!("{:?}", bad(&node)) };
    assert!(unread >= 16 && node.shard_stats().await.lost >= 16);
    eventually("the disk is closed", || !store_of(&node).is_open()).await;
    faulty.has(Trouble::None);
    eventually("a probe opens it", || store_of(&node).is_open()).await;
    let more: Vec<Block> = (0..24).map(|number| Block::new(number, FRAME)).collect();
    let mut client = node.ask().await;
    for block in &more {
        let stored = client.store(std::slice::from_ref(block), Ack::Primary).await.expect("the node serves");
        assert!(matches!(stored[..], [Stored::Kept { .. }]));
        node.settles("a frame is free again", |stats| stats.device.used_bytes < (8 * FRAME) as u64).await;
    }
    assert_eq!(come(&node, &more).await, [true; 24]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_answer_costs_hits_and_no_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let faulty = Faulty::over(movers().remove(0));
    let setup = Setup { disk_tuning: tuning(faulty.clone()), ..setup(folder.path()) };
    let all = blocks(24);
    let (_coordinator, node) = filled(&setup, &all).await;
    node.settles("nothing moves", |stats| stats.disk.blocks >= 16 && stats.readers == 0).await;
    faulty.has(Trouble::Silent);
    let mut client = node.ask().await;
    let found = client.fetch(&(0..24).collect::<Vec<_>>()).await.expect("the node serves");
    assert!(found[..16].iter().all(Option::is_none) && found[23].is_some());
    eventually("the disk is closed", || !store_of(&node).is_open()).await;
    assert_eq!(client.store(&[Block::new(100, FRAME)], Ack::Primary).await, Ok(vec![kept(1)]));
    faulty.has(Trouble::None);
    eventually("a probe opens it", || store_of(&node).is_open()).await;
    node.settles("nobody waits any more", |stats| stats.readers == 0).await;
    let come = come(&node, &all).await;
    assert!(come[..16].iter().all(|came| *came), "{come:?}");
    assert_eq!((bad(&node), node.shard_stats().await.lost), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_disk_keeps_no_more_memory_than_reads_may_take() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let setup = Setup { inflight_bytes: 2 * FRAME, ..setup };
    let all = blocks(24);
    let (_coordinator, node) = at_rest(&setup, &all).await;
    faulty.has(Trouble::Silent);
    let mut client = node.ask().await;
    for round in 0..6 {
        let found = client.fetch(&(0..16).collect::<Vec<_>>()).await.expect("the node serves");
        assert!(found.iter().all(Option::is_none), "{round}");
        let held = faulty.buffers_held(FRAME);
        assert!(held <= 2, "{held} blocks' buffers are with the disk after {round} fetches");
    }
    assert!(!store_of(&node).answers() && !store_of(&node).is_open());
    let stats = node.shard_stats().await;
    assert_eq!((stats.hits, stats.misses, stats.lost), (0, 6 * 16, 0), "each is a miss, and counted");
    assert_eq!(bad(&node), []);
    faulty.has(Trouble::None);
    eventually("a probe had an answer", || store_of(&node).answers() && store_of(&node).is_open()).await;
    assert_eq!(come(&node, &all[..16]).await, [true; 16]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_holds_all_that_it_may_leaves_another_device_its_room() {
    let (_coordinator, node) = Setup { devices: 2, ..Setup::default() }.one().await;
    let plane = &node.plane;
    let room = async |index: u16, permits: u32| {
        let device = DeviceId { member: node.member().expect("it is a member"), index };
        timeout(Duration::from_millis(50), plane.room(device, permits, permits)).await.ok().flatten()
    };
    let all = plane.device_permits(u64::MAX);
    let held = room(0, all).await;
    assert!(held.is_some() && room(0, 1).await.is_none());
    assert!(room(1, all).await.is_some(), "another disk is read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fell_silent_is_asked_for_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let all = blocks(24);
    let (_coordinator, node) = at_rest(&setup, &all).await;
    faulty.has(Trouble::Silent);
    let mut client = node.ask().await;
    let wanted: Vec<u64> = (0..16).collect();
    client.fetch(&wanted).await.expect("the node serves");
    assert!(!store_of(&node).answers());
    let asked = faulty.buffers_held(FRAME);
    for _ in 0..10 {
        let found = client.fetch(&wanted).await.expect("the node serves");
        assert!(found.iter().all(Option::is_none));
    }
    assert_eq!(faulty.buffers_held(FRAME), asked, "not one more read");
    assert_eq!(client.fetch(&[23]).await.expect("the node serves"), [Some(all[23].bytes.clone())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_tier_is_opened_by_nothing_but_a_disk_that_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let all = blocks(24);
    let (_coordinator, node) = at_rest(&setup, &all).await;
    let store = store_of(&node);
    let others: Vec<_> = std::iter::from_fn(|| store.take(0)).collect();
    assert!(!others.is_empty() && store.free_records() == 0);
    for trouble in [Trouble::Silent, Trouble::Broken] {
        faulty.has(Trouble::Silent);
        let mut client = node.ask().await;
        client.fetch(&(0..16).collect::<Vec<_>>()).await.expect("the node serves");
        assert!(!store.answers());
        faulty.has(trouble);
        let before = store.figures.probes();
        eventually("it was probed often", || store.figures.probes() >= before + 4).await;
        assert!(!store.answers() && !store.is_open(), "{trouble:?}");
        faulty.has(Trouble::None);
        eventually("a probe had an answer", || store.answers() && store.is_open()).await;
    }
    drop(others);
    assert_eq!(come(&node, &all[..16]).await, [true; 16], "a probe writes over no record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_does_not_end_is_given_up_and_done_again_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let (_coordinator, node) = at_rest(&setup, &blocks(12)).await;
    let before = node.shard_stats().await.demoted;
    faulty.has(Trouble::Silent);
    let mut client = node.ask().await;
    for number in 100..116 {
        let stored = client.store(&[Block::new(number, FRAME)], Ack::Primary).await;
        assert_eq!(stored, Ok(vec![kept(1)]), "memory goes on");
    }
    eventually("the disk is closed", || !store_of(&node).is_open()).await;
    assert!(faulty.has_writes() && node.shard_stats().await.demoted == before);
    faulty.has(Trouble::None);
    eventually("a probe had an answer", || store_of(&node).is_open()).await;
    let more: Vec<Block> = (200..216).map(|number| Block::new(number, FRAME)).collect();
    fill(&node, &mut client, &more).await;
    assert!(node.shard_stats().await.demoted > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_over_a_disk_that_does_not_answer_and_leaves_its_folder_locked() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let (_coordinator, node) = at_rest(&setup, &blocks(16)).await;
    faulty.has(Trouble::Silent);
    let mut client = node.ask().await;
    for number in 100..110 {
        client.store(&[Block::new(number, FRAME)], Ack::Primary).await.expect("memory goes on");
    }
    eventually("a write has no answer", || faulty.has_writes()).await;
    let (store, view) = (store_of(&node).clone(), node.plane.view.clone());
    let geometry = [Geometry { frame_bytes: FRAME as u64, records: 64 }];
    let (told, has_ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Far more than it takes: its steps end by themselves.
        node.shutdown(Duration::from_secs(3600));
        drop(node);
        let _ = told.send(());
    });
    let waits = tokio::task::spawn_blocking(move || has_ended.recv_timeout(Duration::from_secs(120)));
    waits.await.expect("no panic").expect("the node does not wait for the disk");
    let open = || {
        let tuning = DiskTuning { lock_limit: Duration::ZERO, ..tuning(faulty.clone()) };
        Store::open(&folder.path().join("device-0"), &geometry, faulty.clone(), view.clone(), None, &tuning)
    };
    let opened = open();
    assert!(matches!(opened, Err(DiskError::Shared { .. })), "the disk may still write to it");
    drop(store);
    // The disk has let go of the writes, and with them of the store.
    faulty.has(Trouble::None);
    assert!(open().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_a_disk_that_is_silent_at_the_start_is_taken_in_when_it_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let all = blocks(24);
    let (coordinator, node) = filled(&setup, &all).await;
    ended(node).await;
    faulty.has(Trouble::Silent);
    let node = setup.start("node-0", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    eventually("the disk is closed", || !store_of(&node).is_open()).await;
    assert_eq!(bad(&node), [], "nothing is known of its records yet");
    faulty.has(Trouble::None);
    knows_its_disk(&node).await;
    eventually("a probe had an answer", || store_of(&node).answers()).await;
    assert!(store_of(&node).figures.restored() >= 16);
    assert_eq!(bad(&node), []);
    assert_eq!(
        come(&node, &all).await.iter().filter(|came| **came).count() as u64,
        store_of(&node).figures.restored()
    );
}

/// Two nodes that are replicas of all slots, the first over a disk.
async fn pair(first: &Setup, second: &Setup) -> (FakeCoordinator, NodeHandle, NodeHandle) {
    let coordinator = FakeCoordinator::start().await;
    let first = first.start("node-0", &coordinator);
    // Who comes first is every slot's primary.
    eventually("it is a member", || first.member().is_some()).await;
    let second = second.start("node-1", &coordinator);
    for node in [&first, &second] {
        eventually("both serve by the whole map", || {
            let members = node.plane.view.serving().map_or(0, |serving| serving.map.members.len());
            node.is_serving() && members == 2
        })
        .await;
    }
    knows_its_disk(&first).await;
    (coordinator, first, second)
}

/// Stores these with both, so that the first has most of them on disk alone.
async fn stored_by_both(first: &NodeHandle, all: &[Block]) -> Asker {
    let mut client = first.ask().await;
    for block in all {
        assert_eq!(client.store(std::slice::from_ref(block), Ack::All).await, Ok(vec![kept(2)]));
        first.settles("a frame is free again", |stats| stats.device.used_bytes < (8 * FRAME) as u64).await;
    }
    first.settles("nothing moves", |stats| stats.disk.blocks >= 16 && stats.readers == 0).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_block_on_a_silent_disk_are_counted_where_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let (faulty, setup) = stalling(folder.path());
    let (_coordinator, first, second) = pair(&setup, &Setup::default()).await;
    let all = blocks(24);
    let mut client = stored_by_both(&first, &all).await;
    let sent = second.counted(|counters| &counters.stored_bytes);
    faulty.has(Trouble::Silent);
    for ack in [Ack::All, Ack::Quorum] {
        assert_eq!(client.store(&all[..4], ack).await, Ok(vec![already(2); 4]), "{ack:?}");
    }
    assert_eq!(second.counted(|counters| &counters.stored_bytes), sent, "and not sent again");
    assert_eq!(faulty.buffers_held(FRAME), 0, "nor read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_on_disk_is_brought_for_the_replica_that_lacks_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = setup(folder.path());
    let (_coordinator, first, second) = pair(&setup, &Setup::default()).await;
    let all = blocks(24);
    let mut client = stored_by_both(&first, &all).await;
    let panic = DeviceMessage::Panic;
    second.devices[0].actor().try_send(panic).expect("the mailbox has room");
    second.is_made_anew().await;
    Records::of(folder.path()).damage(1);
    let stored = client.store(&all[..3], Ack::All).await;
    let lost = Stored::Refused(Refusal::NoRoom);
    assert_eq!(
        stored,
        Ok(vec![already(2), lost, already(2)]),
        "what turns out to be lost is not acknowledged"
    );
    assert_eq!(client.store(&all[..3], Ack::All).await, Ok(vec![already(2), kept(2), already(2)]));
    let expected: Vec<_> = all[..3].iter().map(|block| Some(block.bytes.clone())).collect();
    assert_eq!(second.ask().await.fetch(&[0, 1, 2]).await, Ok(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_looked_for_in_another_life_is_not_taken_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let faulty = Faulty::over(movers().remove(0));
    let setup = Setup { disk_tuning: tuning(faulty.clone()), ..setup(folder.path()) };
    let all = blocks(24);
    let (coordinator, node) = filled(&setup, &all).await;
    let device = &node.devices[0];
    let limit = Duration::from_secs(5);
    let awaited = async || {
        let asked = device.ask(limit, |reply| DeviceMessage::AwaitsDisk { reply }).await;
        asked.expect("the device answers")
    };
    // No scan ends while the disk says nothing.
    faulty.has(Trouble::Silent);
    device.actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew().await;
    let before = awaited().await.expect("a new core knows nothing of its disk");
    coordinator.change(|map| {
        map.cluster = ClusterId(78);
        map.epoch = Epoch(0);
    });
    coordinator.fence();
    eventually("it serves by the new cluster's map", || {
        let serving = node.plane.view.serving();
        serving.is_some_and(|serving| serving.map.cluster.0 == 78) && node.is_serving()
    })
    .await;
    let now = awaited().await.expect("by another cluster's map it knows nothing again");
    assert!(before != now && now.cluster == Some(ClusterId(78)));
    let of_before = DiskLife { cluster: now.cluster, ..before };
    for old in [before, of_before] {
        let restored =
            device.ask(limit, |reply| DeviceMessage::Restore { life: old, found: Vec::new(), reply }).await;
        assert_eq!(restored, Ok(None));
        let all = device.ask(limit, |reply| DeviceMessage::Restored { life: old, reply }).await;
        assert_eq!(all, Ok(false));
    }
    assert_eq!(awaited().await, Some(now), "its own scan is still to come");
    faulty.has(Trouble::None);
    knows_its_disk(&node).await;
    eventually("a probe had an answer", || store_of(&node).answers()).await;
    let come = come(&node, &all).await;
    assert!(come.iter().filter(|came| **came).count() >= 16, "{come:?}");
}
