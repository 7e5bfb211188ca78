//! Engines from outside: every coordinator hears them, any of them says where a request should go, and why.

use crate::fake_engine::{BLOCK_TOKENS, FakeEngine, hash, removed, stored, tokens};
use crate::group::{AdminDoor, Group, OPERATOR, TOKEN, bearer, eventually};
use crate::http;
use kvhive_protocol::control::{ControlReply, ControlRequest};
use kvhive_protocol::engines::EngineLoad;
use kvhive_protocol::handshake::Role;
use kvhive_protocol::routing::RouteRequest;
use serde_json::{Value, json};

fn follow(group: &Group, name: &str, engine: &FakeEngine) {
    follow_as(group, name, engine, json!({}));
}

/// Follows an engine of which more is known.
fn follow_as(group: &Group, name: &str, engine: &FakeEngine, more: Value) {
    let mut asked = json!({
        "name": name,
        "model": "tiny@1",
        "block_tokens": BLOCK_TOKENS,
        "events": format!("tcp://{}", engine.events),
        "replay": format!("tcp://{}", engine.replay),
        "topic": "kv@",
    });
    for (field, value) in more.as_object().expect("fields") {
        asked[field] = value.clone();
    }
    let answer = group.admin(0).post("/v1/engines", &asked.to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    for at in group.living() {
        eventually("a coordinator hears the engine", || known(&group.admin(at), name)["exact"] == true);
    }
}

fn listed(door: &AdminDoor, name: &str) -> Value {
    let list = door.get("/v1/engines").json();
    let engines = list["engines"].as_array().expect("a list").iter();
    engines.clone().find(|one| one["name"] == name).cloned().unwrap_or_default()
}

fn known(door: &AdminDoor, name: &str) -> Value {
    listed(door, name)["known"].clone()
}

/// Publishes nothing in particular until every coordinator has heard what was published before: a batch that was lost on the way
/// is noticed by the next one.
fn heard(group: &Group, name: &str, engine: &FakeEngine, blocks: u64) {
    for at in group.living() {
        eventually("a coordinator knows the engine's cache", || {
            let known = known(&group.admin(at), name);
            let is_so = known["blocks"] == blocks && known["exact"] == true && known["connected"] == true;
            if !is_so {
                engine.publish(Vec::new());
            }
            is_so
        });
    }
}

fn route(door: &AdminDoor, asked: &Value) -> Value {
    let answer = door.post("/v1/route", &asked.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn amounts(ranked: &Value) -> Vec<(String, u64)> {
    let terms = ranked["terms"].as_array().expect("terms").iter();
    terms
        .map(|term| {
            (term["part"].as_str().expect("a name").to_owned(), term["amount"].as_u64().expect("a number"))
        })
        .collect()
}

#[test]
fn every_coordinator_hears_an_engine_and_says_who_has_a_prompt() {
    let group = Group::of(3);
    let (one, two) = (FakeEngine::start(), FakeEngine::start());
    follow(&group, "one", &one);
    follow(&group, "two", &two);
    one.publish(vec![stored(7, 0..4), stored(7, 4..6)]);
    two.publish(vec![stored(7, 0..2)]);
    heard(&group, "one", &one, 6);
    heard(&group, "two", &two, 2);
    let prompt = tokens(7, 10);
    for at in group.living() {
        let door = group.admin(at);
        let chosen = route(&door, &json!({"tokens": prompt}));
        assert_eq!(chosen["engine"], "one", "{chosen}");
        assert_eq!(amounts(&chosen["ranked"][0]), [("engine_device".into(), 96), ("compute".into(), 64)]);
        assert_eq!(amounts(&chosen["ranked"][1]), [("engine_device".into(), 32), ("compute".into(), 128)]);
        let reason = chosen["ranked"][0]["reason"].as_str().expect("words");
        assert!(
            reason.starts_with("of 160 tokens 96 are in its own device memory, 64 are to be computed"),
            "{reason}"
        );
        // By the engine's own hashes too, whole or cut to numbers.
        let hashes: Vec<String> =
            (0..10).map(|at| hash(7, at).iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        let chosen = route(&door, &json!({"hashes": hashes, "prompt_tokens": 165}));
        assert_eq!(amounts(&chosen["ranked"][0]), [("engine_device".into(), 96), ("compute".into(), 69)]);
        let numbers: Vec<u64> = (0..10).map(|at| (7 << 32) + at + 1).collect();
        let chosen = route(&door, &json!({"hashes": numbers, "prompt_tokens": 165}));
        assert_eq!(chosen["ranked"][0]["cost_tokens"], 69.0);
        // Who is busy is dearer, where somebody says so.
        let busy = json!({"engine": "one", "load": {"running": 4, "waiting": 3, "kv_usage": 0.5}});
        let chosen = route(&door, &json!({"tokens": prompt, "candidates": [busy, "two"]}));
        assert_eq!(chosen["engine"], "two", "{chosen}");
        let weights = json!({"running": 0, "waiting": 0, "kv_usage": 0});
        let chosen =
            route(&door, &json!({"tokens": prompt, "candidates": [busy, "two"], "weights": weights}));
        assert_eq!(chosen["engine"], "one", "{chosen}");
    }
}

#[test]
fn metrics_say_how_many_hashes_of_engines_are_remembered() {
    let group = Group::of(1);
    let (engine, other) = (FakeEngine::start(), FakeEngine::start());
    let layout = json!({"layers": 2, "kv_heads": 2, "head_dim": 16, "tokens": BLOCK_TOKENS, "dtype": "f16", "order": "layers-first"});
    follow_as(&group, "one", &engine, json!({"blocks": {"layout": layout, "named_by": "hashes"}}));
    follow(&group, "two", &other);
    engine.publish(vec![stored(7, 0..4), stored(7, 4..6), removed(7, 5)]);
    other.publish(vec![stored(8, 0..3)]);
    heard(&group, "one", &engine, 5);
    heard(&group, "two", &other, 3);
    let metrics = group.admin(0).get("/metrics").body;
    let figures = metrics.lines().filter(|line| line.starts_with("kvhive_coordinator_engine_hashes"));
    let mut figures: Vec<&str> = figures.collect();
    figures.sort_unstable();
    let expected = [
        // What left the engine may be in kvhive.
        "kvhive_coordinator_engine_hashes 6",
        "kvhive_coordinator_engine_hashes_dropped_total 0",
        "kvhive_coordinator_engine_hashes_room 262144",
    ];
    assert_eq!(figures, expected);
}

#[test]
fn what_was_lost_is_repeated_and_an_engine_that_starts_anew_holds_nothing() {
    let group = Group::of(1);
    let door = group.admin(0);
    let engine = FakeEngine::start();
    follow(&group, "one", &engine);
    engine.publish(vec![stored(1, 0..8)]);
    engine.lose(vec![removed(1, 3)]);
    engine.publish(vec![stored(2, 0..2)]);
    heard(&group, "one", &engine, 9);
    let covered = |prompt| {
        let chosen = route(&door, &json!({"tokens": tokens(prompt, 8)}));
        amounts(&chosen["ranked"][0])
            .iter()
            .find(|(part, _)| part == "engine_device")
            .map_or(0, |found| found.1)
    };
    assert_eq!(covered(1), 48, "the fourth block is gone");
    assert_eq!(listed(&door, "one")["given_up"], 0);
    let engine = engine.restarted();
    engine.publish(vec![stored(3, 0..5)]);
    heard(&group, "one", &engine, 5);
    assert_eq!((covered(1), covered(2), covered(3)), (0, 0, 80));
}

#[test]
fn an_engine_whose_replays_break_off_is_asked_again_until_nothing_is_missing() {
    let group = Group::of(1);
    let engine = FakeEngine::start();
    follow(&group, "one", &engine);
    engine.publish(vec![stored(1, 0..8)]);
    engine.break_off(2);
    engine.lose(vec![removed(1, 3)]);
    engine.publish(vec![stored(2, 0..2)]);
    // It says nothing more that would tell of what is missing.
    eventually("the coordinator knows the engine's cache", || {
        let known = known(&group.admin(0), "one");
        known["blocks"] == 9 && known["exact"] == true
    });
    assert_eq!(engine.left_to_break_off(), 0, "they did");
}

#[test]
fn a_request_that_is_sent_somewhere_counts_there_until_the_engine_reports() {
    let group = Group::of(1);
    let door = group.admin(0);
    let (one, two) = (FakeEngine::start(), FakeEngine::start());
    follow(&group, "one", &one);
    follow(&group, "two", &two);
    let asked = json!({"tokens": tokens(1, 20), "take": true});
    let first = route(&door, &asked);
    let second = route(&door, &json!({"tokens": tokens(2, 2)}));
    // Believed for two seconds: on a machine that is slower than that it is no longer there.
    if amounts(&second["ranked"][1]).iter().any(|(part, _)| part == "taken") {
        assert_eq!((&first["engine"], &second["engine"]), (&json!("one"), &json!("two")));
    }
    let idle = door.post("/v1/engines/one/load", r#"{"running": 0}"#);
    assert_eq!(idle.status, 204, "{idle:?}");
    let third = route(&door, &json!({"tokens": tokens(2, 2)}));
    assert_eq!(third["engine"], "one", "{third}");
    assert!(third["ranked"][0]["load_age_ms"].is_u64(), "{third}");
    // Over the control plane it is the same.
    let load = EngineLoad { waiting: 9, ..EngineLoad::default() };
    let said = group.ask(0, Role::Client, &ControlRequest::EngineLoad { engine: "one".into(), load });
    assert!(matches!(said, ControlReply::Engine(followed) if followed.load.is_some()));
    let asked = ControlRequest::Route(Box::new(RouteRequest::of_tokens(tokens(2, 2))));
    match group.ask(0, Role::Client, &asked) {
        ControlReply::Routed(answer) => assert_eq!(answer.ranked[0].engine, "two"),
        other => panic!("no route: {other:?}"),
    }
}

#[test]
fn an_answer_says_when_nobody_is_heard_that_may_take_a_request() {
    let group = Group::of(1);
    let door = group.admin(0);
    let (one, two) = (FakeEngine::start(), FakeEngine::start());
    follow(&group, "one", &one);
    follow(&group, "two", &two);
    let asked = json!({"tokens": tokens(1, 4)});
    let chosen = route(&door, &asked);
    assert_eq!((&chosen["heard"], &chosen["notes"]), (&json!(true), &json!([])), "{chosen}");
    drop(one);
    eventually("one is silent", || known(&door, "one")["connected"] == false);
    let chosen = route(&door, &asked);
    assert_eq!((&chosen["engine"], &chosen["heard"]), (&json!("two"), &json!(true)), "{chosen}");
    let named = route(&door, &json!({"tokens": tokens(1, 4), "candidates": ["one"]}));
    let without_load = route(&door, &json!({"tokens": tokens(1, 4), "candidates": [{"engine": "one"}]}));
    for named in [&named, &without_load] {
        assert_eq!((&named["engine"], &named["heard"]), (&json!("one"), &json!(false)), "{named}");
    }
    drop(two);
    eventually("both are silent", || known(&door, "two")["connected"] == false);
    let chosen = route(&door, &asked);
    assert_eq!(chosen["heard"], false, "{chosen}");
    let notes = chosen["notes"].as_array().expect("a list");
    let says =
        |note: &Value| note.as_str().is_some_and(|note| note.starts_with("no candidate's events arrive"));
    assert!(notes.iter().any(says), "{chosen}");
}

#[test]
fn engines_are_remembered_told_of_and_forgotten() {
    let mut group = Group::of(1);
    let engine = FakeEngine::start();
    follow(&group, "one", &engine);
    group.stop(0);
    group.start(0);
    group.wait_until_it_serves();
    let door = group.admin(0);
    eventually("it hears the engine again", || known(&door, "one")["connected"] == true);
    let authorization = bearer(OPERATOR);
    let delete = |name: &str| {
        let path = format!("/v1/engines/{name}");
        http::ask(door.address, "DELETE", &path, &[("authorization", &authorization)], b"")
    };
    assert_eq!(delete("one").status, 204);
    assert_eq!(delete("one").refusal(), (404, "not_found".to_owned()));
    assert_eq!(delete("Not a name").status, 400, "a space is no path");
    eventually("it is followed no longer", || listed(&door, "one").is_null());
    let events = door.get("/v1/events?kind=engine-followed,engine-forgotten").json();
    let told: Vec<&Value> =
        events["events"].as_array().expect("a list").iter().map(|one| &one["kind"]).collect();
    assert_eq!(told, ["engine-followed", "engine-forgotten"]);
    assert_eq!(events["events"][1]["subject"], json!({"engine": "one"}));
}

#[test]
fn questions_that_make_no_sense_are_refused_with_what_is_allowed() {
    let group = Group::of(1);
    let door = group.admin(0);
    let refused = |path: &str, body: Value| {
        let answer = door.post(path, &body.to_string());
        (answer.refusal(), answer.json()["detail"].as_str().unwrap_or_default().to_owned())
    };
    let sound = json!({"name": "one", "model": "m", "block_tokens": 16, "events": "tcp://127.0.0.1:1"});
    let with = |field: &str, value: Value| {
        let mut engine = sound.clone();
        engine[field] = value;
        engine
    };
    for (body, says) in [
        (with("events", json!("udp://127.0.0.1:1")), "tcp://host:port"),
        (with("events", json!("tcp://127.0.0.1")), "host:port"),
        (with("name", json!("One")), "engine name"),
        (with("block_tokens", json!(0)), "block_tokens is 0"),
        (with("tenant", json!("nobody")), "nobody"),
        (with("surprise", json!(1)), "surprise"),
    ] {
        let ((status, _), detail) = refused("/v1/engines", body);
        assert!(status == 400 && detail.contains(says), "{status} {detail}");
    }
    let ((status, _), detail) = refused("/v1/route", json!({"tokens": [1, 2]}));
    assert!(status == 409 && detail.contains("POST /v1/engines"), "{status} {detail}");
    for (body, says) in [
        (json!({}), "either tokens or hashes"),
        (json!({"tokens": [1], "hashes": [1]}), "either tokens or hashes"),
        (json!({"hashes": ["xyz1"]}), "hexadecimal"),
        (json!({"tokens": [1], "weights": {"hive_disk": 2000}}), "hive_disk is 2000"),
        (json!({"tokens": [1], "candidates": [{"engine": "a", "load": {"kv_usage": 2}}]}), "kv_usage is 2"),
        (
            json!({"tokens": [1], "candidates": [{"engine": "a", "load": {"running": -1}}]}),
            "load.running: invalid value",
        ),
        (json!({"tokens": [1], "candidates": [{"engine": "a", "lod": {}}]}), "unknown field `lod`"),
        (json!({"tokens": [1], "candidates": [7]}), "an engine's name, or an object"),
        (json!({"hashes": [true]}), "a hash in hexadecimal, or its last eight bytes"),
        (json!({"tokens": [1], "candidates": ["a", "a"]}), "twice"),
        (json!({"tokens": vec![1; 262_145]}), "262145 tokens"),
    ] {
        let ((status, _), detail) = refused("/v1/route", body);
        assert!(status == 400 && detail.contains(says), "{status} {detail}");
    }
    let ((status, _), _) = refused("/v1/engines/one/load", json!({"running": 1}));
    assert_eq!(status, 404);
    let large = "x".repeat(8 << 20);
    let headers = [("authorization", bearer(TOKEN)), ("content-type", "application/json".to_owned())];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = http::announce(
        door.address,
        "POST",
        "/v1/route",
        &[&headers[..], &[("content-length", &large.len().to_string())]].concat(),
        b"",
    );
    assert_eq!(answer.status, 413, "{answer:?}");
}
