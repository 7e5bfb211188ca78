//! A cluster as its file describes it. A [`ClusterConfig`] exists only if every check passed, so what reads one checks
//! nothing again. How the text becomes one is told in `build.rs`, the rules between keys in `check.rs`.

use crate::build;
use crate::ledger::Ledger;
use crate::node::NodeConfig;
use crate::problem::ConfigError;
use crate::render;
use crate::scaling::ScalingSettings;
use crate::tls::TlsPaths;
use crate::traces::Traces;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;

/// A checked cluster file. Its parts are read as fields (`config.nodes`) and cannot be changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterConfig {
    parts: ClusterParts,
}

/// What a cluster file says; reached through [`ClusterConfig`], which vouches for it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClusterParts {
    /// `[cluster]`: what all processes share.
    pub cluster: ClusterSettings,
    /// `[raft]`: how the coordinators agree.
    pub raft: RaftSettings,
    /// `[scaling]`: how many nodes there are to be.
    pub scaling: ScalingSettings,
    /// `[tls]`: where certificates are, if every channel is encrypted.
    pub tls: Option<TlsPaths>,
    /// `[traces]`: how requests are traced, if they are.
    pub traces: Option<Traces>,
    /// `[[coordinator]]`: 1 to 15.
    pub coordinators: Vec<CoordinatorConfig>,
    /// `[[node]]`, each with `[node_defaults]` filled in; of an open file the node that joins, if one does.
    pub nodes: Vec<NodeConfig>,
    /// Of an open file, which lists no nodes: what a node is that joins. Its name, host and labels are a stand-in's, unless
    /// one joins.
    pub template: Option<NodeConfig>,
}

/// A node that an open cluster file does not list, as the command that starts it tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Newcomer {
    /// Its name.
    pub id: String,
    /// The address or name that others reach it by.
    pub host: String,
    /// Its labels, put over those of `[node_defaults]`.
    pub labels: BTreeMap<String, String>,
}

/// What all processes of a cluster share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterSettings {
    /// The cluster's name.
    pub name: String,
    /// Copies of each slot.
    pub replicas: u8,
    /// When a store is answered, unless the request says.
    pub ack: Ack,
    /// Consecutive blocks of a prefix that live together.
    pub segment_blocks: u32,
    /// Where the shared token is read from.
    pub token: TokenSource,
    /// The file of the token that gives the role of an operator, if there is one; relative as the token's.
    pub operator_token_file: Option<String>,
    /// The file of the token that gives the role of a viewer.
    pub viewer_token_file: Option<String>,
    /// Whether processes that other machines reach may serve though nothing is encrypted.
    pub may_be_insecure: bool,
    /// How long a heartbeat's answer makes a node a member.
    pub lease: Duration,
    /// How long a heartbeat's answer lets it answer reads; at least `lease`.
    pub serving_lease: Duration,
    /// How often members send heartbeats; under a third of `lease`.
    pub heartbeat: Duration,
    /// How long a node that is gone may come back before others are given what it held.
    pub repair_after: Duration,
    /// Whether slots are moved and copied, without being asked, to spread what devices are asked for.
    pub balance: bool,
    /// The newest level that processes speak; none for all that their build does.
    pub max_level: Option<u16>,
}

/// When a store is answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ack {
    /// When the primary holds the block.
    Primary,
    /// When more than half of the slot's replicas hold it.
    Quorum,
    /// When all of the slot's replicas hold it.
    All,
}

impl Ack {
    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ack::Primary => "primary",
            Ack::Quorum => "quorum",
            Ack::All => "all",
        }
    }
}

/// Where a process reads the token that all processes of the cluster share. Checked with [`crate::Token::parse`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TokenSource {
    /// From this file; a relative path starts at the cluster file's folder.
    File(String),
    /// From `KVHIVE_TOKEN`, which was set when the cluster file was read and wins over the file.
    Environment {
        /// The file that the cluster file names all the same.
        file: Option<String>,
    },
}

impl TokenSource {
    /// Returns the file that the cluster file names, whether or not the environment wins over it.
    pub fn file(&self) -> Option<&str> {
        match self {
            TokenSource::File(file) => Some(file),
            TokenSource::Environment { file } => file.as_deref(),
        }
    }
}

/// How the coordinators agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RaftSettings {
    /// How long a follower waits for its leader before it stands for election.
    pub election_timeout: Duration,
    /// How often the leader says that it is there; at most a third of `election_timeout`.
    pub heartbeat: Duration,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
}

/// One coordinator process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoordinatorConfig {
    /// Its name, unlike any other process's.
    pub id: String,
    /// Its number in raft, from 1.
    pub peer: u64,
    /// The address or name that others reach it by.
    pub host: String,
    /// Where it listens for the admin API.
    pub admin: SocketAddr,
    /// Where it listens for its peers, nodes and clients.
    pub raft: SocketAddr,
    /// Its folder for log and snapshots; a relative path starts at the cluster file's folder.
    pub data_dir: String,
    /// Where it publishes block events, if it does.
    pub block_events: Option<SocketAddr>,
    /// Where it repeats them.
    pub block_events_replay: Option<SocketAddr>,
    /// Under which topic, if not the usual one.
    pub block_events_topic: Option<String>,
}

impl CoordinatorConfig {
    /// Returns the `host:port` by which others reach its admin API.
    pub fn admin_address(&self) -> String {
        reached(&self.host, self.admin.port())
    }

    /// Returns the `host:port` by which peers, nodes and clients reach it.
    pub fn raft_address(&self) -> String {
        reached(&self.host, self.raft.port())
    }
}

