//! Whole clusters on real sockets: starts real processes with the real command, kills them, and asks them as a user
//! would. Each cluster has a folder and ports of its own and leaves nothing behind.

#[cfg(doctest)]
#[doc = include_str!("../../docs/integrate/rust.md")]
mod rust_page {}

pub mod collector;
pub mod engine;
pub mod files;

use anyhow::{Context, Result, bail};
use kvhive_client::{Client, ClientConfig, NamespaceClient};
use kvhive_protocol::Layout;
use kvhive_tls::{Tls, TlsFiles};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Longest wait for anything that should happen: a hang guard, not a measure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Options of `kvhive up`: one coordinator, and two nodes whose memory is filled soon.
pub const TWO_SMALL_NODES: [&str; 14] = [
    "--coordinators",
    "1",
    "--nodes",
    "2",
    "--devices",
    "1",
    "--device-memory",
    "64MiB",
    "--host-memory",
    "0",
    "--block-size",
    "4KiB",
    "--strategy",
    "lru",
];

/// One cluster at a time in this process: two cores run it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running cluster of real processes; stopped when dropped.
pub struct Cluster {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    _turn: MutexGuard<'static, ()>,
}

/// Returns the built `kvhive`, which `scripts/test` names in `KVHIVE_BIN`.
pub fn kvhive() -> PathBuf {
    if let Some(path) = std::env::var_os("KVHIVE_BIN") {
        return path.into();
    }
    // Beside this test: target/debug/deps/TEST → target/debug/kvhive.
    let test = std::env::current_exe().expect("a test has a path");
    test.parent().and_then(Path::parent).expect("target/debug").join("kvhive")
}

/// Runs `kvhive` with these words.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn run(words: &[&str]) -> Result<Output> {
    run_with(words, &[])
}

/// Looks again and again until there is something; none after [`PATIENCE`].
pub fn in_patience<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

