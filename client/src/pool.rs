//! Connections to nodes, kept per address and bounded. An address that cannot be dialled is left alone for a while, so
//! that a dead member costs its callers one refusal and not one dial each.

use crate::queue::{Left, Queue, Work};
use kvhive_wire::{Connection, Fault, Identity};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The first time an address is left alone after a failed dial; doubled each time.
const REST_LEAST: Duration = Duration::from_millis(50);
/// The longest time.
const REST_MOST: Duration = Duration::from_secs(2);
/// Addresses remembered at most; the map's members are far fewer.
const MAX_ADDRESSES: usize = 8192;

/// Connections to nodes.
pub struct Pool {
    identity: Identity,
    /// As whom it connects.
    sender: AtomicU64,
    per_address: usize,
    dial_limit: Duration,
    addresses: Mutex<HashMap<String, Arc<Address>>>,
    dials: AtomicU64,
    begun: Instant,
}

struct Address {
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    /// When its pool was made.
    begun: Instant,
}

struct State {
    queue: Queue,
    idle: Vec<Connection>,
    failures: u32,
    rests_until: Option<Instant>,
}

/// A connection that is one caller's until it is given back. Dropped instead, it is closed.
pub struct Lease {
    connection: Connection,
    address: Arc<Address>,
    was_idle: bool,
    since: Instant,
    work: Work,
    _permit: OwnedSemaphorePermit,
}

/// One who waits for a place at an address.
struct Waiting<'a> {
    pool: &'a Pool,
    address: &'a Address,
    as_it_left: Left,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.address.state).queue.leave(self.pool.begun.elapsed(), self.as_it_left);
    }
}

