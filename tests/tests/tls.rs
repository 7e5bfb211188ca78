//! A cluster with TLS, from one command: everything works as without, and who is no member is told so.

use kvhive_client::{Client, ClientConfig, ClientError, NamespaceClient, StoreOptions, StoreOutcome};
use kvhive_config::ClusterConfig;
use kvhive_protocol::WireError;
use kvhive_protocol::data::Ack;
use kvhive_tests::{Cluster, run};
use std::path::Path;

/// Returns the value of a figure in Prometheus' text format; 0 where it is not there.
fn figure(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Stores blocks on all replicas, fetches them and compares.
async fn store_and_fetch(blocks: &NamespaceClient) {
    const COUNT: usize = 40;
    let hashes: Vec<[u8; 16]> = (0..COUNT as u128).map(|at| (1 << 64 | at).to_le_bytes()).collect();
    let prefix = blocks.prefix_of_engine_hashes(&hashes);
    let content: Vec<Vec<u8>> = (0..COUNT).map(|at| vec![at as u8; blocks.block_bytes() as usize]).collect();
    let sources: Vec<&[u8]> = content.iter().map(|block| &block[..]).collect();
    let options = StoreOptions { ack: Some(Ack::All), ..StoreOptions::default() };
    let stored = blocks.store(&prefix, 0..COUNT, &sources, options).await.expect("the arguments fit");
    let two = |outcome: &StoreOutcome| matches!(outcome, StoreOutcome::Acknowledged { copies: 2, .. });
    assert!(stored.outcomes.iter().all(two), "{:?}", stored.outcomes);
    let mut memory = vec![vec![0u8; blocks.block_bytes() as usize]; COUNT];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    blocks.fetch_into(&prefix, 0..COUNT, &mut targets).await.expect("the arguments fit");
    assert!(memory == content, "as it was stored");
}

fn config(cluster: &Cluster) -> ClusterConfig {
    let text = std::fs::read_to_string(Path::new(cluster.dir()).join("cluster.toml")).expect("it has a file");
    ClusterConfig::from_toml(&text, []).expect("it is right")
}

fn metrics_of_node_1(cluster: &Cluster) -> String {
    let config = config(cluster);
    config.nodes.iter().find(|node| node.id == "node-1").expect("it is listed").metrics_address()
}

#[test]
fn a_cluster_with_tls_serves_its_members_and_takes_new_certificates() {
    let cluster = Cluster::start(&["--tls", "--replicas", "2", "--device-memory", "4MiB"]);
    let admin = cluster.running()["admin_urls"][0].as_str().expect("a URL").to_owned();
    assert!(admin.starts_with("https://"), "{admin}");
    let status = cluster.status();
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(2));

    // Through coordinators, nodes and from node to node.
    let replayed = cluster.json(&["replay", "--requests", "50", "--block-size", "4KiB"]).expect("it serves");
    assert_eq!((replayed["errors"].as_u64(), replayed["wrong_bytes"].as_u64()), (Some(0), Some(0)));
    let client = cluster.client();
    let blocks = cluster.blocks(&client, 4096);
    cluster.wait(store_and_fetch(&blocks));

    // Neither the admin API nor the planes speak without TLS.
    let plain = admin.replace("https://", "http://");
    let told = run(&["status", "--admin", &plain, "--dir", cluster.dir()]).expect_err("it has TLS");
    assert!(told.to_string().contains("this cluster speaks TLS"), "{told}");
    let bare = ClientConfig { tls: None, ..cluster.client_config() };
    let told = cluster.wait(Client::connect(bare)).err().expect("it has TLS");
    assert!(matches!(told, ClientError::Refused(WireError::TlsRequired)), "{told}");
    // An authority that signs for somebody else is not taken for the cluster's.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let elsewhere = elsewhere.path().join("tls").display().to_string();
    run(&["tls", "init", "--dir", &elsewhere]).expect("it is new");
    let foreign = format!("{elsewhere}/authority.pem");
    let told = run(&["status", "--admin", &admin, "--ca", &foreign, "--dir", cluster.dir()]);
    let told = told.expect_err("it is signed by another").to_string();
    assert!(told.contains("certificate is refused"), "{told}");

    renew(&cluster, &metrics_of_node_1(&cluster));
    rotate(&cluster);
}

