//! Copies on other nodes.

use super::asker::{Block, already, kept};
use super::{KIB, MIB, Setup, eventually};
use kvhive_protocol::data::Ack;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_acknowledged_by_all_is_on_every_replica() {
    let setup = Setup { frame_bytes: MIB, ..Setup::default() };
    let (_coordinator, nodes) = setup.several(3).await;
    let blocks = [Block::new(1, MIB), Block::new(2, 4 * KIB)];
    assert_eq!(nodes[0].ask().await.store(&blocks, Ack::All).await, Ok(vec![kept(3); 2]));
    let expected: Vec<_> = blocks.iter().map(|block| Some(block.bytes.clone())).collect();
    for node in &nodes {
        assert!(node.ask().await.fetch(&[1, 2]).await == Ok(expected.clone()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_was_here_is_copied_only_where_it_lacks() {
    let (_coordinator, nodes) = Setup::default().several(3).await;
    let block = Block::new(1, 64 * KIB);
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::All).await, Ok(vec![kept(3)]));
    let panic = crate::actors::core::DeviceMessage::Panic;
    nodes[2].devices[0].actor().try_send(panic).expect("the mailbox has room");
    nodes[2].is_made_anew().await;
    let before = nodes[1].counted(|counters| &counters.stored_bytes);
    assert_eq!(client.store(std::slice::from_ref(&block), Ack::All).await, Ok(vec![already(3)]));
    assert_eq!(
        nodes[1].counted(|counters| &counters.stored_bytes),
        before,
        "the second was not sent it again"
    );
    assert!(nodes[2].ask().await.fetch(&[1]).await == Ok(vec![Some(block.bytes)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_acknowledged_by_the_primary_is_copied_later() {
    let (_coordinator, nodes) = Setup::default().several(2).await;
    let block = Block::new(1, 64 * KIB);
    let stored = nodes[0].ask().await.store(std::slice::from_ref(&block), Ack::Primary).await;
    assert_eq!(stored, Ok(vec![kept(1)]));
    nodes[1].settles("the copy has come", |stats| stats.blocks() == 1).await;
    assert_eq!(nodes[1].ask().await.fetch(&[1]).await, Ok(vec![Some(block.bytes)]));
    nodes[0].settles("the primary's frame is let go", |stats| stats.readers == 0).await;
    eventually("nothing waits", || nodes[0].plane.replicator.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_did_not_happen_are_not_counted() {
    let (_coordinator, mut nodes) = Setup::default().several(2).await;
    drop(nodes.remove(1));
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::All).await, Ok(vec![kept(1)]));
    assert_eq!(client.store(&[Block::new(2, KIB)], Ack::Quorum).await, Ok(vec![kept(1)]));
    assert_eq!(nodes[0].counted(|counters| &counters.replication_failures), 2);
}

/// Stands before `target`, until all connections are ended at once by the sender that is returned too.
async fn relay(target: SocketAddr) -> (SocketAddr, watch::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (end, ended) = watch::channel(());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut ended = ended.clone();
            ended.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.expect("the node listens");
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = ended.changed() => {}
                }
            });
        }
    });
    (address, end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_on_over_a_fresh_connection_when_the_idle_one_is_dead() {
    let (coordinator, nodes) = Setup::default().several(2).await;
    let (address, end) = relay(nodes[1].data_address()).await;
    let second = nodes[1].member().expect("it is a member");
    coordinator.change(|map| {
        map.members.get_mut(&second).expect("it is there").data_address = address.to_string();
    });
    eventually("the first node knows the way", || {
        let serving = nodes[0].plane.view.serving();
        serving.is_some_and(|serving| serving.map.members[&second].data_address == address.to_string())
    })
    .await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&[Block::new(1, KIB)], Ack::All).await, Ok(vec![kept(2)]));
    end.send_replace(());
    assert_eq!(client.store(&[Block::new(2, KIB)], Ack::All).await, Ok(vec![kept(2)]));
    assert_eq!(nodes[0].counted(|counters| &counters.replication_failures), 0);
}
