//! Starts a coordinator: log, raft actor, peers, listeners; and ends it in order.

use crate::actors::directory::{self, Directory};
use crate::actors::founding::Bootstrap;
use crate::actors::levels::Belonging;
use crate::actors::mailbox::{Raft, RaftMessage};
use crate::actors::raft::{Parts, RaftActor};
use crate::actors::vitals::Vitals;
use crate::admin::audit::Audit;
use crate::admin::{self, Admin, Listeners, Own, Sources};
use crate::blocks::Publisher;
use crate::config::{CoordinatorConfig, CoordinatorError, PeerConfig};
use crate::control_plane::ControlPlane;
use crate::engines::{self, Agreed, Engines};
use crate::log::LogFolder;
use crate::log_thread::{self, LogFigures};
use crate::membership::Membership;
use crate::peers;
use crate::server::{self, Room, Server};
use kvhive_consensus::{Consensus, ConsensusConfig, PeerId, Restored};
use kvhive_control::{BalanceTuning, Overseer, Registry, RestoreError, Tuning};
use kvhive_protocol::control::ControlReply;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::raft::{RaftRequest, Seat};
use kvhive_protocol::{ClusterId, Levels, WireError};
use kvhive_runtime::http::Role as AdminRole;
use kvhive_runtime::{BootClock, Clock, RestartPolicy, Runtime, RuntimeConfig, Spawn, Stage};
use kvhive_wire::Identity;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// Ticks of an election timeout: its resolution.
const ELECTION_TICKS: u32 = 20;
/// Messages that wait for the raft actor.
const RAFT_MAILBOX: usize = 16_384;
/// Proposals that wait at a time; reads likewise.
const MAX_INFLIGHT: usize = 4096;
/// The largest change, in bytes. A plan over all slots fits.
const MAX_PROPOSAL_BYTES: usize = 4 << 20;
/// The longest that a coordinator that stops waits for another to lead.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);
/// Threads that serve sockets.
const IO_THREADS: usize = 2;

/// A running coordinator. Dropped, it ends.
pub struct CoordinatorHandle {
    runtime: Runtime,
    raft_address: SocketAddr,
    admin_address: SocketAddr,
    failed: watch::Receiver<Option<String>>,
    /// Closed when the log's thread has written all that it was given and let go of the log's folder.
    log_ended: Mutex<std::sync::mpsc::Receiver<()>>,
}

