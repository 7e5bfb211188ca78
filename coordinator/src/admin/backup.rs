//! The replicated state as a file to keep: taken by whoever is asked, as new as any change that was acknowledged before.

use super::answers::Trouble;
use super::routes::{Admin, Shared};
use crate::actors::mailbox::RaftMessage;
use crate::backup::Backup;
use crate::control_plane::trouble;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kvhive_protocol::WireError;
use kvhive_protocol::raft::RaftRequest;
use kvhive_runtime::http::Problem;
use std::time::Duration;
use tokio::time::Instant;

/// The longest that this coordinator may take to apply what the leader has.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest that it may take to copy its state.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Wait before it is looked again how far it is.
const PAUSE: Duration = Duration::from_millis(20);

impl Admin {
    /// The leader says how far the log is now; the state is this coordinator's own as soon as it is as far. So it comes from one
    /// process and crosses no other's line: a state may be larger than a message between coordinators.
    async fn take_backup(&self) -> Result<Backup, Trouble> {
        let wanted = self.ask_leader(RaftRequest::Status { stale: false }).await?.applied();
        let deadline = Instant::now() + LIMIT;
        loop {
            let asked = self.sources.raft.ask(ANSWER_LIMIT, |reply| RaftMessage::State { reply }).await;
            let (registry, applied, term) = asked.map_err(|error| Trouble::from(trouble(error)))?;
            if applied >= wanted {
                let backup = Backup::of(registry, (applied, term), kvhive_runtime::wall_ms());
                return backup.ok_or_else(|| WireError::busy("the cluster has not started yet").into());
            }
            if Instant::now() > deadline {
                return Err(Trouble::unavailable(format!(
                    "this coordinator has applied entry {applied} and the leader {wanted}: ask another"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// All that the coordinators remember, the tenants' secrets included, for `kvhive restore`: tenants and their rules, nodes, where
/// slots are, remembered requests and events. No blocks.
#[utoipa::path(get, path = "/v1/backup", responses((status = 200, description = "The backup", body = Vec<u8>, content_type = "application/octet-stream"), (status = 503, body = Problem)))]
pub(super) async fn backup(State(admin): Shared) -> Result<Response, Trouble> {
    let backup = admin.take_backup().await?;
    // Some tens of megabytes at most, which is too long for a thread that others wait for.
    let bytes = tokio::task::spawn_blocking(move || backup.encode()).await;
    let bytes =
        bytes.map_err(|error| Trouble::from(WireError::internal(format_args!("no backup: {error}"))))?;
    let head = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((head, bytes).into_response())
}
