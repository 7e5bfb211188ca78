//! Tenants' rules through the admin API: said, changed field by field, reset, refused by name; and what is reported of tenants.

use crate::group::{Group, bearer};
use crate::group::{TOKEN, eventually, fresh_request};
use crate::http::{Answer, ask};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, ControlRequest, DeviceLoad, Heartbeat};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::load::TenantLoad;
use kvhive_protocol::{Change, Epoch, Reason, RulesChange, TenantId};
use serde_json::{Value, json};

fn patch(group: &Group, at: usize, name: &str, body: &Value) -> Answer {
    let token = bearer(TOKEN);
    let headers = [("authorization", token.as_str()), ("content-type", "application/merge-patch+json")];
    let path = format!("/v1/tenants/{name}");
    ask(group.admin(at).address, "PATCH", &path, &headers, body.to_string().as_bytes())
}

const RULES: [&str; 7] = [
    "strategy",
    "device_quota_bytes",
    "host_quota_bytes",
    "disk_quota_bytes",
    "quantization_bits",
    "compression_ratio",
    "shares_with",
];

fn rules(tenant: &Value) -> Vec<Value> {
    RULES.map(|rule| tenant[rule].clone()).to_vec()
}

#[test]
fn rules_are_said_at_creation_and_changed_by_a_merge_patch_of_what_it_names() {
    let group = Group::of(1);
    let door = group.admin(0);
    let plain = door.get("/v1/tenants/default").json();
    assert_eq!(rules(&plain), vec![Value::Null; 7]);
    assert_eq!((&plain["tenant_isolation"], &plain["hit_rate"]), (&json!(true), &Value::Null));
    let body = json!({"name": "acme", "strategy": "adaptive", "device_quota_bytes": 1_u64 << 33,
        "host_quota_bytes": 7, "disk_quota_bytes": 1_u64 << 40, "compression_ratio": 0.5});
    let created = door.post("/v1/tenants", &body.to_string());
    assert_eq!(created.status, 201);
    let disk = json!(1_u64 << 40);
    let said =
        [json!("adaptive"), json!(1_u64 << 33), json!(7), disk.clone(), Value::Null, json!(0.5), Value::Null];
    assert_eq!(rules(&created.json()), said);
    let changed =
        patch(&group, 0, "acme", &json!({"strategy": null, "quantization_bits": 4, "host_quota_bytes": 8}));
    assert_eq!(changed.status, 200);
    let now = [Value::Null, json!(1_u64 << 33), json!(8), disk, json!(4), json!(0.5), Value::Null];
    assert_eq!(rules(&changed.json()), now);
    assert_eq!(rules(&patch(&group, 0, "acme", &json!({})).json()), now, "nothing is named, nothing changes");
    assert_eq!(door.get("/v1/tenants/acme").json(), door.get("/v1/tenants").json()["tenants"][1]);
}

