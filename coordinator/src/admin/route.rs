//! Which engine should take a request.

use super::answers::Trouble;
use super::engines::{OneKnown, OneLoad};
use super::object::Object;
use super::routes::{Answer, Shared};
use super::traces::Traced;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::{Extension, Json};
use kvhive_protocol::WireError;
use kvhive_protocol::routing::{
    BlockHash, COMPUTE, Candidate, MAX_HASH_BYTES, MAX_ROUTE_HASHES, Prompt, Ranked, RouteAnswer,
    RouteRequest, Weights,
};
use kvhive_runtime::http::Problem;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// The largest body, in bytes: every hash that there may be in hexadecimal, which takes more than every token.
pub(super) const MAX_ROUTE_BODY_BYTES: usize = MAX_ROUTE_HASHES * (2 * MAX_HASH_BYTES + 4) + (64 << 10);

/// A request that is to be routed: its tokens, or the engine's hashes of its blocks.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteAsked {
    /// The prompt's tokens.
    tokens: Option<Vec<u32>>,
    /// The adapter (LoRA) that computes it.
    adapter: Option<String>,
    /// What keeps it apart from other users' prompts (`cache_salt`).
    salt: Option<String>,
    /// The engine's hashes of the prompt's full blocks, as hexadecimal or as numbers, in place of tokens.
    hashes: Option<Vec<OneHash>>,
    /// Tokens of the whole prompt, where hashes are given.
    prompt_tokens: Option<u32>,
    /// Who may take it; every engine unless said.
    #[serde(default)]
    candidates: Vec<OneCandidate>,
    /// Only engines that serve this model.
    model: Option<String>,
    #[serde(default)]
    weights: OneWeights,
    /// How many tokens dearer an engine may be to be chosen e times more rarely; 0 for always the cheapest.
    #[serde(default)]
    #[schema(maximum = 1_000_000)]
    temperature: u32,
    /// Decides between engines where there is a temperature; drawn unless said.
    seed: Option<u64>,
    /// The request goes where the answer says: it counts as waiting there for two seconds, or until the engine reports.
    #[serde(default)]
    take: bool,
}

/// A hash of a block.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "a hash in hexadecimal, or its last eight bytes as a number")]
pub(super) enum OneHash {
    /// All of it, in hexadecimal.
    Hex(String),
    /// Its last eight bytes, as a number.
    Number(u64),
}

/// An engine that may take it.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum OneCandidate {
    /// Its name.
    Name(String),
    /// Its name, and how busy it is.
    Loaded(Loaded),
}

/// An engine that may take it, and how busy it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Loaded {
    /// Its name.
    engine: String,
    /// How busy; unless said, as busy as it was last told to be.
    load: Option<OneLoad>,
}

impl<'de> Deserialize<'de> for OneCandidate {
    fn deserialize<D: Deserializer<'de>>(body: D) -> Result<OneCandidate, D::Error> {
        body.deserialize_any(NameOrLoaded)
    }
}

/// Reads either, so that what is wrong within is told and not that neither fits.
struct NameOrLoaded;

