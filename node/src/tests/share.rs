//! Peers on one host look at a node's memory: who may, what they see, and what becomes of those who are late.

use super::asker::{Asker, Block, kept};
use super::{KIB, Setup, TOKEN, eventually};
use crate::{DeviceMemory, NodeHandle, ShareMemory};
use kvhive_client::{Client, ClientConfig, Fallback, Opened, Sight, StoreOptions, Windows};
use kvhive_protocol::data::{Ack, DataReply, DataRequest};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::share::{
    CarryRequest, DoneRequest, HostId, LookRequest, Looked, NotShared, ShareAnswer, ShareOffer, ShareRequest,
    SharedAt,
};
use kvhive_protocol::{BlockHeader, Layout, Level, Levels, WireError};
use kvhive_wire::{Connection, Fault, Identity, Visit, this_host};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(5);

fn setup() -> Setup {
    // What is in a GPU's memory is sent in any case.
    Setup { memory: DeviceMemory::Host, ..Setup::default() }
}

fn here() -> HostId {
    this_host().expect("Linux says so")
}

impl Asker {
    async fn share(&mut self, host: HostId) -> ShareAnswer {
        let request = ShareRequest { epoch: self.epoch, device: self.device, host };
        match self.exchange(&DataRequest::Share(request), &[]).await {
            Ok(DataReply::Shared { answer, .. }) => answer,
            other => panic!("it was answered by {other:?}"),
        }
    }

    async fn offer(&mut self) -> ShareOffer {
        match self.share(here()).await {
            ShareAnswer::Offered(offer) => offer,
            other => panic!("it was answered by {other:?}"),
        }
    }

    pub(super) async fn look(&mut self, start: u64, numbers: &[u64]) -> (u64, Vec<Looked>) {
        let DataRequest::Fetch(fetch) = self.fetch_request(numbers) else { unreachable!("it is one") };
        match self.exchange(&DataRequest::Look(LookRequest { start, fetch }), &[]).await {
            Ok(DataReply::Looked { grant, blocks, .. }) => (grant, blocks),
            other => panic!("a look was answered by {other:?}"),
        }
    }

    pub(super) async fn done(&mut self, grant: u64) {
        let done = DataRequest::Done(DoneRequest { epoch: self.epoch, grant });
        self.connection.send(Kind::DataRequest, 0, &done, &[]).await.expect("it is taken");
    }
}

/// Connects as another node would, which is this member.
pub(super) async fn ask_as_node(node: &NodeHandle, sender: u64) -> Asker {
    let identity = Identity {
        token: TokenKey::new(TOKEN),
        role: Role::Node,
        sender,
        cluster: None,
        tls: None,
        levels: Default::default(),
    };
    let mut asker = node.ask().await;
    let address = node.data_address().to_string();
    (asker.connection, _) = Connection::connect(&address, &identity, LIMIT).await.expect("it is let in");
    asker
}

/// Opens windows into a node's memory.
pub(super) async fn opened(windows: &Arc<Windows>, node: &NodeHandle) -> Arc<Opened> {
    let address = node.data_address().to_string();
    let Sight::MayOpen(attempt) = windows.sight(&address) else { panic!("it was looked at before") };
    let answer = node.ask().await.share(windows.host()).await;
    attempt.go(answer, Instant::now() + LIMIT).await.expect("the node lets it look")
}

