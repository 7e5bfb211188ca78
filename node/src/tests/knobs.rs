//! Knobs on their way into a node: what each of them sets is what the node does. That each mode turns them is tested where the
//! cluster file is read, what a codec, a priority and a collection do where they are.

use super::asker::Block;
use super::disk::setup;
use super::{FakeCoordinator, KIB, Setup};
use crate::NodeHandle;
use crate::disk::{DiskTuning, Mover, movers};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::Ack;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_the_cluster_how_blocks_are_stored_on_it() {
    for codec in [Codec::Raw, Codec::Lossless, Codec::Int8] {
        let (coordinator, _node) = Setup { codec, ..Setup::default() }.one().await;
        assert_eq!(coordinator.codecs(), [codec]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_orders_what_waits_by_its_nodes_priority() {
    for priority in [4, 64] {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let mover = Mover::MadeBy(Arc::new(move |priority| {
            noted.lock().expect("nobody panics here").push(priority);
            movers().remove(0)
        }));
        let disk_tuning = DiskTuning { mover, ..DiskTuning::default() };
        let (_coordinator, _node) = Setup { priority, disk_tuning, ..setup(folder.path()) }.one().await;
        assert_eq!(*seen.lock().expect("nobody panics here"), [priority]);
    }
}

/// A node whose device is full, and which is to move some of it down.
async fn full(batch_delay: Duration) -> (FakeCoordinator, NodeHandle) {
    let setup =
        Setup { frame_bytes: 4 * KIB, device_frames: 32, host_frames: 32, batch_delay, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let mut asker = node.ask().await;
    for number in 0..32 {
        asker.store(&[Block::new(number, 4 * KIB)], Ack::Primary).await.expect("there is room");
    }
    (coordinator, node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_wait_waits_for_the_batch_delay() {
    let (_slow, slow) = full(Duration::from_secs(3600)).await;
    let (_fast, fast) = full(Duration::from_millis(2)).await;
    fast.settles("it has moved some down", |stats| stats.demoted > 0).await;
    let stats = slow.shard_stats().await;
    assert_eq!((stats.demoted, stats.device.blocks, stats.host.blocks), (0, 32, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_comes_back_for_what_its_policies_are_still_to_be_told() {
    // After the first piece nothing but its own haste has it tell the others: a second batch is an hour away.
    let (_coordinator, node) = full(Duration::from_secs(3600)).await;
    let mut asker = node.ask().await;
    let all: Vec<u64> = (0..32).collect();
    for _ in 0..200 {
        assert_eq!(asker.covered(&all).await, Ok(32));
    }
    let waiting = node.shard_stats().await.untold;
    assert!(waiting > 4096, "{waiting} blocks' uses wait");
    let tend = crate::actors::core::DeviceMessage::Tend;
    node.devices[0].actor().try_send(tend).expect("the mailbox has room");
    node.settles("all is told", |stats| stats.untold == 0).await;
}
