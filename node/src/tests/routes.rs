//! Every route of a node's own admin API with every credential.

use super::persist::{admin, bearer};
use super::{OPERATOR, Setup, TOKEN, VIEWER};
use crate::PersistConfig;
use crate::admin::paths;
use std::collections::BTreeSet;

const VIEWERS: u8 = 1;
const OPERATORS: u8 = 2;
const ADMINS: u8 = 3;

/// Who may do what. A route that has no row here fails the test: whoever makes one decides whose it is.
const ROUTES: [(&str, &str, u8); 6] = [
    ("GET", "/v1/links", VIEWERS),
    ("GET", "/v1/snapshot", VIEWERS),
    ("POST", "/v1/snapshot/load", OPERATORS),
    ("POST", "/v1/snapshot/persist", OPERATORS),
    ("GET", "/v1/snapshots", VIEWERS),
    ("DELETE", "/v1/snapshots/{name}", ADMINS),
];

/// What may be shown in `Authorization`, and how much it gives.
fn credentials(secret: &str) -> Vec<(&'static str, String, u8)> {
    let token = String::from_utf8_lossy(TOKEN);
    let of = |token: &[u8]| String::from_utf8_lossy(token).into_owned();
    vec![
        ("an empty header", String::new(), 0),
        ("a scheme alone", "Bearer".to_owned(), 0),
        ("an empty token", "Bearer ".to_owned(), 0),
        ("another scheme", format!("Basic {token}"), 0),
        ("a token without a scheme", token.to_string(), 0),
        ("a token that nobody has", "Bearer nobody's".to_owned(), 0),
        ("a token cut short", format!("Bearer {}", &token[..token.len() - 1]), 0),
        ("a token and more", format!("Bearer {token}, Bearer {token}"), 0),
        ("a tenant's secret", format!("Bearer {secret}"), 0),
        ("a viewer's", format!("bEARER {}", of(VIEWER)), 1),
        ("an operator's", format!("Bearer {}", of(OPERATOR)), 2),
        ("the cluster's", bearer(), 3),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_of_a_node_opens_to_whom_the_table_says_and_to_no_stranger() {
    let there: BTreeSet<_> = paths().into_iter().collect();
    let table: BTreeSet<_> = ROUTES.iter().map(|(verb, path, _)| (*verb, *path)).collect();
    assert_eq!(there, table, "each route has a row that says whose it is");
    let folder = tempfile::tempdir().expect("a folder");
    let persist = PersistConfig { folder: folder.path().join("snapshot"), every: None };
    let (_coordinator, node) = Setup { persist: Some(persist), ..Setup::default() }.one().await;
    let serving = node.plane.view.serving().expect("it serves");
    let secret = serving.map.tenants.values().next().expect("a tenant").secret;
    let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    for (verb, path, needs) in ROUTES {
        // A name that nothing has, and a body that no route takes: what passes the door changes nothing.
        let path = path.replace("{name}", "nobody");
        let body = if verb == "GET" { "" } else { r#"{"nobody asks for this":1}"# };
        for (what, shown, may) in credentials(&secret) {
            let (status, answer) = admin(&node, verb, &path, &shown, body).await;
            if needs > may {
                let expected = if may == 0 { (401, "unauthorized") } else { (403, "forbidden") };
                assert_eq!(
                    (status, &answer["code"]),
                    (expected.0, &expected.1.into()),
                    "{verb} {path} by {what}"
                );
            } else {
                let is_served = status != 401 && status != 403 && status < 500;
                assert!(is_served, "{verb} {path} by {what}: {status} {answer}");
            }
        }
    }
    // What no route is, a stranger does not learn of.
    for path in ["/v1/nothing", "/v1/snapshots/a/b", "/v2/links"] {
        assert_eq!(admin(&node, "GET", path, "", "").await.0, 401, "{path}");
        assert_eq!(admin(&node, "GET", path, &bearer(), "").await.0, 404, "{path}");
    }
}
