//! Which serving process should take a request: what is asked, what is answered.
//! Costs are whole numbers of milli-tokens: 1000 is what computing one token of a prompt costs.

use crate::engines::{EngineLoad, Known, MAX_ENGINES, MAX_TEXT_BYTES, most};
use crate::error::WireError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The most tokens of a prompt that is routed.
pub const MAX_ROUTE_TOKENS: usize = 262_144;
/// The most hashes of a prompt that is routed.
pub const MAX_ROUTE_HASHES: usize = 65_536;
/// The longest hash of an engine, in bytes.
pub const MAX_HASH_BYTES: usize = 32;
/// The largest weight of a request or of a full cache, in tokens.
pub const MAX_LOAD_WEIGHT: u32 = 1_000_000;
/// The cost of computing one token.
pub const COMPUTE: u64 = 1000;
/// The largest message that asks for a route, in bytes: every hash, which take more than tokens, candidate and text.
pub const MAX_ROUTE_BYTES: usize = MAX_ROUTE_HASHES * (8 + MAX_HASH_BYTES) + MAX_ENGINES * 160 + 4096;

/// What things cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Weights {
    /// A token in the engine's host memory, in thousandths of computing it.
    pub engine_host: u16,
    /// A token on the engine's disk or in its own remote storage, in thousandths.
    pub engine_disk: u16,
    /// A token in the memory of the kvhive node on the engine's host, in thousandths.
    pub hive_local: u16,
    /// A token in the memory of any other kvhive node, in thousandths.
    pub hive_memory: u16,
    /// A token on a kvhive node's disk, in thousandths.
    pub hive_disk: u16,
    /// A request that the engine decodes, in tokens.
    pub running: u32,
    /// A request that waits, in tokens, where nobody says how many they are.
    pub waiting: u32,
    /// A cache that is full of blocks in use, in tokens.
    pub kv_usage: u32,
}

impl Default for Weights {
    fn default() -> Weights {
        Weights {
            engine_host: 50,
            engine_disk: 200,
            hive_local: 60,
            hive_memory: 120,
            hive_disk: 300,
            running: 64,
            waiting: 1024,
            kv_usage: 2048,
        }
    }
}

/// A prompt, by what names its blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Prompt {
    /// Its tokens.
    Tokens {
        /// All of them, from the first.
        tokens: Vec<u32>,
        /// The adapter (LoRA) that computes it.
        adapter: Option<String>,
        /// What keeps it apart from other users' prompts (`cache_salt`).
        salt: Option<String>,
    },
    /// The engine's own hashes of its full blocks, from the first. Media need no saying: they are in the hashes.
    Hashes {
        /// One a block.
        hashes: Vec<BlockHash>,
        /// Tokens of the whole prompt.
        tokens: u32,
    },
}

/// An engine's hash of one block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockHash(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// Who may take the request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Candidate {
    /// The engine's name.
    pub engine: String,
    /// How busy it is, if the asker knows; else as it was reported last.
    pub load: Option<EngineLoad>,
}

/// Which engine should take this prompt?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RouteRequest {
    /// What is to be computed.
    pub prompt: Prompt,
    /// Who may; every engine if nobody is named.
    pub candidates: Vec<Candidate>,
    /// Only engines that serve this model.
    pub model: Option<String>,
    /// What things cost.
    pub weights: Weights,
    /// How many tokens more expensive an engine may be to be chosen e times more rarely; 0 for always the cheapest.
    pub temperature: u32,
    /// Decides between engines where there is a temperature; drawn if it is not said.
    pub seed: Option<u64>,
    /// The request goes where the answer says: it counts as waiting there until the engine reports anew, for two seconds at most.
    pub take: bool,
}

impl RouteRequest {
    /// Asks about a prompt of these tokens, and every engine, at the usual weights.
    pub fn of_tokens(tokens: Vec<u32>) -> RouteRequest {
        RouteRequest {
            prompt: Prompt::Tokens { tokens, adapter: None, salt: None },
            candidates: Vec::new(),
            model: None,
            weights: Weights::default(),
            temperature: 0,
            seed: None,
            take: false,
        }
    }

