//! What peers can do wrong, and that nobody else notices.

use super::asker::{Asker, Block, kept};
use super::coordinator::UNPLACED;
use super::proxy::{Proxy, Then};
use super::{KIB, MIB, Setup, eventually};
use crate::actors::core::DeviceMessage;
use kvhive_cache::Tier;
use kvhive_protocol::data::{Ack, DataRequest, Refusal, Stored};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::{DeviceId, MemberId, TenantId, WireError};
use kvhive_wire::Fault;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_store_is_never_seen() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    let mut broken = Block::new(1, 4 * KIB);
    broken.bytes[1000] ^= 1;
    let stored = client.store(&[broken, Block::new(2, 4 * KIB)], Ack::Primary).await;
    assert_eq!(stored, Ok(vec![Stored::Refused(Refusal::Corrupt), kept(1)]));
    assert_eq!(client.covered(&[1]).await, Ok(0));
    assert_eq!(node.counted(|counters| &counters.corrupt_blocks), 1);
    node.settles("its frame is free again", |stats| stats.filling == 0 && stats.blocks() == 1).await;
    assert_eq!(client.store(&[Block::new(1, 4 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_cut_half_way_leaves_nothing_behind() {
    let setup = Setup { frame_bytes: MIB, device_frames: 4, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let proxy = Proxy::before(node.data_address(), 512 * KIB, Then::Cut).await;
    let member = node.member().expect("it is a member");
    let mut dying = Asker::connect(&proxy.address(), member).await.expect("the proxy passes it on");
    let cut = dying.try_store(&[Block::new(1, MIB), Block::new(2, MIB)], Ack::Primary).await;
    assert!(matches!(cut, Err(Fault::Io(_) | Fault::Closed)), "{cut:?}");
    node.settles("both writes were given up", |stats| stats.abandoned == 2 && stats.filling == 0).await;
    assert_eq!(node.inside.memories[0].free_frames(Tier::Device), 4);
    assert_eq!(node.ask().await.fetch(&[1, 2]).await, Ok(vec![None, None]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_keeps_its_frames_until_it_is_cut_off() {
    let setup =
        Setup { frame_bytes: 8 * MIB, device_frames: 4, stall: Duration::from_secs(2), ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..4 {
        assert_eq!(client.store(&[Block::new(number, 8 * MIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let mut slow = node.ask().await;
    let request = slow.fetch_request(&[0, 1, 2, 3]);
    slow.connection.send(Kind::DataRequest, 1, &request, &[]).await.expect("the request leaves");
    node.settles("all blocks are being read", |stats| stats.readers == 4).await;
    let late = Block::new(9, 8 * MIB);
    let stored = client.store(std::slice::from_ref(&late), Ack::Primary).await;
    assert_eq!(stored, Ok(vec![Stored::Refused(Refusal::NoRoom)]), "a frame is not reused under its reader");
    node.settles("the reader was cut off", |stats| stats.readers == 0).await;
    assert_eq!(node.counted(|counters| &counters.stalled), 1);
    assert_eq!(client.store(&[late], Ack::Primary).await, Ok(vec![kept(1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_bytes_under_way_are_refused_without_losing_step() {
    let setup = Setup { frame_bytes: MIB, inflight_bytes: MIB, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let proxy = Proxy::before(node.data_address(), 512 * KIB, Then::Hold).await;
    let member = node.member().expect("it is a member");
    let mut slow = Asker::connect(&proxy.address(), member).await.expect("the proxy passes it on");
    let slow = tokio::spawn(async move { slow.store(&[Block::new(1, MIB)], Ack::Primary).await });
    eventually("all bytes are taken", || node.plane.inflight_bytes() == MIB as u64).await;
    let mut client = node.ask().await;
    let busy = client.store(&[Block::new(2, 256 * KIB)], Ack::Primary).await;
    assert!(matches!(busy, Err(WireError::Busy { .. })), "{busy:?}");
    assert_eq!(client.fetch(&[1, 2]).await, Ok(vec![None, None]), "the connection stands, nothing is seen");
    proxy.release();
    assert_eq!(slow.await.expect("the store ends"), Ok(vec![kept(1)]));
    assert_eq!(client.store(&[Block::new(2, 256 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misdirected_requests_are_told_why() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    let ours = client.device;
    client.slot = UNPLACED;
    assert!(matches!(client.fetch(&[1]).await, Err(WireError::StaleEpoch { .. })));
    let stored = client.store(&[Block::new(1, KIB)], Ack::Primary).await;
    assert!(matches!(stored, Err(WireError::StaleEpoch { .. })));
    client.slot = kvhive_protocol::Slot(9);
    for device in [DeviceId::new(ours.member, 1), DeviceId::new(MemberId(99), 0)] {
        client.device = device;
        assert_eq!(client.fetch(&[1]).await, Err(WireError::WrongDevice { device }));
    }
    client.device = ours;
    client.tenant = TenantId(5);
    assert_eq!(client.fetch(&[1]).await, Err(WireError::UnknownTenant { tenant: TenantId(5) }));
    client.tenant = super::coordinator::TENANT;
    let mut foreign = Block::new(1, KIB);
    foreign.header.tenant = TenantId(2);
    let stored = client.store(&[foreign], Ack::Primary).await;
    assert_eq!(stored, Ok(vec![Stored::Refused(Refusal::WrongEra)]));
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_not_store_copies() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    client.copy = true;
    let stored = client.store(&[Block::new(1, KIB)], Ack::Primary).await;
    assert!(matches!(stored, Err(WireError::Forbidden { .. })), "{stored:?}");
    assert_eq!(client.fetch(&[1]).await, Ok(vec![None]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_connection_only() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut bystander = node.ask().await;
    for garbage in [vec![0; 64], vec![0xFF; 4096], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3)] {
        let mut stream = TcpStream::connect(node.data_address()).await.expect("the node listens");
        stream.write_all(&garbage).await.expect("it takes bytes");
        let mut answer = Vec::new();
        // Closed after a refusal, or reset over what it did not read.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() < KIB);
    }
    let member = bystander.device.member;
    let stranger = Asker::connect_with(&node.data_address().to_string(), member, b"another token").await;
    assert!(matches!(stranger.err(), Some(Fault::Refused(WireError::Unauthorized))));
    eventually("all four were turned away", || node.counted(|counters| &counters.refused_handshakes) == 4)
        .await;

    let mut confused = node.ask().await;
    confused.connection.send(Kind::ControlRequest, 1, &7u64, &[]).await.expect("it leaves");
    let answer = confused.connection.receive_answer::<u64>(Kind::DataReply, 1).await;
    assert!(matches!(answer, Err(Fault::Refused(WireError::Malformed { .. }))), "{answer:?}");
    assert!(matches!(confused.connection.receive().await, Err(Fault::Closed | Fault::Io(_))));

    let mut liar = node.ask().await;
    let DataRequest::Fetch(mut request) = liar.fetch_request(&[1, 2]) else { panic!("it is a fetch") };
    request.runs[0].keys = u32::MAX;
    let answer = liar.exchange(&DataRequest::Fetch(request), &[]).await;
    assert!(matches!(answer, Err(Fault::Refused(WireError::Malformed { .. }))), "{answer:?}");
    let many: Vec<u64> = (0..600).collect();
    assert!(matches!(liar.fetch(&many).await, Err(WireError::TooLarge { bytes: 600, limit: 512 })));

    assert_eq!(bystander.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_closed() {
    let setup = Setup { max_connections: 2, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let (first, mut second) = (node.ask().await, node.ask().await);
    let member = first.device.member;
    // Places are for those who know the token, so it is closed when it has shown that.
    let fault = match Asker::connect(&node.data_address().to_string(), member).await {
        Ok(mut third) => third.try_store(&[Block::new(1, KIB)], Ack::Primary).await.err(),
        Err(fault) => Some(fault),
    };
    assert!(matches!(fault, Some(Fault::Closed | Fault::Io(_))), "{fault:?}");
    assert_eq!(node.counted(|counters| &counters.refused_connections), 1);
    assert_eq!(second.covered(&[1]).await, Ok(0), "those that stand are served");
    drop(first);
    eventually("its place is free", || node.plane.open_connections() == 1).await;
    assert_eq!(node.ask().await.covered(&[1]).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_goes_on_after_an_actor_panicked() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    node.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew().await;
    assert_eq!(client.fetch(&[1]).await, Ok(vec![None]), "what it held are misses");
    assert_eq!(client.store(&[Block::new(2, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.fetch(&[2]).await, Ok(vec![Some(Block::new(2, KIB).bytes)]));
    assert_eq!(node.inside.memories[0].free_frames(Tier::Device), 31, "the first block's frame came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_that_panics_inside_ends_the_actor_and_not_the_device() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    let device = node.devices[0].clone();
    let asker = tokio::spawn(async move {
        let limit = std::time::Duration::from_secs(2);
        device.ask::<()>(limit, |_reply| DeviceMessage::Panic).await
    });
    let outcome = asker.await;
    assert!(
        outcome.is_err_and(|error| error.is_panic()) || node.counted(|counters| &counters.actor_restarts) > 0
    );
    node.is_made_anew().await;
    assert_eq!(client.store(&[Block::new(2, KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.fetch(&[1, 2]).await, Ok(vec![None, Some(Block::new(2, KIB).bytes)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_begun_before_a_panic_never_becomes_another_block() {
    let setup = Setup { frame_bytes: MIB, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let proxy = Proxy::before(node.data_address(), 512 * KIB, Then::Hold).await;
    let member = node.member().expect("it is a member");
    let mut early = Asker::connect(&proxy.address(), member).await.expect("the proxy passes it on");
    let early = tokio::spawn(async move { early.store(&[Block::new(1, MIB)], Ack::Primary).await });
    node.settles("the write is under way", |stats| stats.filling == 1).await;
    node.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew().await;
    // The first write of the new shard bears the same ticket; it is held open while the old one ends.
    let second = Proxy::before(node.data_address(), 512 * KIB, Then::Hold).await;
    let mut late = Asker::connect(&second.address(), member).await.expect("the proxy passes it on");
    let late = tokio::spawn(async move { late.store(&[Block::new(2, MIB)], Ack::Primary).await });
    node.settles("the new write is under way", |stats| stats.filling == 1).await;
    proxy.release();
    let refused = Stored::Refused(Refusal::WrongEra);
    assert_eq!(early.await.expect("the store ends"), Ok(vec![refused]));
    let mut client = node.ask().await;
    assert_eq!(client.fetch(&[1, 2]).await, Ok(vec![None, None]));
    second.release();
    assert_eq!(late.await.expect("the store ends"), Ok(vec![kept(1)]));
    assert!(client.fetch(&[1, 2]).await == Ok(vec![None, Some(Block::new(2, MIB).bytes)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_refused_are_neither_answered_nor_in_any_latency() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    assert_eq!(client.covered(&[1]).await, Ok(0));
    client.slot = UNPLACED;
    for _ in 0..3 {
        client.covered(&[1]).await.expect_err("it is placed nowhere");
    }
    let stats = node.stats();
    assert_eq!((stats.requests, node.latencies()[0].count()), (1, 1));
    assert_eq!(node.counted(|counters| &counters.matches), 4, "they have come all the same");
}
