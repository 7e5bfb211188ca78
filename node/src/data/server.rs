//! The data plane's listener: lets in as many as are allowed, and nobody who does not know the token.

use crate::actors::device::DeviceMessage;
use crate::data::connection::serve_connection;
use crate::data::counters::{Counters, count};
use crate::data::replicate::Replicator;
use crate::view::View;
use kvhive_protocol::handshake::TokenKey;
use kvhive_protocol::{DeviceId, WireError};
use kvhive_runtime::{Sender, stopped};
use kvhive_wire::{Connection, Listening};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

/// A handshake that takes longer is ended.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes under way at a time.
const MAX_HANDSHAKES: usize = 64;
/// Wait after the system refused a connection (no file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of the data plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Payload bytes of stores under way at a time.
    pub(crate) inflight_bytes: u64,
}

/// What all connections share.
pub(crate) struct DataPlane {
    pub(crate) devices: Vec<Sender<DeviceMessage>>,
    pub(crate) view: Arc<View>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) replicator: Replicator,
    token: TokenKey,
    connections: Arc<Semaphore>,
    /// One permit a KiB of payload.
    pub(crate) inflight: Arc<Semaphore>,
    inflight_kib: u32,
}

impl DataPlane {
    pub(crate) fn new(
        devices: Vec<Sender<DeviceMessage>>,
        view: Arc<View>,
        counters: Arc<Counters>,
        replicator: Replicator,
        token: TokenKey,
        limits: Limits,
    ) -> DataPlane {
        let inflight_kib = u32::try_from(limits.inflight_bytes / 1024).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        DataPlane {
            devices,
            view,
            counters,
            replicator,
            token,
            connections: Arc::new(Semaphore::new(limits.connections)),
            inflight: Arc::new(Semaphore::new(inflight_kib as usize)),
            inflight_kib,
        }
    }

    /// Returns the actor of one of this node's devices.
    pub(crate) fn device(&self, device: DeviceId) -> Result<&Sender<DeviceMessage>, WireError> {
        self.devices.get(usize::from(device.index)).ok_or(WireError::WrongDevice { device })
    }

    /// Returns the permits that a payload takes.
    pub(crate) fn permits(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.inflight_kib)
    }
}

/// Serves connections until `stop` turns true.
pub(crate) async fn serve(listener: TcpListener, plane: Arc<DataPlane>, mut stop: watch::Receiver<bool>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stopped(&mut stop) => return,
        };
        let (Ok(slot), Ok(handshake)) =
            (plane.connections.clone().try_acquire_owned(), handshakes.clone().try_acquire_owned())
        else {
            // Dropped: the peer sees the end of the stream, and its pool backs off.
            count(&plane.counters.refused_connections);
            continue;
        };
        let (plane, mut stop) = (plane.clone(), stop.clone());
        tokio::spawn(async move {
            let cluster = plane.view.serving().map(|serving| serving.map.cluster);
            let listening = Listening { token: plane.token.clone(), cluster };
            let accepted = Connection::accept(stream, &listening, HANDSHAKE_LIMIT).await;
            drop(handshake);
            match accepted {
                Ok((connection, peer)) => {
                    count(&plane.counters.connections);
                    tokio::select! {
                        () = serve_connection(connection, peer, &plane) => {}
                        () = stopped(&mut stop) => {}
                    }
                }
                Err(fault) => {
                    count(&plane.counters.refused_handshakes);
                    debug!(%fault, "handshake failed");
                }
            }
            drop(slot);
        });
    }
}
