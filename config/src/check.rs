//! The rules between keys: what is right by itself and wrong beside another. Each passes over keys that are refused
//! already.

use crate::config::ClusterParts;
use crate::keys::SHRINKING_STRATEGIES;
use crate::ledger::Ledger;
use crate::node::NodeConfig;
use crate::units::{Bytes, format_time};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

pub(crate) fn all(parts: &ClusterParts, ledger: &mut Ledger) {
    times(parts, ledger);
    replicas(parts, ledger);
    ids(parts, ledger);
    peers(parts, ledger);
    data_dirs(parts, ledger);
    let listeners = listeners(parts);
    hosts(parts, ledger);
    reachable(&listeners, ledger);
    own_listeners(&listeners, ledger);
    encrypted(parts, &listeners, ledger);
    block_events(parts, ledger);
    let nodes = if parts.nodes.is_empty() { parts.template.as_slice() } else { &parts.nodes };
    for (at, node) in nodes.iter().enumerate() {
        memory(at, node, ledger);
        snapshot(at, node, ledger);
        redis(at, node, ledger);
        folders(at, node, ledger);
        disk_key(at, node, ledger);
    }
}

/// Says whether `host` means the own machine to everyone.
pub(crate) fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn times(parts: &ClusterParts, ledger: &mut Ledger) {
    let cluster = &parts.cluster;
    if good(ledger, &["cluster.heartbeat", "cluster.lease"]) && cluster.heartbeat * 3 >= cluster.lease {
        let lease = format_time(cluster.lease);
        ledger.conflict(
            "cluster.heartbeat",
            format!("allowed is less than a third of cluster.lease, which is \"{lease}\""),
        );
    }
    if good(ledger, &["cluster.serving_lease", "cluster.lease"]) && cluster.serving_lease < cluster.lease {
        let lease = format_time(cluster.lease);
        ledger.conflict(
            "cluster.serving_lease",
            format!("allowed is at least cluster.lease, which is \"{lease}\""),
        );
    }
    let raft = &parts.raft;
    if good(ledger, &["raft.heartbeat", "raft.election_timeout"])
        && raft.heartbeat * 3 > raft.election_timeout
    {
        let timeout = format_time(raft.election_timeout);
        ledger.conflict(
            "raft.heartbeat",
            format!("allowed is at most a third of raft.election_timeout, which is \"{timeout}\""),
        );
    }
}

fn replicas(parts: &ClusterParts, ledger: &mut Ledger) {
    let nodes = parts.nodes.len();
    // Those that join an open file are not counted in it.
    if parts.template.is_some() {
        return;
    }
    if good(ledger, &["cluster.replicas", "node"]) && usize::from(parts.cluster.replicas) > nodes {
        let plural = if nodes == 1 { "" } else { "s" };
        ledger.conflict(
            "cluster.replicas",
            format!("the file has {nodes} node{plural}; allowed is at most one copy a node"),
        );
    }
}

fn ids(parts: &ClusterParts, ledger: &mut Ledger) {
    let mut first: BTreeMap<&str, String> = BTreeMap::new();
    let coordinators =
        parts.coordinators.iter().enumerate().map(|(at, one)| (format!("coordinator[{at}].id"), &one.id));
    let nodes = parts.nodes.iter().enumerate().map(|(at, one)| (format!("node[{at}].id"), &one.id));
    for (key, id) in coordinators.chain(nodes) {
        if !ledger.is_good(&key) {
            continue;
        }
        match first.get(id.as_str()) {
            Some(other) => {
                ledger.conflict(&key, format!("{other} is the same; each process needs an id of its own"))
            }
            None => drop(first.insert(id, key)),
        }
    }
}

fn peers(parts: &ClusterParts, ledger: &mut Ledger) {
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    for (at, coordinator) in parts.coordinators.iter().enumerate() {
        let key = format!("coordinator[{at}].peer");
        if !ledger.is_good(&key) {
            continue;
        }
        match first.get(&coordinator.peer) {
            Some(other) => ledger
                .conflict(&key, format!("{other} is the same; each coordinator needs a number of its own")),
            None => drop(first.insert(coordinator.peer, key)),
        }
    }
}

/// What a coordinator repeats is what it publishes.
fn block_events(parts: &ClusterParts, ledger: &mut Ledger) {
    for (at, one) in parts.coordinators.iter().enumerate() {
        let given = |name: &str| format!("coordinator[{at}].{name}");
        if one.block_events.is_none()
            && one.block_events_replay.is_some()
            && good(ledger, &[&given("block_events_replay")])
        {
            let reason = "nothing is published that it could repeat; give block_events too".to_owned();
            ledger.conflict(&given("block_events_replay"), reason);
        }
    }
}

fn data_dirs(parts: &ClusterParts, ledger: &mut Ledger) {
    let mut first: BTreeMap<(String, &str), String> = BTreeMap::new();
    for (at, coordinator) in parts.coordinators.iter().enumerate() {
        let key = format!("coordinator[{at}].data_dir");
        if !good(ledger, &[&key, &format!("coordinator[{at}].host")]) {
            continue;
        }
        let place = (machine(&coordinator.host), coordinator.data_dir.as_str());
        match first.get(&place) {
            Some(other) => {
                ledger.conflict(
                    &key,
                    format!(
                        "{other} is the same on the same host; each coordinator needs a folder of its own"
                    ),
                );
            }
            None => drop(first.insert(place, key)),
        }
    }
}

