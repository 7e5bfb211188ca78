//! The data plane: match, fetch, store, between a client and a node and between nodes.

use crate::block::BlockHeader;
use crate::explain::{ExplainRequest, Explained, Lapse};
use crate::ids::{DeviceId, Epoch, Slot, TenantId};
use crate::key::{BlockKey, KeyList};
use crate::layout::Layout;
use crate::names::{NamesAnswer, NamesRequest};
use crate::pairs::{PairMessage, TransferId};
use crate::recall::{RecallRequest, Recalled};
use crate::share::{CarryRequest, DoneRequest, LookRequest, Looked, ShareAnswer, ShareRequest};
use crate::stage::{LendRequest, StagedFetch, StagedStore};
use crate::strategy::StrategyReport;
use crate::survey::{SurveyRequest, Surveyed};
use crate::trace::{TraceAnswer, TraceRequest};
use crate::watch::{WatchAnswer, WatchRequest};
use serde::{Deserialize, Serialize};

pub use crate::outcomes::{Fetched, Refusal, Stored};

/// The most blocks one fetch or store may name.
pub const MAX_BLOCKS_PER_TRANSFER: usize = 512;
/// The most keys one match may name.
pub const MAX_KEYS_PER_MATCH: usize = 65_536;
/// The most keys one release may name: a device does something for each of them.
pub const MAX_KEYS_PER_RELEASE: usize = 4096;

/// The largest request, in bytes: a match of as many keys as may be, each a segment of its own. Transfers name fewer blocks,
/// with a header each.
pub const MAX_REQUEST_BYTES: usize = 1024 + MAX_KEYS_PER_MATCH * (32 + 8);

/// When a store is answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Ack {
    /// When the primary holds the block.
    #[default]
    Primary,
    /// When more than half of the slot's replicas hold it.
    Quorum,
    /// When all of the slot's replicas hold it.
    All,
}

impl Ack {
    /// Returns how many of `replicas` copies an acknowledged block has.
    pub fn copies(self, replicas: usize) -> usize {
        match self {
            Ack::Primary => replicas.min(1),
            Ack::Quorum => replicas / 2 + usize::from(replicas > 0),
            Ack::All => replicas,
        }
    }
}

/// Part of a segment: this many of the request's keys, in order, live in `slot`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Where the segment's home key puts them.
    pub slot: Slot,
    /// How many keys.
    pub keys: u32,
}

