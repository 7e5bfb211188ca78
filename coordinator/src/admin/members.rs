//! Members: who there is, emptying one before it goes, and giving one no more slots.

use super::answers::{Consistency, Freshness, Members, Node, Trouble};
use super::asked::AskedAs;
use super::object::Object;
use super::overview;
use super::page::Listing;
use super::routes::{Answer, MAX_BODY_BYTES, Shared};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use kvhive_protocol::control::{Command, CommandReply};
use kvhive_protocol::{Level, MemberId, Reason, WireError};
use kvhive_runtime::http::Problem;
use serde::Deserialize;
use utoipa::ToSchema;

/// What may be changed of a member: one of `drains` and `cordoned`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberPatch {
    /// Whether it is being emptied: its slots go to others with their blocks, and it gets none.
    drains: Option<bool>,
    /// Whether it is emptied although the others have too little room for what it holds: blocks are lost then, never pinned ones.
    #[serde(default)]
    may_lose: bool,
    /// With `drains`: it is emptied as the cluster is to have another size, which the journal has then. From level 6 on.
    #[serde(default)]
    for_size: Option<SizeChange>,
    /// Whether it is cordoned: it keeps the slots that it has and serves them, is given no others, and becomes primary of none that
    /// another can be primary of.
    cordoned: Option<bool>,
    /// Why, for the journal of events.
    reason: Option<String>,
}

/// How many members there are, and are to be.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SizeChange {
    /// Members that there are.
    from: u32,
    /// Members that there are to be.
    to: u32,
}

enum Change {
    Drains(bool),
    Cordoned(bool),
}

/// Every node that has registered and was not removed since.
#[utoipa::path(get, path = "/v1/members", params(Listing), responses((status = 200, body = Members), (status = 503, body = Problem)))]
pub(super) async fn members(
    State(admin): Shared,
    query: Result<Query<Listing>, QueryRejection>,
) -> Answer<Members> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(query.consistency).await?;
    let all = overview::nodes(&overview);
    let (members, next) = query.page(all.into_iter().map(|node| (node.id, node)));
    Ok(Json(Members { members, next, epoch: overview.status.epoch.0 }))
}

/// One node.
#[utoipa::path(get, path = "/v1/members/{name}", params(("name" = String, Path, description = "The node's name"), Consistency), responses((status = 200, body = Node), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn member(
    State(admin): Shared,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<Consistency>, QueryRejection>,
) -> Answer<Node> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(query.consistency).await?;
    let nodes = overview::nodes(&overview);
    nodes.into_iter().find(|node| node.name == name).map(Json).ok_or_else(|| missing(&name))
}

/// Begins to empty a member or cordons it, or ends that. Answered when it is decided; slots of one that is emptied then leave in the
/// background, which `/v1/drains` and `/v1/moves` show, and those of one that is cordoned stay. Emptying is refused with the code
/// `too_little_room` where the others have too little for what it holds, unless it may lose blocks.
#[utoipa::path(patch, path = "/v1/members/{name}", params(("name" = String, Path, description = "The node's name"), AskedAs), request_body = MemberPatch, responses((status = 200, body = Node), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn change_member(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<MemberPatch>>, JsonRejection>,
) -> Answer<Node> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Json(Object(patch)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let change = match (patch.drains, patch.cordoned) {
        (Some(drains), None) => Change::Drains(drains),
        (None, Some(cordoned)) => Change::Cordoned(cordoned),
        _ => {
            return Err(Trouble::bad_request(
                "say one of drains and cordoned, each true or false".to_owned(),
            ));
        }
    };
    if patch.for_size.is_some() && !matches!(change, Change::Drains(true)) {
        return Err(Trouble::bad_request(
            "for_size is of a member that is to be emptied: say drains too".to_owned(),
        ));
    }
    let missing = || missing(&name);
    let overview = admin.overview(Freshness::Linearizable).await?;
    let known = overview.map.as_ref().and_then(|map| map.member(&name));
    let (member, _) = known.ok_or_else(missing)?;
    let is_checked = admin.level() >= Level::CHECKED;
    if matches!(change, Change::Drains(true)) && !patch.may_lose && !is_checked {
        admin.check_room(&name).await?;
    }
    let reason = patch.reason.map(Reason::new).unwrap_or_default();
    let command = match (change, patch.for_size) {
        (Change::Drains(true), Some(SizeChange { from, to })) => {
            Command::EmptyForSize { member, may_lose: patch.may_lose, beside: None, from, to }
        }
        (Change::Drains(true), None) if patch.may_lose && is_checked => {
            Command::Empty { member, beside: None }
        }
        (Change::Drains(drains), _) => Command::SetDrains { member, drains },
        (Change::Cordoned(cordoned), _) => Command::SetCordon { member, cordoned },
    };
    match admin.submit_because(asked, command, reason).await? {
        CommandReply::Applied { .. } => {
            let overview = admin.overview(Freshness::Linearizable).await?;
            let nodes = overview::nodes(&overview);
            nodes.into_iter().find(|node| node.name == name).map(Json).ok_or_else(missing)
        }
        other => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
    }
}

/// Forgets a member that is down: it is on no list any more, and a node that registers under its name is another. One that was
/// emptied and then left is forgotten by itself.
#[utoipa::path(delete, path = "/v1/members/{name}", params(("name" = String, Path, description = "The node's name"), AskedAs), responses((status = 204, description = "It is no member any more"), (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn remove_member(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Trouble> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(Freshness::Linearizable).await?;
    let known = overview.map.as_ref().and_then(|map| map.member(&name)).map(|(member, _)| member);
    // One that is gone may have been removed under this very name, which is then answered as it was: nobody has this number.
    let member = known.or(asked.is_named().then_some(MemberId(0))).ok_or_else(|| missing(&name))?;
    match admin.submit(asked, Command::RemoveMember { member }).await {
        Ok(CommandReply::Applied { .. }) => Ok(StatusCode::NO_CONTENT),
        Ok(other) => Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into()),
        Err(trouble) if known.is_none() && trouble.is_refusal() => Err(missing(&name)),
        Err(trouble) => Err(trouble),
    }
}

pub(super) fn missing(name: &str) -> Trouble {
    let name: String = name.chars().take(64).collect();
    Trouble::not_found(format!("node {name:?} does not exist; GET /v1/members lists those that do"))
}