/// A listener: its key, its process's place and host, and whether other hosts must reach it.
struct Listener<'a> {
    key: String,
    process: String,
    host: &'a str,
    address: SocketAddr,
    from_afar: bool,
}

fn listeners(parts: &ClusterParts) -> Vec<Listener<'_>> {
    let mut listeners = Vec::new();
    let mut add = |process: String, host, name, address, from_afar| {
        listeners.push(Listener { key: format!("{process}.{name}"), process, host, address, from_afar });
    };
    for (at, one) in parts.coordinators.iter().enumerate() {
        add(format!("coordinator[{at}]"), &one.host, "admin", one.admin, true);
        add(format!("coordinator[{at}]"), &one.host, "raft", one.raft, true);
        // Readers may be on the same host.
        for (name, address) in
            [("block_events", one.block_events), ("block_events_replay", one.block_events_replay)]
        {
            if let Some(address) = address {
                add(format!("coordinator[{at}]"), &one.host, name, address, false);
            }
        }
    }
    for (at, one) in parts.nodes.iter().enumerate() {
        add(format!("node[{at}]"), &one.host, "data", one.data, true);
        add(format!("node[{at}]"), &one.host, "metrics", one.metrics, false);
        if let Some(address) = one.redis.listen {
            add(format!("node[{at}]"), &one.host, "redis_listen", address, false);
        }
    }
    listeners
}

fn own_listeners(listeners: &[Listener<'_>], ledger: &mut Ledger) {
    let mut taken: BTreeMap<(String, u16), Vec<&Listener<'_>>> = BTreeMap::new();
    for listener in listeners {
        if !good(ledger, &[&listener.key, &format!("{}.host", listener.process)]) {
            continue;
        }
        let there = taken.entry((machine(listener.host), listener.address.port())).or_default();
        let overlaps = |other: &&&Listener<'_>| {
            let (one, two) = (listener.address.ip(), other.address.ip());
            one == two || one.is_unspecified() || two.is_unspecified()
        };
        if let Some(other) = there.iter().find(overlaps) {
            let reason = format!(
                "{} listens on {} of the same host; each listener needs a port of its own",
                other.key, other.address
            );
            ledger.conflict(&listener.key, reason);
        }
        there.push(listener);
    }
}

/// A loopback host means another machine to each reader, so it goes only with others like it.
fn hosts(parts: &ClusterParts, ledger: &mut Ledger) {
    let coordinators =
        parts.coordinators.iter().enumerate().map(|(at, one)| (format!("coordinator[{at}].host"), &one.host));
    let nodes = parts.nodes.iter().enumerate().map(|(at, one)| (format!("node[{at}].host"), &one.host));
    let good: Vec<(String, &String)> =
        coordinators.chain(nodes).filter(|(key, _)| ledger.is_good(key)).collect();
    let Some((far, _)) = good.iter().find(|(_, host)| !is_loopback(host)) else { return };
    for (key, _) in good.iter().filter(|(_, host)| is_loopback(host)) {
        ledger.conflict(key, format!("{far} is another machine, which cannot reach this one by it; give an address that all can use"));
    }
}

