//! Changes through a whole group: applied once however often they are sent, and a clear that keeps its word.

use crate::group::{Group, eventually, fresh_request, settings, submit};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, ControlRequest};
use kvhive_protocol::data::Ack;
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{
    BlockKey, Epoch, Era, MemberState, Pin, PinMode, Reason, TenantId, TenantRules, WireError,
};
use std::time::{Duration, Instant};

#[test]
fn a_follower_names_the_leader_to_whoever_asks_it_for_a_change() {
    let group = Group::of(3);
    let (leader, follower) = (group.leader(), group.follower());
    let address = group.configs[leader].peers[leader].raft_address.clone();
    let create = ControlRequest::Submit {
        request: fresh_request(),
        reason: Reason::default(),
        command: Command::CreateTenant {
            name: "redirected".to_owned(),
            secret: [1; 32],
            rules: TenantRules::default(),
        },
    };
    let fresh = ControlRequest::FetchMap { have: Epoch(0), linearizable: true };
    for request in [&create, &fresh] {
        let reply = group.ask(follower, Role::Client, request);
        assert_eq!(reply, ControlReply::Failed(WireError::NotLeader { leader: Some(address.clone()) }));
    }
    assert!(matches!(
        group.ask(leader, Role::Client, &create),
        ControlReply::Done(CommandReply::TenantCreated { .. })
    ));
}

#[test]
fn one_connection_has_changes_made_and_other_things_told_in_any_order() {
    let group = Group::of(1);
    let identity = group.identity(Role::Client);
    let set = |ack| ControlRequest::Submit {
        request: fresh_request(),
        reason: Reason::default(),
        command: Command::SetAck { ack },
    };
    let fresh = ControlRequest::FetchMap { have: Epoch(0), linearizable: true };
    group.run(async {
        let mut connection = group.connect(0, &identity).await.expect("it listens");
        let mut number = 0;
        // Whose thread serves it changes between these; two requests also wait on it at once.
        for at in 0..40 {
            let ack = if at % 2 == 0 { Ack::Quorum } else { Ack::Primary };
            let asked = [set(ack), fresh.clone(), ControlRequest::Status, set(ack), set(ack)];
            for request in asked.iter().chain(&asked) {
                number += 1;
                connection.send(Kind::ControlRequest, number, request, &[]).await.expect("it takes it");
                if number % 2 == 1 {
                    continue;
                }
                for number in [number - 1, number] {
                    let reply: ControlReply =
                        connection.receive_answer(Kind::ControlReply, number).await.expect("it answers");
                    match reply {
                        ControlReply::Done(_) | ControlReply::Status(_) => {}
                        ControlReply::Map(Some(map)) => assert_eq!(map.settings.ack, ack, "{number}"),
                        other => panic!("{number}: {other:?}"),
                    }
                }
            }
        }
    });
}

#[test]
fn a_request_repeated_to_the_next_leader_is_answered_as_before_and_not_applied_again() {
    let mut group = Group::of(3);
    let clear = ControlRequest::Submit {
        request: fresh_request(),
        reason: Reason::default(),
        command: Command::ClearTenant { tenant: TenantId(1) },
    };
    let create = ControlRequest::Submit {
        request: fresh_request(),
        reason: Reason::default(),
        command: Command::CreateTenant {
            name: "once".to_owned(),
            secret: [1; 32],
            rules: TenantRules::default(),
        },
    };
    let first = [submit(&group, &clear), submit(&group, &create)];
    assert!(
        matches!(first[0], ControlReply::Done(CommandReply::TenantCleared { era: Era(2), .. })),
        "{first:?}"
    );
    let leader = group.leader();
    group.stop(leader);
    assert_ne!(group.leader(), leader);
    assert_eq!([submit(&group, &clear), submit(&group, &create)], first);
    group.start(leader);
    group.wait_until_it_serves();
    eventually("the old leader has caught up", || {
        group.status(leader).map(|own| own.applied) == group.status(group.leader()).map(|own| own.applied)
    });
    assert_eq!([submit(&group, &clear), submit(&group, &create)], first);
    for at in group.living() {
        let map = group.map(at);
        assert_eq!(map.tenants.values().map(|tenant| tenant.era).collect::<Vec<_>>(), [Era(2), Era(1)]);
    }
}

#[test]
fn what_no_map_would_take_is_refused_before_it_reaches_a_log() {
    let group = Group::of(3);
    let leader = group.leader();
    group.elected();
    let index = |at: usize| group.status(at).expect("it answers").committed;
    let before = index(leader);
    let create =
        Command::CreateTenant { name: "x".repeat(1000), secret: [0; 32], rules: TenantRules::default() };
    for _ in 0..5 {
        let request = ControlRequest::Submit {
            request: fresh_request(),
            command: create.clone(),
            reason: Reason::default(),
        };
        let refused = group.ask(leader, Role::Client, &request);
        assert!(matches!(refused, ControlReply::Done(CommandReply::Rejected(_))), "{refused:?}");
    }
    assert_eq!(index(leader), before);
}

