//! Several tenants want more of one node than it does at a time: each has its share, and who would be late is told before anything is done.

use super::asker::{Asker, Block, kept};
use super::coordinator::{FakeCoordinator, TENANT};
use super::share::opened;
use super::{KIB, Setup, disk, eventually};
use crate::data::{Turn, Wanted};
use crate::disk::fault::{Faulty, Trouble};
use crate::disk::movers;
use crate::{DeviceMemory, NodeHandle};
use kvhive_client::Windows;
use kvhive_protocol::data::{Ack, DataReply, DataRequest};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::map::Tenant;
use kvhive_protocol::share::{LookRequest, Looked};
use kvhive_protocol::{DeviceId, Era, TenantId, TenantRules, WireError};
use kvhive_wire::Fault;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const OTHER: TenantId = TenantId(2);
const FRAME: usize = 64 * KIB;
const BLOCKS: u64 = 8;

/// A node with one place and eight blocks of each of two tenants.
async fn node_with_blocks() -> (FakeCoordinator, NodeHandle) {
    node_with_blocks_of(Setup::default()).await
}

/// The same, otherwise as said.
async fn node_with_blocks_of(setup: Setup) -> (FakeCoordinator, NodeHandle) {
    let (coordinator, node) =
        Setup { device_frames: 32, max_connections: 128, places: 1, ..setup }.one().await;
    let rules = TenantRules::default();
    let other = Tenant { name: "other".into(), era: Era(1), secret: [8; 32], rules };
    coordinator.change(|map| drop(map.tenants.insert(OTHER, other)));
    let (member, epoch) = (node.member().expect("it is a member"), coordinator.epoch());
    eventually("the node serves by the new map", || coordinator.has_confirmed(member, epoch)).await;
    for tenant in [TENANT, OTHER] {
        let mut asker = node.ask().await;
        asker.tenant = tenant;
        for number in numbers(tenant) {
            let mut block = Block::new(number, FRAME);
            block.header.tenant = tenant;
            assert_eq!(asker.store(&[block], Ack::Primary).await, Ok(vec![kept(1)]));
        }
    }
    (coordinator, node)
}

fn numbers(tenant: TenantId) -> Vec<u64> {
    (0..BLOCKS).map(|at| u64::from(tenant.0) * 100 + at).collect()
}

/// Takes the only place, for as long as it takes to send 64 GiB.
async fn taken(node: &NodeHandle) -> Turn {
    let (tenant, left) = (TenantId(3), Duration::from_secs(60));
    let wanted = Wanted { tenant, weight: 1, bytes: Some(64 << 30), left, is_part: false };
    node.plane.turns.take(wanted).await.expect("nobody wants it")
}