/// Starts a coordinator and returns once it listens.
///
/// # Errors
/// When its log cannot be used or is another's, or threads or addresses are not to be had.
pub fn start(config: CoordinatorConfig) -> Result<CoordinatorHandle, CoordinatorError> {
    let us = PeerId(config.peer);
    let Some(own) = config.peers.iter().find(|peer| peer.peer == config.peer) else {
        return Err(CoordinatorError::Config(format!("peer {} is not among the coordinators", config.peer)));
    };
    let access = config.access.clone().with(AdminRole::Admin, &config.token);
    let access = access.map_err(|error| CoordinatorError::Config(error.to_string()))?;
    let name = own.name.clone();
    let random = random()?;
    let word = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().expect("eight bytes"));
    let folder = LogFolder::lock(&config.data_dir)?;
    Membership::of(&config.cluster_name, own).claim(&config.data_dir, folder.holds_log()?)?;
    let (store, restored) = folder.open()?;
    let registry = registry_of(&restored)?;
    if registry.level() > config.speaks {
        let (speaks, cluster) = (config.speaks, registry.level());
        return Err(CoordinatorError::TooOld(WireError::TooOld { speaks, cluster }));
    }
    let seats: BTreeMap<PeerId, Seat> = config.peers.iter().map(PeerConfig::seat).collect();
    let tick = config.election_timeout / ELECTION_TICKS;
    let heartbeat_ticks = config.heartbeat.as_nanos().div_ceil(tick.as_nanos().max(1)) as u32;
    let consensus = Consensus::new(
        ConsensusConfig {
            id: us,
            peers: seats.iter().map(|(peer, seat)| (*peer, directory::encode(seat))).collect(),
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: heartbeat_ticks.clamp(1, ELECTION_TICKS - 1),
            max_inflight: MAX_INFLIGHT,
            max_proposal_bytes: MAX_PROPOSAL_BYTES,
            snapshot_every: config.snapshot_every.max(1),
            seed: word(0),
            start: word(8),
        },
        restored,
    )?;
    let runtime = Runtime::new(RuntimeConfig { name: name.clone(), io_threads: IO_THREADS })?;
    let (raft_listener, raft_address) = listen(&runtime, config.raft_listen)?;
    let (admin_listener, admin_address) = listen(&runtime, config.admin_listen)?;
    let (stop, stopping) = watch::channel(false);
    let (failed, failure) = watch::channel(None);
    let (cluster, known_cluster) =
        watch::channel(Belonging { cluster: None, levels: Levels::up_to(config.speaks) });
    let (events, known_events) = watch::channel(0);
    let (engines, known_engines) = watch::channel(Agreed::default());
    let (vitals, known_vitals) = watch::channel(Vitals::UNKNOWN);
    let (log_queue, log_writes) = log_thread::queue();
    let (dialler, lines) = mpsc::unbounded_channel();
    let (told, known_peers) = watch::channel(config.peers.clone());
    let token = TokenKey::new(&config.token);
    let bootstrap = Bootstrap {
        cluster: ClusterId(u128::from(word(16)) << 64 | u128::from(word(24))),
        name: config.cluster_name.clone(),
        settings: config.settings.clone(),
        default_secret: random[32..64].try_into().expect("32 bytes"),
        scaling: config.scaling,
    };
    let given_up = failed.clone();
    let mut parts = Some(Parts {
        consensus,
        registry,
        overseer: Overseer::new(Tuning {
            repair_after: config.repair_after,
            balance: BalanceTuning { continuous: config.balance, ..BalanceTuning::default() },
            ..Tuning::default()
        }),
        us,
        directory: Directory::new(us, seats, dialler, told),
        log: log_queue,
        clock: Arc::new(BootClock) as Arc<dyn Clock>,
        tick,
        bootstrap,
        failed,
        speaks: config.speaks,
        cluster,
        events,
        engines,
        vitals,
        client: u128::from(word(64)) << 64 | u128::from(word(72)),
    });
    let arbiter = runtime.arbiter("raft")?;
    // What it held in memory and what is on disk may differ after a panic: the process ends and reads its disk again.
    let raft: Raft = Spawn::new(format!("{name} raft"))
        .mailbox(RAFT_MAILBOX)
        .policy(RestartPolicy { max_restarts: 0, within: Duration::from_secs(1) })
        .on_give_up(move || {
            given_up.send_replace(Some("the raft actor panicked".to_owned()));
        })
        .on(&arbiter, move || RaftActor::new(parts.take().expect("a raft actor is made once")));
    let figures = Arc::new(LogFigures::default());
    let (teller, counted) = (raft.clone(), figures.clone());
    let (ending, log_ended) = std::sync::mpsc::channel();
    let write_log = move || {
        let _until_it_ends: std::sync::mpsc::Sender<()> = ending;
        log_thread::run(store, log_writes, teller, counted);
    };
    std::thread::Builder::new()
        .name("raft-log".to_owned())
        .spawn(write_log)
        .map_err(|source| CoordinatorError::Failed(format!("cannot start the log's thread: {source}")))?;
    let identity = Identity {
        token: token.clone(),
        role: Role::Coordinator,
        sender: config.peer,
        cluster: None,
        tls: config.tls.clone(),
        levels: Levels::up_to(config.speaks),
    };
    arbiter.spawn(peers::dial(
        runtime.io().clone(),
        lines,
        identity.clone(),
        known_cluster.clone(),
        raft.clone(),
        stopping.clone(),
    ));
    let coordinators: Vec<String> = config.peers.iter().map(|peer| peer.raft_address.clone()).collect();
    let (names, engines_heard) = engines::telling();
    let names = config.block_events.is_some().then_some(names);
    let publisher = Publisher::open(&config, &runtime, &coordinators, engines_heard, &stopping)?;
    let engines = Arc::new(Engines::new(
        coordinators,
        config.token.clone(),
        config.tls.clone(),
        names,
        Arc::new(BootClock),
    ));
    runtime.io().spawn(engines.clone().run(known_engines, stopping.clone()));
    let control = ControlPlane::new(raft.clone(), engines, config.tracer.clone());
    let server = Arc::new(Server {
        raft: raft.clone(),
        raft_thread: arbiter,
        io: runtime.io().clone(),
        control: control.clone(),
        token,
        tls: config.tls.clone(),
        cluster: known_cluster,
        room: Room::default(),
    });
    if let Some(tls) = config.tls.clone() {
        runtime.io().spawn(tls.keep_fresh());
    }
    let serving = runtime.io().spawn(server::serve(raft_listener, server, stopping.clone()));
    let leaving = raft.clone();
    let sources = Sources {
        raft,
        control,
        identity,
        us: config.peer,
        peers: known_peers,
        log: figures,
        vitals: known_vitals,
        tracer: config.tracer.clone(),
        publisher,
        election_timeout: config.election_timeout,
        own: Own::of(&config),
    };
    let audit = Audit::open(config.data_dir.clone()).map_err(|error| {
        CoordinatorError::Failed(format!("no audit log in {}: {error}", config.data_dir.display()))
    })?;
    let listeners = Listeners::new(known_events, stopping.clone());
    let random = random[80..96].try_into().expect("16 bytes");
    let admin = Arc::new(Admin::new(sources, listeners, access, audit, random));
    let administering = runtime.io().spawn(admin::serve(admin_listener, admin, config.tls.clone(), stopping));
    runtime.on_shutdown().at(Stage::StopAccepting, "hand over and close listeners", async move {
        hand_over(&leaving).await;
        stop.send_replace(true);
        let _ = serving.await;
        let _ = administering.await;
    });
    let tracer = config.tracer.clone();
    runtime.on_shutdown().at(Stage::CloseDisks, "send the last spans", async move {
        // It may wait for its collector.
        let _ = tokio::task::spawn_blocking(move || tracer.close()).await;
    });
    info!(coordinator = %name, raft = %raft_address, admin = %admin_address, "coordinator listens");
    Ok(CoordinatorHandle {
        runtime,
        raft_address,
        admin_address,
        failed: failure,
        log_ended: Mutex::new(log_ended),
    })
}