impl<'de> Visitor<'de> for NameOrLoaded {
    type Value = OneCandidate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an engine's name, or an object of its name as `engine` and its `load`")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<OneCandidate, E> {
        Ok(OneCandidate::Name(name.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<OneCandidate, A::Error> {
        Loaded::deserialize(MapAccessDeserializer::new(fields)).map(OneCandidate::Loaded)
    }
}

/// What things cost; each as usual unless said.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OneWeights {
    /// A token in the engine's host memory, in thousandths of computing it.
    engine_host: u16,
    /// A token on the engine's disk.
    engine_disk: u16,
    /// A token in the memory of the kvhive node on the engine's host.
    hive_local: u16,
    /// A token in another kvhive node's memory.
    hive_memory: u16,
    /// A token on a kvhive node's disk.
    hive_disk: u16,
    /// A request that the engine decodes, in tokens.
    #[schema(maximum = 1_000_000)]
    running: u32,
    /// A request that waits, in tokens.
    #[schema(maximum = 1_000_000)]
    waiting: u32,
    /// A cache that is full of blocks in use, in tokens.
    #[schema(maximum = 1_000_000)]
    kv_usage: u32,
}

impl Default for OneWeights {
    fn default() -> OneWeights {
        let usual = Weights::default();
        OneWeights {
            engine_host: usual.engine_host,
            engine_disk: usual.engine_disk,
            hive_local: usual.hive_local,
            hive_memory: usual.hive_memory,
            hive_disk: usual.hive_disk,
            running: usual.running,
            waiting: usual.waiting,
            kv_usage: usual.kv_usage,
        }
    }
}

/// Who should take it, and why.
#[derive(Serialize, ToSchema)]
pub(super) struct RouteChosen {
    /// The engine that should.
    engine: String,
    /// Whether its events arrive. Where they do not, nobody knows what its own cache holds or whether it runs: kvhive's blocks and what was
    /// said of its load are all that it was chosen by.
    heard: bool,
    /// Every candidate: the chosen one, then the others by cost.
    ranked: Vec<OneRanked>,
    /// What could not be looked at.
    notes: Vec<String>,
}

/// One candidate.
#[derive(Serialize, ToSchema)]
pub(super) struct OneRanked {
    engine: String,
    /// What the request would cost there, in tokens computed.
    cost_tokens: f64,
    /// What that is made of; the costs add up to it.
    terms: Vec<OneTerm>,
    /// How likely it was to be chosen, 0 to 1.
    chance: f64,
    known: OneKnown,
    /// How old the load is that it was judged by; null where nobody said any.
    load_age_ms: Option<u64>,
    /// The cost in words.
    reason: String,
}

/// One part of a cost.
#[derive(Serialize, ToSchema)]
pub(super) struct OneTerm {
    /// `engine_device`, `engine_host`, `engine_disk`, `hive_local`, `hive_memory`, `hive_disk`, `compute` (tokens), `running`,
    /// `waiting` (requests, or tokens where they are said), `taken` (tokens), or `kv_usage` (millionths).
    part: &'static str,
    amount: u64,
    /// What one of them costs, in thousandths of computing a token; of `kv_usage` what all million do.
    weight: u64,
    cost_tokens: f64,
}

fn tokens(cost: u64) -> f64 {
    cost as f64 / COMPUTE as f64
}

impl RouteAsked {
    pub(super) fn request(self) -> Result<RouteRequest, Trouble> {
        let prompt = match (self.tokens, self.hashes) {
            (Some(tokens), None) => Prompt::Tokens { tokens, adapter: self.adapter, salt: self.salt },
            (None, Some(hashes)) => Prompt::Hashes {
                hashes: hashes.into_iter().map(OneHash::hash).collect::<Result<_, _>>()?,
                tokens: self.prompt_tokens.unwrap_or(0),
            },
            _ => return Err(Trouble::bad_request("say either tokens or hashes".to_owned())),
        };
        let candidate = |one| match one {
            OneCandidate::Name(engine) => Ok(Candidate { engine, load: None }),
            OneCandidate::Loaded(Loaded { engine, load }) => {
                Ok(Candidate { engine, load: load.map(OneLoad::load).transpose()? })
            }
        };
        let OneWeights {
            engine_host,
            engine_disk,
            hive_local,
            hive_memory,
            hive_disk,
            running,
            waiting,
            kv_usage,
        } = self.weights;
        let request = RouteRequest {
            prompt,
            candidates: self.candidates.into_iter().map(candidate).collect::<Result<_, Trouble>>()?,
            model: self.model,
            weights: Weights {
                engine_host,
                engine_disk,
                hive_local,
                hive_memory,
                hive_disk,
                running,
                waiting,
                kv_usage,
            },
            temperature: self.temperature,
            seed: self.seed,
            take: self.take,
        };
        request.check().map_err(|error| Trouble::bad_request(error.to_string()))?;
        Ok(request)
    }
}

impl OneHash {
    fn hash(self) -> Result<BlockHash, Trouble> {
        let text = match self {
            OneHash::Number(number) => return Ok(BlockHash(number.to_be_bytes().to_vec())),
            OneHash::Hex(text) => text,
        };
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes = pairs.iter().map(|two| pair(two)).collect::<Option<Vec<u8>>>();
        bytes.filter(|bytes| rest.is_empty() && !bytes.is_empty()).map(BlockHash).ok_or_else(|| {
            let text: String = text.chars().take(64).collect();
            Trouble::bad_request(format!("hash {text:?} is not hexadecimal digits, two for each byte"))
        })
    }
}

fn shown(answer: RouteAnswer) -> Result<RouteChosen, Trouble> {
    let is_heard = answer.ranked.first().is_some_and(|first| first.known.is_connected);
    let one = |ranked: Ranked| OneRanked {
        engine: ranked.engine,
        cost_tokens: tokens(ranked.cost),
        terms: ranked
            .terms
            .iter()
            .map(|term| OneTerm {
                part: term.part.as_str(),
                amount: term.amount,
                weight: term.weight,
                cost_tokens: tokens(term.cost),
            })
            .collect(),
        chance: f64::from(ranked.chance_ppm) / 1e6,
        known: OneKnown::of(&ranked.known),
        load_age_ms: ranked.load_age_ms,
        reason: ranked.reason,
    };
    let ranked: Vec<OneRanked> = answer.ranked.into_iter().map(one).collect();
    let first = ranked.first().ok_or_else(|| WireError::internal(format_args!("nobody was ranked")))?;
    Ok(RouteChosen { engine: first.engine.clone(), heard: is_heard, ranked, notes: answer.notes })
}

/// Says which engine should take a request: by what its own cache and kvhive have of the prompt, and by how busy it is.
#[utoipa::path(post, path = "/v1/route", request_body = RouteAsked, responses((status = 200, body = RouteChosen), (status = 409, body = Problem)))]
pub(super) async fn route(
    State(admin): Shared,
    traced: Option<Extension<Traced>>,
    body: Result<Json<Object<RouteAsked>>, JsonRejection>,
) -> Answer<RouteChosen> {
    let Json(Object(asked)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_ROUTE_BODY_BYTES))?;
    let request = asked.request()?;
    let answer = admin
        .sources
        .control
        .engines()
        .route(&request, traced.and_then(|Extension(Traced(trace))| trace))
        .await?;
    Ok(Json(shown(answer)?))
}
