//! Nodes whose device tier is a GPU's memory. With `KVHIVE_TEST_GPU=fake` every story of these tests is told of such a node, by a driver
//! that is made for tests, and with `KVHIVE_TEST_GPU=real` of this machine's first GPU.

#[path = "../../../gpu/tests/fake/mod.rs"]
mod fake;

use super::asker::{Asker, Block, already, kept};
use super::proxy::{Proxy, Then};
use super::{KIB, MIB, Setup, eventually};
use crate::memory::Memory;
use crate::{ClassConfig, DeviceConfig, DeviceMemory, NodeError};
use fake::{Fake, FakeNvml};
use kvhive_cache::Tier;
use kvhive_gpu::cuda::Patience;
use kvhive_protocol::MemberId;
use kvhive_protocol::data::{Ack, Refusal, Stored};
use std::sync::LazyLock;
use std::sync::mpsc::channel;
use std::time::Duration;

/// The driver of this process, once it is taken: whoever looks for CUDA by its name finds it.
static DRIVER: LazyLock<Fake> = LazyLock::new(Fake::shared);

/// And what says what befalls its GPUs.
static NVML: LazyLock<FakeNvml> = LazyLock::new(|| FakeNvml::beside(&DRIVER));

/// What device tiers are made of in these tests.
pub(super) fn memory() -> DeviceMemory {
    match std::env::var("KVHIVE_TEST_GPU").as_deref() {
        Ok("fake") => {
            LazyLock::force(&NVML);
            DeviceMemory::Cuda(0)
        }
        Ok("real") => DeviceMemory::Cuda(0),
        Ok(other) => panic!("KVHIVE_TEST_GPU is fake or real, not {other:?}"),
        Err(_) => DeviceMemory::Host,
    }
}

/// Whether the stories are told of a real GPU.
pub(super) fn is_real() -> bool {
    std::env::var("KVHIVE_TEST_GPU").is_ok_and(|gpu| gpu == "real")
}

/// Returns where that driver is, for other processes.
pub(super) fn driver() -> &'static std::path::Path {
    DRIVER.folder()
}

/// A node's device tier on this machine's first GPU, or on one that is made for tests; and its driver, for other processes, which look for it
/// themselves where there is none.
pub(super) fn on_some_gpu() -> (Setup, Option<&'static std::path::Path>) {
    match is_real() {
        true => (Setup { memory: DeviceMemory::Cuda(0), ..Setup::default() }, None),
        false => (on_gpu(), Some(DRIVER.path())),
    }
}

/// Has a call of the driver fail once.
pub(super) fn fail(call: &str, nth: i32, code: i32) {
    DRIVER.fail(call, nth, code);
}

/// Has a call of the driver hang until it is let go on.
pub(super) fn hang(call: &str, nth: i32) {
    DRIVER.hang(call, nth);
}

/// Says whether GPUs reach each other's memory.
pub(super) fn reach_each_other(they_do: bool) {
    DRIVER.set("fake_peers", they_do.into());
}

/// Lets what hangs go on.
pub(super) fn release() {
    DRIVER.release();
}

