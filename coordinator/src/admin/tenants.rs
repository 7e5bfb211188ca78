//! Tenants in the admin API: what is shown of them, how they are made, ruled, cleared and ended.

use super::answers::{Consistency, Freshness, Trouble};
use super::asked::AskedAs;
use super::object::Object;
use super::overview::rate;
use super::page::Listing;
use super::routes::{Admin, Answer, MAX_BODY_BYTES, Shared};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use kvhive_control::{check_change, check_rules};
use kvhive_protocol::control::{Command, CommandReply, Overview};
use kvhive_protocol::load::TenantLoad;
use kvhive_protocol::{
    Change, ClusterMap, Era, RulesChange, Strategy, Tenant as KnownTenant, TenantId, TenantRules, WireError,
};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// `/v1/tenants`.
#[derive(Serialize, ToSchema)]
pub(super) struct Tenants {
    tenants: Vec<Tenant>,
    /// What to ask `after` for the next page; null after the last.
    next: Option<u32>,
    epoch: u64,
}

/// One tenant. Its secret is never shown. A rule that is null is as for everybody. Figures are sums over all devices, as last
/// reported; each device reports the 256 tenants that use most of it, and they start anew with it. Those of a tenant that
/// shares another's blocks are shown at the other.
#[derive(Serialize, ToSchema)]
pub(super) struct Tenant {
    id: u32,
    name: String,
    /// Raised by each clear.
    era: u64,
    /// Whether its block keys have nothing in common with another tenant's: it shares nobody's blocks.
    tenant_isolation: bool,
    /// What decides which of its blocks leaves; null for each node's own.
    strategy: Option<&'static str>,
    /// Bytes promised to it in the device tiers of the whole cluster, replicas counted.
    device_quota_bytes: Option<u64>,
    /// Bytes promised to it in the host tiers of the whole cluster, replicas counted.
    host_quota_bytes: Option<u64>,
    /// Bytes promised to it in the disk tiers of the whole cluster, replicas counted.
    disk_quota_bytes: Option<u64>,
    /// Bits of a stored element.
    quantization_bits: Option<u8>,
    /// Stored bytes over raw ones that stores aim at, where no bits are said.
    compression_ratio: Option<f64>,
    /// The tenant whose blocks it shares.
    shares_with: Option<String>,
    /// How many times as much of a node it gets as a tenant of weight 1, while both want more than there is.
    weight: u16,
    /// Resident blocks, replicas counted.
    blocks: u64,
    /// Bytes of their frames.
    used_bytes: u64,
    /// Of those: in device tiers.
    device_used_bytes: u64,
    /// Of those: in host tiers.
    host_used_bytes: u64,
    /// Of those: in disk tiers.
    disk_used_bytes: u64,
    matched_keys: u64,
    covered_keys: u64,
    /// Covered keys of all keys asked.
    hit_rate: Option<f64>,
    fetched_blocks: u64,
    missed_blocks: u64,
    stored_blocks: u64,
    evicted_blocks: u64,
    refused_blocks: u64,
    /// Bytes of its resident blocks as they are stored, without what is free in their frames.
    stored_bytes: u64,
    /// Bytes of those blocks before they were encoded.
    raw_bytes: u64,
    /// Stored bytes over raw ones; null where it has no blocks.
    stored_ratio: Option<f64>,
}

/// A tenant to be created.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    /// Its name: lower-case letters, digits, `-`, `_` and `.`, at most 63 characters.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    name: String,
    #[schema(value_type = Option<String>)]
    strategy: Option<Strategy>,
    device_quota_bytes: Option<u64>,
    host_quota_bytes: Option<u64>,
    disk_quota_bytes: Option<u64>,
    /// 4, 8 or 16.
    #[schema(minimum = 4, maximum = 16, multiple_of = 4)]
    quantization_bits: Option<u8>,
    #[schema(minimum = 0.001, maximum = 1.0)]
    compression_ratio: Option<f64>,
    /// Another tenant's name; then no other rule may be said.
    shares_with: Option<String>,
}