#[test]
fn a_tenant_that_shares_is_shown_with_whom_and_cannot_be_ruled() {
    let group = Group::of(1);
    let door = group.admin(0);
    let guest = door.post("/v1/tenants", r#"{"name":"guest","shares_with":"default"}"#);
    let shown = guest.json();
    assert_eq!((guest.status, &shown["shares_with"]), (201, &json!("default")));
    assert_eq!(shown["tenant_isolation"], json!(false));
    let message = |answer: Answer| answer.json()["detail"].as_str().unwrap_or_default().to_owned();
    let ruled = patch(&group, 0, "guest", &json!({"quantization_bits": 8}));
    assert_eq!(ruled.refusal(), (409, "rejected".to_owned()));
    assert!(message(ruled).contains("set them on default"));
    let cleared = door.post("/v1/tenants/guest/clear", "");
    assert_eq!((cleared.status, &cleared.json()["era"]), (200, &json!(2)), "its own blocks from before");
    assert_eq!(door.get("/v1/tenants/default").json()["era"], json!(1), "and no others");
    assert_eq!(patch(&group, 0, "default", &json!({"shares_with": "guest"})).refusal().0, 409);
    let alone = patch(&group, 0, "guest", &json!({"shares_with": null, "quantization_bits": 8}));
    assert_eq!((alone.status, &alone.json()["tenant_isolation"]), (200, &json!(true)));
}

#[test]
fn a_weight_is_one_until_another_is_said_and_whose_blocks_are_anothers_weighs_with_that_one() {
    let group = Group::of(1);
    let door = group.admin(0);
    let weights = || {
        let all = door.get("/v1/tenants").json();
        all["tenants"].as_array().map(|all| all.iter().map(|one| one["weight"].clone()).collect::<Vec<_>>())
    };
    assert_eq!(door.post("/v1/tenants", r#"{"name":"guest","shares_with":"default"}"#).status, 201);
    assert_eq!(weights(), Some(vec![json!(1), json!(1)]));
    let weighed = patch(&group, 0, "default", &json!({"weight": 7, "quantization_bits": 8}));
    let shown = weighed.json();
    assert_eq!((weighed.status, &shown["weight"], &shown["quantization_bits"]), (200, &json!(7), &json!(8)));
    assert_eq!(weights(), Some(vec![json!(7), json!(7)]));
    assert_eq!(patch(&group, 0, "guest", &json!({"weight": 2})).refusal(), (409, "rejected".to_owned()));
    for wrong in [json!(0), json!(1001), json!(-1), json!(1.5), json!("2")] {
        let refused = patch(&group, 0, "default", &json!({ "weight": wrong })).refusal();
        assert_eq!(refused, (400, "bad_request".to_owned()), "{wrong}");
    }
    assert_eq!(patch(&group, 0, "default", &json!({"weight": null})).json()["weight"], json!(1));
}

#[test]
fn a_rule_that_makes_no_sense_is_refused_with_its_name_its_value_and_what_is_allowed() {
    let group = Group::of(1);
    for (body, says) in [
        (json!({"strategy": "belady"}), ["strategy", "belady", "s3-fifo"]),
        (json!({"quantization_bits": 7}), ["quantization_bits", "7", "4, 8 and 16"]),
        (json!({"quantization_bits": 300}), ["quantization_bits", "300", "u8"]),
        (json!({"compression_ratio": 0}), ["compression_ratio", "0", "0.001 to 1"]),
        (json!({"compression_ratio": 1.5}), ["compression_ratio", "1.5", "0.001 to 1"]),
        (json!({"device_quota_bytes": -1}), ["device_quota_bytes", "-1", "u64"]),
        (json!({"host_quota_bytes": u64::MAX}), ["host_quota_bytes", "18446744073709551615", "allowed is"]),
        (json!({"shares_with": "nobody"}), ["shares_with", "nobody", "a tenant that exists"]),
        (json!({"disk_quota_bytes": u64::MAX}), ["disk_quota_bytes", "18446744073709551615", "allowed is"]),
        (json!({"nvme_quota_bytes": 1}), ["nvme_quota_bytes", "unknown field", "disk_quota_bytes"]),
        (
            json!({"shares_with": "default", "quantization_bits": 8}),
            ["shares the blocks of another", "no other rules", "set them there, on default"],
        ),
        (json!({"name": "other"}), ["name", "unknown field", "strategy"]),
        (json!(7), ["7", "", ""]),
    ] {
        let answer = patch(&group, 0, "default", &body);
        assert_eq!(answer.refusal(), (400, "bad_request".to_owned()), "{body}");
        let text = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(says.iter().all(|part| text.contains(part)), "{body}: {text}");
        if let Some(fields) = body.as_object().filter(|fields| !fields.contains_key("name")) {
            let mut whole = fields.clone();
            whole.insert("name".to_owned(), json!("fresh"));
            let made = group.admin(0).post("/v1/tenants", &Value::Object(whole).to_string());
            assert_eq!(made.refusal(), (400, "bad_request".to_owned()), "{body}");
        }
    }
    assert_eq!(patch(&group, 0, "nobody", &json!({})).refusal(), (404, "not_found".to_owned()));
    assert_eq!(group.admin(0).get("/v1/tenants/nobody").refusal(), (404, "not_found".to_owned()));
    assert_eq!(rules(&group.admin(0).get("/v1/tenants/default").json()), vec![Value::Null; 7]);
    let names = group.admin(0).get("/v1/tenants").json()["tenants"].as_array().map(Vec::len);
    assert_eq!(names, Some(1), "nothing was made on the way");
}

#[test]
fn a_change_of_rules_that_no_map_takes_costs_no_entry_of_the_log() {
    let group = Group::of(1);
    let status = || match group.ask(0, Role::Client, &ControlRequest::Status) {
        ControlReply::Status(status) => (status.committed, status.epoch),
        other => panic!("{other:?}"),
    };
    assert_eq!(group.admin(0).post("/v1/tenants", r#"{"name":"guest","shares_with":"default"}"#).status, 201);
    group.elected();
    let before = status();
    let none = RulesChange::default();
    let with = |tenant| RulesChange { shares_with: Change::Set(TenantId(tenant)), ..none };
    for (change, says) in [
        (RulesChange { quantization_bits: Change::Set(7), ..none }, "quantization_bits is 7"),
        (RulesChange { disk_quota_bytes: Change::Set(u64::MAX), ..none }, "disk_quota_bytes is"),
        (RulesChange { quantization_bits: Change::Set(8), ..with(2) }, "no other rules"),
        (with(1), "the tenant itself"),
    ] {
        let command = Command::SetTenantRules { tenant: TenantId(1), change };
        let request = ControlRequest::Submit { request: fresh_request(), command, reason: Reason::default() };
        let reply = group.ask(0, Role::Client, &request);
        let ControlReply::Done(CommandReply::Rejected(error)) = reply else { panic!("{reply:?}") };
        assert!(error.to_string().contains(says), "{error}");
    }
    // By the map of now, through the admin API.
    assert_eq!(patch(&group, 0, "guest", &json!({"quantization_bits": 8})).refusal().0, 409);
    assert_eq!(patch(&group, 0, "default", &json!({"shares_with": "guest"})).refusal().0, 409);
    assert_eq!(status(), before);
}

#[test]
fn two_operators_change_different_rules_through_different_coordinators_and_both_hold() {
    let group = Group::of(3);
    let [one, other] = [group.leader(), group.follower()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for quota in 1..20 {
                assert_eq!(
                    patch(&group, one, "default", &json!({ "device_quota_bytes": quota })).status,
                    200
                );
            }
        });
        for quota in 101..120 {
            assert_eq!(patch(&group, other, "default", &json!({ "host_quota_bytes": quota })).status, 200);
        }
    });
    let shown = group.admin(one).get("/v1/tenants/default").json();
    assert_eq!((&shown["device_quota_bytes"], &shown["host_quota_bytes"]), (&json!(19), &json!(119)));
}

#[test]
fn a_secret_is_rotated_and_a_tenant_deleted_by_whom_they_concern_only() {
    let group = Group::of(1);
    let door = group.admin(0);
    for body in [r#"{"name":"acme"}"#, r#"{"name":"guest","shares_with":"acme"}"#] {
        assert_eq!(door.post("/v1/tenants", body).status, 201);
    }
    let secrets = || group.map(0).tenants.into_values().map(|tenant| tenant.secret).collect::<Vec<_>>();
    let before = secrets();
    let rotated = door.post("/v1/tenants/acme/rotate", "");
    assert_eq!((rotated.status, &rotated.json()["era"]), (200, &json!(2)));
    assert!(!rotated.json().to_string().contains("secret"), "it is never shown");
    let after = secrets();
    assert_ne!(after[1], before[1]);
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_eq!(door.post("/v1/tenants/nobody/rotate", "").refusal(), (404, "not_found".to_owned()));

    let delete = |name: &str| {
        let token = bearer(TOKEN);
        let path = format!("/v1/tenants/{name}");
        ask(door.address, "DELETE", &path, &[("authorization", token.as_str())], b"")
    };
    assert_eq!(delete("nobody").refusal(), (404, "not_found".to_owned()));
    for (name, says) in [("default", "clear it instead"), ("acme", "guest shares the blocks of acme")] {
        let refused = delete(name);
        assert_eq!(refused.refusal(), (409, "rejected".to_owned()));
        assert!(refused.json()["detail"].as_str().is_some_and(|text| text.contains(says)), "{name}");
    }
    assert_eq!([delete("guest").status, delete("acme").status], [204, 204]);
    assert_eq!(group.map(0).tenants.len(), 1);
    assert_eq!(door.get("/v1/tenants/acme").refusal(), (404, "not_found".to_owned()));
    let again = door.post("/v1/tenants", r#"{"name":"acme"}"#);
    assert_eq!((again.status, &again.json()["id"]), (201, &json!(4)), "another one of the same name");
}

#[test]
fn what_devices_report_of_a_tenant_is_summed_up() {
    let group = Group::of(1);
    let nodes = [group.register("a"), group.register("b")];
    for node in &nodes {
        let load = TenantLoad {
            blocks: [3, 2, 1],
            used_bytes: [300, 200, 100],
            matched_keys: 10,
            covered_keys: 4,
            fetched_blocks: 4,
            missed_blocks: 1,
            stored_blocks: 6,
            evicted_blocks: 1,
            refused_blocks: 2,
            stored_bytes: 300,
            raw_bytes: 600,
        };
        let devices = vec![DeviceLoad { tenants: vec![(TenantId(1), load)], ..DeviceLoad::default() }];
        let beat = Heartbeat { member: node.member, generation: node.generation, epoch: Epoch(3), devices };
        let reply = group.ask(0, Role::Node, &ControlRequest::Heartbeat(beat));
        assert!(matches!(reply, ControlReply::Beat { .. }), "{reply:?}");
    }
    let mut shown = Value::Null;
    eventually("both have reported", || {
        shown = group.admin(0).get("/v1/tenants/default").json();
        shown["blocks"] == json!(12)
    });
    for (field, value) in [
        ("used_bytes", json!(1200)),
        ("device_used_bytes", json!(600)),
        ("host_used_bytes", json!(400)),
        ("disk_used_bytes", json!(200)),
        ("matched_keys", json!(20)),
        ("covered_keys", json!(8)),
        ("hit_rate", json!(0.4)),
        ("fetched_blocks", json!(8)),
        ("missed_blocks", json!(2)),
        ("stored_blocks", json!(12)),
        ("evicted_blocks", json!(2)),
        ("refused_blocks", json!(4)),
        ("stored_bytes", json!(600)),
        ("raw_bytes", json!(1200)),
        ("stored_ratio", json!(0.5)),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
}

/// Asks for a change under a name of its own.
fn named(group: &Group, method: &str, path: &str, name: u8, body: &str) -> Answer {
    let (token, name) = (bearer(TOKEN), format!("{name:032x}"));
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let headers = [("authorization", token.as_str()), ("content-type", kind), ("idempotency-key", &name)];
    ask(group.admin(0).address, method, path, &headers, body.as_bytes())
}

#[test]
fn a_change_that_was_made_is_answered_as_such_although_the_tenant_is_deleted_meanwhile() {
    let group = Group::of(1);
    let door = group.admin(0);
    assert_eq!(door.post("/v1/tenants", &json!({"name": "acme"}).to_string()).status, 201);
    let path = "/v1/tenants/acme";
    let clear = |name| named(&group, "POST", &format!("{path}/clear"), name, "{}");
    let rotate = |name| named(&group, "POST", &format!("{path}/rotate"), name, "{}");
    let rule = |name| named(&group, "PATCH", path, name, r#"{"host_quota_bytes": 7}"#);
    assert_eq!(
        (rule(1).json()["host_quota_bytes"].clone(), clear(2).json()["era"].clone()),
        (json!(7), json!(2))
    );
    assert_eq!(rotate(3).json()["era"], 3);
    assert_eq!(named(&group, "DELETE", path, 4, "").status, 204);
    // Whoever did not hear the answer asks again, and hears that it was done.
    let again = [rule(1), clear(2), rotate(3)];
    assert_eq!(again.each_ref().map(|answer| answer.status), [200; 3]);
    assert_eq!(again.map(|answer| answer.json()["era"].clone())[1..], [json!(2), json!(3)]);
    // Of what was not asked before there is nobody any more.
    assert_eq!([rule(5), clear(6), rotate(7)].map(|answer| answer.status), [404; 3]);
    assert_eq!(door.post(&format!("{path}/clear"), "{}").status, 404);
}