#[test]
fn a_clear_waits_until_every_member_has_confirmed_it() {
    let group = Group::of(3);
    let mut nodes = [group.register("node-a"), group.register("node-b")];
    let door = group.admin(group.follower());
    let old = group.map(group.leader()).epoch;
    for node in &mut nodes {
        node.epoch = old;
    }
    let clearing = std::thread::spawn(move || door.post("/v1/tenants/default/clear", ""));
    eventually("the era is raised", || group.map(group.leader()).tenants[&TenantId(1)].era == Era(2));
    // Both live on by the old map for longer than a lease; one of them then follows.
    let until = Instant::now() + Duration::from_millis(settings().lease_ms * 2);
    while Instant::now() < until {
        assert!(nodes.iter().all(|node| matches!(group.beat(node), ControlReply::Beat { map: Some(_) })));
        assert!(!clearing.is_finished(), "answered while both members serve by the old map");
        std::thread::sleep(Duration::from_millis(settings().heartbeat_ms));
    }
    let new = group.map(group.leader()).epoch;
    nodes[0].epoch = new;
    for _ in 0..5 {
        nodes.iter().for_each(|node| drop(group.beat(node)));
        assert!(!clearing.is_finished(), "answered while one member serves by the old map");
        std::thread::sleep(Duration::from_millis(settings().heartbeat_ms));
    }
    nodes[1].epoch = new;
    nodes.iter().for_each(|node| drop(group.beat(node)));
    let answer = clearing.join().expect("the asker lives");
    assert_eq!((answer.status, answer.json()["era"].as_u64()), (200, Some(2)));
    let map = group.map(group.leader());
    assert!(map.members.values().all(|member| member.state == MemberState::Up), "no lease had to run out");
}

#[test]
fn a_clear_waits_for_a_silent_member_only_until_its_lease_has_run_out() {
    let group = Group::of(1);
    let node = group.register("node-a");
    assert!(matches!(group.beat(&node), ControlReply::Beat { .. }));
    let begun = Instant::now();
    let answer = group.admin(0).post("/v1/tenants/default/clear", "");
    let waited = begun.elapsed();
    assert_eq!(answer.status, 200, "{answer:?}");
    // The heartbeat before may have used up a little of the lease by now.
    assert!(waited >= Duration::from_millis(settings().lease_ms * 3 / 4), "answered after {waited:?}");
    assert!(matches!(group.beat(&node), ControlReply::Fenced), "its lease has run out");
}

/// The names of two changes.
pub(crate) const NAME: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// Asks a coordinator for a change under a name.
pub(crate) fn ask_as(
    group: &Group,
    at: usize,
    name: &str,
    asked: (&str, &str),
    body: &str,
) -> crate::http::Answer {
    let token = crate::group::bearer(crate::group::TOKEN);
    let headers =
        [("authorization", token.as_str()), ("content-type", "application/json"), ("idempotency-key", name)];
    crate::http::ask(group.admin(at).address, asked.0, asked.1, &headers, body.as_bytes())
}

const CREATE: (&str, &str) = ("POST", "/v1/tenants");

