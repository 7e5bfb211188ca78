//! The engines that the coordinators follow: listed, named, forgotten, and how busy they say they are.

use super::answers::Trouble;
use super::asked::{AskedAs, Nameless};
use super::layouts::OneLayout;
use super::object::Object;
use super::page::{NamedPart, page};
use super::routes::{Answer, MAX_BODY_BYTES, Shared};
use super::tenants;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use kvhive_protocol::WireError;
use kvhive_protocol::control::{Command, CommandReply};
use kvhive_protocol::engines::{Engine, EngineBlocks, EngineLoad, Followed, Known, NamedBy};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `/v1/engines`.
#[derive(Serialize, ToSchema)]
pub(super) struct EngineList {
    /// In the order of names.
    engines: Vec<OneEngine>,
    /// What to ask `after` for the next page; null after the last.
    next: Option<String>,
}

/// One engine, and what this coordinator knows of it: each hears its events itself.
#[derive(Serialize, ToSchema)]
pub(super) struct OneEngine {
    name: String,
    model: String,
    /// Whose blocks it stores in kvhive.
    tenant: String,
    /// Tokens of one of its own blocks.
    block_tokens: u32,
    /// Where it publishes its cache events.
    events: String,
    /// Where it repeats them.
    replay: Option<String>,
    topic: String,
    /// The kvhive node on its host.
    node: Option<String>,
    blocks: Option<OneBlocks>,
    known: OneKnown,
    load: Option<OneLoad>,
    /// How old the load is.
    load_age_ms: Option<u64>,
    /// What went wrong last with its events; empty where nothing did.
    trouble: String,
    /// Event batches heard.
    batches: u64,
    /// Gaps in their numbers.
    gaps: u64,
    /// Times that what was known was given up because a gap could not be filled.
    given_up: u64,
    /// Blocks that are more than are remembered of one engine.
    dropped: u64,
    /// Events that were not understood, or of layers that keep only a part of a prompt.
    ignored: u64,
}

/// How well an engine's own cache is known.
#[derive(Serialize, ToSchema)]
pub(super) struct OneKnown {
    /// Its events arrive.
    connected: bool,
    /// Nothing is missing.
    exact: bool,
    /// Blocks known to be in its cache.
    blocks: u64,
    /// The number of its newest event batch.
    sequence: Option<u64>,
}

/// How an engine's blocks are named in kvhive.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OneBlocks {
    layout: OneLayout,
    /// Which rank's stand for all.
    #[serde(default)]
    rank: u32,
    #[serde(default)]
    named_by: OneNamedBy,
}

/// What block keys are made of.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum OneNamedBy {
    /// Tokens, adapter and salt.
    #[default]
    Tokens,
    /// The engine's own hashes.
    Hashes,
}

/// How busy an engine is.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub(super) struct OneLoad {
    /// Requests that it decodes.
    #[serde(default)]
    #[schema(maximum = 1_000_000)]
    running: u32,
    /// Requests that wait.
    #[serde(default)]
    #[schema(maximum = 1_000_000)]
    waiting: u32,
    /// Prompt tokens of those that wait: what they cost is then known and not guessed.
    queued_tokens: Option<u32>,
    /// How full its own cache is of blocks in use.
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 1.0)]
    kv_usage: f64,
    /// Prompt tokens that it computes in a second.
    prefill_tokens_per_s: Option<u32>,
    /// Bytes a second at which it was seen to fetch blocks from kvhive's memory.
    fetch_bytes_per_s: Option<u64>,
}

