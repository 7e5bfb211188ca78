//! The routes.

use super::answers::{Cluster, Consistency, Coordinator, Freshness, SlotList, SlotQuery, Stats, Trouble};
use super::asked::AskedAs;
use super::audit::{Audit, From};
use super::check_blocks::MAX_CHECK_BODY_BYTES;
use super::document::Document;
use super::events::Listeners;
use super::lanes::Lanes;
use super::pins::MAX_PIN_BODY_BYTES;
use super::route::MAX_ROUTE_BODY_BYTES;
use super::{
    asked, backup, balance, check_blocks, config, dashboard, devices, document, drains, engines, events,
    figures, members, moves, overview, pins, raft, route, scaling, tenants, traces,
};
use crate::actors::mailbox::{Raft, RaftMessage};
use crate::actors::vitals::Vitals;
use crate::blocks::Publisher;
use crate::config::PeerConfig;
use crate::control_plane::{ControlPlane, ask_peer, trouble};
use crate::log_thread::LogFigures;
use axum::body::HttpBody;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use kvhive_protocol::control::{
    Command, CommandReply, ControlReply, ControlRequest, CoordinatorStatus, Overview,
};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{Level, Reason, RequestId, WireError};
use kvhive_runtime::http::{Access, Problem};
use kvhive_runtime::{BoundedListener, DoorLimits, stopped};
use kvhive_spans::Tracer;
use kvhive_wire::{Fault, Identity, Tls};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

/// The largest request body, in bytes.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;
/// The longest a read may take, the leader included.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(5);
/// The longest a change may take that waits for no lease.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);
/// The longest that answers under way may hold up a shutdown.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// What strangers can hold of the listener. A clear is answered when the longest lease that there can be has run out.
const DOOR: DoorLimits = DoorLimits {
    connections: 1024,
    head: Duration::from_secs(5),
    answer: Duration::from_secs(900),
    idle: Duration::from_secs(60),
};
/// A change is refused when nobody has led for as long, and for as many election timeouts: that is no election.
const ELECTION_LIMIT: Duration = Duration::from_secs(3);
const ELECTION_TIMEOUTS: u32 = 4;
/// A coordinator that does not say how it is within this is shown as unreachable.
pub(super) const PEER_LIMIT: Duration = Duration::from_millis(500);

/// Where the admin API gets its answers.
pub(crate) struct Sources {
    pub(crate) raft: Raft,
    pub(crate) control: ControlPlane,
    pub(crate) identity: Identity,
    pub(crate) us: u64,
    /// Everybody that this coordinator knows of.
    pub(crate) peers: watch::Receiver<Vec<PeerConfig>>,
    pub(crate) log: Arc<LogFigures>,
    pub(crate) vitals: watch::Receiver<Vitals>,
    pub(crate) tracer: Tracer,
    pub(crate) publisher: Option<Publisher>,
    /// How long no leader is heard before another is voted for.
    pub(crate) election_timeout: Duration,
    /// What it was started with.
    pub(crate) own: config::Own,
}

/// What the admin API works with.
pub(crate) struct Admin {
    pub(super) sources: Sources,
    access: Arc<Access>,
    audit: Arc<Audit>,
    lanes: Lanes,
    pub(super) listeners: Listeners,
}

pub(super) type Shared = State<Arc<Admin>>;
pub(super) type Answer<T> = Result<Json<T>, Trouble>;

impl Admin {
    /// Makes the API's state; `random` are fresh random bytes.
    pub(crate) fn new(
        sources: Sources,
        listeners: Listeners,
        access: Access,
        audit: Audit,
        random: [u8; 16],
    ) -> Admin {
        let lanes = Lanes::new(u128::from_le_bytes(random));
        Admin { sources, access: Arc::new(access), audit: Arc::new(audit), lanes, listeners }
    }

    /// Everything the leader knows, or what this coordinator knows itself.
    pub(super) async fn overview(&self, freshness: Freshness) -> Result<Overview, Trouble> {
        let linearizable = freshness == Freshness::Linearizable;
        let reply =
            self.sources.raft.ask(READ_LIMIT, |reply| RaftMessage::Overview { linearizable, reply }).await;
        let reply = reply.map_err(trouble)?;
        match self.or_leader(reply, &ControlRequest::Overview, READ_LIMIT).await? {
            ControlReply::Overview(overview) => Ok(*overview),
            ControlReply::Failed(error) => Err(error.into()),
            other => Err(WireError::internal(format_args!("unexpected answer {other:?}")).into()),
        }
    }

