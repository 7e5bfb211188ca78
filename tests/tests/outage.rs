//! Without a majority of coordinators nodes serve on; and who may be serving so keeps a clear from being acknowledged.

use kvhive_client::{Client, FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome};
use kvhive_protocol::data::Ack;
use kvhive_tests::{Cluster, Respawned, kvhive, run};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const COUNT: usize = 20;

fn prefix(blocks: &NamespaceClient, name: u64) -> Prefix {
    let hashes: Vec<[u8; 16]> =
        (0..COUNT as u64).map(|at| (u128::from(name) << 64 | u128::from(at)).to_le_bytes()).collect();
    blocks.prefix_of_engine_hashes(&hashes)
}

fn content(name: u64, at: usize) -> Vec<u8> {
    vec![(name as usize * 31 + at) as u8; BLOCK]
}

/// Stores a prefix.
fn store(cluster: &Cluster, blocks: &NamespaceClient, name: u64, ack: Ack) -> Vec<StoreOutcome> {
    let memory: Vec<Vec<u8>> = (0..COUNT).map(|at| content(name, at)).collect();
    let memory: Vec<&[u8]> = memory.iter().map(|block| &block[..]).collect();
    let options = StoreOptions { ack: Some(ack), ..StoreOptions::default() };
    let stored = cluster.wait(blocks.store(&prefix(blocks, name), 0..COUNT, &memory, options));
    stored.expect("the arguments fit").outcomes
}

/// Fetches a prefix and returns how many of its blocks came, each compared with what was stored.
fn fetched(cluster: &Cluster, blocks: &NamespaceClient, name: u64) -> usize {
    let mut memory = vec![vec![0u8; BLOCK]; COUNT];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let report = cluster.wait(blocks.fetch_into(&prefix(blocks, name), 0..COUNT, &mut targets));
    let outcomes = report.expect("the arguments fit").outcomes;
    let came = |(at, outcome): (usize, &FetchOutcome)| {
        let has = matches!(outcome, FetchOutcome::Loaded(_));
        assert!(!has || memory[at] == content(name, at), "block {at} of prefix {name} has wrong bytes");
        usize::from(has)
    };
    outcomes.iter().enumerate().map(came).sum()
}

fn copies(outcomes: &[StoreOutcome]) -> Vec<u8> {
    let of = |outcome: &StoreOutcome| match outcome {
        StoreOutcome::Acknowledged { copies, .. } => *copies,
        other => panic!("not acknowledged: {other:?}"),
    };
    outcomes.iter().map(of).collect()
}

/// Where each node tells of itself.
fn metrics_addresses(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("a list").iter();
    nodes.map(|node| node["metrics_address"].as_str().expect("an address").to_owned()).collect()
}