/// Rebuilds the state machine up to the snapshot; raft hands out the entries after it.
pub(crate) fn registry_of(restored: &Restored) -> Result<Registry, RestoreError> {
    match &restored.snapshot {
        // What is no snapshot of ours has no state that could be restored, and is refused as such.
        Some(snapshot) => Registry::restore(snapshot.state().unwrap_or_default()),
        None => Ok(Registry::new()),
    }
}

/// Has another coordinator lead, if this one does: the others need not wait for an election timeout.
async fn hand_over(raft: &Raft) {
    let question = |reply| RaftMessage::Admin { request: RaftRequest::Transfer { to: None }, reply };
    match raft.ask(HAND_OVER_LIMIT, question).await {
        Ok(ControlReply::Raft(report)) => info!(leader = report.leader, "handed leadership over"),
        Ok(ControlReply::Failed(WireError::NotLeader { .. })) => {}
        // It stops all the same; the others elect.
        other => info!(?other, "leadership is not handed over"),
    }
}

fn random() -> Result<[u8; 128], CoordinatorError> {
    let mut random = [0; 128];
    getrandom::fill(&mut random)
        .map_err(|error| CoordinatorError::Failed(format!("no random bytes: {error}")))?;
    Ok(random)
}

fn listen(runtime: &Runtime, address: SocketAddr) -> Result<(TcpListener, SocketAddr), CoordinatorError> {
    runtime.listen(address).map_err(|cause| CoordinatorError::Listen { address, cause })
}

impl CoordinatorHandle {
    /// Returns where raft and the control plane listen.
    pub fn raft_address(&self) -> SocketAddr {
        self.raft_address
    }

    /// Returns where the admin API listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Waits until this coordinator must end, and says why: its log failed, or its raft actor.
    pub async fn failed(&mut self) -> CoordinatorError {
        let reason = match self.failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the raft actor has ended".to_owned(),
        };
        CoordinatorError::Failed(reason)
    }

    /// Closes listeners and ends all threads, within `limit`. Must not be called on one of its own threads.
    pub fn shutdown(self, limit: Duration) {
        let begun = std::time::Instant::now();
        self.runtime.shutdown(limit);
        let left = limit.saturating_sub(begun.elapsed());
        let log_ended = self.log_ended.into_inner().unwrap_or_else(|poison| poison.into_inner());
        if log_ended.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            warn!(?limit, "the log's thread took too long and is left behind");
        }
    }
}