/// Gives the cluster another certificate of the same authority, and has one node told at once.
fn renew(cluster: &Cluster, node: &str) {
    let tls = |name: &str| cluster.tls_file(name);
    let dir = tls("").display().to_string();
    let before = figure(&cluster.get(node, "/metrics"), "kvhive_tls_certificate_expires_seconds");
    run(&["tls", "issue", "--dir", &dir, "--host", "localhost,127.0.0.1", "--days", "9"]).expect("it is new");
    for ending in ["key", "pem"] {
        let made = tls("localhost").with_extension(ending);
        std::fs::copy(made, tls("member").with_extension(ending)).expect("it is written");
    }
    cluster.signal("node-1", "HUP");
    cluster.until("the new certificate", || {
        let page = cluster.get(node, "/metrics");
        let expires = figure(&page, "kvhive_tls_certificate_expires_seconds");
        (figure(&page, "kvhive_tls_reloads_total") > 0.0 && expires < before).then_some(())
    });
    cluster.json(&["replay", "--requests", "5", "--block-size", "4KiB"]).expect("it serves on");
}

/// Gives the cluster another authority while it serves, and has each process take each step before the next.
fn rotate(cluster: &Cluster) {
    let config = config(cluster);
    let coordinators = config.coordinators.iter().map(|one| (one.id.clone(), one.admin.to_string()));
    let nodes = config.nodes.iter().map(|one| (one.id.clone(), one.metrics_address()));
    let processes: Vec<(String, String)> = coordinators.chain(nodes).collect();
    let reloads = |address: &str| figure(&cluster.get(address, "/metrics"), "kvhive_tls_reloads_total");
    let dir = cluster.tls_file("").display().to_string();
    let old = std::fs::read_to_string(cluster.tls_file("authority.pem")).expect("it is there");
    // Whoever is connected stays so.
    let client = cluster.client();
    let other = run(&["tls", "rotate", "--dir", &dir, "--step", "2"]).expect_err("it is not the next");
    assert!(other.to_string().contains("that is step 1"), "{other}");
    for (step, stage) in [(1u64, "trusted"), (2, "issued"), (3, "finished")] {
        let before: Vec<f64> = processes.iter().map(|(_, address)| reloads(address)).collect();
        let rotated = run(&["tls", "rotate", "--dir", &dir, "--step", &step.to_string(), "--json"]);
        let rotated = rotated.expect("it goes on");
        let rotated: serde_json::Value = serde_json::from_slice(&rotated.stdout).expect("it is JSON");
        assert_eq!((rotated["step"].as_u64(), rotated["stage"].as_str()), (Some(step), Some(stage)));
        // Some have the files of this step, and some those of the one before.
        for ((id, address), before) in processes.iter().zip(before) {
            cluster.wait(store_and_fetch(&cluster.blocks(&cluster.client(), 4096)));
            cluster.signal(id, "HUP");
            cluster.until("the files of this step", || (reloads(address) > before).then_some(()));
        }
        cluster.wait(store_and_fetch(&cluster.blocks(&client, 4096)));
    }
    let new = std::fs::read_to_string(cluster.tls_file("authority.pem")).expect("it is there");
    assert_ne!(new, old);
    let stolen = tempfile::tempdir().expect("a folder");
    let file = stolen.path().join("authority.pem");
    std::fs::write(&file, old).expect("there is room");
    let admin = cluster.running()["admin_urls"][0].as_str().expect("a URL").to_owned();
    let told =
        run(&["status", "--admin", &admin, "--ca", &file.display().to_string(), "--dir", cluster.dir()]);
    assert!(told.expect_err("it is signed by another").to_string().contains("certificate is refused"));
}
