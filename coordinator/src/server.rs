//! The listener for raft and the control plane: who connects is told apart by role.

use crate::actors::levels::Belonging;
use crate::actors::mailbox::{Raft, RaftMessage};
use crate::control_plane::{ControlPlane, MAX_REQUEST_BYTES};
use crate::peers::{self, MAX_FRAME_BYTES, MAX_SMALL_FRAME_BYTES};
use kvhive_consensus::PeerId;
use kvhive_protocol::WireError;
use kvhive_protocol::control::{CommandReply, ControlReply, ControlRequest};
use kvhive_protocol::frame::{FrameLimits, Kind};
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_runtime::{NamedArbiter, Places, stopped};
use kvhive_wire::{Connection, Fault, Listening, Peer, Tls};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::debug;

/// A handshake that takes longer is ended.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 4096;
/// Handshakes under way at a time; one more ends the one that has taken longest.
const MAX_HANDSHAKES: usize = 64;
/// A connection without a request for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// An answer that is not taken within this ends its connection, and so does a frame that finds no room for as long.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// A request of more bytes is not read by the raft actor's thread.
const MAX_CHANGE_BYTES: u32 = 64 << 10;
/// KiB of raft messages that were received and not worked off, in small frames and in large ones: of these, one a leader
/// and one more.
const SMALL_ROOM_KIB: usize = 64 << 10;
const LARGE_ROOM_KIB: usize = 2 * MAX_FRAME_BYTES.div_ceil(1024);

/// What all connections share.
pub(crate) struct Server {
    pub(crate) raft: Raft,
    /// Where the raft actor runs.
    pub(crate) raft_thread: NamedArbiter,
    /// What serves sockets.
    pub(crate) io: Handle,
    pub(crate) control: ControlPlane,
    pub(crate) token: TokenKey,
    pub(crate) tls: Option<Tls>,
    pub(crate) cluster: watch::Receiver<Belonging>,
    pub(crate) room: Room,
}

/// Memory for what peers send, taken before a frame is read and given back when its messages are worked off.
pub(crate) struct Room {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Room {
        Room {
            small: Arc::new(Semaphore::new(SMALL_ROOM_KIB)),
            large: Arc::new(Semaphore::new(LARGE_ROOM_KIB)),
        }
    }
}

impl Room {
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Fault> {
        let room = if bytes > MAX_SMALL_FRAME_BYTES { &self.large } else { &self.small };
        let taken = room.clone().acquire_many_owned(bytes.div_ceil(1024) as u32);
        match tokio::time::timeout(STALL_LIMIT, taken).await {
            Ok(taken) => Ok(taken.expect("room is never closed")),
            Err(_) => Err(Fault::Timeout(STALL_LIMIT)),
        }
    }
}

/// Serves connections until `stop`.
pub(crate) async fn serve(listener: TcpListener, server: Arc<Server>, mut stop: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Places::new(MAX_HANDSHAKES);
    while let Some(stream) = kvhive_runtime::accept(&listener, &mut stop).await {
        let Some(mut handshake) = handshakes.enter() else { continue };
        let connections = connections.clone();
        let (server, stop) = (server.clone(), stop.clone());
        tokio::spawn(async move {
            let Belonging { cluster, levels } = *server.cluster.borrow();
            let listening =
                Listening { token: server.token.clone(), cluster, tls: server.tls.clone(), levels };
            let accepted = tokio::select! {
                accepted = Connection::accept(stream, &listening, HANDSHAKE_LIMIT) => accepted,
                () = handshake.turned_out() => return,
            };
            drop(handshake);
            // Taken by those who know the token alone.
            let Ok(place) = connections.try_acquire_owned() else { return };
            match accepted {
                Ok((mut connection, peer)) => {
                    // Nobody but a coordinator sends payloads here.
                    let payload_bytes =
                        if peer.role == Role::Coordinator { MAX_FRAME_BYTES as u32 } else { 0 };
                    connection.set_limits(FrameLimits { message_bytes: MAX_REQUEST_BYTES, payload_bytes });
                    attend(Talk { connection, peer, server, stop, open: None, _place: place }, Home::Io)
                        .await;
                }
                Err(fault) => debug!(%fault, "handshake failed"),
            }
        });
    }
}

/// Which threads serve a connection. Raft and changes go through the raft actor one by one, and whoever waits for a change waits for
/// each thread that has to be woken on its way: they are served by the actor's own. Everything else may be large or many at a time,
/// and is kept from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Io,
    Raft,
}

