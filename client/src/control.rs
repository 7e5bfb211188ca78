//! The control plane from outside: finds the coordinator that leads, asks it, repeats what may be repeated.

use crate::error::ClientError;
use crate::retry::Backoff;
use kvhive_protocol::control::{
    Command, CommandReply, ControlReply, ControlRequest, CoordinatorStatus, Heartbeat, Registration,
};
use kvhive_protocol::engines::{EngineLoad, Followed};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::routing::{RouteAnswer, RouteRequest};
use kvhive_protocol::{ClusterMap, Epoch, Reason, RequestId, WireError};
use kvhive_wire::{Connection, Fault, Identity};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// A coordinator that does not answer a read, a registration or a heartbeat within this is passed over.
const PATIENCE: Duration = Duration::from_secs(1);
/// A change may wait for every member to learn of it.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long coordinators may say that nobody leads before it is taken for more than an election.
const ELECTION_PATIENCE: Duration = Duration::from_secs(3);
/// The same, where whoever waits for a leader has something else to do.
const LEADERLESS_AFTER: Duration = Duration::from_secs(1);
/// How long what was seen of that counts: nobody may have asked since a leader was there again.
const LEADERLESS_UNTIL: Duration = Duration::from_secs(10);
/// Connections kept for the next request.
const MAX_IDLE: usize = 8;

/// The coordinators of one cluster. Cheap to share behind an `Arc`.
pub struct Coordinators {
    /// As they were named to begin with.
    named: Vec<String>,
    identity: Identity,
    client: u128,
    sequence: AtomicU64,
    requests: AtomicU64,
    target: Mutex<Target>,
    /// Since when nobody leads, as far as is known here.
    leaderless: Mutex<Leaderless>,
}

/// When it was seen that nobody leads.
#[derive(Default)]
struct Leaderless {
    first_and_last: Option<(Instant, Instant)>,
}

impl Leaderless {
    fn note(&mut self, now: Instant, is_led: bool) {
        let first = self.first_and_last.filter(|(_, last)| now.duration_since(*last) <= LEADERLESS_UNTIL);
        self.first_and_last = (!is_led).then(|| (first.map_or(now, |(first, _)| first), now));
    }

    /// Says whether it lasts longer than an election takes, by what was seen lately.
    fn lasts(&self, now: Instant) -> bool {
        self.first_and_last.is_some_and(|(first, last)| {
            now.duration_since(first) >= LEADERLESS_AFTER && now.duration_since(last) <= LEADERLESS_UNTIL
        })
    }
}

struct Target {
    /// Who is asked first.
    address: String,
    /// Connections to it.
    idle: Vec<Connection>,
    /// Where the search goes on when it fails.
    next: usize,
    /// Where the newest map has them.
    learnt: Arc<Vec<String>>,
    /// Who has failed since one answered.
    failed: usize,
}

impl Coordinators {
    /// Names the coordinators' control-plane addresses (`host:port`); nothing is dialled yet.
    ///
    /// # Errors
    /// When there are none, or the system has no random bytes.
    pub fn new(addresses: Vec<String>, identity: Identity) -> Result<Coordinators, ClientError> {
        let Some(first) = addresses.first().cloned() else {
            return Err(ClientError::Misuse("no coordinator addresses are given".to_owned()));
        };
        let mut client = [0; 16];
        getrandom::fill(&mut client)
            .map_err(|error| ClientError::Misuse(format!("no random bytes: {error}")))?;
        Ok(Coordinators {
            named: addresses,
            identity,
            client: u128::from_le_bytes(client),
            sequence: AtomicU64::new(1),
            requests: AtomicU64::new(1),
            target: Mutex::new(Target {
                address: first,
                idle: Vec::new(),
                next: 1,
                learnt: Arc::default(),
                failed: 0,
            }),
            leaderless: Mutex::default(),
        })
    }

    /// Follows the coordinators to where a map has them. Those that were named to begin with are asked only when none of these
    /// answers; one that is neither is forgotten.
    pub fn follow(&self, map: &ClusterMap) {
        let mut target = self.target();
        if !map.coordinators.is_empty() && target.learnt != map.coordinators {
            target.learnt = map.coordinators.clone();
            target.next = 0;
        }
    }

