//! The sockets of the port that speaks Redis: who gets in, how much they may have under way, and what is done for them in which order.

use super::caller::{Caller, Sending};
use super::command::{Ask, Says};
use super::parse::{Bounds, MAX_ARGS};
use super::reply::Reply;
use super::session::{Session, Step};
use crate::config::RedisConfig;
use crate::data::{Counters, count};
use crate::view::View;
use kvhive_client::{Client, ClientConfig, ClientError, Values};
use kvhive_runtime::http::Access;
use kvhive_runtime::{Place, Places, stopped};
use kvhive_tls::{Callers, Stream, Tls};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info};

/// Connections at a time whose callers have not shown a token; one more ends the one that has waited longest.
const MAX_STRANGERS: usize = 64;
/// A request or an answer that does not get on for this long ends its connection.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// How long a request waits for room.
const ROOM_WAIT: Duration = Duration::from_secs(5);
/// What is read at a time, and what a request may have without asking for room.
pub(super) const READ_BYTES: usize = 16 * 1024;
/// An answer of so many bytes is sent before the next is made.
pub(super) const SENT_BYTES: usize = 256 * 1024;
/// Calls under way that tell values that they are over.
const MAX_TIDYING: usize = 64;
/// Connections of all callers to each node of the cluster.
const CONNECTIONS_PER_MEMBER: usize = 16;
/// Wait between two tries to reach the coordinators.
const PAUSE: Duration = Duration::from_millis(50);
/// Memory of one connection: what it reads into, and what it sends from.
const CONNECTION_BYTES: u64 = (2 * READ_BYTES + SENT_BYTES) as u64;

/// Returns what the port takes at most, in bytes. What is being fetched is counted twice: as it comes, and as it is sent.
pub(crate) fn memory_bytes(config: &RedisConfig) -> u64 {
    (config.max_connections + MAX_STRANGERS) as u64 * CONNECTION_BYTES + 2 * config.max_inflight_bytes
}

/// The port, and what all its connections share.
pub(crate) struct Door {
    pub(super) config: RedisConfig,
    access: Arc<Access>,
    tls: Option<Tls>,
    pub(super) view: Arc<View>,
    pub(super) counters: Arc<Counters>,
    client: watch::Sender<Option<Client>>,
    pub(super) connections: Arc<Semaphore>,
    /// One permit a KiB of requests and values under way.
    room: Arc<Semaphore>,
    pub(super) tidying: Arc<Semaphore>,
    ids: AtomicI64,
}

impl Door {
    pub(crate) fn new(
        config: RedisConfig,
        access: Access,
        tls: Option<Tls>,
        view: Arc<View>,
        counters: Arc<Counters>,
    ) -> Door {
        Door {
            access: Arc::new(access),
            tls,
            view,
            counters,
            client: watch::Sender::new(None),
            connections: Arc::new(Semaphore::new(config.max_connections)),
            room: Arc::new(Semaphore::new(kib(config.max_inflight_bytes) as usize)),
            tidying: Arc::new(Semaphore::new(MAX_TIDYING)),
            ids: AtomicI64::new(1),
            config,
        }
    }

    /// Returns how many callers are let in at present.
    pub(crate) fn open_connections(&self) -> usize {
        self.config.max_connections.saturating_sub(self.connections.available_permits())
    }

    /// Returns how much the requests and values under way take at present, in bytes.
    pub(crate) fn inflight_bytes(&self) -> u64 {
        let free = self.room.available_permits() as u64;
        u64::from(kib(self.config.max_inflight_bytes)).saturating_sub(free) * 1024
    }

    /// Waits until none of them is left.
    pub(crate) async fn drained(&self) {
        let all = u32::try_from(self.config.max_connections).unwrap_or(u32::MAX);
        // Never closed: the permits come back as connections end.
        let _ = self.connections.acquire_many(all).await;
    }