/// How long a process may take to end in order.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// How long a node may take that writes its snapshot at its end.
const PERSIST_LIMIT: Duration = Duration::from_secs(600);
/// How long a process is given over that before it is killed.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// One process of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Process<'a> {
    /// A coordinator.
    Coordinator(&'a CoordinatorConfig),
    /// A node.
    Node(&'a NodeConfig),
}

impl<'a> Process<'a> {
    /// Returns the process's name.
    pub fn id(self) -> &'a str {
        match self {
            Process::Coordinator(coordinator) => &coordinator.id,
            Process::Node(node) => &node.id,
        }
    }

    /// Returns the process's kind: `coordinator` or `node`.
    pub fn kind(self) -> &'static str {
        match self {
            Process::Coordinator(_) => "coordinator",
            Process::Node(_) => "node",
        }
    }

    /// Returns the address or name that others reach it by.
    pub fn host(self) -> &'a str {
        match self {
            Process::Coordinator(coordinator) => &coordinator.host,
            Process::Node(node) => &node.host,
        }
    }

    /// Returns how long it may take to end in order: a node that keeps a snapshot writes what its memory holds.
    pub fn stop_limit(self) -> Duration {
        match self {
            Process::Node(node) if node.persist_dir.is_some() => PERSIST_LIMIT,
            _ => STOP_LIMIT,
        }
    }

    /// Returns after how long a process that was told to end is killed by what supervises it: not before it gives up itself.
    pub fn kill_after(self) -> Duration {
        self.stop_limit() + KILL_GRACE
    }

    /// Returns the `host:port` that answers health checks: a coordinator's admin API, a node's metrics.
    pub fn health_address(self) -> String {
        match self {
            Process::Coordinator(coordinator) => coordinator.admin_address(),
            Process::Node(node) => node.metrics_address(),
        }
    }
}

impl ClusterConfig {
    /// Says what is allowed of this cluster and buys nothing.
    pub fn remarks(&self) -> Vec<String> {
        let count = self.coordinators.len();
        let even = (count.is_multiple_of(2)).then(|| {
            let more = if count == 2 { "none" } else { &format!("{}", (count - 1) / 2) };
            format!(
                "{count} coordinators survive the loss of {more}, as {} {}, and decide more slowly: take {} or {}",
                count - 1,
                if count == 2 { "does" } else { "do" },
                count - 1,
                count + 1
            )
        });
        even.into_iter().collect()
    }

    /// Reads a cluster file's text, with the overrides that `env` holds put over it.
    ///
    /// Of `env`, `KVHIVE_TOKEN` and names that begin with `KVHIVE_` and hold `__` matter (see [`crate::reference_markdown`]);
    /// all others are passed over.
    ///
    /// # Errors
    /// Every problem found, each with its line or variable, the value given and what is allowed.
    pub fn from_toml(
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<ClusterConfig, ConfigError> {
        let mut ledger = Ledger::default();
        let parts = build::read(text, env, None, &mut ledger);
        ledger.finish()?;
        Ok(ClusterConfig { parts })
    }

    /// Reads a cluster file that lists no nodes, with `newcomer` as its one node, made of `[node_defaults]`.
    ///
    /// # Errors
    /// As [`ClusterConfig::from_toml`], and when the file lists its nodes.
    pub fn from_toml_joined_by(
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
        newcomer: &Newcomer,
    ) -> Result<ClusterConfig, ConfigError> {
        let mut ledger = Ledger::default();
        let parts = build::read(text, env, Some(newcomer), &mut ledger);
        ledger.finish()?;
        Ok(ClusterConfig { parts })
    }

    /// Says whether the file lists no nodes, so that any may join that knows the token.
    pub fn is_open(&self) -> bool {
        self.parts.template.is_some()
    }

    /// Renders the cluster file of this cluster, every key written out. Reading it gives this cluster again. `None` if the
    /// file is open: where its nodes listen follows from hosts that they bring.
    pub fn to_toml(&self) -> Option<String> {
        (!self.is_open()).then(|| render::toml(&self.parts))
    }

    /// Returns the process named `id`.
    pub fn process(&self, id: &str) -> Option<Process<'_>> {
        self.processes().find(|process| process.id() == id)
    }

    /// Returns every process: coordinators first, each kind in the file's order.
    pub fn processes(&self) -> impl Iterator<Item = Process<'_>> {
        let coordinators = self.parts.coordinators.iter().map(Process::Coordinator);
        coordinators.chain(self.parts.nodes.iter().map(Process::Node))
    }

    /// Returns every process's name, in the order of [`ClusterConfig::processes`].
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.processes().map(Process::id)
    }

    /// Renders what `scripts/launch` reads: lines of fields between tabs. The first is `cluster`, its name, its token file or
    /// `-`, its file of authorities or `-`; then one line a process: its kind, id, host, the `host:port` that answers health checks, and the seconds after
    /// which it may be killed when it was told to end.
    pub fn process_lines(&self) -> String {
        let (token, authorities) =
            (self.cluster.token.file(), self.tls.as_ref().map(|tls| tls.authorities.as_str()));
        let fields = ["cluster", &self.cluster.name, token.unwrap_or("-"), authorities.unwrap_or("-")];
        let mut lines = fields.join("\t") + "\n";
        for process in self.processes() {
            let seconds = process.kill_after().as_secs().to_string();
            let fields = [process.kind(), process.id(), process.host(), &process.health_address(), &seconds];
            lines.push_str(&fields.join("\t"));
            lines.push('\n');
        }
        lines
    }
}

impl Deref for ClusterConfig {
    type Target = ClusterParts;

    fn deref(&self) -> &ClusterParts {
        &self.parts
    }
}

pub(crate) fn reached(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}
