//! The coordinators themselves: who they are, who leads.

use super::answers::{Consistency, Freshness, Trouble};
use super::object::Object;
use super::routes::{Admin, Answer, MAX_BODY_BYTES, Shared};
use crate::actors::HAND_OVER_FIRST;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use kvhive_protocol::WireError;
use kvhive_protocol::control::{ControlReply, ControlRequest};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::raft::{RaftReport, RaftRequest, Seat, Vote};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// The longest that a leader may take to do what is asked of it, an election included.
const LIMIT: Duration = Duration::from_secs(10);
/// Wait before a leader is looked for again.
const PAUSE: Duration = Duration::from_millis(100);

/// How the coordinators' raft group stands.
#[derive(Serialize, ToSchema)]
pub(super) struct Group {
    /// The leader's name; none during an election.
    leader: Option<String>,
    term: u64,
    committed: u64,
    applied: u64,
    /// Everybody in the group, by number.
    coordinators: Vec<Member>,
}

/// One coordinator of the group.
#[derive(Serialize, ToSchema)]
struct Member {
    name: String,
    peer: u64,
    raft_address: String,
    admin_address: String,
    /// `voter`; `learner`, which follows without a vote; or `leaving`, which votes until a change that is under way is through.
    role: &'static str,
    /// The last entry that the leader knows it to have; none where somebody else answered.
    matched: Option<u64>,
    /// Entries that it lacks.
    lag: Option<u64>,
    /// It is being sent the whole state.
    takes_snapshot: bool,
    /// The leader has heard it within an election timeout.
    heard: bool,
}

/// To whom leadership goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    /// A coordinator's name; whoever has most of the log when null.
    to: Option<String>,
}

/// A coordinator to be added. It must be what its own cluster file says of it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMember {
    name: String,
    /// Its number, from 1; not one that another has.
    peer: u64,
    /// `host:port` of its raft and control plane.
    raft_address: String,
    /// `host:port` of its admin API.
    admin_address: String,
}

/// How a coordinator gets its vote.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Promotion {
    /// The coordinator whose place it takes, in one step: it leaves.
    replaces: Option<String>,
}

impl From<RaftReport> for Group {
    fn from(report: RaftReport) -> Group {
        let coordinators = report.coordinators.into_iter().map(|known| Member {
            name: known.seat.name,
            peer: known.peer,
            raft_address: known.seat.raft_address,
            admin_address: known.seat.admin_address,
            role: match known.vote {
                Vote::Voter => "voter",
                Vote::Learner => "learner",
                Vote::Leaving => "leaving",
            },
            matched: known.matched,
            lag: known.lag,
            takes_snapshot: known.takes_snapshot,
            heard: known.is_heard,
        });
        Group {
            leader: report.leader,
            term: report.term,
            committed: report.committed,
            applied: report.applied,
            coordinators: coordinators.collect(),
        }
    }
}

impl Group {
    /// Returns the last entry that whoever answered had applied.
    pub(super) fn applied(&self) -> u64 {
        self.applied
    }
}

impl Admin {
    /// Asks for a change that takes a coordinator away. Where it leads and nothing else stands against that, another leads first.
    async fn ask_to_leave(&self, request: RaftRequest) -> Answer<Group> {
        match self.ask_leader(request.clone()).await {
            Err(trouble) if trouble.says(HAND_OVER_FIRST) => {
                self.ask_leader(RaftRequest::Transfer { to: None }).await?;
                let deadline = tokio::time::Instant::now() + LIMIT;
                loop {
                    // A new leader has to hear the others first.
                    match self.ask_leader(request.clone()).await {
                        Err(_) if tokio::time::Instant::now() + PAUSE < deadline => {
                            tokio::time::sleep(PAUSE).await
                        }
                        answer => return Ok(Json(answer?)),
                    }
                }
            }
            answer => Ok(Json(answer?)),
        }
    }

    /// Asks the leader, wherever it is. What was begun is not asked again: its outcome is for the asker to look at.
    pub(super) async fn ask_leader(&self, request: RaftRequest) -> Result<Group, Trouble> {
        let request = ControlRequest::Raft(request);
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let own = self.sources.control.serve(Role::Coordinator, request.clone()).await;
            let reply = self.or_leader(own, &request, LIMIT).await;
            match reply.unwrap_or(ControlReply::Failed(WireError::OutcomeUnknown)) {
                ControlReply::Raft(report) => return Ok(report.into()),
                ControlReply::Failed(WireError::NotLeader { .. } | WireError::Busy { .. })
                    if tokio::time::Instant::now() + PAUSE < deadline =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                ControlReply::Failed(error) => return Err(error.into()),
                other => return Err(WireError::internal(format_args!("unexpected answer {other:?}")).into()),
            }
        }
    }
}

/// Hands leadership over; answered when another leads, with how the group stands as that one knows it.
#[utoipa::path(post, path = "/v1/raft/transfer", request_body = Transfer, responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn transfer(
    State(admin): Shared,
    body: Result<Json<Object<Transfer>>, JsonRejection>,
) -> Answer<Group> {
    let Json(Object(wanted)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let handed_over = admin.ask_leader(RaftRequest::Transfer { to: wanted.to }).await?;
    // Who has handed it over hears nobody as a leader does. It is done, also where the new one does not tell more.
    Ok(Json(admin.ask_leader(RaftRequest::Status { stale: false }).await.unwrap_or(handed_over)))
}

/// Who the coordinators are, and how far each is, as the leader knows it; with `stale`, as whoever is asked does.
#[utoipa::path(get, path = "/v1/raft", params(Consistency), responses((status = 200, body = Group), (status = 503, body = Problem)))]
pub(super) async fn group(
    State(admin): Shared,
    query: Result<Query<Consistency>, QueryRejection>,
) -> Answer<Group> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let stale = query.consistency == Freshness::Stale;
    Ok(Json(admin.ask_leader(RaftRequest::Status { stale }).await?))
}

/// Adds a coordinator, which follows without a vote until it is promoted. One that is there already, and is the same, is not
/// added again.
#[utoipa::path(post, path = "/v1/raft/members", request_body = NewMember, responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn add(
    State(admin): Shared,
    body: Result<Json<Object<NewMember>>, JsonRejection>,
) -> Answer<Group> {
    let Json(Object(wanted)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let NewMember { name, peer, raft_address, admin_address } = wanted;
    let seat = Seat { name, raft_address, admin_address };
    Ok(Json(admin.ask_leader(RaftRequest::Add { peer, seat }).await?))
}

/// Gives a coordinator that has caught up its vote, in another's place if wanted. Should that one lead, another leads first.
#[utoipa::path(post, path = "/v1/raft/members/{name}/promote", params(("name" = String, Path, description = "The coordinator's name")), request_body = Promotion, responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn promote(
    State(admin): Shared,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<Promotion>>, JsonRejection>,
) -> Answer<Group> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Json(Object(Promotion { replaces })) =
        body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    admin.ask_to_leave(RaftRequest::Promote { name, replaces }).await
}

/// Removes a coordinator, if the others can go on without it. Should it lead, another leads first.
#[utoipa::path(delete, path = "/v1/raft/members/{name}", params(("name" = String, Path, description = "The coordinator's name")), responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn remove(State(admin): Shared, name: Result<Path<String>, PathRejection>) -> Answer<Group> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    admin.ask_to_leave(RaftRequest::Remove { name }).await
}
