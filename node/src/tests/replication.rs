//! Copies on other nodes.

use super::asker::{Block, already, kept};
use super::{KIB, MIB, Setup, eventually};
use kvhive_protocol::data::Ack;

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
    nodes[2].inside.devices[0].actor().try_send(panic).expect("the mailbox has room");
    eventually("the third has forgotten it", || nodes[2].counted(|counters| &counters.actor_restarts) == 1)
        .await;
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
    eventually("nothing waits", || nodes[0].inside.plane.replicator.waiting() == 0).await;
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
