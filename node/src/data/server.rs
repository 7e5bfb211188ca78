//! The data plane's listener: lets in as many as are allowed, and nobody who does not know the token.

use crate::data::connection::serve_connection;
use crate::data::counters::count;
use crate::data::plane::DataPlane;
use kvhive_runtime::stopped;
use kvhive_wire::{Connection, Listening};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::{debug, warn};

/// A handshake that takes longer is ended.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes under way at a time.
const MAX_HANDSHAKES: usize = 64;
/// Wait after the system refused a connection (no file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Lets connections in until `stop` turns true; those that stand end by themselves after their present request.
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
        let (Ok(place), Ok(handshake)) =
            (plane.connections.clone().try_acquire_owned(), handshakes.clone().try_acquire_owned())
        else {
            // Dropped: the peer sees the end of the stream, and its pool backs off.
            count(&plane.counters.refused_connections);
            continue;
        };
        let (plane, stop) = (plane.clone(), stop.clone());
        tokio::spawn(async move {
            admit(stream, &plane, handshake, stop).await;
            drop(place);
        });
    }
}

async fn admit(
    stream: TcpStream,
    plane: &DataPlane,
    handshake: OwnedSemaphorePermit,
    stop: watch::Receiver<bool>,
) {
    let cluster = plane.view.serving().map(|serving| serving.map.cluster);
    let listening = Listening { token: plane.token.clone(), cluster };
    let accepted = Connection::accept(stream, &listening, HANDSHAKE_LIMIT).await;
    drop(handshake);
    match accepted {
        Ok((connection, peer)) => {
            count(&plane.counters.connections);
            serve_connection(connection, peer, plane, stop).await;
        }
        Err(fault) => {
            count(&plane.counters.refused_handshakes);
            debug!(%fault, "handshake failed");
        }
    }
}
