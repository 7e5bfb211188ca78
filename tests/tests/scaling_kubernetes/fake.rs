//! A Kubernetes API server of the tests' own: one StatefulSet over HTTPS, for whoever has its token, who may do what the role in
//! `cluster-configs/kubernetes` allows. It refuses as the real one does,
//! with a Status document. Its pods are nodes of a local cluster: it leaves the cluster's supervisor a wish and empties nobody.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use axum::serve::Listener;
use kvhive_tests::files::{documents, list, text, word};
use kvhive_tests::run;
use kvhive_tls::{Tls, TlsFiles};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;

const TOKEN: &str = "a-token-of-a-service-account";
const SET: &str = "/apis/apps/v1/namespaces/caches/statefulsets/node";

/// What the server knows and was asked.
pub(crate) struct Known {
    pub(crate) replicas: u32,
    version: u64,
    /// So many changes meet somebody else's first.
    pub(crate) conflicts: u32,
    /// What the caller's role has, as `VERB RESOURCE`.
    pub(crate) role: BTreeSet<String>,
    /// Somebody else's size, set when a change is next asked for.
    pub(crate) rescaled: Option<u32>,
    /// Changes that were asked for and how they ended.
    pub(crate) changes: Vec<String>,
    cluster: PathBuf,
}

/// The server; ends when dropped.
pub(crate) struct Fake {
    known: Arc<Mutex<Known>>,
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    /// Starts one whose StatefulSet `caches/node` has `replicas` pods, from ordinal 1, which are the nodes of this local cluster.
    pub(crate) fn start(cluster: &str, replicas: u32) -> Fake {
        let folder = tempfile::Builder::new().prefix("kvhive-test-").tempdir().expect("a temporary folder");
        let tls_dir = folder.path().join("tls");
        let tls_word = tls_dir.to_str().expect("a plain name");
        run(&["tls", "init", "--dir", tls_word, "--host", "127.0.0.1"]).expect("certificates");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads");
        let _inside = runtime.enter();
        let tls = Tls::load(TlsFiles {
            certificate: tls_dir.join("127.0.0.1.pem"),
            key: tls_dir.join("127.0.0.1.key"),
            authorities: tls_dir.join("authority.pem"),
            host: Some("127.0.0.1".to_owned()),
        });
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let known = Known {
            replicas,
            version: 1,
            conflicts: 0,
            role: role(),
            rescaled: None,
            changes: Vec::new(),
            cluster: PathBuf::from(cluster),
        };
        let known = Arc::new(Mutex::new(known));
        let state = known.clone();
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let state = state.clone();
            async move { lock(&state).answer(&method, &uri, &headers, &body) }
        };
        let door = Door { listener, tls: tls.expect("it was made for it") };
        let routes = axum::Router::new().fallback(answer);
        runtime.spawn(async move { axum::serve(door, routes).await });
        write_kubeconfig(&folder.path().join("kubeconfig"), address, &tls_dir.join("authority.pem"), TOKEN);
        write_kubeconfig(&folder.path().join("stale"), address, &tls_dir.join("authority.pem"), "another");
        Fake { known, folder, _runtime: runtime }
    }

    /// Returns the path of a kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        self.folder.path().join("kubeconfig").display().to_string()
    }

    /// Returns one whose token the server does not know.
    pub(crate) fn stale_kubeconfig(&self) -> String {
        self.folder.path().join("stale").display().to_string()
    }

    /// Looks at what it knows, or changes it.
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Returns the changes that were asked for since this was last asked.
    pub(crate) fn changes(&self) -> Vec<String> {
        std::mem::take(&mut self.known().changes)
    }
}

/// Returns what the role in `cluster-configs/kubernetes` has.
pub(crate) fn role() -> BTreeSet<String> {
    let documents = documents(&text("cluster-configs/kubernetes/components/autoscaler/access.yaml"));
    let role = documents.iter().find(|document| document["kind"] == "Role").expect("a role");
    let of_rule = |rule: &Value| {
        let pairs = list(&rule["resources"]).iter().flat_map(|resource| {
            list(&rule["verbs"]).iter().map(move |verb| format!("{} {}", word(verb), word(resource)))
        });
        pairs.collect::<Vec<String>>()
    };
    list(&role["rules"]).iter().flat_map(of_rule).collect()
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn write_kubeconfig(file: &Path, address: SocketAddr, authority: &Path, token: &str) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://{address}"), "certificate-authority": authority,
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "caches"}}],
    });
    // JSON is YAML.
    std::fs::write(file, config.to_string()).expect("a file");
}

