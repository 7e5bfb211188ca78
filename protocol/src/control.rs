//! The control plane: nodes and clients to coordinators, and the commands that coordinators agree on through raft.

use crate::block::Codec;
pub use crate::command::{Command, CommandReply, Proposal};
use crate::emptying::{Displaced, FrameLoad, Given, Losses};
use crate::engines::{EngineLoad, Followed};
use crate::error::WireError;
use crate::events::Reason;
use crate::growing::grows;
use crate::ids::{DeviceId, Epoch, Generation, MemberId, RequestId, Slot, TenantId};
use crate::level::Level;
use crate::load::{GuestLoad, PinnedLoad, SlotGiven, SlotHits, TenantLoad, TierLoad, Traffic, Work};
use crate::map::{ClusterMap, DeviceDescription};
pub use crate::placing::{BalanceReport, Balancing, MoveCause, MoveStage, MovesReport, Placing, SlotMove};
use crate::raft::{RaftReport, RaftRequest};
use crate::routing::{RouteAnswer, RouteRequest};
use crate::scaling::{Reuse, ScalingReport};
use crate::strategy::StrategyReport;
use crate::trace::{TraceAnswer, TraceAsk};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The longest name of a member or tenant, in bytes.
pub const MAX_NAME_BYTES: usize = 63;
/// The most devices of one member.
pub const MAX_DEVICES: usize = 16;
/// The most labels of one member.
pub const MAX_LABELS: usize = 32;
/// The most tenants of one cluster.
pub const MAX_TENANTS: usize = 65_536;
/// The most devices that one device reports as not answering.
pub const MAX_UNREACHED: usize = 64;
/// The most slots that belong elsewhere than their hash says.
pub const MAX_BALANCED: usize = 1024;
/// The most coordinators that a map names.
pub const MAX_COORDINATORS: usize = 32;
/// The most members a cluster's map ever holds.
pub const MAX_MEMBERS: usize = 4096;

/// A request to a coordinator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ControlRequest {
    /// The cluster map, unless the asker has this epoch or a newer one.
    FetchMap {
        /// The asker's epoch; 0 if it has none.
        have: Epoch,
        /// Through the leader and a read index: no older than any change acknowledged before. Otherwise whatever the
        /// asked coordinator has applied.
        linearizable: bool,
    },
    /// A node starts.
    Register(Registration),
    /// A node lives; renews its lease.
    Heartbeat(Heartbeat),
    /// A change of the map, applied once however often it is sent.
    Submit {
        /// Its name for repeats.
        request: RequestId,
        /// The change.
        command: Command,
        /// Why, for the journal of events.
        reason: Reason,
    },
    /// How the coordinator sees itself and its peers.
    Status,
    /// Everything the leader knows, through a read index: what the admin API shows.
    Overview,
    /// Something about the coordinators themselves.
    Raft(RaftRequest),
    /// How evenly is work spread over devices, and what would make that more even? Nothing is changed.
    Balance,
    /// Which engine should take a request? Any coordinator answers.
    Route(Box<RouteRequest>),
    /// An engine says how busy it is, to this coordinator.
    EngineLoad {
        /// The engine's name.
        engine: String,
        /// How busy.
        load: EngineLoad,
    },
    /// What does this coordinator keep of traced requests?
    Trace(TraceAsk),
    /// Which slots are on their way to where they belong?
    Moves,
}

/// Everything the leader knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Overview {
    /// How it sees itself.
    pub status: CoordinatorStatus,
    /// The map, once the cluster has started.
    pub map: Option<ClusterMap>,
    /// What each device reported last, without its slots and tenants.
    pub loads: Vec<(DeviceId, DeviceLoad)>,
    /// What devices reported of tenants, summed up, of those that use most.
    pub tenants: Vec<(TenantId, TenantLoad)>,
    /// Slots that are not where they belong yet, or of which a replica lacks blocks.
    pub unsettled: u64,
    /// The slots that are read most, of which device, and their part of its rate; at most [`MAX_HOTTEST`].
    ///
    /// [`MAX_HOTTEST`]: crate::load::MAX_HOTTEST
    pub hottest: Vec<(Slot, DeviceId, u64)>,
    /// What is made of the cluster's size.
    pub scaling: ScalingReport,
}

/// A node's first word.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Registration {
    /// Its name for repeats.
    pub request: RequestId,
    /// Its name in the cluster file.
    pub name: String,
    /// `host:port` of its data plane.
    pub data_address: String,
    /// `host:port` of its metrics.
    pub metrics_address: String,
    /// Failure domains and whatever else the operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Its devices, by index.
    pub devices: Vec<DeviceDescription>,
    /// How blocks are stored that it is the first to hold, of tenants whose rules ask for nothing.
    pub codec: Codec,
    /// The newest level that it speaks.
    pub speaks: Level,
}

/// What a node says of itself, a few times a second.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub member: MemberId,
    /// Which start of it.
    pub generation: Generation,
    /// The newest map that it serves by.
    pub epoch: Epoch,
    /// What each of its devices holds and does.
    pub devices: Vec<DeviceLoad>,
}

