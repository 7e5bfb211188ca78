//! Outgoing raft connections: to each peer one for what is small and urgent, one for what is large, one direction each, so
//! that heartbeats never wait behind a snapshot. What cannot be sent is dropped; raft repeats it.

use crate::actors::levels::Belonging;
use crate::actors::mailbox::{Raft, RaftMessage};
use kvhive_consensus::{MAX_APPEND_MESSAGE_BYTES, MAX_MESSAGE_BYTES, PeerId};
use kvhive_protocol::WireError;
use kvhive_protocol::frame::{Kind, MAX_PAYLOAD_BYTES};
use kvhive_protocol::raft::Seat;
use kvhive_wire::{Connection, Fault, Identity};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info};

/// Messages that wait for one peer.
const MAX_WAITING: usize = 4096;
/// A message over this many bytes is large. No append is, so appends keep their order.
const LARGE_BYTES: usize = MAX_APPEND_MESSAGE_BYTES;
/// Messages of one frame, and their bytes.
const MAX_GROUP: usize = 256;
const MAX_GROUP_BYTES: usize = 4 << 20;
/// The largest frame, in bytes: a group is closed by the message that fills it, each behind its length.
pub(crate) const MAX_FRAME_BYTES: usize = MAX_GROUP_BYTES + 4 * MAX_GROUP + MAX_MESSAGE_BYTES;
/// The largest frame of small messages, in bytes.
pub(crate) const MAX_SMALL_FRAME_BYTES: usize = MAX_GROUP_BYTES + 4 * MAX_GROUP + LARGE_BYTES;
const _: () =
    assert!(MAX_FRAME_BYTES <= MAX_PAYLOAD_BYTES as usize, "a frame of raft messages is sent whole");
const _: () = assert!(
    kvhive_control::MAX_SNAPSHOT_BYTES <= kvhive_consensus::MAX_SNAPSHOT_BYTES,
    "any state can be sent"
);
/// The longest a dial may take.
const LIMIT: Duration = Duration::from_secs(1);
/// The longest a small frame may be under way. A large one gets longer, see [`frame_limit`].
const FRAME_LIMIT: Duration = Duration::from_secs(10);
/// A way slower than this, in bytes a second, is no way to a peer.
const LEAST_RATE: usize = 1 << 20;
/// Wait after a failed dial: short, since a returning peer should be heard before it holds an election.
const PAUSE: Duration = Duration::from_millis(50);

/// The queues to one peer.
pub(crate) struct Lanes {
    small: mpsc::Sender<Vec<u8>>,
    large: mpsc::Sender<Vec<u8>>,
}

/// What [`run`] sends from.
pub(crate) struct Outgoing {
    small: mpsc::Receiver<Vec<u8>>,
    large: mpsc::Receiver<Vec<u8>>,
}

/// A peer as the one who dials knows it.
pub(crate) struct Destination {
    pub(crate) peer: PeerId,
    pub(crate) name: String,
    pub(crate) address: String,
    /// Who dials.
    pub(crate) identity: Identity,
    /// The dialler's cluster, once known: a log of another one is never mixed into its own.
    pub(crate) cluster: watch::Receiver<Belonging>,
}

/// Makes the queues to one peer. One large message may wait while another is sent.
pub(crate) fn lanes() -> (Lanes, Outgoing) {
    let (small, small_out) = mpsc::channel(MAX_WAITING);
    let (large, large_out) = mpsc::channel(1);
    (Lanes { small, large }, Outgoing { small: small_out, large: large_out })
}

impl Lanes {
    /// Queues a message; false when it was dropped for want of room.
    pub(crate) fn try_send(&self, message: Vec<u8>) -> bool {
        let lane = if message.len() > LARGE_BYTES { &self.large } else { &self.small };
        lane.try_send(message).is_ok()
    }
}

/// Returns how long a frame with a payload of `bytes` may be under way.
pub(crate) fn frame_limit(bytes: usize) -> Duration {
    FRAME_LIMIT + Duration::from_secs((bytes / LEAST_RATE) as u64)
}

/// A peer to be dialled from now on.
pub(crate) type Line = (PeerId, Seat, Outgoing);

/// Dials whoever the raft actor names, each until its lanes are dropped and empty, until `stop`. What is small is sent by the thread
/// that this runs on, which is the raft actor's, what is large by `io`.
pub(crate) async fn dial(
    io: Handle,
    mut lines: mpsc::UnboundedReceiver<Line>,
    identity: Identity,
    cluster: watch::Receiver<Belonging>,
    raft: Raft,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let (peer, seat, outgoing) = tokio::select! {
            line = lines.recv() => match line {
                Some(line) => line,
                None => return,
            },
            () = kvhive_runtime::stopped(&mut stop) => return,
        };
        let (identity, cluster) = (identity.clone(), cluster.clone());
        let to = Destination { peer, name: seat.name, address: seat.raft_address, identity, cluster };
        tokio::spawn(run(io.clone(), to, outgoing, raft.clone(), stop.clone()));
    }
}

/// Sends what is queued for a peer, until its lanes are dropped and what is small has gone out, or until `stop`.
pub(crate) async fn run(
    io: Handle,
    to: Destination,
    queues: Outgoing,
    raft: Raft,
    mut stop: watch::Receiver<bool>,
) {
    let Outgoing { mut small, mut large } = queues;
    let to = Arc::new(to);
    let mut sending = JoinSet::new();
    let whither = to.clone();
    // Ended with what is small: the last small word to a peer that leaves is queued just before the lanes are dropped.
    sending.spawn_on(async move { send_large(&whither, &mut large).await }, &io);
    tokio::select! {
        () = send_small(&io, &to, &mut small, &raft) => {}
        () = kvhive_runtime::stopped(&mut stop) => {}
    }
}

