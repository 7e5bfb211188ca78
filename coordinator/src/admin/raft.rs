//! The coordinators themselves: handing leadership over.

use super::answers::Trouble;
use super::routes::{Admin, Answer, MAX_BODY_BYTES, Shared};
use crate::control_plane::ask_peer;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use kvhive_protocol::WireError;
use kvhive_protocol::control::{ControlReply, ControlRequest};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::raft::{RaftReport, RaftRequest};
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
}

/// To whom leadership goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    /// A coordinator's name; whoever has most of the log when null.
    to: Option<String>,
}

impl From<RaftReport> for Group {
    fn from(report: RaftReport) -> Group {
        Group { leader: report.leader, term: report.term }
    }
}

impl Admin {
    /// Asks the leader, wherever it is. What was begun is not asked again: its outcome is for the asker to look at.
    async fn ask_leader(&self, request: RaftRequest) -> Result<Group, Trouble> {
        let request = ControlRequest::Raft(request);
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let mut reply = self.sources.control.serve(Role::Coordinator, request.clone()).await;
            if let ControlReply::Failed(WireError::NotLeader { leader: Some(leader) }) = &reply {
                reply = match ask_peer(leader, &self.sources.identity, &request, LIMIT).await {
                    Ok(reply) => reply,
                    Err(_) => ControlReply::Failed(WireError::OutcomeUnknown),
                };
            }
            match reply {
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

/// Hands leadership over; answered when another leads.
#[utoipa::path(post, path = "/v1/raft/transfer", request_body = Transfer, responses((status = 200, body = Group), (status = 400, body = Problem), (status = 401, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn transfer(
    State(admin): Shared,
    body: Result<Json<Transfer>, JsonRejection>,
) -> Answer<Group> {
    let Json(wanted) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    Ok(Json(admin.ask_leader(RaftRequest::Transfer { to: wanted.to }).await?))
}
