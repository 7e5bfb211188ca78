//! A group of coordinators in this process, and ways to ask each of them. Ending one is an ordinary shutdown: what a
//! killed one leaves on disk is the log store's own tests' to try.

use crate::http::{self, Answer};
use kvhive_coordinator::{CoordinatorConfig, CoordinatorHandle, PeerConfig, start};
use kvhive_protocol::control::{
    ControlReply, ControlRequest, CoordinatorStatus, DeviceLoad, Heartbeat, Registration,
};
use kvhive_protocol::data::Ack;
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::{ClusterMap, Epoch, Generation, MemberId, RequestId, WireError};
use kvhive_runtime::http::{Access, Role as AdminRole};
use kvhive_wire::{Connection, Fault, Identity};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The token of every group here.
pub(crate) const TOKEN: &str = "a token that is long enough for anyone";
/// The tokens of lesser roles.
pub(crate) const OPERATOR: &str = "a token that an operator has";
pub(crate) const VIEWER: &str = "a token that a viewer has";
/// The longest that anything here waits for a cluster to do what it should.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);
const STOP_LIMIT: Duration = Duration::from_secs(8);

fn access() -> Access {
    let access = Access::default().with(AdminRole::Operator, OPERATOR.as_bytes());
    access.and_then(|access| access.with(AdminRole::Viewer, VIEWER.as_bytes())).expect("two tokens")
}

/// Some coordinators of one cluster. Dropped, they end and their folders go.
pub(crate) struct Group {
    pub(crate) configs: Vec<CoordinatorConfig>,
    running: Vec<Option<CoordinatorHandle>>,
    io: tokio::runtime::Runtime,
    _folder: TempDir,
}

impl Group {
    /// Starts `count` coordinators and waits until they serve.
    pub(crate) fn of(count: u64) -> Group {
        Group::with(count, |_| {})
    }

    /// Starts `count` coordinators, each set up as `adjust` says, and waits until they serve.
    pub(crate) fn with(count: u64, adjust: impl Fn(&mut CoordinatorConfig)) -> Group {
        let mut group = Group::not_started(count);
        group.configs.iter_mut().for_each(adjust);
        for at in 0..group.configs.len() {
            group.start(at);
        }
        group.wait_until_it_serves();
        group
    }

    /// Describes `count` coordinators and starts none.
    pub(crate) fn not_started(count: u64) -> Group {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // All ports are held before one is given back, so that none is given out twice.
        let host = own_host();
        let held: Vec<TcpListener> =
            (0..2 * count).map(|_| TcpListener::bind((host, 0)).expect("a port is free")).collect();
        let address = |at: u64| held[at as usize].local_addr().expect("a listener has an address");
        let peers: Vec<PeerConfig> = (1..=count)
            .map(|peer| PeerConfig {
                peer,
                name: format!("coordinator-{peer}"),
                raft_address: address(2 * peer - 2).to_string(),
                admin_address: address(2 * peer - 1).to_string(),
            })
            .collect();
        let configs = (1..=count)
            .map(|peer| CoordinatorConfig {
                peer,
                peers: peers.clone(),
                raft_listen: address(2 * peer - 2),
                admin_listen: address(2 * peer - 1),
                data_dir: folder.path().join(format!("coordinator-{peer}")),
                cluster_name: "tried".to_owned(),
                settings: settings(),
                token: TOKEN.as_bytes().to_vec(),
                access: access(),
                tls: None,
                election_timeout: Duration::from_millis(300),
                heartbeat: Duration::from_millis(60),
                snapshot_every: 10_000,
                tracer: kvhive_spans::Tracer::OFF,
                block_events: None,
                speaks: kvhive_protocol::Level::NEWEST,
                repair_after: Duration::from_secs(30),
                scaling: Default::default(),
                balance: false,
            })
            .collect();
        let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Group {
            configs,
            running: (0..count).map(|_| None).collect(),
            io: io.expect("a thread can be made"),
            _folder: folder,
        }
    }

    pub(crate) fn start(&mut self, at: usize) {
        self.running[at] = Some(start(self.configs[at].clone()).expect("the coordinator starts"));
    }

