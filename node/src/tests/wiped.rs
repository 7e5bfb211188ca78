//! What a tenant leaves in a node's memory when it ends, as a process sees it that maps that memory, or as the node's own frames have it.

use super::asker::{Block, kept};
use super::coordinator::{FakeCoordinator, TENANT};
use super::share::opened;
use super::{KIB, Setup, eventually, gpu};
use crate::{DeviceMemory, NodeHandle};
use kvhive_cache::Tier;
use kvhive_client::{Opened, Windows};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Tenant;
use kvhive_protocol::share::{Looked, SharedAt};
use kvhive_protocol::{Epoch, Era, TenantId, TenantRules};

const OTHER: TenantId = TenantId(2);
const FRAME: usize = 64 * KIB;

/// Gives the coordinator another tenant and waits until the node knows it.
async fn with_another(coordinator: &FakeCoordinator, node: &NodeHandle) {
    let other = Tenant { name: "other".into(), era: Era(1), secret: [8; 32], rules: TenantRules::default() };
    coordinator.change(|map| drop(map.tenants.insert(OTHER, other)));
    confirmed(coordinator, node, coordinator.epoch()).await;
}

async fn confirmed(coordinator: &FakeCoordinator, node: &NodeHandle, epoch: Epoch) {
    let member = node.member().expect("it is a member");
    eventually("the node has confirmed the map", || coordinator.has_confirmed(member, epoch)).await;
}

async fn wiped(node: &NodeHandle) {
    eventually("what it left is wiped", || node.inside.memories[0].unwiped_bytes() == 0).await;
}

fn block_of(tenant: TenantId, number: u64, len: usize) -> Block {
    let mut block = Block::new(number, len);
    block.header.tenant = tenant;
    block
}

fn seen(opened: &Opened, at: SharedAt) -> Vec<u8> {
    let mut bytes = vec![0x77; FRAME];
    opened.copy(at, &mut bytes).expect("there is such a place");
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_maps_a_node_s_memory_finds_nothing_of_a_tenant_that_was_deleted() {
    let setup = Setup { memory: DeviceMemory::Host, device_frames: 6, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    with_another(&coordinator, &node).await;
    let mut client = node.ask().await;
    // More than there is room for: some have left, and others lie in their frames. Half of these are shorter.
    for number in 0..4 {
        let block = block_of(TENANT, number, FRAME);
        assert_eq!(client.store(&[block], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    client.tenant = OTHER;
    let others: Vec<Block> = (10..14)
        .map(|number| block_of(OTHER, number, if number % 2 == 0 { FRAME } else { FRAME - 20_000 }))
        .collect();
    for block in &others {
        assert_eq!(client.store(std::slice::from_ref(block), Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let windows = Windows::new().expect("Linux says which host this is");
    let opened = opened(&windows, &node).await;
    let place = |one: &Looked| match one {
        Looked::At(_, at) => *at,
        other => panic!("it is to be seen: {other:?}"),
    };
    let (_, found) = client.look(opened.start(), &[10, 11, 12, 13]).await;
    let their_places: Vec<SharedAt> = found.iter().map(place).collect();
    client.tenant = TENANT;
    let (grant, found) = client.look(opened.start(), &[2, 3]).await;
    let own_places: Vec<SharedAt> = found.iter().map(place).collect();
    assert!(seen(&opened, own_places[1]) == block_of(TENANT, 3, FRAME).bytes, "this test sees what is there");

    coordinator.change(|map| drop(map.tenants.remove(&TENANT)));
    confirmed(&coordinator, &node, coordinator.epoch()).await;
    // Blocks that somebody looks at stay until then.
    client.done(grant).await;
    node.settles("they have left", |stats| stats.device.blocks == 4).await;
    wiped(&node).await;
    eventually("their frames are zeros", || {
        own_places.iter().all(|at| seen(&opened, *at).iter().all(|byte| *byte == 0))
    })
    .await;
    for (block, at) in others.iter().zip(their_places) {
        let (own, rest) = (seen(&opened, at), &seen(&opened, at)[block.bytes.len()..]);
        assert!(own[..block.bytes.len()] == block.bytes, "another tenant's block is still what it was");
        assert!(rest.iter().all(|byte| *byte == 0), "and nothing of a longer one is left behind it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_s_memory_is_wiped_too() {
    let (setup, _) = gpu::on_some_gpu();
    let setup = Setup { device_frames: 4, ..setup };
    let (coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..4 {
        assert_eq!(client.store(&[Block::new(number, FRAME)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let (_, epoch) = coordinator.delete_tenants();
    confirmed(&coordinator, &node, epoch).await;
    let memory = &node.inside.memories[0];
    eventually("they have left", || memory.free_frames(Tier::Device) == 4).await;
    wiped(&node).await;
    let frames: Vec<_> = (0..4).filter_map(|_| memory.take_frame(Tier::Device, 0, FRAME as u64)).collect();
    assert_eq!(frames.len(), 4);
    for frame in frames {
        let crate::frames::Fresh::Gpu(frame) = frame else { panic!("its device tier is a GPU's") };
        let frame = frame.written();
        let bytes = tokio::task::block_in_place(|| frame.read().expect("its GPU gives it").into_owned());
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
}
