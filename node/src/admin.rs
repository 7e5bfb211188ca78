//! What an operator may have a node do: write its snapshot or take one in. Whoever asks shows the cluster's token. No path comes
//! from outside: snapshots are in the node's own folder, or beside it under a name.

use crate::persist::{Job, Jobs, Refused, Verb};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// The largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;

/// What the routes work with.
pub(crate) struct Admin {
    /// Digest of the cluster's token.
    token: blake3::Hash,
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
pub(crate) fn routes(token: &[u8], jobs: Option<Arc<Jobs>>) -> Router {
    let admin = Arc::new(Admin { token: blake3::hash(token), jobs });
    Router::new()
        .route("/v1/snapshot", get(last))
        .route("/v1/snapshot/persist", post(persist))
        .route("/v1/snapshot/load", post(load))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(admin.clone(), check))
        .with_state(admin)
}

/// Lets a request pass that carries `Authorization: Bearer TOKEN`.
async fn check(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.split_once(' '));
    let shown =
        shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map_or("", |(_, token)| token);
    // Digests are compared in the same time whatever they are.
    if blake3::hash(shown.as_bytes()) == admin.token {
        return next.run(request).await;
    }
    let message = "send the cluster's token as `Authorization: Bearer TOKEN`";
    let mut response = refusal(StatusCode::UNAUTHORIZED, "unauthorized", message);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
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
        Err(error) => return refusal(error.status(), "bad_request", &error.body_text()),
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
