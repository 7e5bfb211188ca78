//! Outgoing raft connections: one a peer, one direction each. What cannot be sent is dropped; raft repeats it.

use crate::actors::raft::{Raft, RaftMessage};
use kvhive_consensus::PeerId;
use kvhive_protocol::frame::Kind;
use kvhive_wire::{Connection, Fault, Identity};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

/// Messages that wait for one peer.
const MAX_WAITING: usize = 4096;
/// Messages of one frame, and their bytes.
const MAX_GROUP: usize = 256;
const MAX_GROUP_BYTES: usize = 4 << 20;
/// The longest a dial or a write may take.
const LIMIT: Duration = Duration::from_secs(1);
/// Wait after a failed dial: short, since a returning peer should be heard before it holds an election.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes the queue to one peer.
pub(crate) fn queue() -> (mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>) {
    mpsc::channel(MAX_WAITING)
}

/// Sends what is queued for a peer, until `stop`.
pub(crate) async fn run(
    peer: PeerId,
    address: String,
    identity: Identity,
    mut queue: mpsc::Receiver<Vec<u8>>,
    raft: Raft,
    mut stop: watch::Receiver<bool>,
) {
    tokio::select! {
        () = send_all(peer, &address, &identity, &mut queue, &raft) => {}
        () = kvhive_runtime::stopped(&mut stop) => {}
    }
}

async fn send_all(
    peer: PeerId,
    address: &str,
    identity: &Identity,
    queue: &mut mpsc::Receiver<Vec<u8>>,
    raft: &Raft,
) {
    loop {
        match Connection::connect(address, identity, LIMIT).await {
            Ok((mut connection, _)) => {
                info!(peer = peer.0, address, "connected to peer");
                let fault = send_on(&mut connection, queue).await;
                let Some(fault) = fault else { return };
                debug!(peer = peer.0, address, %fault, "connection to peer ended");
            }
            Err(fault) => debug!(peer = peer.0, address, %fault, "peer cannot be reached"),
        }
        // What waited is old by the time the peer is back.
        while queue.try_recv().is_ok() {}
        // A full mailbox has other troubles; the next failure tells it again.
        let _ = raft.try_send(RaftMessage::Unreachable { peer });
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
        let sent = tokio::time::timeout(LIMIT * 10, connection.send(Kind::Raft, 0, &(), &[&payload])).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => return Some(fault),
            Err(_) => return Some(Fault::Timeout(LIMIT * 10)),
        }
    }
}

fn append(payload: &mut Vec<u8>, message: &[u8]) {
    payload.extend_from_slice(&(message.len() as u32).to_le_bytes());
    payload.extend_from_slice(message);
}

/// Splits a frame's payload into its messages; none when it is damaged.
pub(crate) fn split(mut payload: &[u8]) -> Option<Vec<&[u8]>> {
    let mut messages = Vec::new();
    while !payload.is_empty() {
        let (length, rest) = payload.split_first_chunk::<4>()?;
        let (message, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        messages.push(message);
        payload = rest;
    }
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_frame_come_apart_as_they_were_put_together() {
        let mut payload = Vec::new();
        for message in [&b"one"[..], b"", b"three"] {
            append(&mut payload, message);
        }
        assert_eq!(split(&payload), Some(vec![&b"one"[..], b"", b"three"]));
        for cut in 1..payload.len() {
            let whole = [7, 11].contains(&cut);
            assert_eq!(split(&payload[..cut]).is_some(), whole, "cut at {cut}");
        }
    }
}
