//! Every route and verb with every credential: what the document says is what the doors do.

use crate::group::{Group, OPERATOR, TOKEN, VIEWER, bearer, eventually};
use crate::http::ask;
use serde_json::Value;

/// Who shows what, and how much they may: looking, operating, everything.
const CREDENTIALS: [(&str, u8); 4] = [("", 0), (VIEWER, 1), (OPERATOR, 2), (TOKEN, 3)];

/// Every operation of the document: its verb, a path, and the role that its text says it needs.
fn operations(document: &Value) -> Vec<(String, String, Option<u8>)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in item.as_object().expect("operations") {
            let text = operation["description"].as_str().unwrap_or_default();
            let needs = ["viewer", "operator", "admin"]
                .iter()
                .position(|role| text.contains(&format!("the role `{role}`")))
                .map(|at| at as u8 + 1);
            let is_open = operation["security"] == serde_json::json!([{}]);
            assert_eq!(needs.is_none(), is_open, "{verb} {path} says whose it is: {text}");
            // A name that nothing has: what passes the door changes nothing.
            let path = path.split('/').map(|word| if word.starts_with('{') { "nobody" } else { word });
            all.push((verb.to_ascii_uppercase(), path.collect::<Vec<_>>().join("/"), needs));
        }
    }
    all
}

#[test]
fn each_credential_opens_what_the_document_says_and_nothing_else() {
    let group = Group::of(1);
    let door = group.admin(0);
    let document = door.get("/openapi.json").json();
    let operations = operations(&document);
    assert!(operations.len() > 12, "{operations:?}");
    for (verb, path, needs) in operations {
        for (token, may) in CREDENTIALS {
            let shown = bearer(token);
            let mut headers = vec![("content-type", "application/json")];
            if !token.is_empty() {
                headers.push(("authorization", &shown));
            }
            // No operation takes this body, so what passes the door is refused behind it and changes nothing.
            let body: &[u8] = if verb == "GET" { b"" } else { br#"{"nobody asks for this":1}"# };
            if path.ends_with("/stream") && needs.is_some_and(|needs| may >= needs) {
                continue;
            }
            let answer = ask(door.address, &verb, &path, &headers, body);
            let expected = match needs {
                Some(_) if may == 0 => Some((401, "unauthorized")),
                Some(needs) if may < needs => Some((403, "forbidden")),
                _ => None,
            };
            match expected {
                Some((status, code)) => {
                    assert_eq!(answer.refusal(), (status, code.to_owned()), "{verb} {path} by {token:?}");
                }
                None => assert!(
                    answer.status != 401 && answer.status != 403 && answer.status < 500,
                    "{verb} {path} by {token:?}: {answer:?}"
                ),
            }
        }
    }
}

#[test]
fn changes_are_written_down_with_who_asked_and_what_came_of_it() {
    let group = Group::of(1);
    let door = group.admin(0);
    let token = bearer(TOKEN);
    let name = "0123456789abcdef0123456789abcdef";
    let headers =
        [("authorization", token.as_str()), ("content-type", "application/json"), ("idempotency-key", name)];
    assert_eq!(ask(door.address, "POST", "/v1/tenants", &headers, br#"{"name":"noted"}"#).status, 201);
    assert_eq!(ask(door.address, "GET", "/v1/tenants", &headers, b"").status, 200);
    assert_eq!(ask(door.address, "POST", "/v1/balance", &headers, br#"{"dry_run":true}"#).status, 200);
    let operator = bearer(OPERATOR);
    let lesser = [("authorization", operator.as_str()), ("content-type", "application/json")];
    assert_eq!(ask(door.address, "PATCH", "/v1/members/nobody", &lesser, br#"{"drains":true}"#).status, 404);
    let file = group.configs[0].data_dir.join("audit.jsonl");
    let mut lines: Vec<Value> = Vec::new();
    eventually("both changes are written down", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.len() >= 2
    });
    let said = |at: usize, field: &str| lines[at][field].clone();
    assert_eq!(lines.len(), 2, "looking is not written down: {lines:?}");
    for (at, role, verb, path, status) in
        [(0, "admin", "POST", "/v1/tenants", 201), (1, "operator", "PATCH", "/v1/members/nobody", 404)]
    {
        assert_eq!(said(at, "role"), role);
        assert_eq!(said(at, "method"), verb);
        assert_eq!(said(at, "path"), path);
        assert_eq!(said(at, "status"), status);
        assert!(said(at, "from").as_str().is_some_and(|from| from.starts_with("127.")));
    }
    assert_eq!((said(0, "change"), said(1, "change")), (Value::from(name), Value::Null));
}

#[test]
fn lists_come_in_pages() {
    let group = Group::of(1);
    let door = group.admin(0);
    for number in 0..5 {
        let body = format!(r#"{{"name":"tenant-{number}"}}"#);
        assert_eq!(door.post("/v1/tenants", &body).status, 201);
    }
    let mut names = Vec::new();
    let mut path = "/v1/tenants?limit=2".to_owned();
    for page in 0.. {
        let answer = door.get(&path).json();
        let tenants = answer["tenants"].as_array().expect("a list");
        assert!(tenants.len() <= 2 && page < 4, "{answer}");
        names.extend(tenants.iter().map(|tenant| tenant["name"].as_str().unwrap_or_default().to_owned()));
        let Some(next) = answer["next"].as_u64() else { break };
        path = format!("/v1/tenants?limit=2&after={next}");
    }
    assert_eq!(names, ["default", "tenant-0", "tenant-1", "tenant-2", "tenant-3", "tenant-4"]);
    for query in ["limit=0", "limit=10001", "limit=many", "after=-1", "page=2"] {
        assert_eq!(door.get(&format!("/v1/members?{query}")).refusal().0, 400, "{query}");
    }
}
