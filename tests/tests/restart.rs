//! Nodes of real processes that are ended in order and started again: what was asked for before is there as it was before.

use kvhive_tests::{Cluster, Respawned};
use serde_json::Value;
use std::path::Path;

/// Asks for the same blocks each time; returns how many were there, of how many.
fn replay(cluster: &Cluster) -> (u64, u64) {
    let report = cluster.json(&["replay", "--requests", "150", "--block-size", "4KiB"]).expect("it runs");
    assert_eq!(report["wrong_bytes"], 0, "{report}");
    (report["hits"].as_u64().expect("hits"), report["blocks"].as_u64().expect("blocks"))
}

/// Returns a figure of the only node's metrics, summed over its labels; none when it does not answer.
fn figure(cluster: &Cluster, name: &str) -> Option<u64> {
    let status: Value = cluster.json(&["status"]).ok()?;
    let address = status["nodes"][0]["metrics_address"].as_str()?.to_owned();
    let page =
        ureq::get(format!("http://{address}/metrics")).call().ok()?.body_mut().read_to_string().ok()?;
    let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let values = page.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Some(values.sum::<f64>() as u64)
}

/// Has the only node keep a snapshot from its next start on.
fn keep_snapshots(cluster: &Cluster) {
    let file = Path::new(cluster.dir()).join("cluster.toml");
    let text = std::fs::read_to_string(&file).expect("the cluster has one");
    let keeps = text.replacen("[[node]]\n", "[[node]]\npersist_dir = \"snapshots\"\n", 1);
    assert!(keeps != text, "it lists its nodes");
    std::fs::write(file, keeps).expect("writable");
}

/// Starts the node again and waits until it has so many blocks.
fn again(cluster: &Cluster, blocks: u64) -> Respawned {
    let node = cluster.respawn("node-1");
    cluster
        .until("its blocks to be there", || (figure(cluster, "kvhive_node_blocks")? >= blocks).then_some(()));
    node
}

#[test]
fn a_node_that_is_restarted_in_order_hits_as_often_as_before() {
    let shape = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--block-size", "4KiB"];
    // Some of it in memory, the rest on disk.
    let room = ["--device-memory", "4MiB", "--host-memory", "2MiB", "--disk", "128MiB", "--strategy", "lru"];
    let cluster = Cluster::start(&[&shape[..], &room[..]].concat());
    cluster.signal("node-1", "TERM");
    cluster.until("it to end", || figure(&cluster, "kvhive_node_blocks").is_none().then_some(()));
    keep_snapshots(&cluster);
    let node = again(&cluster, 0);
    // A store that a full memory refuses comes with the next replay.
    let before = cluster.until("everything to be there", || {
        let (hits, all) = replay(&cluster);
        (hits == all).then_some(hits)
    });
    let blocks = figure(&cluster, "kvhive_node_blocks").expect("it answers");
    node.end();
    let manifest = Path::new(cluster.dir()).join("snapshots/node-1/manifest.json");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(manifest).expect("it was written")).expect("it is JSON");
    let segments = manifest["segments"].as_array().expect("a list");
    let in_memory: u64 = segments.iter().filter_map(|segment| segment["blocks"].as_u64()).sum();
    assert!(in_memory > 0 && in_memory < blocks, "{in_memory} of {blocks} were in memory");
    let node = again(&cluster, blocks);
    let (hits, _) = replay(&cluster);
    // A disk that is busy with something else may give one late.
    assert!(hits >= before - before / 100, "{hits} hits, {before} before");
    node.end();
}