impl Pool {
    /// Makes an empty pool of at most `per_address` connections to each address.
    pub fn new(identity: Identity, per_address: usize, dial_limit: Duration) -> Pool {
        Pool {
            sender: AtomicU64::new(identity.sender),
            identity,
            per_address,
            dial_limit,
            addresses: Mutex::new(HashMap::new()),
            dials: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }

    /// Has connections say from now on that they are of this member. Those that said something else are not used again.
    pub fn speak_as(&self, sender: u64) {
        if self.sender.swap(sender, Ordering::Relaxed) != sender {
            lock(&self.addresses).clear();
        }
    }

    /// Takes an idle connection to `address` or dials one, by `deadline`.
    ///
    /// # Errors
    /// When none could be had; at once while the address rests after a failed dial.
    pub async fn take(&self, address: &str, deadline: Instant) -> Result<Lease, Fault> {
        let known = self.known(address);
        let permit = permit(&known, deadline).await?;
        self.lease(address, known, permit, Work::Blocks, deadline).await
    }

    /// As [`Pool::take`], for what somebody can do without: [`Fault::Overloaded`] at once where all connections are taken and none would be
    /// free in time.
    ///
    /// # Errors
    /// As [`Pool::take`], and that.
    pub(crate) async fn take_in_time(
        &self,
        address: &str,
        work: Work,
        deadline: Instant,
    ) -> Result<Lease, Fault> {
        let known = self.known(address);
        let permit = match known.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let entered = lock(&known.state).queue.enter(self.begun.elapsed(), work, left);
                let patience = entered.ok_or(Fault::Overloaded)?;
                // Who is cancelled was not late.
                let mut waiting = Waiting { pool: self, address: &known, as_it_left: Left::Gone };
                let permit = permit(&known, Instant::now() + patience).await;
                waiting.as_it_left = if permit.is_ok() { Left::ForAPlace } else { Left::Late(left) };
                permit.map_err(|_| Fault::Overloaded)?
            }
        };
        self.lease(address, known, permit, work, deadline).await
    }

    async fn lease(
        &self,
        address: &str,
        known: Arc<Address>,
        permit: OwnedSemaphorePermit,
        work: Work,
        deadline: Instant,
    ) -> Result<Lease, Fault> {
        loop {
            let idle = lock(&known.state).idle.pop();
            match idle {
                Some(connection) if connection.is_idle() => {
                    let since = Instant::now();
                    let was_idle = true;
                    return Ok(Lease { connection, address: known, was_idle, since, work, _permit: permit });
                }
                Some(_) => {}
                None => return self.dial(address, known, permit, work, deadline).await,
            }
        }
    }

    /// Dials anew for a lease whose idle connection turned out to be dead; the others to `address` are forgotten. The lease
    /// keeps its place among those of its address: those who wait for one wait for callers, not for it.
    ///
    /// # Errors
    /// As [`Pool::take`]; the lease is then of no use.
    pub async fn renew(&self, lease: &mut Lease, address: &str, deadline: Instant) -> Result<(), Fault> {
        lock(&lease.address.state).idle.clear();
        lease.connection = self.connect(address, &lease.address, deadline).await?;
        lease.was_idle = false;
        Ok(())
    }

    /// As [`Pool::take`], but dials: an idle connection turned out to be dead, so the others to `address` are forgotten.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub async fn take_fresh(&self, address: &str, deadline: Instant) -> Result<Lease, Fault> {
        let known = self.known(address);
        let permit = permit(&known, deadline).await?;
        lock(&known.state).idle.clear();
        self.dial(address, known, permit, Work::Blocks, deadline).await
    }

    async fn dial(
        &self,
        address: &str,
        known: Arc<Address>,
        permit: OwnedSemaphorePermit,
        work: Work,
        deadline: Instant,
    ) -> Result<Lease, Fault> {
        let since = Instant::now();
        let connection = self.connect(address, &known, deadline).await?;
        Ok(Lease { connection, address: known, was_idle: false, since, work, _permit: permit })
    }

    async fn connect(&self, address: &str, known: &Address, deadline: Instant) -> Result<Connection, Fault> {
        if lock(&known.state).rests_until.is_some_and(|until| Instant::now() < until) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("{address} could not be dialled"),
            )
            .into());
        }
        self.dials.fetch_add(1, Ordering::Relaxed);
        let left = deadline.saturating_duration_since(Instant::now());
        let identity = Identity { sender: self.sender.load(Ordering::Relaxed), ..self.identity.clone() };
        let dialled = Connection::connect(address, &identity, left.min(self.dial_limit)).await;
        let mut state = lock(&known.state);
        match dialled {
            Ok((connection, _)) => {
                state.failures = 0;
                state.rests_until = None;
                Ok(connection)
            }
            Err(fault) => {
                state.failures = (state.failures + 1).min(16);
                let rest = REST_LEAST.saturating_mul(1 << (state.failures - 1)).min(REST_MOST);
                state.rests_until = Some(Instant::now() + rest);
                drop(state);
                // At most once a rest: somebody must look at the configuration.
                if matches!(fault, Fault::Refused(_) | Fault::Impostor | Fault::Tls(_)) {
                    tracing::warn!(address, %fault, "a node lets nobody in from here");
                }
                Err(fault)
            }
        }
    }

    /// Forgets every address but these: members that are gone from the map.
    pub fn retain(&self, mut wanted: impl FnMut(&str) -> bool) {
        lock(&self.addresses).retain(|address, _| wanted(address));
    }

    /// Returns how often the pool dialled.
    pub fn dials(&self) -> u64 {
        self.dials.load(Ordering::Relaxed)
    }

    fn known(&self, address: &str) -> Arc<Address> {
        let mut addresses = lock(&self.addresses);
        if let Some(known) = addresses.get(address) {
            return known.clone();
        }
        if addresses.len() >= MAX_ADDRESSES {
            addresses.clear();
        }
        let known = Arc::new(Address {
            permits: Arc::new(Semaphore::new(self.per_address)),
            state: Mutex::new(State {
                queue: Queue::new(self.per_address),
                idle: Vec::new(),
                failures: 0,
                rests_until: None,
            }),
            begun: self.begun,
        });
        addresses.insert(address.to_owned(), known.clone());
        known
    }
}

impl Lease {
    /// Gives the connection back for others, if it is still whole.
    pub fn give_back(self) {
        if self.connection.is_idle() {
            let mut state = lock(&self.address.state);
            state.queue.took(self.work, self.since.elapsed());
            state.idle.push(self.connection);
        }
    }

    /// Gives the connection back after its node said that something could not be done in time.
    pub(crate) fn give_back_late(self) {
        if self.connection.is_idle() {
            let mut state = lock(&self.address.state);
            state.queue.was_late_there(self.address.begun.elapsed());
            state.idle.push(self.connection);
        }
    }

    /// Says whether the connection had been idle rather than dialled for this lease: its other end may be gone.
    pub fn was_idle(&self) -> bool {
        self.was_idle
    }

    /// Returns the connection.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

async fn permit(address: &Address, deadline: Instant) -> Result<OwnedSemaphorePermit, Fault> {
    let left = deadline.saturating_duration_since(Instant::now());
    let permit = tokio::time::timeout_at(deadline, address.permits.clone().acquire_owned()).await;
    permit.map_err(|_| Fault::Timeout(left))?.map_err(|_| Fault::Closed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done under these locks.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