    /// Checks that it is as large as it may be, and its weights in order.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with what was given and what is allowed.
    pub fn check(&self) -> Result<(), WireError> {
        let texts = match &self.prompt {
            Prompt::Tokens { tokens, adapter, salt } => {
                most("tokens", tokens.len(), MAX_ROUTE_TOKENS)?;
                [adapter.as_ref(), salt.as_ref()]
            }
            Prompt::Hashes { hashes, tokens } => {
                most("hashes", hashes.len(), MAX_ROUTE_HASHES)?;
                most("tokens", *tokens as usize, MAX_ROUTE_TOKENS)?;
                let longest = hashes.iter().map(|hash| hash.0.len()).max().unwrap_or(0);
                most("bytes of a hash", longest, MAX_HASH_BYTES)?;
                [None, None]
            }
        };
        for text in texts.into_iter().flatten().chain(&self.model) {
            most("bytes of a model, adapter or salt", text.len(), MAX_TEXT_BYTES)?;
        }
        most("candidates", self.candidates.len(), MAX_ENGINES)?;
        let mut names: Vec<&str> = self.candidates.iter().map(|one| &*one.engine).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(WireError::malformed(format_args!("candidate {:?} is named twice", short(twice[0]))));
        }
        for load in self.candidates.iter().filter_map(|one| one.load) {
            load.check()?;
        }
        most("tokens of temperature", self.temperature as usize, MAX_LOAD_WEIGHT as usize)?;
        self.weights.check()
    }
}

impl Weights {
    /// Checks that nothing cached costs more than computing it, and no load more than can be counted.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with what was given and what is allowed.
    pub fn check(&self) -> Result<(), WireError> {
        let tiers = [
            ("engine_host", self.engine_host),
            ("engine_disk", self.engine_disk),
            ("hive_local", self.hive_local),
            ("hive_memory", self.hive_memory),
            ("hive_disk", self.hive_disk),
        ];
        for (name, weight) in tiers {
            if u64::from(weight) > COMPUTE {
                return Err(WireError::malformed(format_args!(
                    "weight {name} is {weight} thousandths of computing a token, allowed are 0 to {COMPUTE}"
                )));
            }
        }
        for (name, weight) in
            [("running", self.running), ("waiting", self.waiting), ("kv_usage", self.kv_usage)]
        {
            if weight > MAX_LOAD_WEIGHT {
                return Err(WireError::malformed(format_args!(
                    "weight {name} is {weight} tokens, allowed are 0 to {MAX_LOAD_WEIGHT}"
                )));
            }
        }
        Ok(())
    }
}

fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

/// What one part of a cost is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Part {
    /// Tokens in the engine's own device memory: they cost nothing.
    EngineDevice,
    /// Tokens in the engine's host memory.
    EngineHost,
    /// Tokens on the engine's disk or in its own remote storage.
    EngineDisk,
    /// Tokens in the memory of the kvhive node on the engine's host.
    HiveLocal,
    /// Tokens in other kvhive nodes' memory.
    HiveMemory,
    /// Tokens on kvhive nodes' disks.
    HiveDisk,
    /// Tokens that must be computed.
    Compute,
    /// Requests that the engine decodes.
    Running,
    /// Requests that wait there, or their tokens.
    Waiting,
    /// Tokens to be computed of requests that were sent there since it said how busy it is.
    Taken,
    /// Millionths of its cache that are in use.
    KvUsage,
}

impl Part {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::EngineDevice => "engine_device",
            Part::EngineHost => "engine_host",
            Part::EngineDisk => "engine_disk",
            Part::HiveLocal => "hive_local",
            Part::HiveMemory => "hive_memory",
            Part::HiveDisk => "hive_disk",
            Part::Compute => "compute",
            Part::Running => "running",
            Part::Waiting => "waiting",
            Part::Taken => "taken",
            Part::KvUsage => "kv_usage",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One part of an engine's cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Term {
    /// What for.
    pub part: Part,
    /// How many: tokens, requests or millionths.
    pub amount: u64,
    /// Milli-tokens for one of them; for millionths, for all of them.
    pub weight: u64,
    /// What that comes to, in milli-tokens.
    pub cost: u64,
}

