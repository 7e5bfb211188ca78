//! `kvhive scale --kubernetes` with a real cluster and a Kubernetes API server of the test's own, whose StatefulSet's pods are the
//! cluster's nodes.

mod fake;

use fake::Fake;
use kvhive_tests::{Cluster, Respawned, TWO_SMALL_NODES, run_with};
use serde_json::{Value, json};

/// A cluster whose nodes are a StatefulSet's pods.
struct Scene {
    cluster: Cluster,
    kubernetes: Fake,
}

impl Scene {
    fn of_two_pods() -> Scene {
        let cluster = Cluster::start(&TWO_SMALL_NODES);
        let kubernetes = Fake::start(cluster.dir(), 2);
        Scene { cluster, kubernetes }
    }

    fn scale(&self, words: &[&str]) -> anyhow::Result<Value> {
        self.scale_by(&self.kubernetes.kubeconfig(), "caches/node", words)
    }

    fn scale_by(&self, kubeconfig: &str, set: &str, words: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["scale"];
        all.extend(words);
        all.extend(["--kubernetes", set, "--dir", self.cluster.dir(), "--json"]);
        let output = run_with(&all, &[("KUBECONFIG", kubeconfig)])?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn refused(&self, words: &[&str]) -> String {
        format!("{:#}", self.scale(words).expect_err("it is refused"))
    }

    /// Names of nodes that are up and of those of them that are being emptied, sorted.
    fn nodes(&self) -> (Vec<String>, Vec<String>) {
        let status = self.cluster.status();
        let names = |which: fn(&Value) -> bool| {
            let nodes = status["nodes"].as_array().expect("a list").iter();
            let found = nodes.filter(|node| node["state"] == "up" && which(node));
            let mut names: Vec<String> =
                found.map(|node| node["name"].as_str().expect("a name").to_owned()).collect();
            names.sort();
            names
        };
        (names(|_| true), names(|node| node["drains"] == true))
    }

    /// Asks for the same blocks each time; returns how many were there, of how many.
    fn replay(&self) -> (u64, u64) {
        let report =
            self.cluster.json(&["replay", "--requests", "150", "--block-size", "4KiB"]).expect("it runs");
        assert_eq!(report["wrong_bytes"], 0, "{report}");
        (report["hits"].as_u64().expect("hits"), report["blocks"].as_u64().expect("blocks"))
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_stateful_set_grows_and_shrinks_with_every_block() {
    let scene = Scene::of_two_pods();
    scene.replay();
    let (all, blocks) = scene.replay();
    assert_eq!(all, blocks, "everything is there the second time");

    let would = scene.scale(&["to", "3", "--dry-run"]).expect("it says what");
    assert_eq!(
        would["would"],
        json!(["set replicas of StatefulSet caches/node from 2 to 3", "Kubernetes starts node-3"])
    );
    assert_eq!(scene.kubernetes.changes(), ["try 3"], "nothing was done");

    // Pods' states are written meanwhile.
    scene.kubernetes.known().conflicts = 2;
    let more = scene.scale(&["to", "3"]).expect("it grows");
    assert_eq!((&more["from"], &more["to"], &more["started"]), (&json!(2), &json!(3), &json!(["node-3"])));
    assert_eq!(scene.kubernetes.changes(), ["try 3", "3 conflicts", "3 conflicts", "3"]);
    assert_eq!(scene.nodes(), (words(&["node-1", "node-2", "node-3"]), Vec::new()));
    scene.cluster.until("slots to settle", || (scene.cluster.status()["slots"]["moving"] == 0).then_some(()));
    assert_eq!(scene.replay(), (blocks, blocks), "no block was lost on the way to three");

    let fewer = scene.scale(&["to", "2"]).expect("it shrinks");
    assert_eq!(fewer["ended"], json!(["node-3"]));
    assert!(fewer["slots_moved"].as_u64().expect("a number") > 500, "{fewer}");
    assert_eq!(scene.kubernetes.changes(), ["try 2", "2"]);
    assert_eq!(scene.nodes().0, ["node-1", "node-2"]);
    assert_eq!(scene.replay(), (blocks, blocks), "nor on the way back, and nobody else emptied node-3");
}

#[test]
fn what_the_api_refuses_is_told_before_anybody_is_emptied() {
    let scene = Scene::of_two_pods();
    let both = (words(&["node-1", "node-2"]), Vec::new());
    for (lacks, said) in [
        ("get statefulsets", "the verb get on statefulsets of the group apps"),
        ("get statefulsets/scale", "the verb get on statefulsets/scale of the group apps"),
        ("patch statefulsets/scale", "the verb patch on statefulsets/scale of the group apps"),
    ] {
        assert!(scene.kubernetes.known().role.remove(lacks), "the role has it");
        let told = scene.refused(&["to", "1"]);
        assert!(told.contains(said) && told.contains("cannot do so"), "{told}");
        scene.kubernetes.known().role = fake::role();
    }
    let kubeconfig = scene.kubernetes.kubeconfig();
    let told = scene.scale_by(&kubeconfig, "caches/nodes", &["to", "1"]).expect_err("there is none");
    assert!(format!("{told:#}").contains("there is no StatefulSet caches/nodes"), "{told:#}");
    // Without a namespace it is the context's.
    scene.scale_by(&kubeconfig, "node", &["to", "1", "--dry-run"]).expect("it finds caches/node");
    let told =
        scene.scale_by(&scene.kubernetes.stale_kubeconfig(), "node", &["to", "1"]).expect_err("it is stale");
    assert!(format!("{told:#}").contains("does not know who asks"), "{told:#}");
    let told = scene.scale_by("/nowhere", "node", &["to", "1"]).expect_err("there is none");
    assert!(format!("{told:#}").contains("set KUBECONFIG"), "{told:#}");

    scene.cluster.json(&["scale", "set", "--floor", "2"]).expect("it is set");
    let told = scene.refused(&["to", "1"]);
    assert!(told.contains("1 member is fewer than the floor of 2"), "{told}");
    assert_eq!(scene.nodes(), both, "nobody was emptied");
    assert_eq!(scene.kubernetes.changes(), ["try 1"], "nor ended");
    let scaling = scene.cluster.json(&["scale", "status"]).expect("it says");
    assert_eq!(scaling["policy"]["manual"], Value::Null, "nor was anybody told to follow");
}

#[test]
fn a_size_that_somebody_else_set_meanwhile_stays_and_the_command_goes_on_from_there() {
    let scene = Scene::of_two_pods();
    scene.kubernetes.known().rescaled = Some(5);
    let told = scene.refused(&["to", "1"]);
    assert!(told.contains("were 2 when it was decided who leaves, and are 5"), "{told}");
    assert_eq!(scene.kubernetes.changes(), ["try 1 conflicts"]);
    assert_eq!(scene.nodes(), (words(&["node-1", "node-2"]), Vec::new()));

    // Whoever never lets a change through.
    scene.kubernetes.known().replicas = 2;
    scene.kubernetes.known().conflicts = u32::MAX;
    let told = scene.refused(&["to", "1"]);
    assert!(told.contains("was changed by others 8 times"), "{told}");
    assert!(told.contains("node-2 is emptied and not ended"), "{told}");
    assert_eq!(scene.nodes(), (words(&["node-1", "node-2"]), words(&["node-2"])));
    scene.kubernetes.known().conflicts = 0;
    let ended = scene.scale(&["to", "1"]).expect("it goes on");
    assert_eq!(ended["ended"], json!(["node-2"]));
    assert_eq!(scene.nodes(), (words(&["node-1"]), Vec::new()));
    // Who comes back holds slots again.
    let back = scene.scale(&["to", "2"]).expect("it comes back");
    assert_eq!(back["started"], json!(["node-2"]));
    assert_eq!(scene.nodes(), (words(&["node-1", "node-2"]), Vec::new()));
}

#[test]
fn who_follows_gives_the_set_the_size_that_is_asked_for() {
    let scene = Scene::of_two_pods();
    let kubeconfig = scene.kubernetes.kubeconfig();
    let _follower = Respawned::following(
        &scene.cluster,
        &["--kubernetes", "caches/node"],
        &[("KUBECONFIG", &kubeconfig)],
    );
    for (size, nodes) in [(3, &["node-1", "node-2", "node-3"][..]), (1, &["node-1"])] {
        scene.cluster.ask_for_size(size);
        scene.cluster.until("that many nodes", || (scene.nodes().0 == nodes).then_some(()));
        assert_eq!(scene.kubernetes.known().replicas, size);
    }
    assert_eq!(scene.kubernetes.changes(), ["try 3", "3", "try 1", "1"], "and leaves it so");
}
