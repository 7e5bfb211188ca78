//! One connection: receive a request, do it, answer; one at a time, until the peer leaves or breaks the protocol.

use crate::actors::device::DeviceMessage;
use crate::data::counters::{add, count};
use crate::data::{DataPlane, check};
use kvhive_protocol::WireError;
use kvhive_protocol::data::{DataReply, DataRequest, MAX_KEYS_PER_MATCH, MatchRequest};
use kvhive_protocol::frame::Kind;
use kvhive_runtime::AskError;
use kvhive_wire::{Connection, Fault, Peer};
use std::time::Duration;
use tokio::time::timeout;
use tracing::debug;

/// A connection without a request for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// A peer that takes or gives nothing of a transfer for this long is cut off, and what it holds comes back.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(30);
/// A device actor that does not answer within this is busy.
pub(super) const ACTOR_LIMIT: Duration = Duration::from_secs(2);

/// Serves one connection to its end.
pub(super) async fn serve_connection(mut connection: Connection, peer: Peer, plane: &DataPlane) {
    loop {
        let frame = match timeout(IDLE_LIMIT, connection.receive()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(Fault::Protocol(error))) => {
                count(&plane.counters.malformed);
                debug!(%error, "connection refused");
                // The peer is told why, if it still listens.
                let _ = connection.refuse(0, &error).await;
                return;
            }
            Ok(Err(_)) | Err(_) => return,
        };
        let served = match connection.expect(frame, Kind::DataRequest).and_then(|()| connection.message()) {
            Ok(request) => serve_request(&mut connection, peer, plane, frame.request, request).await,
            Err(Fault::Protocol(error)) => {
                count(&plane.counters.malformed);
                let _ = connection.refuse(frame.request, &error).await;
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

async fn serve_request(
    connection: &mut Connection,
    peer: Peer,
    plane: &DataPlane,
    number: u64,
    request: DataRequest,
) -> Result<(), Fault> {
    let refusal = match request {
        DataRequest::Match(request) => match matched(plane, request).await {
            Ok(reply) => return connection.send(Kind::DataReply, number, &reply, &[]).await,
            Err(error) => error,
        },
        DataRequest::Fetch(request) => match plane.fetch(request).await {
            Ok(answer) => return answer.send(connection, number, plane).await,
            Err(error) => error,
        },
        DataRequest::Store(request) => match plane.store(connection, peer, request).await? {
            Ok(reply) => return connection.send(Kind::DataReply, number, &reply, &[]).await,
            Err(error) => error,
        },
    };
    // What an honest request left of its payload is skipped, so that the connection stands.
    let left = connection.payload_left();
    if left > 0 {
        skip(connection, left, plane).await?;
    }
    match &refusal {
        WireError::Busy { .. } => count(&plane.counters.busy),
        WireError::NoLease => count(&plane.counters.no_lease),
        WireError::StaleEpoch { .. } => count(&plane.counters.stale_epoch),
        WireError::Malformed { .. } => count(&plane.counters.malformed),
        _ => {}
    }
    connection.refuse(number, &refusal).await
}

/// Skips payload bytes at the peer's pace, unless it stalls.
pub(super) async fn skip(connection: &mut Connection, bytes: u64, plane: &DataPlane) -> Result<(), Fault> {
    timeout(STALL_LIMIT, connection.skip_payload(bytes)).await.unwrap_or_else(|_| {
        count(&plane.counters.stalled);
        Err(Fault::Timeout(STALL_LIMIT))
    })
}

async fn matched(plane: &DataPlane, request: MatchRequest) -> Result<DataReply, WireError> {
    count(&plane.counters.matches);
    check::sizes(&request.runs, request.keys.len(), MAX_KEYS_PER_MATCH)?;
    plane.view.check_lease()?;
    let serving = plane.view.serving().ok_or(WireError::NoLease)?;
    check::admits(&serving, request.device, request.tenant, &request.runs)?;
    let MatchRequest { device, tenant, hold_ms, runs, keys, .. } = request;
    let hold = Duration::from_millis(u64::from(hold_ms));
    let covered = plane
        .device(device)?
        .ask(ACTOR_LIMIT, |reply| DeviceMessage::Match { tenant, runs, keys, hold, reply })
        .await
        .map_err(busy)?;
    plane.view.check_lease()?;
    Ok(DataReply::Matched { epoch: serving.map.epoch, covered })
}

/// What an actor that did not answer means to a peer.
pub(super) fn busy(error: AskError) -> WireError {
    match error {
        AskError::Full => WireError::busy("the device's mailbox is full"),
        AskError::Deadline => WireError::busy("the device did not answer in time"),
        AskError::Closed => WireError::busy("the device is being restarted"),
    }
}

/// Counts bytes that went through.
pub(super) fn transferred(counter: &std::sync::atomic::AtomicU64, bytes: u64) {
    add(counter, bytes);
}
