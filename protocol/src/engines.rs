//! The serving engines that the coordinators follow: what each is, how busy it says it is, and how well its cache is known.

use crate::error::WireError;
use crate::ids::TenantId;
use crate::layout::Layout;
use serde::{Deserialize, Serialize};

/// The most engines that a cluster follows.
pub const MAX_ENGINES: usize = 256;
/// The longest name of a model, an adapter, a salt or a topic, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;
/// The most tokens of one block of an engine.
pub const MAX_BLOCK_TOKENS: u32 = 65_536;
/// The most requests that an engine says it decodes, or that wait.
pub const MAX_REQUESTS: u32 = 1_000_000;

/// One serving process, as every coordinator knows it. One that runs data-parallel is as many: each rank publishes its own events.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Engine {
    /// Its name.
    pub name: String,
    /// What it serves, as the serving side calls it.
    pub model: String,
    /// Whose blocks it stores in kvhive.
    pub tenant: TenantId,
    /// Tokens of one of its own blocks.
    pub block_tokens: u32,
    /// `host:port` where it publishes its events (ZeroMQ, PUB).
    pub events: String,
    /// `host:port` where it repeats events (ZeroMQ, ROUTER), if it does.
    pub replay: Option<String>,
    /// The beginning of the topics that are its own; empty for all.
    pub topic: String,
    /// The kvhive node on its host: what is in that one's memory is nearest.
    pub node: Option<String>,
    /// How its blocks are named in kvhive, if they are stored there.
    pub blocks: Option<EngineBlocks>,
}

/// How an engine's blocks are named in kvhive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EngineBlocks {
    /// What their bytes mean.
    pub layout: Layout,
    /// Which rank's stand for all.
    pub rank: u32,
    /// What their keys are made of.
    pub named_by: NamedBy,
}

/// What block keys are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum NamedBy {
    /// Tokens, adapter and salt.
    #[default]
    Tokens,
    /// The engine's own hashes.
    Hashes,
}

/// How busy an engine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EngineLoad {
    /// Requests that it decodes.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Prompt tokens of those that wait, if it says: what they cost is then known and not guessed.
    pub queued_tokens: Option<u32>,
    /// How full its own cache is of blocks in use, in millionths.
    pub kv_usage_ppm: u32,
    /// Prompt tokens that it computes in a second, if it says.
    pub prefill_tokens_per_s: Option<u32>,
    /// Bytes a second at which it was seen to fetch blocks from kvhive's memory, if it says.
    pub fetch_bytes_per_s: Option<u64>,
}

/// How well an engine's own cache is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Known {
    /// Its events arrive.
    pub is_connected: bool,
    /// Nothing is missing: every event since it started, or since its cache was cleared, was heard.
    pub is_exact: bool,
    /// Blocks known to be in its cache.
    pub blocks: u64,
    /// The number of its newest event batch that was heard; none before the first.
    pub sequence: Option<u64>,
}

/// An engine and what a coordinator knows of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Followed {
    /// The engine.
    pub engine: Engine,
    /// What is known of its cache.
    pub known: Known,
    /// What it reported of itself last to this coordinator, and how many milliseconds ago.
    pub load: Option<(EngineLoad, u64)>,
    /// What went wrong last, in words; empty where nothing did.
    pub trouble: String,
    /// Event batches heard.
    pub batches: u64,
    /// Gaps in their numbers that were noticed.
    pub gaps: u64,
    /// Times that what was known was given up because a gap could not be filled.
    pub given_up: u64,
    /// Blocks that were dropped from what is known because they are more than are kept.
    pub dropped: u64,
    /// Events that were not understood, or of kinds of blocks that are not counted.
    pub ignored: u64,
}

impl EngineLoad {
    /// Checks that its parts are what they may be.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with what was given and what is allowed.
    pub fn check(&self) -> Result<(), WireError> {
        most("millionths of a cache in use", self.kv_usage_ppm as usize, 1_000_000)?;
        most("running requests", self.running as usize, MAX_REQUESTS as usize)?;
        most("waiting requests", self.waiting as usize, MAX_REQUESTS as usize)
    }
}

impl Followed {
    /// An engine that nothing is known of yet.
    pub fn new(engine: Engine) -> Followed {
        Followed {
            engine,
            known: Known::default(),
            load: None,
            trouble: String::new(),
            batches: 0,
            gaps: 0,
            given_up: 0,
            dropped: 0,
            ignored: 0,
        }
    }
}

/// Refuses more of something than is allowed.
pub(crate) fn most(what: &str, found: usize, allowed: usize) -> Result<(), WireError> {
    if found > allowed {
        return Err(WireError::malformed(format_args!("{found} {what}, allowed are {allowed} at most")));
    }
    Ok(())
}
