//! A client: the cluster's map, connections to its nodes, and the tenants' affairs.

use crate::control::Coordinators;
use crate::error::ClientError;
use crate::frames::FrameRoom;
use crate::namespace::NamespaceClient;
use crate::pool::Pool;
use crate::retry::{Backoff, in_time, random_seed};
use crate::stages::Stages;
use crate::stats::{ClientStats, Counters};
use crate::waits::Waits;
use crate::windows::Windows;
use kvhive_protocol::control::{Command, CommandReply};
use kvhive_protocol::engines::EngineLoad;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::routing::{RouteAnswer, RouteRequest};
use kvhive_protocol::{
    ClusterMap, Epoch, Era, Layout, Namespace, RulesChange, TenantId, TenantRules, WireError,
};
use kvhive_spans::Tracer;
use kvhive_wire::{Identity, Tls};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// After a refresh in the background, answers of a newer epoch cause no other for this long.
const NOTICE_REST: Duration = Duration::from_millis(200);

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
    /// Its certificate and whom it trusts; none speaks without TLS. Its files are read anew when they change.
    pub tls: Option<Tls>,
    /// Whether nodes decode what is stored encoded, so that nothing but raw blocks arrives.
    pub raw_reads: bool,
    /// Whether blocks of nodes on this host are read out of their memory, where the nodes let this client look at it.
    pub shared_memory: bool,
    /// Whether blocks in a GPU's memory go to GPUs of nodes on this host and come from them without passing the host's memory, where the
    /// nodes take stages ([`NamespaceClient::stage`]).
    pub gpu_stages: bool,
    /// The name of a node that is asked first for what its devices hold as replicas, as the one inside this process, and that has other
    /// blocks fetched, once for all who ask it; none asks as everybody does.
    pub near: Option<String>,
    /// What records the calls of namespaces that are traced ([`NamespaceClient::traced`]), and samples those that are not; off records
    /// nothing, and what is traced by the caller is passed on all the same.
    pub tracer: Tracer,
}

