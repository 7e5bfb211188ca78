//! Devices: of every node that is up, what each is and holds.

use super::answers::{Consistency, Device, Trouble};
use super::overview;
use super::page::{NamedListing, page};
use super::routes::{Answer, Shared};
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use kvhive_protocol::{DeviceId, MemberId};
use kvhive_runtime::http::Problem;
use serde::Serialize;
use utoipa::ToSchema;

/// `/v1/devices`.
#[derive(Serialize, ToSchema)]
pub(super) struct Devices {
    devices: Vec<Device>,
    /// What to ask `after` for the next page; null after the last.
    next: Option<String>,
    epoch: u64,
}

/// Reads `member/index`.
fn id(text: &str) -> Option<DeviceId> {
    let (member, index) = text.split_once('/')?;
    Some(DeviceId::new(MemberId(member.parse().ok()?), index.parse().ok()?))
}

/// Every device of every node that is up, in the order of nodes' numbers. What it holds and does is as it reported last.
#[utoipa::path(get, path = "/v1/devices", params(NamedListing), responses((status = 200, body = Devices), (status = 503, body = Problem)))]
pub(super) async fn devices(
    State(admin): Shared,
    query: Result<Query<NamedListing>, QueryRejection>,
) -> Answer<Devices> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let after = query.after.as_deref().map(|text| {
        let short: String = text.chars().take(32).collect();
        id(text).ok_or_else(|| {
            Trouble::bad_request(format!("after is {short:?}, allowed is a device: MEMBER/INDEX"))
        })
    });
    let after = after.transpose()?;
    let overview = admin.overview(query.consistency).await?;
    let (devices, next) = page(overview::devices(&overview).into_iter(), after, query.limit);
    let next = next.map(|device: DeviceId| device.to_string());
    Ok(Json(Devices { devices, next, epoch: overview.status.epoch.0 }))
}

/// One device of a node that is up.
#[utoipa::path(get, path = "/v1/devices/{member}/{index}", params(("member" = String, Path, description = "The node's name, or its number"), ("index" = u16, Path, description = "Which of its devices, from 0"), Consistency), responses((status = 200, body = Device), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn device(
    State(admin): Shared,
    path: Result<Path<(String, u16)>, PathRejection>,
    query: Result<Query<Consistency>, QueryRejection>,
) -> Answer<Device> {
    let Path((member, index)) = path.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(query.consistency).await?;
    let number = member.parse().ok().map(MemberId);
    let is_of = |id: DeviceId, device: &Device| device.node == member || Some(id.member) == number;
    let found =
        overview::devices(&overview).into_iter().find(|(id, one)| id.index == index && is_of(*id, one));
    found.map(|(_, device)| Json(device)).ok_or_else(|| {
        let short: String = member.chars().take(32).collect();
        Trouble::not_found(format!(
            "no node that is up has a device {short:?}/{index}; GET /v1/devices lists those that there are"
        ))
    })
}
