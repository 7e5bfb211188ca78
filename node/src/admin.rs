//! What an operator may have a node do: write its snapshot or take one in. Whoever asks shows a token that gives the role. No path
//! comes from outside: snapshots are in the node's own folder, or beside it under a name.

use crate::persist::{Job, Jobs, Refused, Verb};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use kvhive_runtime::http::{Access, Problem};
use serde::Deserialize;
use std::sync::Arc;

/// The largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;

/// What the routes work with.
pub(crate) struct Admin {
    /// None at a node without a snapshot folder.
    jobs: Option<Arc<Jobs>>,
}

/// Which snapshot is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Its name beside the node's own, which is meant without one.
    name: Option<String>,
    /// Fingerprint of the layout whose blocks alone are taken in; of any without one.
    layout: Option<String>,
}

/// Returns the routes below `/v1/snapshot`.
pub(crate) fn routes(access: Access, jobs: Option<Arc<Jobs>>) -> Router {
    let admin = Arc::new(Admin { jobs });
    Router::new()
        .route("/v1/snapshot", get(last))
        .route("/v1/snapshot/persist", post(persist))
        .route("/v1/snapshot/load", post(load))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(Arc::new(access), Access::check))
        .with_state(admin)
}

fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Response {
    Problem::new(status, code, message).into_response()
}

async fn last(State(admin): State<Arc<Admin>>) -> Response {
    match admin.jobs.as_ref().and_then(|jobs| jobs.last()) {
        Some(job) => Json::<Job>(job).into_response(),
        None => refusal(
            StatusCode::NOT_FOUND,
            "not_found",
            "nobody has asked for a snapshot since the node started",
        ),
    }
}

async fn persist(State(admin): State<Arc<Admin>>, body: Result<Json<Wanted>, JsonRejection>) -> Response {
    begin(&admin, Verb::Persist, body)
}

async fn load(State(admin): State<Arc<Admin>>, body: Result<Json<Wanted>, JsonRejection>) -> Response {
    begin(&admin, Verb::Load, body)
}

fn begin(admin: &Admin, verb: Verb, body: Result<Json<Wanted>, JsonRejection>) -> Response {
    let Json(Wanted { name, layout }) = match body {
        Ok(wanted) => wanted,
        Err(error) => return refusal(error.status(), "bad_request", error.body_text()),
    };
    let Some(jobs) = &admin.jobs else {
        let message = "this node has no folder for snapshots: give it a persist_dir and start it again";
        return refusal(StatusCode::CONFLICT, "no_folder", message);
    };
    match jobs.begin(verb, name.as_deref(), layout.as_deref()) {
        Ok(job) => (StatusCode::ACCEPTED, Json(job)).into_response(),
        Err(Refused::Busy) => {
            refusal(StatusCode::CONFLICT, "busy", "another snapshot is under way; see GET /v1/snapshot")
        }
        Err(Refused::Name) => {
            let message = "a snapshot's name has 1 to 63 letters, digits, - and _";
            refusal(StatusCode::BAD_REQUEST, "bad_request", message)
        }
        Err(Refused::Layout) => {
            let message = "a layout is the 32 hexadecimal digits of its fingerprint, and is for load alone";
            refusal(StatusCode::BAD_REQUEST, "bad_request", message)
        }
    }
}