/// A request on the data plane. One request concerns one device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DataRequest {
    /// How far does this device cover these segments? Answered by [`DataReply::Matched`].
    Match(MatchRequest),
    /// Give me these blocks. Answered by [`DataReply::Fetched`] with the hits' bytes as payload, in order.
    Fetch(FetchRequest),
    /// Take these blocks; their bytes are the payload, in order. Answered by [`DataReply::Stored`].
    Store(StoreRequest),
    /// The engine is done with these blocks for now. Answered by [`DataReply::Released`].
    Release(ReleaseRequest),
    /// How do this device's strategies do? Answered by [`DataReply::Strategies`].
    Strategies(StrategiesRequest),
    /// What happens to this device's blocks? Answered by [`DataReply::Watched`].
    Watch(WatchRequest),
    /// What of these segments is here, and where? Nobody uses them by asking. Answered by [`DataReply::Surveyed`].
    Survey(SurveyRequest),
    /// Why are these blocks here, or not? Nobody uses them by asking. Answered by [`DataReply::Explained`].
    Explain(ExplainRequest),
    /// What does this device's node know of traced requests? Answered by [`DataReply::Traced`].
    Trace(TraceRequest),
    /// What does this device's node remember of a request? Answered by [`DataReply::Recalled`]; from
    /// [`Level::CHECKED`](crate::Level::CHECKED) on.
    Recall(RecallRequest),
    /// Which blocks do these names mean, and shall? From [`crate::Level::NAMES`] on. Answered by [`DataReply::Named`].
    Names(NamesRequest),
    /// May I look at your memory? From [`crate::Level::LINKS`] on, as the next three. Answered by [`DataReply::Shared`].
    Share(ShareRequest),
    /// Where are these blocks? Those that the asker cannot see are sent, as for [`DataRequest::Fetch`]. Answered by
    /// [`DataReply::Looked`].
    Look(LookRequest),
    /// The asker has what it looked for. Not answered.
    Done(DoneRequest),
    /// Take these blocks out of the asker's memory. Answered as [`DataRequest::Store`], or by
    /// [`DataReply::Unseen`].
    Carry(Box<CarryRequest>),
    /// Take these blocks, whose bytes come from another GPU by NCCL. From [`crate::Level::LINKS`] on, as the next; between nodes.
    /// Answered by [`DataReply::Stored`], or refused with [`crate::WireError::NotCarried`].
    Receive(ReceiveRequest),
    /// What one GPU says to another about the pair of both. Answered by [`DataReply::Heard`].
    Pair(PairRequest),
    /// May I lend you memory of a GPU's? From [`crate::Level::DAYS`] on, as the next two. Answered by [`DataReply::Shared`].
    Lend(LendRequest),
    /// Take these blocks from a stage. Answered by [`DataReply::Stored`], or refused with [`crate::WireError::NotCarried`].
    Gather(Box<StagedStore>),
    /// Put these blocks on a stage. Answered by [`DataReply::Fetched`] without a payload, where a miss may also be elsewhere than the asker
    /// can have it so, or refused with [`crate::WireError::NotCarried`]: then the stage may be written still.
    Scatter(Box<StagedFetch>),
    /// Give me these blocks, of slots that this member is no replica of: it has them fetched from one, once for all who want them. From
    /// [`crate::Level::DAYS`] on; between clients and nodes. Answered as [`DataRequest::Fetch`], where a miss says nothing of what replicas
    /// have, or refused with [`crate::WireError::NotCarried`] by one that keeps no guests.
    Guest(Box<GuestRequest>),
    /// Give me these blocks, for clients near me: I am no replica of them. Those that are on a GPU may go to a GPU of mine, which I am told of
    /// by [`DataRequest::Receive`]. From [`crate::Level::DAYS`] on; between nodes. Answered as [`DataRequest::Fetch`] or
    /// [`DataRequest::Look`], where what has gone to my GPU is a miss.
    Pull(Box<PullRequest>),
    /// As [`DataRequest::Receive`], of bytes that are packed: what is too little to be sent goes with a part of what is beside it. From
    /// [`crate::Level::PACKED`] on.
    Packed(ReceiveRequest),
}

impl DataRequest {
    /// Returns the epoch of its asker's map.
    pub fn epoch(&self) -> Epoch {
        match self {
            DataRequest::Match(request) => request.epoch,
            DataRequest::Fetch(request) => request.epoch,
            DataRequest::Store(request) => request.epoch,
            DataRequest::Release(request) => request.epoch,
            DataRequest::Strategies(request) => request.epoch,
            DataRequest::Watch(request) => request.epoch,
            DataRequest::Survey(request) => request.epoch,
            DataRequest::Explain(request) => request.epoch,
            DataRequest::Trace(request) => request.epoch,
            DataRequest::Recall(request) => request.epoch,
            DataRequest::Names(request) => request.epoch,
            DataRequest::Share(request) => request.epoch,
            DataRequest::Look(request) => request.fetch.epoch,
            DataRequest::Done(request) => request.epoch,
            DataRequest::Carry(request) => request.store.epoch,
            DataRequest::Receive(request) | DataRequest::Packed(request) => request.store.epoch,
            DataRequest::Pair(request) => request.epoch,
            DataRequest::Lend(request) => request.epoch,
            DataRequest::Gather(request) => request.store.epoch,
            DataRequest::Scatter(request) => request.fetch.epoch,
            DataRequest::Guest(request) => request.fetch.epoch,
            DataRequest::Pull(request) => request.fetch.epoch,
        }
    }

    /// Returns its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            DataRequest::Match(_) => "match",
            DataRequest::Fetch(_)
            | DataRequest::Look(_)
            | DataRequest::Scatter(_)
            | DataRequest::Guest(_)
            | DataRequest::Pull(_) => "fetch",
            DataRequest::Store(request) if request.copy => "copy",
            DataRequest::Store(_) | DataRequest::Gather(_) => "store",
            DataRequest::Release(_) => "release",
            DataRequest::Strategies(_) => "strategies",
            DataRequest::Watch(_) => "watch",
            DataRequest::Survey(_) => "survey",
            DataRequest::Explain(_) => "explain",
            DataRequest::Trace(_) => "trace",
            DataRequest::Recall(_) => "recall",
            DataRequest::Names(_) => "names",
            DataRequest::Share(_) => "share",
            DataRequest::Done(_) => "done",
            DataRequest::Carry(_) | DataRequest::Receive(_) | DataRequest::Packed(_) => "copy",
            DataRequest::Pair(_) => "pair",
            DataRequest::Lend(_) => "lend",
        }
    }
}

