//! One connection: receive a request, do it, answer; one at a time, until the peer leaves or breaks the protocol.

use crate::actors::core::DeviceMessage;
use crate::data::check;
use crate::data::counters::{add, count};
use crate::data::decode::Held;
use crate::data::grants::Grants;
use crate::data::names;
use crate::data::plane::{DataPlane, UNSAID};
use crate::data::recall::Noted;
use crate::data::traced;
use crate::view::Serving;
use kvhive_cache::member;
use kvhive_gpu::worker::Packing;
use kvhive_protocol::data::{
    DataReply, DataRequest, MAX_KEYS_PER_MATCH, MAX_KEYS_PER_RELEASE, MatchRequest, PairRequest,
    ReleaseRequest, StrategiesRequest,
};
use kvhive_protocol::explain::{ExplainRequest, MAX_KEYS_PER_EXPLAIN};
use kvhive_protocol::frame::{FrameHeader, Kind};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::number::time_left;
use kvhive_protocol::recall::RecallRequest;
use kvhive_protocol::share::{LookRequest, NotShared, ShareAnswer, ShareRequest};
use kvhive_protocol::stage::LendRequest;
use kvhive_protocol::survey::SurveyRequest;
use kvhive_protocol::trace::TraceRequest;
use kvhive_protocol::watch::WatchRequest;
use kvhive_protocol::{DeviceId, Epoch, TraceContext, WireError};
use kvhive_runtime::stopped;
use kvhive_spans::Span;
use kvhive_wire::{Connection, Fault, Peer};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};
use tracing::debug;

/// A connection without a request for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// Serves one connection to its end, or to the end of its present request once `stop` turns true.
pub(super) async fn serve_connection(
    mut connection: Connection,
    peer: Peer,
    plane: &DataPlane,
    mut stop: watch::Receiver<bool>,
) {
    let mut grants = Grants::default();
    loop {
        let received = {
            // Not begun anew: one dropped half-way would break the connection.
            let mut receiving = pin!(timeout(IDLE_LIMIT, connection.receive()));
            loop {
                tokio::select! {
                    received = &mut receiving => break received,
                    () = over(&grants) => {
                        add(&plane.counters.grants_expired, grants.expire(tokio::time::Instant::now()));
                    }
                    () = stopped(&mut stop) => return,
                }
            }
        };
        let frame = match received {
            Ok(Ok(frame)) => frame,
            Ok(Err(Fault::Protocol(error))) => {
                count(&plane.counters.malformed);
                debug!(%error, "connection refused");
                // The peer is told why, if it still listens.
                let _ = plane.paced(0, connection.refuse(0, &error)).await;
                return;
            }
            Ok(Err(_)) | Err(_) => return,
        };
        let served = match request(&mut connection, frame) {
            Ok((_, DataRequest::Done(done))) => {
                grants.done(done.grant);
                continue;
            }
            Ok((from, request)) => {
                let span = traced::begin(plane, peer, from, &request);
                // Of what nodes ask of each other the asker's own part is remembered.
                let of = from.or_else(|| span.context()).filter(|_| peer.role == Role::Client);
                let mut noted = Noted::of(of.map(|of| of.trace), &request);
                let asked = (frame.request, request);
                let served =
                    serve_request(&mut connection, peer, plane, asked, span, &mut noted, &mut grants).await;
                if let Some(noted) = noted {
                    noted.remember(plane).await;
                }
                served
            }
            Err(Fault::Protocol(error)) => {
                count(&plane.counters.malformed);
                let _ = plane.paced(0, connection.refuse(frame.request, &error)).await;
                return;
            }
            Err(_) => return,
        };
        if let Err(fault) = served {
            debug!(%fault, "connection ended");
            return;
        }
    }
}

