//! Blocks that go from GPU to GPU by NCCL, with a driver and an NCCL that are made for tests. Workers are real processes. With
//! `KVHIVE_TEST_GPU=real` the stories in which nothing is told to go wrong are told of this machine's first GPU and its NCCL.
#![allow(unsafe_code, reason = "takes in a library of the tests' own")]

#[path = "../../../gpu/nccl-rs/tests/fake/mod.rs"]
mod fake_nccl;

use super::asker::{Block, kept};
use super::gpu::{driver, is_real, on_gpu};
use super::{KIB, Setup, eventually};
use crate::links::COPY_LIMIT;
use crate::{NcclConfig, NodeHandle};
use fake_nccl::FakeNccl;
use kvhive_cache::Tier;
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::Ack;
use kvhive_protocol::links::PairState;
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

static NCCL: LazyLock<FakeNccl> = LazyLock::new(FakeNccl::new);

/// The worker's program: this one, which a node of another test has started. Without such a one it has nothing to do.
#[test]
#[ignore = "is started by other tests"]
fn worker_process() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("there is standard input");
    kvhive_gpu::worker::serve(socket).expect("it works to its end");
}

/// What goes wrong in the first worker of each node whose name begins so, and in none after it.
pub(super) struct Wrong {
    node: &'static str,
    what: String,
    /// In it there is a folder of each node's once a worker was started.
    once: TempDir,
    /// How long a worker's calls may take.
    watchdog: Duration,
}

impl Wrong {
    fn at(node: &'static str, what: &str) -> Wrong {
        let once = tempfile::tempdir().expect("a temporary folder can be made");
        Wrong { node, what: what.to_owned(), once, watchdog: WATCHDOG }
    }
}

/// A worker whose call does not return within this ends itself.
const WATCHDOG: Duration = Duration::from_millis(300);

/// How a node of this name goes by NCCL.
pub(super) fn config(name: &str, wrong: Option<&Wrong>) -> NcclConfig {
    let text = |path: &Path| path.to_str().expect("it is text").to_owned();
    let wrong = wrong.filter(|wrong| name.starts_with(wrong.node));
    let mut environment = vec![("NCCL_HOSTID".to_owned(), name.to_owned())];
    let watchdog = if is_real() {
        // Both ends are on one GPU: NCCL takes them for two hosts, and goes by sockets.
        environment.push(("NCCL_SOCKET_IFNAME".to_owned(), "lo".to_owned()));
        Duration::from_secs(5)
    } else {
        environment.push(("LD_LIBRARY_PATH".to_owned(), text(driver())));
        environment.push(("KVHIVE_NCCL".to_owned(), text(&NCCL.path())));
        wrong.map_or(WATCHDOG, |wrong| wrong.watchdog)
    };
    if let Some(wrong) = wrong {
        environment.push(("KVHIVE_FAKE_NCCL".to_owned(), wrong.what.clone()));
        environment.push(("ONCE".to_owned(), text(&wrong.once.path().join(name))));
    }
    let program = std::env::current_exe().expect("a test is a program");
    let first = r#"mkdir "$ONCE" 2>/dev/null || unset KVHIVE_FAKE_NCCL; exec "$0" "$@""#;
    let own = text(&program);
    let words = ["-c", first, &own, "--exact", "tests::nccl::worker_process", "--ignored", "--nocapture"];
    NcclConfig {
        arguments: words.map(str::to_owned).to_vec(),
        environment,
        after_bytes: 1,
        watchdog,
        ..NcclConfig::of("/bin/sh".into())
    }
}

fn by_nccl() -> Setup {
    Setup { nccl: true, ..if is_real() { Setup::default() } else { on_gpu() } }
}

/// The process of a node's worker, as the system knows it.
fn worker_of(node: &str) -> Option<Pid> {
    let (own, host) = (std::process::id(), format!("NCCL_HOSTID={node}"));
    let is_it = |process: &Path| {
        let read = |file: &str| std::fs::read_to_string(process.join(file)).unwrap_or_default();
        read("status")
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == own.to_string()))
            && read("environ").split('\0').any(|said| said == host)
    };
    let processes = std::fs::read_dir("/proc").expect("Linux has it").flatten().map(|entry| entry.path());
    let found = processes.into_iter().find(|process| is_it(process))?;
    Pid::from_raw(found.file_name()?.to_str()?.parse().ok()?)
}

