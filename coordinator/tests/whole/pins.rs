//! Pins through the admin API: made, listed in pages, ended.

use crate::group::{AdminDoor, Group, TOKEN, bearer, eventually};
use crate::http::{Answer, ask};
use serde_json::{Value, json};

fn pin(name: &str, keys: usize, more: Value) -> String {
    let keys: Vec<String> = (0..keys).map(|at| format!("{:064x}", at + 1)).collect();
    let mut body = json!({"name": name, "keys": keys});
    for (field, value) in more.as_object().into_iter().flatten() {
        body[field] = value.clone();
    }
    body.to_string()
}

fn delete(door: &AdminDoor, name: &str) -> Answer {
    let token = bearer(TOKEN);
    ask(door.address, "DELETE", &format!("/v1/pins/{name}"), &[("authorization", &token)], b"")
}

#[test]
fn pins_are_made_listed_in_pages_and_ended_once() {
    let group = Group::of(1);
    let door = group.admin(0);
    let made = door.post("/v1/pins", &pin("b", 4096, json!({"reason": "the system prompt"})));
    let shown = made.json();
    assert_eq!((made.status, &shown["keys"], &shown["mode"]), (201, &json!(4096), &json!("hard")));
    assert_eq!((&shown["tenant"], &shown["until_ms"]), (&json!("default"), &Value::Null));
    assert_eq!(shown["reason"], json!("the system prompt"));
    let soft = door.post("/v1/pins", &pin("a", 1, json!({"until_ms": 1_u64 << 42})));
    assert_eq!((soft.status, &soft.json()["mode"]), (201, &json!("soft")));
    assert_eq!(door.post("/v1/pins", &pin("c", 2, json!({}))).status, 201);
    let page = |path: &str| {
        let said = door.get(path).json();
        let names = said["pins"].as_array().expect("a list").iter().map(|one| one["name"].clone());
        (names.collect::<Vec<_>>(), said["next"].clone())
    };
    assert_eq!(door.get("/v1/pins").json()["pins"][1], shown);
    let told = door.get("/v1/events?kind=pin-added").json()["events"][0].clone();
    assert_eq!((&told["subject"]["pin"], &told["reason"]), (&json!("b"), &shown["reason"]));
    assert_eq!(page("/v1/pins?limit=2"), (vec![json!("a"), json!("b")], json!("b")));
    assert_eq!(page("/v1/pins?limit=2&after=b"), (vec![json!("c")], Value::Null));
    assert_eq!(delete(&door, "b").status, 204);
    assert_eq!(delete(&door, "b").refusal(), (404, "not_found".to_owned()));
    assert_eq!(page("/v1/pins").0, vec![json!("a"), json!("c")]);
    // One whose time comes is removed without being asked for.
    let soon = kvhive_runtime::wall_ms() + 300;
    assert_eq!(door.post("/v1/pins", &pin("d", 1, json!({"until_ms": soon}))).status, 201);
    eventually("a pin ends by itself", || page("/v1/pins").0 == vec![json!("a"), json!("c")]);
}

#[test]
fn a_pin_that_cannot_be_is_refused_with_what_is_allowed() {
    let group = Group::of(1);
    let door = group.admin(0);
    for (body, says) in [
        (pin("a", 0, json!({})), "number of a pin's keys is 0"),
        (pin("a", 4097, json!({})), "allowed is 1 to 4096"),
        (pin("A", 1, json!({})), "pin name"),
        (pin("a", 1, json!({"tenant": "nobody"})), "a tenant that exists"),
        (pin("a", 1, json!({"until_ms": 5})), "which is over"),
        (json!({"name": "a", "keys": ["zz"]}).to_string(), "64 hexadecimal digits"),
    ] {
        let refused = door.post("/v1/pins", &body);
        let words = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert_eq!(refused.refusal(), (400, "bad_request".to_owned()));
        assert!(words.contains(says), "{words:?} lacks {says:?}");
    }
    assert_eq!(delete(&door, "No%20Name").refusal().0, 404);
    assert_eq!(door.get("/v1/pins?limit=0").refusal().0, 400);
}