/// A merge patch (RFC 7396) of a tenant's rules: what is not there stays as it is, null is as for everybody again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantPatch {
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<String>)]
    strategy: Change<Strategy>,
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<u64>)]
    device_quota_bytes: Change<u64>,
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<u64>)]
    host_quota_bytes: Change<u64>,
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<u64>)]
    disk_quota_bytes: Change<u64>,
    /// 4, 8 or 16.
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<u8>, minimum = 4, maximum = 16, multiple_of = 4)]
    quantization_bits: Change<u8>,
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<f64>, minimum = 0.001, maximum = 1.0)]
    compression_ratio: Change<f64>,
    /// Another tenant's name; then no other rule may be said.
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<String>)]
    shares_with: Change<String>,
    /// How many times as much of a node it gets as a tenant of weight 1, while both want more than there is; null is 1.
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 1000)]
    weight: Change<u16>,
}

fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Change<T>, D::Error> {
    Ok(Option::deserialize(value)?.map_or(Change::Reset, Change::Set))
}

impl TenantPatch {
    fn change(self, map: &ClusterMap) -> Result<RulesChange, Trouble> {
        Ok(RulesChange {
            strategy: self.strategy,
            device_quota_bytes: self.device_quota_bytes,
            host_quota_bytes: self.host_quota_bytes,
            disk_quota_bytes: self.disk_quota_bytes,
            quantization_bits: self.quantization_bits,
            compression_per_mille: self.compression_ratio.try_map(per_mille)?,
            shares_with: self.shares_with.try_map(|name| named(map, "shares_with", &name))?,
        })
    }
}

fn per_mille(ratio: f64) -> Result<u16, Trouble> {
    let per_mille = (ratio * 1000.0).round();
    if (1.0..=1000.0).contains(&per_mille) {
        return Ok(per_mille as u16);
    }
    Err(Trouble::bad_request(format!("compression_ratio is {ratio}, allowed is 0.001 to 1")))
}

/// Returns the tenant that `field` of a body names.
pub(super) fn named(map: &ClusterMap, field: &str, name: &str) -> Result<TenantId, Trouble> {
    let known = map.tenant(name).map(|(id, _)| id);
    known.ok_or_else(|| {
        let name: String = name.chars().take(64).collect();
        Trouble::bad_request(format!("{field} is {name:?}, allowed is the name of a tenant that exists"))
    })
}

/// Refuses rules that no tenant may have; `shares_with` is the name of the tenant that they say.
fn check(rules: &TenantRules, shares_with: Option<&str>) -> Result<(), Trouble> {
    check_rules(rules).map_err(|error| match shares_with.filter(|_| rules.has_own()) {
        Some(name) => Trouble::bad_request(format!("{error}, on {name}")),
        None => Trouble::bad_request(error.to_string()),
    })
}

fn shown(map: &ClusterMap, id: TenantId, known: &KnownTenant, load: &TenantLoad) -> Tenant {
    let rules = &known.rules;
    let pool = rules.shares_with.and_then(|pool| map.tenants.get(&pool));
    let [device_used_bytes, host_used_bytes, disk_used_bytes] = load.used_bytes;
    Tenant {
        id: id.0,
        name: known.name.clone(),
        era: known.era.0,
        tenant_isolation: rules.shares_with.is_none(),
        strategy: rules.strategy.map(Strategy::name),
        device_quota_bytes: rules.device_quota_bytes,
        host_quota_bytes: rules.host_quota_bytes,
        disk_quota_bytes: rules.disk_quota_bytes,
        quantization_bits: rules.quantization_bits,
        compression_ratio: rules.compression_per_mille.map(|per_mille| f64::from(per_mille) / 1000.0),
        shares_with: pool.map(|pool| pool.name.clone()),
        weight: map.weight(rules.shares_with.unwrap_or(id)),
        blocks: load.all_blocks(),
        used_bytes: load.all_bytes(),
        device_used_bytes,
        host_used_bytes,
        disk_used_bytes,
        matched_keys: load.matched_keys,
        covered_keys: load.covered_keys,
        hit_rate: rate(load.covered_keys, load.matched_keys),
        fetched_blocks: load.fetched_blocks,
        missed_blocks: load.missed_blocks,
        stored_blocks: load.stored_blocks,
        evicted_blocks: load.evicted_blocks,
        refused_blocks: load.refused_blocks,
        stored_bytes: load.stored_bytes,
        raw_bytes: load.raw_bytes,
        stored_ratio: rate(load.stored_bytes, load.raw_bytes),
    }
}

