//! What nodes report of their tiers and their traffic, told by the admin API; and the page that shows it.

use crate::group::{Group, eventually};
use kvhive_protocol::Epoch;
use kvhive_protocol::Slot;
use kvhive_protocol::control::{ControlReply, ControlRequest, DeviceLoad, Heartbeat};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::load::{GuestLoad, MAX_HOT_SLOTS, MAX_HOTTEST, SlotHits, TierLoad, Traffic, Work};
use serde_json::{Value, json};

#[test]
fn tiers_and_traffic_of_a_device_are_told_and_add_up() {
    let group = Group::of(1);
    let node = group.register("a");
    let tier = TierLoad { blocks: 3, used_bytes: 300, capacity_bytes: 400, hits: 9, closed: false };
    let devices = vec![DeviceLoad {
        matched_keys: 8,
        covered_keys: 6,
        // It has no device tier, and its disk is empty, and failed.
        tiers: [
            TierLoad::default(),
            tier,
            TierLoad { capacity_bytes: 5000, closed: true, ..TierLoad::default() },
        ],
        traffic: Traffic { read_bytes: 70, written_bytes: 20, fetch_p50_us: 640, fetch_p99_us: 0 },
        guests: GuestLoad { blocks: 2, bytes: 50, given_blocks: 9, fetched_blocks: 3 },
        ..DeviceLoad::default()
    }];
    let beat = Heartbeat { member: node.member, generation: node.generation, epoch: Epoch(2), devices };
    let reply = group.ask(0, Role::Node, &ControlRequest::Heartbeat(beat));
    assert!(matches!(reply, ControlReply::Beat { .. }), "{reply:?}");
    let mut told = Value::Null;
    eventually("it has reported", || {
        told = group.admin(0).get("/v1/cluster").json()["devices"][0].clone();
        told["traffic"] != Value::Null
    });
    assert_eq!(
        told["tiers"],
        json!([
            { "tier": "host", "blocks": 3, "used_bytes": 300, "capacity_bytes": 400, "hits": 9, "closed": false },
            { "tier": "disk", "blocks": 0, "used_bytes": 0, "capacity_bytes": 5000, "hits": 0, "closed": true },
        ])
    );
    let traffic = &told["traffic"];
    assert_eq!((&traffic["read_bytes"], &traffic["matched_keys"]), (&json!(70), &json!(8)));
    assert_eq!((&traffic["fetch_p50_us"], &traffic["fetch_p99_us"]), (&json!(640), &Value::Null));
    let guests = json!({ "blocks": 2, "bytes": 50, "given_blocks": 9, "fetched_blocks": 3 });
    for path in ["/v1/cluster", "/v1/members"] {
        let told = group.admin(0).get(path).json();
        let nodes = if path == "/v1/cluster" { &told["nodes"] } else { &told["members"] };
        assert_eq!(nodes[0]["guests"], guests, "{path}");
    }
    assert_eq!(group.admin(0).get("/v1/members/a").json()["guests"], guests);
    let stats = group.admin(0).get("/v1/stats").json();
    assert_eq!((&stats["read_bytes"], &stats["written_bytes"]), (&json!(70), &json!(20)));
}

#[test]
fn the_hottest_slots_of_all_devices_are_told() {
    let group = Group::of(1);
    let node = group.register("a");
    let hot = (0..MAX_HOT_SLOTS as u16).map(|slot| (Slot(slot), u64::from(slot) * 10)).collect();
    let slot_hits = vec![SlotHits { slot: Slot(63), asked: 8, covered: 6 }];
    let work = Work { hot, ..Work::default() };
    let devices = vec![DeviceLoad { work, slot_hits, ..DeviceLoad::default() }];
    let beat = Heartbeat { member: node.member, generation: node.generation, epoch: Epoch(2), devices };
    let reply = group.ask(0, Role::Node, &ControlRequest::Heartbeat(beat));
    assert!(matches!(reply, ControlReply::Beat { .. }), "{reply:?}");
    let mut told = Vec::new();
    eventually("it has reported", || {
        let stats = group.admin(0).get("/v1/stats").json();
        told = stats["hot_slots"].as_array().cloned().unwrap_or_default();
        !told.is_empty()
    });
    assert_eq!(told.len(), MAX_HOTTEST);
    let first = json!({ "slot": 63, "device": "1/0", "replicas": 1, "read_rate": 630, "hit_rate": 0.75 });
    assert_eq!(told[0], first);
    assert_eq!((&told[1]["slot"], &told[1]["hit_rate"]), (&json!(62), &Value::Null));
}

#[test]
fn anybody_gets_the_dashboard_and_nobody_gets_data_with_it() {
    let group = Group::of(1);
    let page = group.admin(0).get_open("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a page says what it may do");
    assert!(policy.starts_with("default-src 'self'"), "{policy}");
    assert_eq!(group.admin(0).get_open("/dashboard/main.js").status, 200);
    assert_eq!(group.admin(0).get_open("/dashboard/none.js").status, 404);
    assert_eq!(group.admin(0).get_open("/v1/cluster").status, 401);
}
