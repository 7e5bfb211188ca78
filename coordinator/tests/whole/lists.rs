//! Devices, moves and the configuration, as the admin API lists them; long lists in pages.

use crate::group::{Group, OPERATOR, TOKEN, VIEWER};
use kvhive_protocol::Slot;
use kvhive_protocol::control::{ControlReply, DeviceLoad};
use kvhive_protocol::load::SlotGiven;
use serde_json::{Value, json};

/// Two nodes with leases that outlast the test; nobody reports, so slots wait.
fn two_nodes(coordinators: u64) -> Group {
    let group = Group::with(coordinators, |config| {
        (config.settings.lease_ms, config.settings.serving_lease_ms) = (60_000, 60_000);
    });
    group.register("node-1");
    group.register("node-2");
    group
}

fn field<'a>(list: &'a Value, field: &str) -> Vec<&'a Value> {
    list.as_array().expect("a list").iter().map(|one| &one[field]).collect()
}

#[test]
fn devices_are_listed_in_pages_and_one_is_found_by_its_nodes_number_or_name() {
    let group = two_nodes(1);
    let door = group.admin(0);
    let all = door.get("/v1/devices").json();
    assert_eq!(field(&all["devices"], "device"), [&json!("1/0"), &json!("2/0")]);
    assert_eq!((&all["next"], &all["devices"][0]["node"]), (&Value::Null, &json!("node-1")));
    let first = door.get("/v1/devices?limit=1").json();
    assert_eq!((field(&first["devices"], "device"), &first["next"]), (vec![&json!("1/0")], &json!("1/0")));
    let second = door.get("/v1/devices?limit=1&after=1/0").json();
    assert_eq!((field(&second["devices"], "device"), &second["next"]), (vec![&json!("2/0")], &Value::Null));
    for named in ["/v1/devices/2/0", "/v1/devices/node-2/0"] {
        assert_eq!(door.get(named).json(), all["devices"][1], "{named}");
    }
    assert_eq!(door.get("/v1/devices/x/0").refusal(), (404, "not_found".to_owned()));
    assert_eq!(door.get("/v1/devices/2/1").refusal(), (404, "not_found".to_owned()));
    for wrong in ["/v1/devices?after=x", "/v1/devices?limit=0", "/v1/devices/2/x", "/v1/devices?full=true"] {
        assert_eq!(door.get(wrong).refusal(), (400, "bad_request".to_owned()), "{wrong}");
    }
}

#[test]
fn moves_say_from_where_to_whom_and_why_and_a_follower_asks_the_leader() {
    let group = two_nodes(3);
    for at in [group.leader(), group.follower()] {
        let first = group.admin(at).get("/v1/moves?limit=2").json();
        // Every slot was on the one node alone, and the other is to be given a replica of each.
        assert_eq!(
            (&first["total"], &first["copying"], &first["next"]),
            (&json!(4096), &json!(0), &json!(1))
        );
        let one = &first["moves"][0];
        assert_eq!(
            [&one["slot"], &one["from"], &one["to"], &one["leaves"], &one["stage"], &one["why"]],
            [&json!(0), &json!("1/0"), &json!(["2/0"]), &json!([]), &json!("waiting"), &json!("repair")]
        );
        let last = group.admin(at).get("/v1/moves?limit=10&after=4090").json();
        assert_eq!((field(&last["moves"], "slot").len(), &last["next"]), (5, &Value::Null));
    }
    assert_eq!(group.admin(0).get("/v1/moves?after=70000").refusal(), (400, "bad_request".to_owned()));
}

#[test]
fn moves_say_what_has_gone_so_far_as_the_primary_tells_it() {
    let group = Group::with(3, |config| {
        (config.settings.lease_ms, config.settings.serving_lease_ms) = (60_000, 60_000);
    });
    let nodes = [group.register("node-1"), group.register("node-2")];
    let moving =
        |moved_blocks| vec![SlotGiven { slot: Slot(1), moved_blocks, moved_bytes: 100 * moved_blocks }];
    // Who does not give a slot away has nothing to say of it.
    for (node, blocks) in nodes.iter().zip([3, 40]) {
        let load = DeviceLoad { moving: moving(blocks), ..DeviceLoad::default() };
        assert!(matches!(group.report(node, load), ControlReply::Beat { .. }));
    }
    for at in [group.leader(), group.follower()] {
        let page = group.admin(at).get("/v1/moves?limit=3").json();
        assert_eq!(page["moved_bytes"], json!(300));
        assert_eq!(field(&page["moves"], "moved_blocks"), [&json!(0), &json!(3), &json!(0)]);
        assert_eq!(field(&page["moves"], "moved_bytes"), [&json!(0), &json!(300), &json!(0)]);
    }
}

