//! Looks for tests.

use super::look::{Cluster, Coordinator, Device, Event, Look, Node, Slots, Subject, Tenant, Tier, Traffic};

pub(super) fn traffic(matched_keys: u64, covered_keys: u64, read_bytes: u64) -> Traffic {
    Traffic { matched_keys, covered_keys, read_bytes, ..Traffic::default() }
}

pub(super) fn look(at_ms: u64, devices: &[(&str, Traffic)]) -> Look {
    let node = |device: &str| format!("node-{}", device.split('/').next().unwrap_or_default());
    let nodes = devices.iter().map(|(device, _)| Node {
        name: node(device),
        state: "up".to_owned(),
        drains: false,
        cordoned: false,
    });
    let device = |(name, traffic): &(&str, Traffic)| Device {
        device: (*name).to_owned(),
        node: node(name),
        traffic: Some(*traffic),
        ..Device::default()
    };
    let cluster = Cluster {
        nodes: nodes.collect(),
        devices: devices.iter().map(device).collect(),
        ..Cluster::default()
    };
    Look { at_ms, cluster, ..Look::default() }
}

/// Two looks at a cluster in which all there is to show happens: a node is down, one drains, slots move.
pub(super) fn busy() -> (Look, Look) {
    let coordinator = |name: &str, role: &str, applied| Coordinator {
        name: name.to_owned(),
        role: role.to_owned(),
        committed: applied,
        applied,
    };
    let at = |matched, covered, bytes, blocks| Traffic {
        fetched_blocks: blocks,
        stored_blocks: blocks / 4,
        written_bytes: bytes / 4,
        fetch_p50_us: Some(640),
        fetch_p99_us: Some(12_300),
        ..traffic(matched, covered, bytes)
    };
    let tier = |name: &str, used: u64, of: u64| Tier {
        tier: name.to_owned(),
        blocks: used / 65_536,
        used_bytes: used << 20,
        capacity_bytes: of << 20,
        closed: false,
    };
    let before = look(1_000_000, &[("1/0", at(0, 0, 0, 0)), ("2/0", at(0, 0, 0, 0))]);
    let mut now =
        look(1_002_000, &[("1/0", at(4000, 3800, 40 << 20, 600)), ("2/0", at(1000, 200, 2 << 20, 30))]);
    let cluster = &mut now.cluster;
    cluster.name = Some("local".to_owned());
    cluster.leader = Some("coord-1".to_owned());
    (cluster.term, cluster.epoch) = (6, 25);
    cluster.slots = Slots { total: 4096, unavailable: 0, moving: 145 };
    cluster.coordinators = vec![
        coordinator("coord-1", "leader", 35),
        coordinator("coord-2", "follower", 33),
        coordinator("coord-3", "unreachable", 0),
    ];
    cluster.nodes[1].drains = true;
    cluster.nodes.push(Node {
        name: "node-3".to_owned(),
        state: "down".to_owned(),
        drains: false,
        cordoned: false,
    });
    for (device, used) in cluster.devices.iter_mut().zip([61, 12]) {
        device.tiers = vec![tier("device", used, 64), tier("host", used / 2, 64), tier("disk", 0, 120)];
        (device.primary_slots, device.slots, device.filling_slots) =
            (2048, 3000, u64::from(used == 12) * 145);
        device.tiers[2].closed = used == 12;
    }
    now.tenants = vec![Tenant {
        name: "default".to_owned(),
        blocks: 8781,
        used_bytes: 549 << 20,
        hit_rate: Some(0.974),
        evicted_blocks: 17,
        stored_ratio: Some(0.535),
    }];
    now.events = vec![Event {
        sequence: 9,
        at_ms: 1_001_500,
        kind: "member-down".to_owned(),
        subject: Subject { member: Some("node-3".to_owned()), ..Subject::default() },
        reason: "silent for 2 s, its lease has run out".to_owned(),
    }];
    (before, now)
}
