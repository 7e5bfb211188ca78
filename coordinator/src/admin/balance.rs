//! Spreading work on demand: what would be changed, and changing it.

use super::answers::{Freshness, Trouble};
use super::asked::AskedAs;
use super::audit::Looked;
use super::object::Object;
use super::routes::{Admin, Answer, MAX_BODY_BYTES, Shared};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use kvhive_protocol::control::{
    BalanceReport, Balancing, Command, CommandReply, ControlReply, ControlRequest,
};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{DeviceId, WireError};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// The longest that the leader may take to say how work is spread.
const LIMIT: Duration = Duration::from_secs(5);
/// How often it is decided anew because the map has moved on meanwhile.
const TRIES: usize = 5;

/// What is asked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BalanceOrder {
    /// Change nothing, say what would be changed.
    #[serde(default)]
    dry_run: bool,
}

/// How evenly work is spread, and what is changed.
#[derive(Serialize, ToSchema)]
pub(super) struct Balanced {
    /// Whether the changes are decided; their slots then move in the background, which `/v1/slots` shows.
    applied: bool,
    /// The map's epoch that this is based on, or after the changes.
    epoch: u64,
    /// What the busiest device carries in relation to the mean; none while nothing is read.
    busiest_to_mean: Option<f64>,
    /// The same once the slots have moved, if nothing else changes.
    busiest_to_mean_after: Option<f64>,
    devices: Vec<DeviceWork>,
    changes: Vec<SlotChange>,
    /// Why nothing is changed; empty where something is.
    because: String,
}

/// What a device carries.
#[derive(Serialize, ToSchema)]
pub(super) struct DeviceWork {
    /// `member/index`.
    device: String,
    /// Its node's name.
    node: String,
    /// Bytes a second that it is read, lately.
    read_rate: u64,
    /// The same with the changes.
    read_rate_after: u64,
}

/// Where a slot belongs from now on.
#[derive(Serialize, ToSchema)]
pub(super) struct SlotChange {
    slot: u16,
    /// Its replicas, the primary first; none: where its hash says.
    replicas: Vec<String>,
    /// Why, in numbers.
    reason: String,
}

impl Admin {
    async fn balance_report(&self) -> Result<BalanceReport, Trouble> {
        let own = self.sources.control.serve(Role::Coordinator, ControlRequest::Balance).await;
        match self.or_leader(own, &ControlRequest::Balance, LIMIT).await? {
            ControlReply::Balance(report) => Ok(*report),
            ControlReply::Failed(error) => Err(error.into()),
            other => Err(WireError::internal(format_args!("unexpected answer {other:?}")).into()),
        }
    }
}

fn shown(report: &BalanceReport, names: impl Fn(DeviceId) -> String) -> Balanced {
    let device = |(device, before, after): &(DeviceId, u64, u64)| DeviceWork {
        device: device.to_string(),
        node: names(*device),
        read_rate: *before,
        read_rate_after: *after,
    };
    let change = |one: &Balancing| SlotChange {
        slot: one.slot.0,
        replicas: one.set.iter().map(ToString::to_string).collect(),
        reason: one.reason.to_string(),
    };
    Balanced {
        applied: false,
        epoch: report.epoch.0,
        busiest_to_mean: skew(report.rates.iter().map(|(_, before, _)| *before)),
        busiest_to_mean_after: skew(report.rates.iter().map(|(_, _, after)| *after)),
        devices: report.rates.iter().map(device).collect(),
        changes: report.changes.iter().map(change).collect(),
        because: report.because.clone(),
    }
}

/// Returns the greatest of some figures in relation to their mean.
fn skew(rates: impl Iterator<Item = u64> + Clone) -> Option<f64> {
    let (count, sum) = (rates.clone().count(), rates.clone().sum::<u64>());
    (sum > 0).then(|| rates.max().unwrap_or(0) as f64 * count as f64 / sum as f64)
}

/// Spreads work over devices now: slots that are read much get more replicas, devices that carry more than others give slots
/// away. Answered when it is decided; a dry run decides nothing, and is not in the audit log. Asked again, it goes by what devices
/// report then.
#[utoipa::path(post, path = "/v1/balance", request_body = BalanceOrder, responses((status = 200, body = Balanced), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn balance(
    State(admin): Shared,
    body: Result<Json<Object<BalanceOrder>>, JsonRejection>,
) -> Result<Response, Trouble> {
    let Json(Object(order)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let mut answer = admin.balance(&order).await.into_response();
    if order.dry_run {
        answer.extensions_mut().insert(Looked);
    }
    Ok(answer)
}

impl Admin {
    async fn balance(&self, order: &BalanceOrder) -> Answer<Balanced> {
        let overview = self.overview(Freshness::Linearizable).await?;
        let map = overview.map;
        let names = move |device: DeviceId| {
            map.as_ref().and_then(|map| map.owner(device)).map(|owner| owner.name.clone()).unwrap_or_default()
        };
        let mut tries = 0;
        loop {
            let report = self.balance_report().await?;
            let mut shown = shown(&report, &names);
            if order.dry_run || report.changes.is_empty() {
                return Ok(Json(shown));
            }
            tries += 1;
            let reason = kvhive_control::balance_reason(&report.changes);
            let command = Command::Balance { based_on: report.epoch, changes: report.changes };
            match self.submit_because(AskedAs(None), command, reason).await {
                Ok(CommandReply::Applied { epoch }) => {
                    (shown.applied, shown.epoch) = (true, epoch.0);
                    return Ok(Json(shown));
                }
                Ok(other) => {
                    return Err(WireError::internal(format_args!("unexpected outcome {other:?}")).into());
                }
                // The map has moved on meanwhile: it is decided anew.
                Err(trouble) if trouble.is_stale() && tries < TRIES => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }
}