    /// Returns this coordinator's own answer, or the leader's where the own one says who leads.
    ///
    /// # Errors
    /// When the leader does not answer.
    pub(super) async fn or_leader(
        &self,
        own: ControlReply,
        request: &ControlRequest,
        limit: Duration,
    ) -> Result<ControlReply, Silent> {
        let ControlReply::Failed(WireError::NotLeader { leader: Some(leader) }) = own else { return Ok(own) };
        let asked = ask_peer(&leader, &self.sources.identity, request, limit).await;
        asked.map_err(|fault| Silent { leader, fault })
    }

    /// Has a change applied, here or by the leader; repeated under the same id while its outcome is unknown. One that its asker
    /// has named happens once, whichever coordinators are asked for it.
    pub(super) async fn submit(&self, asked: AskedAs, command: Command) -> Result<CommandReply, Trouble> {
        self.submit_because(asked, command, Reason::default()).await
    }

    /// Has a change applied for this reason, as [`Admin::submit`] does.
    pub(super) async fn submit_because(
        &self,
        asked: AskedAs,
        command: Command,
        reason: Reason,
    ) -> Result<CommandReply, Trouble> {
        let reason = reason.or("asked for through the admin API");
        if let AskedAs(Some(name)) = asked {
            return self.submit_as(name.at(self.level()), command, reason).await;
        }
        let request = self.lanes.take();
        let submitted = self.submit_as(request, command, reason).await;
        // One that is given up half-way keeps its lane: a repeat of it may still be on its way.
        self.lanes.give_back(request);
        submitted
    }

    /// Returns the cluster's level, as this coordinator knows it.
    pub(super) fn level(&self) -> Level {
        self.sources.vitals.borrow().level
    }