/// One engine's place in an answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ranked {
    /// Its name.
    pub engine: String,
    /// What the request would cost there, in milli-tokens.
    pub cost: u64,
    /// Why.
    pub terms: Vec<Term>,
    /// How likely it was to be chosen, in millionths.
    pub chance_ppm: u32,
    /// What is known of its own cache.
    pub known: Known,
    /// How old the load is that it was judged by, in milliseconds; none where nobody said any.
    pub load_age_ms: Option<u64>,
    /// The cost in words.
    pub reason: String,
}

/// Which engine should take it: the first. With a temperature that one is drawn, the others follow by cost.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RouteAnswer {
    /// Every candidate.
    pub ranked: Vec<Ranked>,
    /// What could not be looked at, in words.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_weights_are_in_order() {
        assert_eq!(Weights::default().check(), Ok(()));
        let dear = Weights { hive_disk: 1001, ..Weights::default() };
        let error = dear.check().expect_err("dearer than computing").to_string();
        assert!(error.contains("hive_disk is 1001"), "{error}");
        let heavy = Weights { waiting: MAX_LOAD_WEIGHT + 1, ..Weights::default() };
        assert!(heavy.check().is_err());
    }

    #[test]
    fn what_is_too_large_is_refused_with_what_is_allowed() {
        let sound = RouteRequest::of_tokens(vec![1; 10]);
        assert_eq!(sound.check(), Ok(()));
        let one = |name: &str| Candidate { engine: name.to_owned(), load: None };
        let over = EngineLoad { kv_usage_ppm: 1_000_001, ..EngineLoad::default() };
        let hash = |bytes| BlockHash(vec![0; bytes]);
        for (unsound, says) in [
            (RouteRequest::of_tokens(vec![1; MAX_ROUTE_TOKENS + 1]), "262145 tokens"),
            (RouteRequest { candidates: vec![one("a"), one("b"), one("a")], ..sound.clone() }, "twice"),
            (
                RouteRequest {
                    candidates: vec![Candidate { load: Some(over), ..one("a") }],
                    ..sound.clone()
                },
                "1000001 millionths",
            ),
            (
                RouteRequest {
                    prompt: Prompt::Hashes { hashes: vec![hash(33)], tokens: 16 },
                    ..sound.clone()
                },
                "33 bytes of a hash",
            ),
            (RouteRequest { model: Some("x".repeat(257)), ..sound.clone() }, "257 bytes"),
        ] {
            let error = unsound.check().expect_err("too large").to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_largest_question_fits_its_bound() {
        let text = || Some("x".repeat(MAX_TEXT_BYTES));
        let load = EngineLoad {
            running: u32::MAX,
            waiting: u32::MAX,
            queued_tokens: Some(u32::MAX),
            kv_usage_ppm: u32::MAX,
            prefill_tokens_per_s: Some(u32::MAX),
            fetch_bytes_per_s: Some(u64::MAX),
        };
        let candidate = Candidate { engine: "x".repeat(63), load: Some(load) };
        let tokens =
            Prompt::Tokens { tokens: vec![u32::MAX; MAX_ROUTE_TOKENS], adapter: text(), salt: text() };
        let hashes = vec![BlockHash(vec![255; MAX_HASH_BYTES]); MAX_ROUTE_HASHES];
        for prompt in [tokens, Prompt::Hashes { hashes, tokens: u32::MAX }] {
            let request = RouteRequest {
                prompt,
                candidates: vec![candidate.clone(); MAX_ENGINES],
                model: text(),
                temperature: u32::MAX,
                seed: Some(u64::MAX),
                take: true,
                ..RouteRequest::of_tokens(Vec::new())
            };
            assert!(crate::codec::encode(&request).expect("it encodes").len() <= MAX_ROUTE_BYTES);
        }
    }
}
