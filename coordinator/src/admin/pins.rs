//! Pins in the admin API: prefixes whose blocks do not leave to make room for others, and are repaired first.

use super::answers::{Freshness, Trouble};
use super::asked::AskedAs;
use super::object::Object;
use super::page::{USUAL, number};
use super::routes::{Answer, Shared};
use super::tenants;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use kvhive_protocol::control::{Command, CommandReply, Overview};
use kvhive_protocol::pins::{MAX_PIN_KEYS, MAX_PINS};
use kvhive_protocol::{BlockKey, ClusterMap, KeyList, Pin, PinMode, Reason, WireError};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use utoipa::{IntoParams, ToSchema};

/// The largest body of `POST /v1/pins`, in bytes: as many keys as a pin may have, in hexadecimal, and space for the rest.
pub(super) const MAX_PIN_BODY_BYTES: usize = MAX_PIN_KEYS * 80 + 8192;

/// `/v1/pins`.
#[derive(Serialize, ToSchema)]
pub(super) struct Pins {
    pins: Vec<OnePin>,
    /// What to ask `after` for the next page; null after the last.
    next: Option<String>,
    /// Blocks that are pinned now, replicas counted, as devices reported last.
    pinned_blocks: u64,
    /// Bytes of their frames.
    pinned_bytes: u64,
    /// Times since their start that nodes did not pin a block that a pin names, because half of a device's frames, or of what
    /// the tenant is promised there, was pinned already.
    refused: u64,
    epoch: u64,
}

/// One pin.
#[derive(Serialize, ToSchema)]
pub(super) struct OnePin {
    name: String,
    /// Whose blocks; where the one that was named shares another's, that other.
    tenant: String,
    mode: OneMode,
    /// When it ends by itself, in milliseconds since 1970; null for a hard one.
    until_ms: Option<u64>,
    /// Why, as whoever pinned it said; null where nothing was said.
    reason: Option<String>,
    /// How many blocks of the prefix.
    keys: usize,
    /// Slots that they are in.
    slots: usize,
}

/// How long a pin lasts: `soft` until a time, `hard` until it is removed.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OneMode {
    Soft,
    Hard,
}

/// A pin to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPin {
    /// Its name: lower-case letters, digits, `-`, `_` and `.`, at most 63 characters.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    name: String,
    /// Whose blocks; `default` unless said.
    tenant: Option<String>,
    /// The blocks' keys in the order of the prefix, from token 0: 64 hexadecimal digits each.
    #[schema(min_items = 1, max_items = 4096)]
    keys: Vec<HexKey>,
    /// When it ends by itself, in milliseconds since 1970: a soft pin. Without it the pin is hard.
    until_ms: Option<u64>,
    /// Why: kept with the pin, and told in the journal of events.
    reason: Option<String>,
}

/// A block's key, 64 hexadecimal digits.
#[derive(Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String, pattern = "^[0-9a-fA-F]{64}$")]
pub(super) struct HexKey(BlockKey);

impl TryFrom<String> for HexKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<HexKey, &'static str> {
        BlockKey::from_hex(&text).map(HexKey).ok_or("a key is 64 hexadecimal digits")
    }
}

/// Which pins are listed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PinQuery {
    /// `linearizable` or `stale`.
    #[serde(default)]
    consistency: Freshness,
    /// Only pins whose name comes later: the `next` of the page before.
    #[serde(default)]
    after: Option<String>,
    /// Entries of a page; 1000 unless said.
    #[serde(default, deserialize_with = "number::<_, usize, 1, 1024>")]
    #[param(minimum = 1, maximum = 1024)]
    limit: Option<usize>,
}

const _: () = assert!(MAX_PINS == 1024, "as many as a page of them may have");

fn shown(map: &ClusterMap, name: &str, pin: &Pin) -> OnePin {
    OnePin {
        name: name.to_owned(),
        tenant: map.tenants.get(&pin.tenant).map_or_else(String::new, |tenant| tenant.name.clone()),
        mode: match pin.mode {
            PinMode::Soft { .. } => OneMode::Soft,
            PinMode::Hard => OneMode::Hard,
        },
        until_ms: pin.ends_ms(),
        reason: Some(pin.reason.as_str().to_owned()).filter(|reason| !reason.is_empty()),
        keys: pin.keys.len(),
        slots: pin.slots(map.settings.segment_blocks).len(),
    }
}