impl ClientConfig {
    /// Connects to these coordinators with this token, everything else as usual: dials within 1 s, calls within 5 s,
    /// 4 connections to each node, holds of 2 s, blocks decoded here.
    pub fn new(coordinators: Vec<String>, token: Vec<u8>) -> ClientConfig {
        ClientConfig {
            coordinators,
            token,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            connections_per_member: 4,
            hold: Duration::from_secs(2),
            tls: None,
            raw_reads: false,
            shared_memory: true,
            gpu_stages: true,
            near: None,
            tracer: Tracer::OFF,
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
    refreshing: Arc<Semaphore>,
    /// No refresh in the background before.
    rests_until: Mutex<Option<Instant>>,
    pub(crate) pool: Pool,
    /// Into the memory of nodes on this host; none where that is not wanted or not to be had.
    pub(crate) windows: Option<Arc<Windows>>,
    /// Lent to GPUs of nodes on this host; none where that is not wanted.
    pub(crate) stages: Option<Arc<Stages>>,
    pub(crate) counters: Counters,
    pub(crate) requests: AtomicU64,
    begun: Instant,
    waits: Mutex<Waits>,
    /// When devices were asked last for their largest frames, and what these are.
    pub(crate) frame_room: Mutex<Option<(Instant, FrameRoom)>>,
}

impl Client {
    /// Connects: fetches the cluster's map from the first coordinator that answers.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Refused`] for a wrong token.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let token = TokenKey::new(&config.token);
        let identity = Identity {
            token,
            role: Role::Client,
            sender: 0,
            cluster: None,
            tls: config.tls.clone(),
            levels: Default::default(),
        };
        let coordinators = Coordinators::new(config.coordinators.clone(), identity.clone())?;
        if let Some(tls) = config.tls.clone() {
            tokio::spawn(tls.keep_fresh());
        }
        let deadline = in_time(config.request_timeout.max(config.connect_timeout));
        let map = first_map(&coordinators, deadline).await?;
        coordinators.follow(&map);
        let identity = Identity { cluster: Some(map.cluster), ..identity };
        let pool = Pool::new(identity, config.connections_per_member.max(1), config.connect_timeout);
        let shared = Shared {
            windows: config.shared_memory.then(Windows::new).flatten(),
            stages: config.gpu_stages.then(Stages::new).flatten(),
            config,
            coordinators,
            map: RwLock::new(map),
            refreshing: Arc::new(Semaphore::new(1)),
            rests_until: Mutex::new(None),
            pool,
            counters: Counters::default(),
            requests: AtomicU64::new(1),
            begun: Instant::now(),
            waits: Mutex::new(Waits::new(random_seed())),
            frame_room: Mutex::new(None),
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
        let deadline = in_time(self.shared.config.request_timeout);
        let have = self.map().epoch;
        if let Some(map) = self.shared.coordinators.fetch_map(have, true, deadline).await? {
            self.shared.learn(map);
        }
        Ok(self.map())
    }

    /// Says whether nobody leads the coordinators, as they said when this client asked them last: it goes on by the map that it has,
    /// and changes are refused.
    pub fn is_leaderless(&self) -> bool {
        self.shared.coordinators.are_leaderless()
    }

    /// Creates a tenant without rules of its own and returns its id.
    ///
    /// # Errors
    /// As [`Client::create_tenant_with`].
    pub async fn create_tenant(&self, name: &str) -> Result<TenantId, ClientError> {
        self.create_tenant_with(name, TenantRules::default()).await
    }

    /// Creates a tenant whose blocks are kept and stored by these rules, and returns its id.
    ///
    /// # Errors
    /// When there is one of this name, the rules say what they may not, or the coordinators do not answer.
    pub async fn create_tenant_with(&self, name: &str, rules: TenantRules) -> Result<TenantId, ClientError> {
        let command = Command::CreateTenant { name: name.to_owned(), secret: fresh_secret()?, rules };
        match self.submit(command).await? {
            CommandReply::TenantCreated { tenant, .. } => Ok(tenant),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a tenant be there. Where it is not it is made: by itself, or as another name for one whose blocks it shares.
    ///
    /// # Errors
    /// When the one whose blocks it shares is unknown, or the coordinators do not answer.
    pub async fn ensure_tenant(&self, name: &str, shares_with: Option<&str>) -> Result<(), ClientError> {
        let map = self.refresh().await?;
        if map.tenant(name).is_some() {
            return Ok(());
        }
        let owner = match shares_with {
            Some(owner) => {
                let known = map.tenant(owner);
                let (id, _) = known.ok_or_else(|| ClientError::UnknownTenant(owner.to_owned()))?;
                Some(id)
            }
            None => None,
        };
        let rules = TenantRules { shares_with: owner, ..TenantRules::default() };
        match self.create_tenant_with(name, rules).await {
            // Somebody else has made it meanwhile.
            Err(_) if self.refresh().await?.tenant(name).is_some() => Ok(()),
            made => made.map(|_| ()),
        }
    }

    /// Changes some of a tenant's rules; what the change does not name stays as it is.
    ///
    /// # Errors
    /// When there is no such tenant, the rules would say what they may not, or the coordinators do not answer.
    pub async fn set_tenant_rules(&self, name: &str, change: RulesChange) -> Result<(), ClientError> {
        let tenant = self.tenant(name).await?;
        match self.submit(Command::SetTenantRules { tenant, change }).await? {
            CommandReply::Applied { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a tenant's era. When this returns, nobody serves its older blocks: its own, also where it shares another's, which
    /// stay.
    ///
    /// # Errors
    /// When there is no such tenant, or the coordinators do not answer; [`WireError::StillServed`] when the era is over and some
    /// member that is silent may be serving its blocks still, until it is heard, started anew or removed, or as long as that says.
    pub async fn clear_tenant(&self, name: &str) -> Result<Era, ClientError> {
        let tenant = self.tenant(name).await?;
        match self.submit(Command::ClearTenant { tenant }).await? {
            CommandReply::TenantCleared { era, .. } => Ok(era),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives a tenant another random secret and ends its era. When this returns, nobody serves its older blocks, and namespaces that
    /// are open here name blocks by the new secret; those of other clients do so as soon as they have the new map.
    ///
    /// # Errors
    /// When there is no such tenant, or the coordinators do not answer.
    pub async fn rotate_secret(&self, name: &str) -> Result<Era, ClientError> {
        let tenant = self.tenant(name).await?;
        match self.submit(Command::RotateSecret { tenant, secret: fresh_secret()? }).await? {
            CommandReply::TenantCleared { era, .. } => Ok(era),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a tenant. When this returns, nobody serves its blocks.
    ///
    /// # Errors
    /// When there is no such tenant, it is `default`, another shares its blocks or an engine is followed for it, or the coordinators
    /// do not answer.
    pub async fn delete_tenant(&self, name: &str) -> Result<(), ClientError> {
        let tenant = self.tenant(name).await?;
        match self.submit(Command::DeleteTenant { tenant }).await? {
            CommandReply::TenantDeleted { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Submits a change of the cluster's map that clients may make, and refreshes the map if it can.
    ///
    /// # Errors
    /// When it is refused, or the coordinators do not answer.
    pub async fn submit(&self, command: Command) -> Result<CommandReply, ClientError> {
        // A change may wait for a lease to run out.
        let patience = Duration::from_millis(self.map().settings.lease_ms).saturating_mul(3);
        let deadline = in_time(self.shared.config.request_timeout.saturating_add(patience));
        let reply = self.shared.coordinators.submit(command, deadline).await?;
        // The change is made, whatever becomes of the refresh: an error here would have it made twice.
        if let Err(error) = self.refresh().await {
            tracing::warn!(%error, "the map could not be refreshed after a change");
        }
        Ok(reply)
    }

    /// Asks which engine should take a request: by what its own cache and kvhive have of the prompt, and by how busy it is. Any
    /// coordinator answers, from what it has heard itself.
    ///
    /// # Errors
    /// When the question is refused, or no coordinator answers.
    pub async fn route(&self, request: RouteRequest) -> Result<RouteAnswer, ClientError> {
        self.shared.coordinators.route(request, in_time(self.shared.config.request_timeout)).await
    }

    /// Says how busy an engine is, to the coordinator that this client asks for routes.
    ///
    /// # Errors
    /// When no such engine is followed, or no coordinator answers.
    pub async fn report_load(&self, engine: &str, load: EngineLoad) -> Result<(), ClientError> {
        let deadline = in_time(self.shared.config.request_timeout);
        self.shared.coordinators.engine_load(engine, load, deadline).await.map(|_| ())
    }

    /// Opens a namespace: blocks of one tenant, model, layout and rank. Of a tenant that shares another's blocks it is that
    /// one's namespace, and stays so: what a tenant shares is looked up here, not again. It goes on by the tenant's secret of each
    /// time, as this client's map has it.
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
        let known = map.tenant(tenant).and_then(|(id, _)| map.pool_of(id));
        let (pool, known) = known.ok_or_else(|| ClientError::UnknownTenant(tenant.to_owned()))?;
        let names = Namespace { tenant_secret: known.secret, model: model.to_owned(), layout, rank };
        NamespaceClient::new(self.clone(), pool, names)
    }

    /// Returns what this client has done.
    pub fn stats(&self) -> ClientStats {
        self.shared.counters.snapshot(self.shared.pool.dials(), self.shared.windows.as_deref())
    }

    pub(crate) async fn tenant(&self, name: &str) -> Result<TenantId, ClientError> {
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

    /// Returns what is known of devices' waits; never held for longer than a question.
    pub(crate) fn waits(&self) -> MutexGuard<'_, Waits> {
        // Nothing is left half-done under this lock.
        self.waits.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns the time by which [`Shared::waits`] goes.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Says whether nobody leads, for longer than an election takes.
    pub(crate) fn is_leaderless(&self) -> bool {
        self.coordinators.are_leaderless()
    }

    fn learn(&self, map: Arc<ClusterMap>) {
        let mut known = self.map.write().unwrap_or_else(|poison| poison.into_inner());
        if map.epoch > known.epoch {
            self.coordinators.follow(&map);
            let is_member = |address: &str| map.members.values().any(|member| member.data_address == address);
            self.pool.retain(is_member);
            if let Some(windows) = &self.windows {
                windows.retain(is_member);
            }
            *known = map;
        }
    }

    /// Gets a map newer than `seen`, once for all who ask at the same time. Says whether there is one.
    pub(crate) async fn refresh_past(&self, seen: Epoch, deadline: Instant) -> bool {
        let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, self.refreshing.acquire()).await else {
            return false;
        };
        if self.map().epoch <= seen
            && let Ok(Some(map)) = self.coordinators.fetch_map(seen, false, deadline).await
        {
            self.learn(map);
        }
        self.map().epoch > seen
    }

    /// Gets a map of at least epoch `wanted`, which a member named, once for all who ask at the same time. Says whether
    /// there is one newer than `seen`.
    pub(crate) async fn refresh_to(&self, seen: Epoch, wanted: Epoch, deadline: Instant) -> bool {
        let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, self.refreshing.acquire()).await else {
            return false;
        };
        self.fetch_up_to(wanted, deadline).await;
        self.map().epoch > seen
    }

    /// Has the map fetched in the background when a member answers by a newer one. The answer itself does not wait.
    pub(crate) fn notice(self: &Arc<Self>, epoch: Epoch) {
        if epoch <= self.map().epoch {
            return;
        }
        // Whoever refreshes already learns what this would, or the next answer asks again.
        let Ok(permit) = self.refreshing.clone().try_acquire_owned() else { return };
        let mut rests_until = self.rests_until.lock().unwrap_or_else(|poison| poison.into_inner());
        if rests_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        // A member may name an epoch that nobody has; it shall not cost the coordinators a request for each answer.
        *rests_until = Some(Instant::now() + NOTICE_REST);
        drop(rests_until);
        let shared = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            shared.fetch_up_to(epoch, in_time(shared.config.request_timeout)).await;
        });
    }

    /// Asks any coordinator for the map, and when that one lags behind `wanted`, for what the cluster agreed on.
    async fn fetch_up_to(&self, wanted: Epoch, deadline: Instant) {
        for linearizable in [false, true] {
            let have = self.map().epoch;
            // Without a leader nobody says what was agreed on.
            if have >= wanted || linearizable && self.coordinators.are_leaderless() {
                return;
            }
            match self.coordinators.fetch_map(have, linearizable, deadline).await {
                Ok(Some(map)) => self.learn(map),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, epoch = %wanted, "map not fetched");
                    return;
                }
            }
        }
    }
}

/// Fetches the map of a cluster that may be about to get its first.
async fn first_map(coordinators: &Coordinators, deadline: Instant) -> Result<Arc<ClusterMap>, ClientError> {
    let mut backoff = Backoff::new();
    loop {
        if let Some(map) = coordinators.fetch_map(Epoch(0), false, deadline).await? {
            return Ok(map);
        }
        if !backoff.wait(deadline).await {
            return Err(ClientError::Misuse("the cluster has no map yet".to_owned()));
        }
    }
}

fn fresh_secret() -> Result<[u8; 32], ClientError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| ClientError::Misuse(format!("no random bytes: {error}")))?;
    Ok(secret)
}

fn unexpected(reply: &CommandReply) -> ClientError {
    ClientError::Refused(WireError::malformed(format_args!("unexpected answer {reply:?}")))
}
