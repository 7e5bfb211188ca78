//! Blocks that go from GPU to GPU by NCCL, with a driver and an NCCL that are made for tests. Workers are real processes. With
//! `KVHIVE_TEST_GPU=real` the stories in which nothing is told to go wrong are told of this machine's first GPU and its NCCL.
#![allow(unsafe_code, reason = "takes in a library of the tests' own")]

#[path = "../../../gpu/nccl-rs/tests/fake/mod.rs"]
mod fake_nccl;
mod groups;
mod guests;
mod moves;
mod packed;
mod room;

use super::asker::{Block, kept};
use super::coordinator::FakeCoordinator;
use super::gpu::{driver, is_real, on_gpu};
use super::share::ask_as_node;
use super::{KIB, Setup, eventually};
use crate::links::COPY_LIMIT;
use crate::{NcclConfig, NodeHandle};
use fake_nccl::FakeNccl;
use futures_util::future::join_all;
use kvhive_cache::Tier;
use kvhive_links::pairs::Why;
use kvhive_protocol::data::{Ack, DataReply, DataRequest, PairRequest};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{GroupWord, Incarnation, PairMessage, PairWord};
use kvhive_protocol::{DeviceId, Generation, MemberId, WireError};
use kvhive_wire::Fault;
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

static NCCL: LazyLock<FakeNccl> = LazyLock::new(FakeNccl::shared);

/// The worker's program: this one, which a node of another test has started. Without such a one it has nothing to do.
#[test]
#[ignore = "is started by other tests"]
fn worker_process() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("there is standard input");
    kvhive_gpu::worker::serve(socket).expect("it works to its end");
}

/// Goes wrong in all of them: there is no NCCL.
const NO_LIBRARY: &str = "no library";

/// What goes wrong once in the workers of each node whose name begins so, the last thing of it in one and in none after that.
pub(super) struct Wrong {
    node: &'static str,
    what: String,
    /// In it there is a file with the name of each call that went wrong.
    once: TempDir,
    /// How long a worker's calls may take.
    watchdog: Duration,
}

impl Wrong {
    fn has_come_to(&self, call: &str) -> bool {
        self.once.path().join(call).exists()
    }

    fn at(node: &'static str, what: &str) -> Wrong {
        assert!(!is_real() || what == NO_LIBRARY, "nothing goes wrong by plan in a real NCCL");
        let once = tempfile::tempdir().expect("a temporary folder can be made");
        Wrong { node, what: what.to_owned(), once, watchdog: WATCHDOG }
    }
}

/// A worker whose call does not return within this ends itself.
const WATCHDOG: Duration = Duration::from_secs(1);

/// How a node of this name goes by NCCL.
pub(super) fn config(name: &str, wrong: Option<&Wrong>) -> NcclConfig {
    let text = |path: &Path| path.to_str().expect("it is text").to_owned();
    let wrong = wrong.filter(|wrong| name.starts_with(wrong.node));
    let mut environment = vec![("NCCL_HOSTID".to_owned(), name.to_owned())];
    let (watchdog, start) = if is_real() {
        // Both ends are on one GPU: NCCL takes them for two hosts, and goes by sockets.
        environment.push(("NCCL_SOCKET_IFNAME".to_owned(), "lo".to_owned()));
        (Duration::from_secs(5), Duration::from_secs(20))
    } else {
        environment.push(("LD_LIBRARY_PATH".to_owned(), text(driver())));
        environment.push(("KVHIVE_NCCL".to_owned(), text(&NCCL.path())));
        // What hangs before there is a watchdog has this time; a busy machine wants more to start a process.
        let hangs_first = wrong.is_some_and(|wrong| wrong.what == "ncclGetVersion:1:hang");
        let start = Duration::from_secs(if hangs_first { 5 } else { 20 });
        (wrong.map_or(WATCHDOG, |wrong| wrong.watchdog), start)
    };
    if let Some(wrong) = wrong {
        if wrong.what == NO_LIBRARY {
            environment.push(("KVHIVE_NCCL".to_owned(), "/nowhere/libnccl.so.2".to_owned()));
        }
        environment.push(("KVHIVE_FAKE_NCCL".to_owned(), wrong.what.clone()));
        // A worker that is killed before it comes to that, as on a busy machine, is not the last of whom it goes wrong.
        let last = wrong.what.rsplit(',').next().and_then(|last| last.split(':').next()).unwrap_or_default();
        environment.push(("ONCE".to_owned(), text(&wrong.once.path().join(last))));
        environment.push(("KVHIVE_FAKE_NCCL_REACHED".to_owned(), text(wrong.once.path())));
    }
    let program = std::env::current_exe().expect("a test is a program");
    let first = r#"[ -e "$ONCE" ] && unset KVHIVE_FAKE_NCCL; exec "$0" "$@""#;
    let own = text(&program);
    let words = ["-c", first, &own, "--exact", "tests::nccl::worker_process", "--ignored", "--nocapture"];
    NcclConfig {
        arguments: words.map(str::to_owned).to_vec(),
        environment,
        max_ctas: 3,
        buffer_bytes: 2 << 20,
        // Sixteen frames of most stories.
        guest_bytes: 1 << 20,
        // Nobody waits to see one closed.
        keep: Duration::ZERO,
        start,
        watchdog,
        ..NcclConfig::of("/bin/sh".into())
    }
}