    async fn submit_as(
        &self,
        request: RequestId,
        command: Command,
        reason: Reason,
    ) -> Result<CommandReply, Trouble> {
        let request = ControlRequest::Submit { request, command, reason };
        let limit = change_limit(self.sources.vitals.borrow().lease);
        let election = election_limit(self.sources.election_timeout);
        let deadline = tokio::time::Instant::now() + limit;
        // Since when nobody leads, and whether something can have come of it before.
        let (mut leaderless, mut may_be_made) = (None, false);
        loop {
            let own = self.sources.control.serve(Role::Coordinator, request.clone()).await;
            let reply = self.or_leader(own, &request, CHANGE_LIMIT).await;
            match reply.unwrap_or(ControlReply::Failed(WireError::OutcomeUnknown)) {
                ControlReply::Done(CommandReply::Rejected(error)) => return Err(error.into()),
                ControlReply::Done(done) => return Ok(done),
                ControlReply::Failed(
                    error @ (WireError::OutcomeUnknown
                    | WireError::NotLeader { .. }
                    | WireError::Busy { .. }
                    | WireError::Deadline),
                ) => {
                    let now = tokio::time::Instant::now();
                    may_be_made |= matches!(error, WireError::OutcomeUnknown | WireError::Deadline);
                    leaderless = match error {
                        WireError::NotLeader { leader: None } => leaderless.or(Some(now)),
                        _ => None,
                    };
                    if leaderless.is_some_and(|since| now - since >= election) {
                        return Err(if may_be_made { WireError::OutcomeUnknown } else { error }.into());
                    }
                    if tokio::time::Instant::now() + PEER_LIMIT > deadline {
                        return Err(error.into());
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                ControlReply::Failed(error) => return Err(error.into()),
                other => return Err(WireError::internal(format_args!("unexpected answer {other:?}")).into()),
            }
        }
    }

    async fn coordinators(&self) -> Vec<Coordinator> {
        let peers = self.sources.peers.borrow().clone();
        let asks = peers.iter().map(|peer| async move {
            let status = if peer.peer == self.sources.us {
                self.sources.raft.ask(PEER_LIMIT, |reply| RaftMessage::Status { reply }).await.ok()
            } else {
                match ask_peer(
                    &peer.raft_address,
                    &self.sources.identity,
                    &ControlRequest::Status,
                    PEER_LIMIT,
                )
                .await
                {
                    Ok(ControlReply::Status(status)) => Some(status),
                    _ => None,
                }
            };
            coordinator(peer, status)
        });
        futures_util::future::join_all(asks).await
    }
}

/// A leader that did not answer, and why not.
pub(super) struct Silent {
    leader: String,
    fault: Fault,
}

impl std::convert::From<Silent> for Trouble {
    fn from(Silent { leader, fault }: Silent) -> Trouble {
        Trouble::unavailable(format!("the leader at {leader} does not answer: {fault}"))
    }
}

/// Returns how long a change may take: a clear waits for the lease of a member that is silent, and a leader elected meanwhile
/// waits for all of it once more.
fn change_limit(lease: Option<Duration>) -> Duration {
    CHANGE_LIMIT + 2 * lease.unwrap_or_default()
}

/// Returns how long nobody may lead before it is taken for more than an election.
fn election_limit(timeout: Duration) -> Duration {
    ELECTION_LIMIT.max(timeout.saturating_mul(ELECTION_TIMEOUTS))
}

fn coordinator(peer: &PeerConfig, status: Option<CoordinatorStatus>) -> Coordinator {
    let admin_address = peer.admin_address.clone();
    match status {
        Some(status) => Coordinator {
            name: peer.name.clone(),
            peer: peer.peer,
            role: status.role,
            term: status.term,
            committed: status.committed,
            applied: status.applied,
            epoch: status.epoch.0,
            speaks: Some(status.speaks.0),
            admin_address,
        },
        None => Coordinator {
            name: peer.name.clone(),
            peer: peer.peer,
            role: "unreachable".to_owned(),
            term: 0,
            committed: 0,
            applied: 0,
            epoch: 0,
            speaks: None,
            admin_address,
        },
    }
}

/// Makes all routes and their OpenAPI document.
fn router(admin: Arc<Admin>) -> Router {
    let (guarded, guarded_doc) = OpenApiRouter::with_openapi(<Document as utoipa::OpenApi>::openapi())
        .routes(routes!(metrics_text))
        .routes(routes!(cluster))
        .routes(routes!(members::members))
        .routes(routes!(members::member, members::change_member, members::remove_member))
        .routes(routes!(devices::devices))
        .routes(routes!(devices::device))
        .routes(routes!(drains::drains))
        .routes(routes!(slots))
        .routes(routes!(moves::moves))
        .routes(routes!(config::config))
        .routes(routes!(balance::balance))
        .routes(routes!(tenants::tenants, tenants::create_tenant))
        .routes(routes!(tenants::tenant, tenants::change_tenant, tenants::delete_tenant))
        .routes(routes!(tenants::clear_tenant))
        .routes(routes!(tenants::rotate_secret))
        .routes(routes!(stats))
        .routes(routes!(events::events))
        .routes(routes!(events::stream))
        .routes(routes!(check_blocks::check_blocks).layer(DefaultBodyLimit::max(MAX_CHECK_BODY_BYTES)))
        .routes(routes!(traces::traces))
        .routes(routes!(traces::trace))
        .routes(routes!(backup::backup))
        .routes(routes!(raft::group))
        .routes(routes!(raft::transfer))
        .routes(routes!(raft::add))
        .routes(routes!(raft::remove))
        .routes(routes!(raft::promote))
        .routes(routes!(scaling::scaling, scaling::change_policy, scaling::set_size))
        .routes(routes!(engines::engines, engines::follow_engine))
        .routes(routes!(engines::forget_engine))
        .routes(routes!(engines::engine_load))
        .routes(routes!(pins::pins, pins::add_pin).layer(DefaultBodyLimit::max(MAX_PIN_BODY_BYTES)))
        .routes(routes!(pins::remove_pin))
        .routes(routes!(route::route).layer(DefaultBodyLimit::max(MAX_ROUTE_BODY_BYTES)))
        .split_for_parts();
    let (open, open_doc) =
        OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).split_for_parts();
    let mut document = guarded_doc;
    document::finish(&mut document);
    document.merge(open_doc);
    let guarded = guarded
        .route("/openapi.json", axum::routing::get(move || async move { Json(document) }))
        .layer(middleware::from_fn(asked::take_print))
        .layer(middleware::from_fn_with_state(admin.clone(), traces::follow))
        .layer(middleware::from_fn_with_state(admin.clone(), only_of_the_group))
        .layer(middleware::from_fn_with_state(admin.audit.clone(), Audit::note))
        .layer(middleware::from_fn_with_state(admin.access.clone(), Access::check));
    guarded
        .merge(open)
        .merge(dashboard::routes())
        .fallback(|| async { Trouble::not_found("no such route; see /openapi.json".to_owned()) })
        .method_not_allowed_fallback(|| async { Trouble::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(refuse_large_bodies))
        .with_state(admin)
}

/// Serves the admin API until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    admin: Arc<Admin>,
    tls: Option<Tls>,
    mut stop: watch::Receiver<bool>,
) {
    let mut stop_again = stop.clone();
    let until = async move { stopped(&mut stop).await };
    let listener = BoundedListener::new(listener, DOOR, tls);
    let routes = router(admin).into_make_service_with_connect_info::<From>();
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(until).into_future() => {
            if let Err(error) = served {
                tracing::error!(%error, "the admin listener failed");
            }
        }
        // Whoever is in the middle of a request gets its answer; whoever just holds a connection does not hold us.
        () = async { stopped(&mut stop_again).await; tokio::time::sleep(STOP_GRACE).await } => {}
    }
}