/// A connection, and what it takes to serve it.
struct Talk {
    connection: Connection,
    peer: Peer,
    server: Arc<Server>,
    stop: watch::Receiver<bool>,
    /// The number of a request that was received and not served yet; its bytes are in the connection.
    open: Option<u64>,
    _place: OwnedSemaphorePermit,
}

/// Serves a connection until it ends or `stop`, or until it is better at home elsewhere, where it goes on.
async fn attend(mut talk: Talk, home: Home) {
    let mut stop = talk.stop.clone();
    let ended = tokio::select! {
        ended = talk.converse(home) => ended,
        () = stopped(&mut stop) => return,
    };
    match ended {
        Ok(Some(next)) => talk.go_on(next),
        Ok(None) => {}
        Err(fault) => {
            debug!(role = %talk.peer.role, sender = talk.peer.sender, %fault, "connection ended");
        }
    }
}

impl Talk {
    fn go_on(mut self, home: Home) {
        let server = self.server.clone();
        let task = async move {
            match self.connection.moved() {
                Ok(connection) => {
                    self.connection = connection;
                    attend(self, home).await;
                }
                Err(error) => debug!(%error, "a connection cannot be moved"),
            }
        };
        match home {
            Home::Io => drop(server.io.spawn(task)),
            Home::Raft => server.raft_thread.spawn(task),
        }
    }

    /// Returns where it goes on; none when the other end has closed it, or was silent for long.
    async fn converse(&mut self, home: Home) -> Result<Option<Home>, Fault> {
        let Talk { connection, peer, server, .. } = self;
        loop {
            if let Some(number) = self.open.take() {
                let request = connection.message()?;
                let is_change = matches!(request, ControlRequest::Submit { .. });
                if home == Home::Raft && !is_change {
                    self.open = Some(number);
                    return Ok(Some(Home::Io));
                }
                let reply = server.control.serve(peer.role, request).await;
                // Who is refused is not brought nearer.
                let is_made = is_change
                    && matches!(&reply, ControlReply::Done(done) if !matches!(done, CommandReply::Rejected(_)));
                let sent = connection.send(Kind::ControlReply, number, &reply, &[]);
                tokio::time::timeout(STALL_LIMIT, sent).await.unwrap_or(Err(Fault::Timeout(STALL_LIMIT)))?;
                if home == Home::Io && is_made {
                    return Ok(Some(Home::Raft));
                }
            }
            let frame = match tokio::time::timeout(IDLE_LIMIT, connection.receive()).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(Fault::Protocol(error))) => {
                    // The peer is told why, if it still listens.
                    let _ = connection.refuse(0, &error).await;
                    return Err(Fault::Protocol(error));
                }
                Ok(Err(Fault::Closed)) | Err(_) => return Ok(None),
                Ok(Err(fault)) => return Err(fault),
            };
            match frame.kind {
                Kind::Raft => {
                    receive_raft(connection, *peer, frame.payload_bytes as usize, server).await?;
                    if home == Home::Io {
                        return Ok(Some(Home::Raft));
                    }
                }
                Kind::ControlRequest => {
                    self.open = Some(frame.request);
                    if home == Home::Raft && frame.message_bytes > MAX_CHANGE_BYTES {
                        return Ok(Some(Home::Io));
                    }
                }
                _ => connection.expect(frame, Kind::ControlRequest)?,
            }
        }
    }
}

async fn receive_raft(
    connection: &mut Connection,
    peer: Peer,
    bytes: usize,
    server: &Server,
) -> Result<(), Fault> {
    let from = PeerId(peer.sender);
    // Who is of the group is for consensus to say: whoever lags may not know its leader.
    if peer.role != Role::Coordinator {
        let error =
            WireError::Forbidden { role: peer.role.to_string(), what: "send raft messages".to_owned() };
        connection.refuse(0, &error).await?;
        return Err(Fault::Protocol(error));
    }
    let room = Arc::new(server.room.take(bytes).await?);
    let mut payload = vec![0; bytes];
    let limit = peers::frame_limit(bytes);
    let read = tokio::time::timeout(limit, connection.read_payload(&mut payload));
    read.await.unwrap_or(Err(Fault::Timeout(limit)))?;
    let messages = peers::split(&payload).ok_or_else(|| {
        Fault::Protocol(WireError::malformed(format_args!("raft messages do not fit their frame")))
    })?;
    for message in messages {
        // A full mailbox drops it: raft repeats.
        let (speaks, bytes) = (peer.speaks, message.to_vec());
        let received = RaftMessage::Received { from, speaks, bytes, room: room.clone() };
        let _ = server.raft.try_send(received);
    }
    Ok(())
}