fn reachable(listeners: &[Listener<'_>], ledger: &mut Ledger) {
    for listener in listeners {
        let host = format!("{}.host", listener.process);
        if !listener.from_afar || !good(ledger, &[&listener.key, &host]) {
            continue;
        }
        if listener.address.ip().is_loopback() && !is_loopback(listener.host) {
            let reason = format!(
                "others reach it by {host}, which is \"{}\"; listen there or on 0.0.0.0",
                listener.host
            );
            ledger.conflict(&listener.key, reason);
        }
    }
}

/// What other machines reach is encrypted, unless the file says that it need not be.
fn encrypted(parts: &ClusterParts, listeners: &[Listener<'_>], ledger: &mut Ledger) {
    if parts.tls.is_some() || parts.cluster.may_be_insecure || !ledger.is_good("cluster.insecure") {
        return;
    }
    let is_open = |one: &&Listener<'_>| !is_loopback(one.host) || !one.address.ip().is_loopback();
    let Some(one) = listeners.iter().filter(|one| ledger.is_good(&one.key)).find(is_open) else { return };
    let reason = format!(
        "{} listens on {}, where other machines reach it, and without [tls] tokens and blocks travel in the clear; \
         give [tls] (`kvhive tls init` makes certificates), or \"allowed\" where everyone on that network may read them",
        one.key, one.address
    );
    ledger.conflict("cluster.insecure", reason);
}

fn snapshot(at: usize, node: &NodeConfig, ledger: &mut Ledger) {
    let every = format!("node[{at}].persist_every");
    if node.persist_dir.is_none() && node.persist_every.is_some() && ledger.is_good(&every) {
        let key = ledger.source(&every);
        ledger.conflict(&key, "no snapshot is kept; allowed is with a \"persist_dir\"".to_owned());
    }
}

/// A key without what it is for would be thought to protect something.
fn disk_key(at: usize, node: &NodeConfig, ledger: &mut Ledger) {
    let file = format!("node[{at}].disk_key_file");
    if node.disk_key_file.is_none() || !ledger.is_good(&file) {
        return;
    }
    let key = ledger.source(&file);
    if ["disk_dir", "persist_dir"].iter().all(|folder| !ledger.has(&format!("node[{at}].{folder}"))) {
        let reason = "nothing is kept on disk; allowed is with a \"disk_dir\" or a \"persist_dir\"";
        ledger.conflict(&key, reason.to_owned());
    } else if !node.disk_encryption {
        ledger.conflict(&key, "nothing is encrypted; allowed is with disk_encryption = \"on\"".to_owned());
    }
}

/// What is under way has at least one value.
fn redis(at: usize, node: &NodeConfig, ledger: &mut Ledger) {
    let [inflight, value] =
        ["redis_max_inflight", "redis_max_value"].map(|name| format!("node[{at}].{name}"));
    if good(ledger, &[&inflight, &value]) && node.redis.max_inflight < node.redis.max_value {
        let (key, other) = (ledger.source(&inflight), ledger.source(&value));
        let reason = format!("{other} is \"{}\"; allowed is at least one such value", node.redis.max_value);
        ledger.conflict(&key, reason);
    }
}

/// Both folders have one of the node's name in them: these must not be the same, nor one in the other.
fn folders(at: usize, node: &NodeConfig, ledger: &mut Ledger) {
    let (disk, persist) = (format!("node[{at}].disk_dir"), format!("node[{at}].persist_dir"));
    let (Some(disk_dir), Some(persist_dir)) = (&node.disk_dir, &node.persist_dir) else { return };
    if !good(ledger, &[&disk, &persist, &format!("node[{at}].id")]) {
        return;
    }
    let (of_disk, of_snapshot) = (own_folder(disk_dir, &node.id), own_folder(persist_dir, &node.id));
    if of_disk.starts_with(&of_snapshot) || of_snapshot.starts_with(&of_disk) {
        let (key, other) = (ledger.source(&persist), ledger.source(&disk));
        ledger.conflict(
            &key,
            format!("{other} = \"{disk_dir}\" gives the node's disk tier the same folder, or one within the other; allowed is another"),
        );
    }
}

/// Returns the folder of the node's name in `folder`, without what means nothing in a path.
fn own_folder(folder: &str, id: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in Path::new(folder).join(id).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(path.components().next_back(), Some(Component::Normal(_))) => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

fn memory(at: usize, node: &NodeConfig, ledger: &mut Ledger) {
    let classes = format!("node[{at}].block_sizes");
    if !ledger.is_good(&classes) {
        return;
    }
    let sizes = ledger.source(&classes);
    let largest = node.block_sizes.last().map_or(Bytes(0), |class| class.size);
    let inflight = format!("node[{at}].max_inflight");
    if ledger.is_good(&inflight) && node.max_inflight < largest {
        let key = ledger.source(&inflight);
        ledger.conflict(
            &key,
            format!("a block of {sizes} has \"{largest}\"; allowed is at least one such block"),
        );
    }
    let strategy = format!("node[{at}].strategy");
    if SHRINKING_STRATEGIES.contains(&node.tuning.strategy)
        && node.block_sizes.len() < 2
        && ledger.is_good(&strategy)
    {
        let key = ledger.source(&strategy);
        ledger.conflict(
            &key,
            format!("it shrinks blocks into frames of a smaller size, and {sizes} has one size only; allowed is with two or more"),
        );
    }
    let has_folder = ledger.has(&format!("node[{at}].disk_dir"));
    for (index, device) in node.devices.iter().enumerate() {
        let tiers = [("memory", device.memory), ("host_memory", device.host_memory), ("disk", device.disk)];
        for (name, memory) in tiers {
            // Devices that come from the defaults are told there, once.
            let own = format!("node[{at}].device[{index}].{name}");
            let shared = format!("node_defaults.device[{index}].{name}");
            let key = if ledger.has(&own) { own } else { shared };
            if !ledger.is_good(&key) || (name != "memory" && memory == Bytes(0)) {
                continue;
            }
            if name == "disk" && !has_folder {
                ledger.conflict(&key, "its files have no folder; allowed is with a \"disk_dir\"".to_owned());
            }
            let places = if name == "disk" { node.records(memory) } else { node.frames(memory) };
            let short = places.iter().position(|frames| *frames == 0);
            if let Some(short) = short.map(|class| node.block_sizes[class].size) {
                ledger.conflict(
                    &key,
                    format!("no block of \"{short}\" ({sizes}) fits its part; each size needs room for one"),
                );
            }
        }
    }
}

fn good(ledger: &Ledger, keys: &[&str]) -> bool {
    keys.iter().all(|key| ledger.is_good(key))
}

fn machine(host: &str) -> String {
    if is_loopback(host) { "localhost".to_owned() } else { host.to_ascii_lowercase() }
}
