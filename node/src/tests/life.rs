//! A node's life in its cluster: lease, clear, metrics, end.

use super::asker::{Asker, Block, kept};
use super::coordinator::FakeCoordinator;
use super::{KIB, Setup, eventually};
use crate::actors::core::DeviceMessage;
use crate::{NodeError, NodeHandle};
use kvhive_protocol::data::{Ack, Refusal, Stored};
use kvhive_protocol::{ClusterId, Epoch, Era, TenantId, WireError};
use kvhive_runtime::http::Access;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("metrics listen");
    let request = format!("GET {path} HTTP/1.1\r\nhost: metrics\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_lease_serves_nothing_until_it_has_one() {
    let (coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    coordinator.be_silent(true);
    eventually("the lease runs out", || !node.is_serving()).await;
    assert_eq!(client.fetch(&[1]).await, Err(WireError::NoLease));
    assert_eq!(client.covered(&[1]).await, Err(WireError::NoLease));
    assert_eq!(client.store(&[Block::new(2, KIB)], Ack::Primary).await, Err(WireError::NoLease));
    coordinator.be_silent(false);
    eventually("the lease is renewed", || node.is_serving()).await;
    assert_eq!(client.fetch(&[1, 2]).await, Ok(vec![Some(Block::new(1, KIB).bytes), None]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_node_registers_anew_and_serves_again() {
    let (coordinator, node) = Setup::default().one().await;
    let epoch = node.plane.view.serving().map(|serving| serving.map.epoch);
    coordinator.fence();
    eventually("it serves by a map of its next generation", || {
        node.plane.view.serving().map(|serving| serving.map.epoch) > epoch && node.is_serving()
    })
    .await;
    assert_eq!(node.ask().await.covered(&[1]).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_refused_for_good_ends_with_the_coordinators_words() {
    let coordinator = FakeCoordinator::start().await;
    let why = WireError::rejected(format_args!("label key \"A B\": allowed are letters"));
    coordinator.refuse(Some(why.clone()));
    let node = Setup::default().start("node-1", &coordinator);
    eventually("it has ended", || node.ended().is_some()).await;
    let node = ended(node).await;
    assert!(matches!(node.wait(), Err(NodeError::Refused(error)) if error == why));
    let said = node.ended().and_then(Result::err).map(|error| error.to_string());
    assert_eq!(said, Some(format!("the coordinators do not take the node in: {why}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_name_is_taken_says_so_and_joins_when_it_is_free() {
    let coordinator = FakeCoordinator::start().await;
    let taken = WireError::NameTaken { name: "node-1".into(), address: "10.0.0.1:7810".into() };
    coordinator.refuse(Some(taken.clone()));
    let node = Setup::default().start("node-1", &coordinator);
    eventually("it has heard why", || node.refusal() == Some(taken.clone())).await;
    assert!(node.ended().is_none() && !node.is_serving());
    coordinator.refuse(None);
    eventually("it serves", || node.is_serving()).await;
    assert_eq!(node.refusal(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleared_block_is_gone_once_the_node_has_confirmed_the_map() {
    let (coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    let (era, epoch) = coordinator.clear();
    let member = client.device.member;
    eventually("the node has confirmed it", || coordinator.has_confirmed(member, epoch)).await;
    assert_eq!(client.fetch(&[1]).await, Ok(vec![None]));
    let stored = client.store(&[Block::in_era(1, KIB, Era(1))], Ack::Primary).await;
    assert_eq!(stored, Ok(vec![Stored::Refused(Refusal::WrongEra)]));
    assert_eq!(client.store(&[Block::in_era(1, KIB, era)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.fetch(&[1]).await, Ok(vec![Some(Block::new(1, KIB).bytes)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_say_what_was_done() {
    let (coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.fetch(&[1, 2]).await.map(|found| found.len()), Ok(2));
    let page = get(node.metrics_address(), "/metrics").await;
    for line in [
        "kvhive_node_blocks{device=\"0\",tier=\"device\"} 1\n",
        "kvhive_node_hits_total{device=\"0\"} 1\n",
        "kvhive_node_misses_total{device=\"0\"} 1\n",
        "kvhive_node_stored_bytes_total 1024\n",
        "kvhive_node_fetched_bytes_total 1024\n",
        "kvhive_node_requests_total{verb=\"store\"} 1\n",
        "kvhive_node_open_connections 1\n",
        "kvhive_node_corrupt_blocks_total 0\n",
        "kvhive_node_codec_blocks{device=\"0\",codec=\"raw\"} 1\n",
        "kvhive_node_codec_stored_bytes{device=\"0\",codec=\"raw\"} 1024\n",
        "kvhive_node_codec_raw_bytes{device=\"0\",codec=\"int4\"} 0\n",
        "kvhive_node_shrunk_blocks_total{device=\"0\",outcome=\"done\"} 0\n",
        "kvhive_node_decoded_blocks_total 0\n",
        "kvhive_node_evicted_blocks_total{device=\"0\",reason=\"evicted\"} 0\n",
        "kvhive_node_evicted_blocks_total{device=\"0\",reason=\"not-admitted\"} 0\n",
    ] {
        assert!(page.contains(line), "{line} is missing in {page}");
    }
    let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in names {
        assert!(page.contains(&format!("# HELP {name} ")), "{name} does not say what it is");
    }
    let configured = page.lines().find_map(|line| line.strip_prefix("kvhive_node_memory_configured_bytes "));
    let configured: f64 = configured.and_then(|value| value.parse().ok()).expect("a number");
    assert!(configured > 32.0 * 64.0 * 1024.0);
    assert!(get(node.metrics_address(), "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(node.metrics_address(), "/readyz").await.starts_with("HTTP/1.1 200"));
    coordinator.be_silent(true);
    eventually("the lease runs out", || !node.is_serving()).await;
    assert!(get(node.metrics_address(), "/readyz").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_shut_down_says_goodbye_and_lets_go() {
    let (coordinator, node) = Setup::default().one().await;
    let address = node.data_address().to_string();
    let member = node.member().expect("it is a member");
    let mut idle = node.ask().await;
    let node = ended(node).await;
    node.wait().expect("it ended because it was told to");
    assert_eq!(coordinator.left(), [member]);
    assert!(idle.connection.receive().await.is_err(), "connections are closed");
    assert!(Asker::connect(&address, member).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_name_is_of_one_start_has_itself_taken_off_the_list() {
    for passing in [true, false] {
        let (coordinator, node) = Setup { passing, ..Setup::default() }.one().await;
        let member = node.member().expect("it is a member");
        ended(node).await;
        let removed = if passing { vec![member] } else { Vec::new() };
        assert_eq!((coordinator.left(), coordinator.removed()), (vec![member], removed));
    }
}

async fn ended(node: NodeHandle) -> NodeHandle {
    let ending = tokio::task::spawn_blocking(move || {
        node.shutdown(Duration::from_secs(10));
        node
    });
    ending.await.expect("shutdown does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_breaks_again_and_again_takes_its_node_out_of_the_cluster() {
    let (coordinator, node) = Setup::default().one().await;
    for _ in 0..6 {
        node.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    }
    let member = node.member().expect("it is a member");
    let (node, outcome) = tokio::task::spawn_blocking(move || {
        let outcome = node.wait();
        (node, outcome)
    })
    .await
    .expect("waiting does not panic");
    assert!(matches!(outcome, Err(NodeError::DeviceLost { device: 0 })), "{outcome:?}");
    eventually("it left", || coordinator.left() == [member]).await;
    ended(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setup_that_makes_no_sense_is_refused_by_name() {
    let coordinator = FakeCoordinator::start().await;
    let free: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let config = crate::NodeConfig {
        speaks: kvhive_protocol::Level::NEWEST,
        name: "node-0".to_owned(),
        data_listen: free,
        advertise_data: String::new(),
        metrics_listen: free,
        advertise_metrics: String::new(),
        passing: false,
        labels: Default::default(),
        io_threads: 1,
        max_connections: 4,
        max_inflight_bytes: 1 << 20,
        moves: crate::MoveLimits { rate: 1, slowdown_percent: 100 },
        devices: vec![crate::DeviceConfig {
            memory: crate::DeviceMemory::Host,
            device_bytes: 100,
            host_bytes: 0,
            disk_bytes: 0,
            classes: vec![crate::ClassConfig { frame_bytes: 4096, share: 1 }],
        }],
        disk_folder: None,
        disk_keys: crate::DiskKeys::default(),
        persist: None,
        pin_memory: false,
        share_memory: crate::ShareMemory::default(),
        gpu_stages: true,
        tuning: crate::Tuning::default(),
        names_bytes: 32 << 20,
        guest_bytes: 64 << 20,
        nccl: None,
        redis: None,
        coordinators: vec![coordinator.address()],
        token: b"token".to_vec(),
        access: Access::default(),
        tls: None,
        tracer: kvhive_spans::Tracer::OFF,
    };
    let refused = crate::start(config.clone()).err().map(|error| error.to_string());
    let expected = "node setup: device 0: share 1 of 100 bytes holds no frame of 4096 bytes";
    assert_eq!(refused.as_deref(), Some(expected));
    let taken = std::net::TcpListener::bind(free).expect("a free port");
    let mut busy = config.clone();
    busy.devices[0].device_bytes = 1 << 20;
    busy.data_listen = taken.local_addr().expect("it is bound");
    assert!(matches!(crate::start(busy).err(), Some(NodeError::Listen { .. })));
    let nobody = crate::NodeConfig { coordinators: Vec::new(), ..config };
    assert!(crate::start(nobody).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_only_a_newer_map_has_is_one_to_wait_for() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    client.tenant = TenantId(9);
    assert!(matches!(client.covered(&[1]).await, Err(WireError::UnknownTenant { .. })));
    client.epoch = Epoch(1000);
    assert!(matches!(client.covered(&[1]).await, Err(WireError::StaleEpoch { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_that_were_made_anew_get_a_node_that_holds_nothing() {
    let (coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    coordinator.change(|map| {
        map.cluster = ClusterId(78);
        map.epoch = Epoch(0);
    });
    coordinator.fence();
    eventually("it serves by the new cluster's map", || {
        let serving = node.plane.view.serving();
        serving.is_some_and(|serving| serving.map.cluster.0 == 78) && node.is_serving()
    })
    .await;
    assert_eq!(client.fetch(&[1]).await, Ok(vec![None]));
    assert_eq!(client.store(&[Block::new(2, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(node.shard_stats().await.blocks(), 1);
}
