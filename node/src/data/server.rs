//! The data plane's listener: lets in as many as are allowed, and nobody who does not know the token.

use crate::data::connection::serve_connection;
use crate::data::counters::count;
use crate::data::plane::DataPlane;
use kvhive_protocol::data::MAX_REQUEST_BYTES;
use kvhive_protocol::frame::FrameLimits;
use kvhive_protocol::{Level, Levels};
use kvhive_runtime::{Place, Places};
use kvhive_wire::{Connection, Listening};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::debug;

/// A handshake that takes longer is ended.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes under way at a time; one more ends the one that has taken longest.
const MAX_HANDSHAKES: usize = 64;

/// Lets connections in until `stop` turns true; those that stand end by themselves after their present request.
pub(crate) async fn serve(listener: TcpListener, plane: Arc<DataPlane>, mut stop: watch::Receiver<bool>) {
    let handshakes = Places::new(MAX_HANDSHAKES);
    while let Some(stream) = kvhive_runtime::accept(&listener, &mut stop).await {
        let Some(handshake) = handshakes.enter() else {
            count(&plane.counters.refused_connections);
            continue;
        };
        let (plane, stop) = (plane.clone(), stop.clone());
        tokio::spawn(async move { admit(stream, &plane, handshake, stop).await });
    }
}

async fn admit(stream: TcpStream, plane: &DataPlane, mut handshake: Place, stop: watch::Receiver<bool>) {
    let serving = plane.view.serving();
    let cluster = serving.as_ref().map(|serving| serving.map.cluster);
    let level = serving.map_or(Level::OLDEST, |serving| serving.map.level);
    let levels = Levels { cluster: level, ..plane.listening.levels };
    let listening = Listening { cluster, levels, ..plane.listening.clone() };
    let accepted = tokio::select! {
        accepted = Connection::accept(stream, &listening, HANDSHAKE_LIMIT) => accepted,
        () = handshake.turned_out() => {
            count(&plane.counters.refused_handshakes);
            return;
        }
    };
    drop(handshake);
    match accepted {
        Ok((mut connection, peer)) => {
            // Taken by those who know the token alone.
            let Ok(_place) = plane.connections.try_acquire() else {
                // Dropped: the peer sees the end of the stream, and its pool backs off.
                count(&plane.counters.refused_connections);
                return;
            };
            count(&plane.counters.connections);
            connection
                .set_limits(FrameLimits { message_bytes: MAX_REQUEST_BYTES as u32, ..FrameLimits::OPEN });
            serve_connection(connection, peer, plane, stop).await;
        }
        Err(fault) => {
            count(&plane.counters.refused_handshakes);
            debug!(%fault, "handshake failed");
        }
    }
}
