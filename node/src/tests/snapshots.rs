//! What becomes of a snapshot that was not taken in whole, of what an interrupted run has left, and of those beside it.

use super::asker::Block;
use super::persist::{BLOCKS, admin, bearer, filled, forget, interrupt, names, outcome, save};
use super::{KIB, Setup, eventually};
use crate::{NodeHandle, PersistConfig};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::ReplicaSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

fn kept_at(path: &Path, every: Option<Duration>) -> Setup {
    Setup { persist: Some(PersistConfig { folder: path.to_owned(), every }), ..Setup::default() }
}

fn loaded(node: &NodeHandle) -> u64 {
    node.counted(|counters| &counters.snapshot_loaded_blocks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_run_has_written_of_blocks_that_are_gone_does_not_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, path) = (folder.path().join("whole"), folder.path().join("snapshot"));
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &whole);
    forget(&node).await;
    let held: Vec<u64> = (BLOCKS / 2..BLOCKS).chain([20, 21]).collect();
    let blocks: Vec<Block> = held.iter().map(|number| Block::new(*number, 16 * KIB)).collect();
    let stored = node.ask().await.store(&blocks, Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(held.len()));
    interrupt(&node, &path, &whole);
    let saved = node.persist(&path, |_| {}).expect("it is written");
    assert_eq!((saved.blocks, saved.resumed), (BLOCKS / 2 + 2, BLOCKS / 2));
    forget(&node).await;
    let taken_in = node.load(&path, None, |_| {}).expect("it is whole");
    assert_eq!((taken_in.blocks, taken_in.damaged), (BLOCKS / 2 + 2, 0), "{taken_in:?}");
    let found = node.ask().await.fetch(&held).await.expect("an answer");
    assert_eq!(found, blocks.into_iter().map(|block| Some(block.bytes)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_half_of_the_memory_has_no_room_for_is_there_when_memory_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let before = folder.path().join("snapshot@before");
    let setup = kept_at(&path, None);
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(LIMIT);
    let manifest = fs::read(path.join("manifest.json")).expect("it was written");
    // Half of its memory by mistake, and twice, for nobody has looked.
    for start in 0..2 {
        let small = Setup { device_frames: 8, ..kept_at(&path, None) };
        let halved = small.start("node-0", &coordinator);
        eventually("what there is room for is taken in", || loaded(&halved) >= 7).await;
        halved.shutdown(LIMIT);
        assert!(fs::read(before.join("manifest.json")).expect("it stands") == manifest, "start {start}");
        assert!(fs::read(path.join("manifest.json")).expect("it was written") != manifest, "start {start}");
    }
    let again = setup.start("node-0", &coordinator);
    eventually("all is taken in", || loaded(&again) == BLOCKS).await;
    let numbers: Vec<u64> = (0..BLOCKS).collect();
    let found = again.ask().await.fetch(&numbers).await.expect("an answer");
    assert!(found.iter().all(Option::is_some));
    eventually("what was put aside is of no more use", || !before.exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_slots_that_come_back_late_are_taken_in_then() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (coordinator, node) = filled(&kept_at(&path, None)).await;
    node.shutdown(LIMIT);
    let lock = fs::File::open(path.with_extension("lock")).expect("it is there");
    lock.lock().expect("nobody has it");
    let again = kept_at(&path, Some(Duration::from_millis(20))).start("node-0", &coordinator);
    eventually("it waits", || again.counted(|counters| &counters.snapshot_failures) > 0).await;
    let mut slots = Arc::default();
    coordinator.change(|map| {
        let none = Arc::new(vec![ReplicaSet::default(); map.slots.len()]);
        slots = std::mem::replace(&mut map.slots, none);
    });
    let epoch = coordinator.epoch();
    let member = again.member().expect("it serves");
    eventually("it has no slots", || coordinator.has_confirmed(member, epoch)).await;
    drop(lock);
    eventually("it writes what it has", || again.counted(|counters| &counters.snapshots) > 1).await;
    assert_eq!(loaded(&again), 0);
    coordinator.change(|map| map.slots = slots);
    eventually("its blocks are taken in", || loaded(&again) == BLOCKS).await;
    eventually("what was put aside is of no more use", || !folder.path().join("snapshot@before").exists())
        .await;
    again.shutdown(LIMIT);
    let last = kept_at(&path, None).start("node-0", &coordinator);
    eventually("its own has them", || loaded(&last) == BLOCKS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_snapshots_are_few_and_are_listed_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_coordinator, node) = filled(&kept_at(&folder.path().join("snapshot"), None)).await;
    let persist = async |name: &str| {
        let body = serde_json::json!({ "name": name }).to_string();
        let (status, _) = admin(&node, "POST", "/v1/snapshot/persist", &bearer(), &body).await;
        (status, outcome(&node).await)
    };
    for number in 0..crate::persist::MAX_NAMED {
        assert_eq!(persist(&format!("n{number}")).await.1["persisted"]["blocks"], BLOCKS);
    }
    let (_, refused) = persist("more").await;
    assert!(refused["failed"].as_str().is_some_and(|why| why.contains("n0, n1")), "{refused}");
    assert_eq!(persist("n3").await.1["persisted"]["blocks"], BLOCKS, "one that stands is replaced");
    // As a run that was killed leaves one.
    fs::create_dir(folder.path().join("snapshot@n8.partial")).expect("writable");
    let listed = async || {
        let (status, all) = admin(&node, "GET", "/v1/snapshots", &bearer(), "").await;
        assert_eq!(status, 200);
        let all = all["snapshots"].as_array().expect("a list").clone();
        let name = |one: &serde_json::Value| one["name"].as_str().expect("a name").to_owned();
        all.iter()
            .map(|one| (name(one), one["blocks"].as_u64(), one["written_s"].is_u64()))
            .collect::<Vec<_>>()
    };
    let mut wanted: Vec<(String, Option<u64>, bool)> =
        (0..8).map(|number| (format!("n{number}"), Some(BLOCKS), true)).collect();
    wanted.push(("n8".to_owned(), Some(0), false));
    assert_eq!(listed().await, wanted);
    for name in ["n8", "n0"] {
        let (status, told) = admin(&node, "DELETE", &format!("/v1/snapshots/{name}"), &bearer(), "").await;
        assert_eq!((status, &told["removed"]), (200, &name.into()));
    }
    assert_eq!(listed().await, wanted[1..8]);
    assert_eq!(persist("more").await.1["persisted"]["blocks"], BLOCKS);
    for name in ["n0", "..", "%2e%2e%2fother", "more.old"] {
        assert_eq!(
            admin(&node, "DELETE", &format!("/v1/snapshots/{name}"), &bearer(), "").await.0,
            404,
            "{name}"
        );
    }
    assert_eq!(admin(&node, "DELETE", "/v1/snapshots/more", "Bearer wrong", "").await.0, 401);
    assert_eq!(persist("before").await.0, 400, "that is the node's own");
    assert!(names(folder.path()).contains(&"snapshot@more".to_owned()));
}
