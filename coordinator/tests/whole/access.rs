//! Every route and verb with every credential: what the document says is what the doors do.

use crate::group::{Group, OPERATOR, TOKEN, VIEWER, bearer, eventually};
use crate::http::ask;
use kvhive_protocol::TenantId;
use serde_json::Value;

const ANYBODY: u8 = 0;
const VIEWERS: u8 = 1;
const OPERATORS: u8 = 2;
const ADMINS: u8 = 3;

/// Who may do what. A route that has no row here fails the test: whoever makes one decides whose it is.
const ROUTES: [(&str, &str, u8); 46] = [
    ("POST", "/check_blocks", VIEWERS),
    ("GET", "/healthz", ANYBODY),
    ("GET", "/metrics", VIEWERS),
    ("GET", "/openapi.json", VIEWERS),
    ("GET", "/readyz", ANYBODY),
    ("GET", "/v1/backup", ADMINS),
    ("POST", "/v1/balance", OPERATORS),
    ("GET", "/v1/cluster", VIEWERS),
    ("GET", "/v1/config", VIEWERS),
    ("GET", "/v1/devices", VIEWERS),
    ("GET", "/v1/devices/{member}/{index}", VIEWERS),
    ("GET", "/v1/drains", VIEWERS),
    ("GET", "/v1/engines", VIEWERS),
    ("POST", "/v1/engines", OPERATORS),
    ("DELETE", "/v1/engines/{name}", OPERATORS),
    ("POST", "/v1/engines/{name}/load", OPERATORS),
    ("GET", "/v1/events", VIEWERS),
    ("GET", "/v1/events/stream", VIEWERS),
    ("GET", "/v1/members", VIEWERS),
    ("DELETE", "/v1/members/{name}", OPERATORS),
    ("GET", "/v1/members/{name}", VIEWERS),
    ("PATCH", "/v1/members/{name}", OPERATORS),
    ("GET", "/v1/moves", VIEWERS),
    ("GET", "/v1/pins", VIEWERS),
    ("POST", "/v1/pins", OPERATORS),
    ("DELETE", "/v1/pins/{name}", OPERATORS),
    ("GET", "/v1/raft", VIEWERS),
    ("POST", "/v1/raft/members", ADMINS),
    ("DELETE", "/v1/raft/members/{name}", ADMINS),
    ("POST", "/v1/raft/members/{name}/promote", ADMINS),
    ("POST", "/v1/raft/transfer", OPERATORS),
    ("POST", "/v1/route", OPERATORS),
    ("GET", "/v1/scaling", VIEWERS),
    ("PATCH", "/v1/scaling", OPERATORS),
    ("POST", "/v1/scaling", OPERATORS),
    ("GET", "/v1/slots", VIEWERS),
    ("GET", "/v1/stats", VIEWERS),
    ("GET", "/v1/tenants", VIEWERS),
    ("POST", "/v1/tenants", ADMINS),
    ("DELETE", "/v1/tenants/{name}", ADMINS),
    ("GET", "/v1/tenants/{name}", VIEWERS),
    ("PATCH", "/v1/tenants/{name}", ADMINS),
    ("POST", "/v1/tenants/{name}/clear", ADMINS),
    ("POST", "/v1/tenants/{name}/rotate", ADMINS),
    ("GET", "/v1/traces", VIEWERS),
    ("GET", "/v1/traces/{id}", VIEWERS),
];

/// What may be shown in `Authorization`, and how much it gives. A tenant's secret, however it is written, is no token; neither is a part of
/// one, nor more than one.
fn credentials(secret: &str) -> Vec<(&'static str, Option<String>, u8)> {
    let lower = |token: &str| Some(format!("bEARER {token}"));
    vec![
        ("nothing", None, 0),
        ("an empty header", Some(String::new()), 0),
        ("a scheme alone", Some("Bearer".to_owned()), 0),
        ("an empty token", Some("Bearer ".to_owned()), 0),
        ("another scheme", Some(format!("Basic {TOKEN}")), 0),
        ("a token without a scheme", Some(TOKEN.to_owned()), 0),
        ("a token that nobody has", Some(bearer("a token that nobody has")), 0),
        ("a token cut short", Some(bearer(&TOKEN[..TOKEN.len() - 1])), 0),
        ("a token and more", Some(format!("Bearer {TOKEN}, Bearer {TOKEN}")), 0),
        ("a tenant's secret", Some(bearer(secret)), 0),
        ("a viewer's", Some(bearer(VIEWER)), 1),
        ("an operator's", lower(OPERATOR), 2),
        ("the cluster's", Some(bearer(TOKEN)), 3),
    ]
}

/// Every operation of the document, and what its text says of whose it is.
fn operations(document: &Value) -> Vec<(String, String, u8)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in item.as_object().expect("operations") {
            let text = operation["description"].as_str().unwrap_or_default();
            let role = |role: &&str| text.contains(&format!("the role `{role}`"));
            let needs =
                ["viewer", "operator", "admin"].iter().position(role).map_or(ANYBODY, |at| at as u8 + 1);
            let is_open = operation["security"] == serde_json::json!([{}]);
            assert_eq!(needs == ANYBODY, is_open, "{verb} {path} says whose it is: {text}");
            all.push((verb.to_ascii_uppercase(), path.clone(), needs));
        }
    }
    all
}

#[test]
fn each_credential_opens_what_the_table_says_and_nothing_else() {
    let group = Group::of(1);
    let door = group.admin(0);
    let mut documented = operations(&door.get("/openapi.json").json());
    // The document does not describe where it is itself.
    documented.push(("GET".to_owned(), "/openapi.json".to_owned(), VIEWERS));
    let told = |(verb, path, needs): &(&str, &str, u8)| (verb.to_string(), path.to_string(), *needs);
    let mut table: Vec<_> = ROUTES.iter().map(told).collect();
    documented.sort();
    table.sort();
    assert_eq!(
        documented, table,
        "each route has a row that says whose it is, and its document says the same"
    );
    let secret = group.map(0).tenants[&TenantId(1)].secret;
    let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    for (verb, path, needs) in ROUTES {
        // A name that nothing has: what passes the door changes nothing.
        let path = path.split('/').map(|word| if word.starts_with('{') { "nobody" } else { word });
        let path = path.collect::<Vec<_>>().join("/");
        for (what, shown, may) in credentials(&secret) {
            if path.ends_with("/stream") && may >= needs {
                continue;
            }
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(shown.as_ref().map(|shown| ("authorization", shown.as_str())));
            // No operation takes this body, so what passes the door is refused behind it and changes nothing.
            let body: &[u8] = if verb == "GET" { b"" } else { br#"{"nobody asks for this":1}"# };
            let answer = ask(door.address, verb, &path, &headers, body);
            if needs > may {
                let expected = if may == 0 { (401, "unauthorized") } else { (403, "forbidden") };
                assert_eq!(answer.refusal(), (expected.0, expected.1.to_owned()), "{verb} {path} by {what}");
            } else {
                let is_served = answer.status != 401 && answer.status != 403 && answer.status < 500;
                assert!(is_served, "{verb} {path} by {what}: {answer:?}");
            }
        }
    }
    // What no route is, is nobody's to learn of either.
    for path in ["/v1/nothing", "/v1/members/a/b", "/v2/cluster"] {
        assert_eq!(ask(door.address, "GET", path, &[], b"").status, 404);
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
