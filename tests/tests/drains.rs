//! Emptying a node of a cluster of real processes whose others have too little room: it is refused, and where it is done all the same it
//! ends with what was lost and why.

use kvhive_client::{NamespaceClient, StoreOptions, StoreOutcome};
use kvhive_tests::{Cluster, kvhive};
use serde_json::Value;
use std::process::{Command, Output};

const BLOCK: usize = 64 << 10;
/// Blocks that one node has frames for.
const FRAMES: u64 = 128;
const SEGMENT: usize = 16;

/// Runs a command on the cluster, whatever it ends with.
fn run(cluster: &Cluster, words: &[&str]) -> Output {
    let words = words.iter().copied().chain(["--dir", cluster.dir(), "--json"]);
    Command::new(kvhive()).args(words).output().expect("kvhive is there")
}

fn refused(cluster: &Cluster, words: &[&str]) -> String {
    let output = run(cluster, words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn store(blocks: &NamespaceClient, name: u64) {
    let hash = |at: usize| (u128::from(name) << 64 | at as u128).to_le_bytes();
    let prefix = blocks.prefix_of_engine_hashes(&(0..SEGMENT).map(hash).collect::<Vec<[u8; 16]>>());
    let memory = vec![name as u8; BLOCK];
    let memory = vec![&memory[..]; SEGMENT];
    let report = blocks.store(&prefix, 0..SEGMENT, &memory, StoreOptions::default()).await.expect("it fits");
    assert!(report.outcomes.iter().all(|one| matches!(one, StoreOutcome::Acknowledged { .. })), "{report:?}");
}

fn held(status: &Value, node: &str) -> u64 {
    let devices = status["devices"].as_array().expect("a list").iter();
    devices.filter(|device| device["node"] == node).filter_map(|device| device["blocks"].as_u64()).sum()
}

/// So many nodes of one device with 128 frames.
fn nodes(count: &str) -> Cluster {
    Cluster::start(&[
        "--coordinators",
        "1",
        "--nodes",
        count,
        "--devices",
        "1",
        "--replicas",
        "1",
        "--device-memory",
        "8MiB",
        "--host-memory",
        "0",
        "--block-size",
        "64KiB",
        "--strategy",
        "lru",
    ])
}

/// Two nodes that each hold more than half of what one has frames for.
fn more_than_one_holds() -> Cluster {
    let cluster = nodes("2");
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    let is_enough = |status: &Value| held(status, "node-1") > 80 && held(status, "node-2") > 80;
    for name in 0.. {
        assert!(name < 200, "blocks are on both nodes");
        cluster.wait(store(&blocks, name));
        if name >= 10 && is_enough(&cluster.status()) {
            break;
        }
    }
    cluster
}

/// Waits until both nodes have told all that they hold; returns how much that is.
fn settled(cluster: &Cluster) -> [u64; 2] {
    let mut last = None;
    cluster.until("nodes to tell what they hold", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let status = cluster.status();
        let now = ["node-1", "node-2"].map(|node| held(&status, node));
        (last.replace(now) == Some(now)).then_some(now)
    })
}

#[test]
fn a_node_is_not_emptied_into_too_little_room_unless_its_blocks_may_be_lost() {
    let cluster = more_than_one_holds();
    let before = settled(&cluster);
    assert!(before.iter().sum::<u64>() > FRAMES, "{before:?}");

    let said = refused(&cluster, &["drain", "node-1"]);
    assert!(said.contains("too little where it would go") && said.contains("--yes"), "{said}");
    let said = refused(&cluster, &["scale", "to", "1"]);
    assert!(said.contains("node-2 holds") && said.contains("--yes"), "{said}");
    let scaling = cluster.json(&["scale", "status"]).expect("it is told");
    assert_eq!(
        (&scaling["policy"]["manual"], &scaling["members"]),
        (&Value::Null, &2.into()),
        "nothing has begun"
    );

    // As far as it is known beforehand.
    let room = cluster.json(&["scale", "to", "1", "--dry-run"]).expect("it is told");
    assert!(room["would"].to_string().contains("refused without --yes"), "{room}");

    let output = run(&cluster, &["drain", "node-1", "--yes"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report all the same");
    let number = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("{field} of {report}"));
    let left = cluster.until("the one that stays to be full", || {
        let left = held(&cluster.status(), "node-2");
        (left == FRAMES).then_some(left)
    });
    assert_eq!(number("lost_blocks"), before[0] + before[1] - left, "{report}");
    assert_eq!(number("lost_bytes"), number("lost_blocks") * BLOCK as u64);
    assert_eq!(number("moved_blocks"), before[0], "who comes last is worth most to this strategy: {report}");
    assert_eq!(number("displaced_blocks"), number("lost_blocks"), "{report}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("were lost") && said.contains("left the others to make room"), "{said}");

    let events = Command::new(kvhive())
        .args(["events", "--kind", "drain-finished", "--json", "--dir", cluster.dir()])
        .output()
        .expect("kvhive is there");
    let event: Value = serde_json::from_slice(&events.stdout).expect("one event");
    assert_eq!(
        (&event["subject"]["member"], &event["facts"]["lost_blocks"]),
        (&"node-1".into(), &report["lost_blocks"])
    );
    assert!(
        event["reason"].as_str().is_some_and(|why| why.contains("left elsewhere to make room")),
        "{event}"
    );
}

#[test]
fn a_cluster_that_grew_shrinks_again_without_loss_although_older_copies_fill_it() {
    let cluster = nodes("2");
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    // Most of what two have frames for, but no more than either has, and some to spare: where slots go is drawn.
    let mut stored = 0;
    for name in 0.. {
        let status = cluster.status();
        if ["node-1", "node-2"].iter().any(|node| held(&status, node) > FRAMES - 4 * SEGMENT as u64) {
            break;
        }
        cluster.wait(store(&blocks, name));
        stored += SEGMENT as u64;
        cluster.until("it to be told", || {
            let status = cluster.status();
            (held(&status, "node-1") + held(&status, "node-2") == stored).then_some(())
        });
    }
    cluster.json(&["scale", "to", "3"]).expect("there is a third");
    cluster.until("slots to settle", || (cluster.status()["slots"]["moving"] == 0).then_some(()));
    let report = cluster.json(&["scale", "to", "2"]).expect("there is room, as nobody misses older copies");
    assert_eq!(
        (&report["lost_blocks"], &report["unreported"]),
        (&0.into(), &serde_json::json!([])),
        "{report}"
    );
    let drained = cluster.json(&["drain", "node-9"]).expect_err("nobody of that name").to_string();
    assert!(drained.contains("node-9"), "{drained}");
    let status = cluster.status();
    assert!(held(&status, "node-1") + held(&status, "node-2") >= stored, "{stored} were stored: {status}");
}
