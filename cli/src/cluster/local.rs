//! A whole cluster on this machine: its folder, its processes, and the supervisor that starts and ends them in order.
//!
//! ```text
//! DIR/cluster.toml   the cluster file     DIR/token          its token, mode 600
//! DIR/running.json   what runs, and where DIR/logs/ID.log    one log a process
//! DIR/joined.json    where coordinators are that came later
//! DIR/tls            its authority and certificates, if it has TLS
//! DIR/data/ID        raft logs, disk tiers DIR/supervisor.lock  held while it runs
//! ```

use super::end::{end, signal, stop_limit};
use super::lock::{is_locked, lock};
use super::memory;
use crate::report;
use crate::trust;
use anyhow::{Context, Result, bail};
pub(crate) use begin::{Begin, Begins};
use kvhive_config::{ClusterConfig, LocalCluster, LocalShape};
use ports::PortTaken;
pub(crate) use ports::{PORT_IS_TAKEN, is_port_taken, start};
pub(crate) use resize::wish;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

mod begin;
mod logs;
mod ports;
mod resize;

/// The token's file within the cluster's folder.
pub(crate) const TOKEN_FILE: &str = "token";
/// The cluster file within the cluster's folder.
pub(crate) const CONFIG_FILE: &str = "cluster.toml";
const RUNNING_FILE: &str = "running.json";
/// Admin URLs of coordinators that have come to the cluster since it was started.
const JOINED_FILE: &str = "joined.json";
/// The most of them.
const MAX_JOINED: usize = 32;
/// Set for processes that a supervisor started: they end when it does.
pub(crate) const SUPERVISED: &str = "KVHIVE_SUPERVISED";

/// How long a cluster may take until it serves, beside the time that its memory takes.
const START_LIMIT: Duration = Duration::from_secs(60);
pub(super) const POLL: Duration = Duration::from_millis(50);

/// Returns the folder of the local cluster when none is given.
pub(crate) fn default_dir() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home =
        || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from).join(".local/state");
    state.unwrap_or_else(home).join("kvhive")
}

/// Returns how long the cluster in `dir` may take until it serves.
pub(crate) fn start_limit(dir: &Path) -> Duration {
    let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap_or_default();
    ClusterConfig::from_toml(&text, std::env::vars()).map_or(START_LIMIT, |config| limit_of(&config))
}

fn limit_of(config: &ClusterConfig) -> Duration {
    START_LIMIT + memory::taking(config)
}

/// A running local cluster, as its supervisor wrote it down.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(crate) struct Running {
    /// The supervisor.
    pub(crate) pid: u32,
    /// Whether every coordinator and node has answered.
    pub(crate) ready: bool,
    /// Admin URLs of the coordinators.
    pub(crate) admin_urls: Vec<String>,
    /// `host:port` of the coordinators' control plane.
    pub(crate) coordinators: Vec<String>,
    /// The processes.
    pub(crate) processes: Vec<RunningProcess>,
}

/// One process of a running local cluster.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(crate) struct RunningProcess {
    /// Its id in the cluster file.
    pub(crate) id: String,
    /// `coordinator` or `node`.
    pub(crate) kind: String,
    /// Its process id.
    pub(crate) pid: u32,
}