/// Refuses what is asked of a coordinator that was removed, but its own figures.
async fn only_of_the_group(State(admin): Shared, request: Request, next: Next) -> Response {
    let is_removed = admin.sources.vitals.borrow().is_removed();
    match is_removed && request.uri().path().starts_with("/v1/") {
        true => Trouble::misdirected().into_response(),
        false => next.run(request).await,
    }
}

/// Returns the most bytes that a body may have.
pub(super) fn most_bytes(path: &str) -> usize {
    // A prompt is larger than any change, and many keys than most.
    match path {
        "/v1/route" => MAX_ROUTE_BODY_BYTES,
        "/v1/pins" => MAX_PIN_BODY_BYTES,
        "/check_blocks" => MAX_CHECK_BODY_BYTES,
        _ => MAX_BODY_BYTES,
    }
}

/// Refuses a body that announces itself as too large, before a byte of it is read.
async fn refuse_large_bodies(request: Request, next: Next) -> Response {
    let most = most_bytes(request.uri().path());
    match request.body().size_hint().lower() {
        bytes if bytes > most as u64 => Trouble::too_large(most).into_response(),
        _ => next.run(request).await,
    }
}

/// Says that this process lives.
#[utoipa::path(get, path = "/healthz", security(()), responses((status = 200, description = "It lives")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Says whether this coordinator can serve: it votes, a leader is known, and it has the cluster's map. Strangers may ask, so
/// it answers from what it knows already.
#[utoipa::path(get, path = "/readyz", security(()), responses((status = 200, description = "Ready"), (status = 503, description = "Not yet, and why")))]
async fn readyz(State(admin): Shared) -> Response {
    match admin.sources.vitals.borrow().ready() {
        Ok(()) => "ready\n".into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")).into_response(),
    }
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Prometheus text format")))]
async fn metrics_text(State(admin): Shared) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], figures::render(&admin).await).into_response()
}

/// The cluster at a glance.
#[utoipa::path(get, path = "/v1/cluster", params(Consistency), responses((status = 200, body = Cluster), (status = 503, body = Problem)))]
async fn cluster(State(admin): Shared, query: Result<Query<Consistency>, QueryRejection>) -> Answer<Cluster> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let (overview, coordinators) = tokio::join!(admin.overview(query.consistency), admin.coordinators());
    Ok(Json(overview::cluster(&overview?, coordinators)))
}

/// Where slots are placed.
#[utoipa::path(get, path = "/v1/slots", params(SlotQuery), responses((status = 200, body = SlotList), (status = 503, body = Problem)))]
async fn slots(State(admin): Shared, query: Result<Query<SlotQuery>, QueryRejection>) -> Answer<SlotList> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    Ok(Json(overview::slot_list(&admin.overview(query.consistency).await?, &query)))
}

/// Sums over all devices, as last reported.
#[utoipa::path(get, path = "/v1/stats", params(Consistency), responses((status = 200, body = Stats), (status = 503, body = Problem)))]
async fn stats(State(admin): Shared, query: Result<Query<Consistency>, QueryRejection>) -> Answer<Stats> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    Ok(Json(overview::stats(&admin.overview(query.consistency).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_may_take_as_long_as_the_longest_lease_and_no_longer_than_its_connection() {
        let longest = Duration::from_millis(*kvhive_control::LEASE_MS.end());
        let limit = change_limit(Some(longest));
        assert!(limit > 2 * longest && limit < DOOR.answer, "{limit:?}");
        assert_eq!(change_limit(None), CHANGE_LIMIT);
    }

    #[test]
    fn an_election_may_take_as_long_as_its_timeout_makes_it() {
        assert_eq!(election_limit(Duration::from_millis(300)), ELECTION_LIMIT);
        assert_eq!(election_limit(Duration::from_secs(5)), Duration::from_secs(20));
    }
}
