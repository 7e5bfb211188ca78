//! The disk tier's encryption in a real node: what stands on disk, what a tenant's end destroys, and what is refused.

use super::asker::Block;
use super::disk::{Records, again, bad, blocks, come, ended, fill, filled, knows_its_disk, setup, store_of};
use super::{Setup, eventually};
use crate::DiskKeys;
use crate::disk::Bad;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const PAGE: usize = 4096;

/// Says whether any file below a folder has these bytes.
fn holds(folder: &Path, what: &[u8]) -> bool {
    fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds(&path, what);
        }
        fs::read(path).expect("readable").windows(what.len()).any(|part| part == what)
    })
}

/// Returns the data keys' files.
fn keys(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder.join("keys")).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tenant-")))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_that_an_engine_computed_is_found_on_disk() {
    for disk_keys in [DiskKeys::default(), DiskKeys::Off] {
        let folder = tempfile::tempdir().expect("a folder");
        let setup = Setup { disk_keys: disk_keys.clone(), ..setup(folder.path()) };
        let all = blocks(20);
        let (_coordinator, node) = filled(&setup, &all).await;
        assert_eq!(come(&node, &all).await, [true; 20]);
        ended(node).await;
        // A few bytes of each, and the digest that would tell whether a guess is right.
        let found = |block: &Block| {
            holds(folder.path(), &block.bytes[1000..1032])
                || holds(folder.path(), &kvhive_protocol::block::digest(&block.bytes).to_le_bytes())
        };
        let found = all.iter().filter(|block| found(block)).count();
        match disk_keys {
            DiskKeys::On(_) => assert_eq!(found, 0),
            DiskKeys::Off => assert!(found >= 12, "this test finds what is there: {found}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_s_key_is_destroyed_before_its_end_is_confirmed_and_what_it_opened_is_noise() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    let member = node.member().expect("it is a member");
    assert_eq!(keys(folder.path()).len(), 1);
    let (tenants, epoch) = coordinator.delete_tenants();
    eventually("the node has confirmed it", || coordinator.has_confirmed(member, epoch)).await;
    assert_eq!(keys(folder.path()), Vec::<std::path::PathBuf>::new(), "confirmed is what has been done");
    ended(node).await;
    // Also a coordinator that has the tenant again, its era and its secret, gets nothing.
    coordinator.change(|map| map.tenants = tenants.clone());
    let node = again(&setup, &coordinator).await;
    assert_eq!(store_of(&node).figures.restored(), 0);
    let [(Bad::Foreign, lost)] = bad(&node)[..] else { panic!("{:?}", bad(&node)) };
    assert!(lost >= 12, "records of which nobody has the key: {lost}");
    assert!(!come(&node, &all).await.contains(&true));
    fill(&node, &mut node.ask().await, &all).await;
    assert_eq!(come(&node, &all).await, [true; 20], "it begins with another key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_destroys_the_key_when_it_learns_of_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    ended(node).await;
    assert_eq!(keys(folder.path()).len(), 1);
    let (_, epoch) = coordinator.delete_tenants();
    let node = setup.start("node-0", &coordinator);
    eventually("it has confirmed the map", || {
        node.member().is_some_and(|member| coordinator.has_confirmed(member, epoch))
    })
    .await;
    assert_eq!(keys(folder.path()).len(), 0);
    knows_its_disk(&node).await;
    assert_eq!(store_of(&node).figures.restored(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_whose_key_cannot_be_destroyed_is_not_confirmed_until_it_is_and_its_node_falls_silent() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    let member = node.member().expect("it is a member");
    // A file that cannot be overwritten: it is a folder.
    let [key] = &keys(folder.path())[..] else { panic!("one tenant has one key") };
    fs::remove_file(key).expect("a file");
    fs::create_dir(key).expect("a folder");
    let (_, epoch) = coordinator.delete_tenants();
    eventually("it serves by the new map", || {
        node.plane.view.serving().is_some_and(|serving| serving.map.epoch >= epoch)
    })
    .await;
    let answer = node.ask().await.fetch(&[0]).await;
    assert!(!answer.is_ok_and(|found| found[0].is_some()), "what has ended is served no more all the same");
    // By a heartbeat, every 20 ms, the coordinators would take it for one that is up.
    eventually("heartbeats stop", || coordinator.silence() >= Duration::from_secs(1)).await;
    assert!(!node.is_serving() && !coordinator.has_confirmed(member, epoch));
    // Meanwhile it was declared down.
    coordinator.fence();
    let down = coordinator.epoch();
    fs::remove_dir(key).expect("an empty folder");
    eventually("it has registered anew and confirms", || coordinator.has_confirmed(member, down.next()))
        .await;
    eventually("it serves", || node.is_serving()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_version_without_encryption_wrote_meanwhile_is_gone_after_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    ended(node).await;
    let marker = b"what an engine computed for somebody";
    fs::write(folder.path().join("device-0").join("records-4096"), marker).expect("writable");
    let node = again(&setup, &coordinator).await;
    assert!(!holds(folder.path(), marker));
    assert!(store_of(&node).figures.restored() >= 12, "what is encrypted is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_changed_with_its_checksum_is_a_counted_miss() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    let path = folder.path().join("device-0").join(format!("sealed-{}", super::disk::FRAME));
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    // Slot, salt, what is hidden, and its tag.
    for (number, byte) in [80, 192, 216, 240].into_iter().enumerate() {
        let at = Records::of(folder.path()).at(number as u64);
        let mut page = vec![0; PAGE];
        file.read_exact_at(&mut page, at).expect("readable");
        page[byte] ^= 1;
        let sum = blake3::hash(&page[..PAGE - 32]);
        page[PAGE - 32..].copy_from_slice(sum.as_bytes());
        file.write_all_at(&page, at).expect("writable");
    }
    file.sync_all().expect("it reaches the disk");
    assert_eq!(come(&node, &all[..5]).await, [false, false, false, false, true]);
    assert_eq!(bad(&node), [(Bad::Forged, 4)]);
    let page = super::life::get(node.metrics_address(), "/metrics").await;
    assert!(
        page.contains("kvhive_node_disk_bad_records_total{device=\"0\",reason=\"forged\"} 4\n"),
        "{page}"
    );
    assert!(page.contains("kvhive_node_disk_keys 1\n"), "{page}");
    ended(node).await;
    let node = again(&setup, &coordinator).await;
    assert_eq!(bad(&node), [(Bad::Forged, 4)], "a start takes none of them in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_was_plain_begins_anew_when_it_is_encrypted_and_the_other_way_round() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = blocks(20);
    let with = |disk_keys| Setup { disk_keys, ..setup(folder.path()) };
    let (coordinator, node) = filled(&with(DiskKeys::Off), &all).await;
    ended(node).await;
    let node = again(&with(DiskKeys::Off), &coordinator).await;
    assert!(store_of(&node).figures.restored() >= 12, "what is plain is read on as it is");
    ended(node).await;
    let node = again(&with(DiskKeys::default()), &coordinator).await;
    assert_eq!((store_of(&node).figures.restored(), bad(&node)), (0, vec![]));
    assert!(!holds(folder.path(), &all[0].bytes[1000..1032]), "and stands there no more");
    fill(&node, &mut node.ask().await, &all).await;
    assert_eq!(keys(folder.path()).len(), 1);
    ended(node).await;
    let node = again(&with(DiskKeys::Off), &coordinator).await;
    assert_eq!((store_of(&node).figures.restored(), bad(&node)), (0, vec![]));
    assert_eq!(keys(folder.path()).len(), 0);
}