/// See [`DataRequest::Match`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MatchRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// How long the covered blocks should be kept from eviction, in milliseconds; the node bounds it. 0: not at all.
    pub hold_ms: u32,
    /// Segments, each a run of `keys`; the runs' counts add up to the number of keys.
    pub runs: Vec<Run>,
    /// The blocks' keys, run after run.
    pub keys: KeyList,
}

/// See [`DataRequest::Fetch`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FetchRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// Where each block lives, as in [`MatchRequest::runs`].
    pub runs: Vec<Run>,
    /// The blocks' keys; at most [`MAX_BLOCKS_PER_TRANSFER`].
    pub keys: KeyList,
    /// What the asker can read.
    pub accept: Accept,
}

/// See [`DataRequest::Guest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestRequest {
    /// The fetch.
    pub fetch: FetchRequest,
    /// How long a block that is being fetched is waited for, in milliseconds; the node bounds it. What has not come then is a miss.
    pub limit_ms: u32,
}

/// See [`DataRequest::Pull`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PullRequest {
    /// The fetch.
    pub fetch: FetchRequest,
    /// The start of the node asked whose memory the asker sees, if it sees any: it is told the places of what lies there.
    pub start: Option<u64>,
    /// Which of the asker's GPUs has room for what is on a GPU, if one has.
    pub to: Option<DeviceId>,
}

/// How the blocks of a fetch may be stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Accept {
    /// As they are: the asker decodes.
    #[default]
    Stored,
    /// Raw alone, of blocks of this layout: the node decodes what is not. One that it cannot decode is a miss.
    Raw(Layout),
}

/// What an engine expects of a request's session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Hint {
    /// Nothing was said.
    #[default]
    None,
    /// The session is over: nobody is expected to extend this prefix.
    Over,
    /// A tool call is pending: the session comes back soon.
    Pending,
    /// The session is expected back after so many seconds.
    Returns(u32),
}

/// What is known about the request that a store is of. It decides nothing but what is worth keeping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// Tokens of its prompt, 0 if not known.
    pub input_tokens: u32,
    /// Tokens of its answer, 0 if not known.
    pub output_tokens: u32,
    /// What the engine expects of its session.
    pub hint: Hint,
}

/// See [`DataRequest::Store`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// When to answer.
    pub ack: Ack,
    /// A copy from the primary to another replica; is not passed on further.
    pub copy: bool,
    /// A copy of what was here before, since its slot moves or a replica was lost: it gives way to everything else.
    pub moved: bool,
    /// What the blocks' bytes mean, if it is known: every block's header has its fingerprint, no block more bytes. A node
    /// re-encodes and decodes only blocks whose layout it has been told.
    pub layout: Option<Layout>,
    /// What is known of the request that the blocks are of.
    pub about: About,
    /// Where each block lives, as in [`MatchRequest::runs`].
    pub runs: Vec<Run>,
    /// The blocks; at most [`MAX_BLOCKS_PER_TRANSFER`]. Their `payload_bytes` add up to the payload.
    pub blocks: Vec<StoreBlock>,
}

/// See [`DataRequest::Receive`] and [`DataRequest::Packed`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReceiveRequest {
    /// The store, without a payload: a copy.
    pub store: StoreRequest,
    /// By what the bytes are known to both GPUs.
    pub transfer: TransferId,
}

/// See [`DataRequest::Pair`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// What is said, and to whom.
    pub message: PairMessage,
}

/// See [`DataRequest::Release`]. It is a hint: it decides nothing but what is worth keeping, and where. A hold that a match has
/// taken stays until it is over, since holds are nobody's: another asker may have matched the same blocks, and be about to fetch
/// them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device told. Each replica is told by the asker itself: hints need no agreement.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// What the engine expects of their session.
    pub hint: Hint,
    /// Where each block lives, as in [`MatchRequest::runs`].
    pub runs: Vec<Run>,
    /// The blocks' keys in the order of their prefix; at most [`MAX_KEYS_PER_RELEASE`].
    pub keys: KeyList,
}

/// See [`DataRequest::Strategies`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StrategiesRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Those that choose among ways to rank shall do so now, by the evidence at hand, instead of in their own time.
    pub adjust: bool,
}

