//! A cluster of fakes: one coordinator that holds a map, nodes that hold blocks, and a client of them.

mod coordinator;
mod node;

pub(crate) use coordinator::{Coordinator, Turn as ControlTurn};
pub(crate) use node::{Answer, Node, Turn, whole_frame};

use kvhive_client::{Client, ClientConfig, FetchReport, NamespaceClient, Prefix, StoreOptions, StoreReport};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::{
    AxisOrder, ClusterId, ClusterMap, DeviceId, Dtype, Era, Generation, Layout, Member, MemberId,
    MemberState, ReplicaSet, SLOTS, Slot, Tenant, TenantId, TenantRules,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

pub(crate) const TOKEN: &[u8] = b"the right token";
pub(crate) const CLUSTER: ClusterId = ClusterId(77);
pub(crate) const TENANT: TenantId = TenantId(1);
pub(crate) const SEGMENT_BLOCKS: u32 = 4;
/// No story takes this long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What a call may take in a story that waits for its end.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

/// A small block: 2 layers, 1 head of 8, 16 tokens, keys and values of 2 bytes.
pub(crate) const LAYOUT: Layout = Layout {
    layers: 2,
    kv_heads: 1,
    head_dim: 8,
    tokens: 16,
    dtype: Dtype::F16,
    order: AxisOrder::LayersFirst,
};

/// One coordinator, some nodes of one device each, and where slots are.
pub(crate) struct Cluster {
    pub(crate) coordinator: Coordinator,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    /// Starts `nodes` nodes. Each slot is on the first `replicas` of them, the first one its primary.
    pub(crate) async fn start(nodes: usize, replicas: usize) -> Cluster {
        let set: Vec<DeviceId> = (0..replicas).map(device).collect();
        Cluster::placed(nodes, |_| set.clone()).await
    }

    /// Starts `nodes` nodes, each slot on the devices that `place` names for it.
    pub(crate) async fn placed(nodes: usize, place: impl Fn(Slot) -> Vec<DeviceId>) -> Cluster {
        let mut started = Vec::new();
        for at in 0..nodes {
            started.push(Node::start(device(at), TOKEN).await);
        }
        let addresses = started.iter().map(|node| node.address.clone());
        let map = map(addresses, place);
        Cluster { coordinator: Coordinator::start(map).await, nodes: started }
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new(vec![self.coordinator.address.clone()], TOKEN.to_vec());
        config.request_timeout = PATIENCE;
        config
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.config()).await.expect("the coordinator answers")
    }

    /// A client whose calls end soon.
    pub(crate) async fn hurried_client(&self) -> Client {
        let config = ClientConfig { request_timeout: SHORT, ..self.config() };
        Client::connect(config).await.expect("the coordinator answers")
    }
}

/// The device of the node at this place.
pub(crate) fn device(at: usize) -> DeviceId {
    DeviceId::new(MemberId(at as u32 + 1), 0)
}

fn map(addresses: impl Iterator<Item = String>, place: impl Fn(Slot) -> Vec<DeviceId>) -> ClusterMap {
    let member = |data_address: String| Member {
        name: data_address.clone(),
        generation: Generation(1),
        state: MemberState::Up,
        data_address,
        metrics_address: String::new(),
        labels: BTreeMap::new(),
        devices: vec![DeviceDescription {
            kind: "host".into(),
            device_bytes: 1 << 30,
            host_bytes: 0,
            disk_bytes: 0,
        }],
        codec: Default::default(),
        drains: false,
        cordoned: false,
        lingers: None,
        drains_since: Default::default(),
        speaks: kvhive_protocol::Level::NEWEST,
    };
    let tenant =
        Tenant { name: "default".into(), era: Era(1), secret: [7; 32], rules: TenantRules::default() };
    let settings = Settings {
        replicas: 2,
        segment_blocks: SEGMENT_BLOCKS,
        ack: Ack::Primary,
        lease_ms: 100,
        heartbeat_ms: 20,
        serving_lease_ms: 100,
    };
    ClusterMap {
        members: addresses.enumerate().map(|(at, address)| (device(at).member, member(address))).collect(),
        slots: Arc::new((0..SLOTS).map(|slot| ReplicaSet(place(Slot(slot)))).collect()),
        tenants: BTreeMap::from([(TENANT, tenant)]),
        ..ClusterMap::founded(CLUSTER, "story", settings)
    }
}

