//! The admin API from outside: who gets in, what is refused and how, and that any coordinator serves.

use crate::group::{Group, TOKEN, bearer, eventually};
use crate::http::{announce, ask, connect};
use serde_json::json;
use std::io::Write;

const GUARDED: [&str; 10] = [
    "/metrics",
    "/v1/cluster",
    "/v1/members",
    "/v1/devices",
    "/v1/slots",
    "/v1/moves",
    "/v1/config",
    "/v1/tenants",
    "/v1/stats",
    "/openapi.json",
];

#[test]
fn whoever_does_not_show_the_token_learns_nothing() {
    let group = Group::of(1);
    let address = group.admin(0).address;
    let almost = &TOKEN[..TOKEN.len() - 1];
    let wrong = [
        vec![],
        vec![("authorization", String::new())],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer ".to_owned())],
        vec![("authorization", bearer(almost))],
        vec![("authorization", bearer(&format!("{TOKEN} ")) + "x")],
        vec![("authorization", TOKEN.to_owned())],
        vec![("authorization", format!("Basic {TOKEN}"))],
        vec![("authorization", bearer(&"x".repeat(4096)))],
        vec![("authorization", bearer("\u{e9}"))],
        // Only the first of two counts, and neither order may help.
        vec![("authorization", bearer("wrong")), ("authorization", bearer(TOKEN))],
    ];
    for headers in &wrong {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for path in GUARDED {
            let answer = ask(address, "GET", path, &headers, b"");
            assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{path} {headers:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path} {headers:?}");
        }
        for path in ["/v1/tenants", "/v1/tenants/default/clear"] {
            let answer = ask(address, "POST", path, &headers, br#"{"name":"sneaked-in"}"#);
            assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{path} {headers:?}");
        }
    }
    let tenants = group.admin(0).get("/v1/tenants").json();
    let names: Vec<&serde_json::Value> =
        tenants["tenants"].as_array().expect("a list").iter().map(|tenant| &tenant["name"]).collect();
    assert_eq!(names, ["default"]);
}

#[test]
fn health_is_open_and_the_token_opens_the_rest() {
    let group = Group::of(1);
    let door = group.admin(0);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(door.get_open(path).status, 200, "{path}");
    }
    for path in GUARDED {
        assert_eq!(door.get(path).status, 200, "{path}");
    }
    let document: serde_json::Value =
        serde_json::from_str(&door.get("/openapi.json").body).expect("it is JSON");
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    assert_eq!(document["security"], json!([{"token": []}]));
    assert_eq!(document["paths"]["/healthz"]["get"]["security"], json!([{}]));
    // RFC 9110, 11.1: the scheme's case does not matter.
    let lower =
        ask(door.address, "GET", "/v1/tenants", &[("authorization", &format!("bearer {TOKEN}"))], b"");
    assert_eq!(lower.status, 200);
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    let group = Group::of(1);
    let address = group.admin(0).address;
    let token = bearer(TOKEN);
    let base = [("authorization", token.as_str()), ("content-type", "application/json")];
    let with = |name, value| [base[0], base[1], (name, value)];
    // Not one byte of the announced gigabyte follows: the answer must not wait for any.
    let announced = announce(address, "POST", "/v1/tenants", &with("content-length", "1073741824"), b"");
    assert_eq!(announced.refusal(), (413, "too_large".to_owned()));
    // Nobody can tell how long a body in pieces gets, until it is too long.
    let mut pieces = Vec::new();
    for _ in 0..80 {
        pieces.extend_from_slice(b"400\r\n");
        pieces.extend_from_slice(&[b' '; 1024]);
        pieces.extend_from_slice(b"\r\n");
    }
    let endless = announce(address, "POST", "/v1/tenants", &with("transfer-encoding", "chunked"), &pieces);
    assert_eq!(endless.refusal(), (413, "too_large".to_owned()));
    let most = format!("{{\"name\":\"roomy\"{}}}", " ".repeat(64 * 1024 - 16));
    assert_eq!(most.len(), 64 * 1024);
    assert_eq!(group.admin(0).post("/v1/tenants", &most).status, 201);
    // A route without a body does not read one either.
    let clear =
        announce(address, "POST", "/v1/tenants/roomy/clear", &with("content-length", "1073741824"), b"");
    assert_eq!(clear.refusal(), (413, "too_large".to_owned()));
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let group = Group::of(1);
    let door = group.admin(0);
    for body in ["", "{", "[]", "null", "{}", r#"{"name":7}"#, r#"{"name":"a","secret":"b"}"#, "\u{0}"] {
        assert_eq!(door.post("/v1/tenants", body).refusal(), (400, "bad_request".to_owned()), "{body:?}");
    }
    let deep = "[".repeat(60_000);
    assert_eq!(door.post("/v1/tenants", &deep).refusal(), (400, "bad_request".to_owned()));
    let token = bearer(TOKEN);
    let form = [("authorization", token.as_str()), ("content-type", "text/plain")];
    let plain = ask(door.address, "POST", "/v1/tenants", &form, br#"{"name":"a"}"#);
    assert_eq!(plain.refusal(), (415, "unsupported_media_type".to_owned()));
    for name in ["", "Upper", "a/b", "-", &"x".repeat(64)] {
        let answer = door.post("/v1/tenants", &json!({ "name": name }).to_string());
        assert_eq!(answer.refusal().0, 400, "{name:?}: {answer:?}");
    }
    for path in ["/v1/slots?slot=4096", "/v1/slots?slot=-1", "/v1/slots?slots=1", "/v1/tenants?consistency=x"]
    {
        assert_eq!(door.get(path).refusal(), (400, "bad_request".to_owned()), "{path}");
    }
    assert_eq!(door.post("/v1/tenants/nobody/clear", "").refusal(), (404, "not_found".to_owned()));
    assert_eq!(door.post("/v1/tenants/%ff/clear", "").refusal(), (400, "bad_request".to_owned()));
    assert_eq!(door.get("/v1/nothing").refusal(), (404, "not_found".to_owned()));
    assert_eq!(door.get("/v1/tenants/default/clear").refusal(), (405, "method_not_allowed".to_owned()));
    assert_eq!(door.post("/v1/cluster", "").refusal(), (405, "method_not_allowed".to_owned()));
    let twice = r#"{"name":"twice"}"#;
    assert_eq!(door.post("/v1/tenants", twice).status, 201);
    assert_eq!(door.post("/v1/tenants", twice).refusal(), (409, "rejected".to_owned()));
}

#[test]
fn a_follower_has_the_leader_do_it_and_answers_as_the_leader_would() {
    let group = Group::of(3);
    let (leader, follower) = (group.leader(), group.follower());
    let created = group.admin(follower).post("/v1/tenants", r#"{"name":"through-a-follower"}"#);
    let shown = created.json();
    assert_eq!(created.status, 201);
    assert_eq!(
        (&shown["id"], &shown["name"], &shown["era"]),
        (&json!(2), &json!("through-a-follower"), &json!(1))
    );
    for at in [leader, follower] {
        for path in ["/v1/tenants", "/v1/members", "/v1/slots?slot=7", "/v1/stats"] {
            let answer = group.admin(at).get(path);
            assert_eq!((answer.status, answer.json()), (200, group.admin(leader).get(path).json()), "{path}");
        }
    }
    let refused = group.admin(follower).post("/v1/tenants", r#"{"name":"through-a-follower"}"#);
    assert_eq!(refused.refusal(), (409, "rejected".to_owned()));
    let cleared = group.admin(follower).post("/v1/tenants/through-a-follower/clear", "");
    assert_eq!((cleared.status, cleared.json()["era"].clone()), (200, json!(2)));
    let cluster = group.admin(follower).get("/v1/cluster").json();
    assert_eq!(cluster["leader"], json!(group.configs[leader].peers[leader].name));
    let roles: Vec<&str> = cluster["coordinators"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["role"].as_str())
        .collect();
    assert_eq!(roles.iter().filter(|role| **role == "leader").count(), 1);
    assert_eq!(roles.iter().filter(|role| **role == "follower").count(), 2);
}

#[test]
fn without_a_majority_changes_and_fresh_reads_are_refused_and_stale_ones_served() {
    let mut group = Group::of(3);
    let (leader, follower) = (group.leader(), group.follower());
    assert_eq!(group.admin(leader).post("/v1/tenants", r#"{"name":"before"}"#).status, 201);
    crate::group::eventually("the follower has it", || group.map(follower).tenant("before").is_some());
    for at in group.living() {
        if at != follower {
            group.stop(at);
        }
    }
    let door = group.admin(follower);
    let stale = door.get("/v1/tenants?consistency=stale");
    assert_eq!(stale.status, 200);
    assert_eq!(stale.json()["tenants"][1]["name"], json!("before"));
    assert_eq!(door.get("/v1/tenants").refusal().0, 503);
    assert_eq!(door.post("/v1/tenants", r#"{"name":"after"}"#).refusal().0, 503);
    assert_eq!(door.get_open("/readyz").status, 503);
    assert_eq!(door.get_open("/healthz").status, 200);
}

#[test]
fn whoever_asks_whether_it_is_ready_costs_the_group_nothing() {
    let mut group = Group::of(3);
    let (leader, follower) = (group.leader(), group.follower());
    let asked = |at: usize| {
        let metrics = group.admin(at).get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("kvhive_coordinator_reads_total "));
        line.and_then(|value| value.parse::<u64>().ok()).expect("it is among the metrics")
    };
    let before = asked(leader);
    for _ in 0..20 {
        for at in [leader, follower] {
            assert_eq!(group.admin(at).get_open("/readyz").body, "ready\n");
        }
    }
    assert_eq!(asked(leader), before);
    // One that is left alone says so itself.
    let last =
        group.living().into_iter().find(|at| ![leader, follower].contains(at)).expect("there are three");
    group.stop(leader);
    group.stop(last);
    let mut answer = group.admin(follower).get_open("/readyz");
    eventually("it notices", || {
        answer = group.admin(follower).get_open("/readyz");
        answer.status == 503
    });
    assert_eq!(answer.body, "no leader is known\n");
}

#[test]
fn a_caller_that_stops_in_the_middle_of_a_request_holds_up_no_shutdown() {
    let mut group = Group::of(1);
    let mut halves: Vec<std::net::TcpStream> = (0..20).map(|_| connect(group.admin(0).address)).collect();
    for half in &mut halves {
        half.write_all(b"GET /healthz HTTP/1.1\r\nhost: x").expect("it is accepted");
    }
    assert_eq!(group.admin(0).get_open("/healthz").status, 200);
    let begun = std::time::Instant::now();
    group.stop(0);
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(5), "the shutdown took {took:?}");
}
