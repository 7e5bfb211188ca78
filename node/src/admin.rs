//! What an operator may ask of a node and have it do: how its devices reach others; write its snapshot or take one in, list those that it has, remove one. Whoever
//! asks shows a token that gives the role. No path comes from outside: snapshots are in the node's own folder, or beside it under a name.

use crate::links::{LinkFrom, Links, SetFrom};
use crate::persist::{BEFORE, Job, Jobs, MAX_NAMED, PersistError, Refused, Standing, Verb};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router};
use kvhive_protocol::pairs::PairsReport;
use kvhive_runtime::http::{Access, Problem};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 4096;

/// What the routes work with.
pub(crate) struct Admin {
    /// None at a node without a snapshot folder.
    jobs: Option<Arc<Jobs>>,
    links: Arc<Links>,
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

/// Returns the routes below `/v1/links`, `/v1/snapshot` and `/v1/snapshots`.
pub(crate) fn routes(access: Access, jobs: Option<Arc<Jobs>>, links: Arc<Links>) -> Router {
    let admin = Arc::new(Admin { jobs, links });
    all()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| router.route(path, handler))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(Arc::new(access), Access::check))
        .with_state(admin)
}

/// Each route: its method, its path, and who answers.
fn all() -> [(&'static str, &'static str, MethodRouter<Arc<Admin>>); 6] {
    [
        ("GET", "/v1/links", get(links_of)),
        ("GET", "/v1/snapshot", get(last)),
        ("POST", "/v1/snapshot/persist", post(persist)),
        ("POST", "/v1/snapshot/load", post(load)),
        ("GET", "/v1/snapshots", get(list)),
        ("DELETE", "/v1/snapshots/{name}", delete(remove)),
    ]
}

/// Returns method and path of each route.
#[cfg(test)]
pub(crate) fn paths() -> Vec<(&'static str, &'static str)> {
    all().into_iter().map(|(method, path, _)| (method, path)).collect()
}

/// How a node's devices reach others.
#[derive(Serialize)]
struct AllLinks {
    links: Vec<LinkFrom>,
    /// How they give several others the same.
    sets: Vec<SetFrom>,
    /// What each of its GPUs does with NCCL; none where there is nothing of it.
    nccl: Vec<PairsReport>,
}

async fn links_of(State(admin): State<Arc<Admin>>) -> Json<AllLinks> {
    Json(AllLinks { links: admin.links.report(), sets: admin.links.sets(), nccl: admin.links.pairs() })
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

/// What was removed.
#[derive(Serialize)]
struct Removed {
    removed: String,
}

/// A node's snapshots.
#[derive(Serialize)]
struct All {
    snapshots: Vec<Standing>,
    /// As many may stand under a name.
    most: usize,
}

fn no_folder() -> Response {
    let message = "this node has no folder for snapshots: give it a persist_dir and start it again";
    refusal(StatusCode::CONFLICT, "no_folder", message)
}

fn failed(error: &PersistError) -> Response {
    match error {
        PersistError::InUse { .. } => refusal(StatusCode::CONFLICT, "busy", error.to_string()),
        _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string()),
    }
}

async fn list(State(admin): State<Arc<Admin>>) -> Response {
    let Some(jobs) = &admin.jobs else { return no_folder() };
    match jobs.list().await {
        Ok(snapshots) => Json(All { snapshots, most: MAX_NAMED }).into_response(),
        Err(error) => failed(&error),
    }
}

async fn remove(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let Some(jobs) = &admin.jobs else { return no_folder() };
    match jobs.remove(&name).await {
        Ok(Some(())) => Json(Removed { removed: name }).into_response(),
        Ok(None) => refusal(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("the node has no snapshot {name:?} beside its own; see GET /v1/snapshots"),
        ),
        Err(error) => failed(&error),
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
    let Some(jobs) = &admin.jobs else { return no_folder() };
    match jobs.begin(verb, name.as_deref(), layout.as_deref()) {
        Ok(job) => (StatusCode::ACCEPTED, Json(job)).into_response(),
        Err(Refused::Busy) => {
            refusal(StatusCode::CONFLICT, "busy", "another snapshot is under way; see GET /v1/snapshot")
        }
        Err(Refused::Name) => {
            let message = "a snapshot's name has 1 to 63 letters, digits, - and _";
            refusal(StatusCode::BAD_REQUEST, "bad_request", message)
        }
        Err(Refused::Kept) => {
            let message =
                format!("{BEFORE:?} is where the node itself puts a snapshot aside; give another name");
            refusal(StatusCode::BAD_REQUEST, "bad_request", message)
        }
        Err(Refused::Layout) => {
            let message = "a layout is the 32 hexadecimal digits of its fingerprint, and is for load alone";
            refusal(StatusCode::BAD_REQUEST, "bad_request", message)
        }
    }
}