/// One prefix of a namespace, whose bytes every story can tell apart.
pub(crate) struct Text {
    pub(crate) namespace: NamespaceClient,
    pub(crate) prefix: Prefix,
}

impl Text {
    /// A prefix of so many blocks.
    pub(crate) fn of(client: &Client, blocks: usize) -> Text {
        Text::numbered(client, 0, blocks)
    }

    /// Another prefix of so many blocks for each number.
    pub(crate) fn numbered(client: &Client, number: u32, blocks: usize) -> Text {
        let namespace = client.namespace("default", "model@1", LAYOUT, 0).expect("the tenant is there");
        let tokens: Vec<u32> =
            (0..blocks as u32 * LAYOUT.tokens).map(|token| token + number * 1_000_000).collect();
        let prefix = namespace.keys(&tokens);
        assert_eq!(prefix.len(), blocks);
        Text { namespace, prefix }
    }

    /// The right bytes of block `at`.
    pub(crate) fn bytes(&self, at: usize) -> Vec<u8> {
        let key = self.prefix.keys()[at];
        let bytes = self.namespace.block_bytes() as usize;
        key.as_bytes().iter().copied().cycle().take(bytes).collect()
    }

    pub(crate) async fn store_with(&self, options: StoreOptions) -> StoreReport {
        let blocks: Vec<Vec<u8>> = (0..self.prefix.len()).map(|at| self.bytes(at)).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        let stored = self.namespace.store(&self.prefix, 0..self.prefix.len(), &blocks, options);
        in_patience(stored).await.expect("range and blocks fit")
    }

    /// Stores all blocks, which works.
    pub(crate) async fn store(&self) {
        let report = self.store_with(StoreOptions::default()).await;
        assert_eq!(report.acknowledged(), self.prefix.len(), "{report:?}");
    }

    /// Fetches all blocks. What is reported as loaded is checked to be the right bytes.
    pub(crate) async fn fetch(&self) -> FetchReport {
        let bytes = self.namespace.block_bytes() as usize;
        let mut memory = vec![vec![0xEE; bytes]; self.prefix.len()];
        let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
        let fetched = self.namespace.fetch_into(&self.prefix, 0..self.prefix.len(), &mut targets);
        let report = in_patience(fetched).await.expect("range and memory fit");
        assert_eq!(report.outcomes.len(), self.prefix.len());
        for (at, outcome) in report.outcomes.iter().enumerate() {
            if let kvhive_client::FetchOutcome::Loaded(loaded) = outcome {
                assert_eq!(loaded.bytes(), bytes as u64);
                assert!(memory[at] == self.bytes(at), "block {at} is said to be loaded and is not");
            }
        }
        report
    }

    /// Fetches all blocks, which works.
    pub(crate) async fn fetch_all(&self) {
        let report = self.fetch().await;
        assert_eq!(report.delivered(), self.prefix.len(), "{report:?}");
    }

    /// Says how far the cluster covers it, and how many devices could not be asked.
    pub(crate) async fn covered(&self) -> (usize, usize) {
        let matched = in_patience(self.namespace.match_prefix(&self.prefix)).await.expect("it is short");
        (matched.covered, matched.unreachable)
    }
}

/// Awaits what must end.
pub(crate) async fn in_patience<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends")
}

/// Waits until this holds, which it will.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    in_patience(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// An address where nobody listens, and nobody else will meanwhile.
pub(crate) struct Nobody {
    pub(crate) address: String,
    _held: TcpSocket,
}

impl Nobody {
    pub(crate) fn somewhere() -> Nobody {
        Nobody::at("127.0.0.1:0".parse().expect("an address"))
    }

    /// Holds an address that was just given up.
    fn at(address: SocketAddr) -> Nobody {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(address.port() != 0).expect("an option that there is");
        socket.bind(address).expect("the port is free");
        let address = socket.local_addr().expect("it is bound").to_string();
        Nobody { address, _held: socket }
    }
}

/// A second handle of a socket, for bytes that are no frame.
fn second(stream: TcpStream) -> (TcpStream, TcpStream) {
    let first = stream.into_std().expect("it is a socket");
    let other = first.try_clone().expect("it is open");
    (TcpStream::from_std(first).expect("still a socket"), TcpStream::from_std(other).expect("also a socket"))
}