fn figure(cluster: &Cluster, address: &str, name: &str) -> f64 {
    let page = cluster.get(address, "/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

/// Runs `kvhive` on the cluster and returns whether it did well, and what it said.
fn asked(cluster: &Cluster, words: &[&str]) -> (bool, String, String) {
    let output = Command::new(kvhive()).args(words).args(["--dir", cluster.dir()]).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn nodes_serve_on_while_a_majority_of_the_coordinators_is_gone() {
    let cluster = Cluster::start(&["--nodes", "2", "--replicas", "2"]);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    for name in 0..4 {
        assert_eq!(copies(&store(&cluster, &blocks, name, Ack::All)), [2; COUNT]);
    }
    let nodes = metrics_addresses(&cluster);
    let leader = cluster.status()["leader"].as_str().expect("somebody leads").to_owned();
    let other = ["coord-1", "coord-2", "coord-3"].into_iter().find(|name| *name != leader).expect("two more");
    for name in [&leader, other] {
        cluster.signal(name, "KILL");
    }
    // The lease is 2 s.
    let killed = Instant::now();
    let alone = || nodes.iter().all(|node| figure(&cluster, node, "kvhive_node_lease_seconds") == 0.0);
    let mut rounds = 0;
    while !(alone() && killed.elapsed() > Duration::from_secs(6)) {
        assert!(killed.elapsed() < kvhive_tests::PATIENCE, "the leases end");
        let fresh = cluster.client();
        for blocks in [&blocks, &cluster.blocks(&fresh, BLOCK as u32)] {
            assert_eq!((0..4).map(|name| fetched(&cluster, blocks, name)).collect::<Vec<_>>(), [COUNT; 4]);
        }
        rounds += 1;
    }
    assert!(rounds > 0);
    for node in &nodes {
        assert!(figure(&cluster, node, "kvhive_node_serving_lease_seconds") > 60.0);
        assert!(cluster.get(node, "/readyz").starts_with("degraded: no coordinator"));
    }
    // What is stored is one copy, said as such, and found.
    assert_eq!(copies(&store(&cluster, &blocks, 5, Ack::Primary)), [1; COUNT]);
    let few = StoreOutcome::TooFewCopies { copies: 1, wanted: 2 };
    assert_eq!(store(&cluster, &blocks, 6, Ack::All), [few; COUNT]);
    assert_eq!([5, 6].map(|name| fetched(&cluster, &blocks, name)), [COUNT; 2]);
    // Nothing can be changed, and that is said.
    let (is_well, _, said) = asked(&cluster, &["tenants", "create", "search"]);
    assert!(!is_well && said.contains("no leader among the coordinators"), "{said}");
    let refused = cluster.wait(client.create_tenant("search")).expect_err("nobody leads").to_string();
    assert!(refused.contains("no leader among the coordinators"), "{refused}");
    let (is_well, shown, said) = asked(&cluster, &["status", "--json"]);
    assert!(is_well && said.contains("nobody leads the coordinators"), "{said}");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&shown["leader"], shown["nodes"].as_array().map(Vec::len)), (&Value::Null, Some(2)));
    let (_, shown, _) = asked(&cluster, &["status"]);
    assert!(shown.contains("they tell it to who leads, and nobody does"), "{shown}");
    // Nodes are tried all the same, and no line is as wide as what is said.
    let (is_well, shown, _) = asked(&cluster, &["doctor"]);
    assert!(!is_well && shown.contains("cluster: state"), "{shown}");
    assert!(
        ["node-1", "node-2"].iter().all(|name| shown.contains(&format!("cluster: node {name}"))),
        "{shown}"
    );
    assert!(shown.lines().all(|line| line.chars().count() < 200), "{shown}");

    let _again: Vec<Respawned> = [&leader, other].map(|name| cluster.respawn(name)).into();
    cluster.until("leases", || {
        nodes.iter().all(|node| figure(&cluster, node, "kvhive_node_lease_seconds") > 0.0).then_some(())
    });
    assert_eq!((0..4).map(|name| fetched(&cluster, &blocks, name)).collect::<Vec<_>>(), [COUNT; 4]);
    assert_eq!(
        [5, 6].map(|name| fetched(&cluster, &blocks, name)),
        [COUNT; 2],
        "what came meanwhile is kept"
    );
    assert_eq!(copies(&store(&cluster, &blocks, 6, Ack::All)), [2; COUNT]);
    let cleared = cluster.json(&["tenants", "clear", "default"]).expect("everybody has confirmed it");
    assert_eq!(cleared["era"], 2);
    assert_eq!((0..7).map(|name| fetched(&cluster, &blocks, name)).sum::<usize>(), 0);
}

/// Two nodes with blocks of era 1.
fn filled(variables: &[(&str, &str)]) -> (Cluster, Client, NamespaceClient) {
    let cluster = Cluster::start_with(&["--nodes", "2", "--replicas", "2"], variables);
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    assert_eq!(copies(&store(&cluster, &blocks, 1, Ack::All)), [2; COUNT]);
    (cluster, client, blocks)
}

/// Asks for a clear without patience; returns the problem document, which says whom it waits for.
fn unacknowledged(cluster: &Cluster) -> Value {
    let (is_well, answer, said) = asked(cluster, &["tenants", "clear", "default", "--wait", "0s", "--json"]);
    assert!(!is_well && said.contains("made, but not acknowledged yet: node-"), "{said}");
    serde_json::from_str(&answer).expect("JSON")
}

#[test]
fn a_clear_names_a_node_that_may_be_serving_and_waits_for_it() {
    let (cluster, _client, blocks) = filled(&[]);
    cluster.signal("node-1", "STOP");
    let problem = unacknowledged(&cluster);
    assert_eq!(
        (&problem["code"], &problem["waits_for"][0]["member"]),
        (&"still_served".into(), &"node-1".into())
    );
    assert!(problem["waits_for"][0]["for_ms"].as_u64().is_some_and(|left| left > 60_000), "{problem}");
    // It is heard again: whoever waits gets the answer.
    let words = ["tenants", "clear", "default", "--json", "--dir", cluster.dir()].map(str::to_owned);
    let waiting = std::thread::spawn(move || run(&words.each_ref().map(String::as_str)));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!waiting.is_finished(), "node-1 has not confirmed it");
    cluster.signal("node-1", "CONT");
    let cleared = waiting.join().expect("it ends").expect("node-1 has confirmed it");
    let cleared: Value = serde_json::from_slice(&cleared.stdout).expect("JSON");
    assert_eq!(cleared["era"], 3);
    assert_eq!(fetched(&cluster, &blocks, 1), 0);

    // Somebody who knows that its process has ended says so.
    cluster.signal("node-2", "KILL");
    assert_eq!(unacknowledged(&cluster)["waits_for"][0]["member"], "node-2");
    cluster.until("node-2 to be off the list", || {
        asked(&cluster, &["drain", "node-2", "--forget"]).0.then_some(())
    });
    assert_eq!(cluster.json(&["tenants", "clear", "default"]).expect("it is acknowledged")["era"], 5);
}

#[test]
fn a_clear_is_acknowledged_when_a_killed_nodes_next_process_has_registered() {
    let (cluster, _client, blocks) = filled(&[]);
    cluster.signal("node-1", "KILL");
    assert_eq!(unacknowledged(&cluster)["waits_for"][0]["member"], "node-1");
    let _again = cluster.respawn("node-1");
    assert_eq!(cluster.json(&["tenants", "clear", "default"]).expect("it is acknowledged")["era"], 3);
    assert_eq!(fetched(&cluster, &blocks, 1), 0);
}

#[test]
fn a_paused_node_serves_nothing_when_it_wakes_after_its_serving_lease() {
    let (cluster, _client, blocks) = filled(&[("KVHIVE_CLUSTER__SERVING_LEASE", "4s")]);
    cluster.signal("node-1", "STOP");
    // Nothing is heard of it, and the answer comes.
    let cleared = cluster.json(&["tenants", "clear", "default"]).expect("its serving lease is over");
    assert_eq!(cleared["era"], 2);
    cluster.signal("node-1", "CONT");
    assert_eq!(fetched(&cluster, &blocks, 1), 0);
}
