//! A client: the cluster's map, connections to its nodes, and the tenants' affairs.

use crate::control::Coordinators;
use crate::error::ClientError;
use crate::namespace::NamespaceClient;
use crate::pool::{Lease, Pool};
use crate::stats::{ClientStats, Counters, count};
use kvhive_protocol::control::{Command, CommandReply};
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{ClusterMap, DeviceId, Epoch, Era, Layout, TenantId, WireError};
use kvhive_wire::{Fault, Identity};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How a client reaches its cluster.
#[derive(Clone)]
pub struct ClientConfig {
    /// `host:port` of the coordinators' control plane.
    pub coordinators: Vec<String>,
    /// The cluster's token.
    pub token: Vec<u8>,
    /// The longest a dial and its handshake may take.
    pub connect_timeout: Duration,
    /// The longest a call may take: about what recomputing its blocks would.
    pub request_timeout: Duration,
    /// Connections kept to each node.
    pub connections_per_member: usize,
    /// How long matched blocks are kept from eviction, so that they can be fetched.
    pub hold: Duration,
}

impl ClientConfig {
    /// Connects to these coordinators with this token, everything else as usual: dials within 1 s, calls within 5 s,
    /// 4 connections to each node, holds of 2 s.
    pub fn new(coordinators: Vec<String>, token: Vec<u8>) -> ClientConfig {
        ClientConfig {
            coordinators,
            token,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            connections_per_member: 4,
            hold: Duration::from_secs(2),
        }
    }
}

/// A client of one cluster. Cheap to clone; clones share map and connections.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    coordinators: Coordinators,
    map: RwLock<Arc<ClusterMap>>,
    /// One refresh at a time; the others wait for its result.
    refreshing: Semaphore,
    pool: Pool,
    pub(crate) counters: Counters,
    requests: std::sync::atomic::AtomicU64,
}

impl Client {
    /// Connects: fetches the cluster's map from the first coordinator that answers.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Refused`] for a wrong token.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let token = TokenKey::new(&config.token);
        let identity = Identity { token, role: Role::Client, sender: 0, cluster: None };
        let coordinators = Coordinators::new(config.coordinators.clone(), identity.clone())?;
        let deadline = Instant::now() + config.request_timeout.max(config.connect_timeout);
        let map = coordinators.fetch_map(Epoch(0), false, deadline).await?;
        let map = map.ok_or_else(|| ClientError::Misuse("the cluster has no map yet".to_owned()))?;
        let identity = Identity { cluster: Some(map.cluster), ..identity };
        let pool = Pool::new(identity, config.connections_per_member.max(1), config.connect_timeout);
        let shared = Shared {
            config,
            coordinators,
            map: RwLock::new(map),
            refreshing: Semaphore::new(1),
            pool,
            counters: Counters::default(),
            requests: std::sync::atomic::AtomicU64::new(1),
        };
        Ok(Client { shared: Arc::new(shared) })
    }

    /// Returns the cluster's map as it is known here.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.shared.map()
    }

    /// Fetches the map anew, at least as new as any change acknowledged before.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub async fn refresh(&self) -> Result<Arc<ClusterMap>, ClientError> {
        let deadline = Instant::now() + self.shared.config.request_timeout;
        let have = self.map().epoch;
        if let Some(map) = self.shared.coordinators.fetch_map(have, true, deadline).await? {
            self.shared.learn(map);
        }
        Ok(self.map())
    }

    /// Creates a tenant and returns its id.
    ///
    /// # Errors
    /// When there is one of this name, or the coordinators do not answer.
    pub async fn create_tenant(&self, name: &str) -> Result<TenantId, ClientError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| ClientError::Misuse(format!("no random bytes: {error}")))?;
        match self.submit(Command::CreateTenant { name: name.to_owned(), secret }).await? {
            CommandReply::TenantCreated { tenant, .. } => Ok(tenant),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a tenant's era. When this returns, nobody serves its older blocks.
    ///
    /// # Errors
    /// When there is no such tenant, or the coordinators do not answer.
    pub async fn clear_tenant(&self, name: &str) -> Result<Era, ClientError> {
        let tenant = self.tenant(name).await?;
        match self.submit(Command::ClearTenant { tenant }).await? {
            CommandReply::TenantCleared { era, .. } => Ok(era),
            other => Err(unexpected(&other)),
        }
    }

    /// Submits a change of the cluster's map that clients may make, and refreshes the map.
    ///
    /// # Errors
    /// When it is refused, or the coordinators do not answer.
    pub async fn submit(&self, command: Command) -> Result<CommandReply, ClientError> {
        // A change may wait for a lease to run out.
        let patience = Duration::from_millis(self.map().settings.lease_ms) * 3;
        let deadline = Instant::now() + self.shared.config.request_timeout + patience;
        let reply = self.shared.coordinators.submit(command, deadline).await?;
        self.refresh().await?;
        Ok(reply)
    }

    /// Opens a namespace: blocks of one tenant, model, layout and rank.
    ///
    /// # Errors
    /// When the map known here has no such tenant, or the layout's size overflows.
    pub fn namespace(
        &self,
        tenant: &str,
        model: &str,
        layout: Layout,
        rank: u32,
    ) -> Result<NamespaceClient, ClientError> {
        let map = self.map();
        let (id, known) = map.tenant(tenant).ok_or_else(|| ClientError::UnknownTenant(tenant.to_owned()))?;
        NamespaceClient::new(self.clone(), id, known.secret, model, layout, rank)
    }

    /// Returns what this client has done.
    pub fn stats(&self) -> ClientStats {
        self.shared.counters.snapshot(self.shared.pool.dials())
    }

    async fn tenant(&self, name: &str) -> Result<TenantId, ClientError> {
        if let Some((id, _)) = self.map().tenant(name) {
            return Ok(id);
        }
        let map = self.refresh().await?;
        map.tenant(name).map(|(id, _)| id).ok_or_else(|| ClientError::UnknownTenant(name.to_owned()))
    }
}

