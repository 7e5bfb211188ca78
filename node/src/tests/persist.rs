//! Snapshots of a real node: what comes back, what is refused, what an interruption leaves.

use super::asker::Block;
use super::{KIB, Setup, eventually};
use crate::actors::core::DeviceMessage;
use crate::{Loaded, NodeHandle, PersistConfig, PersistError, Saved};
use kvhive_protocol::data::Ack;
use std::fs;
use std::path::Path;
use std::time::Duration;

const BLOCKS: u64 = 12;

fn blocks() -> Vec<Block> {
    (0..BLOCKS).map(|number| Block::new(number, 16 * KIB)).collect()
}

async fn filled(setup: &Setup) -> (super::FakeCoordinator, NodeHandle) {
    let (coordinator, node) = setup.one().await;
    let stored = node.ask().await.store(&blocks(), Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(BLOCKS as usize));
    (coordinator, node)
}

fn save(node: &NodeHandle, path: &Path) -> Saved {
    let mut told = 0;
    let saved = node.persist(path, |progress| told = progress.blocks).expect("it is written");
    assert_eq!(told, BLOCKS, "progress ends at the end");
    saved
}

/// Makes the node forget everything.
async fn forget(node: &NodeHandle) {
    node.inside.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew().await;
    assert_eq!(node.ask().await.fetch(&[1]).await, Ok(vec![None]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_persisted_is_there_again_after_a_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    let bytes = BLOCKS * 16 * KIB as u64;
    assert_eq!(save(&node, &path), Saved { blocks: BLOCKS, bytes, resumed: 0 });
    let again = node.load(&path, |_| {}).expect("it is whole");
    assert_eq!(again, Loaded { already: BLOCKS, ..Loaded::default() });
    forget(&node).await;
    let loaded = node.load(&path, |_| {}).expect("it is whole");
    assert_eq!(loaded, Loaded { blocks: BLOCKS, bytes, ..Loaded::default() });
    let numbers: Vec<u64> = (0..BLOCKS).collect();
    let found = node.ask().await.fetch(&numbers).await.expect("an answer");
    assert_eq!(found, blocks().into_iter().map(|block| Some(block.bytes)).collect::<Vec<_>>());
    assert_eq!(node.stats().device.blocks, BLOCKS);
    // A second one takes the place of the first as a whole.
    assert_eq!(save(&node, &path).blocks, BLOCKS);
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1, "nothing is left beside it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_run_has_written_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    // As if it had been cut off before it took its place: whole segments, and half of one.
    let shop = folder.path().join("snapshot.partial");
    fs::rename(&path, &shop).expect("movable");
    fs::write(shop.join("000009.partial"), b"half").expect("writable");
    assert!(matches!(node.load(&path, |_| {}), Err(PersistError::Io { .. })), "half a snapshot is none");
    assert_eq!(save(&node, &path).resumed, BLOCKS);
    forget(&node).await;
    assert_eq!(node.load(&path, |_| {}).expect("it is whole").blocks, BLOCKS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_block_is_a_counted_miss_and_a_damaged_manifest_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    let segment = path.join("000000.seg");
    let mut bytes = fs::read(&segment).expect("readable");
    // Within the last block's bytes.
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    fs::write(&segment, bytes).expect("writable");
    forget(&node).await;
    let loaded = node.load(&path, |_| {}).expect("the rest is whole");
    assert_eq!((loaded.blocks, loaded.damaged), (BLOCKS - 1, 1), "{loaded:?}");
    for block in node
        .ask()
        .await
        .fetch(&(0..BLOCKS).collect::<Vec<_>>())
        .await
        .expect("an answer")
        .iter()
        .zip(blocks())
    {
        assert!(block.0.as_ref().is_none_or(|bytes| *bytes == block.1.bytes), "never a wrong byte");
    }
    let manifest = path.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("readable");
    fs::write(&manifest, text.replace("\"blocks\": 12", "\"blocks\": 13")).expect("writable");
    assert!(matches!(node.load(&path, |_| {}), Err(PersistError::Damaged { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_layout_or_secret_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    let (_other, small) = Setup { frame_bytes: 8 * KIB, ..Setup::default() }.one().await;
    let refused = small.load(&path, |_| {}).expect_err("its frames are too small").to_string();
    assert!(refused.contains("16384") && refused.contains("8192") && refused.contains("layout"), "{refused}");
    coordinator.change(|map| {
        map.tenants.values_mut().for_each(|tenant| tenant.secret = [8; 32]);
    });
    eventually("the node has the new secret", || {
        node.inside
            .plane
            .view
            .serving()
            .is_some_and(|serving| serving.map.tenants.values().all(|one| one.secret == [8; 32]))
    })
    .await;
    let refused = node.load(&path, |_| {}).expect_err("its keys name nothing").to_string();
    assert!(refused.contains("secret of tenant \"default\""), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ended_in_order_begins_with_what_it_held() {
    let folder = tempfile::tempdir().expect("a folder");
    let persist = PersistConfig { folder: folder.path().join("snapshot"), every: None };
    let setup = Setup { persist: Some(persist), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(Duration::from_secs(30));
    let again = setup.start("node-0", &coordinator);
    eventually("the snapshot is taken in", || {
        again.counted(|counters| &counters.snapshot_loaded_blocks) == BLOCKS
    })
    .await;
    let numbers: Vec<u64> = (0..BLOCKS).collect();
    let found = again.ask().await.fetch(&numbers).await.expect("an answer");
    assert_eq!(found, blocks().into_iter().map(|block| Some(block.bytes)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_begins_with_its_last_periodic_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let persist =
        PersistConfig { folder: folder.path().join("snapshot"), every: Some(Duration::from_millis(20)) };
    let setup = Setup { persist: Some(persist), ..Setup::default() };
    let (coordinator, node) = filled(&setup).await;
    let written = node.counted(|counters| &counters.snapshots);
    // The first to end may have begun before the last block came.
    eventually("a snapshot of all blocks", || node.counted(|counters| &counters.snapshots) >= written + 2)
        .await;
    drop(node);
    let again = setup.start("node-0", &coordinator);
    eventually("the snapshot is taken in", || {
        again.counted(|counters| &counters.snapshot_loaded_blocks) == BLOCKS
    })
    .await;
}