/// One block of a [`StoreRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreBlock {
    /// The header made by the writer.
    pub header: BlockHeader,
    /// The block before it in its prefix, [`BlockKey::NONE`] if none: a shard never loses a block before its child.
    pub parent: BlockKey,
}

/// An answer on the data plane. Errors of the whole request travel as [`crate::frame::Kind::Refused`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DataReply {
    /// For each run: how many of its keys are covered, from its start, without a gap.
    Matched {
        /// The answering member's epoch.
        epoch: Epoch,
        /// Covered keys per run.
        covered: Vec<u32>,
    },
    /// For each key: the block's header (its bytes are in the payload), or why there is none.
    Fetched {
        /// The answering member's epoch.
        epoch: Epoch,
        /// One answer a key.
        blocks: Vec<Fetched>,
    },
    /// For each block: what became of it.
    Stored {
        /// The answering member's epoch.
        epoch: Epoch,
        /// One answer a block.
        blocks: Vec<Stored>,
    },
    /// The hint was taken.
    Released {
        /// The answering member's epoch.
        epoch: Epoch,
        /// How many of the blocks are here.
        blocks: u32,
    },
    /// How each strategy of the device does.
    Strategies {
        /// The answering member's epoch.
        epoch: Epoch,
        /// One report for each tenant with rules of its own and size of frames; at most [`crate::strategy::MAX_REPORTS`].
        reports: Vec<StrategyReport>,
    },
    /// What happened, or what is there.
    Watched {
        /// The answering member's epoch.
        epoch: Epoch,
        /// The answer.
        answer: WatchAnswer,
    },
    /// For each run: what of it is here.
    Surveyed {
        /// The answering member's epoch.
        epoch: Epoch,
        /// One answer a run.
        runs: Vec<Surveyed>,
    },
    /// For each key: what is known of it.
    Explained {
        /// The answering member's epoch.
        epoch: Epoch,
        /// When the node had no lease last, since it started.
        lapse: Option<Lapse>,
        /// One answer a key.
        blocks: Vec<Explained>,
    },
    /// What the node knows of traced requests.
    Traced {
        /// The answering member's epoch.
        epoch: Epoch,
        /// The answer.
        answer: TraceAnswer,
    },
    /// What the node remembers of a request.
    Recalled {
        /// The answering member's epoch.
        epoch: Epoch,
        /// Its parts, oldest first; at most [`MAX_RECALLED`](crate::recall::MAX_RECALLED).
        parts: Vec<Recalled>,
    },
    /// What became of names.
    Named {
        /// The answering member's epoch.
        epoch: Epoch,
        /// The answer.
        answer: NamesAnswer,
    },
    /// Whether the asker may look at the node's memory.
    Shared {
        /// The answering member's epoch.
        epoch: Epoch,
        /// The answer.
        answer: ShareAnswer,
    },
    /// For each key: where its block is, its header alone where its bytes are in the payload, or why there is none.
    Looked {
        /// The answering member's epoch.
        epoch: Epoch,
        /// What [`DataRequest::Done`] calls it; 0 where nothing is held for the asker.
        grant: u64,
        /// One answer a key.
        blocks: Vec<Looked>,
    },
    /// The asker's memory is not seen from here: its blocks are to be sent.
    Unseen {
        /// The answering member's epoch.
        epoch: Epoch,
    },
    /// It was heard; what comes of it is said the same way.
    Heard {
        /// The answering member's epoch.
        epoch: Epoch,
    },
}

impl DataReply {
    /// Returns the answering member's epoch.
    pub fn epoch(&self) -> Epoch {
        match self {
            DataReply::Matched { epoch, .. }
            | DataReply::Fetched { epoch, .. }
            | DataReply::Stored { epoch, .. }
            | DataReply::Released { epoch, .. }
            | DataReply::Strategies { epoch, .. }
            | DataReply::Watched { epoch, .. }
            | DataReply::Surveyed { epoch, .. }
            | DataReply::Explained { epoch, .. }
            | DataReply::Traced { epoch, .. }
            | DataReply::Recalled { epoch, .. }
            | DataReply::Named { epoch, .. }
            | DataReply::Heard { epoch }
            | DataReply::Shared { epoch, .. }
            | DataReply::Looked { epoch, .. }
            | DataReply::Unseen { epoch } => *epoch,
        }
    }
}