    /// Returns where coordinators are asked for, those that are asked first at the front.
    pub fn addresses(&self) -> Vec<String> {
        let learnt = self.target().learnt.clone();
        let named = self.named.iter().filter(|named| !learnt.contains(named));
        learnt.iter().chain(named).cloned().collect()
    }

    /// Returns the map if it is newer than `have`. Linearizable: as new as any change acknowledged before the call; otherwise also
    /// one that nobody leads, by which clients go on.
    ///
    /// # Errors
    /// When no coordinator answers by `deadline`.
    pub async fn fetch_map(
        &self,
        have: Epoch,
        linearizable: bool,
        deadline: Instant,
    ) -> Result<Option<Arc<ClusterMap>>, ClientError> {
        let request = ControlRequest::FetchMap { have, linearizable };
        let reply = self.ask(&request, PATIENCE, deadline).await.inspect_err(|_| self.note_leader(false))?;
        let (map, is_led) = match reply {
            ControlReply::Map(map) => (map, true),
            ControlReply::LeaderlessMap(map) => (map, false),
            other => return Err(unexpected(&other)),
        };
        self.note_leader(is_led);
        Ok(map.map(|map| Arc::new(*map)))
    }

    fn note_leader(&self, is_led: bool) {
        let mut leaderless = self.leaderless.lock().unwrap_or_else(|poison| poison.into_inner());
        leaderless.note(Instant::now(), is_led);
    }

    /// Says whether nobody leads, for longer than an election takes: by what coordinators said of the map when they were asked
    /// last, or because none answered.
    pub fn are_leaderless(&self) -> bool {
        let leaderless = self.leaderless.lock().unwrap_or_else(|poison| poison.into_inner());
        leaderless.lasts(Instant::now())
    }

    /// Makes a name for a change, to be repeated with it.
    pub fn request_id(&self) -> RequestId {
        RequestId { client: self.client, sequence: self.sequence.fetch_add(1, Ordering::Relaxed) }
    }

