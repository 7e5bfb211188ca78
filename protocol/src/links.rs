//! Ways by which bytes go from one device to another: which there are, what is said between the two ends of an NCCL pair, and
//! what is reported of both.

use crate::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A way from one device to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// Both ends are in one process: frames are copied.
    InProcess,
    /// Both ends are on one host: who reads maps the other's memory.
    SharedMemory,
    /// A communicator of the two GPUs.
    Nccl,
    /// The nodes' data plane.
    Tcp,
}

impl TransportKind {
    /// All of them, in the order in which they are taken while nothing is measured.
    pub const ALL: [TransportKind; 4] =
        [TransportKind::InProcess, TransportKind::SharedMemory, TransportKind::Nccl, TransportKind::Tcp];

    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            TransportKind::InProcess => "in-process",
            TransportKind::SharedMemory => "shared-memory",
            TransportKind::Nccl => "nccl",
            TransportKind::Tcp => "tcp",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How far the communicator of two GPUs is, as one of them sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairState {
    /// There is none.
    #[default]
    Idle,
    /// One was offered to the other end, which has not joined yet.
    Offered,
    /// This end is joining it.
    Joining,
    /// It stands, and nothing goes over it.
    Ready,
    /// Bytes go over it, or are about to.
    Busy,
    /// It is being given up.
    Aborting,
    /// It was given up; none is made for a while.
    Cold,
}

impl PairState {
    /// All of them.
    pub const ALL: [PairState; 7] = [
        PairState::Idle,
        PairState::Offered,
        PairState::Joining,
        PairState::Ready,
        PairState::Busy,
        PairState::Aborting,
        PairState::Cold,
    ];

    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            PairState::Idle => "idle",
            PairState::Offered => "offered",
            PairState::Joining => "joining",
            PairState::Ready => "ready",
            PairState::Busy => "busy",
            PairState::Aborting => "aborting",
            PairState::Cold => "cold",
        }
    }
}

impl fmt::Display for PairState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How one device reaches another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkReport {
    /// The other.
    pub target: DeviceId,
    /// By what the last transfer went.
    pub transport: TransportKind,
    /// Why, in words.
    pub reason: String,
    /// What is known of each way that was taken or has failed.
    pub transports: Vec<TransportReport>,
}

/// How one device gives several others the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetReport {
    /// The others.
    pub targets: Vec<DeviceId>,
    /// Whether the last batch went to all of them at once; else it went to each by its own way.
    pub at_once: bool,
    /// Why, in words.
    pub reason: String,
    /// Batches that all of them got at once.
    pub transfers: u64,
    /// Their bytes, counted once.
    pub bytes: u64,
    /// Batches that failed so.
    pub failures: u64,
    /// What was measured of them, until the last has it.
    pub rates: Vec<RateReport>,
    /// For how long it is not tried, in milliseconds, where it rests after failures.
    pub rests_ms: Option<u64>,
}

/// What is known of one way to another device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TransportReport {
    /// Which.
    pub transport: TransportKind,
    /// Transfers that ended well.
    pub transfers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Transfers that failed.
    pub failures: u64,
    /// What was measured of transfers up to so many bytes, in bytes a second; of the last class of any size.
    pub rates: Vec<RateReport>,
    /// For how long it is not taken yet, in milliseconds, where it rests after failures.
    pub rests_ms: Option<u64>,
}

/// What was measured of transfers of one class of sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RateReport {
    /// Transfers of fewer bytes than this, and of no fewer than the class before; none for the largest.
    pub below_bytes: Option<u64>,
    /// The mean, recent ones more than older ones.
    pub bytes_per_s: u64,
    /// How many were measured.
    pub samples: u64,
    /// How long ago the last was, in milliseconds.
    pub ago_ms: u64,
}