fn all(overview: &Overview, wanted: &Listing) -> (Vec<Tenant>, Option<u32>) {
    let Some(map) = &overview.map else { return wanted.page(std::iter::empty()) };
    let loads: BTreeMap<TenantId, &TenantLoad> =
        overview.tenants.iter().map(|(tenant, load)| (*tenant, load)).collect();
    let none = TenantLoad::default();
    let show = |(id, known): (&TenantId, &KnownTenant)| {
        shown(map, *id, known, loads.get(id).copied().unwrap_or(&none))
    };
    let (page, next) = wanted.page(map.tenants.iter().map(|tenant| (tenant.0.0, tenant)));
    (page.into_iter().map(show).collect(), next)
}

fn one(overview: &Overview, name: &str) -> Result<Tenant, Trouble> {
    let known = overview.map.as_ref().and_then(|map| Some((map, map.tenant(name)?)));
    let (map, (id, known)) = known.ok_or_else(|| missing(name))?;
    let load = overview.tenants.iter().find(|(tenant, _)| *tenant == id).map(|(_, load)| *load);
    Ok(shown(map, id, known, &load.unwrap_or_default()))
}

fn not_started() -> Trouble {
    Trouble::unavailable("the cluster has not started yet".to_owned())
}

fn missing(name: &str) -> Trouble {
    let name: String = name.chars().take(64).collect();
    Trouble::not_found(format!("tenant {name:?} does not exist; GET /v1/tenants lists those that do"))
}

/// Whom a change is asked of where there is no tenant of its name: it may have been made under the name that it has itself while there
/// was one, and is answered as it was then. Otherwise it is refused: nobody has this number.
const NOBODY: TenantId = TenantId(0);

/// Finds the tenant that a change is asked of.
fn asked_of(map: &ClusterMap, name: &str, asked: &AskedAs) -> Result<(TenantId, KnownTenant), Trouble> {
    match map.tenant(name) {
        Some((id, known)) => Ok((id, known.clone())),
        None if asked.is_named() => {
            let gone = KnownTenant {
                name: name.to_owned(),
                era: Era::default(),
                secret: [0; 32],
                rules: TenantRules::default(),
            };
            Ok((NOBODY, gone))
        }
        None => Err(missing(name)),
    }
}

impl Admin {
    /// Has a change made that ends a tenant's era, and shows the tenant in its new one: that it is deleted meanwhile takes nothing
    /// back of what was done.
    async fn end_era(
        &self,
        asked: AskedAs,
        command: Command,
        (id, known): (TenantId, &KnownTenant),
    ) -> Answer<Tenant> {
        match self.submit(asked, command).await {
            Ok(CommandReply::TenantCleared { era, .. }) => {
                let shown = self.made(id, known).await?;
                Ok(Json(Tenant { era: era.0, ..shown }))
            }
            Ok(other) => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
            Err(trouble) if id == NOBODY && trouble.is_refusal() => Err(missing(&known.name)),
            Err(trouble) => Err(trouble),
        }
    }