/// Waits until something that is held for the asker is over; for ever where nothing is.
async fn over<G>(grants: &Grants<G>) {
    match grants.until() {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Reads the request of a frame, and whose part it is if it is traced.
fn request(
    connection: &mut Connection,
    frame: FrameHeader,
) -> Result<(Option<TraceContext>, DataRequest), Fault> {
    if frame.kind == Kind::TracedRequest {
        return connection.message().map(|(from, request)| (Some(from), request));
    }
    connection.expect(frame, Kind::DataRequest)?;
    connection.message().map(|request| (None, request))
}

async fn serve_request(
    connection: &mut Connection,
    peer: Peer,
    plane: &DataPlane,
    (number, request): (u64, DataRequest),
    mut span: Span,
    noted: &mut Option<Noted>,
    grants: &mut Grants<Vec<Held>>,
) -> Result<(), Fault> {
    let begun = Instant::now();
    let verb = match request {
        DataRequest::Match(_) => Some(0),
        DataRequest::Fetch(_) | DataRequest::Look(_) | DataRequest::Scatter(_) => Some(1),
        // Blocks that move wait for their turn, behind everything else: how long they take says nothing of what clients wait for.
        DataRequest::Store(ref request) if request.moved && peer.role == Role::Node => None,
        DataRequest::Carry(ref request) if request.store.moved && peer.role == Role::Node => None,
        DataRequest::Store(_) | DataRequest::Carry(_) | DataRequest::Gather(_) => Some(2),
        DataRequest::Release(_) => Some(3),
        DataRequest::Strategies(_)
        | DataRequest::Watch(_)
        | DataRequest::Survey(_)
        | DataRequest::Explain(_)
        | DataRequest::Trace(_)
        | DataRequest::Recall(_)
        | DataRequest::Names(_)
        | DataRequest::Share(_)
        | DataRequest::Lend(_)
        | DataRequest::Done(_)
        | DataRequest::Receive(_)
        | DataRequest::Packed(_)
        | DataRequest::Pair(_)
        // How long it takes is another node's matter too.
        | DataRequest::Guest(_)
        | DataRequest::Pull(_) => None,
    };
    let served = answer(connection, peer, plane, (number, request), &mut span, noted, grants).await;
    if let Err(fault) = &served {
        span.fail(fault);
    }
    // A refusal is quick and no answer: among these it would make a node look the faster the more it refuses.
    if let (Some(verb), Ok(Given::Answer)) = (verb, &served) {
        plane.counters.took[verb].record(begun.elapsed());
    }
    served.map(|_| ())
}

/// What somebody was given who asked.
enum Given {
    Answer,
    Refusal,
}

async fn answer(
    connection: &mut Connection,
    peer: Peer,
    plane: &DataPlane,
    (number, request): (u64, DataRequest),
    span: &mut Span,
    noted: &mut Option<Noted>,
    grants: &mut Grants<Vec<Held>>,
) -> Result<Given, Fault> {
    let of_asker = request.epoch();
    let until = tokio::time::Instant::now() + time_left(number).unwrap_or(UNSAID);
    // One who looks at this node's memory is told where blocks are; else it is a fetch.
    let (request, looks) = match request {
        DataRequest::Look(LookRequest { start, fetch }) => (DataRequest::Fetch(fetch), Some((start, grants))),
        DataRequest::Pull(pull) => {
            let looks = pull.start.map(|start| (start, grants));
            (DataRequest::Pull(pull), looks)
        }
        request => (request, None),
    };
    let reply = match request {
        DataRequest::Match(request) => matched(plane, peer.role, span, request).await,
        DataRequest::Release(request) => released(plane, peer.role, span, request).await,
        DataRequest::Strategies(request) => strategies(plane, peer.role, request).await,
        DataRequest::Watch(request) => watch(plane, peer.role, request).await,
        DataRequest::Survey(request) => surveyed(plane, peer.role, span, request).await,
        DataRequest::Explain(request) => explained(plane, peer.role, request).await,
        DataRequest::Trace(request) => traces(plane, peer.role, request),
        DataRequest::Recall(request) => recalled(plane, peer.role, &request),
        DataRequest::Names(request) => names::answer(plane, request),
        DataRequest::Share(request) => shared(plane, peer.role, request),
        DataRequest::Lend(request) => lent(plane, peer.role, request),
        DataRequest::Gather(request) => plane.gather((peer, until), span, *request).await,
        DataRequest::Scatter(request) => plane.scatter(span, (peer.role, until), *request).await,
        DataRequest::Look(_) | DataRequest::Done(_) => {
            Err(WireError::malformed(format_args!("no request of its own")))
        }
        DataRequest::Carry(request) => plane.carried(connection, (peer, until), span, *request).await?,
        DataRequest::Receive(request) => plane.receive(peer, span, (request, Packing::Apart)).await,
        DataRequest::Packed(request) => plane.receive(peer, span, (request, Packing::Together)).await,
        DataRequest::Pair(request) => heard(plane, peer, request),
        DataRequest::Store(request) => plane.store(connection, (peer, until), span, request).await?,
        DataRequest::Fetch(_) | DataRequest::Guest(_) | DataRequest::Pull(_) => {
            let found = match request {
                DataRequest::Pull(mut request) => {
                    request.start = request
                        .start
                        .filter(|_| looks.as_ref().is_some_and(|(_, grants)| grants.next().is_some()));
                    plane.pull(span, (peer, until), *request).await
                }
                DataRequest::Guest(request) => plane.visit(span, (peer.role, until), *request).await,
                DataRequest::Fetch(request) => {
                    // Who holds as many answers as may be is sent what it asks for, in its turn.
                    let looks = looks.as_ref().filter(|(_, grants)| grants.next().is_some());
                    let start = looks.map(|(start, _)| *start);
                    plane.fetch(span, (peer.role, until), request, start).await
                }
                _ => Err(WireError::malformed(format_args!("no request for blocks"))),
            };
            match found.and_then(|found| Ok((plane.answer(peer.role, &found)?, found))) {
                Ok((reply, found)) => {
                    traced::answered(span, &reply);
                    if let Some(noted) = noted {
                        noted.answered(&reply);
                    }
                    plane.send_found(connection, number, span, (reply, found), looks).await?;
                    return Ok(Given::Answer);
                }
                Err(error) => Err(error),
            }
        }
    };
    // Nothing newer comes to a node that no coordinator answers: nobody is to wait for that.
    let reply = reply.map_err(|error| match error {
        WireError::StaleEpoch { epoch } if epoch <= of_asker && plane.view.is_alone() => WireError::NoLease,
        error => error,
    });
    // What a refused request left of its payload is skipped, so that the connection stands.
    let left = connection.payload_left();
    if left > 0 {
        plane.paced(left, connection.skip_payload(left)).await?;
    }
    match reply {
        Ok(reply) => {
            traced::answered(span, &reply);
            if let Some(noted) = noted {
                noted.answered(&reply);
            }
            plane.paced(0, connection.send(Kind::DataReply, number, &reply, &[])).await?;
            Ok(Given::Answer)
        }
        Err(error) => {
            span.fail(&error);
            match &error {
                WireError::Busy { .. } => count(&plane.counters.busy),
                WireError::Deadline => count(&plane.counters.late),
                WireError::NoLease => count(&plane.counters.no_lease),
                WireError::StaleEpoch { .. } => count(&plane.counters.stale_epoch),
                WireError::Forbidden { .. } => count(&plane.counters.forbidden),
                WireError::Malformed { .. } => count(&plane.counters.malformed),
                _ => {}
            }
            plane.paced(0, connection.refuse(number, &error)).await?;
            Ok(Given::Refusal)
        }
    }
}

async fn matched(
    plane: &DataPlane,
    role: Role,
    span: &Span,
    request: MatchRequest,
) -> Result<DataReply, WireError> {
    count(&plane.counters.matches);
    check::sizes(&request.runs, request.keys.len(), MAX_KEYS_PER_MATCH)?;
    let serving = plane.view.serves(role)?;
    check::admits(&serving, request.epoch, request.device, request.tenant, &request.runs)?;
    let MatchRequest { device, tenant, hold_ms, runs, keys, .. } = request;
    let hold = Duration::from_millis(u64::from(hold_ms));
    let work = plane.device(device).map(|device| &device.work);
    if let Some(work) = work {
        work.asked(runs.iter().map(|run| run.slot));
    }
    let asked = runs.clone();
    let covered =
        plane.ask(span, device, |reply| DeviceMessage::Match { tenant, runs, keys, hold, reply }).await?;
    if let Some(work) = work {
        work.matched(&asked, &covered);
    }
    plane.view.check_serves(role)?;
    Ok(DataReply::Matched { epoch: serving.map.epoch, covered })
}

async fn surveyed(
    plane: &DataPlane,
    role: Role,
    span: &Span,
    request: SurveyRequest,
) -> Result<DataReply, WireError> {
    check::sizes(&request.runs, request.keys.len(), MAX_KEYS_PER_MATCH)?;
    let serving = plane.view.serves(role)?;
    check::admits(&serving, request.epoch, request.device, request.tenant, &request.runs)?;
    let SurveyRequest { device, tenant, runs, keys, .. } = request;
    let runs = plane.ask(span, device, |reply| DeviceMessage::Survey { tenant, runs, keys, reply }).await?;
    plane.view.check_serves(role)?;
    Ok(DataReply::Surveyed { epoch: serving.map.epoch, runs })
}

/// Tells a tenant of its own blocks: where it says no slots, of all of them on the device.
async fn explained(plane: &DataPlane, role: Role, request: ExplainRequest) -> Result<DataReply, WireError> {
    let ExplainRequest { epoch, device, tenant, runs, keys } = request;
    // Without runs they are looked for wherever they lie.
    if !runs.is_empty() || keys.len() > MAX_KEYS_PER_EXPLAIN {
        check::sizes(&runs, keys.len(), MAX_KEYS_PER_EXPLAIN)?;
    }
    let serving = plane.view.serves(role)?;
    check::admits(&serving, epoch, device, tenant, &runs)?;
    let blocks =
        plane.ask(&Span::NONE, device, |reply| DeviceMessage::Explain { tenant, runs, keys, reply }).await?;
    plane.view.check_serves(role)?;
    Ok(DataReply::Explained { epoch: serving.map.epoch, lapse: plane.view.lapse(), blocks })
}

async fn released(
    plane: &DataPlane,
    role: Role,
    span: &Span,
    request: ReleaseRequest,
) -> Result<DataReply, WireError> {
    count(&plane.counters.releases);
    check::sizes(&request.runs, request.keys.len(), MAX_KEYS_PER_RELEASE)?;
    let serving = plane.view.serves(role)?;
    check::admits(&serving, request.epoch, request.device, request.tenant, &request.runs)?;
    let ReleaseRequest { device, tenant, hint, runs, keys, .. } = request;
    let blocks =
        plane.ask(span, device, |reply| DeviceMessage::Release { tenant, runs, keys, hint, reply }).await?;
    plane.view.check_serves(role)?;
    Ok(DataReply::Released { epoch: serving.map.epoch, blocks })
}

/// Says whether a device is this node's to speak of; one that only the asker's newer map has is one to wait for.
fn admitted(serving: &Serving, of_asker: Epoch, device: DeviceId) -> Result<(), WireError> {
    let ours = serving.map.epoch;
    let admitted = member::admits(&serving.map, serving.member, device, &[]);
    admitted.map_err(|error| if of_asker > ours { WireError::StaleEpoch { epoch: ours } } else { error })
}

async fn strategies(
    plane: &DataPlane,
    role: Role,
    request: StrategiesRequest,
) -> Result<DataReply, WireError> {
    let serving = plane.view.serves(role)?;
    admitted(&serving, request.epoch, request.device)?;
    let adjust = request.adjust;
    let ask = |reply| DeviceMessage::Strategies { adjust, of_sizes: true, reply };
    let reports = plane.ask(&Span::NONE, request.device, ask).await?;
    Ok(DataReply::Strategies { epoch: serving.map.epoch, reports })
}

/// Tells what happens to blocks. Whoever is connected has shown the cluster's token, and with it may see every tenant's.
async fn watch(plane: &DataPlane, role: Role, request: WatchRequest) -> Result<DataReply, WireError> {
    let serving = plane.view.serves(role)?;
    admitted(&serving, request.epoch, request.device)?;
    let WatchRequest { device, tenant, ask, .. } = request;
    let answer = plane.ask(&Span::NONE, device, |reply| DeviceMessage::Watch { tenant, ask, reply }).await?;
    plane.view.check_serves(role)?;
    Ok(DataReply::Watched { epoch: serving.map.epoch, answer })
}

/// Tells what is kept of traced requests: of every tenant's, as of their events.
fn traces(plane: &DataPlane, role: Role, request: TraceRequest) -> Result<DataReply, WireError> {
    let serving = plane.view.serves(role)?;
    admitted(&serving, request.epoch, request.device)?;
    Ok(DataReply::Traced { epoch: serving.map.epoch, answer: plane.tracer.answer(request.ask) })
}

/// Says whether the asker may look at this node's memory, and how.
fn shared(plane: &DataPlane, role: Role, request: ShareRequest) -> Result<DataReply, WireError> {
    let serving = plane.view.serves(role)?;
    admitted(&serving, request.epoch, request.device)?;
    let nothing = ShareAnswer::Not(NotShared::Nothing);
    let answer = plane.sharing.as_ref().map_or(nothing, |sharing| sharing.offer(role, request.host));
    Ok(DataReply::Shared { epoch: serving.map.epoch, answer })
}

/// Says whether the asker may lend a stage to one of this node's GPUs, and how.
fn lent(plane: &DataPlane, role: Role, request: LendRequest) -> Result<DataReply, WireError> {
    let serving = plane.view.serves(role)?;
    admitted(&serving, request.epoch, request.device)?;
    let nothing = ShareAnswer::Not(NotShared::Nothing);
    let device = request.device.index;
    let offer = plane.sharing.as_ref().map(|sharing| sharing.offer_to_lend(role, request.host, device));
    Ok(DataReply::Shared { epoch: serving.map.epoch, answer: offer.unwrap_or(nothing) })
}

/// Hears what a GPU of another node says to one of this node's.
fn heard(plane: &DataPlane, peer: Peer, request: PairRequest) -> Result<DataReply, WireError> {
    if peer.role != Role::Node || !peer.is_of(request.message.from.member) {
        let what = "speak for another's GPU".to_owned();
        return Err(WireError::Forbidden { role: peer.role.to_string(), what });
    }
    let serving = plane.view.serves(peer.role)?;
    admitted(&serving, request.epoch, request.message.to)?;
    let heard = plane.replicator.links.hear(request.message);
    heard.map_err(|without| WireError::NotCarried { why: without.to_string() })?;
    Ok(DataReply::Heard { epoch: serving.map.epoch })
}

/// Tells what is remembered of a request: of every tenant's, as of traces.
fn recalled(plane: &DataPlane, role: Role, request: &RecallRequest) -> Result<DataReply, WireError> {
    let serving = plane.view.serves(role)?;
    admitted(&serving, request.epoch, request.device)?;
    let parts = plane.recall.of(plane.view.now(), request.trace);
    Ok(DataReply::Recalled { epoch: serving.map.epoch, parts })
}
