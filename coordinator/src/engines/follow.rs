//! Follows one engine: dials its publisher, has what was missed repeated, tells its feed. Whatever fails is tried again, later and
//! later; what an engine says is bounded by the reader of its format.

use super::One;
use super::format;
use super::zmtp::{Connection, Kind, ZmtpError};
use kvhive_control::routing::{Batch, FeedEffect, FeedEvent};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{debug, info};

/// The longest a dial and its handshake may take.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// The first wait before another dial; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait before another dial.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A repeating engine that says nothing for this long has failed.
const REPLAY_SILENCE: Duration = Duration::from_secs(5);
/// The longest a replay may take.
const REPLAY_LIMIT: Duration = Duration::from_secs(60);
/// After this long without a batch it is asked whether the last ones were missed.
const QUIET: Duration = Duration::from_secs(10);
/// The first wait before it is asked once more for what it may still repeat; each next one is twice as long, until nothing is missing.
const FIRST_AGAIN: Duration = Duration::from_millis(500);
/// The longest such wait.
const LONGEST_AGAIN: Duration = Duration::from_secs(30);
/// Messages that were received and wait for the feed.
const WAITING: usize = 2;

/// The task that follows one engine. Dropped, it ends.
pub(super) struct Line(AbortHandle);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Line {
    /// Begins to follow an engine.
    pub(super) fn start(one: Arc<One>) -> Line {
        Line(tokio::spawn(follow(one)).abort_handle())
    }
}

/// A task that ends with its handle.
struct Reader(AbortHandle);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a replay said.
enum Repeated {
    Batch(u64, Vec<u8>),
    Ended,
    Failed(ZmtpError),
}