/// Fetches all that a tenant has; returns how many blocks came whole.
async fn fetch(asker: &mut Asker, tenant: TenantId) -> Result<usize, WireError> {
    (asker.tenant, asker.left) = (tenant, Some(Duration::from_secs(60)));
    let found = asker.fetch(&numbers(tenant)).await?;
    Ok(found.iter().flatten().count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_tenant_leaves_the_other_its_half_of_what_is_sent() {
    let (_coordinator, node) = node_with_blocks().await;
    let turn = taken(&node).await;
    // A GPU that takes its time has had one of those wait that stored.
    let earlier = node.plane.turns.passed().len();
    let waited = [TENANT, OTHER].map(|tenant| node.plane.turns.figures(tenant).waited);
    let mut askers = JoinSet::new();
    let (flood, few) = (60, 10);
    for (tenant, count) in [(TENANT, flood), (OTHER, few)] {
        for _ in 0..count {
            let mut asker = node.ask().await;
            askers.spawn(async move { assert_eq!(fetch(&mut asker, tenant).await, Ok(BLOCKS as usize)) });
        }
        // The flood is all there before the other tenant asks.
        let waiting = if tenant == TENANT { flood } else { flood + few };
        eventually("all of them wait", || node.plane.waiting() == waiting).await;
    }
    drop(turn);
    while let Some(asked) = askers.join_next().await {
        asked.expect("it got its blocks");
    }
    let passed = node.plane.turns.passed().split_off(earlier);
    assert_eq!(passed.len(), flood + few);
    // In the order in which they asked none of these were the other's.
    let of_other = passed[..2 * few + 1].iter().filter(|tenant| **tenant == OTHER).count();
    assert_eq!(of_other, few);
    let bytes = BLOCKS * FRAME as u64;
    let figures = [TENANT, OTHER].map(|tenant| node.plane.turns.figures(tenant));
    // What each stored, and what was sent.
    assert_eq!(figures.map(|one| one.bytes), [bytes * (1 + flood as u64), bytes * (1 + few as u64)]);
    let all = [waited[0] + flood as u64, waited[1] + few as u64];
    assert_eq!(figures.map(|one| (one.waited, one.late)), all.map(|waited| (waited, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_weighs_three_times_as_much_is_sent_three_times_as_much() {
    let (coordinator, node) = node_with_blocks().await;
    coordinator.change(|map| map.weights = Arc::new([(OTHER, 3)].into()));
    let (member, epoch) = (node.member().expect("it is a member"), coordinator.epoch());
    eventually("the node serves by the new map", || coordinator.has_confirmed(member, epoch)).await;
    let turn = taken(&node).await;
    let mut askers = JoinSet::new();
    let each = 30;
    for (at, tenant) in [TENANT, OTHER].into_iter().enumerate() {
        for _ in 0..each {
            let mut asker = node.ask().await;
            askers.spawn(async move { assert_eq!(fetch(&mut asker, tenant).await, Ok(BLOCKS as usize)) });
        }
        eventually("all of them wait", || node.plane.waiting() == (at + 1) * each).await;
    }
    drop(turn);
    while let Some(asked) = askers.join_next().await {
        asked.expect("it got its blocks");
    }
    // As long as both wait.
    let of_other = node.plane.turns.passed()[..32].iter().filter(|tenant| **tenant == OTHER).count();
    assert!((23..=25).contains(&of_other), "{of_other}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_time_is_up_while_others_have_their_turn_is_told_so_and_its_connection_stands() {
    let (_coordinator, node) = node_with_blocks().await;
    let turn = taken(&node).await;
    let mut asker = node.ask().await;
    let request = asker.fetch_request(&numbers(TENANT));
    asker.left = Some(Duration::from_millis(20));
    let refused = asker.exchange(&request, &[]).await;
    assert!(matches!(refused, Err(Fault::Refused(WireError::Deadline))), "{refused:?}");
    assert_eq!(node.counted(|counters| &counters.late), 1);
    assert_eq!((node.plane.waiting(), node.plane.turns.figures(TENANT).late), (0, 1));
    drop(turn);
    assert_eq!(fetch(&mut asker, TENANT).await, Ok(BLOCKS as usize));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_leaves_while_it_waits_or_while_it_is_sent_something_keeps_no_place() {
    let (_coordinator, node) = node_with_blocks().await;
    let turn = taken(&node).await;
    let mut leaver = node.ask().await;
    let request = leaver.fetch_request(&numbers(TENANT));
    leaver.connection.send(Kind::DataRequest, 1, &request, &[]).await.expect("it is heard");
    eventually("it waits", || node.plane.waiting() == 1).await;
    drop(leaver);
    drop(turn);
    eventually("its place is another's", || node.plane.turns.holding() == 0).await;
    assert_eq!(fetch(&mut node.ask().await, OTHER).await, Ok(BLOCKS as usize));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_looks_and_for_whom_no_more_can_be_held_waits_for_its_turn_as_others_do() {
    let host = Setup { memory: DeviceMemory::Host, ..Setup::default() };
    let (_coordinator, node) = node_with_blocks_of(host).await;
    let windows = Windows::new().expect("Linux says which host this is");
    let start = opened(&windows, &node).await.start();
    let turn = taken(&node).await;
    let mut asker = node.ask().await;
    asker.left = Some(Duration::from_millis(20));
    let DataRequest::Fetch(fetch) = asker.fetch_request(&[numbers(TENANT)[0]]) else {
        unreachable!("it is one")
    };
    let request = DataRequest::Look(LookRequest { start, fetch });
    let mut held = 0;
    let refused = loop {
        match asker.exchange(&request, &[]).await {
            Ok(DataReply::Looked { blocks, .. }) => {
                assert!(matches!(blocks[..], [Looked::At(..)]), "it is sent nothing: {blocks:?}");
                held += 1;
            }
            other => break other,
        }
    };
    assert!(held > 0 && matches!(refused, Err(Fault::Refused(WireError::Deadline))), "{held} {refused:?}");
    drop(turn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_time_for_a_disk_is_told_so_and_that_closes_no_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let faulty = Faulty::over(movers().remove(0));
    // What is in a GPU's memory waits for the same turns.
    let memory = DeviceMemory::Host;
    let setup = Setup { memory, disk_tuning: disk::tuning(faulty.clone()), ..disk::setup(folder.path()) };
    let blocks: Vec<Block> = (0..24).map(|number| Block::new(number, disk::FRAME)).collect();
    let (_coordinator, node) = disk::filled(&setup, &blocks).await;
    node.settles("nothing moves", |stats| stats.disk.blocks >= 16 && stats.readers == 0).await;
    let (mut asker, store) = (node.ask().await, disk::store_of(&node));
    faulty.has(Trouble::Broken);
    assert_eq!(asker.fetch(&[0]).await, Ok(vec![None]), "one sector is bad");
    faulty.has(Trouble::None);

    let plane = &node.plane;
    let device = DeviceId { member: node.member().expect("it is a member"), index: 0 };
    let long = Instant::now() + Duration::from_secs(60);
    let mut turns = Vec::new();
    while turns.len() < crate::data::BRINGING_PLACES {
        turns.push(plane.device_turn(device, OTHER, 64 << 30, long).await.expect("nobody wants it"));
    }
    asker.left = Some(Duration::from_millis(20));
    for _ in 0..4 {
        assert_eq!(asker.fetch(&[1]).await, Err(WireError::Deadline));
    }
    asker.left = Some(Duration::from_secs(2));
    assert_eq!(asker.fetch(&[1, 23]).await, Ok(vec![None, Some(blocks[23].bytes.clone())]));
    drop(turns);
    asker.left = Some(Duration::from_millis(20));
    let all = plane.device_permits(u64::MAX);
    let room = plane.room(device, all, all).await;
    for _ in 0..4 {
        assert_eq!(asker.fetch(&[1]).await, Err(WireError::Deadline));
    }
    drop(room);
    assert!(store.is_open() && store.answers());
    assert_eq!((node.counted(|counters| &counters.late), plane.turns.figures(TENANT).late), (8, 8));
    asker.left = None;
    assert_eq!(asker.fetch(&[1]).await, Ok(vec![Some(blocks[1].bytes.clone())]));
}
