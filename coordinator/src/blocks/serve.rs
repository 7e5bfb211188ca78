//! The two doors of the stream: a publisher, which whoever subscribes hears, and a router, which repeats what is asked for.

use super::stream::Stream;
use crate::engines::zmtp::{Connection, Kind, ZmtpError};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast, watch};
use tracing::{debug, warn};

/// Connections to each door.
const MOST: usize = 256;
/// Replays that are made at a time: each holds what it sends.
const REPLAYS: usize = 4;
/// A handshake that takes longer is ended, and so is a reader that takes nothing for as long.
const LIMIT: Duration = Duration::from_secs(10);
/// Topics of one subscriber, and the longest.
const MAX_TOPICS: usize = 64;
const MAX_TOPIC_BYTES: usize = 1024;
/// Wait after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Publishes at `listener` until `stop`.
pub(super) async fn publish(listener: TcpListener, stream: Stream, stop: watch::Receiver<bool>) {
    serve(listener, stop, move |socket| {
        let stream = stream.clone();
        async move {
            let mut connection = Connection::accept(socket, Kind::Pub, LIMIT).await?;
            hear(&mut connection, &stream).await
        }
    })
    .await;
}

/// Repeats at `listener` until `stop`.
pub(super) async fn repeat(listener: TcpListener, stream: Stream, stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(REPLAYS));
    serve(listener, stop, move |socket| {
        let (stream, places) = (stream.clone(), places.clone());
        async move {
            let mut connection = Connection::accept(socket, Kind::Router, LIMIT).await?;
            loop {
                let asked = connection.receive().await?;
                let from =
                    asked.last().and_then(|from| from.as_slice().try_into().ok()).map(u64::from_be_bytes);
                let Some(from) = from else {
                    return Err(ZmtpError::Protocol(
                        "a replay is asked for by a number of eight bytes".into(),
                    ));
                };
                let _place = places.acquire().await;
                let of = stream.clone();
                // All that is there may be much.
                let batches = tokio::task::spawn_blocking(move || of.replay(from)).await.unwrap_or_default();
                let topic = stream.topic.as_bytes();
                for batch in &batches {
                    let number = batch.number.to_be_bytes();
                    taken(connection.send(&[b"", topic, &number, &batch.payload])).await?;
                }
                // The end is number -1, of no topic.
                taken(connection.send(&[b"", b"", &[0xff; 8], b""])).await?;
            }
        }
    })
    .await;
}

async fn serve<F>(listener: TcpListener, mut stop: watch::Receiver<bool>, converse: impl Fn(TcpStream) -> F)
where
    F: Future<Output = Result<(), ZmtpError>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    warn!(%error, "a connection for block events could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = kvhive_runtime::stopped(&mut stop) => return,
        };
        // One more than may be is closed at once; ZeroMQ dials again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (talk, mut stop) = (converse(socket), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                ended = talk => {
                    if let Err(error) = ended {
                        debug!(%error, "a reader of block events is gone");
                    }
                }
                () = kvhive_runtime::stopped(&mut stop) => {}
            }
        });
    }
}

/// Sends one subscriber what it has subscribed to.
async fn hear(connection: &mut Connection, stream: &Stream) -> Result<(), ZmtpError> {
    let mut topics: Vec<Vec<u8>> = Vec::new();
    let mut batches = stream.subscribe();
    loop {
        tokio::select! {
            readable = connection.readable() => {
                readable?;
                let heeded = tokio::time::timeout(LIMIT, connection.receive_or_heed()).await;
                if let Some(message) = heeded.unwrap_or(Err(ZmtpError::Late(LIMIT)))? {
                    heed(&mut topics, message)?;
                }
            }
            batch = batches.recv() => match batch {
                Ok(batch) if topics.iter().any(|topic| stream.topic.as_bytes().starts_with(topic)) => {
                    let number = batch.number.to_be_bytes();
                    taken(connection.send(&[stream.topic.as_bytes(), &number, &batch.payload])).await?;
                }
                // Who is too slow misses some, sees it by the numbers, and asks.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            }
        }
    }
}

/// Takes down a subscription, or that it is over.
fn heed(topics: &mut Vec<Vec<u8>>, message: Vec<Vec<u8>>) -> Result<(), ZmtpError> {
    let [one] = &message[..] else { return Ok(()) };
    match one.split_first() {
        Some((1, topic)) if topics.len() < MAX_TOPICS && topic.len() <= MAX_TOPIC_BYTES => {
            topics.push(topic.to_vec());
            Ok(())
        }
        Some((1, _)) => Err(ZmtpError::Protocol(format!(
            "more than {MAX_TOPICS} topics, or one of more than {MAX_TOPIC_BYTES} bytes"
        ))),
        Some((0, topic)) => {
            if let Some(at) = topics.iter().position(|known| known == topic) {
                topics.swap_remove(at);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn taken(sending: impl Future<Output = Result<(), ZmtpError>>) -> Result<(), ZmtpError> {
    tokio::time::timeout(LIMIT, sending).await.unwrap_or(Err(ZmtpError::Late(LIMIT)))
}