/// Copies a block that is to be seen, and says whether it is what its header says.
fn copied(opened: &Opened, one: &Looked) -> Option<(BlockHeader, Vec<u8>)> {
    let Looked::At(header, at) = one else { return None };
    let mut bytes = vec![0; header.payload_bytes as usize];
    let digest = opened.copy(*at, &mut bytes).expect("there is such a place");
    (digest == header.digest).then_some((*header, bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_reads_blocks_where_they_are_and_holds_them_until_it_is_done() {
    let (_coordinator, node) = setup().one().await;
    let mut client = node.ask().await;
    let blocks: Vec<Block> = (1..4).map(|number| Block::new(number, 64 * KIB)).collect();
    let small = Block::new(9, 4 * KIB);
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 3]));
    assert_eq!(client.store(std::slice::from_ref(&small), Ack::Primary).await, Ok(vec![kept(1)]));
    let windows = Windows::new().expect("Linux says which host this is");
    let opened = opened(&windows, &node).await;

    let (grant, found) = client.look(opened.start(), &[1, 9, 77, 3]).await;
    assert_eq!(copied(&opened, &found[0]), Some((blocks[0].header, blocks[0].bytes.clone())));
    assert_eq!(found[1], Looked::Sent(small.header), "telling where it is costs as much as itself");
    let mut bytes = vec![0; 4 * KIB];
    client.connection.read_payload(&mut bytes).await.expect("it was sent");
    assert_eq!((bytes, found[2]), (small.bytes, Looked::Miss));
    assert_eq!(copied(&opened, &found[3]), Some((blocks[2].header, blocks[2].bytes.clone())));
    node.settles("both are being read", |stats| stats.readers == 2).await;
    assert_eq!(node.counted(|counters| &counters.shown_bytes), 128 * KIB as u64);

    client.done(grant + 1).await;
    client.done(grant).await;
    node.settles("nobody reads", |stats| stats.readers == 0).await;
    let (again, found) = client.look(opened.start(), &[2]).await;
    assert!(again > grant && copied(&opened, &found[0]).is_some());
    drop(client);
    node.settles("who has gone reads nothing", |stats| stats.readers == 0).await;
    assert_eq!(node.counted(|counters| &counters.grants_expired), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_late_finds_something_else_and_knows() {
    let (_coordinator, node) = Setup { device_frames: 4, ..setup() }.one().await;
    let mut client = node.ask().await;
    for number in 0..4 {
        let stored = client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await;
        assert_eq!(stored, Ok(vec![kept(1)]));
    }
    let windows = Windows::new().expect("Linux says which host this is");
    let opened = opened(&windows, &node).await;
    let mut late = node.ask().await;
    let (grant, found) = late.look(opened.start(), &[0, 1, 2, 3]).await;
    assert!(found.iter().all(|one| copied(&opened, one).is_some()));
    let refused = client.store(&[Block::new(10, 64 * KIB)], Ack::Primary).await;
    assert_ne!(refused, Ok(vec![kept(1)]), "a frame is not reused under its reader");
    eventually("it has had long enough", || node.counted(|counters| &counters.grants_expired) == 1).await;
    for number in 10..14 {
        let stored = client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await;
        assert_eq!(stored, Ok(vec![kept(1)]));
    }
    assert!(found.iter().all(|one| copied(&opened, one).is_none()), "others lie there, and it shows");
    // Its connection stands.
    late.done(grant).await;
    assert_eq!(late.look(opened.start(), &[0]).await.1, [Looked::Miss]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_opens_the_door_once_and_nothing_else_does() {
    let (_coordinator, node) = setup().one().await;
    let mut client = node.ask().await;
    let offer = client.offer().await;
    let wrong = ShareOffer { pass: kvhive_protocol::share::Pass([1; 32]), ..offer.clone() };
    assert!(Visit::pay(&wrong, LIMIT).await.is_err(), "nobody was given it");
    let (visit, handed) = Visit::pay(&offer, LIMIT).await.expect("it is the pass");
    assert!(!handed.is_empty());
    assert!(Visit::pay(&offer, LIMIT).await.is_err(), "it was shown before");
    assert_eq!(node.counted(|counters| &counters.share_refused_pass), 2);
    let guests = || node.plane.sharing.as_ref().map_or(0, |sharing| sharing.guests());
    eventually("one looks", || guests() == 1).await;
    drop((visit, handed));
    eventually("it has gone", || guests() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_look_is_told_why_and_sent_what_it_asks_for() {
    let elsewhere = HostId([1; 32]);
    for (who, host, why) in [
        (ShareMemory::Off, here(), NotShared::Nothing),
        (ShareMemory::Nodes, here(), NotShared::Role),
        (ShareMemory::Clients, elsewhere, NotShared::Elsewhere),
    ] {
        let (_coordinator, node) = Setup { share_memory: who, ..setup() }.one().await;
        let mut client = node.ask().await;
        assert_eq!(client.share(host).await, ShareAnswer::Not(why));
        let block = Block::new(1, 64 * KIB);
        assert_eq!(client.store(std::slice::from_ref(&block), Ack::Primary).await, Ok(vec![kept(1)]));
        // Of a start that is not this one's.
        assert_eq!(client.look(7, &[1]).await, (0, vec![Looked::Sent(block.header)]));
        let mut bytes = vec![0; 64 * KIB];
        client.connection.read_payload(&mut bytes).await.expect("it was sent");
        assert_eq!(bytes, block.bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_look_where_clients_may_not() {
    let (_coordinator, node) = Setup { share_memory: ShareMemory::Nodes, ..setup() }.one().await;
    let mut asker = ask_as_node(&node, 0).await;
    assert!(matches!(asker.share(here()).await, ShareAnswer::Offered(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_outlive_their_node_for_who_copies_and_are_shut_for_all_others() {
    let (coordinator, node) = setup().one().await;
    let mut client = node.ask().await;
    let block = Block::new(1, 64 * KIB);
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::Primary).await, Ok(vec![kept(1)]));
    let windows = Windows::new().expect("Linux says which host this is");
    let seen = opened(&windows, &node).await;
    let (_, found) = client.look(seen.start(), &[1]).await;
    assert_eq!(windows.open(), 1);
    tokio::task::spawn_blocking(move || node.shutdown(LIMIT)).await.expect("it ends in order");
    // Its memory is there for who looks at it, with the block or without: no harm is done, and no other block is taken for it.
    assert!(copied(&seen, &found[0]).is_none_or(|copy| copy == (block.header, block.bytes)));
    eventually("they are shut", || windows.open() == 0).await;

    // The next start has memory of its own, and says so.
    let node = setup().start("node-0", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    let again = opened(&windows, &node).await;
    assert_ne!(again.start(), seen.start());
    let mut client = node.ask().await;
    let block = Block::new(2, 64 * KIB);
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.look(seen.start(), &[2]).await.1, [Looked::Sent(block.header)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_those_who_looked_and_went() {
    let (_coordinator, node) = setup().one().await;
    let mut client = node.ask().await;
    let files = || std::fs::read_dir("/proc/self/fd").expect("Linux has it").count();
    let maps = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
        maps.lines().filter(|line| line.contains("memfd:kvhive")).count()
    };
    let guests = || node.plane.sharing.as_ref().map_or(0, |sharing| sharing.guests());
    let (files_before, maps_before) = (files(), maps());
    for _ in 0..100 {
        let windows = Windows::new().expect("Linux says which host this is");
        let Sight::MayOpen(attempt) = windows.sight("node") else { panic!("nobody looks") };
        let answer = client.share(windows.host()).await;
        attempt.go(answer, Instant::now() + LIMIT).await.expect("the node lets it look");
    }
    eventually("all have gone", || guests() == 0 && files() == files_before && maps() == maps_before).await;
}

/// A client of a node, with a namespace of 64 KiB blocks and two of them stored.
async fn stored(
    coordinator: &super::FakeCoordinator,
    config: impl FnOnce(&mut ClientConfig),
) -> (Client, kvhive_client::NamespaceClient, kvhive_client::Prefix) {
    let mut settings = ClientConfig::new(vec![coordinator.address()], TOKEN.to_vec());
    config(&mut settings);
    let client = Client::connect(settings).await.expect("the coordinator answers");
    let layout = Layout::opaque(64 * KIB as u32, 16);
    let blocks = client.namespace("default", "test", layout, 0).expect("there is such a tenant");
    let prefix = blocks.prefix_of_engine_hashes(&[[1u8; 8], [2u8; 8]]);
    let bytes = [vec![1u8; 64 * KIB], vec![2u8; 64 * KIB]];
    let pieces: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let report =
        blocks.store(&prefix, 0..2, &pieces, StoreOptions::default()).await.expect("it is asked right");
    assert_eq!(report.acknowledged(), 2, "{report:?}");
    (client, blocks, prefix)
}

/// Fetches both blocks and returns how many came.
async fn fetched(blocks: &kvhive_client::NamespaceClient, prefix: &kvhive_client::Prefix) -> usize {
    let mut memory = [vec![0u8; 64 * KIB], vec![0u8; 64 * KIB]];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let report = blocks.fetch_into(prefix, 0..2, &mut targets).await.expect("it is asked right");
    let delivered = report.delivered();
    for (at, bytes) in memory.iter().enumerate().take(delivered) {
        assert!(bytes.iter().all(|byte| *byte == at as u8 + 1), "block {at} is another's");
    }
    delivered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_reads_out_of_memory_by_itself_and_over_the_connection_where_it_may_not() {
    let bytes = 2 * 64 * KIB as u64;
    for (who, wants, looked_at, refused) in [
        (ShareMemory::Clients, true, 2 * bytes, 0),
        (ShareMemory::Clients, false, 0, 0),
        (ShareMemory::Nodes, true, 0, 1),
    ] {
        let (coordinator, node) = Setup { share_memory: who, ..setup() }.one().await;
        let (client, blocks, prefix) = stored(&coordinator, |config| config.shared_memory = wants).await;
        for _ in 0..2 {
            assert_eq!(fetched(&blocks, &prefix).await, 2);
        }
        let stats = client.stats();
        assert_eq!((stats.bytes_fetched, stats.bytes_looked_at), (2 * bytes, looked_at), "{who:?}");
        // Having been refused it does not ask again at once.
        assert_eq!(stats.fallbacks[Fallback::Refused as usize], refused);
        assert_eq!(stats.fallbacks.iter().sum::<u64>(), refused);
        assert_eq!(stats.windows, u64::from(looked_at > 0));
        node.settles("nobody reads", |stats| stats.readers == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_speak_of_it_is_asked_as_before() {
    let (coordinator, node) = Setup { speaks: Level::SIZES, ..setup() }.one().await;
    let (client, blocks, prefix) = stored(&coordinator, |_| ()).await;
    assert_eq!(fetched(&blocks, &prefix).await, 2);
    let stats = client.stats();
    assert_eq!((stats.bytes_looked_at, stats.windows, stats.fallbacks.iter().sum()), (0, 0, 0u64));
    assert_eq!(node.counted(|counters| &counters.malformed), 0);

    // Nor is a client served otherwise that does not.
    let identity = Identity {
        token: TokenKey::new(TOKEN),
        role: Role::Client,
        sender: 0,
        cluster: None,
        tls: None,
        levels: Levels::up_to(Level::SIZES),
    };
    let (coordinator, node) = setup().one().await;
    let mut old = node.ask().await;
    let address = node.data_address().to_string();
    (old.connection, _) = Connection::connect(&address, &identity, LIMIT).await.expect("it is let in");
    assert_eq!(old.connection.level(), Level::SIZES);
    let block = Block::new(1, 64 * KIB);
    assert_eq!(old.store(std::slice::from_ref(&block), Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(old.fetch(&[1]).await, Ok(vec![Some(block.bytes)]));
    drop(coordinator);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_on_when_its_node_is_started_anew() {
    let (coordinator, node) = setup().one().await;
    let (client, blocks, prefix) = stored(&coordinator, |_| ()).await;
    assert_eq!(fetched(&blocks, &prefix).await, 2);
    assert_eq!(client.stats().windows, 1);
    tokio::task::spawn_blocking(move || node.shutdown(LIMIT)).await.expect("it ends in order");
    eventually("its memory is let go of", || client.stats().windows == 0).await;
    let node = setup().start("node-0", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    client.refresh().await.expect("the coordinator answers");
    assert_eq!(fetched(&blocks, &prefix).await, 0, "it has forgotten all");
    let (again, blocks, prefix) = stored(&coordinator, |_| ()).await;
    assert_eq!(fetched(&blocks, &prefix).await, 2);
    assert_eq!(again.stats().bytes_looked_at, 2 * 64 * KIB as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_between_nodes_of_a_host_are_read_out_of_the_givers_memory() {
    let (_coordinator, nodes) = setup().several(2).await;
    let mut client = nodes[0].ask().await;
    let mut blocks: Vec<Block> = (1..4).map(|number| Block::new(number, 64 * KIB)).collect();
    // Sent beside the others.
    blocks.insert(1, Block::new(9, 4 * KIB));
    assert_eq!(client.store(&blocks, Ack::All).await, Ok(vec![kept(2); 4]));
    let windows = nodes[1].plane.windows.clone().expect("Linux says which host this is");
    assert_eq!((windows.open(), windows.bytes()), (1, 3 * 64 * KIB as u64));
    let by = |node: &NodeHandle| {
        let links = serde_json::to_value(node.plane.replicator.links.report()).expect("it is plain");
        links[0]["transport"].as_str().map(str::to_owned)
    };
    assert_eq!(by(&nodes[0]).as_deref(), Some("shared-memory"));
    let mut other = nodes[1].ask().await;
    let expected: Vec<_> = blocks.iter().map(|block| Some(block.bytes.clone())).collect();
    assert!(other.fetch(&[1, 9, 2, 3]).await == Ok(expected));
    nodes[0].settles("nobody reads", |stats| stats.readers == 0).await;

    // What is there already is passed over, and what is damaged is refused by its digest.
    assert_eq!(client.store(&blocks, Ack::All).await.map(|stored| stored.len()), Ok(4));
    assert_eq!(nodes[1].counted(|counters| &counters.corrupt_blocks), 0);
    assert!(nodes.iter().all(|node| node.counted(|counters| &counters.replication_failures) == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_go_by_the_socket_where_nobody_may_look() {
    let (_coordinator, nodes) = Setup { share_memory: ShareMemory::Off, ..setup() }.several(2).await;
    let mut client = nodes[0].ask().await;
    let block = Block::new(1, 64 * KIB);
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::All).await, Ok(vec![kept(2)]));
    assert!(nodes.iter().all(|node| node.plane.windows.as_ref().is_none_or(|windows| windows.open() == 0)));
    assert_eq!(nodes[1].ask().await.fetch(&[1]).await, Ok(vec![Some(block.bytes)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_giver_is_not_seen_is_sent_within_the_same_time() {
    let (_coordinator, nodes) = setup().several(2).await;
    let mut client = nodes[0].ask().await;
    // As after something failed: it rests.
    let windows = nodes[1].plane.windows.clone().expect("Linux says which host this is");
    windows.rest(&nodes[0].data_address().to_string(), Fallback::Torn);
    let block = Block::new(1, 64 * KIB);
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::All).await, Ok(vec![kept(2)]));
    assert_eq!((windows.open(), windows.bytes()), (0, 0));
    assert_eq!(nodes[1].ask().await.fetch(&[1]).await, Ok(vec![Some(block.bytes)]));
    assert_eq!(nodes[0].counted(|counters| &counters.replication_failures), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_node_has_nothing_carried_and_lies_are_refused() {
    let (_coordinator, node) = setup().one().await;
    let mut client = node.ask().await;
    let mut carry = |copy, places: Vec<Option<SharedAt>>| {
        client.copy = copy;
        let DataRequest::Store(store) = client.store_request(&[Block::new(1, 64 * KIB)], Ack::Primary) else {
            unreachable!("it is one")
        };
        let source = node.member().expect("it is a member");
        let start = node.plane.sharing.as_ref().map_or(0, |sharing| sharing.start());
        DataRequest::Carry(Box::new(CarryRequest { source, start, places, store }))
    };
    let place = Some(SharedAt { slab: 0, at: 0 });
    let (of_client, no_copy, no_place) =
        (carry(true, vec![place]), carry(false, vec![place]), carry(true, Vec::new()));
    let refused = client.exchange(&of_client, &[]).await;
    assert!(matches!(refused, Err(Fault::Refused(WireError::Forbidden { .. }))), "{refused:?}");
    let mut other = ask_as_node(&node, 0).await;
    for request in [no_copy, no_place] {
        let refused = other.exchange(&request, &[]).await;
        assert!(matches!(refused, Err(Fault::Refused(WireError::Malformed { .. }))), "{refused:?}");
    }
    assert_eq!(client.covered(&[1]).await, Ok(0), "the connection stands");
}