#[test]
fn a_size_that_no_policy_may_have_is_no_conflict_but_wrong() {
    let group = Group::of(1);
    let door = group.admin(0);
    let token = crate::group::bearer(TOKEN);
    let headers = [("authorization", token.as_str()), ("content-type", "application/merge-patch+json")];
    let patch = |body: &str| {
        crate::http::ask(door.address, "PATCH", "/v1/scaling", &headers, body.as_bytes()).refusal()
    };
    for wrong in [
        r#"{"floor": 0}"#,
        r#"{"floor": 1025}"#,
        r#"{"ceiling": 0}"#,
        r#"{"floor": 4, "ceiling": 3}"#,
        r#"{"up_cooldown_s": 86401}"#,
        r#"{"down_cooldown_s": 86401}"#,
        r#"{"look_ahead_s": 86401}"#,
        r#"{"keep": 2}"#,
    ] {
        assert_eq!(patch(wrong), (400, "bad_request".to_owned()), "{wrong}");
    }
    for size in [0, 1025] {
        let refused = door.post("/v1/scaling", &format!(r#"{{"size": {size}}}"#)).refusal();
        assert_eq!(refused, (400, "bad_request".to_owned()), "{size}");
    }
    // By the policy as it is now, with its ceiling of 16, and not for ever.
    assert_eq!(patch(r#"{"floor": 17}"#).0, 409);
}

#[test]
fn who_leads_after_a_transfer_says_how_the_group_stands_whoever_was_asked() {
    let group = Group::of(3);
    for _ in 0..2 {
        let (asked, to) = (group.leader(), group.follower());
        let name = group.configs[to].peers[to].name.clone();
        let answer = group.admin(asked).post("/v1/raft/transfer", &json!({ "to": name }).to_string());
        let told = answer.json();
        assert_eq!((answer.status, &told["leader"]), (200, &json!(name)), "{}", answer.body);
        let heard = field(&told["coordinators"], "heard");
        assert!(heard.iter().filter(|heard| **heard == true).count() >= 2, "{}", answer.body);
        assert!(field(&told["coordinators"], "matched").iter().any(|one| one.is_u64()), "{}", answer.body);
    }
}

#[test]
fn slots_and_members_come_in_pages_or_alone() {
    let group = two_nodes(1);
    let door = group.admin(0);
    let all = door.get("/v1/slots?full=true").json();
    assert_eq!((field(&all["slots"], "slot").len(), &all["next"]), (4096, &Value::Null));
    let page = door.get("/v1/slots?full=true&limit=3&after=9").json();
    assert_eq!(
        (field(&page["slots"], "slot"), &page["next"]),
        (vec![&json!(10), &json!(11), &json!(12)], &json!(12))
    );
    assert_eq!(door.get("/v1/slots").json()["slots"], json!([]));
    assert_eq!(door.get("/v1/slots?full=true&limit=0").refusal().0, 400);
    let members = door.get("/v1/members").json();
    assert_eq!(door.get("/v1/members/node-2").json(), members["members"][1]);
    assert_eq!(door.get("/v1/members/node-3").refusal(), (404, "not_found".to_owned()));
    assert_eq!(door.get("/v1/engines?limit=1&after=x").json(), json!({"engines": [], "next": null}));
}

#[test]
fn the_configuration_names_secrets_and_never_shows_them() {
    let group = two_nodes(1);
    let answer = group.admin(0).get("/v1/config");
    for secret in [TOKEN, OPERATOR, VIEWER] {
        assert!(!answer.body.contains(secret), "{}", answer.body);
    }
    let config = answer.json();
    let setting = |key: &str| {
        let settings = config["settings"].as_array().expect("a list");
        settings
            .iter()
            .find(|one| one["key"] == key)
            .cloned()
            .unwrap_or_else(|| panic!("{key} is not listed"))
    };
    assert_eq!(config["coordinator"], "coordinator-1");
    assert_eq!(setting("cluster.token_file")["value"], "set, not shown");
    assert_eq!(setting("cluster.viewer_token_file")["value"], "set, not shown");
    assert_eq!(setting("cluster.lease")["value"], "1m");
    assert_eq!(setting("cluster.repair_after")["value"], "30s");
    assert_eq!(setting("coordinator.block_events")["value"], Value::Null);
    // What is changed while it runs is shown as it is then.
    let floor = setting("scaling.floor");
    assert_eq!(
        (&floor["value"], &floor["live"], &floor["of"]),
        (&json!("1"), &json!(true), &json!("cluster"))
    );
    assert_eq!(setting("cluster.replicas")["live"], json!(false));
    let headers = [
        ("authorization", crate::group::bearer(TOKEN)),
        ("content-type", "application/merge-patch+json".to_owned()),
    ];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let changed =
        crate::http::ask(group.admin(0).address, "PATCH", "/v1/scaling", &headers, br#"{"floor":2}"#);
    assert_eq!(changed.status, 200, "{}", changed.body);
    let again = group.admin(0).get("/v1/config").json();
    let floor =
        again["settings"].as_array().and_then(|all| all.iter().find(|one| one["key"] == "scaling.floor"));
    assert_eq!(floor.map(|floor| floor["value"].clone()), Some(json!("2")));
}

#[test]
fn a_member_is_cordoned_by_an_operator_and_the_journal_says_why() {
    let group = two_nodes(3);
    let door = group.admin(group.follower());
    let patch = |token: &str, name: &str, body: &str| {
        let token = crate::group::bearer(token);
        let key = "00112233445566778899aabbccddeeff";
        let headers = [
            ("authorization", token.as_str()),
            ("content-type", "application/merge-patch+json"),
            ("idempotency-key", key),
        ];
        crate::http::ask(door.address, "PATCH", &format!("/v1/members/{name}"), &headers, body.as_bytes())
    };
    assert_eq!(patch(VIEWER, "node-1", r#"{"cordoned": true}"#).refusal().0, 403);
    for wrong in [
        "{}",
        r#"{"drains": true, "cordoned": true}"#,
        r#"{"cordoned": "yes"}"#,
        r#"{"cordoned": true, "for_size": {"from": 2, "to": 1}}"#,
        r#"{"drains": false, "for_size": {"from": 2, "to": 1}}"#,
    ] {
        assert_eq!(patch(OPERATOR, "node-1", wrong).refusal(), (400, "bad_request".to_owned()), "{wrong}");
    }
    for _ in 0..2 {
        let answer = patch(OPERATOR, "node-1", r#"{"cordoned": true, "reason": "its disk is slow"}"#);
        assert_eq!((answer.status, &answer.json()["cordoned"]), (200, &json!(true)));
    }
    assert_eq!(patch(OPERATOR, "node-2", r#"{"cordoned": true}"#).refusal().0, 409);
    assert_eq!(door.get("/v1/members/node-1").json()["cordoned"], json!(true));
    crate::group::eventually("the follower has applied it", || {
        let events = door.get("/v1/events?kind=member-cordoned").json();
        let events = events["events"].as_array().cloned().unwrap_or_default();
        events.len() == 1 && events[0]["reason"] == "its disk is slow"
    });
}

#[test]
fn the_journal_has_that_a_member_is_emptied_as_the_size_changes() {
    let group = two_nodes(1);
    let door = group.admin(0);
    let token = crate::group::bearer(OPERATOR);
    let headers = [("authorization", token.as_str()), ("content-type", "application/merge-patch+json")];
    let patch = |body: &str| {
        let answer = crate::http::ask(door.address, "PATCH", "/v1/members/node-2", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.body);
        let events = door.get("/v1/events?kind=drain-begun").json();
        events["events"].as_array().and_then(|all| all.last()).expect("it has begun")["facts"].clone()
    };
    let facts = patch(r#"{"drains": true, "may_lose": true, "for_size": {"from": 2, "to": 1}}"#);
    assert_eq!((&facts["members_before"], &facts["members_wanted"]), (&json!(2), &json!(1)), "{facts}");
    patch(r#"{"drains": false}"#);
    let facts = patch(r#"{"drains": true, "may_lose": true, "reason": "from 2 to 1 members: by hand"}"#);
    assert_eq!(facts["members_wanted"], Value::Null, "words are no fact: {facts}");
}