impl Known {
    fn answer(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Response {
        if headers.get("authorization").is_none_or(|value| value != &format!("Bearer {TOKEN}")) {
            return status(401, "Unauthorized", "Unauthorized");
        }
        let (resource, path) = match uri.path().strip_suffix("/scale") {
            Some(path) => ("statefulsets/scale", path),
            None => ("statefulsets", uri.path()),
        };
        let asked = format!("{} {resource}", method.as_str().to_lowercase());
        if !self.role.contains(&asked) {
            return status(403, "Forbidden", "User \"caches:scaler\" cannot do so");
        }
        if path != SET {
            return status(404, "NotFound", &format!("statefulsets.apps {path} not found"));
        }
        match asked.as_str() {
            "get statefulsets" => answered(&self.set()),
            "get statefulsets/scale" => answered(&self.scale(self.replicas)),
            "patch statefulsets/scale" => self.change(uri.query().unwrap_or(""), headers, body),
            _ => status(405, "MethodNotAllowed", "no such operation"),
        }
    }

    fn change(&mut self, query: &str, headers: &HeaderMap, body: &[u8]) -> Response {
        let is_merge =
            headers.get("content-type").is_some_and(|value| value == "application/merge-patch+json");
        let Ok(patch) = serde_json::from_slice::<Value>(body) else {
            return status(400, "BadRequest", "no JSON");
        };
        let Some(wanted) = patch["spec"]["replicas"].as_u64().filter(|_| is_merge) else {
            return status(415, "UnsupportedMediaType", "no merge patch of replicas");
        };
        let is_dry = query.split('&').any(|part| part == "dryRun=All");
        let told = format!("{}{wanted}", if is_dry { "try " } else { "" });
        if let Some(replicas) = self.rescaled.take() {
            (self.replicas, self.version) = (replicas, self.version + 1);
        }
        if self.conflicts > 0 && !is_dry {
            // A pod became ready: the status was written.
            (self.conflicts, self.version) = (self.conflicts - 1, self.version + 1);
        }
        if patch["metadata"]["resourceVersion"] != self.version.to_string() {
            self.changes.push(format!("{told} conflicts"));
            return status(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to the latest version",
            );
        }
        self.changes.push(told);
        let wanted = u32::try_from(wanted).expect("a small number");
        if !is_dry {
            (self.replicas, self.version) = (wanted, self.version + 1);
            self.wish();
        }
        answered(&self.scale(wanted))
    }

    /// Has the pods that are to be, and ends the others, as the set's controller does.
    fn wish(&self) {
        let nodes: Vec<String> = (1..=self.replicas).map(|ordinal| format!("node-{ordinal}")).collect();
        let next = self.cluster.join("wish.json.of-a-test");
        std::fs::write(&next, json!({"nodes": nodes}).to_string()).expect("a file");
        std::fs::rename(&next, self.cluster.join("wish.json")).expect("it is there");
    }

    fn set(&self) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "node", "namespace": "caches", "resourceVersion": self.version.to_string()},
            "spec": {
                "replicas": self.replicas, "ordinals": {"start": 1}, "serviceName": "node",
                "selector": {"matchLabels": {"app": "node"}}, "template": {},
            },
        })
    }

    fn scale(&self, replicas: u32) -> Value {
        json!({
            "apiVersion": "autoscaling/v1", "kind": "Scale",
            "metadata": {"name": "node", "namespace": "caches", "resourceVersion": self.version.to_string()},
            "spec": {"replicas": replicas}, "status": {"replicas": self.replicas},
        })
    }
}

fn answered(value: &Value) -> Response {
    json_response(200, value)
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let document = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    json_response(code, &document)
}

fn json_response(code: u16, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
    response
}

struct Door {
    listener: TcpListener,
    tls: Tls,
}

impl Listener for Door {
    type Io = kvhive_tls::Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (kvhive_tls::Stream, SocketAddr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.tls.accept(stream, kvhive_tls::Callers::Anyone).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
