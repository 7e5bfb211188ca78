//! What nodes report of their strategies, told by the admin API.

use crate::group::{Group, eventually};
use kvhive_protocol::control::{ControlReply, ControlRequest, DeviceLoad, Heartbeat};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::strategy::{ChoiceReport, Estimate, Reason, StrategyReport};
use kvhive_protocol::{Epoch, Strategy, TenantId};
use serde_json::{Value, json};

#[test]
fn what_a_device_has_chosen_is_told_with_its_reason() {
    let group = Group::of(1);
    let node = group.register("a");
    let report = StrategyReport {
        tenant: Some(TenantId(1)),
        frame_bytes: 4096,
        strategy: Strategy::Adaptive,
        choice: Some(ChoiceReport {
            in_charge: "lru".to_owned(),
            estimates: vec![Estimate { ranker: "lru".to_owned(), hit_rate_ppm: 250_000 }],
            evidence: 3000,
            sampled_one_in: 2,
            switches: 1,
            reason: Reason::IsBetter,
        }),
    };
    let devices = vec![DeviceLoad { strategies: vec![report], ..DeviceLoad::default() }];
    let beat = Heartbeat { member: node.member, generation: node.generation, epoch: Epoch(2), devices };
    let reply = group.ask(0, Role::Node, &ControlRequest::Heartbeat(beat));
    assert!(matches!(reply, ControlReply::Beat { .. }), "{reply:?}");
    let mut told = Value::Null;
    eventually("it has reported", || {
        told = group.admin(0).get("/v1/stats").json()["devices"][0]["strategies"].clone();
        told != json!([])
    });
    let expected = json!([{
        "tenant": "default",
        "frame_bytes": 4096,
        "strategy": "adaptive",
        "in_charge": "lru",
        "hit_rates": { "lru": 0.25 },
        "evidence": 3000,
        "switches": 1,
        "reason": "clearly better than what is learnt",
    }]);
    assert_eq!(told, expected);
    assert_eq!(group.admin(0).get("/v1/cluster").json()["devices"][0]["strategies"], expected);
}