fn blocks(from: u64, count: u64) -> Vec<Block> {
    (from..from + count).map(|number| Block::new(number, 64 * KIB)).collect()
}

fn pair(node: &NodeHandle) -> Option<PairState> {
    let pairs = node.plane.replicator.links.pairs();
    pairs.first()?.pairs.first().map(|pair| pair.state)
}

/// Returns how many blocks' bytes have gone to others by a way.
fn gone_by(node: &NodeHandle, transport: &str) -> u64 {
    let report = serde_json::to_value(node.plane.replicator.links.report()).expect("it is plain");
    let links = report.as_array().expect("a list").iter();
    let ways = links.flat_map(|link| link["transports"].as_array().expect("a list").iter());
    ways.filter(|way| way["transport"] == transport).filter_map(|way| way["bytes"].as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_for_a_replica_go_from_gpu_to_gpu_once_a_pair_stands() {
    let (_coordinator, nodes) = by_nccl().several(2).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&blocks(0, 1), Ack::All).await, Ok(vec![kept(2)]), "by TCP meanwhile");
    eventually("a pair stands", || pair(&nodes[0]) == Some(PairState::Ready)).await;
    assert_eq!(gone_by(&nodes[0], "nccl"), 0);
    assert_eq!(client.store(&blocks(1, 6), Ack::All).await, Ok(vec![kept(2); 6]));
    assert_eq!(gone_by(&nodes[0], "nccl"), 6 * 64 * KIB as u64);
    let mut replica = nodes[1].ask().await;
    replica.device = DeviceId::new(nodes[1].member().expect("it is a member"), 0);
    let numbers: Vec<u64> = (0..7).collect();
    let expected: Vec<_> = blocks(0, 7).into_iter().map(|block| Some(block.bytes)).collect();
    assert!(replica.fetch(&numbers).await == Ok(expected));
    for node in &nodes {
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_go_on_when_a_worker_hangs_that_may_write_frames() {
    // Nothing ends it but who is tired of waiting for it, seconds after its transfer was given up.
    let wrong = Wrong { watchdog: Duration::from_secs(60), ..Wrong::at("node-", "ncclRecv:1:hang") };
    let setup = Setup { wrong: Some(wrong), device_frames: 6, ..by_nccl() };
    let (_coordinator, nodes) = setup.several(2).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&blocks(0, 6), Ack::All).await, Ok(vec![kept(2); 6]), "both are full");
    eventually("a pair stands", || pair(&nodes[0]) == Some(PairState::Ready)).await;
    for from in 3..8 {
        assert_eq!(client.store(&blocks(from * 2, 2), Ack::All).await, Ok(vec![kept(2); 2]), "from {from}");
        let stats = nodes[1].shard_stats().await;
        assert_eq!((stats.given_up, stats.device.blocks, stats.filling), (2, 4, 0), "from {from}");
    }
    nodes[1].settles("all frames are there again", |stats| stats.given_up == 0).await;
    assert_eq!(nodes[1].inside.memories[0].free_frames(Tier::Device), 2);
    assert_eq!(client.store(&blocks(20, 2), Ack::All).await, Ok(vec![kept(2); 2]));
    assert_eq!(nodes[1].shard_stats().await.device.blocks, 6);
    let mut replica = nodes[1].ask().await;
    let numbers: Vec<u64> = (12..16).chain(20..22).collect();
    let found = replica.fetch(&numbers).await.expect("it serves");
    let expected = numbers.iter().map(|number| Some(blocks(*number, 1).remove(0).bytes)).collect::<Vec<_>>();
    assert!(found == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_under_way_costs_no_store_its_time_and_no_block_its_bytes() {
    let (_coordinator, nodes) = Setup { device_frames: 256, ..by_nccl() }.several(2).await;
    let mut client = nodes[0].ask().await;
    let mut stored = 100_000;
    for killed in 0..3 {
        let gone = gone_by(&nodes[0], "nccl");
        for _ in 0..400 {
            if gone_by(&nodes[0], "nccl") > gone {
                break;
            }
            assert_eq!(client.store(&blocks(stored, 1), Ack::All).await.map(|answers| answers.len()), Ok(1));
            stored += 1;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert!(
            gone_by(&nodes[0], "nccl") > gone,
            "{killed} were killed: {:?}",
            nodes[0].plane.replicator.links.pairs()
        );
        let victim = worker_of(["node-1", "node-0"][killed % 2]).expect("a pair stands");
        let kill = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(2));
            kill_process(victim, Signal::KILL)
        });
        for batch in 0..4 {
            let from = 1000 * (killed as u64 + 1) + batch * 8;
            let begun = Instant::now();
            assert_eq!(
                client.store(&blocks(from, 8), Ack::All).await,
                Ok(vec![kept(2); 8]),
                "{killed}, batch {batch}"
            );
            let took = begun.elapsed();
            assert!(took <= COPY_LIMIT + Duration::from_millis(100), "{killed}, batch {batch}: {took:?}");
            let numbers: Vec<u64> = (from..from + 8).collect();
            let expected: Vec<_> = blocks(from, 8).into_iter().map(|block| Some(block.bytes)).collect();
            for node in &nodes {
                let mut asker = node.ask().await;
                asker.device = DeviceId::new(node.member().expect("it is a member"), 0);
                assert!(asker.fetch(&numbers).await.as_ref() == Ok(&expected), "{killed}, batch {batch}");
            }
        }
        kill.await.expect("it ends").expect("it was there");
    }
}