/// An engine to be followed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewEngine {
    /// Its name: lower-case letters, digits, `-`, `_` and `.`, at most 63 characters. One that is known is replaced.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    name: String,
    /// What it serves, as its blocks in kvhive are named by.
    model: String,
    /// Whose blocks it stores in kvhive; `default` unless said.
    tenant: Option<String>,
    /// Tokens of one of its own blocks.
    #[schema(minimum = 1, maximum = 65536)]
    block_tokens: u32,
    /// Where it publishes its cache events: `tcp://host:5557`. Each data-parallel rank is an engine of its own here.
    events: String,
    /// Where it repeats them: `tcp://host:5558`. Without it every gap costs what is known.
    replay: Option<String>,
    /// The beginning of its topics; all unless said.
    #[serde(default)]
    topic: String,
    /// The kvhive node on its host: what is in that one's memory is nearest.
    node: Option<String>,
    /// How its blocks are named in kvhive; without it kvhive's own blocks do not count.
    blocks: Option<OneBlocks>,
}

impl OneLoad {
    pub(super) fn load(self) -> Result<EngineLoad, Trouble> {
        let OneLoad { kv_usage, .. } = self;
        if !(0.0..=1.0).contains(&kv_usage) {
            return Err(Trouble::bad_request(format!("kv_usage is {kv_usage}, allowed is 0 to 1")));
        }
        let load = EngineLoad {
            running: self.running,
            waiting: self.waiting,
            queued_tokens: self.queued_tokens,
            kv_usage_ppm: (kv_usage * 1e6).round() as u32,
            prefill_tokens_per_s: self.prefill_tokens_per_s,
            fetch_bytes_per_s: self.fetch_bytes_per_s,
        };
        load.check().map_err(|error| Trouble::bad_request(error.to_string()))?;
        Ok(load)
    }

    fn of(load: &EngineLoad) -> OneLoad {
        OneLoad {
            running: load.running,
            waiting: load.waiting,
            queued_tokens: load.queued_tokens,
            kv_usage: f64::from(load.kv_usage_ppm) / 1e6,
            prefill_tokens_per_s: load.prefill_tokens_per_s,
            fetch_bytes_per_s: load.fetch_bytes_per_s,
        }
    }
}

impl OneKnown {
    pub(super) fn of(known: &Known) -> OneKnown {
        OneKnown {
            connected: known.is_connected,
            exact: known.is_exact,
            blocks: known.blocks,
            sequence: known.sequence,
        }
    }
}

/// Takes `tcp://host:port`, or `host:port`.
fn address(what: &str, url: &str) -> Result<String, Trouble> {
    let address = match url.split_once("://") {
        Some(("tcp", address)) => address,
        Some((scheme, _)) => {
            let scheme: String = scheme.chars().take(16).collect();
            return Err(Trouble::bad_request(format!("{what} is {scheme}://…, allowed is tcp://host:port")));
        }
        None => url,
    };
    Ok(address.to_owned())
}

fn shown(followed: &Followed, tenant: &str) -> OneEngine {
    let Followed { engine, known, load, trouble, batches, gaps, given_up, dropped, ignored } = followed;
    OneEngine {
        name: engine.name.clone(),
        model: engine.model.clone(),
        tenant: tenant.to_owned(),
        block_tokens: engine.block_tokens,
        events: format!("tcp://{}", engine.events),
        replay: engine.replay.as_ref().map(|replay| format!("tcp://{replay}")),
        topic: engine.topic.clone(),
        node: engine.node.clone(),
        blocks: engine.blocks.map(|blocks| OneBlocks {
            layout: OneLayout::of(&blocks.layout),
            rank: blocks.rank,
            named_by: match blocks.named_by {
                NamedBy::Tokens => OneNamedBy::Tokens,
                NamedBy::Hashes => OneNamedBy::Hashes,
            },
        }),
        known: OneKnown::of(known),
        load: load.map(|(load, _)| OneLoad::of(&load)),
        load_age_ms: load.map(|(_, age_ms)| age_ms),
        trouble: trouble.clone(),
        batches: *batches,
        gaps: *gaps,
        given_up: *given_up,
        dropped: *dropped,
        ignored: *ignored,
    }
}

fn missing(name: &str) -> Trouble {
    let name: String = name.chars().take(64).collect();
    Trouble::not_found(format!("no engine is called {name:?}; GET /v1/engines lists those that are followed"))
}