    /// Returns the cluster's map as it is now.
    pub(super) async fn map(&self) -> Result<ClusterMap, Trouble> {
        let map = self.overview(Freshness::Linearizable).await?.map;
        map.ok_or_else(not_started)
    }

    /// Returns the cluster's map as this coordinator has it.
    pub(super) async fn own_map(&self) -> Result<ClusterMap, Trouble> {
        let map = self.overview(Freshness::Stale).await?.map;
        map.ok_or_else(not_started)
    }

    /// Shows a tenant that was created or changed: as it is, or as it was then where it has ended since.
    async fn made(&self, id: TenantId, then: &KnownTenant) -> Result<Tenant, Trouble> {
        let overview = self.overview(Freshness::Linearizable).await?;
        let map = overview.map.as_ref().ok_or_else(not_started)?;
        let load = overview.tenants.iter().find(|(tenant, _)| *tenant == id).map(|(_, load)| *load);
        Ok(shown(map, id, map.tenants.get(&id).unwrap_or(then), &load.unwrap_or_default()))
    }
}

/// Every tenant.
#[utoipa::path(get, path = "/v1/tenants", params(Listing), responses((status = 200, body = Tenants), (status = 503, body = Problem)))]
pub(super) async fn tenants(
    State(admin): Shared,
    query: Result<Query<Listing>, QueryRejection>,
) -> Answer<Tenants> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(query.consistency).await?;
    let (tenants, next) = all(&overview, &query);
    Ok(Json(Tenants { tenants, next, epoch: overview.status.epoch.0 }))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{name}", params(("name" = String, Path, description = "The tenant's name"), Consistency), responses((status = 200, body = Tenant), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn tenant(
    State(admin): Shared,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<Consistency>, QueryRejection>,
) -> Answer<Tenant> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    Ok(Json(one(&admin.overview(query.consistency).await?, &name)?))
}

/// Creates a tenant.
#[utoipa::path(post, path = "/v1/tenants", params(AskedAs), request_body = NewTenant, responses((status = 201, body = Tenant), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn create_tenant(
    State(admin): Shared,
    asked: AskedAs,
    body: Result<Json<Object<NewTenant>>, JsonRejection>,
) -> Result<(StatusCode, Json<Tenant>), Trouble> {
    let Json(Object(wanted)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let shares_with = match &wanted.shares_with {
        Some(name) => Some(named(&admin.map().await?, "shares_with", name)?),
        None => None,
    };
    let rules = TenantRules {
        strategy: wanted.strategy,
        device_quota_bytes: wanted.device_quota_bytes,
        host_quota_bytes: wanted.host_quota_bytes,
        disk_quota_bytes: wanted.disk_quota_bytes,
        quantization_bits: wanted.quantization_bits,
        compression_per_mille: wanted.compression_ratio.map(per_mille).transpose()?,
        shares_with,
    };
    check(&rules, wanted.shares_with.as_deref())?;
    let command = Command::CreateTenant { name: wanted.name.clone(), secret: fresh_secret()?, rules };
    kvhive_control::check_command(&command).map_err(|error| Trouble::bad_request(error.to_string()))?;
    match admin.submit(asked, command).await? {
        CommandReply::TenantCreated { tenant, epoch } => {
            let then = KnownTenant {
                name: wanted.name,
                era: kvhive_control::first_era(epoch),
                secret: [0; 32],
                rules,
            };
            Ok((StatusCode::CREATED, Json(admin.made(tenant, &then).await?)))
        }
        other => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
    }
}

/// Changes a tenant's rules by a merge patch (RFC 7396). Nodes go by them within a heartbeat; no block is lost by it.
#[utoipa::path(patch, path = "/v1/tenants/{name}", params(("name" = String, Path, description = "The tenant's name"), AskedAs), request_body = TenantPatch, responses((status = 200, body = Tenant), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn change_tenant(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<TenantPatch>>, JsonRejection>,
) -> Answer<Tenant> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Json(Object(patch)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let map = admin.map().await?;
    let (tenant, known) = asked_of(&map, &name, &asked)?;
    let weight = patch.weight;
    let change = patch.change(&map)?;
    let rules = change.apply(TenantRules::default());
    let pool = rules.shares_with.and_then(|pool| map.tenants.get(&pool));
    check(&rules, pool.map(|pool| pool.name.as_str()))?;
    // By the map of now, which is newer than the asking: what it refuses costs no entry of the log.
    if tenant != NOBODY {
        check_change(&map, tenant, &change)?;
    }
    let command = match weight {
        // As builds of before know it.
        Change::Keep => Command::SetTenantRules { tenant, change },
        weight => Command::WeighTenant { tenant, change, weight },
    };
    kvhive_control::check_command(&command).map_err(|error| Trouble::bad_request(error.to_string()))?;
    match admin.submit(asked, command).await {
        Ok(CommandReply::Applied { .. }) => {
            let then = KnownTenant { rules: change.apply(known.rules), ..known };
            Ok(Json(admin.made(tenant, &then).await?))
        }
        Ok(other) => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
        Err(trouble) if tenant == NOBODY && trouble.is_refusal() => Err(missing(&name)),
        Err(trouble) => Err(trouble),
    }
}