/// One device's report.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct DeviceLoad {
    /// Resident blocks, both tiers.
    pub blocks: u64,
    /// Bytes they take in frames, both tiers.
    pub used_bytes: u64,
    /// Bytes of all frames, both tiers.
    pub capacity_bytes: u64,
    /// Keys asked by match, since this start.
    pub matched_keys: u64,
    /// Keys of those that were covered.
    pub covered_keys: u64,
    /// Blocks given out, since this start.
    pub fetched_blocks: u64,
    /// Blocks taken in, since this start.
    pub stored_blocks: u64,
    /// Blocks evicted, since this start.
    pub evicted_blocks: u64,
    /// Of the tenants that use most of it, at most [`MAX_TENANT_LOADS`].
    ///
    /// [`MAX_TENANT_LOADS`]: crate::load::MAX_TENANT_LOADS
    pub tenants: Vec<(TenantId, TenantLoad)>,
    /// What its strategies have chosen that choose, at most [`MAX_LOAD_REPORTS`]: those of tenants without rules of their own first.
    ///
    /// [`MAX_LOAD_REPORTS`]: crate::strategy::MAX_LOAD_REPORTS
    pub strategies: Vec<StrategyReport>,
    /// Replicas of slots whose primary this device is that have been given all that it holds, by the map of the heartbeat or
    /// a newer one.
    pub filled: Vec<(Slot, DeviceId)>,
    /// Devices that were to be given blocks by this one and do not answer, ascending.
    pub unreached: Vec<DeviceId>,
    /// One bit a slot: whether any block of it is resident or being written. `SLOTS / 8` bytes, or empty for none.
    #[serde(with = "serde_bytes")]
    pub occupied: Vec<u8>,
    /// How much is asked of it.
    pub work: Work,
    /// Its tiers, fastest first: device, host, disk.
    pub tiers: [TierLoad; 3],
    /// What it is read and given.
    pub traffic: Traffic,
    /// How it would have done with other room.
    pub reuse: Reuse,
    /// How long the request for this report waited for the device, as any other does, in microseconds.
    pub queue_us: u64,
    /// What it keeps because of pins.
    #[serde(default)]
    pub pinned: PinnedLoad,
    /// Blocks of the slots that it has; the others are of slots that have gone elsewhere, and age out.
    #[serde(default)]
    pub held_blocks: u64,
    /// Its frames by size, at most [`MAX_FRAME_SIZES`](crate::emptying::MAX_FRAME_SIZES).
    #[serde(default)]
    pub frames: Vec<FrameLoad>,
    /// What it has given away for each member that is being emptied, at most [`MAX_EMPTIED_TOLD`](crate::emptying::MAX_EMPTIED_TOLD).
    #[serde(default)]
    pub given: Vec<(MemberId, Given)>,
    /// What it has let go for each member that is being emptied, as many.
    #[serde(default)]
    pub displaced: Vec<(MemberId, Displaced)>,
    /// What it knows of what each of these cost, as many.
    #[serde(default)]
    pub losses: Vec<(MemberId, Losses)>,
    /// What it has given so far of slots that are on their way from it, ascending, at most [`MAX_SLOTS_TOLD`](crate::load::MAX_SLOTS_TOLD).
    #[serde(default)]
    pub moving: Vec<SlotGiven>,
    /// How much of what is asked of the slots that are read most is there, ascending, at most [`MAX_HOT_SLOTS`](crate::load::MAX_HOT_SLOTS).
    #[serde(default)]
    pub slot_hits: Vec<SlotHits>,
    /// What its node keeps of others' blocks; told of a node's first device.
    #[serde(default)]
    pub guests: GuestLoad,
}
grows!(Registration, DeviceLoad, CoordinatorStatus);

impl DeviceLoad {
    /// Says whether any block of `slot` is resident or being written.
    pub fn occupies(&self, slot: Slot) -> bool {
        let byte = self.occupied.get(usize::from(slot.0 / 8)).copied().unwrap_or(0);
        byte >> (slot.0 % 8) & 1 == 1
    }
}

/// A coordinator's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ControlReply {
    /// The map, or none when the asker's is as new.
    Map(Option<Box<ClusterMap>>),
    /// The node is a member from now on, and this is its generation.
    Registered {
        /// Its id.
        member: MemberId,
        /// Its generation.
        generation: Generation,
        /// The map that has it.
        map: Box<ClusterMap>,
    },
    /// The lease is renewed for `Settings::lease_ms` from when the heartbeat was **sent**.
    Beat {
        /// The newest map, when the member's is older.
        map: Option<Box<ClusterMap>>,
    },
    /// The member is no longer one in this generation: serve nothing, register anew.
    Fenced,
    /// The change was applied.
    Done(CommandReply),
    /// How the coordinator sees itself and its peers.
    Status(CoordinatorStatus),
    /// Everything the leader knows.
    Overview(Box<Overview>),
    /// It was not done.
    Failed(WireError),
    /// How the coordinators' raft group stands.
    Raft(RaftReport),
    /// How evenly work is spread, as the leader sees it.
    Balance(Box<BalanceReport>),
    /// Which engine should take it.
    Routed(RouteAnswer),
    /// An engine, as it is known after what was said of it.
    Engine(Box<Followed>),
    /// What it keeps of traced requests.
    Traced(TraceAnswer),
    /// The slots that are on their way, as the leader sees them.
    Moves(Box<MovesReport>),
    /// The map as a coordinator has it that leads nobody and knows of nobody who does: nothing changes it for now.
    LeaderlessMap(Option<Box<ClusterMap>>),
}

/// How a coordinator sees itself and its peers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct CoordinatorStatus {
    /// Its name in the cluster file.
    pub name: String,
    /// Its peer number.
    pub peer: u64,
    /// `leader`, `follower`, `candidate`, `pre-candidate`; `newborn` while its log is empty and it knows nothing of the others,
    /// `rejoining` while it gets back what it lost.
    pub role: String,
    /// Raft's term.
    pub term: u64,
    /// The leader's name, if known.
    pub leader: Option<String>,
    /// Raft's committed index.
    pub committed: u64,
    /// Raft's applied index.
    pub applied: u64,
    /// The map's epoch.
    pub epoch: Epoch,
    /// The newest level that it speaks.
    pub speaks: Level,
}