    /// Reaches the cluster, however long that takes.
    pub(crate) async fn join(self: Arc<Self>, config: ClientConfig, mut stop: watch::Receiver<bool>) {
        let config = ClientConfig { connections_per_member: CONNECTIONS_PER_MEMBER, ..config };
        loop {
            let connected = tokio::select! {
                connected = Client::connect(config.clone()) => connected,
                () = stopped(&mut stop) => return,
            };
            match connected {
                Ok(client) => {
                    self.client.send_replace(Some(client));
                    return;
                }
                Err(error) => debug!(%error, "the Redis port has not reached the cluster yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lets callers in until `stop` turns true; those that stand end by themselves after their present request.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let strangers = Places::new(MAX_STRANGERS);
        if let Ok(address) = listener.local_addr() {
            info!(redis = %address, "speaks Redis");
        }
        while let Some(stream) = kvhive_runtime::accept(&listener, &mut stop).await {
            let Some(place) = strangers.enter() else {
                count(&self.counters.redis_refused);
                continue;
            };
            let (door, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move { door.admit(stream, place, stop).await });
        }
    }

    async fn admit(&self, stream: TcpStream, mut place: Place, stop: watch::Receiver<bool>) {
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let shaken = tokio::select! {
                    shaken = timeout(STALL, tls.accept(stream, Callers::Anyone)) => shaken,
                    () = place.turned_out() => return,
                };
                match shaken {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(refusal)) => {
                        let fault = refusal.say(b"-ERR this cluster speaks TLS\r\n").await;
                        debug!(%fault, "handshake failed");
                        return;
                    }
                    Err(_) => return,
                }
            }
        };
        if stream.set_nodelay().is_err() {
            return;
        }
        count(&self.counters.redis_connections);
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let value_bytes = usize::try_from(self.config.max_value_bytes).unwrap_or(usize::MAX);
        let session = Session::new(id, self.access.clone(), value_bytes);
        let mut caller = Caller::new(stream, session, place);
        if let Err(error) = caller.serve(self, stop).await {
            debug!(%error, "connection ended");
        }
    }

    /// Takes room for so many bytes.
    pub(super) async fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Reply> {
        let most = self.config.max_inflight_bytes;
        if bytes > most {
            let why = format!("{bytes} bytes at once; allowed are {most} (redis_max_inflight)");
            return Err(Reply::wrong(why));
        }
        match timeout(ROOM_WAIT, self.room.clone().acquire_many_owned(kib(bytes))).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Reply::Error("TRYAGAIN as many bytes as allowed are under way".to_owned())),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        let bytes = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        Bounds {
            args: MAX_ARGS,
            arg_bytes: bytes(self.config.max_value_bytes),
            bytes: bytes(self.config.max_inflight_bytes),
        }
    }

    pub(super) async fn values(&self, tenant: &str) -> Result<Values, Reply> {
        let client = self.client.borrow().clone();
        let client = client
            .ok_or_else(|| Reply::Error("LOADING the node has not reached its cluster yet".to_owned()))?;
        match client.values(tenant) {
            Err(ClientError::UnknownTenant(_)) => {
                // It may have come since the map did.
                client.refresh().await.and_then(|_| client.values(tenant)).map_err(Reply::wrong)
            }
            values => values.map_err(Reply::wrong),
        }
    }

    /// Does what was asked, in its order; what may be done side by side is.
    pub(super) async fn answer(
        &self,
        tenant: &str,
        steps: &[(Step, bool)],
        caller: &mut Sending<'_>,
    ) -> io::Result<()> {
        let mut values = None;
        let mut rest = steps;
        while let Some((step, resp3)) = rest.first() {
            let asks =
                rest.iter().map_while(|(step, _)| if let Step::Do(ask) = step { Some(ask) } else { None });
            let (done, replies) = match step {
                Step::Say(reply) | Step::End(reply) => (1, vec![reply.clone()]),
                Step::Tell(sections) => (1, vec![self.tell(tenant, sections).await]),
                Step::Do(ask) => {
                    if values.is_none() {
                        values = Some(self.values(tenant).await);
                    }
                    match values.as_ref() {
                        Some(Ok(values)) => self.perform_some(values, ask, asks).await,
                        Some(Err(refusal)) => (1, vec![refusal.clone()]),
                        None => return Ok(()),
                    }
                }
            };
            // Each keeps its room until it is sent.
            for reply in replies {
                self.counted(&reply);
                reply.encode(*resp3, caller.out);
                if caller.out.len() >= SENT_BYTES {
                    caller.send().await?;
                }
            }
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Does the first of `asks`, and those after it that may be done with it. Returns how many those are.
    async fn perform_some<'a>(
        &self,
        values: &Values,
        first: &Ask,
        asks: impl Iterator<Item = &'a Ask>,
    ) -> (usize, Vec<Reply>) {
        match first {
            Ask::Get(_) => {
                let names: Vec<_> =
                    asks.map_while(|ask| if let Ask::Get(name) = ask { Some(name) } else { None }).collect();
                match self.get_some(values, &names).await {
                    Ok(replies) => (replies.len(), replies),
                    Err(refusal) => (1, vec![refusal]),
                }
            }
            // One whose answer is a value has that sent before the next is done.
            Ask::Set(set) if set.says != Says::Before => {
                let mut seen = BTreeSet::new();
                let sets: Vec<_> = asks
                    .map_while(|ask| if let Ask::Set(set) = ask { Some(set) } else { None })
                    .take_while(|set| set.says != Says::Before && seen.insert(&set.name))
                    .collect();
                (sets.len(), self.set_each(values, &sets).await)
            }
            ask => (1, vec![self.perform(values, ask).await]),
        }
    }
}

pub(super) fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(1 << 28)
}
