//! Slots on their way, on a cluster of real processes: a node that joins, one that is emptied, one that is lost.

use kvhive_client::{FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome};
use kvhive_protocol::data::Ack;
use kvhive_tests::Cluster;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BLOCK: usize = 16 << 10;
const PREFIXES: u64 = 24;
const BLOCKS: usize = 30;
/// Blocks of a segment.
const SEGMENT: usize = 16;

fn prefix(blocks: &NamespaceClient, name: u64) -> Prefix {
    let hash = |at: usize| (u128::from(name) << 64 | at as u128).to_le_bytes();
    blocks.prefix_of_engine_hashes(&(0..BLOCKS).map(hash).collect::<Vec<[u8; 16]>>())
}

fn content(name: u64, at: usize) -> Vec<u8> {
    vec![(name as usize * 31 + at) as u8; BLOCK]
}

/// Stores a prefix and says whether all of it was acknowledged.
async fn store(blocks: &NamespaceClient, name: u64, ack: Ack) -> bool {
    let memory: Vec<Vec<u8>> = (0..BLOCKS).map(|at| content(name, at)).collect();
    let memory: Vec<&[u8]> = memory.iter().map(|block| &block[..]).collect();
    let options = StoreOptions { ack: Some(ack), ..StoreOptions::default() };
    let report = blocks.store(&prefix(blocks, name), 0..BLOCKS, &memory, options).await.expect("it fits");
    report.outcomes.iter().all(|outcome| matches!(outcome, StoreOutcome::Acknowledged { .. }))
}