/// Two nodes in one of whose first workers something goes wrong: whatever it is, each store is answered by its deadline and both have the
/// right bytes.
async fn goes_on(node: &'static str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), ..by_nccl() };
    let (_coordinator, nodes) = setup.several(2).await;
    let mut client = nodes[0].ask().await;
    for from in 0..6 {
        let begun = Instant::now();
        let stored = client.store(&blocks(from * 2, 2), Ack::All).await;
        assert_eq!(stored, Ok(vec![kept(2); 2]), "{wrong} at {node}, batch {from}");
        let took = begun.elapsed();
        assert!(took <= COPY_LIMIT + Duration::from_millis(100), "{wrong} at {node}: {took:?}");
        // A pair is made, or is found to be of no use, between them.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let numbers: Vec<u64> = (0..12).collect();
    let expected: Vec<_> = blocks(0, 12).into_iter().map(|block| Some(block.bytes)).collect();
    for node in &nodes {
        let found = node.ask().await.fetch(&numbers).await;
        assert!(found.as_ref() == Ok(&expected), "{wrong}: {:?}", found.map(|found| found.len()));
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
    // What failed rests, is made anew, and carries.
    let before = gone_by(&nodes[0], "nccl");
    for number in 100..600 {
        let stored = client.store(&blocks(number, 1), Ack::All).await;
        assert!(stored.is_ok(), "{wrong} at {node}: {stored:?}");
        if gone_by(&nodes[0], "nccl") > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let pairs = nodes[0].plane.replicator.links.pairs();
    panic!("{wrong} at {node}: nothing goes by NCCL any more: {pairs:?}");
}

/// All that may go wrong in a call of this name.
async fn goes_on_whatever_a_call_does(call: &str) {
    for how in ["fail", "hang", "die"] {
        let wrong = format!("{call}:1:{how}");
        tokio::join!(goes_on("node-0", &wrong), goes_on("node-1", &wrong));
    }
}

/// Says whether a node has a communicator over which it can send to several, and what has gone over it.
fn to_several(node: &NodeHandle) -> Option<u64> {
    let pairs = node.plane.replicator.links.pairs();
    let own = pairs.iter().flat_map(|gpu| gpu.groups.iter().filter(|group| group.root == gpu.device));
    own.filter(|group| group.state == PairState::Ready).map(|group| group.transfers).next()
}

/// Says that a node has these blocks.
async fn has(node: &NodeHandle, numbers: std::ops::Range<u64>) {
    let mut asker = node.ask().await;
    asker.device = DeviceId::new(node.member().expect("it is a member"), 0);
    let count = numbers.end - numbers.start;
    let expected: Vec<_> = blocks(numbers.start, count).into_iter().map(|block| Some(block.bytes)).collect();
    let found = asker.fetch(&numbers.collect::<Vec<_>>()).await;
    assert!(found.as_ref() == Ok(&expected), "{:?}", found.map(|found| found.iter().flatten().count()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_for_two_replicas_go_to_both_at_once_when_all_have_joined() {
    let (_coordinator, nodes) = by_nccl().several(3).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&blocks(0, 1), Ack::All).await, Ok(vec![kept(3)]), "by TCP meanwhile");
    eventually("all have joined", || to_several(&nodes[0]) == Some(0)).await;
    assert_eq!(client.store(&blocks(1, 6), Ack::All).await, Ok(vec![kept(3); 6]));
    assert_eq!(to_several(&nodes[0]), Some(1));
    for node in &nodes {
        has(node, 0..7).await;
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
}

/// Three nodes in one of whose first workers something goes wrong: whatever it is, each store is answered by its deadline and all have
/// the right bytes.
async fn goes_on_to_two(node: &'static str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), ..by_nccl() };
    let (_coordinator, nodes) = setup.several(3).await;
    let mut client = nodes[0].ask().await;
    for from in 0..5 {
        let begun = Instant::now();
        let stored = client.store(&blocks(from * 2, 2), Ack::All).await;
        assert_eq!(stored, Ok(vec![kept(3); 2]), "{wrong} at {node}, batch {from}");
        let took = begun.elapsed();
        assert!(took <= COPY_LIMIT + Duration::from_millis(100), "{wrong} at {node}: {took:?}");
        // A communicator is made, or is found to be of no use, between them.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    for node in &nodes {
        has(node, 0..10).await;
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling + stats.given_up == 0)
            .await;
    }
}

/// All that may go wrong in a call of this name while three nodes send to each other.
async fn goes_on_to_two_whatever_a_call_does(call: &str) {
    for how in ["fail", "hang", "die"] {
        let wrong = format!("{call}:{how}");
        tokio::join!(
            goes_on_to_two("node-0", &wrong),
            goes_on_to_two("node-1", &wrong),
            goes_on_to_two("node-2", &wrong)
        );
    }
}

macro_rules! calls_of_three {
    ($($test:ident: $call:literal,)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            goes_on_to_two_whatever_a_call_does($call).await;
        }
    )+};
}

calls_of_three! {
    stores_go_on_when_of_three_one_makes_no_id: "ncclGetUniqueId:1",
    stores_go_on_when_of_three_one_does_not_join: "ncclCommInitRankConfig:1",
    stores_go_on_when_of_three_one_does_not_join_another: "ncclCommInitRankConfig:2",
    stores_go_on_when_of_three_one_begins_no_group: "ncclGroupStart:1",
    stores_go_on_when_of_three_one_ends_no_group: "ncclGroupEnd:1",
    stores_go_on_when_of_three_one_broadcasts_nothing: "ncclBroadcast:1",
    stores_go_on_when_of_three_one_stops_in_the_middle: "transfer:1",
    stores_go_on_when_of_three_one_aborts_nothing: "ncclCommAbort:1",
}

macro_rules! calls {
    ($($test:ident: $call:literal,)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            goes_on_whatever_a_call_does($call).await;
        }
    )+};
}

calls! {
    stores_go_on_when_no_id_is_made: "ncclGetUniqueId",
    stores_go_on_when_nobody_joins: "ncclCommInitRankConfig",
    stores_go_on_when_errors_are_not_told: "ncclCommGetAsyncError",
    stores_go_on_when_no_group_begins: "ncclGroupStart",
    stores_go_on_when_no_group_ends: "ncclGroupEnd",
    stores_go_on_when_nothing_is_sent: "ncclSend",
    stores_go_on_when_nothing_is_received: "ncclRecv",
    stores_go_on_when_a_transfer_stops_in_its_middle: "transfer",
    stores_go_on_when_nothing_is_aborted: "ncclCommAbort",
}
