//! The keys of a node.

use super::Absent::{Derived, Required, Value};
use super::*;

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
        "disk_encryption",
        Rule::Choice(&DISK_ENCRYPTION),
        Value("on"),
        "Whether blocks of the disk tier and of the snapshot are encrypted, each tenant's by a key of its own, which is destroyed when the \
         tenant is deleted or cleared (docs/disk.md). `off` writes them as they are. A tier that was of the other kind begins anew."
    ),
    key!(
        "disk_key_file",
        Rule::Path,
        Derived(
            "`master-key` in the node's folder in `disk_dir`, or beside its snapshot: whoever takes that disk has the key too"
        ),
        "File of the key that the tenants' keys are encrypted by, 64 hexadecimal digits. Made where it is not there, in a folder that has \
         something in it: an empty one may be the place of a mount that is late. A relative path starts at this file's folder."
    ),
    key!(
        "persist_dir",
        Rule::Path,
        Derived("none; then blocks in memory end with the process"),
        "Folder of its snapshot, a folder of the node's name in it: taken in when it begins to serve, written anew when it ends in \
         order. Without a `disk_dir` its keys are beside it, in one of that name and `.keys`. A relative path starts at this file's folder."
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
        "gpu_stages",
        Rule::Choice(&GPU_STAGES),
        Value("auto"),
        "Whether clients of its host, of the same user or root, may lend its GPUs memory of a GPU's, over which blocks come and go without \
         passing the host's memory (docs/gpu.md): `off` has them go over a socket."
    ),
    key!(
        "names_memory",
        Rule::Size { min: 64 << 10, max: 1 << 40, or_zero: false },
        Value("32MiB"),
        "Memory for names of values, as the Redis port has them, that the node keeps for the whole cluster: 256 bytes and itself for each. \
         When it is full, those go that were not asked for longest."
    ),
    key!(
        "guest_memory",
        Rule::Size { min: 1 << 20, max: 1 << 40, or_zero: true },
        Value("64MiB"),
        "Memory for blocks of slots that the node is no replica of, which it fetches from one for clients that name it as near, once for all \
         of them. It is taken as they come. 0 keeps none: then such clients ask replicas themselves."
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
        "nccl",
        Rule::Choice(&NCCL),
        Value("auto"),
        "Whether blocks go from its GPUs to those of other nodes by NCCL, where both have it (docs/gpu.md). NCCL encrypts nothing: with a `[tls]` table \
         `auto` has them go over TCP, as `off` has them always, and `unencrypted` has them go by NCCL all the same."
    ),
    key!(
        "nccl_after",
        Rule::Size { min: 1, max: 1 << 50, or_zero: false },
        Value("64MiB"),
        "Bytes that go to another GPU within a minute before a pair of both is made."
    ),
    key!(
        "nccl_max_pairs",
        Rule::Whole { min: 1, max: 64 },
        Value("16"),
        "Pairs of one GPU at once; for one more, that is closed which was used longest ago."
    ),
    key!(
        "nccl_max_ctas",
        Rule::Whole { min: 1, max: 64 },
        Value("2"),
        "Thread blocks of the GPU that one transfer runs on at most."
    ),
    key!(
        "nccl_buffer",
        Rule::Size { min: 64 << 10, max: 64 << 20, or_zero: false },
        Value("1MiB"),
        "Bytes of each of NCCL's buffers, of which a pair has some for each thread block and direction; where they lie, NCCL says."
    ),
    key!(
        "nccl_guest_memory",
        Rule::Size { min: 64 << 10, max: 1 << 40, or_zero: true },
        Value("32MiB"),
        "Memory of each GPU, besides its tier, that blocks of slots which the node is no replica of pass on their way from another GPU to \
         `guest_memory`. It is taken in frames of the largest of `block_sizes`. 0 has these blocks come over TCP or shared memory."
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
