//! The one table of every key: what it takes, its default and what it does. Reading, messages, overrides and the
//! reference all follow it, so that none of them can disagree.

pub(crate) use crate::rule::Rule;

/// The variable that holds the token, if no file does.
pub const TOKEN_VARIABLE: &str = "KVHIVE_TOKEN";

/// One key.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    pub(crate) absent: Absent,
    pub(crate) meaning: &'static str,
}

impl Key {
    /// Says whether a variable can give this key.
    pub(crate) fn is_overridable(&self) -> bool {
        self.name != "id"
            && !matches!(self.rule, Rule::Labels | Rule::Words { .. } | Rule::Table | Rule::Tables { .. })
    }
}

/// What holds if a key is not given.
pub(crate) enum Absent {
    /// It must be given.
    Required,
    /// This.
    Value(&'static str),
    /// What this says.
    Derived(&'static str),
}

/// The smallest and largest frame.
pub(crate) const BLOCK_BYTES: (u64, u64) = (4 << 10, 64 << 20);
/// Frames are cut at multiples of this.
pub(crate) const BLOCK_ALIGN: u64 = 64;
/// The most size classes of a node.
pub(crate) const MAX_CLASSES: usize = 8;
/// The most labels of a node, and bytes of a label's key or value.
pub(crate) const MAX_LABELS: usize = 32;
pub(crate) const MAX_LABEL_BYTES: usize = 63;
/// The longest name.
pub(crate) const MAX_NAME_BYTES: usize = 63;
/// The longest host name and path.
pub(crate) const MAX_HOST_BYTES: usize = 253;
pub(crate) const MAX_PATH_BYTES: usize = 1024;
/// The longest topic.
pub(crate) const MAX_TOPIC_BYTES: usize = 255;
/// Whether clients may lend stages to GPUs.
pub(crate) const GPU_STAGES: [&str; 2] = ["auto", "off"];
/// Whether the disk tier is encrypted.
pub(crate) const DISK_ENCRYPTION: [&str; 2] = ["on", "off"];
/// Whether blocks go by NCCL.
pub(crate) const NCCL: [&str; 3] = ["auto", "off", "unencrypted"];
/// Names of the modes.
pub(crate) const MODES: [&str; 5] = ["training", "inference", "bulk", "streaming", "interactive"];
/// Names of the ways to store blocks.
pub(crate) const CODECS: [&str; 5] = ["raw", "lossless", "fp8", "int8", "int4"];
/// Names of those who may look at a node's memory.
pub(crate) const SHARE_MEMORY: [&str; 3] = ["off", "nodes", "clients"];
/// Names of what decides which blocks go to disk.
pub(crate) const DISK_ADMISSIONS: [&str; 2] = ["all", "used"];
/// Names of the strategies.
pub const STRATEGIES: [&str; 12] = [
    "adaptive",
    "lru",
    "lfu",
    "paged",
    "compressed",
    "quantized",
    "s3-fifo",
    "arc",
    "lirs",
    "lru-2",
    "w-tinylfu",
    "sieve",
];
/// Names of those that shrink blocks before any leaves: into the frames of a smaller size.
pub const SHRINKING_STRATEGIES: [&str; 2] = ["compressed", "quantized"];
/// The most devices of a node, and nodes of a cluster.
pub(crate) const MAX_DEVICES: usize = 16;
pub(crate) const MAX_NODES: usize = 1024;
/// The most coordinators: all of them can be replaced at once, and a group has 32 with those that come and those that go.
pub(crate) const MAX_COORDINATORS: usize = 15;
/// The largest tier. All tiers of a node together fit a u64 by far.
pub(crate) const MAX_TIER_BYTES: u64 = 64 << 40;
const _: () = assert!(MAX_TIER_BYTES as u128 * 3 * (MAX_DEVICES * MAX_NODES) as u128 <= u64::MAX as u128);

macro_rules! key {
    ($name:literal, $rule:expr, $absent:expr, $meaning:literal) => {
        Key { name: $name, rule: $rule, absent: $absent, meaning: $meaning }
    };
}

use Absent::{Derived, Required, Value};

mod node;
pub(crate) use node::{NODE, NODE_OWN};

/// `[cluster]`.
pub(crate) const CLUSTER: &[Key] = &[
    key!("name", Rule::Name, Required, "The cluster's name, in logs and on the dashboard."),
    key!(
        "replicas",
        Rule::Whole { min: 1, max: 8 },
        Value("1"),
        "Copies of each slot; at most the number of nodes."
    ),
    key!(
        "ack",
        Rule::Choice(&["primary", "quorum", "all"]),
        Value("primary"),
        "When a store is answered, unless the request says: when the primary, more than half or all of the slot's replicas hold \
         the block."
    ),
    key!(
        "segment_blocks",
        Rule::Whole { min: 1, max: 1024 },
        Value("16"),
        "Consecutive blocks of a prefix that live together, so that a request touches few nodes."
    ),
    key!(
        "token_file",
        Rule::Path,
        Derived("none; then `KVHIVE_TOKEN` must be set"),
        "File with the token that all processes share, 16 to 1024 bytes after trimming. A relative path starts at this file's \
         folder. `KVHIVE_TOKEN` wins over it."
    ),
    key!(
        "operator_token_file",
        Rule::Path,
        Derived("none: nobody is an operator only"),
        "File with the token that may look and do at the admin API what loses nothing, such as drain, balance and scale. The cluster's \
         own token may do everything."
    ),
    key!(
        "viewer_token_file",
        Rule::Path,
        Derived("none: nobody is a viewer only"),
        "File with the token that may look at the admin API, and no more: for dashboards and scrapes."
    ),
    key!(
        "insecure",
        Rule::Choice(&["refused", "allowed"]),
        Value("refused"),
        "Whether processes that other machines reach may serve without `[tls]`. Tokens, and blocks that can be turned back into prompts, \
         travel in the clear then: only for a network on which everyone may read them."
    ),
    key!(
        "lease",
        Rule::Time { min: 200, max: 60_000 },
        Value("2s"),
        "How long a heartbeat's answer makes a node a member. A dead node's slots are taken over after this."
    ),
    key!(
        "serving_lease",
        Rule::Time { min: 200, max: 24 * 3_600_000 },
        Value("30m"),
        "How long a node answers reads, and takes blocks that count as one copy, after the last heartbeat that a coordinator \
         answered: for as long losing the coordinators costs no hits. A clear waits as long for a node that is silent, unless its \
         process is started anew or it is removed. At least `lease`; the same lets nodes stop with it."
    ),
    key!(
        "heartbeat",
        Rule::Time { min: 10, max: 20_000 },
        Value("200ms"),
        "How often a node sends heartbeats; less than a third of `lease`, so that two can be lost."
    ),
    key!(
        "repair_after",
        Rule::Time { min: 0, max: 24 * 3_600_000 },
        Value("30s"),
        "How long a node that is gone may come back before other nodes are given the blocks that it had copies of."
    ),
    key!(
        "balance",
        Rule::Choice(&["off", "continuous"]),
        Value("off"),
        "Whether slots that are read much get more replicas, and devices that carry more than others give slots away, without being \
         asked. `kvhive balance` does it once."
    ),
    key!(
        "max_level",
        Rule::Whole { min: 1, max: 65_535 },
        Derived("the newest that the build speaks"),
        "The newest level that processes speak. A cluster rises to a level once all its members speak it and never goes back: set this to \
         the present one before an upgrade that you may want to undo, and take it away when you do not."
    ),
];

/// `[raft]`.
pub(crate) const RAFT: &[Key] = &[
    key!(
        "election_timeout",
        Rule::Time { min: 100, max: 60_000 },
        Value("400ms"),
        "How long a coordinator waits for its leader before it stands for election."
    ),
    key!(
        "heartbeat",
        Rule::Time { min: 10, max: 20_000 },
        Value("60ms"),
        "How often the leader says that it is there; at most a third of `election_timeout`."
    ),
    key!(
        "snapshot_every",
        Rule::Whole { min: 10, max: 10_000_000 },
        Value("10000"),
        "Log entries between two snapshots; fewer mean a shorter log and a quicker start."
    ),
];

/// `[[coordinator]]`.
pub(crate) const COORDINATOR: &[Key] = &[
    key!("id", Rule::Name, Required, "The process's name, for `kvhive up --id`; unlike any other's."),
    key!(
        "peer",
        Rule::Whole { min: 1, max: 65_535 },
        Derived("its position in the file, from 1"),
        "Its number in raft. Give it explicitly before you ever reorder the file, or one has taken another's place: the log knows \
         each by its number, and a number belongs to one `data_dir` as long as that one is a coordinator."
    ),
    key!("host", Rule::Host, Required, "Address or name by which others reach it."),
    key!(
        "admin",
        Rule::Listen,
        Derived("port 7800 at `host`; at `0.0.0.0` if that is a name"),
        "Where it listens for the admin API and the dashboard."
    ),
    key!(
        "raft",
        Rule::Listen,
        Derived("port 7801 at `host`; at `0.0.0.0` if that is a name"),
        "Where it listens for its peers, nodes and clients."
    ),
    key!(
        "data_dir",
        Rule::Path,
        Required,
        "Folder of its log and snapshots, its own alone. A relative path starts at this file's folder."
    ),
    key!(
        "block_events",
        Rule::Listen,
        Derived("none: they are not published"),
        "Where it publishes block events in vLLM's wire format (ZeroMQ PUB, docs/integrate/block-events.md). Whoever reaches it may read."
    ),
    key!(
        "block_events_replay",
        Rule::Listen,
        Derived("none: what a reader has missed is not repeated"),
        "Where it repeats them (ROUTER)."
    ),
    key!(
        "block_events_topic",
        Rule::Topic,
        Derived("`kv@`, its id, `@` and the cluster's name"),
        "Under which topic; llm-d reads `kv@<pod>@<model>`."
    ),
];

/// `[[node.device]]`.
pub(crate) const DEVICE: &[Key] = &[
    key!(
        "kind",
        Rule::Choice(&["host", "cuda", "auto"]),
        Value("host"),
        "What holds the device tier: host memory, an NVIDIA GPU's memory (\"cuda\": without that GPU the node does not start), or the \
         GPU's where it is there and else the host's (\"auto\"). A GPU's memory is taken at the start, beside what engines take of it."
    ),
    key!(
        "gpu",
        Rule::Whole { min: 0, max: 63 },
        Value("0"),
        "Which GPU, as `kvhive doctor` numbers them: those that the process sees, from 0. Nothing where `kind` is \"host\"."
    ),
    key!(
        "memory",
        Rule::Size { min: 4 << 10, max: MAX_TIER_BYTES, or_zero: false },
        Value("128MiB"),
        "Bytes of the device tier, taken once at the start."
    ),
    key!(
        "host_memory",
        Rule::Size { min: 4 << 10, max: MAX_TIER_BYTES, or_zero: true },
        Value("64MiB"),
        "Bytes of the host tier over it; \"0\" means none."
    ),
    key!(
        "disk",
        Rule::Size { min: 4 << 10, max: MAX_TIER_BYTES, or_zero: true },
        Value("0"),
        "Bytes of the disk tier under it, in files in the node's `disk_dir`; \"0\" means none. Each block takes a page of \
         4 KiB more than its frame."
    ),
];

/// The file itself.
pub(crate) const ROOT: &[Key] = &[
    key!("cluster", Rule::Table, Required, "What all processes share."),
    key!("raft", Rule::Table, Derived("defaults"), "How the coordinators agree."),
    key!(
        "scaling",
        Rule::Table,
        Derived("defaults: off"),
        "How many nodes there are to be, and who starts and ends them."
    ),
    key!("tls", Rule::Table, Derived("none: nothing is encrypted"), "Certificates."),
    key!("traces", Rule::Table, Derived("none: nothing is traced"), "Traces of requests."),
    key!(
        "coordinator",
        Rule::Tables { most: MAX_COORDINATORS, header: "coordinator" },
        Required,
        "The coordinator processes. An even number survives no more losses than one less."
    ),
    key!("node_defaults", Rule::Table, Derived("none"), "What nodes take that do not say it."),
    key!(
        "node",
        Rule::Tables { most: MAX_NODES, header: "node" },
        Required,
        "The node processes. None with a device in `node_defaults`: any node may join then."
    ),
];

/// Returns the keys of `[node_defaults]`.
pub(crate) fn node_defaults() -> &'static [Key] {
    &NODE[NODE_OWN..]
}