async fn follow(one: Arc<One>) {
    let mut wait = FIRST_WAIT;
    loop {
        let begun = Instant::now();
        let trouble = match listen(&one).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        lost(&one, &trouble);
        // One that closes at once is not dialled without end.
        wait = if begun.elapsed() > LONGEST_WAIT { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

fn lost(one: &One, trouble: &ZmtpError) {
    let mut state = one.state();
    let was_connected = state.feed.is_connected();
    state.feed.step(FeedEvent::Lost, &mut Vec::new());
    state.trouble = format!("events at {}: {trouble}", one.engine.events);
    drop(state);
    if was_connected {
        info!(engine = %one.engine.name, %trouble, "its events do not arrive any more");
    } else {
        debug!(engine = %one.engine.name, %trouble, "cannot hear its events");
    }
}

/// Hears one connection to its end.
async fn listen(one: &Arc<One>) -> Result<std::convert::Infallible, ZmtpError> {
    let engine = &one.engine;
    let mut connection = Connection::dial(&engine.events, Kind::Sub, DIAL_LIMIT).await?;
    connection.subscribe(engine.topic.as_bytes()).await?;
    let (sender, mut heard) = mpsc::channel(WAITING);
    // Read by a task of its own: a read that is given up half-way loses the place in the stream.
    let reader = tokio::spawn(async move {
        loop {
            let message = connection.receive().await;
            let ends = message.is_err();
            if sender.send(message).await.is_err() || ends {
                return;
            }
        }
    });
    let _reader = Reader(reader.abort_handle());
    let mut replay: Option<(Reader, mpsc::Receiver<Repeated>)> = None;
    tell(one, FeedEvent::Connected, &mut replay);
    let mut quiet_at = Instant::now() + QUIET;
    let (mut again_at, mut wait) = (None, FIRST_AGAIN);
    loop {
        let (is_wanting, is_exact) = {
            let state = one.state();
            (state.feed.is_wanting(), state.feed.is_exact())
        };
        wait = if is_exact { FIRST_AGAIN } else { wait };
        again_at = again_at.filter(|_| is_wanting).or(is_wanting.then(|| Instant::now() + wait));
        tokio::select! {
            message = heard.recv() => {
                let message = message.unwrap_or(Err(ZmtpError::Io(std::io::ErrorKind::BrokenPipe.into())))?;
                quiet_at = Instant::now() + QUIET;
                // Topic, number, payload.
                if let [.., number, payload] = &message[..]
                    && let Some(batch) = read(one, number, payload)
                {
                    one.tell(payload);
                    tell(one, FeedEvent::Heard(batch), &mut replay);
                }
            }
            said = next(&mut replay) => {
                let event = match said {
                    Some(Repeated::Batch(number, payload)) => {
                        let Some(batch) = read(one, &number.to_be_bytes(), &payload) else { continue };
                        one.tell(&payload);
                        FeedEvent::Replayed(batch)
                    }
                    Some(Repeated::Ended) => FeedEvent::ReplayEnded,
                    Some(Repeated::Failed(error)) => {
                        one.state().trouble = format!("replay: {error}");
                        FeedEvent::ReplayFailed
                    }
                    None => FeedEvent::ReplayFailed,
                };
                if !matches!(event, FeedEvent::Replayed(_)) {
                    replay = None;
                }
                tell(one, event, &mut replay);
            }
            () = tokio::time::sleep_until(quiet_at) => {
                quiet_at = Instant::now() + QUIET;
                tell(one, FeedEvent::Quiet, &mut replay);
            }
            () = until(again_at) => {
                (again_at, wait) = (None, (wait * 2).min(LONGEST_AGAIN));
                tell(one, FeedEvent::Again, &mut replay);
            }
        }
    }
}

/// Waits until then; for ever where that is never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for what is repeated; for ever while nothing is.
async fn next(replay: &mut Option<(Reader, mpsc::Receiver<Repeated>)>) -> Option<Repeated> {
    match replay {
        Some((_, said)) => said.recv().await,
        None => std::future::pending().await,
    }
}

fn tell(one: &Arc<One>, event: FeedEvent, replay: &mut Option<(Reader, mpsc::Receiver<Repeated>)>) {
    let mut effects = Vec::new();
    let mut state = one.state();
    if matches!(event, FeedEvent::Connected) {
        state.trouble.clear();
    }
    state.feed.step(event, &mut effects);
    drop(state);
    if let Some(FeedEffect::Replay { from }) = effects.pop() {
        let (sender, said) = mpsc::channel(WAITING);
        let address = one.engine.replay.clone().unwrap_or_default();
        let task = tokio::spawn(async move {
            let ends = tokio::time::timeout(REPLAY_LIMIT, repeat(&address, from, &sender)).await;
            let last = match ends {
                Ok(Ok(())) => Repeated::Ended,
                Ok(Err(error)) => Repeated::Failed(error),
                Err(_) => Repeated::Failed(ZmtpError::Late(REPLAY_LIMIT)),
            };
            let _ = sender.send(last).await;
        });
        *replay = Some((Reader(task.abort_handle()), said));
    }
}

/// Asks an engine for its batches from a number on, until it says that these were all.
async fn repeat(address: &str, from: u64, said: &mpsc::Sender<Repeated>) -> Result<(), ZmtpError> {
    let mut connection = Connection::dial(address, Kind::Dealer, DIAL_LIMIT).await?;
    connection.ask(&from.to_be_bytes()).await?;
    loop {
        let received = tokio::time::timeout(REPLAY_SILENCE, connection.receive()).await;
        let mut message = received.unwrap_or(Err(ZmtpError::Late(REPLAY_SILENCE)))?;
        let (Some(payload), Some(number)) = (message.pop(), message.pop()) else { continue };
        let Ok(number) = <[u8; 8]>::try_from(&number[..]) else {
            return Err(ZmtpError::Protocol(format!("a number of {} bytes is repeated", number.len())));
        };
        // The end is number -1.
        if number == [0xff; 8] {
            return Ok(());
        }
        if said.send(Repeated::Batch(u64::from_be_bytes(number), payload)).await.is_err() {
            return Ok(());
        }
    }
}

/// Reads a batch. One that makes no sense is a gap, which the feed notices by the number after it.
fn read(one: &One, number: &[u8], payload: &[u8]) -> Option<Batch> {
    let number = <[u8; 8]>::try_from(number).ok().map(u64::from_be_bytes);
    let read = number.map(|number| format::batch(number, payload, one.engine.block_tokens));
    let mut state = one.state();
    match read {
        Some(Ok((batch, ignored))) => {
            state.ignored += ignored;
            Some(batch)
        }
        Some(Err(error)) => {
            state.ignored += 1;
            state.trouble = error.to_string();
            None
        }
        None => {
            state.ignored += 1;
            state.trouble = "a message has no number of eight bytes".to_owned();
            None
        }
    }
}
