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

/// `[[node]]`; `[node_defaults]` takes the same keys but the first [`NODE_OWN`].
pub(crate) const NODE: &[Key] = &[
    key!("id", Rule::Name, Required, "The process's name, for `kvhive up --id`; unlike any other's."),
    key!("host", Rule::Host, Required, "Address or name by which others reach it."),
    key!(
        "data",
        Rule::Listen,
        Derived("port 7810 at `host`; at `0.0.0.0` if that is a name"),
        "Where it listens for the data plane."
    ),
    key!(
        "metrics",
        Rule::Listen,
        Derived("port 7811 at `host`; at `0.0.0.0` if that is a name"),
        "Where it listens for metrics and health checks."
    ),
    key!(
        "labels",
        Rule::Labels,
        Derived("none"),
        "What the operator says of it, such as `{ zone = \"a\", rack = \"r1\" }`. Replicas of a slot are never in one `zone` while there is another, then `rack`, then `host` (the address where it is not said); other labels only say. A node's labels are put over the defaults'."
    ),
    key!("io_threads", Rule::Whole { min: 1, max: 256 }, Value("2"), "Threads that serve its connections."),
    key!(
        "max_connections",
        Rule::Whole { min: 1, max: 1_000_000 },
        Value("1024"),
        "Connections at once; one more is refused."
    ),
    key!(
        "max_inflight",
        Rule::Size { min: 1 << 20, max: 1 << 40, or_zero: false },
        Value("256MiB"),
        "Payload bytes in flight at once, at least one block of the largest size; more is answered `Busy`."
    ),
    key!(
        "move_rate",
        Rule::Size { min: 1 << 20, max: 1 << 40, or_zero: false },
        Value("256MiB"),
        "Bytes a second, at most, at which the node gives blocks of slots that move to other nodes, and as many at which it takes them."
    ),
    key!(
        "move_slowdown_percent",
        Rule::Whole { min: 100, max: 10_000 },
        Value("150"),
        "What 99 of 100 fetches of the node take may be so many per cent of what they take without moves; beyond that moves slow \
         down, to a 256th of `move_rate` or 1 MiB a second at the least, whichever is more."
    ),
    key!(
        "block_sizes",
        Rule::Classes,
        Value("64KiB"),
        "Size classes of its frames. A tier is parted among them evenly, or by `share` as in \
         `[{ size = \"64KiB\", share = 0.75 }, { size = \"1MiB\", share = 0.25 }]`; shares add up to 1. Each class must get at \
         least one frame of each tier."
    ),
    key!(
        "disk_dir",
        Rule::Path,
        Derived("none; then no device may have a `disk`"),
        "Folder of its disk tier's files: a folder of the node's name in it, and in that one folder a device. A \
         relative path starts at this file's folder."
    ),
    key!(
        "persist_dir",
        Rule::Path,
        Derived("none; then blocks in memory end with the process"),
        "Folder of its snapshot, a folder of the node's name in it: taken in when it begins to serve, written anew when it ends in \
         order. A relative path starts at this file's folder."
    ),
    key!(
        "persist_every",
        Rule::Time { min: 1000, max: 7 * 24 * 3_600_000 },
        Derived("only at the end"),
        "How often the snapshot is also written while the node serves, from when the one before is taken in: a node that is killed \
         loses what came since the last one began."
    ),
    key!(
        "share_memory",
        Rule::Choice(&SHARE_MEMORY),
        Value("clients"),
        "Who of its host, of the same user or root, may map its memory to read blocks where they are: nobody, other nodes, or clients too. \
         Who maps it sees the bytes of all tenants, as whoever has the cluster's token may fetch them."
    ),
    key!(
        "names_memory",
        Rule::Size { min: 64 << 10, max: 1 << 40, or_zero: false },
        Value("32MiB"),
        "Memory for names of values, as the Redis port has them, that the node keeps for the whole cluster: 256 bytes and itself for each. \
         When it is full, those go that were not asked for longest."
    ),
    key!(
        "redis_listen",
        Rule::Listen,
        Derived("none: nothing speaks Redis"),
        "Where it listens for clients of Redis (docs/integrate/redis.md). They need the cluster's token; without `[tls]` it travels as it is."
    ),
    key!(
        "redis_max_connections",
        Rule::Whole { min: 1, max: 1_000_000 },
        Value("1024"),
        "Clients of Redis at once; one more is refused."
    ),
    key!(
        "redis_max_value",
        Rule::Size { min: 1 << 10, max: 256 << 20, or_zero: false },
        Value("16MiB"),
        "The longest value that they may set; none is longer than the largest of `block_sizes` of the node that holds it."
    ),
    key!(
        "redis_max_inflight",
        Rule::Size { min: 1 << 20, max: 1 << 40, or_zero: false },
        Value("64MiB"),
        "Bytes of their requests and of values for them under way at once, at least one value; more waits, and is refused after 5 s."
    ),
    key!(
        "mode",
        Rule::Choice(&MODES),
        Value("inference"),
        "What the cache mostly serves. It chooses `strategy`, `prefetch_blocks`, `hold`, `batch_delay`, `codec`, `priority`, `disk_admission` and \
         `gc_threshold` where those are not given; `kvhive node config` shows what came of it."
    ),
    key!(
        "strategy",
        Rule::Choice(&STRATEGIES),
        Derived("what `mode` says"),
        "What decides which block leaves a full shard (see docs/strategies.md). `compressed` and `quantized` \
         need at least two `block_sizes`: a block shrinks into a smaller one."
    ),
    key!(
        "prefetch_blocks",
        Rule::Whole { min: 0, max: 4096 },
        Derived("what `mode` says"),
        "Blocks that one match may have brought up a tier ahead of their fetch."
    ),
    key!(
        "hold",
        Rule::Time { min: 0, max: 60_000 },
        Derived("what `mode` says"),
        "The longest time for which a match may keep what it found from being evicted."
    ),
    key!(
        "batch_delay",
        Rule::Time { min: 1, max: 1000 },
        Derived("what `mode` says"),
        "How long moves between tiers and the strategy's bookkeeping may wait, to be done together."
    ),
    key!(
        "codec",
        Rule::Choice(&CODECS),
        Derived("what `mode` says"),
        "How clients store blocks that this node is the first to hold, of tenants whose rules ask for no codec (see docs/codecs.md). \
         `fp8`, `int8` and `int4` lose bits. What is stored in fewer bytes takes less room only where `block_sizes` has a size for it."
    ),
    key!(
        "priority",
        Rule::Whole { min: 1, max: 1000 },
        Derived("what `mode` says"),
        "Reads that requests wait for, which may pass one transfer that nobody waits for (a move up or down, a copy for another \
         node, a snapshot's) on a busy disk."
    ),
    key!(
        "disk_admission",
        Rule::Choice(&DISK_ADMISSIONS),
        Derived("what `mode` says"),
        "Which blocks go to disk when they must leave memory: all, or those that were used since they were stored."
    ),
    key!(
        "gc_threshold",
        Rule::Share { min: 100, max: 1000 },
        Derived("what `mode` says, which is 1"),
        "Share of the memory of each block size beyond which some is freed in the background, down to 0.05 less: ended blocks and \
         sessions first, then by moving blocks to disk, and where there is no room by evicting. 1 never does: memory is used \
         to the full, and a store makes its own room (see docs/strategies.md)."
    ),
    key!(
        "device",
        Rule::Tables { most: MAX_DEVICES, header: "node.device" },
        Required,
        "Its devices, each a shard of the cache. A node without any takes those of `node_defaults`."
    ),
];
/// Keys of a node that have no default for all: `id` and `host`.
pub(crate) const NODE_OWN: usize = 2;

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
