//! A cluster of real processes on this machine that becomes larger and smaller again by `kvhive scale`, with its blocks kept.

use kvhive_tests::{Cluster, Respawned, TWO_SMALL_NODES, run};
use serde_json::Value;

fn json(cluster: &Cluster, words: &[&str]) -> Value {
    cluster.json(words).expect("it is done")
}

fn refused(words: &[&str]) -> String {
    format!("{:#}", run(words).expect_err("it is refused"))
}

/// Names of nodes that are up, sorted: they are listed as they registered, and two that start together race for that.
fn up(cluster: &Cluster) -> Vec<String> {
    let status = json(cluster, &["status"]);
    let nodes = status["nodes"].as_array().expect("a list").clone();
    let up = nodes.iter().filter(|node| node["state"] == "up");
    let mut names: Vec<String> = up.map(|node| node["name"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

/// Asks for the same blocks each time; returns how many were there.
fn replay(cluster: &Cluster) -> (u64, u64) {
    let report = json(cluster, &["replay", "--requests", "150", "--block-size", "4KiB"]);
    assert_eq!(report["wrong_bytes"], 0, "{report}");
    (report["hits"].as_u64().expect("hits"), report["blocks"].as_u64().expect("blocks"))
}

#[test]
fn a_cluster_becomes_larger_and_smaller_with_its_blocks() {
    // The cluster file gives what a cluster begins with; a variable stands for its key.
    let cluster = Cluster::start_with(&TWO_SMALL_NODES, &[("KVHIVE_SCALING__CEILING", "6")]);
    assert_eq!(json(&cluster, &["scale", "status"])["policy"]["ceiling"], 6);
    replay(&cluster);
    let (all, blocks) = replay(&cluster);
    assert_eq!(all, blocks, "everything is there the second time");

    let would = json(&cluster, &["scale", "to", "3", "--dry-run"]);
    assert_eq!(would["would"], serde_json::json!(["start node-3"]));
    assert_eq!(up(&cluster), ["node-1", "node-2"], "nothing was done");
    let words = ["scale", "to", "2", "--dry-run", "--dir", cluster.dir()];
    let same = run(&words).expect("it has that size").stdout;
    assert_eq!(String::from_utf8_lossy(&same), "2 members, 2 wanted: nothing would be done\n");

    let more = json(&cluster, &["scale", "to", "3"]);
    assert_eq!((&more["started"], &more["to"]), (&serde_json::json!(["node-3"]), &3.into()));
    assert_eq!(up(&cluster), ["node-1", "node-2", "node-3"]);
    // The newcomer takes slots with their blocks.
    cluster.until("slots to settle", || (json(&cluster, &["status"])["slots"]["moving"] == 0).then_some(()));
    assert_eq!(replay(&cluster), (blocks, blocks), "no block was lost on the way to three");

    let fewer = json(&cluster, &["scale", "to", "2"]);
    assert_eq!(fewer["ended"], serde_json::json!(["node-3"]));
    assert!(fewer["slots_moved"].as_u64().expect("a number") > 500, "{fewer}");
    assert_eq!((&fewer["lost_blocks"], &fewer["unreported"]), (&0.into(), &serde_json::json!([])), "{fewer}");
    let arrived = ["moved_blocks", "there_blocks"].iter().filter_map(|name| fewer[name].as_u64());
    assert!(arrived.sum::<u64>() > 0, "{fewer}");
    let status = json(&cluster, &["status"]);
    assert_eq!(
        status["nodes"].as_array().map(Vec::len),
        Some(2),
        "who was taken away is listed no more: {status}"
    );
    assert_eq!(up(&cluster), ["node-1", "node-2"]);
    assert_eq!(replay(&cluster), (blocks, blocks), "nor on the way back");

    let scaling = json(&cluster, &["scale", "status"]);
    assert_eq!((&scaling["policy"]["manual"], &scaling["target"]), (&2.into(), &2.into()));
    let set = json(&cluster, &["scale", "set", "--mode", "advise", "--ceiling", "5", "--automatic"]);
    assert_eq!((&set["policy"]["mode"], &set["policy"]["manual"]), (&"advise".into(), &Value::Null));
    let said = refused(&["scale", "set", "--floor", "9", "--dir", cluster.dir()]);
    assert!(said.contains("ceiling is 5, allowed is 9 to 1024"), "{said}");

    // Nobody goes beyond the policy without saying so.
    let said = refused(&["scale", "to", "6", "--dir", cluster.dir()]);
    assert!(said.contains("6 members are asked for, and the policy allows 1 to 5"), "{said}");
    let would = json(&cluster, &["scale", "to", "6", "--dry-run"]);
    assert!(would["would"].to_string().contains("refused without --beyond-policy"), "{would}");

    // A program that fails is told of, and nothing has come.
    let said = refused(&["scale", "to", "3", "--dir", cluster.dir(), "--", "false", "{count}"]);
    assert!(said.contains("`false 3` failed"), "{said}");
    // So is the one that the cluster file names.
    let text =
        std::fs::read_to_string(format!("{}/cluster.toml", cluster.dir())).expect("the cluster's file");
    let named = text.replacen("[scaling]", "[scaling]\nprogram = [\"false\", \"named\", \"{count}\"]", 1);
    let file = format!("{}/named.toml", cluster.dir());
    std::fs::write(&file, named).expect("room for a file");
    let said = refused(&["scale", "to", "3", "--dir", cluster.dir(), "--config", &file]);
    assert!(said.contains("`false named 3` failed"), "{said}");
    // One that was scaled away comes back under its name and holds slots again.
    let again = json(&cluster, &["scale", "to", "3"]);
    assert_eq!(again["started"], serde_json::json!(["node-3"]));
    assert_eq!(up(&cluster), ["node-1", "node-2", "node-3"]);
}

#[test]
fn who_follows_has_the_supervisor_start_and_end_nodes_with_every_block_kept() {
    let cluster = Cluster::start(&TWO_SMALL_NODES);
    replay(&cluster);
    let (all, blocks) = replay(&cluster);
    assert_eq!(all, blocks, "everything is there the second time");
    let _follower = Respawned::following(&cluster, &[], &[]);
    for (size, nodes) in [(3, &["node-1", "node-2", "node-3"][..]), (2, &["node-1", "node-2"])] {
        cluster.ask_for_size(size);
        cluster.until("that many nodes", || (up(&cluster) == nodes).then_some(()));
        let is_still = || (json(&cluster, &["status"])["slots"]["moving"] == 0).then_some(());
        cluster.until("slots to settle", is_still);
        assert_eq!(replay(&cluster), (blocks, blocks), "no block was lost on the way to {size}");
    }
}