/// Every engine that is followed, as this coordinator knows it.
#[utoipa::path(get, path = "/v1/engines", params(NamedPart), responses((status = 200, body = EngineList), (status = 503, body = Problem)))]
pub(super) async fn engines(
    State(admin): Shared,
    query: Result<Query<NamedPart>, QueryRejection>,
) -> Answer<EngineList> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let map = admin.own_map().await?;
    let tenant = |one: &Followed| map.tenants.get(&one.engine.tenant).map_or("", |tenant| &tenant.name);
    let list = admin.sources.control.engines().list();
    let all = list.iter().map(|one| (one.engine.name.clone(), one));
    let (engines, next) = page(all, query.after, query.limit);
    Ok(Json(EngineList { engines: engines.into_iter().map(|one| shown(one, tenant(one))).collect(), next }))
}

/// Follows an engine: every coordinator hears its cache events from then on. One of this name that is known is replaced.
#[utoipa::path(post, path = "/v1/engines", params(AskedAs), request_body = NewEngine, responses((status = 201, body = OneEngine), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn follow_engine(
    State(admin): Shared,
    asked: AskedAs,
    body: Result<Json<Object<NewEngine>>, JsonRejection>,
) -> Result<(StatusCode, Json<OneEngine>), Trouble> {
    let Json(Object(new)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let tenant = new.tenant.unwrap_or_else(|| "default".to_owned());
    let map = admin.map().await?;
    let id = tenants::named(&map, "tenant", &tenant)?;
    let blocks = new.blocks.map(|blocks| EngineBlocks {
        layout: blocks.layout.layout(),
        rank: blocks.rank,
        named_by: match blocks.named_by {
            OneNamedBy::Tokens => NamedBy::Tokens,
            OneNamedBy::Hashes => NamedBy::Hashes,
        },
    });
    let engine = Engine {
        name: new.name,
        model: new.model,
        tenant: id,
        block_tokens: new.block_tokens,
        events: address("events", &new.events)?,
        replay: new.replay.map(|replay| address("replay", &replay)).transpose()?,
        topic: new.topic,
        node: new.node,
        blocks,
    };
    let command = Command::SetEngine(Box::new(engine.clone()));
    kvhive_control::check_command(&command).map_err(|error| Trouble::bad_request(error.to_string()))?;
    match admin.submit(asked, command).await? {
        CommandReply::Applied { .. } => {
            // What is known of it is to come: its events are heard from now on.
            Ok((StatusCode::CREATED, Json(shown(&Followed::new(engine), &tenant))))
        }
        other => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
    }
}

/// Follows an engine no longer.
#[utoipa::path(delete, path = "/v1/engines/{name}", params(("name" = String, Path, description = "The engine's name"), AskedAs), responses((status = 204, description = "It is followed no longer"), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn forget_engine(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Trouble> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let command = Command::RemoveEngine { name: name.clone() };
    // What could be no engine's name is none.
    kvhive_control::check_command(&command).map_err(|_| missing(&name))?;
    match admin.submit(asked, command).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        // Nothing but its absence stands against it.
        Err(refused) if refused.is_rejected() => Err(missing(&name)),
        Err(trouble) => Err(trouble),
    }
}

/// Takes down how busy an engine is, for routes that this coordinator answers within the next 30 seconds. It is what is the case now, and no
/// change that is remembered: with an `Idempotency-Key` it is refused (400).
#[utoipa::path(post, path = "/v1/engines/{name}/load", params(("name" = String, Path, description = "The engine's name")), request_body = OneLoad, responses((status = 204, description = "It counts from now on"), (status = 404, body = Problem)))]
pub(super) async fn engine_load(
    State(admin): Shared,
    _: Nameless,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<OneLoad>>, JsonRejection>,
) -> Result<StatusCode, Trouble> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Json(Object(load)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let load = load.load()?;
    admin.sources.control.engines().set_load(&name, load).map_err(|_| missing(&name))?;
    Ok(StatusCode::NO_CONTENT)
}