    /// Has a change applied once, however often it must be sent.
    ///
    /// # Errors
    /// When it is refused, or its outcome is unknown at `deadline`.
    pub async fn submit(&self, command: Command, deadline: Instant) -> Result<CommandReply, ClientError> {
        let request =
            ControlRequest::Submit { request: self.request_id(), command, reason: Reason::default() };
        match self.ask(&request, CHANGE_PATIENCE, deadline).await? {
            ControlReply::Done(CommandReply::Rejected(error)) => Err(ClientError::Refused(error)),
            ControlReply::Done(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks which engine should take a request.
    ///
    /// # Errors
    /// When the question is refused, or no coordinator answers by `deadline`.
    pub async fn route(&self, request: RouteRequest, deadline: Instant) -> Result<RouteAnswer, ClientError> {
        match self.ask(&ControlRequest::Route(Box::new(request)), PATIENCE, deadline).await? {
            ControlReply::Routed(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Tells the coordinator that routes are asked of how busy an engine is.
    ///
    /// # Errors
    /// When it is refused, or no coordinator answers by `deadline`.
    pub async fn engine_load(
        &self,
        engine: &str,
        load: EngineLoad,
        deadline: Instant,
    ) -> Result<Followed, ClientError> {
        let request = ControlRequest::EngineLoad { engine: engine.to_owned(), load };
        match self.ask(&request, PATIENCE, deadline).await? {
            ControlReply::Engine(followed) => Ok(*followed),
            other => Err(unexpected(&other)),
        }
    }

    /// Registers a node; `registration.request` names it for repeats.
    ///
    /// # Errors
    /// When it is refused or no coordinator answers by `deadline`.
    pub async fn register(
        &self,
        registration: &Registration,
        deadline: Instant,
    ) -> Result<ControlReply, ClientError> {
        self.ask(&ControlRequest::Register(registration.clone()), CHANGE_PATIENCE, deadline).await
    }

    /// Sends a heartbeat: one try, and one more when the leader is another. The answer renews a lease from when the
    /// caller sent it, so nothing here may wait and try for long.
    ///
    /// # Errors
    /// When it was not answered by `deadline`.
    pub async fn heartbeat(
        &self,
        heartbeat: Heartbeat,
        deadline: Instant,
    ) -> Result<ControlReply, ClientError> {
        let request = ControlRequest::Heartbeat(heartbeat);
        let limit = deadline.saturating_duration_since(Instant::now());
        let mut last = String::new();
        // A leader that hangs shall not use up the time of who is asked next.
        for deadline in [deadline - limit / 2, deadline] {
            match self.try_once(&request, deadline).await {
                Ok(ControlReply::Failed(WireError::NotLeader { leader })) => {
                    last = "not the leader".to_owned();
                    self.retarget(leader);
                }
                Ok(ControlReply::Failed(error)) => return Err(ClientError::Refused(error)),
                Ok(reply) => return Ok(reply),
                Err(fault) => {
                    last = fault.to_string();
                    self.retarget(None);
                }
            }
        }
        Err(self.unreachable(limit, last))
    }

    /// Asks each coordinator how it sees itself; one that does not answer is an error in its place.
    pub async fn status(&self, limit: Duration) -> Vec<(String, Result<CoordinatorStatus, Fault>)> {
        let asks = self.addresses().into_iter().map(|address| async move {
            let answer = tokio::time::timeout(limit, async {
                let (mut connection, _) = Connection::connect(&address, &self.identity, limit).await?;
                let number = self.requests.fetch_add(1, Ordering::Relaxed);
                connection.send(Kind::ControlRequest, number, &ControlRequest::Status, &[]).await?;
                match connection.receive_answer(Kind::ControlReply, number).await? {
                    ControlReply::Status(status) => Ok(status),
                    other => Err(Fault::Protocol(WireError::malformed(format_args!(
                        "unexpected answer {other:?}"
                    )))),
                }
            });
            let answer = answer.await.unwrap_or(Err(Fault::Timeout(limit)));
            (address, answer)
        });
        futures_util::future::join_all(asks).await
    }

    /// Asks until there is an answer that a repeat would not change.
    async fn ask(
        &self,
        request: &ControlRequest,
        patience: Duration,
        deadline: Instant,
    ) -> Result<ControlReply, ClientError> {
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        let (mut tried, mut strangers) = (0, 0);
        let there_are = self.addresses().len();
        let mut last;
        // Since when those who answer say that nobody leads, and whether something can have come of an earlier try.
        let (mut leaderless, mut may_be_done) = (None, false);
        loop {
            // Each coordinator gets its share of a short deadline: one that hangs shall not use up the others'.
            let now = Instant::now();
            let untried = there_are.saturating_sub(tried).max(1) as u32;
            let share = deadline.saturating_duration_since(now) / untried;
            let attempt = now + patience.min(share);
            match self.try_once(request, attempt).await {
                Ok(ControlReply::Failed(error)) => match error {
                    WireError::NotLeader { leader } => {
                        let known = leader.is_some();
                        let knows = if known { "" } else { ", and knows of none" };
                        last = format!("not the leader{knows}");
                        match known {
                            true => leaderless = None,
                            false => _ = leaderless.get_or_insert(now),
                        }
                        self.retarget(leader);
                        tried += 1;
                        // The first hints are followed at once; in an election everybody points in circles.
                        if known && tried <= there_are {
                            continue;
                        }
                    }
                    WireError::Busy { .. } | WireError::OutcomeUnknown | WireError::Deadline => {
                        may_be_done |= !matches!(error, WireError::Busy { .. });
                        last = error.to_string();
                    }
                    error => return Err(ClientError::Refused(error)),
                },
                Ok(reply) => return Ok(reply),
                Err(Fault::Refused(
                    error @ (WireError::Unauthorized
                    | WireError::Version { .. }
                    | WireError::TooOld { .. }
                    | WireError::WrongCluster
                    | WireError::TlsRequired),
                )) => {
                    return Err(ClientError::Refused(error));
                }
                Err(fault @ Fault::Impostor) => return Err(fault.into()),
                Err(fault) => {
                    may_be_done |= matches!(fault, Fault::Closed | Fault::Timeout(_));
                    strangers = if matches!(fault, Fault::Protocol(_)) { strangers + 1 } else { 0 };
                    last = fault.to_string();
                    // Twice each, that it is no accident: what listens there is something else, and stays so.
                    if strangers >= 2 * there_are {
                        return Err(self.unreachable(begun.elapsed(), last));
                    }
                    self.retarget(None);
                    tried += 1;
                    if tried < there_are {
                        continue;
                    }
                }
            }
            let is_outage = leaderless.is_some_and(|since: Instant| since.elapsed() >= ELECTION_PATIENCE);
            if is_outage && !may_be_done {
                return Err(ClientError::Refused(WireError::NoMajority));
            }
            if is_outage {
                last = format!("{}; whether an earlier try was heard is unknown", WireError::NoMajority);
                return Err(self.unreachable(begun.elapsed(), last));
            }
            if !backoff.wait(deadline).await {
                let limit = deadline.saturating_duration_since(begun);
                return Err(self.unreachable(limit, last));
            }
        }
    }

    async fn try_once(&self, request: &ControlRequest, deadline: Instant) -> Result<ControlReply, Fault> {
        let limit = deadline.saturating_duration_since(Instant::now());
        tokio::time::timeout_at(deadline, async {
            let (address, idle) = {
                let mut target = self.target();
                (target.address.clone(), target.idle.pop())
            };
            let mut connection = match idle.filter(Connection::is_idle) {
                Some(connection) => connection,
                None => Connection::connect(&address, &self.identity, limit).await?.0,
            };
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            connection.send(Kind::ControlRequest, number, request, &[]).await?;
            let reply = connection.receive_answer(Kind::ControlReply, number).await?;
            let mut target = self.target();
            if !matches!(reply, ControlReply::Failed(_)) {
                target.failed = 0;
            }
            if target.address == address && target.idle.len() < MAX_IDLE && connection.is_idle() {
                target.idle.push(connection);
            }
            Ok(reply)
        })
        .await
        .unwrap_or(Err(Fault::Timeout(limit)))
    }

    /// Asks `leader` next, or the next coordinator in turn.
    fn retarget(&self, leader: Option<String>) {
        let mut target = self.target();
        let address = leader.unwrap_or_else(|| {
            let learnt = target.learnt.clone();
            target.failed += 1;
            // Who was named to begin with may be gone for good, so those come when all others have failed.
            let are_silent = target.failed > learnt.len();
            let named = self.named.iter().filter(|named| are_silent && !learnt.contains(named));
            let all: Vec<&String> = learnt.iter().chain(named).collect();
            let count = all.len();
            let mut turn = (0..count).map(|step| (target.next + step) % count);
            let at = turn.find(|at| *all[*at] != target.address).unwrap_or(0);
            target.next = (at + 1) % count;
            all[at].clone()
        });
        // Also when it is the same one: what failed was one of these.
        target.idle.clear();
        target.address = address;
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        // Nothing is left half-done under this lock.
        self.target.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn unreachable(&self, limit: Duration, last: String) -> ClientError {
        ClientError::Unreachable { addresses: self.addresses(), limit, last }
    }
}

fn unexpected(reply: &ControlReply) -> ClientError {
    ClientError::Refused(WireError::malformed(format_args!("unexpected answer {reply:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_seen_long_ago_says_nothing_of_now() {
        let mut leaderless = Leaderless::default();
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        leaderless.note(at(0), false);
        assert!(!leaderless.lasts(at(900)) && leaderless.lasts(at(1100)));
        leaderless.note(at(9000), false);
        assert!(leaderless.lasts(at(12_000)));
        assert!(!leaderless.lasts(at(19_001)), "nobody has asked since");
        leaderless.note(at(60_000), false);
        assert!(!leaderless.lasts(at(60_500)) && leaderless.lasts(at(61_000)), "it is another election");
        leaderless.note(at(61_500), true);
        assert!(!leaderless.lasts(at(61_500)));
    }
}