/// Says how many blocks of a prefix come; each is compared with what was stored.
async fn fetch(blocks: &NamespaceClient, name: u64) -> usize {
    let mut memory = vec![vec![0u8; BLOCK]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let report = blocks.fetch_into(&prefix(blocks, name), 0..BLOCKS, &mut targets).await.expect("it fits");
    let loaded = |outcome: &FetchOutcome| matches!(outcome, FetchOutcome::Loaded(_));
    for (at, outcome) in report.outcomes.iter().enumerate() {
        assert!(!loaded(outcome) || memory[at] == content(name, at), "block {at} of {name} has wrong bytes");
    }
    let count = report.outcomes.iter().filter(|outcome| loaded(outcome)).count();
    if count < BLOCKS {
        eprintln!("of prefix {name} came {count}: {:?}", report.outcomes);
    }
    count
}

fn all_come(cluster: &Cluster, blocks: &NamespaceClient, names: std::ops::Range<u64>, when: &str) {
    for name in names {
        assert_eq!(cluster.wait(fetch(blocks, name)), BLOCKS, "prefix {name} {when}");
    }
}

/// Returns the slots that a node holds.
fn slots_of(status: &serde_json::Value, node: &str) -> u64 {
    let devices = status["devices"].as_array().expect("a list").iter();
    devices.filter(|device| device["node"] == node).filter_map(|device| device["slots"].as_u64()).sum()
}

fn blocks_of(status: &serde_json::Value, node: &str) -> u64 {
    let devices = status["devices"].as_array().expect("a list").iter();
    devices.filter(|device| device["node"] == node).filter_map(|device| device["blocks"].as_u64()).sum()
}

fn settle(cluster: &Cluster, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    cluster.until(what, || {
        let status = cluster.status();
        (status["slots"]["moving"] == 0 && status["slots"]["unavailable"] == 0 && is_so(&status))
            .then_some(status)
    })
}

fn is_down(status: &serde_json::Value, name: &str) -> bool {
    let nodes = status["nodes"].as_array().expect("a list");
    nodes.iter().any(|node| node["name"] == name && node["state"] == "down")
}

#[test]
fn a_node_that_joins_gets_slots_with_their_blocks_while_requests_go_on() {
    let options = ["--nodes", "3", "--devices", "1", "--device-memory", "64MiB"];
    let cluster = Cluster::start(&options);
    cluster.signal("node-3", "KILL");
    settle(&cluster, "two nodes to hold all slots", |status| is_down(status, "node-3"));
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    for name in 0..PREFIXES {
        assert!(cluster.wait(store(&blocks, name, Ack::Primary)));
    }
    let goes_on = Arc::new(AtomicBool::new(true));
    let (asker, asks) = (blocks.clone(), goes_on.clone());
    let asked = cluster.spawn(async move {
        let mut rounds = 0;
        while asks.load(Ordering::Relaxed) {
            assert_eq!(fetch(&asker, rounds % PREFIXES).await, BLOCKS, "while slots move");
            assert!(store(&asker, PREFIXES + rounds % 8, Ack::Primary).await, "while slots move");
            rounds += 1;
        }
        rounds
    });
    let _joined = cluster.respawn("node-3");
    let status = settle(&cluster, "it to hold its share", |status| slots_of(status, "node-3") > 1000);
    goes_on.store(false, Ordering::Relaxed);
    assert!(cluster.wait(asked).expect("every request was answered as it should") > 0);
    let devices = status["devices"].as_array().expect("a list");
    let joined = devices.iter().find(|device| device["node"] == "node-3").expect("it is up");
    assert!(joined["blocks"].as_u64() > Some(0), "{joined}");
    all_come(&cluster, &blocks, 0..PREFIXES + 8, "after the moves");
}

#[test]
fn a_node_is_emptied_before_it_goes_and_takes_nothing_with_it() {
    let options = ["--nodes", "2", "--devices", "1", "--device-memory", "64MiB"];
    let cluster = Cluster::start(&options);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    for name in 0..PREFIXES {
        assert!(cluster.wait(store(&blocks, name, Ack::Primary)));
    }
    let held = cluster.until("it to tell what it holds", || {
        let status = cluster.status();
        let all: u64 = ["node-1", "node-2"].map(|node| blocks_of(&status, node)).iter().sum();
        (all == PREFIXES * BLOCKS as u64).then(|| blocks_of(&status, "node-1"))
    });
    let report = cluster.json(&["drain", "node-1"]).expect("it is emptied");
    assert_eq!(report["slots_left"], 0, "{report}");
    let came_to = ["moved_blocks", "there_blocks", "lost_blocks"].map(|name| report[name].as_u64());
    assert_eq!(came_to, [Some(held), Some(0), Some(0)], "{report}");
    assert_eq!(slots_of(&cluster.status(), "node-1"), 0);
    all_come(&cluster, &blocks, 0..PREFIXES, "after the drain");
    let nobody = cluster.json(&["drain", "node-2"]).expect_err("it is the last").to_string();
    assert!(nobody.contains("no other node"), "{nobody}");
    let unknown = cluster.json(&["drain", "node-9"]).expect_err("there is none").to_string();
    assert!(unknown.contains("node-9"), "{unknown}");
    cluster.json(&["drain", "node-1", "--undo"]).expect("it comes back");
    settle(&cluster, "its slots to come back", |status| slots_of(status, "node-1") > 2000);
    let again = cluster.json(&["drain", "node-1"]).expect("it is emptied once more");
    assert_eq!((&again["moved_blocks"], &again["lost_blocks"]), (&0.into(), &0.into()), "{again}");
    assert_eq!(again["there_blocks"], held, "the other has kept what it had");
    cluster.signal("node-1", "KILL");
    all_come(&cluster, &blocks, 0..PREFIXES, "without the node");
}

#[test]
fn what_a_lost_node_held_is_copied_again_so_that_another_may_be_lost() {
    let options = ["--nodes", "3", "--devices", "1", "--device-memory", "64MiB", "--replicas", "2"];
    let cluster = Cluster::start_with(&options, &[("KVHIVE_CLUSTER__REPAIR_AFTER", "1s")]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    for name in 0..PREFIXES {
        assert!(cluster.wait(store(&blocks, name, Ack::All)));
    }
    cluster.signal("node-1", "KILL");
    settle(&cluster, "replicas to be whole again", |status| is_down(status, "node-1"));
    cluster.signal("node-2", "KILL");
    settle(&cluster, "the last node to serve", |status| is_down(status, "node-2"));
    all_come(&cluster, &blocks, 0..PREFIXES, "after two nodes were lost, one after the other");
}

#[test]
fn a_slot_that_is_read_much_gets_a_replica_more_when_work_is_to_be_spread() {
    let options = ["--nodes", "2", "--devices", "1", "--device-memory", "64MiB"];
    let cluster = Cluster::start(&options);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    assert!(cluster.wait(store(&blocks, 1, Ack::Primary)));
    let even = cluster.json(&["balance", "--dry-run"]).expect("it is asked");
    assert_eq!(
        (&even["applied"], even["changes"].as_array().map(Vec::len)),
        (&false.into(), Some(0)),
        "{even}"
    );
    let goes_on = Arc::new(AtomicBool::new(true));
    let (asker, asks) = (blocks.clone(), goes_on.clone());
    let asked = cluster.spawn(async move {
        while asks.load(Ordering::Relaxed) {
            // One segment is one slot: two could be on two nodes, whose work is even then.
            let mut memory = vec![vec![0u8; BLOCK]; SEGMENT];
            let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
            let report = asker.fetch_into(&prefix(&asker, 1), 0..SEGMENT, &mut targets).await;
            let report = report.expect("it fits");
            assert_eq!(
                report.delivered(),
                SEGMENT,
                "while its slot gets more replicas: {:?}",
                report.outcomes
            );
        }
    });
    let report = cluster.until("a slot to be found that is read too much", || {
        let report = cluster.json(&["balance"]).expect("it is asked");
        report["applied"].as_bool().unwrap_or(false).then_some(report)
    });
    let change = &report["changes"][0];
    assert!(change["reason"].as_str().is_some_and(|why| why.contains("MiB/s")), "{report}");
    let (slot, wanted) = (change["slot"].to_string(), change["replicas"].clone());
    settle(&cluster, "the slot to be where it belongs", |_| {
        let slots = cluster.json(&["slots", "--slot", &slot]).expect("it is there");
        slots["slots"][0]["replicas"] == wanted
    });
    goes_on.store(false, Ordering::Relaxed);
    cluster.wait(asked).expect("every fetch got everything");
    all_come(&cluster, &blocks, 1..2, "after work was spread");
}
