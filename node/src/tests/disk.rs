//! The disk tier of a real node: what comes back, what a damaged record comes to, what a failing disk does.

use super::asker::{Asker, Block, kept, key};
use super::{KIB, Setup, eventually};
use crate::actors::core::DeviceMessage;
use crate::disk::fault::{Faulty, Trouble};
use crate::disk::{Backend, Bad, DiskTuning, Mover, ProbeWaits, Store, movers, record_bytes};
use crate::{DiskKeys, NodeHandle};
use kvhive_cache::ShardStats;
use kvhive_protocol::data::Ack;
use kvhive_protocol::{ClusterId, Epoch, Era, WireError};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) const FRAME: usize = 64 * KIB;
const RECORD: u64 = (4 * KIB + FRAME) as u64;
const MEMORY: usize = 8;

pub(super) fn tuning(mover: Arc<dyn Backend>) -> DiskTuning {
    let waits = ProbeWaits { least: Duration::from_millis(20), most: Duration::from_millis(40) };
    DiskTuning { mover: Mover::Given(mover), waits, ..DiskTuning::default() }
}

/// A node with room for few blocks in memory and many on disk.
pub(super) fn setup(folder: &Path) -> Setup {
    let waits = ProbeWaits { least: Duration::from_millis(20), most: Duration::from_millis(40) };
    let disk_tuning = DiskTuning { waits, ..DiskTuning::default() };
    Setup { device_frames: MEMORY, disk: Some((folder.to_owned(), 64)), disk_tuning, ..Setup::default() }
}

pub(super) fn store_of(node: &NodeHandle) -> &Arc<Store> {
    node.inside.stores[0].as_ref().expect("its device has a disk")
}

