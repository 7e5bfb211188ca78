//! Any cluster survives being written and read; no text and no variable makes reading panic.

#![allow(clippy::unwrap_used)]

use kvhive_config::{Bytes, ClusterConfig, DeviceKind, LocalCluster, LocalShape};
use proptest::prelude::*;
use std::fmt::Write;

const SHIPPED: [&str; 4] = [
    include_str!("../../cluster-configs/laptop.toml"),
    include_str!("../../cluster-configs/three-hosts.toml"),
    include_str!("../../cluster-configs/eight-gpu-host.toml"),
    include_str!("../../cluster-configs/large.toml"),
];

#[derive(Clone, Debug)]
struct NodeText {
    labels: Vec<(String, String)>,
    io_threads: u16,
    inflight_mib: u64,
    classes: Vec<(u64, u32)>,
    shared: bool,
    devices: Vec<(u64, u64)>,
}

fn nodes() -> impl Strategy<Value = Vec<NodeText>> {
    let class = (64u64..=(1 << 20), 1u32..1000);
    let node = (
        proptest::collection::vec(("[a-zA-Z0-9._/-]{1,63}", r#"[a-zA-Z0-9 "\\äß=#]{0,30}"#), 0..5),
        1u16..=256,
        64u64..=(1 << 20),
        proptest::collection::vec(class, 1..=8),
        any::<bool>(),
        proptest::collection::vec(
            ((1u64 << 36)..(1 << 46), prop_oneof![Just(0), (1u64 << 36)..(1 << 46)]),
            1..=16,
        ),
    );
    let node = node.prop_map(|(labels, io_threads, inflight_mib, classes, shared, devices)| NodeText {
        labels,
        io_threads,
        inflight_mib,
        classes,
        shared,
        devices,
    });
    proptest::collection::vec(node, 1..6)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn write_node(text: &mut String, at: usize, node: &NodeText) {
    writeln!(text, "[[node]]\nid = \"node-{at}\"\nhost = \"10.0.{at}.1\"\nio_threads = {}", node.io_threads)
        .unwrap();
    writeln!(text, "max_inflight = \"{}MiB\"", node.inflight_mib).unwrap();
    let mut classes = node.classes.clone();
    classes.sort_unstable();
    classes.dedup_by_key(|(size, _)| *size);
    let sum: u32 = classes.iter().map(|(_, weight)| weight).sum();
    let class = |(size, weight): &(u64, u32)| {
        let size = format!("\"{}B\"", size * 64);
        let share = f64::from(*weight) / f64::from(sum);
        if node.shared && share >= 0.001 { format!("{{ size = {size}, share = {share:.6} }}") } else { size }
    };
    writeln!(text, "block_sizes = [{}]", classes.iter().map(class).collect::<Vec<_>>().join(", ")).unwrap();
    let mut labels = node.labels.clone();
    labels.sort();
    labels.dedup_by(|one, two| one.0 == two.0);
    let labels: Vec<String> =
        labels.iter().map(|(key, value)| format!("{} = {}", quoted(key), quoted(value))).collect();
    writeln!(text, "labels = {{ {} }}", labels.join(", ")).unwrap();
    for (memory, host_memory) in &node.devices {
        writeln!(text, "[[node.device]]\nmemory = \"{memory}B\"\nhost_memory = \"{host_memory}B\"").unwrap();
    }
}

proptest! {
    #[test]
    fn any_cluster_written_and_read_is_the_same_cluster(
        nodes in nodes(),
        ack in prop_oneof![Just("primary"), Just("quorum"), Just("all")],
        coordinators in prop_oneof![Just(1usize), Just(3), Just(5), Just(7)],
        lease_ms in 200u64..=60_000,
        election_ms in 100u64..=60_000,
        path in r#"[a-zA-Z0-9 /"\\äß#'.]{1,100}"#,
    ) {
        let mut text = format!(
            "[cluster]\nname = \"any\"\ninsecure = \"allowed\"\nack = \"{ack}\"\nreplicas = {}\ntoken_file = {}\nlease = \"{lease_ms}ms\"\n\
             heartbeat = \"{}ms\"\n[raft]\nelection_timeout = \"{election_ms}ms\"\nheartbeat = \"{}ms\"\n",
            nodes.len(), quoted(&path), (lease_ms / 4).max(10), (election_ms / 3).max(10),
        );
        for at in 0..coordinators {
            writeln!(text, "[[coordinator]]\nid = \"coord-{at}\"\nhost = \"host-{at}.example\"\ndata_dir = {}", quoted(&path)).unwrap();
        }
        for (at, node) in nodes.iter().enumerate() {
            write_node(&mut text, at, node);
        }
        // A share under a thousandth is not written, which leaves some classes without one: the only refusal there can be.
        let config = match ClusterConfig::from_toml(&text, []) {
            Ok(config) => config,
            Err(error) => {
                let only = "some classes have a share and some have none";
                prop_assert!(error.problems().iter().all(|problem| problem.to_string().contains(only)), "{error}");
                return Ok(());
            }
        };
        let again = ClusterConfig::from_toml(&config.to_toml().expect("it lists its nodes"), []);
        prop_assert_eq!(again.as_ref(), Ok(&config));
        for node in &config.nodes {
            for device in &node.devices {
                let used: u64 = node.frames(device.memory).iter().zip(&node.block_sizes).map(|(frames, class)| frames * class.size.0).sum();
                prop_assert!(used <= device.memory.0);
            }
        }
    }

    #[test]
    fn a_damaged_file_is_an_answer_and_never_a_panic(
        file in 0usize..4,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..6), 1..12),
        variable in "KVHIVE_(NODE|CLUSTER|RAFT|COORDINATOR|NODE_DEFAULTS|X)?(__[A-Z_]{0,8}){0,3}",
        value in any::<String>(),
    ) {
        let mut bytes = SHIPPED[file].as_bytes().to_vec();
        for (place, byte, edit) in edits {
            let at = place.index(bytes.len().max(1));
            let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            let line = place.index(lines.len());
            match edit {
                0 if at < bytes.len() => bytes[at] = byte,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at.min(bytes.len()), byte),
                3 => bytes.truncate(at),
                4 => { let mut lines = lines; lines.remove(line); bytes = lines.join(&b'\n'); }
                _ => { let mut lines = lines; lines.insert(usize::from(byte) % (line + 1), lines[line]); bytes = lines.join(&b'\n'); }
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(config) = ClusterConfig::from_toml(&text, [(variable, value)]) {
            // One whose nodes were lost is open.
            prop_assert_eq!(config.to_toml().is_none(), config.is_open());
            if let Some(text) = config.to_toml() {
                let again = ClusterConfig::from_toml(&text, []);
                prop_assert_eq!(again.as_ref(), Ok(&config));
            }
        }
    }

    #[test]
    fn any_text_is_an_answer(text in any::<String>()) {
        prop_assert!(ClusterConfig::from_toml(&text, []).is_err());
    }

    #[test]
    fn any_wish_for_a_local_cluster_is_an_answer(
        coordinators in 0u32..9, nodes in 0u32..20, devices in 0u32..20, memory in any::<u64>(), host in any::<u64>(),
        block in any::<u64>(), replicas in any::<u32>(), base_dir in any::<String>(), ports in proptest::collection::vec(any::<u16>(), 0..60),
        strategy in any::<Option<String>>(),
    ) {
        let shape = LocalShape {
            coordinators, nodes, devices, device_kind: DeviceKind::ALL[replicas as usize % 3], device_memory: Bytes(memory), host_memory: Bytes(host), disk: Bytes(0),
            block_size: Bytes(block), replicas, strategy, tls: false,
        };
        let wish = LocalCluster { shape, base_dir, ports };
        if let Ok(config) = wish.config() {
            prop_assert_eq!(config.nodes.len(), nodes as usize);
        }
    }
}

#[test]
fn a_deeply_nested_value_is_refused_without_exhausting_the_stack() {
    let text = format!("x = {}", "[".repeat(100_000));
    assert!(ClusterConfig::from_toml(&text, []).is_err());
    let text = format!("[{}]", vec!["a"; 100_000].join("."));
    assert!(ClusterConfig::from_toml(&text, []).is_err());
}

#[test]
fn the_largest_cluster_survives_being_written() {
    let many = LocalCluster {
        shape: LocalShape { nodes: 1024, devices: 16, ..LocalShape::default() },
        ports: (1..=2054).map(|at| 3000 + at).collect(),
        ..LocalCluster::default()
    };
    let config = many.config().unwrap();
    assert_eq!(
        ClusterConfig::from_toml(&config.to_toml().expect("it lists its nodes"), []).as_ref(),
        Ok(&config)
    );
}