    /// Takes in a coordinator that was started elsewhere.
    pub(crate) fn adopt(&mut self, at: usize, handle: CoordinatorHandle) {
        self.running[at] = Some(handle);
    }

    pub(crate) fn stop(&mut self, at: usize) {
        self.running[at].take().expect("only one that runs is stopped").shutdown(STOP_LIMIT);
    }

    pub(crate) fn stop_all(&mut self) {
        for running in self.running.iter_mut().filter_map(Option::take) {
            running.shutdown(STOP_LIMIT);
        }
    }

    pub(crate) fn wait_until_it_serves(&self) {
        for at in self.living() {
            eventually("every coordinator is ready", || self.admin(at).get_open("/readyz").status == 200);
        }
    }

    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|at| self.running[*at].is_some()).collect()
    }

    /// Waits until the election of whoever leads is written into the log, which is some time after it.
    pub(crate) fn elected(&self) {
        eventually("the election is in the log", || {
            let told = self.admin(self.leader()).get("/v1/events?kind=leader-elected").json();
            told["events"].as_array().is_some_and(|events| !events.is_empty())
        });
    }

    /// Returns which of those that live leads, once one does and the others know.
    pub(crate) fn leader(&self) -> usize {
        let mut found = None;
        eventually("one leads and all know it", || {
            let all: Vec<CoordinatorStatus> =
                self.living().into_iter().filter_map(|at| self.status(at)).collect();
            let name = all.first().and_then(|status| status.leader.clone());
            found = name.as_ref().and_then(|name| {
                self.living().into_iter().find(|at| self.configs[*at].peers[*at].name == *name)
            });
            found.is_some()
                && all.len() == self.living().len()
                && all.iter().all(|status| status.leader == name)
        });
        found.expect("it was just found")
    }

    /// Returns one that lives and does not lead.
    pub(crate) fn follower(&self) -> usize {
        let leader = self.leader();
        self.living().into_iter().find(|at| *at != leader).expect("the group has more than one")
    }

    pub(crate) fn status(&self, at: usize) -> Option<CoordinatorStatus> {
        match self.try_ask(at, Role::Client, &ControlRequest::Status) {
            Ok(ControlReply::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// Returns the map as this coordinator has applied it.
    pub(crate) fn map(&self, at: usize) -> ClusterMap {
        let stale = ControlRequest::FetchMap { have: Epoch(0), linearizable: false };
        match self.ask(at, Role::Client, &stale) {
            ControlReply::Map(Some(map)) => *map,
            other => panic!("coordinator {at} has no map: {other:?}"),
        }
    }

    pub(crate) fn ask(&self, at: usize, role: Role, request: &ControlRequest) -> ControlReply {
        self.try_ask(at, role, request).expect("the coordinator answers")
    }

    pub(crate) fn try_ask(
        &self,
        at: usize,
        role: Role,
        request: &ControlRequest,
    ) -> Result<ControlReply, Fault> {
        self.io.block_on(async {
            let mut connection = self.connect(at, &self.identity(role)).await?;
            connection.send(Kind::ControlRequest, 1, request, &[]).await?;
            let answer = connection.receive_answer(Kind::ControlReply, 1);
            tokio::time::timeout(ANSWER_LIMIT, answer).await.unwrap_or(Err(Fault::Timeout(ANSWER_LIMIT)))
        })
    }

    /// Runs what needs sockets of its own.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.io.block_on(work)
    }

    pub(crate) async fn connect(&self, at: usize, identity: &Identity) -> Result<Connection, Fault> {
        let address = &self.configs[at].peers[at].raft_address;
        Connection::connect(address, identity, ANSWER_LIMIT).await.map(|(connection, _)| connection)
    }

    pub(crate) fn identity(&self, role: Role) -> Identity {
        Identity {
            token: TokenKey::new(TOKEN.as_bytes()),
            role,
            sender: 0,
            cluster: None,
            tls: None,
            levels: Default::default(),
        }
    }

    pub(crate) fn admin(&self, at: usize) -> AdminDoor {
        AdminDoor { address: self.configs[at].admin_listen }
    }

    /// Registers a node through the leader.
    pub(crate) fn register(&self, name: &str) -> TestNode {
        match self.try_register(name, "127.0.0.1:1") {
            ControlReply::Registered { member, generation, map } => {
                TestNode { member, generation, epoch: map.epoch }
            }
            other => panic!("{name} was not registered: {other:?}"),
        }
    }

    /// Has a node at `address` ask the leader to register it, and returns the answer.
    pub(crate) fn try_register(&self, name: &str, address: &str) -> ControlReply {
        let registration = Registration {
            request: fresh_request(),
            name: name.to_owned(),
            data_address: address.to_owned(),
            metrics_address: "127.0.0.1:2".to_owned(),
            labels: BTreeMap::new(),
            devices: vec![DeviceDescription {
                kind: "host".to_owned(),
                device_bytes: 1 << 30,
                host_bytes: 0,
                disk_bytes: 0,
            }],
            codec: Default::default(),
            speaks: kvhive_protocol::Level::NEWEST,
        };
        self.ask(self.leader(), Role::Node, &ControlRequest::Register(registration))
    }

    /// Sends a node's heartbeat to the leader and returns the answer. The node does not adopt what comes with it.
    pub(crate) fn beat(&self, node: &TestNode) -> ControlReply {
        self.report(node, DeviceLoad::default())
    }

    /// Sends one that has its device say this.
    pub(crate) fn report(&self, node: &TestNode, load: DeviceLoad) -> ControlReply {
        let beat = Heartbeat {
            member: node.member,
            generation: node.generation,
            epoch: node.epoch,
            devices: vec![load],
        };
        self.ask(self.leader(), Role::Node, &ControlRequest::Heartbeat(beat))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// A node as coordinators know it: it serves nothing, but says that it does.
pub(crate) struct TestNode {
    pub(crate) member: MemberId,
    pub(crate) generation: Generation,
    /// The map that it says it serves by.
    pub(crate) epoch: Epoch,
}

/// One coordinator's admin API.
#[derive(Clone, Copy)]
pub(crate) struct AdminDoor {
    pub(crate) address: SocketAddr,
}

impl AdminDoor {
    /// Asks with the token.
    pub(crate) fn get(&self, path: &str) -> Answer {
        http::ask(self.address, "GET", path, &[("authorization", &bearer(TOKEN))], b"")
    }

    /// Asks without it.
    pub(crate) fn get_open(&self, path: &str) -> Answer {
        http::ask(self.address, "GET", path, &[], b"")
    }

    /// Sends JSON with the token.
    pub(crate) fn post(&self, path: &str, json: &str) -> Answer {
        let headers = [("authorization", bearer(TOKEN)), ("content-type", "application/json".to_owned())];
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        http::ask(self.address, "POST", path, &headers, json.as_bytes())
    }
}

pub(crate) fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// What every group here starts with: short leases, so that running out takes little time.
pub(crate) fn settings() -> Settings {
    Settings {
        replicas: 2,
        segment_blocks: 16,
        ack: Ack::All,
        lease_ms: 1000,
        heartbeat_ms: 200,
        serving_lease_ms: 1000,
    }
}

/// A request id that no other request has.
pub(crate) fn fresh_request() -> RequestId {
    static SEQUENCE: AtomicU64 = AtomicU64::new(1);
    RequestId { client: u128::from(std::process::id()), sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed) }
}

/// Repeats a question until it is no longer refused for want of a leader.
pub(crate) fn submit(group: &Group, request: &ControlRequest) -> ControlReply {
    let mut reply = None;
    eventually("the change is answered", || {
        reply = group.try_ask(group.leader(), Role::Client, request).ok();
        !matches!(
            reply,
            None | Some(ControlReply::Failed(
                WireError::NotLeader { .. } | WireError::OutcomeUnknown | WireError::Busy { .. }
            ))
        )
    });
    reply.expect("it was just given")
}

/// Waits until something holds, and fails when it never does.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A loopback address that no other group of this process listens on: a port given back is not taken by a neighbour.
fn own_host() -> IpAddr {
    static GROUPS: AtomicU32 = AtomicU32::new(1);
    let group = GROUPS.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    IpAddr::V4(Ipv4Addr::new(
        127,
        1 + (process % 250) as u8,
        1 + (process / 250 % 250) as u8,
        1 + (group % 250) as u8,
    ))
}