pub(super) async fn knows_its_disk(node: &NodeHandle) {
    for _ in 0..4000 {
        let awaits = |reply| DeviceMessage::AwaitsDisk { reply };
        let awaits = node.devices[0].ask(Duration::from_secs(5), awaits).await;
        if awaits == Ok(None) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the node never took its disk in");
}

/// Stores these one after another, each when there is room in memory without giving one up.
pub(super) async fn fill(node: &NodeHandle, client: &mut Asker, blocks: &[Block]) {
    for block in blocks {
        assert_eq!(client.store(std::slice::from_ref(block), Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a frame is free again", |stats| stats.device.used_bytes < (MEMORY * FRAME) as u64)
            .await;
    }
}

pub(super) fn blocks(count: u64) -> Vec<Block> {
    (0..count).map(|number| Block::new(number, FRAME)).collect()
}

/// A running node that has stored these, most of them on disk.
pub(super) async fn filled(setup: &Setup, blocks: &[Block]) -> (super::FakeCoordinator, NodeHandle) {
    let (coordinator, node) = setup.one().await;
    knows_its_disk(&node).await;
    fill(&node, &mut node.ask().await, blocks).await;
    (coordinator, node)
}

pub(super) async fn ended(node: NodeHandle) {
    let ending = tokio::task::spawn_blocking(move || node.shutdown(Duration::from_secs(10)));
    ending.await.expect("shutdown does not panic");
}

pub(super) async fn again(setup: &Setup, coordinator: &super::FakeCoordinator) -> NodeHandle {
    let node = setup.start("node-0", coordinator);
    eventually("it serves", || node.is_serving()).await;
    knows_its_disk(&node).await;
    node
}

/// Fetches all of these one by one, says which came, and checks every byte that did.
pub(super) async fn come(node: &NodeHandle, blocks: &[Block]) -> Vec<bool> {
    let mut client = node.ask().await;
    let mut come = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        let found = client.fetch(&[number as u64]).await.expect("the node serves").remove(0);
        assert!(found.as_ref().is_none_or(|bytes| *bytes == block.bytes), "block {number} has wrong bytes");
        come.push(found.is_some());
    }
    come
}

pub(super) fn bad(node: &NodeHandle) -> Vec<(Bad, u64)> {
    let count = |bad: &Bad| (*bad, store_of(node).figures.bad(*bad));
    Bad::ALL.iter().map(count).filter(|(_, count)| *count > 0).collect()
}

/// The record file of a folder.
pub(super) struct Records(fs::File, Vec<u8>);

impl Records {
    pub(super) fn of(folder: &Path) -> Records {
        let path = folder.join("device-0").join(format!("sealed-{FRAME}"));
        let bytes = fs::read(&path).expect("readable");
        Records(fs::OpenOptions::new().write(true).open(path).expect("writable"), bytes)
    }

    /// Says where the record of a block begins; of several, the one written last.
    pub(super) fn at(&self, number: u64) -> u64 {
        let names = |at: &usize| self.1[*at + 104..*at + 136] == *key(number).as_bytes();
        let written = |at: &usize| u64::from_le_bytes(self.1[*at + 24..*at + 32].try_into().expect("eight"));
        let all = (0..self.1.len()).step_by(RECORD as usize).filter(names);
        all.max_by_key(written).expect("it is on disk") as u64
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, at).expect("writable");
        self.0.sync_all().expect("it reaches the disk");
    }

    /// Damages the bytes of a block.
    pub(super) fn damage(&self, number: u64) {
        self.flip(self.at(number) + RECORD - 1);
    }

    fn flip(&self, at: u64) {
        self.put(at, &[self.1[at as usize] ^ 0x40]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_come_back_from_disk_bit_for_bit_whatever_moves_them() {
    let movers = movers();
    assert!(movers.iter().any(|mover| mover.name() == "threads"));
    for mover in movers {
        let folder = tempfile::tempdir().expect("a folder");
        let setup = Setup { disk_tuning: tuning(mover.clone()), ..setup(folder.path()) };
        let sizes = [FRAME, 0, 1, 4096, 4097, 10_001, FRAME - 1];
        let blocks: Vec<Block> =
            (0..40u64).map(|number| Block::new(number, sizes[number as usize % sizes.len()])).collect();
        let (_coordinator, node) = filled(&setup, &blocks).await;
        let stats = node.shard_stats().await;
        assert!(stats.disk.blocks >= 32 && stats.blocks() == 40 && stats.evicted == 0, "{stats:?}");
        assert_eq!(come(&node, &blocks).await, [true; 40], "{}", mover.name());
        let all: Vec<u64> = (0..40).collect();
        let found = node.ask().await.fetch(&all).await.expect("the node serves");
        assert!(found.iter().zip(&blocks).all(|(found, block)| found.as_ref() == Some(&block.bytes)));
        let stats = node.shard_stats().await;
        assert_eq!((stats.hits, stats.misses, stats.lost), (80, 0, 0));
        assert_eq!(bad(&node), []);
        // Each is counted where it came from: what the disk's reads brought up, and no fetch, is no hit.
        let whole = node.stats();
        assert!(whole.disk.blocks > 0 && whole.disk.hits > 0 && whole.device.hits > 0, "{whole:?}");
        assert_eq!(whole.device.hits + whole.disk.hits, 80);
        assert!(store_of(&node).figures.blocks_read() >= whole.disk.hits);
        let page = super::life::get(node.metrics_address(), "/metrics").await;
        let line = format!("kvhive_node_tier_hits_total{{device=\"0\",tier=\"disk\"}} {}\n", whole.disk.hits);
        assert!(page.contains(&line), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ended_in_order_finds_its_disk_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, blocks) = (setup(folder.path()), blocks(30));
    let (coordinator, node) = filled(&setup, &blocks).await;
    ended(node).await;
    let node = again(&setup, &coordinator).await;
    let restored = store_of(&node).figures.restored();
    assert!(restored >= 30 - MEMORY as u64, "{restored}");
    let come = come(&node, &blocks).await;
    assert_eq!(come.iter().filter(|came| **came).count() as u64, restored);
    assert_eq!(bad(&node), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_killed_finds_what_had_reached_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, blocks) = (setup(folder.path()), blocks(30));
    let (coordinator, node) = filled(&setup, &blocks).await;
    let on_disk = node.shard_stats().await.disk.blocks;
    drop(node);
    let node = again(&setup, &coordinator).await;
    assert!(store_of(&node).figures.restored() >= on_disk);
    let come = come(&node, &blocks).await;
    assert!(come.iter().filter(|came| **came).count() as u64 >= on_disk, "{come:?}");
    // And goes on from there: what it finds is evicted for what comes, as ever.
    let more: Vec<Block> = (100..200).map(|number| Block::new(number, FRAME)).collect();
    fill(&node, &mut node.ask().await, &more).await;
    let stats = node.shard_stats().await;
    assert!(stats.evicted > 0 && stats.disk.blocks <= 64, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_broke_finds_its_disk_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, blocks) = (setup(folder.path()), blocks(30));
    let (_coordinator, node) = filled(&setup, &blocks).await;
    node.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew().await;
    knows_its_disk(&node).await;
    let come = come(&node, &blocks).await;
    assert!(come.iter().filter(|came| **came).count() >= 30 - MEMORY, "{come:?}");
    assert_eq!(bad(&node), []);
}

/// Where a record is flipped, and what that comes to when it is read.
fn regions() -> Vec<(u64, Bad)> {
    let page = [0, 7, 8, 12, 16, 24, 32, 48, 80, 83, 88, 96, 104, 140, 160, 176, 184, 500, 4063, 4064, 4095];
    let bytes = [4096, 4097, 4096 + FRAME as u64 / 2, RECORD - 4096, RECORD - 1];
    let page = page.into_iter().map(|at| (at, Bad::Damaged));
    page.chain(bytes.into_iter().map(|at| (at, Bad::Torn))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_with_any_part_flipped_is_a_counted_miss() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = setup(folder.path());
    let regions = regions();
    let all = blocks(regions.len() as u64 + MEMORY as u64);
    let (_coordinator, node) = filled(&setup, &all).await;
    node.settles("nothing moves", |stats| stats.disk.blocks >= regions.len() as u64).await;
    let records = Records::of(folder.path());
    for (number, (at, _)) in regions.iter().enumerate() {
        records.flip(records.at(number as u64) + at);
    }
    let come = come(&node, &all[..regions.len()]).await;
    assert_eq!(come, vec![false; regions.len()]);
    let torn = regions.iter().filter(|(_, bad)| *bad == Bad::Torn).count() as u64;
    assert_eq!(bad(&node), [(Bad::Damaged, regions.len() as u64 - torn), (Bad::Torn, torn)]);
    let stats = node.shard_stats().await;
    assert_eq!((stats.hits, stats.misses, stats.lost), (0, regions.len() as u64, regions.len() as u64));
    assert_eq!(node.ask().await.covered(&[0]).await, Ok(0), "it is not found again");
    let page = super::life::get(node.metrics_address(), "/metrics").await;
    let line = format!("kvhive_node_disk_bad_records_total{{device=\"0\",reason=\"torn\"}} {torn}\n");
    assert!(page.contains(&line), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_flipped_while_the_node_was_down_is_a_counted_miss() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = setup(folder.path());
    let regions = regions();
    let all = blocks(regions.len() as u64 + MEMORY as u64);
    let (coordinator, node) = filled(&setup, &all).await;
    ended(node).await;
    let records = Records::of(folder.path());
    for (number, (at, _)) in regions.iter().enumerate() {
        records.flip(records.at(number as u64) + at);
    }
    let node = again(&setup, &coordinator).await;
    assert_eq!(come(&node, &all[..regions.len()]).await, vec![false; regions.len()]);
    let torn = regions.iter().filter(|(_, bad)| *bad == Bad::Torn).count() as u64;
    assert_eq!(bad(&node), [(Bad::Damaged, regions.len() as u64 - torn), (Bad::Torn, torn)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_in_the_place_of_another_is_foreign_and_one_that_is_gone_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (_coordinator, node) = filled(&setup, &all).await;
    let records = Records::of(folder.path());
    let whole = |number: u64| {
        let at = records.at(number) as usize;
        records.1[at..at + RECORD as usize].to_vec()
    };
    let (first, second) = (whole(1), whole(2));
    records.put(records.at(1), &second);
    records.put(records.at(2), &first);
    records.put(records.at(3), &vec![0; RECORD as usize]);
    // The page of one, the bytes of another.
    records.put(records.at(4) + 4096, &first[4096..]);
    let come = come(&node, &all[..6]).await;
    assert_eq!(come, [true, false, false, false, false, true]);
    assert_eq!(bad(&node), [(Bad::Missing, 1), (Bad::Foreign, 2), (Bad::Torn, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_write_is_a_counted_miss() {
    let folder = tempfile::tempdir().expect("a folder");
    let faulty = Faulty::over(movers().remove(0));
    let setup = Setup { disk_tuning: tuning(faulty.clone()), ..setup(folder.path()) };
    let (coordinator, node) = setup.one().await;
    knows_its_disk(&node).await;
    faulty.has(Trouble::Tears);
    let all = blocks(20);
    fill(&node, &mut node.ask().await, &all).await;
    let on_disk = node.shard_stats().await.disk.blocks;
    drop(node);
    let node = again(&setup, &coordinator).await;
    assert!(store_of(&node).figures.restored() >= on_disk, "their pages are whole");
    assert!(!come(&node, &all).await.contains(&true));
    let [(Bad::Torn, torn)] = bad(&node)[..] else { panic!("{:?}", bad(&node)) };
    assert!(torn >= on_disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cleared_while_the_node_was_down_does_not_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    ended(node).await;
    let (era, _) = coordinator.clear();
    let node = again(&setup, &coordinator).await;
    assert_eq!(store_of(&node).figures.restored(), 0);
    assert!(!come(&node, &all).await.contains(&true));
    // Their places are free for blocks of the new era, which are found by the next start.
    let fresh: Vec<Block> = (0..20).map(|number| Block::in_era(number, FRAME, era)).collect();
    fill(&node, &mut node.ask().await, &fresh).await;
    assert_eq!(come(&node, &fresh).await, [true; 20]);
    ended(node).await;
    let node = again(&setup, &coordinator).await;
    assert!(store_of(&node).figures.restored() >= 20 - MEMORY as u64);
    assert_ne!(era, Era(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clear_of_a_running_node_ends_what_is_on_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    let (_, epoch) = coordinator.clear();
    let member = node.member().expect("it is a member");
    eventually("the node has confirmed it", || coordinator.has_confirmed(member, epoch)).await;
    assert!(!come(&node, &all).await.contains(&true));
    node.settles("all places are free", |stats| stats.disk.used_bytes + stats.device.used_bytes == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_another_cluster_s_tenant_are_foreign() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    ended(node).await;
    coordinator.change(|map| map.tenants.values_mut().for_each(|tenant| tenant.secret = [8; 32]));
    let node = again(&setup, &coordinator).await;
    let [(Bad::Foreign, foreign)] = bad(&node)[..] else { panic!("{:?}", bad(&node)) };
    assert!(foreign >= 20 - MEMORY as u64);
    assert!(!come(&node, &all).await.contains(&true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_that_were_made_anew_get_nothing_from_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let (setup, all) = (setup(folder.path()), blocks(20));
    let (coordinator, node) = filled(&setup, &all).await;
    coordinator.change(|map| {
        map.cluster = ClusterId(78);
        map.epoch = Epoch(0);
        map.tenants.values_mut().for_each(|tenant| tenant.secret = [8; 32]);
    });
    coordinator.fence();
    eventually("it serves by the new cluster's map", || {
        let serving = node.plane.view.serving();
        serving.is_some_and(|serving| serving.map.cluster.0 == 78) && node.is_serving()
    })
    .await;
    knows_its_disk(&node).await;
    assert!(!come(&node, &all).await.contains(&true));
    assert_eq!(node.shard_stats().await.blocks(), 0);
    fill(&node, &mut node.ask().await, &all).await;
    assert_eq!(come(&node, &all).await, [true; 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_match_brings_blocks_up_before_they_are_fetched() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = Setup { host_frames: 8, ..setup(folder.path()) };
    let (_coordinator, node) = filled(&setup, &blocks(40)).await;
    let mut client = node.ask().await;
    let full = (MEMORY * FRAME) as u64;
    let has_room = |stats: &ShardStats| stats.device.used_bytes < full && stats.host.used_bytes < full;
    node.settles("each tier of memory has a free frame", has_room).await;
    let before = node.shard_stats().await;
    assert_eq!(client.covered(&[0]).await, Ok(1));
    node.settles("it was brought up", |stats| stats.promoted > before.promoted).await;
    let reads = |node: &NodeHandle| store_of(node).figures.blocks_read();
    let read_before = reads(&node);
    assert_eq!(client.fetch(&[0]).await, Ok(vec![Some(Block::new(0, FRAME).bytes)]));
    let stats = node.shard_stats().await;
    assert_eq!((reads(&node), stats.prefetch_useful), (read_before, 1), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = setup(folder.path());
    let (coordinator, _node) = setup.one().await;
    let impatient = DiskTuning { lock_limit: Duration::ZERO, ..DiskTuning::default() };
    let refused = Setup { disk_tuning: impatient.clone(), ..setup }.try_start("node-1", &coordinator);
    let refused = refused.err().expect("the folder is taken").to_string();
    assert!(refused.contains("/keys is in use by another node"), "{refused}");
    // Nor where they have no keys.
    let folder = tempfile::tempdir().expect("a folder");
    let plain = Setup { disk_keys: DiskKeys::Off, ..self::setup(folder.path()) };
    let (coordinator, _node) = plain.one().await;
    let refused = Setup { disk_tuning: impatient, ..plain }.try_start("node-1", &coordinator);
    let refused = refused.err().expect("the folder is taken").to_string();
    assert!(refused.contains("device-0") && refused.contains("in use by another node"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_follow_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = setup(folder.path());
    let (coordinator, node) = filled(&before, &blocks(40)).await;
    ended(node).await;
    let file = |frame: usize| folder.path().join("device-0").join(format!("sealed-{frame}"));
    let len = |path: PathBuf| fs::metadata(path).map(|found| found.len()).ok();
    assert_eq!(len(file(FRAME)), Some(64 * RECORD));
    let smaller = Setup { disk: Some((folder.path().to_owned(), 8)), ..setup(folder.path()) };
    let node = again(&smaller, &coordinator).await;
    assert_eq!((len(file(FRAME)), store_of(&node).figures.restored()), (Some(8 * RECORD), 8));
    ended(node).await;
    let other = Setup { frame_bytes: 2 * FRAME, ..setup(folder.path()) };
    let node = again(&other, &coordinator).await;
    assert_eq!(len(file(FRAME)), None, "files of sizes that are no more are gone");
    assert_eq!(len(file(2 * FRAME)), Some(64 * record_bytes(2 * FRAME as u64)));
    assert_eq!(store_of(&node).figures.restored(), 0);
}

/// None while the node has no lease: a machine under load may be late for it.
fn served<T: std::fmt::Debug>(answer: Result<T, WireError>) -> Option<T> {
    assert!(matches!(answer, Ok(_) | Err(WireError::NoLease)), "{answer:?}");
    answer.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_writers_over_a_disk_get_their_blocks_or_none() {
    for mover in movers() {
        let folder = tempfile::tempdir().expect("a folder");
        let setup = Setup { host_frames: 8, disk_tuning: tuning(mover), ..setup(folder.path()) };
        let (_coordinator, node) = setup.one().await;
        knows_its_disk(&node).await;
        let mut askers = tokio::task::JoinSet::new();
        for task in 0..4u64 {
            let mut client = node.ask().await;
            askers.spawn(async move {
                let mut hits = 0;
                for round in 0..400u64 {
                    let number = (round * 7 + task * 13) % 120;
                    let wanted = [number, (number + 1) % 120, (number + 50) % 120];
                    let Some(found) = served(client.fetch(&wanted).await) else { continue };
                    for (number, bytes) in wanted.into_iter().zip(found) {
                        if let Some(bytes) = bytes {
                            assert!(bytes == Block::new(number, FRAME).bytes, "block {number}");
                            hits += 1;
                        }
                    }
                    served(client.covered(&wanted[..1]).await);
                    served(client.store(&[Block::new(number, FRAME)], Ack::Primary).await);
                }
                hits
            });
        }
        let hits = askers.join_all().await;
        let stats = node.shard_stats().await;
        assert!(stats.demoted > 0 && stats.promoted > 0 && stats.evicted > 0, "{stats:?}");
        assert!(hits.iter().all(|hits| *hits > 0), "{hits:?}");
        assert_eq!((bad(&node), stats.lost), (vec![], 0));
        node.settles("nobody reads or moves", |stats| stats.readers + stats.leaving + stats.filling == 0)
            .await;
        node.settles("every record is free or a block's", |stats| {
            u64::from(store_of(&node).free_records()) + stats.disk.blocks == 64
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_for_another_node_holds_what_is_on_disk_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = blocks(24);
    let (_coordinator, node) = filled(&setup(&folder.path().join("disk")), &all).await;
    let path = folder.path().join("snapshot");
    assert_eq!(node.persist(&path, |_| {}).expect("it is written").blocks, 24);
    let stats = node.shard_stats().await;
    assert_eq!((stats.hits, stats.misses), (0, 0), "nobody has fetched anything");
    let (_coordinator, other) = Setup::default().one().await;
    assert_eq!(other.load(&path, None, |_| {}).expect("it is whole").blocks, 24);
    assert_eq!(come(&other, &all).await, [true; 24]);
}
