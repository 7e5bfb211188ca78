//! The coordinators themselves: who they are, who leads.

use super::answers::{Consistency, Freshness, Trouble};
use super::asked::{AskedAs, Name};
use super::object::Object;
use super::routes::{Admin, Answer, MAX_BODY_BYTES, Shared};
use crate::actors::HAND_OVER_FIRST;
use crate::control_plane::ask_peer;
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
/// How long it is looked whether what was asked before comes about, where it is refused when it is asked again.
const SETTLE: Duration = Duration::from_secs(2);
/// Parts of a name from this on say who led when a change was begun: this and the coordinator's number.
const LED_BY: u64 = 16;

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

    /// Returns who leads.
    fn leading(&self) -> Option<&Member> {
        self.coordinators.iter().find(|one| self.leader.as_ref() == Some(&one.name))
    }

    /// Says whether the group is as it was asked to be.
    fn is_as(&self, request: &RaftRequest) -> bool {
        let named = |name: &str| self.coordinators.iter().find(|one| one.name == name);
        match request {
            RaftRequest::Status { .. } => true,
            RaftRequest::Transfer { to } => to.is_some() && self.leader == *to,
            RaftRequest::Add { peer, seat } => named(&seat.name).is_some_and(|one| {
                (one.peer, &one.raft_address, &one.admin_address)
                    == (*peer, &seat.raft_address, &seat.admin_address)
            }),
            RaftRequest::Promote { name, replaces } => {
                let is_in = replaces.as_ref().is_some_and(|replaces| named(replaces).is_some());
                named(name).is_some_and(|one| one.role == "voter") && !is_in
            }
            RaftRequest::Remove { name } => named(name).is_none(),
        }
    }
}

impl Admin {
    /// Has done what is asked; under a name once it is done no more, and until then whoever asks again goes on with it.
    async fn once(&self, asked: AskedAs, request: RaftRequest) -> Answer<Group> {
        let AskedAs(Some(name)) = asked else { return Ok(Json(self.carry_out(request).await?)) };
        let [done, refused] = [name.part(1), name.part(2)];
        let (group, before) = self.asked_before(&[name, done, refused]).await?;
        let [is_asked, is_done, was_refused] = [0, 1, 2].map(|at| before[at].is_some());
        if is_done {
            return Ok(Json(self.ask_leader(RaftRequest::Status { stale: false }).await?));
        }
        // Where leadership may go to anybody, it is to leave who had it when that was begun, and nobody else.
        let from = match &request {
            RaftRequest::Transfer { to: None } => {
                Some(group.leading().ok_or(WireError::NotLeader { leader: None })?)
            }
            _ => None,
        };
        let led = from.map(|from| name.part(LED_BY.saturating_add(from.peer)));
        match led {
            Some(led) if is_asked => {
                let (group, before) = self.asked_before(&[led]).await?;
                if before[0].is_none() {
                    self.remember_in_time(done).await;
                    return Ok(Json(group));
                }
            }
            Some(led) => self.remember(led).await?,
            None => {}
        }
        if !is_asked {
            self.remember(name).await?;
        }
        let carried_out = match from {
            Some(from) => self.hand_over_from(from, done).await,
            None => self.carry_out(request.clone()).await,
        };
        let answer = match carried_out {
            Err(trouble) if is_asked && !was_refused => self.comes_about(&request, trouble).await,
            answer => answer,
        };
        match &answer {
            Ok(_) => self.remember_in_time(done).await,
            Err(trouble) if trouble.is_refusal() => self.remember_in_time(refused).await,
            Err(_) => {}
        }
        Ok(Json(answer?))
    }