/// Runs `kvhive` with these words and variables.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn run_with(words: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let binary = kvhive();
    let output = Command::new(&binary).args(words).envs(variables.iter().copied()).output();
    let output = output.with_context(|| {
        format!("cannot run {}; build it with `cargo build -p kvhive-cli`", binary.display())
    })?;
    if !output.status.success() {
        bail!("kvhive {words:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output)
}

impl Cluster {
    /// Starts a cluster with these options of `kvhive up`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(options: &[&str]) -> Cluster {
        Cluster::start_with(options, &[])
    }

    /// Starts a cluster with these options of `kvhive up` and these variables of its processes.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(options: &[&str], variables: &[(&str, &str)]) -> Cluster {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poison| poison.into_inner());
        let folder = tempfile::Builder::new().prefix("kvhive-test-").tempdir().expect("a temporary folder");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let cluster = Cluster { folder, runtime: runtime.expect("threads"), _turn: turn };
        let mut words = vec!["up", "--detach", "--dir", cluster.dir()];
        words.extend(options);
        run_with(&words, variables).expect("the cluster starts");
        cluster
    }

    /// Returns its folder.
    pub fn dir(&self) -> &str {
        self.folder.path().to_str().expect("a temporary folder has a plain name")
    }

    /// Returns what runs, as the supervisor wrote it down.
    pub fn running(&self) -> serde_json::Value {
        let text = std::fs::read(self.folder.path().join("running.json")).expect("the supervisor wrote it");
        serde_json::from_slice(&text).expect("it is JSON")
    }

    /// Returns the cluster's token.
    pub fn token(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("token")).expect("the cluster has one");
        text.trim().to_owned()
    }

    /// Runs `kvhive` on this cluster and returns its JSON.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, words: &[&str]) -> Result<serde_json::Value> {
        let words: Vec<&str> = words.iter().copied().chain(["--dir", self.dir(), "--json"]).collect();
        Ok(serde_json::from_slice(&run(&words)?.stdout)?)
    }

    /// Returns the cluster's status, as soon as a coordinator gives one.
    pub fn status(&self) -> serde_json::Value {
        self.until("a status", || self.json(&["status"]).ok())
    }

    /// Waits until `what` is so and returns what it gave.
    ///
    /// # Panics
    /// When it is not so after [`PATIENCE`].
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        in_patience(look).unwrap_or_else(|| panic!("waited in vain for {what}"))
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`) to one process.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn signal(&self, id: &str, signal: &str) {
        let running = self.running();
        let processes = running["processes"].as_array().expect("a list");
        let process = processes.iter().find(|process| process["id"] == id).expect("a known process");
        let sent = Command::new("kill").args([&format!("-{signal}"), &process["pid"].to_string()]).status();
        assert!(sent.expect("kill is there").success(), "cannot signal {id}");
    }

    /// Starts a process again that was killed. It ends with the returned guard.
    pub fn respawn(&self, id: &str) -> Respawned {
        self.spawn_by("cluster.toml", id)
    }

    /// Starts a process of another cluster file in the cluster's folder. It ends with the returned guard.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn_by(&self, file: &str, id: &str) -> Respawned {
        let config = self.folder.path().join(file);
        let log = std::fs::File::create(self.folder.path().join(format!("logs/{id}-again.log")))
            .expect("room for a log");
        let child = Command::new(kvhive())
            .arg("up")
            .arg("--config")
            .arg(config)
            .args(["--id", id])
            .stderr(log)
            .spawn();
        Respawned(child.expect("kvhive is there"))
    }

    /// Returns how a client reaches it.
    pub fn client_config(&self) -> ClientConfig {
        let running = self.running();
        let addresses = running["coordinators"].as_array().expect("a list").iter();
        let addresses = addresses.map(|address| address.as_str().expect("an address").to_owned()).collect();
        ClientConfig { tls: self.tls(), ..ClientConfig::new(addresses, self.token().into_bytes()) }
    }

    /// Returns a file of the cluster's certificates.
    pub fn tls_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("tls").join(name)
    }

    /// Returns what its clients show, if it has TLS.
    fn tls(&self) -> Option<Tls> {
        let [authorities, certificate, key] =
            ["authority.pem", "client.pem", "client.key"].map(|name| self.tls_file(name));
        let files = TlsFiles { certificate, key, authorities, host: None };
        files.authorities.exists().then(|| Tls::load(files).expect("it was made for it"))
    }

    /// Gets `path` of the admin API or the metrics at `address`, with the cluster's token.
    ///
    /// # Panics
    /// When nobody answers, or not well.
    pub fn get(&self, address: &str, path: &str) -> String {
        let authority = self.tls_file("authority.pem");
        let trusted = if authority.exists() {
            kvhive_tls::authorities(&authority).expect("it was made for it")
        } else {
            Vec::new()
        };
        let scheme = if trusted.is_empty() { "http" } else { "https" };
        let trusted: Vec<_> = trusted.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&trusted))
            .unversioned_rustls_crypto_provider(kvhive_tls::provider());
        let agent = ureq::Agent::config_builder().tls_config(tls.build()).build().new_agent();
        let asked = agent
            .get(format!("{scheme}://{address}{path}"))
            .header("authorization", format!("Bearer {}", self.token()));
        asked.call().expect("it answers").body_mut().read_to_string().expect("text")
    }

    /// Connects a client.
    ///
    /// # Panics
    /// When no coordinator answers.
    pub fn client(&self) -> Client {
        self.wait(Client::connect(self.client_config())).expect("a coordinator answers")
    }

    /// Asks for a size at the admin API, as an operator does, and has nobody bring it about.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn ask_for_size(&self, size: u32) {
        let running = self.running();
        let admin = running["admin_urls"][0].as_str().expect("an address").to_owned();
        let asked = ureq::post(format!("{admin}/v1/scaling"))
            .header("authorization", format!("Bearer {}", self.token()))
            .send_json(serde_json::json!({"size": size}));
        asked.expect("it is taken");
    }

    /// Opens a namespace of blocks of this many bytes.
    pub fn blocks(&self, client: &Client, bytes: u32) -> NamespaceClient {
        client.namespace("default", "test", Layout::opaque(bytes, 16), 0).expect("the default tenant exists")
    }

    /// Runs a future beside the test.
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(
        &self,
        future: F,
    ) -> tokio::task::JoinHandle<F::Output> {
        self.runtime.spawn(future)
    }

    /// Runs a future to its end.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = run(&["down", "--dir", self.dir()]) {
            eprintln!("warning: {error:#}");
        }
        if std::thread::panicking() {
            // The logs say why; the folder goes with this value.
            for log in std::fs::read_dir(self.folder.path().join("logs")).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(15).collect();
                eprintln!("--- {}", log.path().display());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// A process that a test started; killed when dropped.
pub struct Respawned(std::process::Child);

impl Respawned {
    /// Starts `kvhive scale follow` for a cluster, with further words and variables.
    ///
    /// # Panics
    /// When the command is not built.
    pub fn following(cluster: &Cluster, words: &[&str], variables: &[(&str, &str)]) -> Respawned {
        let child = Command::new(kvhive())
            .args(["scale", "follow", "--dir", cluster.dir()])
            .args(words)
            .envs(variables.iter().copied())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        Respawned(child.expect("kvhive is there"))
    }

    /// Ends it in order, as a service manager does, and waits until it has.
    ///
    /// # Panics
    /// When it does not end well.
    pub fn end(mut self) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill is there").success(), "cannot signal {pid}");
        assert!(self.0.wait().expect("it is ours").success(), "it ends well");
    }
}

impl Drop for Respawned {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
