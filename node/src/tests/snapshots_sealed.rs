//! Snapshots of a node that encrypts what it keeps on disk: what stands there, and what a tenant's end leaves of it.

use super::coordinator::TENANT;
use super::persist::{BLOCKS, blocks, filled, names};
use super::{Setup, eventually};
use crate::persist::{Extent, save};
use crate::{DiskKeys, NodeHandle, PersistConfig, Saved};
use kvhive_protocol::block::digest;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

fn kept_at(path: &Path, disk_keys: DiskKeys) -> Setup {
    let persist = Some(PersistConfig { folder: path.to_owned(), every: None });
    Setup { persist, disk_keys, ..Setup::default() }
}

/// Says whether any file below a folder has bytes of a block, or its digest.
fn holds_some(folder: &Path) -> bool {
    let blocks = blocks();
    let parts: Vec<Vec<u8>> = blocks
        .iter()
        .flat_map(|block| [block.bytes[1000..1032].to_vec(), digest(&block.bytes).to_le_bytes().to_vec()])
        .collect();
    fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds_some(&path);
        }
        let bytes = fs::read(path).expect("readable");
        parts.iter().any(|part| bytes.windows(part.len()).any(|bytes| bytes == part))
    })
}

fn loaded(node: &NodeHandle) -> u64 {
    node.counted(|counters| &counters.snapshot_loaded_blocks)
}

/// Writes a snapshot as the node itself does.
async fn saved(node: &NodeHandle, path: &Path) -> Saved {
    save(&node.holdings, path, None, Extent::All, &mut |_| {}).await.expect("it is written")
}

/// Has one begun at `path` and broken off; then puts a whole segment of `from` there.
async fn interrupt(node: &NodeHandle, path: &Path, from: &Path) {
    let (holdings, at) = (node.holdings.clone(), path.to_owned());
    let broken = tokio::spawn(async move {
        save(&holdings, &at, None, Extent::All, &mut |_| panic!("a test wants it so")).await
    });
    assert!(broken.await.is_err(), "it breaks off");
    let shop = path.with_extension("partial");
    assert_eq!(names(&shop), ["000000.partial", "run.json"]);
    fs::copy(from.join("000000.seg"), shop.join("000000.seg")).expect("writable");
}