#[test]
fn a_change_that_its_asker_has_named_happens_once_whoever_is_asked() {
    let group = Group::of(3);
    for at in 0..3 {
        let created = ask_as(&group, at, NAME, CREATE, r#"{"name":"once"}"#);
        assert_eq!((created.status, created.json()["name"].as_str()), (201, Some("once")), "{created:?}");
        let cleared = ask_as(&group, at, OTHER, ("POST", "/v1/tenants/once/clear"), "");
        assert_eq!((cleared.status, cleared.json()["era"].as_u64()), (200, Some(2)), "{cleared:?}");
    }
    let other = ask_as(&group, 0, &OTHER.to_uppercase(), CREATE, r#"{"name":"once"}"#);
    assert!(other.status >= 400, "the name of another change: {other:?}");
    for name in ["", "1", "0123456789abcdef0123456789abcdeg", "+123456789abcdef0123456789abcdef"] {
        let refused = ask_as(&group, 0, name, CREATE, r#"{"name":"twice"}"#);
        assert_eq!(refused.refusal(), (400, "bad_request".to_owned()), "{name:?}");
    }
}

#[test]
fn a_name_is_of_what_was_asked_under_it_first_whoever_is_asked_and_whoever_leads() {
    let mut group = Group::of(3);
    assert_eq!(ask_as(&group, 0, NAME, CREATE, r#"{"name":"once"}"#).status, 201);
    let first = group.leader();
    let others = |group: &Group, at: usize| {
        // Written otherwise it is the same.
        let again = ask_as(group, at, NAME, CREATE, "{ \"name\" : \"once\" }");
        assert_eq!((again.status, again.json()["name"].as_str()), (201, Some("once")), "{again:?}");
        for (path, body) in [(CREATE.1, r#"{"name":"twice"}"#), ("/v1/tenants?a=1", r#"{"name":"once"}"#)] {
            let other = ask_as(group, at, NAME, ("POST", path), body);
            assert_eq!(other.refusal(), (422, "asked_otherwise".to_owned()), "{other:?}");
        }
    };
    (0..3).for_each(|at| others(&group, at));
    group.stop(first);
    group.start(first);
    group.wait_until_it_serves();
    (0..3).for_each(|at| others(&group, at));
    assert_eq!(group.map(group.leader()).tenants.len(), 2, "default and once");
}

#[test]
fn a_change_asked_again_is_answered_as_it_was_when_what_it_made_or_ended_is_gone() {
    let group = Group::of(3);
    let body = r#"{"name":"gone","strategy":"lru"}"#;
    let made = ask_as(&group, 0, NAME, CREATE, body);
    assert_eq!(made.status, 201, "{made:?}");
    for at in 0..3 {
        let deleted = ask_as(&group, at, OTHER, ("DELETE", "/v1/tenants/gone"), "");
        assert_eq!(deleted.status, 204, "{deleted:?}");
        let again = ask_as(&group, at, NAME, CREATE, body);
        assert_eq!((again.status, again.json()), (201, made.json()));
    }
    // Under names of their own there is nothing to end.
    for path in ["/v1/tenants/gone", "/v1/tenants/nobody", "/v1/members/nobody"] {
        let missing = ask_as(&group, 1, NAME, ("DELETE", path), "");
        assert_eq!(missing.refusal(), (404, "not_found".to_owned()), "{path}");
    }
    group.register("node-a");
    eventually("its lease has run out", || {
        let map = group.map(group.leader());
        map.members.values().all(|member| member.state == MemberState::Down)
    });
    for at in 0..3 {
        let removed = ask_as(&group, at, OTHER, ("DELETE", "/v1/members/node-a"), "");
        assert_eq!(removed.status, 204, "{removed:?}");
    }
}

#[test]
fn who_goes_beyond_the_policy_of_sizes_says_so_and_is_told_of() {
    let group = Group::of(1);
    let ask = |body: &str| group.admin(0).post("/v1/scaling", body);
    assert_eq!(ask(r#"{"size":16}"#).json()["target"], 16);
    let refused = ask(r#"{"size":17}"#);
    assert_eq!(refused.refusal(), (409, "beyond_policy".to_owned()));
    assert!(
        refused.json()["detail"].as_str().is_some_and(|said| said.contains("allows 1 to 16")),
        "{refused:?}"
    );
    // Force where there is no need of it is nothing to tell.
    assert_eq!(ask(r#"{"size":15,"force":true}"#).json()["target"], 15);
    assert_eq!(ask(r#"{"size":17,"force":true,"reason":"a launch"}"#).json()["target"], 17);
    let told = group.admin(0).get("/v1/events?kind=scaling-changed").json();
    let told = told["events"].as_array().expect("there are events");
    let facts: Vec<_> = told.iter().map(|event| event["facts"].clone()).collect();
    let of = |size: u64| serde_json::json!({ "size": size });
    assert_eq!(facts, [of(16), of(15), serde_json::json!({ "size": 17, "beyond_policy": 1 })]);
    let last = told.last().and_then(|event| event["reason"].as_str());
    assert_eq!(last, Some("admin at 127.0.0.1 goes beyond 1 to 16 members: a launch"));
}

#[test]
fn a_pin_that_a_client_sets_is_told_of_with_its_reason() {
    let group = Group::of(1);
    let pin = |name: &str, reason: &str| {
        let pin = Pin {
            tenant: TenantId(1),
            keys: [BlockKey::from_bytes([1; 32])].iter().collect(),
            mode: PinMode::Hard,
            reason: Reason::new(reason),
        };
        let command = Command::SetPin { name: name.to_owned(), pin: Box::new(pin) };
        let request = fresh_request();
        ControlRequest::Submit { request, command, reason: Reason::default() }
    };
    for (name, reason) in [("system", "each request begins so"), ("other", "")] {
        let reply = group.ask(0, Role::Client, &pin(name, reason));
        assert!(matches!(reply, ControlReply::Done(CommandReply::Applied { .. })), "{reply:?}");
    }
    let told = group.admin(0).get("/v1/events?kind=pin-added").json();
    let told = told["events"].as_array().expect("there are events");
    let reasons: Vec<_> = told.iter().filter_map(|event| event["reason"].as_str()).collect();
    assert_eq!(reasons, ["each request begins so", "asked for by a client"]);
}
