//! A cluster of real processes on this machine that becomes larger and smaller again by `kvhive scale`, with its blocks kept.

use kvhive_tests::{PATIENCE, kvhive};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// A local cluster; it ends with its owner.
struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let folder = tempfile::Builder::new().prefix("kvhive-scale-").tempdir().expect("a temporary folder");
        let cluster = Cluster { folder };
        let shape = ["--coordinators", "1", "--nodes", "2", "--devices", "1", "--device-memory", "64MiB"];
        let rest = ["--host-memory", "0", "--block-size", "4KiB", "--strategy", "lru", "--detach"];
        cluster.succeeds(&[&["up"], &shape[..], &rest[..]].concat());
        cluster
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(kvhive());
        for variable in ["KVHIVE_TOKEN", "KVHIVE_TOKEN_FILE", "KVHIVE_ADMIN"] {
            command.env_remove(variable);
        }
        command.args(words).env("KVHIVE_DIR", self.dir()).output().expect("it runs")
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.succeeds(&[words, &["--json"]].concat())).expect("JSON")
    }

    /// Names of nodes that are up, in order.
    fn up(&self) -> Vec<String> {
        let status = self.json(&["status"]);
        let nodes = status["nodes"].as_array().expect("a list").clone();
        let up = nodes.iter().filter(|node| node["state"] == "up");
        up.map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Asks for the same blocks each time; returns how many were there.
    fn replay(&self) -> (u64, u64) {
        let report = self.json(&["replay", "--requests", "150", "--block-size", "4KiB"]);
        assert_eq!(report["wrong_bytes"], 0, "{report}");
        (report["hits"].as_u64().expect("hits"), report["blocks"].as_u64().expect("blocks"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[test]
fn a_cluster_becomes_larger_and_smaller_with_its_blocks() {
    let cluster = Cluster::start();
    cluster.replay();
    let (all, blocks) = cluster.replay();
    assert_eq!(all, blocks, "everything is there the second time");

    let would = cluster.json(&["scale", "to", "3", "--dry-run"]);
    assert_eq!(would["would"], serde_json::json!(["start node-3"]));
    assert_eq!(cluster.up(), ["node-1", "node-2"], "nothing was done");

    let more = cluster.json(&["scale", "to", "3"]);
    assert_eq!((&more["started"], &more["to"]), (&serde_json::json!(["node-3"]), &3.into()));
    assert_eq!(cluster.up(), ["node-1", "node-2", "node-3"]);
    // The newcomer takes slots with their blocks.
    let begun = std::time::Instant::now();
    while cluster.json(&["status"])["slots"]["moving"] != 0 {
        assert!(begun.elapsed() < PATIENCE, "slots do not settle");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(cluster.replay(), (blocks, blocks), "no block was lost on the way to three");

    let fewer = cluster.json(&["scale", "to", "2"]);
    assert_eq!(fewer["ended"], serde_json::json!(["node-3"]));
    assert!(fewer["slots_moved"].as_u64().expect("a number") > 500, "{fewer}");
    assert_eq!(cluster.up(), ["node-1", "node-2"]);
    assert_eq!(cluster.replay(), (blocks, blocks), "nor on the way back");

    let scaling = cluster.json(&["scale", "status"]);
    assert_eq!((&scaling["policy"]["manual"], &scaling["target"]), (&2.into(), &2.into()));
    let set = cluster.json(&["scale", "set", "--mode", "advise", "--ceiling", "5", "--automatic"]);
    assert_eq!((&set["policy"]["mode"], &set["policy"]["manual"]), (&"advise".into(), &Value::Null));
    let refused = cluster.run(&["scale", "set", "--floor", "9"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("ceiling is 5, allowed is 9 to 1024"), "{said}");

    // A program that fails is told of, and nothing has come.
    let failed = cluster.run(&["scale", "to", "3", "--", "false", "{count}"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("`false 3` failed"), "{said}");
    // One that was scaled away comes back under its name and holds slots again.
    let again = cluster.json(&["scale", "to", "3"]);
    assert_eq!(again["started"], serde_json::json!(["node-3"]));
    assert_eq!(cluster.up(), ["node-1", "node-2", "node-3"]);
}
