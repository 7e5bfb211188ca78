//! A snapshot where one layout is served: what is of another stays out.

use super::asker::Block;
use super::persist::{BLOCKS, blocks, filled, forget, save};
use super::{KIB, Setup};
use kvhive_protocol::data::Ack;
use kvhive_protocol::{Layout, LayoutFingerprint};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_layout_of_the_same_size_is_refused_where_one_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let (_coordinator, node) = filled(&Setup::default()).await;
    save(&node, &path);
    forget(&node).await;
    let own = blocks()[0].header.fingerprint;
    let other = Layout::opaque(16 * KIB as u32, 99).fingerprint();
    assert_eq!(LayoutFingerprint::parse(&own.to_string()), Some(own));
    let refused = node.load(&path, Some(other), |_| {}).expect_err("nothing is of that layout").to_string();
    assert!(refused.contains(&own.to_string()) && refused.contains(&other.to_string()), "{refused}");
    assert_eq!(node.stats().device.blocks, 0);
    let loaded = node.load(&path, Some(own), |_| {}).expect("all of it is of this one");
    assert_eq!((loaded.blocks, loaded.other_layout), (BLOCKS, 0));
    // With blocks of both, those of the other are left out and counted.
    let mut foreign = Block::new(BLOCKS, 16 * KIB);
    foreign.header.fingerprint = other;
    let stored = node.ask().await.store(&[foreign], Ack::Primary).await;
    assert_eq!(stored.map(|stored| stored.len()), Ok(1));
    assert_eq!(node.persist(&path, |_| {}).expect("it is written").blocks, BLOCKS + 1);
    forget(&node).await;
    let loaded = node.load(&path, Some(own), |_| {}).expect("most of it is of this one");
    assert_eq!((loaded.blocks, loaded.other_layout), (BLOCKS, 1), "{loaded:?}");
}
