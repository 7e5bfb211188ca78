//! Emptying a node of a cluster of real processes whose others have too little room: it is refused, and where it is done all the same it
//! ends with what was lost and why.

use kvhive_client::{Client, NamespaceClient, Prefix, Replica, StoreOptions, StoreOutcome};
use kvhive_protocol::explain::Explained;
use kvhive_protocol::{BlockKey, MemberId, PinMode, Reason};
use kvhive_tests::{Cluster, kvhive};
use serde_json::Value;
use std::ops::Range;
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

/// So many nodes of one device with 128 frames, without another copy of anything.
fn nodes(count: &str) -> Cluster {
    replicated(count, "1")
}

fn replicated(count: &str, replicas: &str) -> Cluster {
    acknowledged_by(count, replicas, "primary")
}

/// Such a cluster whose stores are answered once these replicas have acknowledged them.
fn acknowledged_by(count: &str, replicas: &str, ack: &str) -> Cluster {
    let options = [
        "--coordinators",
        "1",
        "--nodes",
        count,
        "--devices",
        "1",
        "--replicas",
        replicas,
        "--device-memory",
        "8MiB",
        "--host-memory",
        "0",
        "--block-size",
        "64KiB",
        "--strategy",
        "lru",
    ];
    Cluster::start_with(&options, &[("KVHIVE_CLUSTER__ACK", ack)])
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
    let mut output = run(&cluster, &["scale", "to", "2"]);
    if output.status.code() == Some(1) {
        // Older copies are room, as nobody misses them. By how segments are spread the margin alone may be lacking.
        let room: Value = serde_json::from_slice(&output.stderr).expect("it says why");
        let number = |field: &str| room[field].as_u64().unwrap_or_else(|| panic!("{field} of {room}"));
        assert!(number("short_bytes") <= number("margin_bytes"), "{room}");
        output = run(&cluster, &["scale", "to", "2", "--yes"]);
    }
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
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

/// The beginning of a prefix of its own, which stands alone.
fn single(blocks: &NamespaceClient, name: u64) -> Prefix {
    blocks.prefix_of_engine_hashes(&[(u128::from(name) << 64).to_le_bytes()])
}

fn store_singly(cluster: &Cluster, blocks: &NamespaceClient, names: Range<u64>) {
    let memory = vec![7; BLOCK];
    for name in names {
        let prefix = single(blocks, name);
        let stored = cluster.wait(blocks.store(&prefix, 0..1, &[&memory[..]], StoreOptions::default()));
        let outcomes = stored.expect("it is taken").outcomes;
        assert!(matches!(outcomes[..], [StoreOutcome::Acknowledged { .. }]), "{outcomes:?}");
    }
}

/// Returns on how many nodes each of them is, or whether on this one.
fn copies_on(
    cluster: &Cluster,
    client: &Client,
    blocks: &NamespaceClient,
    names: Range<u64>,
    on: Option<MemberId>,
) -> Vec<usize> {
    let keys: Vec<BlockKey> = names.map(|name| single(blocks, name).keys()[0]).collect();
    let told = cluster.wait(client.explain_keys("default", &keys)).expect("nodes answer");
    let here = |one: &Replica| {
        matches!(one.said, Ok(Explained::Here { .. })) && on.is_none_or(|member| one.device.member == member)
    };
    told.blocks.iter().map(|block| block.replicas.iter().filter(|one| here(one)).count()).collect()
}

#[test]
fn what_the_emptied_node_alone_holds_of_a_replicated_slot_is_said_beforehand_and_counted() {
    const NAMES: u64 = 300;
    let cluster = replicated("2", "2");
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    store_singly(&cluster, &blocks, 0..FRAMES);
    // Whichever replica is read keeps it, and the other lets it go: between them they keep some of the oldest.
    let mut target = vec![0; BLOCK];
    for name in FRAMES..NAMES {
        let prefix = single(&blocks, name % 16);
        cluster.wait(blocks.match_prefix(&prefix)).expect("they answer");
        cluster.wait(blocks.fetch_into(&prefix, 0..1, &mut [&mut target[..]])).expect("they answer");
        store_singly(&cluster, &blocks, name..name + 1);
    }
    let count = |copies: &[usize]| copies.iter().filter(|copies| **copies > 0).count() as u64;
    let before = cluster.until("copies to have arrived", || {
        let copies = copies_on(&cluster, &client, &blocks, 0..NAMES, None);
        copies.iter().rev().take(FRAMES as usize / 2).all(|copies| *copies == 2).then_some(copies)
    });
    assert!(count(&before) > FRAMES, "some are on one alone: {before:?}");
    settled(&cluster);

    let said = refused(&cluster, &["drain", "node-1"]);
    assert!(said.contains("as many as") && said.contains("which has let blocks go"), "{said}");
    let said = refused(&cluster, &["scale", "to", "1"]);
    assert!(said.contains("node-2 holds") && said.contains("as many as"), "{said}");

    let output = run(&cluster, &["drain", "node-1", "--yes"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report all the same");
    let status = cluster.status();
    let mut nodes = status["nodes"].as_array().expect("a list").iter();
    let stays = nodes.find(|node| node["name"] == "node-2").and_then(|node| node["id"].as_u64());
    let stays = MemberId(stays.expect("it is there") as u32);
    let after = copies_on(&cluster, &client, &blocks, 0..NAMES, Some(stays));
    let after = after.iter().filter(|copies| **copies > 0).count() as u64;
    assert_eq!(after, FRAMES, "the one that stays is full");
    let lost = report["lost_blocks"].as_u64().expect("a number");
    assert_eq!(lost, count(&before) - after, "{report}");
}

fn drain_events(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let words = ["events", "--kind", kind, "--json", "--dir", cluster.dir()];
    let told = Command::new(kvhive()).args(words).output().expect("kvhive is there");
    let events = serde_json::Deserializer::from_slice(&told.stdout).into_iter();
    events.collect::<Result<_, _>>().expect("each is JSON")
}

#[test]
fn a_drain_that_is_cut_short_ends_with_what_is_known_of_it() {
    let cluster = nodes("2");
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    store_singly(&cluster, &blocks, 0..32);
    // It is taken for one that is up until its lease runs out.
    cluster.signal("node-2", "KILL");
    let output = run(&cluster, &["drain", "node-2"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report all the same");
    assert_eq!(
        (&report["cut_short"], &report["is_reported"], &report["was_before"]),
        (&1.into(), &true.into(), &false.into()),
        "{report}"
    );
    assert!(report["slots_left"].as_u64() > Some(1000), "{report}");
    let finished = drain_events(&cluster, "drain-finished");
    assert_eq!((finished.len(), &finished[0]["facts"]["cut_short"]), (1, &1.into()), "{finished:?}");
}

#[test]
fn a_drain_is_whole_though_the_nodes_lease_runs_out_where_all_replicas_acknowledge() {
    let cluster = acknowledged_by("3", "2", "all");
    let (output, report, reason) = stopped_while_emptied(&cluster);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("node-3 has gone down with "), "{said}");
    assert!(said.contains("others have every block that all replicas acknowledged"), "{said}");
    let figures = ["lost_blocks", "cut_short", "slots_left"].map(|name| report[name].as_u64());
    assert_eq!(figures, [Some(0); 3], "{report}");
    assert!(reason.contains("node-1, node-2 have every block that all replicas acknowledged"), "{reason}");
}

#[test]
fn a_drain_is_cut_short_by_the_nodes_lease_where_the_primary_alone_acknowledges() {
    let cluster = replicated("3", "2");
    let (output, report, reason) = stopped_while_emptied(&cluster);
    assert_eq!((output.status.code(), &report["cut_short"]), (Some(1), &1.into()), "{output:?}");
    assert!(reason.contains("what only it held is lost"), "{reason}");
}

/// Empties a node that stands still, so that its lease runs out, when each block is on two nodes. Returns how that ended, its report and what
/// the journal says of it.
fn stopped_while_emptied(cluster: &Cluster) -> (Output, Value, String) {
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    store_singly(cluster, &blocks, 0..32);
    let is_doubled = || {
        let copies = copies_on(cluster, &client, &blocks, 0..32, None);
        (cluster.status()["slots"]["moving"] == 0 && copies.iter().all(|copies| *copies == 2)).then_some(())
    };
    cluster.until("each block to be on two nodes", is_doubled);
    // It is taken for one that is up until its lease runs out.
    cluster.signal("node-3", "STOP");
    let output = run(cluster, &["drain", "node-3"]);
    cluster.signal("node-3", "CONT");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let reason = drain_events(cluster, "drain-finished")[0]["reason"].to_string();
    (output, report, reason)
}

#[test]
fn a_drain_is_an_operators_own_also_where_the_size_changes() {
    let cluster = nodes("3");
    let emptied = cluster.json(&["drain", "node-1"]).expect("there is room");
    assert_eq!((&emptied["was_before"], &emptied["lost_blocks"]), (&false.into(), &0.into()), "{emptied}");
    let again = cluster.json(&["drain", "node-1"]).expect("it is empty");
    assert_eq!((&again["was_before"], &again["slots"]), (&true.into(), &0.into()), "{again}");

    // Below the floor nothing is said of room.
    cluster.json(&["scale", "set", "--floor", "2"]).expect("it may be");
    let said = refused(&cluster, &["scale", "to", "1"]);
    assert!(said.contains("--beyond-policy") && !said.contains("--yes"), "{said}");

    let scaled = cluster.json(&["scale", "to", "3"]).expect("they are there");
    let node_1 = serde_json::json!(["node-1"]);
    assert_eq!(
        (&scaled["left_draining"], &scaled["undrained"]),
        (&node_1, &serde_json::json!([])),
        "{scaled}"
    );
    let drains = |cluster: &Cluster| {
        cluster.json(&["drain", "node-1", "--undo"]).expect("it is here")["drains"].clone()
    };
    assert_eq!(drain_events(&cluster, "drain-ended").len(), 0);
    assert_eq!(drains(&cluster), false);

    // What a change of size finds empty it has not moved.
    let before = cluster.json(&["drain", "node-3"]).expect("there is room");
    assert!(before["slots"].as_u64() > Some(1000), "{before}");
    let scaled = cluster.json(&["scale", "to", "2"]).expect("there is room");
    assert_eq!(
        (&scaled["ended"], &scaled["slots_moved"], &scaled["moved_blocks"]),
        (&serde_json::json!(["node-3"]), &0.into(), &0.into()),
        "{scaled}"
    );
}

#[test]
fn a_drain_that_pinned_blocks_hold_up_says_so_also_when_it_is_asked_for_again() {
    let cluster = nodes("2");
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    // About a hundred on each: half of a device's frames may be pinned.
    store_singly(&cluster, &blocks, 0..200);
    let keys: Vec<BlockKey> = (0..200).map(|name| single(&blocks, name).keys()[0]).collect();
    let pinned = client.pin_keys("all", "default", &keys, PinMode::Hard, Reason::default());
    cluster.wait(pinned).expect("it stands, whatever of it finds room");
    cluster.until("nodes to pin what they may", || {
        let told = cluster.wait(client.explain_keys("default", &keys)).expect("nodes answer");
        let is_pinned = |one: &Replica| matches!(one.said, Ok(Explained::Here { pinned: true, .. }));
        let held = told.blocks.iter().filter(|block| block.replicas.iter().any(is_pinned)).count();
        (held as u64 == FRAMES).then_some(())
    });
    for words in [&["drain", "node-1", "--yes"][..], &["drain", "node-1"]] {
        let said = refused(&cluster, words);
        assert!(said.contains("no room in the others") && said.contains("pinned"), "{words:?}: {said}");
    }
}