async fn send_small(io: &Handle, to: &Arc<Destination>, queue: &mut mpsc::Receiver<Vec<u8>>, raft: &Raft) {
    let mut is_estranged = false;
    loop {
        // Names are looked up and greetings exchanged where that keeps nobody.
        let whither = to.clone();
        let Ok(dialled) = io.spawn(async move { whither.dial().await }).await else { return };
        match dialled.and_then(|connection| Ok(connection.moved()?)) {
            Ok(mut connection) => {
                is_estranged = false;
                info!(peer = %to.name, address = to.address, "connected to peer");
                let fault = send_on(&mut connection, queue).await;
                let Some(fault) = fault else { return };
                debug!(peer = %to.name, address = to.address, %fault, "connection to peer ended");
            }
            Err(fault) => {
                // Neither heals by itself, and each is retried many times a second: told once.
                let refused = match &fault {
                    Fault::Refused(error) | Fault::Protocol(error) => Some(error),
                    _ => None,
                };
                let is_older = matches!(refused, Some(WireError::TooOld { .. } | WireError::Version { .. }));
                if is_older && !is_estranged {
                    error!(peer = %to.name, address = to.address, %fault, "this coordinator and its peer do not go together");
                }
                let strange = matches!(fault, Fault::Impostor | Fault::Tls(_))
                    || matches!(
                        fault.refusal(),
                        Some(WireError::WrongCluster | WireError::Unauthorized | WireError::TlsRequired)
                    );
                if strange && !is_estranged {
                    error!(
                        peer = %to.name, address = to.address, %fault,
                        "this coordinator and its peer are not of one cluster; compare their tokens, certificates and data folders"
                    );
                }
                is_estranged = strange || is_older;
                debug!(peer = %to.name, address = to.address, %fault, "peer cannot be reached");
            }
        }
        // What waited is old by the time the peer is back.
        while queue.try_recv().is_ok() {}
        if queue.is_closed() {
            return;
        }
        // A full mailbox has other troubles; the next failure tells it again.
        let _ = raft.try_send(RaftMessage::Unreachable { peer: to.peer });
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends until the connection fails; none when the queue's other end is gone.
async fn send_on(connection: &mut Connection, queue: &mut mpsc::Receiver<Vec<u8>>) -> Option<Fault> {
    let mut payload = Vec::new();
    loop {
        let first = queue.recv().await?;
        payload.clear();
        append(&mut payload, &first);
        for _ in 1..MAX_GROUP {
            if payload.len() >= MAX_GROUP_BYTES {
                break;
            }
            match queue.try_recv() {
                Ok(message) => append(&mut payload, &message),
                Err(_) => break,
            }
        }
        if let Err(fault) = send_frame(connection, &[&payload]).await {
            return Some(fault);
        }
    }
}

/// Sends large messages, each over a connection of its own: they are rare.
async fn send_large(to: &Destination, queue: &mut mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = queue.recv().await {
        let bytes = message.len();
        let sent = async {
            let mut connection = to.dial().await?;
            send_frame(&mut connection, &[&(bytes as u32).to_le_bytes(), &message]).await?;
            connection.close().await;
            Ok::<(), Fault>(())
        };
        match sent.await {
            Ok(()) => info!(peer = %to.name, bytes, "sent a snapshot"),
            Err(fault) => info!(peer = %to.name, bytes, %fault, "could not send a snapshot"),
        }
        // What was queued meanwhile says the same again; raft repeats it once more if it is still needed.
        while queue.try_recv().is_ok() {}
    }
}

impl Destination {
    async fn dial(&self) -> Result<Connection, Fault> {
        let Belonging { cluster, levels } = *self.cluster.borrow();
        let identity = Identity { cluster, levels, ..self.identity.clone() };
        Connection::connect(&self.address, &identity, LIMIT).await.map(|(connection, _)| connection)
    }
}

async fn send_frame(connection: &mut Connection, payload: &[&[u8]]) -> Result<(), Fault> {
    let limit = frame_limit(payload.iter().map(|part| part.len()).sum());
    let sent = tokio::time::timeout(limit, connection.send(Kind::Raft, 0, &(), payload)).await;
    sent.unwrap_or(Err(Fault::Timeout(limit)))
}

pub(crate) fn append(payload: &mut Vec<u8>, message: &[u8]) {
    payload.extend_from_slice(&(message.len() as u32).to_le_bytes());
    payload.extend_from_slice(message);
}

/// Splits a frame's payload into its messages; none when it is damaged, or there are more than anybody sends at once.
pub(crate) fn split(mut payload: &[u8]) -> Option<Vec<&[u8]>> {
    let mut messages = Vec::new();
    while !payload.is_empty() {
        // Each takes a place in the raft actor's mailbox.
        if messages.len() == MAX_GROUP {
            return None;
        }
        let (length, rest) = payload.split_first_chunk::<4>()?;
        let (message, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        messages.push(message);
        payload = rest;
    }
    Some(messages)
}

#[cfg(test)]
#[path = "peers_test.rs"]
mod tests;