fn all(overview: &Overview, wanted: &PinQuery) -> Pins {
    let limit = wanted.limit.unwrap_or(USUAL);
    let mut pins = Vec::new();
    let mut next = None;
    if let Some(map) = &overview.map {
        let from = wanted.after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
        let mut rest = map.pins.range((from, Bound::Unbounded));
        pins.extend(rest.by_ref().take(limit).map(|(name, pin)| shown(map, name, pin)));
        next = rest.next().and_then(|_| pins.last()).map(|last| last.name.clone());
    }
    let sum = |of: &dyn Fn(&kvhive_protocol::load::PinnedLoad) -> u64| {
        overview.loads.iter().fold(0u64, |sum, (_, load)| sum.saturating_add(of(&load.pinned)))
    };
    Pins {
        pins,
        next,
        pinned_blocks: sum(&|pinned| pinned.blocks),
        pinned_bytes: sum(&|pinned| pinned.bytes),
        refused: sum(&|pinned| pinned.refused),
        epoch: overview.status.epoch.0,
    }
}

fn missing(name: &str) -> Trouble {
    let name: String = name.chars().take(64).collect();
    Trouble::not_found(format!("no pin is called {name:?}; GET /v1/pins lists those that there are"))
}

/// What is pinned, in the order of names.
#[utoipa::path(get, path = "/v1/pins", params(PinQuery), responses((status = 200, body = Pins), (status = 503, body = Problem)))]
pub(super) async fn pins(
    State(admin): Shared,
    query: Result<Query<PinQuery>, QueryRejection>,
) -> Answer<Pins> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    Ok(Json(all(&admin.overview(query.consistency).await?, &query)))
}

/// Pins a prefix: its blocks do not leave to make room for others, and are repaired first. What is not stored yet is pinned when
/// it comes. A pin of this name is replaced.
#[utoipa::path(post, path = "/v1/pins", params(AskedAs), request_body = NewPin, responses((status = 201, body = OnePin), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn add_pin(
    State(admin): Shared,
    asked: AskedAs,
    body: Result<Json<Object<NewPin>>, JsonRejection>,
) -> Result<(StatusCode, Json<OnePin>), Trouble> {
    let Json(Object(new)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_PIN_BODY_BYTES))?;
    let tenant = new.tenant.unwrap_or_else(|| "default".to_owned());
    let map = admin.map().await?;
    let id = tenants::named(&map, "tenant", &tenant)?;
    let now_ms = kvhive_runtime::wall_ms();
    if let Some(until_ms) = new.until_ms.filter(|until_ms| *until_ms <= now_ms) {
        return Err(Trouble::bad_request(format!(
            "until_ms is {until_ms}, which is over: allowed is more than {now_ms}, milliseconds since 1970"
        )));
    }
    let reason = new.reason.map(Reason::new).unwrap_or_default();
    let pin = Pin {
        tenant: id,
        keys: new.keys.iter().map(|key| key.0).collect::<KeyList>(),
        mode: new.until_ms.map_or(PinMode::Hard, |until_ms| PinMode::Soft { until_ms }),
        reason: reason.clone(),
    };
    // As it will be kept: of the tenant whose blocks they are.
    let pin = Pin { tenant: map.pool_of(id).map_or(id, |(pool, _)| pool), ..pin };
    let answer = shown(&map, &new.name, &pin);
    let command = Command::SetPin { name: new.name, pin: Box::new(pin) };
    kvhive_control::check_command(&command).map_err(|error| Trouble::bad_request(error.to_string()))?;
    match admin.submit_because(asked, command, reason).await? {
        CommandReply::Applied { .. } => Ok((StatusCode::CREATED, Json(answer))),
        other => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
    }
}

/// Ends a pin: its blocks stay where they are until others take their place.
#[utoipa::path(delete, path = "/v1/pins/{name}", params(("name" = String, Path, description = "The pin's name"), AskedAs), responses((status = 204, description = "It is pinned no longer"), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn remove_pin(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Trouble> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let command = Command::RemovePin { name: name.clone(), ended_ms: None };
    // What could be no pin's name is none.
    kvhive_control::check_command(&command).map_err(|_| missing(&name))?;
    let is_known = admin.map().await?.pins.contains_key(&name);
    match admin.submit(asked, command).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(refused) if refused.is_conflict() && !is_known => Err(missing(&name)),
        Err(trouble) => Err(trouble),
    }
}