fn by_nccl() -> Setup {
    // What befalls a node whose lease runs out is another story, and a busy machine's heartbeats are late.
    let lease = Duration::from_secs(60);
    Setup { nccl: true, lease, ..if is_real() { Setup::default() } else { on_gpu() } }
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

fn member(node: &NodeHandle) -> MemberId {
    node.member().expect("it is a member")
}

fn device(node: &NodeHandle) -> DeviceId {
    DeviceId::new(member(node), 0)
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

/// Checks that a node's metrics have this line.
async fn tells(node: &NodeHandle, line: &str) {
    let page = super::life::get(node.metrics_address(), "/metrics").await;
    assert!(page.contains(&format!("kvhive_node_{line}\n")), "{line} in {page}");
}

/// Returns why the first pair of a node was given up last.
fn given_up(node: &NodeHandle) -> Option<String> {
    node.plane.replicator.links.pairs().first()?.pairs.first()?.why.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_nccl_is_known_as_such_and_starts_no_second_worker() {
    let wrong = Wrong::at("node-1", NO_LIBRARY);
    let roomy = || Setup { device_frames: 512, ..by_nccl() };
    let lacking = Setup { wrong: Some(wrong), ..roomy() };
    // One has no library, the other is not to go by NCCL.
    for (other, tries) in [(&lacking, true), (&Setup { nccl: false, ..roomy() }, false)] {
        let (_coordinator, nodes) = in_order([&roomy(), other]).await;
        let mut client = nodes[0].ask().await;
        let without = Why::Without.to_string();
        for number in 0..500 {
            assert_eq!(client.store(&blocks(number, 1), Ack::All).await, Ok(vec![kept(2)]));
            if given_up(&nodes[0]).as_ref() == Some(&without) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        tells(&nodes[0], "nccl_pairs_given_up_total{device=\"0\",reason=\"without\"} 1").await;
        assert_eq!(client.store(&blocks(500, 1), Ack::All).await, Ok(vec![kept(2)]));
        let reached = nodes[0].plane.replicator.links.report();
        let reached = serde_json::to_value(reached).expect("it is plain");
        assert!(
            !reached[0]["reason"].as_str().expect("words").contains("pair"),
            "it is no way any more: {reached}"
        );
        if tries {
            tells(&nodes[1], "nccl_worker_starts_total{device=\"0\"} 1").await;
            assert!(nodes[1].plane.replicator.links.pairs()[0].worker.contains("no NCCL"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_members_gpu() {
    let (_coordinator, nodes) = in_order([&by_nccl(); 2]).await;
    let [first, second] = nodes.each_ref().map(|node| node.member().expect("it is a member"));
    let mut asker = ask_as_node(&nodes[0], u64::from(second.0)).await;
    let root = DeviceId::new(first, 0);
    let of_pair = PairWord::Broken { incarnation: Incarnation::default() };
    let of_group = PairWord::Group(GroupWord::Broken { root, incarnation: Incarnation::default() });
    let say = |from: MemberId, word: PairWord| {
        let (from, to) = (DeviceId::new(from, 0), DeviceId::new(first, 0));
        let (generation, to_generation) = (Generation(1), Generation(1));
        let message = PairMessage { from, generation, to, to_generation, word };
        let epoch = nodes[0].plane.view.serving().expect("it serves").map.epoch;
        DataRequest::Pair(PairRequest { epoch, message })
    };
    for word in [of_pair, of_group] {
        let heard = asker.exchange(&say(second, word.clone()), &[]).await;
        assert!(matches!(heard, Ok(DataReply::Heard { .. })), "{heard:?}");
        let refused = asker.exchange(&say(MemberId(second.0 + 1), word), &[]).await;
        assert!(matches!(refused, Err(Fault::Refused(WireError::Forbidden { .. }))), "{refused:?}");
    }
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
    for (node, direction) in nodes.iter().zip(["sent", "received"]) {
        // An earlier one goes by TCP, as there is no pair.
        let done =
            format!("nccl_transfers_total{{device=\"0\",direction=\"{direction}\",outcome=\"done\"}} 1");
        let expected = [
            "nccl_pairs{device=\"0\",state=\"ready\"} 1",
            "nccl_pairs{device=\"0\",state=\"cold\"} 0",
            "nccl_pairs_made_total{device=\"0\"} 1",
            "nccl_pairs_given_up_total{device=\"0\",reason=\"failed\"} 0",
            "nccl_worker_starts_total{device=\"0\"} 1",
            "nccl_worker_deaths_total{device=\"0\"} 0",
            &done,
        ];
        for line in expected {
            tells(node, line).await;
        }
    }
    let link = "links{device=\"0\",transport=\"nccl\",reason=\"first\"} 1";
    tells(&nodes[0], link).await;
    for node in &nodes {
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_takes_no_more_of_a_gpu_than_is_said_and_one_that_breaks_idle_is_made_anew_before_it_is_wanted()
 {
    if is_real() {
        return println!("SKIPPED: a real NCCL says nothing of it");
    }
    let setup = Setup { wrong: Some(Wrong::at("node-0", "idle:1:fail")), ..by_nccl() };
    let (_coordinator, nodes) = in_order([&setup; 2]).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&blocks(0, 1), Ack::All).await, Ok(vec![kept(2)]), "by TCP meanwhile");
    eventually("a pair stands", || pair(&nodes[0]) == Some(PairState::Ready)).await;
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let told = std::fs::read_to_string(planned.once.path().join("config")).expect("it was asked for one");
    assert_eq!(told, "1 to 3 thread blocks, buffers of 2097152");
    eventually("it is given up at both ends", || nodes.iter().all(|node| given_up(node).is_some())).await;
    assert!(planned.has_come_to("idle"));
    assert_eq!((gone_by(&nodes[0], "nccl"), nodes[0].counted(|counters| &counters.stores)), (0, 1));
    carries(&nodes[0], 100).await;
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
    for victim in ["node-1", "node-0"] {
        // Its second transfer stops in its middle, and nothing but the kill ends that. A real NCCL is killed when it is likely to be in one.
        let wrong = || Wrong { watchdog: Duration::from_secs(60), ..Wrong::at(victim, "transfer:2:hang") };
        let setup = Setup { device_frames: 256, wrong: (!is_real()).then(wrong), ..by_nccl() };
        let (_coordinator, nodes) = in_order([&setup; 2]).await;
        let mut client = nodes[0].ask().await;
        carries(&nodes[0], 100_000).await;
        for batch in 0..4 {
            let from = 1000 + batch * 8;
            let kill = async {
                if batch > 0 {
                    return;
                }
                match &setup.wrong {
                    Some(wrong) => eventually("a transfer is held", || wrong.has_come_to("transfer")).await,
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
                let worker = worker_of(victim).expect("a pair stands");
                kill_process(worker, Signal::KILL).expect("it was there");
            };
            let blocks = blocks(from, 8);
            let store = async {
                let begun = Instant::now();
                (client.store(&blocks, Ack::All).await, begun.elapsed())
            };
            let ((stored, took), ()) = tokio::join!(store, kill);
            assert_eq!(stored, Ok(vec![kept(2); 8]), "{victim}, batch {batch}");
            assert!(took <= COPY_LIMIT + Duration::from_millis(100), "{victim}, batch {batch}: {took:?}");
            let numbers: Vec<u64> = (from..from + 8).collect();
            let expected: Vec<_> = blocks.into_iter().map(|block| Some(block.bytes)).collect();
            for node in &nodes {
                let mut asker = node.ask().await;
                asker.device = DeviceId::new(node.member().expect("it is a member"), 0);
                assert!(asker.fetch(&numbers).await.as_ref() == Ok(&expected), "{victim}, batch {batch}");
            }
        }
        carries(&nodes[0], 200_000).await;
    }
}

/// Whoever does not go by NCCL within this does not any more: a pair that fails rests up to a minute.
const CARRIES_WITHIN: Duration = Duration::from_secs(90);

/// Stores blocks, numbered from `from` on, until some have gone by NCCL.
async fn carries(node: &NodeHandle, from: u64) {
    let (before, begun) = (gone_by(node, "nccl"), Instant::now());
    let mut client = node.ask().await;
    for number in from.. {
        client.store(&blocks(number, 1), Ack::All).await.expect("it serves");
        if gone_by(node, "nccl") > before {
            return;
        }
        let pairs = || node.plane.replicator.links.pairs();
        assert!(begun.elapsed() < CARRIES_WITHIN, "nothing goes by NCCL any more: {:?}", pairs());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Starts nodes one after the other: the first is rank 0 of all that it is in and every slot's primary, so it sends and the others receive.
async fn in_order<const N: usize>(setups: [&Setup; N]) -> (FakeCoordinator, [NodeHandle; N]) {
    let coordinator = FakeCoordinator::leasing(setups[0].lease).await;
    let mut nodes = Vec::with_capacity(N);
    for (at, setup) in setups.into_iter().enumerate() {
        let node = setup.start(&format!("node-{at}"), &coordinator);
        eventually("it is a member", || node.member().is_some()).await;
        nodes.push(node);
    }
    for node in &nodes {
        eventually("all serve by the whole map", || {
            let members = node.plane.view.serving().map_or(0, |serving| serving.map.members.len());
            node.is_serving() && members == N
        })
        .await;
    }
    let nodes = nodes.try_into().unwrap_or_else(|_| panic!("there are as many as setups"));
    (coordinator, nodes)
}

/// Two nodes in one of whose workers something goes wrong once, in this call after whatever it takes to come to that: each store is answered
/// by its deadline and both have the right bytes.
async fn goes_on(node: &'static str, call: &str, wrong: &str) {
    let setup = Setup { wrong: Some(Wrong::at(node, wrong)), device_frames: 256, ..by_nccl() };
    let planned = setup.wrong.as_ref().expect("something goes wrong");
    let (_coordinator, nodes) = in_order([&setup; 2]).await;
    let mut client = nodes[0].ask().await;
    let (began, mut batches) = (Instant::now(), 0);
    // On a busy machine a pair may have to be made more than once before it comes to that.
    while batches < 6 || !planned.has_come_to(call) {
        assert!(began.elapsed() < CARRIES_WITHIN, "{wrong} at {node}: it has not come to that");
        if batches >= 6 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let begun = Instant::now();
        let stored = client.store(&blocks(batches * 2, 2), Ack::All).await;
        assert_eq!(stored, Ok(vec![kept(2); 2]), "{wrong} at {node}, batch {batches}");
        batches += 1;
        let took = begun.elapsed();
        assert!(took <= COPY_LIMIT + Duration::from_millis(100), "{wrong} at {node}: {took:?}");
        eventually("a pair stands, or is found to be of no use", || {
            use PairState::{Aborting, Joining, Offered};
            !matches!(pair(&nodes[0]), Some(Offered | Joining | Aborting))
        })
        .await;
    }
    let numbers: Vec<u64> = (0..batches * 2).collect();
    let expected: Vec<_> = blocks(0, batches * 2).into_iter().map(|block| Some(block.bytes)).collect();
    for node in &nodes {
        let found = node.ask().await.fetch(&numbers).await;
        assert!(found.as_ref() == Ok(&expected), "{wrong}: {:?}", found.map(|found| found.len()));
        node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    }
    // What failed rests, is made anew, and carries.
    println!("{wrong} at {node}: {batches} batches");
    carries(&nodes[0], 1000).await;
}

const FIRST: &[&str] = &["node-0"];
const SECOND: &[&str] = &["node-1"];
const BOTH: &[&str] = &["node-0", "node-1"];

/// Tests of what is told of a node and of what goes wrong there: all that may in the nth call of this name, which comes after something else has
/// failed where that is said, at each of these nodes.
macro_rules! whatever_a_call_does {
    ($goes_on:ident; $($test:ident: $nodes:ident, $before:literal $call:literal $nth:literal,)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            for how in ["fail", "hang", "die"] {
                let wrong = format!("{}{}:{}:{how}", $before, $call, $nth);
                join_all($nodes.iter().map(|node| $goes_on(node, $call, &wrong))).await;
            }
        }
    )+};
}
use whatever_a_call_does;

whatever_a_call_does! { goes_on;
    stores_go_on_when_no_version_is_told: BOTH, "" "ncclGetVersion" 1,
    stores_go_on_when_no_id_is_made: FIRST, "" "ncclGetUniqueId" 1,
    stores_go_on_when_nobody_joins: BOTH, "" "ncclCommInitRankConfig" 1,
    stores_go_on_when_errors_are_not_told: BOTH, "" "ncclCommGetAsyncError" 1,
    stores_go_on_when_no_group_begins: BOTH, "" "ncclGroupStart" 1,
    stores_go_on_when_no_group_ends: BOTH, "" "ncclGroupEnd" 1,
    stores_go_on_when_nothing_is_sent: FIRST, "" "ncclSend" 1,
    stores_go_on_when_nothing_is_received: SECOND, "" "ncclRecv" 1,
    stores_go_on_when_a_transfer_stops_in_its_middle: BOTH, "" "transfer" 1,
    stores_go_on_when_nothing_is_aborted: BOTH, "transfer:1:fail," "ncclCommAbort" 1,
}