/// Returns the admin URLs of coordinators that the cluster in `dir` is known to have had since it was started.
pub(crate) fn joined(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join(JOINED_FILE)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Remembers where the coordinators of the cluster in `dir` are by their own word.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn have_joined(dir: &Path, mut urls: Vec<String>) -> Result<()> {
    urls.truncate(MAX_JOINED);
    if urls != joined(dir) {
        let next = dir.join("joined.json.next");
        fs::write(&next, serde_json::to_vec_pretty(&urls)?)?;
        fs::rename(&next, dir.join(JOINED_FILE))?;
    }
    Ok(())
}

impl Running {
    /// Reads what runs in `dir`.
    ///
    /// # Errors
    /// When no cluster runs there.
    pub(crate) fn load(dir: &Path) -> Result<Running> {
        if !is_locked(dir)? {
            bail!(
                "no cluster runs in {}; start one with `kvhive up`, or name one with --admin and --token-file",
                dir.display()
            );
        }
        let file = dir.join(RUNNING_FILE);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let next = dir.join("running.json.next");
        fs::write(&next, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&next, dir.join(RUNNING_FILE))?;
        Ok(())
    }
}

/// Makes the cluster's folder, token and cluster file if they are not there. Says whether it has made them.
///
/// # Errors
/// When the folder cannot be written, or holds a cluster already and `shape` asks for another.
pub(crate) fn prepare(dir: &Path, shape: Option<LocalShape>, fresh: bool) -> Result<bool> {
    if is_locked(dir)? {
        bail!(
            "a cluster already runs in {}; stop it with `kvhive down --dir {}`",
            dir.display(),
            dir.display()
        );
    }
    let file = dir.join(CONFIG_FILE);
    if file.exists() && !fresh {
        if shape.is_some() {
            bail!(
                "{} holds a cluster of its own shape; add --fresh to remake it, or use another --dir",
                dir.display()
            );
        }
        return Ok(false);
    }
    // Refused before anything is removed.
    let shape = shape.unwrap_or_default();
    let has_tls = shape.tls;
    let config = describe(dir, shape)?;
    memory::check(&config)?;
    let text = config.to_toml().expect("a local cluster lists its nodes");
    // Only what a cluster has left here goes: another's folder of that name is not ours to remove.
    if file.exists() {
        let old = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let Ok(old) = ClusterConfig::from_toml(&old, std::iter::empty::<(String, String)>()) else {
            bail!(
                "{} is no cluster file of kvhive's, so nothing here is removed; use another --dir, or remove it yourself",
                file.display()
            );
        };
        if old.tls.is_some() {
            remove(&dir.join(trust::FOLDER), |path| fs::remove_dir_all(path))?;
        }
        for old in [CONFIG_FILE, RUNNING_FILE, TOKEN_FILE] {
            remove(&dir.join(old), |path| fs::remove_file(path))?;
        }
        for old in ["data", "logs"] {
            remove(&dir.join(old), |path| fs::remove_dir_all(path))?;
        }
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join("logs"))
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let mut secret = [0u8; 32];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
    let token: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut secret_file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(dir.join(TOKEN_FILE))?;
    writeln!(secret_file, "{token}")?;
    if has_tls {
        trust::make_local(dir)?;
    }
    fs::write(file, text)?;
    Ok(true)
}

/// Makes the configuration of a cluster of this shape.
fn describe(dir: &Path, shape: LocalShape) -> Result<ClusterConfig> {
    let base_dir = std::path::absolute(dir)?.join("data").display().to_string();
    let ports = ports::pick(shape.coordinators, shape.nodes)?;
    let cluster = LocalCluster { shape, base_dir, ports };
    Ok(cluster.config()?)
}

fn remove(path: &Path, how: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    match how(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A local cluster's processes, owned by the calling process; dropping it kills what still runs.
pub(crate) struct Cluster {
    dir: PathBuf,
    config: ClusterConfig,
    children: Vec<(RunningProcess, Child)>,
    begins: Begins,
    /// Nodes that were added since, and how often each has lost a port.
    added: BTreeMap<String, u32>,
    _lock: File,
}

impl Cluster {
    /// Starts every process of the prepared cluster in `dir` and waits until all of them serve.
    ///
    /// # Errors
    /// When a process ends or does not serve in time; the others are stopped then.
    pub(crate) fn start(dir: &Path, waiting: impl FnMut(&str)) -> Result<Cluster> {
        Cluster::start_as(dir, Begins::new(), waiting)
    }

    /// The same, where some of its processes are begun in another way.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub(crate) fn start_as(dir: &Path, begins: Begins, mut waiting: impl FnMut(&str)) -> Result<Cluster> {
        let dir = dir.canonicalize().with_context(|| format!("no cluster in {}", dir.display()))?;
        let lock = lock(&dir)?.with_context(|| format!("a cluster already runs in {}", dir.display()))?;
        // What a killed supervisor has left says nothing of this one.
        remove(&dir.join(RUNNING_FILE), |path| fs::remove_file(path))?;
        fs::create_dir_all(dir.join("logs"))
            .with_context(|| format!("cannot make {}", dir.join("logs").display()))?;
        let text = fs::read_to_string(dir.join(CONFIG_FILE)).context("cannot read the cluster file")?;
        let config = ClusterConfig::from_toml(&text, std::env::vars())?;
        memory::check(&config)?;
        let (children, added) = (Vec::new(), BTreeMap::new());
        let mut cluster = Cluster { dir, config, children, begins, added, _lock: lock };
        let ids: Vec<(String, &str)> = cluster
            .config
            .coordinators
            .iter()
            .map(|one| (one.id.clone(), "coordinator"))
            .chain(cluster.config.nodes.iter().map(|one| (one.id.clone(), "node")))
            .collect();
        for (id, kind) in ids {
            let child = cluster.spawn(&id)?;
            cluster.children.push((RunningProcess { id, kind: kind.to_owned(), pid: child.id() }, child));
        }
        cluster.running(false).save(&cluster.dir)?;
        cluster.wait_until_ready(&mut waiting)?;
        cluster.running(true).save(&cluster.dir)?;
        Ok(cluster)
    }

    fn spawn(&self, id: &str) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file(id))?;
        self.begin(id)
            .command(&std::env::current_exe()?)
            .args(["up", "--config"])
            .arg(self.dir.join(CONFIG_FILE))
            .args(["--id", id])
            .env(SUPERVISED, "1")
            .env_remove("KVHIVE_DIR")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches the supervisor alone; it stops them in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {id}"))
    }

    /// Kills a process at once, as a crash would. Returns how it had ended before, if it had.
    ///
    /// # Errors
    /// When there is no process of this id.
    pub(crate) fn kill(&mut self, id: &str) -> Result<Option<ExitStatus>> {
        let (_, mut child) = self.take(id)?;
        let ended = child.try_wait()?;
        child.kill()?;
        let status = child.wait()?;
        // Between the two it may have ended, too.
        Ok(ended
            .or_else(|| (status.signal() != Some(rustix::process::Signal::KILL.as_raw())).then_some(status)))
    }

    /// Starts a process again that was killed or has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn respawn(&mut self, id: &str) -> Result<()> {
        let kind =
            if self.config.coordinators.iter().any(|one| one.id == id) { "coordinator" } else { "node" };
        let child = self.spawn(id)?;
        let process = RunningProcess { id: id.to_owned(), kind: kind.to_owned(), pid: child.id() };
        self.children.push((process, child));
        Ok(())
    }

    /// Returns what runs, as it is written down.
    pub(crate) fn running(&self, ready: bool) -> Running {
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        Running {
            pid: std::process::id(),
            ready,
            admin_urls: self
                .config
                .coordinators
                .iter()
                .map(|one| format!("{scheme}://{}", one.admin))
                .collect(),
            coordinators: self.config.coordinators.iter().map(|one| one.raft.to_string()).collect(),
            processes: self.children.iter().map(|(process, _)| process.clone()).collect(),
        }
    }

    /// Returns the cluster file's content.
    pub(crate) fn config(&self) -> &ClusterConfig {
        &self.config
    }

    fn wait_until_ready(&mut self, waiting: &mut impl FnMut(&str)) -> Result<()> {
        let target = crate::admin::Target {
            admin: Some(self.running(false).admin_urls.join(",")),
            token_file: Some(self.dir.join(TOKEN_FILE)),
            ca: self.config.tls.as_ref().map(|tls| self.dir.join(&tls.authorities)),
            dir: self.dir.clone(),
        };
        let admin = target.resolve()?;
        let (begun, limit) = (Instant::now(), limit_of(&self.config));
        loop {
            if let Some((id, status)) = self.dead()? {
                let said = format!(
                    "{id} ended while starting ({status}); its log ends with:\n{}",
                    self.log_tail(&id)
                );
                return match status.code() == Some(PORT_IS_TAKEN.into()) {
                    true => Err(PortTaken(said).into()),
                    false => Err(anyhow::Error::msg(said)),
                };
            }
            let answer = admin.get::<serde_json::Value>("/v1/cluster");
            let state = match &answer {
                Ok(status) => self.state(status),
                Err(error) => Err(format!("no coordinator answers: {error:#}")),
            };
            match state {
                // Once more: what ended since would be taken for what serves.
                Ok(()) if self.dead_now()?.is_none() => return Ok(()),
                Ok(()) => continue,
                Err(lacking) if begun.elapsed() > limit => {
                    bail!(
                        "the cluster does not serve after {limit:?}: {lacking}; see {}",
                        self.dir.join("logs").display()
                    );
                }
                Err(lacking) => waiting(&lacking),
            }
            std::thread::sleep(POLL);
        }
    }

    /// Says what a status lacks until the whole cluster serves.
    fn state(&self, status: &serde_json::Value) -> Result<(), String> {
        let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
        let nodes = self.config.nodes.len();
        let up = list("nodes").iter().filter(|node| node["state"].as_str() == Some("up")).count();
        // A registration may be of an earlier start; a report is of this one, as no leader inherits any.
        let devices = list("devices");
        let silent = devices.iter().filter(|device| device["blocks"].is_null()).count();
        let is_empty = devices.iter().all(|device| device["blocks"].as_u64() == Some(0));
        let slots = &status["slots"];
        let (unavailable, moving) = (&slots["unavailable"], &slots["moving"]);
        if up < nodes || silent > 0 {
            return Err(format!(
                "{up} of {} serve, {} silent",
                report::counted(nodes as u64, "node"),
                report::counted_are(silent as u64, "device")
            ));
        }
        // Slots settle at once where there is nothing; others are served while they move.
        if unavailable.as_u64() != Some(0) || is_empty && moving.as_u64() != Some(0) {
            return Err(format!("{unavailable} slots are unavailable, {moving} are moving"));
        }
        Ok(())
    }

    fn dead_now(&mut self) -> Result<Option<usize>> {
        for (at, (_, child)) in self.children.iter_mut().enumerate() {
            if child.try_wait()?.is_some() {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Returns a process that has ended by itself, if one has, and forgets it.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn dead(&mut self) -> Result<Option<(String, ExitStatus)>> {
        let Some(at) = self.dead_now()? else { return Ok(None) };
        let (process, mut child) = self.children.remove(at);
        Ok(Some((process.id, child.wait()?)))
    }

    /// Ends the nodes, then the coordinators, each with time to finish; kills what does not.
    pub(crate) fn stop(mut self) {
        for kind in ["node", "coordinator"] {
            let (now, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.children).into_iter().partition(|(process, _)| process.kind == kind);
            self.children = later;
            end(now, &self.config);
        }
        remove(&self.dir.join(RUNNING_FILE), |path| fs::remove_file(path))
            .unwrap_or_else(|error| eprintln!("warning: {error:#}"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(std::mem::take(&mut self.children), &self.config);
    }
}

/// Stops the local cluster in `dir` and waits until its supervisor has ended. Says whether one ran.
///
/// # Errors
/// When it does not end.
pub(crate) fn down(dir: &Path) -> Result<bool> {
    if !is_locked(dir)? {
        return Ok(false);
    }
    let running = Running::load(dir)?;
    signal(running.pid, rustix::process::Signal::TERM);
    let begun = Instant::now();
    let limit = stop_limit(dir);
    while is_locked(dir)? {
        if begun.elapsed() > limit {
            bail!("the supervisor (process {}) does not end", running.pid);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// Names the processes of the cluster file in `dir` whose ports somebody still holds: started by hand, they are not the
/// supervisor's to stop.
pub(crate) fn strays(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap_or_default();
    let Ok(config) = ClusterConfig::from_toml(&text, std::env::vars()) else { return Vec::new() };
    let coordinators = config.coordinators.iter().map(|one| (one.id.clone(), one.raft.to_string()));
    let nodes = config.nodes.iter().map(|one| (one.id.clone(), one.data.to_string()));
    let is_held = |address: &str| {
        TcpListener::bind(address).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    coordinators
        .chain(nodes)
        .filter(|(_, address)| is_held(address))
        .map(|(id, address)| format!("{id} ({address})"))
        .collect()
}
