//! The cluster files that the project ships, and the reference that explains them.

#![allow(clippy::unwrap_used)]

use kvhive_config::{Ack, ClusterConfig, LocalCluster, Process, reference_markdown};
use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster-configs")
}

fn read(name: &str) -> ClusterConfig {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    ClusterConfig::from_toml(&text, []).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_shipped_file_is_a_cluster_and_survives_rendering() {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".toml") {
            let config = read(&name);
            assert_eq!(
                ClusterConfig::from_toml(&config.to_toml().expect("it lists its nodes"), []).as_ref(),
                Ok(&config),
                "{name}"
            );
            names.push(name);
        }
    }
    names.sort();
    assert_eq!(names, ["eight-gpu-host.toml", "laptop.toml", "large.toml", "three-hosts.toml"]);
}

#[test]
fn the_eight_devices_of_a_gpu_host_are_eight_gpus() {
    let config = read("eight-gpu-host.toml");
    let devices = &config.nodes[0].devices;
    let gpus: Vec<_> = devices.iter().map(|device| (device.kind.as_str(), device.gpu)).collect();
    assert_eq!(gpus, (0..8).map(|gpu| ("auto", gpu)).collect::<Vec<_>>());
}

#[test]
fn laptop_is_what_a_local_cluster_is_by_default() {
    assert_eq!(read("laptop.toml"), LocalCluster::default().config().unwrap());
}

#[test]
fn three_hosts_survive_the_loss_of_one() {
    let config = read("three-hosts.toml");
    assert_eq!(config.cluster.replicas, 2);
    assert_eq!(config.cluster.ack, Ack::All);
    assert_eq!(
        config.ids().collect::<Vec<_>>(),
        ["coord-a", "coord-b", "coord-c", "node-a", "node-b", "node-c"]
    );
    let Some(Process::Node(node)) = config.process("node-b") else { panic!("node-b is a node") };
    assert_eq!(
        (node.data_address().as_str(), node.data.to_string().as_str()),
        ("10.0.0.2:7810", "10.0.0.2:7810")
    );
    assert_eq!(config.process("node-z"), None);
    assert_eq!(
        config.process_lines(),
        "cluster\tthree-hosts\ttoken\t-\n\
         coordinator\tcoord-a\t10.0.0.1\t10.0.0.1:7800\t10\n\
         coordinator\tcoord-b\t10.0.0.2\t10.0.0.2:7800\t10\n\
         coordinator\tcoord-c\t10.0.0.3\t10.0.0.3:7800\t10\n\
         node\tnode-a\t10.0.0.1\t10.0.0.1:7811\t10\n\
         node\tnode-b\t10.0.0.2\t10.0.0.2:7811\t10\n\
         node\tnode-c\t10.0.0.3\t10.0.0.3:7811\t10\n"
    );
}

#[test]
fn a_node_that_keeps_a_snapshot_is_given_the_time_to_write_it() {
    let text = read("three-hosts.toml").to_toml().expect("it lists its nodes");
    let keeps = text.replacen("id = \"node-b\"", "id = \"node-b\"\npersist_dir = \"/cache\"", 1);
    let config = ClusterConfig::from_toml(&keeps, std::iter::empty()).expect("a right file");
    let seconds: Vec<_> = config.processes().map(|one| (one.id(), one.kill_after().as_secs())).collect();
    let others = ["coord-a", "coord-b", "coord-c", "node-a", "node-c"].map(|id| (id, 10));
    assert!(others.iter().all(|other| seconds.contains(other)), "{seconds:?}");
    assert!(seconds.contains(&("node-b", 602)), "{seconds:?}");
    assert!(config.process_lines().contains("node\tnode-b\t10.0.0.2\t10.0.0.2:7811\t602\n"));
}

#[test]
fn nodes_of_the_large_cluster_take_the_defaults_and_add_their_own() {
    let config = read("large.toml");
    let Some(Process::Node(node)) = config.process("node-r4-5") else { panic!("node-r4-5 is a node") };
    let labels: Vec<_> = node.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("generation", "older"), ("rack", "r4"), ("tier", "cache")]);
    assert_eq!((node.devices.len(), node.io_threads, node.max_connections), (2, 8, 8192));
    assert_eq!(config.nodes[0].devices.len(), 4);
    assert_eq!(config.nodes[0].frames(config.nodes[0].devices[0].memory), [32 << 10, 8 << 10]);
}

#[test]
fn the_readme_explains_the_keys_that_are_read() {
    const BEGIN: &str =
        "<!-- keys: begin (rendered from config/src/keys.rs; UPDATE=1 cargo test -p kvhive-config) -->\n";
    const END: &str = "<!-- keys: end -->";
    let path = folder().join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the README has the begin marker");
    let (keys, tail) = rest.split_once(END).expect("the README has the end marker");
    let wanted = format!("\n{}\n", reference_markdown());
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        fs::write(&path, format!("{head}{BEGIN}{wanted}{END}{tail}")).unwrap();
        return;
    }
    assert!(
        keys == wanted,
        "cluster-configs/README.md is behind config/src/keys.rs; run: UPDATE=1 cargo test -p kvhive-config"
    );
}