/// A node's device tier on the first GPU of the driver that is made for tests.
pub(super) fn on_gpu() -> Setup {
    LazyLock::force(&DRIVER);
    LazyLock::force(&NVML);
    Setup { memory: DeviceMemory::Cuda(0), ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_holds_the_device_tier_and_blocks_move_between_it_and_the_host() {
    let setup = Setup { device_frames: 16, host_frames: 16, ..on_gpu() };
    let (coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..24 {
        assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a device frame is free again", |stats| stats.device.used_bytes < 16 * 64 * KIB as u64)
            .await;
    }
    let stats = node.shard_stats().await;
    assert!(stats.demoted >= 8 && stats.device.blocks > 8, "{stats:?}");
    for _ in 0..2 {
        for number in 0..24 {
            let found = client.fetch(&[number]).await;
            assert!(found == Ok(vec![Some(Block::new(number, 64 * KIB).bytes)]), "block {number}");
        }
    }
    node.settles("nobody reads", |stats| stats.readers == 0).await;
    let memory = &node.inside.memories[0];
    eventually("every frame is free or a block's", || {
        memory.free_frames(Tier::Device) + memory.free_frames(Tier::Host) == 8
    })
    .await;
    let described = &coordinator.devices(MemberId(1))[0];
    assert_eq!((described.kind.as_str(), described.device_bytes), ("cuda", 16 * 64 * KIB as u64));
    assert_eq!(memory.host_bytes(), 16 * 64 * KIB as u64, "the GPU's is not the host's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_are_whole_where_a_driver_pins_no_host_memory() {
    let setup = Setup { device_frames: 8, host_frames: 8, ..on_gpu() };
    DRIVER.fail("cuMemHostRegister_v2", 1, 2);
    let (_coordinator, node) = setup.one().await;
    assert_eq!(node.inside.memories[0].pinned_bytes(), 0, "it was refused");
    let mut client = node.ask().await;
    for number in 0..12 {
        assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a device frame is free again", |stats| stats.device.used_bytes < 8 * 64 * KIB as u64)
            .await;
    }
    for number in 0..12 {
        let found = client.fetch(&[number]).await;
        assert!(found == Ok(vec![Some(Block::new(number, 64 * KIB).bytes)]), "block {number}");
    }
}

/// A device's memory on the GPU of this number.
fn memory_on(gpu: u32) -> Memory {
    LazyLock::force(&NVML);
    let classes = vec![ClassConfig { frame_bytes: 64 << 10, share: 1 }];
    let memory = DeviceMemory::Cuda(gpu);
    let config = DeviceConfig { memory, device_bytes: 1 << 20, host_bytes: 0, disk_bytes: 0, classes };
    Memory::take(0, &config, false, (Patience::default(), 0)).expect("there is room").0
}

#[test]
fn memory_that_its_driver_does_not_lend_is_a_tier_all_the_same() {
    let memory = memory_on(0);
    DRIVER.fail("cuMemExportToShareableHandle", 1, 700);
    let gpu = memory.own_gpu().expect("its tier is a GPU's");
    assert!(gpu.slab.is_none() && gpu.slab_bytes == 1 << 20, "no worker has it, and nothing goes by NCCL");
    assert!(memory.own_gpu().is_some_and(|gpu| gpu.slab.is_some()), "once is once");
    let frame = memory.take_frame(Tier::Device, 0, 5).expect("a frame is free").filled(b"bytes");
    assert!(*frame.expect("its GPU takes it").read().expect("it is there") == b"bytes"[..]);
}

#[test]
fn a_frame_of_one_gpu_is_copied_to_one_of_another() {
    let (one, other) = (memory_on(0), memory_on(1));
    let take = |memory: &Memory| memory.take_frame(Tier::Device, 0, 50_000).expect("a frame is free");
    let bytes: Vec<u8> = (0..50_000u32).map(|at| (at ^ (at >> 8)) as u8).collect();
    let from = take(&one).filled(&bytes).expect("its GPU takes it");
    let (tell, told) = channel();
    from.copy(
        take(&other),
        |_| panic!("it is no copy of the host's"),
        move |copy| {
            assert!(tell.send(copy).is_ok(), "it is waited for");
        },
    );
    let copy = told.recv().expect("it ends").expect("they reach each other");
    assert!(*copy.read().expect("it is there") == bytes[..]);
    assert_eq!((one.free_frames(Tier::Device), other.free_frames(Tier::Device)), (16, 15));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_dies_takes_its_blocks_along_and_the_node_serves_the_rest() {
    let setup = Setup { device_frames: 8, host_frames: 8, ..on_gpu() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..12 {
        assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a device frame is free again", |stats| stats.device.used_bytes < 8 * 64 * KIB as u64)
            .await;
    }
    let before = node.shard_stats().await;
    assert!(before.device.blocks > 0 && before.host.blocks > 0, "{before:?}");
    DRIVER.set("fake_die", 719);
    let numbers: Vec<u64> = (0..12).collect();
    let found = client.fetch(&numbers).await.expect("the node serves");
    let hits = found.iter().flatten().count() as u64;
    for (number, bytes) in found.into_iter().enumerate() {
        assert!(
            bytes.is_none_or(|bytes| bytes == Block::new(number as u64, 64 * KIB).bytes),
            "block {number}"
        );
    }
    assert_eq!(hits, before.host.blocks, "those in the GPU's memory are misses");
    node.settles("the tier is lost", |stats| stats.device.capacity_bytes == 0).await;
    // All that comes from now on is kept in the host's memory.
    for number in 20..24 {
        assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
        let found = client.fetch(&[number]).await;
        assert!(found == Ok(vec![Some(Block::new(number, 64 * KIB).bytes)]), "block {number}");
    }
    let load = |reply| crate::actors::core::DeviceMessage::Load { reply };
    let (load, _) = node.devices[0].ask(Duration::from_secs(5), load).await.expect("it answers");
    assert_eq!(load.tiers.map(|tier| tier.closed), [true, false, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_what_a_gpu_that_died_held_is_not_answered_by_what_is_no_more() {
    let setup = Setup { device_frames: 8, host_frames: 8, ..on_gpu() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    let block = [Block::new(1, 64 * KIB)];
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![already(1)]));
    DRIVER.set("fake_die", 719);
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![Stored::Refused(Refusal::NoRoom)]));
    node.settles("the tier is lost", |stats| stats.device.capacity_bytes == 0).await;
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![kept(1)]), "the host has room");
    assert!(client.fetch(&[1]).await == Ok(vec![Some(block[0].bytes.clone())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_hangs_costs_its_tier_and_the_node_serves_the_rest_and_ends() {
    let patience = Patience { copy: Duration::from_millis(100), stall: Duration::from_millis(300) };
    for call in ["cuStreamSynchronize", "cuLaunchKernel", "cuCtxPushCurrent_v2"] {
        let setup = Setup { device_frames: 8, host_frames: 8, patience, ..on_gpu() };
        let (_coordinator, node) = setup.one().await;
        let mut client = node.ask().await;
        for number in 0..12 {
            assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
            node.settles("a device frame is free again", |stats| {
                stats.device.used_bytes < 8 * 64 * KIB as u64
            })
            .await;
        }
        let before = node.shard_stats().await;
        assert!(before.device.blocks > 0 && before.host.blocks > 0, "{before:?}");
        DRIVER.hang(call, 1);
        let numbers: Vec<u64> = (0..12).collect();
        let found = client.fetch(&numbers).await.expect("the node serves");
        let hits = found.iter().flatten().count() as u64;
        for (number, bytes) in found.into_iter().enumerate() {
            assert!(
                bytes.is_none_or(|bytes| bytes == Block::new(number as u64, 64 * KIB).bytes),
                "{call}: block {number}"
            );
        }
        assert_eq!(DRIVER.ask("fake_hung"), 1);
        assert_eq!(hits, before.host.blocks, "{call}: those in the GPU's memory are misses");
        node.settles("the tier is lost", |stats| stats.device.capacity_bytes == 0).await;
        node.settles("nobody waits", |stats| stats.readers + stats.filling == 0).await;
        for number in 20..24 {
            assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
            let found = client.fetch(&[number]).await;
            assert!(found == Ok(vec![Some(Block::new(number, 64 * KIB).bytes)]), "{call}: block {number}");
        }
        // It ends by itself, hanging GPU and all.
        tokio::task::spawn_blocking(move || {
            node.shutdown(Duration::from_secs(30));
            node.wait().expect("it has ended as it was told");
        })
        .await
        .expect("it ends");
        assert_eq!(DRIVER.ask("fake_hung"), 1, "{call}");
        DRIVER.release();
        eventually("nothing hangs", || DRIVER.ask("fake_hung") == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_its_driver_says_is_lost_is_lost_at_once() {
    let setup = Setup { device_frames: 8, host_frames: 8, ..on_gpu() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    let block = [Block::new(1, 64 * KIB)];
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![kept(1)]));
    // A program's own mistake costs nothing.
    NVML.befall(0, 8, 31);
    eventually("it was heard", || NVML.ask("fake_pending") == 0).await;
    assert!(client.fetch(&[1]).await == Ok(vec![Some(block[0].bytes.clone())]));
    // Nobody copies anything.
    NVML.befall(0, 8, 79);
    node.settles("the tier is lost", |stats| stats.device.capacity_bytes == 0).await;
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![kept(1)]), "the host has room");
    assert!(client.fetch(&[1]).await == Ok(vec![Some(block[0].bytes.clone())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_while_its_gpu_hangs_and_is_not_yet_known_to() {
    let patience = Patience { copy: Duration::from_millis(100), stall: Duration::from_secs(3600) };
    let setup = Setup { device_frames: 8, host_frames: 8, patience, ..on_gpu() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    let block = [Block::new(1, 64 * KIB)];
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![kept(1)]));
    DRIVER.hang("cuStreamSynchronize", 1);
    assert_eq!(client.fetch(&[1]).await, Ok(vec![None]), "it does not come in time");
    let refused = client.store(&[Block::new(2, 64 * KIB)], Ack::Primary).await;
    assert_eq!(refused, Ok(vec![kept(1)]), "the way up does not hang");
    drop(client);
    tokio::task::spawn_blocking(move || drop(node)).await.expect("it ends");
    DRIVER.release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_cut_while_its_gpu_hangs_is_given_up_at_once() {
    let patience = Patience { copy: Duration::from_millis(100), stall: Duration::from_secs(3600) };
    let setup = Setup { frame_bytes: MIB, device_frames: 4, patience, ..on_gpu() };
    let (_coordinator, node) = setup.one().await;
    // The first block is whole, and on its way to the GPU, when the second is cut.
    let proxy = Proxy::before(node.data_address(), 1536 * KIB, Then::Cut).await;
    let member = node.member().expect("it is a member");
    let mut dying = Asker::connect(&proxy.address(), member).await.expect("the proxy passes it on");
    DRIVER.hang("cuMemcpyHtoDAsync_v2", 1);
    let both = [Block::new(1, MIB), Block::new(2, MIB)];
    dying.try_store(&both, Ack::Primary).await.expect_err("it is cut");
    node.settles("both writes are over", |stats| stats.filling == 0 && stats.abandoned == 2).await;
    eventually("its copy hangs", || DRIVER.ask("fake_hung") == 1).await;
    assert_eq!(node.shard_stats().await.given_up, 1, "the GPU may write to one of the frames yet");
    assert_eq!(node.inside.memories[0].free_frames(Tier::Device), 3);
    let mut client = node.ask().await;
    let refused = client.store(&both[..1], Ack::Primary).await;
    assert_eq!(
        refused,
        Ok(vec![Stored::Refused(Refusal::NoRoom)]),
        "it goes behind what hangs, not for what is under way"
    );
    DRIVER.release();
    node.settles("its frames are there again", |stats| stats.given_up + stats.filling == 0).await;
    assert_eq!(node.inside.memories[0].free_frames(Tier::Device), 4);
    assert_eq!(client.store(&both, Ack::Primary).await, Ok(vec![kept(1); 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_a_lost_gpu_may_write_to_is_given_up_until_it_is_let_go_of() {
    let patience = Patience { copy: Duration::from_millis(100), stall: Duration::from_millis(300) };
    let setup = Setup { device_frames: 4, host_frames: 4, patience, ..on_gpu() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    DRIVER.hang("cuMemcpyHtoDAsync_v2", 1);
    let block = [Block::new(1, 64 * KIB)];
    let refused = client.store(&block, Ack::Primary).await;
    assert_eq!(refused, Ok(vec![Stored::Refused(Refusal::NoRoom)]));
    node.settles("the tier is lost", |stats| stats.device.capacity_bytes == 0).await;
    assert_eq!(node.shard_stats().await.given_up, 1, "its lane was given up, and has the frame");
    assert_eq!(client.store(&block, Ack::Primary).await, Ok(vec![kept(1)]), "in the host's memory");
    DRIVER.release();
    node.settles("nothing writes to it any more", |stats| stats.given_up + stats.filling == 0).await;
    assert!(client.fetch(&[1]).await == Ok(vec![Some(block[0].bytes.clone())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_fails_once_costs_one_store_and_no_more() {
    let (_coordinator, node) = on_gpu().one().await;
    let mut client = node.ask().await;
    DRIVER.fail("cuMemcpyHtoDAsync_v2", 1, 1);
    let block = Block::new(1, 64 * KIB);
    let refused = client.store(std::slice::from_ref(&block), Ack::Primary).await;
    assert_eq!(refused, Ok(vec![Stored::Refused(Refusal::NoRoom)]));
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::Primary).await, Ok(vec![kept(1)]));
    // What follows a store waits for the GPU too, and may be what fails: it costs nothing then, and the next time it is the fetch.
    let mut is_missed = false;
    for _ in 0..20 {
        DRIVER.fail("cuStreamSynchronize", 1, 1);
        let found = client.fetch(&[1]).await;
        is_missed = found == Ok(vec![None]);
        if is_missed {
            break;
        }
        assert_eq!(found, Ok(vec![Some(block.bytes.clone())]));
    }
    assert!(is_missed, "it does not come that time");
    assert_eq!(client.fetch(&[1]).await, Ok(vec![Some(block.bytes)]));
    node.settles("nobody reads", |stats| stats.readers + stats.filling == 0).await;
    eventually("no frame is leaked", || node.inside.memories[0].free_frames(Tier::Device) == 31).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_is_not_there_is_told_or_done_without_as_was_said() {
    let coordinator = super::FakeCoordinator::start().await;
    let setup = Setup { memory: DeviceMemory::Cuda(7), ..on_gpu() };
    let error = setup.try_start("node-0", &coordinator).err().expect("there is no such GPU");
    assert!(matches!(&error, NodeError::Gpu { device: 0, .. }), "{error}");
    assert_eq!(error.to_string(), "device 0: there is no GPU 7: this process sees 2");
    let node = Setup { memory: DeviceMemory::Auto(7), ..setup }.start("node-1", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    let block = Block::new(1, KIB);
    assert_eq!(node.ask().await.store(std::slice::from_ref(&block), Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(coordinator.devices(MemberId(1))[0].kind, "host");
    // A GPU that is there and has not so much is a mistake all the same.
    let large = Setup { memory: DeviceMemory::Auto(1), device_frames: 8192, ..Setup::default() };
    let error = large.try_start("node-2", &coordinator).err().expect("it has 256 MiB");
    assert!(error.to_string().starts_with("device 0: GPU 1 (Fake 1) cannot give "), "{error}");
}
