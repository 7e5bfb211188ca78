//! Moves in flight: every slot that is on its way to where it belongs, from whom to whom, how far, and why.

use super::answers::{Freshness, Trouble};
use super::page::{Part, page};
use super::routes::{Admin, Answer, Shared};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use kvhive_protocol::control::{
    ControlReply, ControlRequest, DeviceLoad, MoveCause, MoveStage, MovesReport, Overview, SlotMove,
};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::load::SlotGiven;
use kvhive_protocol::{ClusterMap, DeviceId, Slot, WireError};
use kvhive_runtime::http::Problem;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::ToSchema;

/// The longest that the leader may take to say what moves.
const LIMIT: Duration = Duration::from_secs(5);

/// `/v1/moves`.
#[derive(Serialize, ToSchema)]
pub(super) struct Moves {
    /// Ascending by slot.
    moves: Vec<OneMove>,
    /// What to ask `after` for the next page; null after the last.
    next: Option<u16>,
    /// Slots on their way, of all pages.
    total: usize,
    /// Of those: slots whose primary gives its blocks away right now.
    copying: usize,
    /// Bytes that have gone so far, of all pages: of blocks that whoever is given a slot did not have.
    moved_bytes: u64,
    epoch: u64,
}

/// One slot on its way.
#[derive(Serialize, ToSchema)]
pub(super) struct OneMove {
    slot: u16,
    /// Its primary, which serves it meanwhile and gives its blocks away; null where no device holds it.
    from: Option<String>,
    /// Who is to be given its blocks, in that order.
    to: Vec<String>,
    /// Whose copies go once that is done.
    leaves: Vec<String>,
    stage: Stage,
    why: Why,
    /// The same in words.
    reason: String,
    /// Blocks of it that have gone so far to whoever is given it now and did not have them, as its primary told last: of 64 slots of a device at
    /// most, 0 of others.
    moved_blocks: u64,
    /// Their bytes.
    moved_bytes: u64,
    /// For how long the slot has been placed as it is now, as far as the leader has seen, in milliseconds.
    for_ms: u64,
}

/// How far a slot is: `planned` (nobody new has it yet), `waiting` (who is to have it gets its new blocks and has yet to be given the older
/// ones), `copying` (its primary gives its blocks away).
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    Planned,
    Waiting,
    Copying,
}

/// Why a slot moves: `drain` (a node is emptied), `repair` (a replica is missing), `balance` (work is spread), `primary` (another replica is to
/// be primary), `hash` (nodes came, went or changed).
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Why {
    Drain,
    Repair,
    Balance,
    Primary,
    Hash,
}

impl Admin {
    async fn moves_report(&self) -> Result<MovesReport, Trouble> {
        let own = self.sources.control.serve(Role::Coordinator, ControlRequest::Moves).await;
        match self.or_leader(own, &ControlRequest::Moves, LIMIT).await? {
            ControlReply::Moves(report) => Ok(*report),
            ControlReply::Failed(error) => Err(error.into()),
            other => Err(WireError::internal(format_args!("unexpected answer {other:?}")).into()),
        }
    }
}

/// What devices have given so far, by slot: only its primary gives a slot's blocks away.
type Gone = BTreeMap<(Slot, DeviceId), SlotGiven>;

fn gone(overview: &Overview) -> Gone {
    let of_one = |(device, load): &(DeviceId, DeviceLoad)| {
        let device = *device;
        load.moving.clone().into_iter().map(move |one| ((one.slot, device), one))
    };
    overview.loads.iter().flat_map(of_one).collect()
}

fn given(gone: &Gone, one: &SlotMove) -> SlotGiven {
    one.from.and_then(|from| gone.get(&(one.slot, from))).copied().unwrap_or_default()
}

fn shown(map: &ClusterMap, gone: &Gone, one: &SlotMove) -> OneMove {
    let SlotGiven { moved_blocks, moved_bytes, .. } = given(gone, one);
    let name = |id| map.members.get(&id).map_or_else(|| format!("{id}"), |member| member.name.clone());
    let (why, reason) = match one.cause {
        MoveCause::Drain(member) => (Why::Drain, format!("{} is being emptied", name(member))),
        MoveCause::Repair => (Why::Repair, "it has fewer whole replicas than there are to be".to_owned()),
        MoveCause::Balance => {
            (Why::Balance, "work is spread: it belongs elsewhere than its hash says".to_owned())
        }
        MoveCause::Primary => (Why::Primary, "another of its replicas is to be primary".to_owned()),
        MoveCause::Hash => {
            (Why::Hash, "its hash says another place since nodes came, went or changed".to_owned())
        }
    };
    OneMove {
        slot: one.slot.0,
        from: one.from.map(|device| device.to_string()),
        to: one.to.iter().map(ToString::to_string).collect(),
        leaves: one.leaves.iter().map(ToString::to_string).collect(),
        stage: match one.stage {
            MoveStage::Planned => Stage::Planned,
            MoveStage::Waiting => Stage::Waiting,
            MoveStage::Copying => Stage::Copying,
        },
        why,
        reason,
        moved_blocks,
        moved_bytes,
        for_ms: one.for_ms,
    }
}

/// Slots that are on their way to where they belong, as the leader sees them now. Each is served from where it is until who gets it has all
/// of it. What was decided lately and why, `/v1/events` says.
#[utoipa::path(get, path = "/v1/moves", params(Part), responses((status = 200, body = Moves), (status = 503, body = Problem)))]
pub(super) async fn moves(State(admin): Shared, query: Result<Query<Part>, QueryRejection>) -> Answer<Moves> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let report = admin.moves_report().await?;
    // What devices have told is the leader's to say.
    let overview = admin.overview(Freshness::Linearizable).await?;
    let gone = gone(&overview);
    let map =
        overview.map.ok_or_else(|| Trouble::unavailable("the cluster has not started yet".to_owned()))?;
    let all = report.moves.iter().map(|one| (one.slot.0, one));
    let (moves, next) = page(all, query.after, query.limit);
    Ok(Json(Moves {
        moves: moves.into_iter().map(|one| shown(&map, &gone, one)).collect(),
        next,
        total: report.moves.len(),
        copying: report.moves.iter().filter(|one| one.stage == MoveStage::Copying).count(),
        moved_bytes: report
            .moves
            .iter()
            .fold(0, |sum, one| given(&gone, one).moved_bytes.saturating_add(sum)),
        epoch: report.epoch.0,
    }))
}