fn keys(path: &Path) -> usize {
    let names = names(&path.with_extension("keys").join("keys"));
    names.iter().filter(|name| name.starts_with("tenant-")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_has_no_byte_of_a_block_and_ends_with_its_tenant() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let setup = kept_at(&path, DiskKeys::default());
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(LIMIT);
    assert!(path.join("manifest.json").exists() && !holds_some(folder.path()));
    let node = setup.start("node-0", &coordinator);
    eventually("it is taken in", || loaded(&node) == BLOCKS).await;
    let numbers: Vec<u64> = (0..BLOCKS).collect();
    let found = node.ask().await.fetch(&numbers).await.expect("an answer");
    assert!(found == blocks().into_iter().map(|block| Some(block.bytes)).collect::<Vec<_>>());
    // A copy that somebody made, and what an operator has under a name, end too.
    let (copy, named) = (folder.path().join("copy"), folder.path().join("snapshot@mine"));
    saved(&node, &named).await;
    fs::create_dir(&copy).expect("writable");
    for name in names(&path) {
        fs::copy(path.join(&name), copy.join(&name)).expect("writable");
    }
    assert_eq!(node.load(&copy, None, |_| {}).expect("it is read").already, BLOCKS);
    assert_eq!(keys(&path), 1);
    let member = node.member().expect("it is a member");
    let (tenants, epoch) = coordinator.delete_tenants();
    eventually("it has confirmed the end", || coordinator.has_confirmed(member, epoch)).await;
    assert_eq!(keys(&path), 0, "confirmed is what has been done");
    // Whoever has the tenant again, with its era and its secret, gets nothing.
    coordinator.change(|map| map.tenants = tenants);
    let epoch = coordinator.epoch();
    eventually("it has the tenant again", || coordinator.has_confirmed(member, epoch)).await;
    for one in [&copy, &named] {
        let loaded = node.load(one, None, |_| {}).expect("it is read");
        assert_eq!((loaded.blocks, loaded.ended), (0, BLOCKS), "{}: {loaded:?}", one.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_snapshot_is_read_on_and_replaced_by_an_encrypted_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (coordinator, node) = filled(&kept_at(&path, DiskKeys::Off)).await;
    node.shutdown(LIMIT);
    assert!(holds_some(&path), "this test finds what is there");
    let sealed = kept_at(&path, DiskKeys::default());
    for _ in 0..2 {
        let node = sealed.start("node-0", &coordinator);
        eventually("it is taken in", || loaded(&node) == BLOCKS).await;
        node.shutdown(LIMIT);
        assert!(!holds_some(folder.path()));
    }
    // And back: nobody has the keys any more.
    let node = kept_at(&path, DiskKeys::Off).start("node-0", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    let loaded = node.load(&path, None, |_| {}).expect("it is read");
    assert_eq!((loaded.blocks, loaded.ended, keys(&path)), (0, BLOCKS, 0), "{loaded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_folder_that_cannot_be_opened_costs_no_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let setup = kept_at(&path, DiskKeys::default());
    let (coordinator, node) = filled(&setup).await;
    node.shutdown(LIMIT);
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, b"").expect("writable");
    // One whose keys cannot be there, and one whose tier cannot.
    let no_tier = folder.path().join("disk");
    fs::create_dir(&no_tier).expect("writable");
    fs::write(no_tier.join("device-0"), b"").expect("writable");
    for wrong in [no_folder, no_tier] {
        let wrong = Setup { disk: Some((wrong, 8)), ..kept_at(&path, DiskKeys::default()) };
        assert!(wrong.try_start("node-0", &coordinator).is_err());
        assert_eq!(keys(&path), 1);
    }
    let node = setup.start("node-0", &coordinator);
    eventually("it is taken in", || loaded(&node) == BLOCKS).await;
    node.shutdown(LIMIT);
    // With a folder that is right its keys are there, and those of the snapshot are destroyed.
    let right = Setup { disk: Some((folder.path().join("right"), 8)), ..kept_at(&path, DiskKeys::default()) };
    let node = right.start("node-0", &coordinator);
    assert_eq!(keys(&path), 0);
    node.shutdown(LIMIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_run_that_was_interrupted_is_gone_on_with_as_far_as_its_keys_are_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, path) = (folder.path().join("whole"), folder.path().join("other"));
    let setup = kept_at(&folder.path().join("snapshot"), DiskKeys::default());
    let (coordinator, node) = filled(&setup).await;
    saved(&node, &whole).await;
    interrupt(&node, &path, &whole).await;
    assert_eq!(saved(&node, &path).await.resumed, BLOCKS);
    assert!(!holds_some(folder.path()));
    interrupt(&node, &folder.path().join("third"), &whole).await;
    // The tenant ends and is there again as it was: it has another key from then on.
    let member = node.member().expect("it is a member");
    let (tenants, epoch) = coordinator.delete_tenants();
    assert!(tenants.contains_key(&TENANT));
    eventually("it has confirmed the end", || coordinator.has_confirmed(member, epoch)).await;
    coordinator.change(|map| map.tenants = tenants);
    let epoch = coordinator.epoch();
    eventually("it has the tenant again", || coordinator.has_confirmed(member, epoch)).await;
    let stored = node.ask().await.store(&blocks(), kvhive_protocol::data::Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(BLOCKS as usize));
    let saved = saved(&node, &folder.path().join("third")).await;
    assert_eq!((saved.blocks, saved.resumed), (BLOCKS, 0), "what nobody can read is written anew");
}