    /// Has leadership leave `from`, unless it has left it by now or that is done: whoever has it then keeps it.
    async fn hand_over_from(&self, from: &Member, done: Name) -> Result<Group, Trouble> {
        let request = ControlRequest::Raft(RaftRequest::Transfer { to: None });
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            // Nobody else is asked: a new leader would hand it on.
            let reply = match from.peer == self.sources.us {
                true => Ok(self.sources.control.serve(Role::Coordinator, request.clone()).await),
                false => ask_peer(&from.raft_address, &self.sources.identity, &request, LIMIT).await,
            };
            match reply.unwrap_or(ControlReply::Failed(WireError::OutcomeUnknown)) {
                ControlReply::Raft(report) => {
                    let group = self.ask_leader(RaftRequest::Status { stale: false }).await;
                    return Ok(group.unwrap_or_else(|_| report.into()));
                }
                ControlReply::Failed(WireError::NotLeader { .. } | WireError::Busy { .. })
                    if tokio::time::Instant::now() + PAUSE < deadline =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                ControlReply::Failed(error) => return Err(error.into()),
                other => return Err(WireError::internal(format_args!("unexpected answer {other:?}")).into()),
            }
            let (group, before) = self.asked_before(&[done]).await?;
            if before[0].is_some() || group.leader.as_ref() != Some(&from.name) {
                return Ok(group);
            }
        }
    }

    /// Waits a moment for what somebody else was asked for to come about.
    ///
    /// # Errors
    /// With what stands against it, when it does not.
    async fn comes_about(&self, request: &RaftRequest, trouble: Trouble) -> Result<Group, Trouble> {
        let deadline = tokio::time::Instant::now() + SETTLE;
        loop {
            match self.ask_leader(RaftRequest::Status { stale: false }).await {
                Ok(group) if group.is_as(request) => return Ok(group),
                _ if tokio::time::Instant::now() > deadline => return Err(trouble),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn carry_out(&self, request: RaftRequest) -> Result<Group, Trouble> {
        match request {
            RaftRequest::Transfer { .. } => {
                let handed_over = self.ask_leader(request).await?;
                // Who has handed it over hears nobody as a leader does. It is done, also where the new one does not tell more.
                Ok(self.ask_leader(RaftRequest::Status { stale: false }).await.unwrap_or(handed_over))
            }
            RaftRequest::Promote { .. } | RaftRequest::Remove { .. } => self.ask_to_leave(request).await,
            RaftRequest::Add { .. } | RaftRequest::Status { .. } => self.ask_leader(request).await,
        }
    }

    /// Asks for a change that takes a coordinator away. Where it leads and nothing else stands against that, another leads first.
    async fn ask_to_leave(&self, request: RaftRequest) -> Result<Group, Trouble> {
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
                        answer => return answer,
                    }
                }
            }
            answer => answer,
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
#[utoipa::path(post, path = "/v1/raft/transfer", params(AskedAs), request_body = Transfer, responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn transfer(
    State(admin): Shared,
    asked: AskedAs,
    body: Result<Json<Object<Transfer>>, JsonRejection>,
) -> Answer<Group> {
    let Json(Object(wanted)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    admin.once(asked, RaftRequest::Transfer { to: wanted.to }).await
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
#[utoipa::path(post, path = "/v1/raft/members", params(AskedAs), request_body = NewMember, responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn add(
    State(admin): Shared,
    asked: AskedAs,
    body: Result<Json<Object<NewMember>>, JsonRejection>,
) -> Answer<Group> {
    let Json(Object(wanted)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    let NewMember { name, peer, raft_address, admin_address } = wanted;
    let seat = Seat { name, raft_address, admin_address };
    admin.once(asked, RaftRequest::Add { peer, seat }).await
}

/// Gives a coordinator that has caught up its vote, in another's place if wanted. Should that one lead, another leads first.
#[utoipa::path(post, path = "/v1/raft/members/{name}/promote", params(("name" = String, Path, description = "The coordinator's name"), AskedAs), request_body = Promotion, responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn promote(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Object<Promotion>>, JsonRejection>,
) -> Answer<Group> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let Json(Object(Promotion { replaces })) =
        body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    admin.once(asked, RaftRequest::Promote { name, replaces }).await
}

/// Removes a coordinator, if the others can go on without it. Should it lead, another leads first.
#[utoipa::path(delete, path = "/v1/raft/members/{name}", params(("name" = String, Path, description = "The coordinator's name"), AskedAs), responses((status = 200, body = Group), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn remove(
    State(admin): Shared,
    asked: AskedAs,
    name: Result<Path<String>, PathRejection>,
) -> Answer<Group> {
    let Path(name) = name.map_err(|error| Trouble::bad_request(error.body_text()))?;
    admin.once(asked, RaftRequest::Remove { name }).await
}
