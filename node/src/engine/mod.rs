//! Serving with a cache: requests in, answers out, and what prompts have in common is computed once, by whoever comes first. Any
//! model that can take keys and values in and give them out will do ([`Model`]); the blocks are a cluster's, which the process may be a
//! node of.
//!
//! A cached answer is the answer: prompts are computed block by block, so that what follows a block is computed from the same shapes
//! whether that block was computed or found, and each block goes on as it will come back from the cache, rounded or not. A cache
//! that fails costs time, never an answer. Generated tokens' keys and values are not kept: alone they are not computed as they
//! would be in a prompt.

mod advice;
mod behind;
mod blocks;
mod cache;
mod compute;
mod figures;
mod history;
mod job;
mod model;
mod numbers;
mod paused;
mod serve;
mod sessions;
mod turns;
mod worker;

pub use advice::{Advice, Candidate, Changed, Setting, Target};
pub use figures::EngineStats;
pub use model::Model;
pub use paused::{Memory, Paused};
pub use serve::{Engine, Prepared};

use kvhive_client::ClientError;
use kvhive_protocol::block::Codec;
use std::time::Duration;
use thiserror::Error;
use turns::NoPlace;

/// How an engine serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineConfig {
    /// Tokens of a block: what is found, kept and evicted at a time.
    pub block_tokens: u32,
    /// Tokens of prompt and answer of one request at most.
    pub max_tokens: usize,
    /// How blocks are stored. Blocks that are rounded go by other keys: an engine that is exact never finds them.
    pub codec: Codec,
    /// The longest that a request waits for the cache, once to be told what is there and once to be given it.
    pub cache_wait: Duration,
    /// Bytes of blocks that may wait to be stored while requests go on; at 0 each request waits until its own are.
    pub pending_bytes: u64,
    /// What becomes of requests of a tenant that the cluster does not know.
    pub new_tenants: NewTenants,
}

/// What becomes of requests of a tenant that the cluster does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NewTenants {
    /// They are served without the cache.
    #[default]
    Unknown,
    /// The tenant is made, with blocks of its own.
    Isolated,
    /// It is made, as another name for the engine's own, whose blocks it shares.
    Sharing,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            block_tokens: 16,
            max_tokens: 4096,
            codec: Codec::Raw,
            cache_wait: Duration::from_secs(2),
            pending_bytes: 512 << 20,
            new_tenants: NewTenants::Unknown,
        }
    }
}

/// What an engine is asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// The prompt.
    pub prompt: String,
    /// Of requests that wait, those with more come first.
    pub priority: i64,
    /// Tokens of the answer at most; where nothing is said [`Request::NEW_TOKENS`], or as many as there is room for.
    pub max_new_tokens: Option<usize>,
    /// Whose blocks it may use; without, the engine's own tenant.
    pub tenant: Option<String>,
    /// What conversation it is a turn of.
    pub session: Option<String>,
}

impl Request {
    /// Tokens of an answer where nothing else is said.
    pub const NEW_TOKENS: usize = 16;

    /// A request of no special priority for a short answer.
    pub fn new(prompt: impl Into<String>) -> Request {
        Request { prompt: prompt.into(), ..Request::default() }
    }
}

/// What an engine answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The text that the model went on with.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were found.
    pub cached_tokens: usize,
    /// Which turn of its session it was, from 1.
    pub session_turn: Option<u64>,
    /// From the call until it was its turn.
    pub waited: Duration,
    /// From its turn until the first token of the answer.
    pub first_token: Duration,
    /// From the call to the answer.
    pub took: Duration,
    /// What its turn went into.
    pub stages: Stages,
}

/// How long each stage of a request took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stages {
    /// Asking what is there.
    pub matching: Duration,
    /// Fetching that, and giving it to the model.
    pub fetch: Duration,
    /// Computing the rest of the prompt.
    pub compute: Duration,
    /// Computing the answer.
    pub generate: Duration,
    /// Storing what is new, or waiting for room to store it behind.
    pub store: Duration,
}

/// Why there is no answer, or no engine.
#[derive(Debug, Error)]
pub enum EngineError<E> {
    /// The prompt cannot be served.
    #[error("the prompt has {tokens} tokens: 1 to {allowed} are allowed, with max_tokens={max_tokens}")]
    Prompt {
        /// How long it is.
        tokens: usize,
        /// How long it may be: an answer has a token at least.
        allowed: usize,
        /// Prompt and answer at most.
        max_tokens: usize,
    },
    /// So long an answer cannot be given.
    #[error(
        "max_new_tokens is {asked}: 1 to {allowed} are allowed, with {prompt} tokens of prompt and max_tokens={max_tokens}"
    )]
    NewTokens {
        /// What was asked for.
        asked: usize,
        /// How much is left.
        allowed: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// Prompt and answer at most.
        max_tokens: usize,
    },
    /// The configuration does not fit the model.
    #[error("{0}")]
    Config(String),
    /// The blocks' namespace could not be opened.
    #[error(transparent)]
    Cache(#[from] ClientError),
    /// The model failed.
    #[error("the model failed: {0}")]
    Model(E),
    /// No more requests may wait.
    #[error("{waiting} requests wait already")]
    Full {
        /// So many.
        waiting: usize,
    },
    /// It was ended, and takes no requests.
    #[error("the engine has been closed")]
    Closed,
    /// The system gives no thread to compute on.
    #[error("there is no thread to compute on: {0}")]
    Thread(#[source] std::io::Error),
    /// The runtime is ending.
    #[error("the process ends: nothing is computed any more")]
    Ending,
}

impl<E> From<NoPlace> for EngineError<E> {
    fn from(why: NoPlace) -> Self {
        match why {
            NoPlace::Over => EngineError::Closed,
            NoPlace::Full => EngineError::Full { waiting: turns::MOST_WAITING },
        }
    }
}