impl Shared {
    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.map.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    fn learn(&self, map: Arc<ClusterMap>) {
        let mut known = self.map.write().unwrap_or_else(|poison| poison.into_inner());
        if map.epoch > known.epoch {
            self.pool.retain(|address| map.members.values().any(|member| member.data_address == address));
            *known = map;
        }
    }

    /// Gets a map newer than `seen`, once for all who ask at the same time. Says whether there is one.
    pub(crate) async fn refresh_past(&self, seen: Epoch, deadline: Instant) -> bool {
        let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, self.refreshing.acquire()).await else {
            return false;
        };
        if self.map().epoch > seen {
            return true;
        }
        match self.coordinators.fetch_map(seen, false, deadline).await {
            Ok(Some(map)) => {
                self.learn(map);
                true
            }
            _ => false,
        }
    }

    /// Has the map fetched in the background when a member answers by a newer one. The answer itself does not wait.
    fn notice(self: &Arc<Self>, epoch: Epoch) {
        let seen = self.map().epoch;
        // Whoever refreshes already learns what this would.
        if epoch > seen && self.refreshing.available_permits() > 0 {
            let shared = self.clone();
            tokio::spawn(async move {
                let deadline = Instant::now() + shared.config.request_timeout;
                shared.refresh_past(seen, deadline).await;
            });
        }
    }

    /// Sends one request to the member of `device` and returns its answer, the connection at the answer's payload.
    pub(crate) async fn call(
        self: &Arc<Self>,
        map: &ClusterMap,
        device: DeviceId,
        request: &DataRequest,
        payload: &[&[u8]],
        deadline: Instant,
    ) -> Result<(Lease, DataReply), Fault> {
        let Some(owner) = map.owner(device) else {
            return Err(Fault::Refused(WireError::WrongDevice { device }));
        };
        count(&self.counters.requests, 1);
        let limit = deadline.saturating_duration_since(Instant::now());
        let number = self.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let exchange = async {
            let mut lease = self.pool.take(&owner.data_address, deadline).await?;
            let connection = lease.connection();
            connection.send(Kind::DataRequest, number, request, payload).await?;
            match connection.receive_answer::<DataReply>(Kind::DataReply, number).await {
                Ok(reply) => {
                    self.notice(reply.epoch());
                    Ok((lease, reply))
                }
                Err(fault @ Fault::Refused(_)) => {
                    lease.give_back();
                    Err(fault)
                }
                Err(fault) => Err(fault),
            }
        };
        tokio::time::timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)))
    }

    /// Counts why a request is repeated, and says what the repeat needs.
    pub(crate) fn judge(&self, fault: &Fault) -> Verdict {
        match fault {
            Fault::Refused(WireError::StaleEpoch { .. } | WireError::WrongDevice { .. }) => {
                count(&self.counters.stale_epochs, 1);
                Verdict::Refresh
            }
            Fault::Refused(WireError::Busy { .. }) => {
                count(&self.counters.busy, 1);
                Verdict::Wait
            }
            Fault::Refused(WireError::NoLease) | Fault::Io(_) | Fault::Closed | Fault::Timeout(_) => {
                count(&self.counters.failovers, 1);
                Verdict::Elsewhere
            }
            _ => Verdict::GiveUp,
        }
    }
}

/// What the repeat of a failed request needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// A newer map.
    Refresh,
    /// Time.
    Wait,
    /// Another replica, or a newer map and time.
    Elsewhere,
    /// There is no use in a repeat.
    GiveUp,
}

fn unexpected(reply: &CommandReply) -> ClientError {
    ClientError::Refused(WireError::malformed(format_args!("unexpected answer {reply:?}")))
}