/// Ends a tenant's era. Answered when nobody serves its older blocks any more. Of a tenant that shares another's blocks it
/// ends those that are its own, from before it shared; those that it shares stay.
#[utoipa::path(post, path = "/v1/tenants/{name}/clear", params(("name" = String, Path, description = "The tenant's name"), AskedAs), responses((status = 200, body = Tenant), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn clear_tenant(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Answer<Tenant> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let map = admin.map().await?;
    let (tenant, known) = asked_of(&map, &name, &asked)?;
    admin.end_era(asked, Command::ClearTenant { tenant }, (tenant, &known)).await
}

/// Gives a tenant another secret, which nobody chooses or sees, and ends its era. Answered when nobody serves its older blocks any
/// more: no key of before leads to a block, nor says anything of one that comes. Clients learn the secret with the map and go on by
/// it. Of a tenant that shares another's blocks it is its own secret, which those that it shares do not go by.
#[utoipa::path(post, path = "/v1/tenants/{name}/rotate", params(("name" = String, Path, description = "The tenant's name"), AskedAs), responses((status = 200, body = Tenant), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn rotate_secret(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Answer<Tenant> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let map = admin.map().await?;
    let (tenant, known) = asked_of(&map, &name, &asked)?;
    admin.end_era(asked, Command::RotateSecret { tenant, secret: fresh_secret()? }, (tenant, &known)).await
}

/// Ends a tenant. Answered when nobody serves its blocks any more; a later tenant of its name is another. Refused for `default`, for
/// one whose blocks another tenant shares, and for one that an engine is followed for.
#[utoipa::path(delete, path = "/v1/tenants/{name}", params(("name" = String, Path, description = "The tenant's name"), AskedAs), responses((status = 204, description = "It is gone, with its blocks"), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn delete_tenant(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Trouble> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let known = admin.map().await?.tenant(&name).map(|(tenant, _)| tenant);
    // One that is gone may have been ended under this very name, which is then answered as it was: nobody has this number.
    let tenant = known.or(asked.is_named().then_some(NOBODY)).ok_or_else(|| missing(&name))?;
    match admin.submit(asked, Command::DeleteTenant { tenant }).await {
        Ok(CommandReply::TenantDeleted { .. }) => Ok(StatusCode::NO_CONTENT),
        Ok(other) => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
        Err(trouble) if known.is_none() && trouble.is_refusal() => Err(missing(&name)),
        Err(trouble) => Err(trouble),
    }
}

fn fresh_secret() -> Result<[u8; 32], Trouble> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Trouble::unavailable(format!("no random bytes: {error}")))?;
    Ok(secret)
}
