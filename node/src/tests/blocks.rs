//! What happens to blocks while nobody misbehaves.

use super::asker::{Block, already, kept};
use super::{KIB, MIB, Setup};
use kvhive_cache::Tier;
use kvhive_protocol::data::{Ack, Refusal, Stored};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_blocks_come_back_bit_for_bit() {
    let setup = Setup { frame_bytes: MIB, device_frames: 8, ..Setup::default() };
    let (coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    let blocks = [Block::new(1, 4 * KIB), Block::new(2, MIB), Block::new(3, 1), Block::new(4, 0)];
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 4]));
    assert_eq!(client.covered(&[1, 2, 3, 4, 5]).await, Ok(4));
    let found = client.fetch(&[2, 5, 1, 3, 4]).await.expect("the node serves");
    let bytes = |at: usize| Some(blocks[at].bytes.clone());
    assert_eq!(found, [bytes(1), None, bytes(0), bytes(2), bytes(3)]);
    super::eventually("a heartbeat reports the slot", || {
        coordinator.occupied().get(1).is_some_and(|byte| byte >> 1 & 1 == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_writer_of_a_key_wins() {
    let (_coordinator, node) = Setup::default().one().await;
    let first = Block::new(1, 4 * KIB);
    let mut second = Block::new(2, 8 * KIB);
    second.header.key = first.header.key;
    let mut client = node.ask().await;
    assert_eq!(client.store(std::slice::from_ref(&first), Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.store(&[second], Ack::Primary).await, Ok(vec![already(1)]));
    assert_eq!(client.fetch(&[1]).await, Ok(vec![Some(first.bytes)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_cache_gives_up_its_oldest_blocks() {
    let setup = Setup { device_frames: 8, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..32 {
        assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let found = client.fetch(&(0..32).collect::<Vec<_>>()).await.expect("the node serves");
    for (number, bytes) in found.into_iter().enumerate() {
        let expected = (number >= 24).then(|| Block::new(number as u64, 64 * KIB).bytes);
        assert!(bytes == expected, "block {number}");
    }
    assert_eq!(node.shard_stats().await.evicted, 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_blocks_keep_their_bytes() {
    let setup = Setup { device_frames: 16, host_frames: 16, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..24 {
        assert_eq!(client.store(&[Block::new(number, 64 * KIB)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a device frame is free again", |stats| stats.device.used_bytes < 16 * 64 * KIB as u64)
            .await;
    }
    let stats = node.shard_stats().await;
    assert!(stats.demoted >= 8, "{stats:?}");
    assert_eq!(stats.blocks(), 24);
    for number in 0..24 {
        let found = client.fetch(&[number]).await;
        assert!(found == Ok(vec![Some(Block::new(number, 64 * KIB).bytes)]), "block {number}");
    }
    node.settles("nobody reads", |stats| stats.readers == 0).await;
    let free =
        node.inside.memories[0].free_frames(Tier::Device) + node.inside.memories[0].free_frames(Tier::Host);
    assert_eq!(free, 8, "every frame is free or a block's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_larger_than_any_frame_is_refused_alone() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await;
    let blocks = [Block::new(1, 65 * KIB), Block::new(2, KIB)];
    let refused = Stored::Refused(Refusal::TooLarge);
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![refused, kept(1)]));
    assert_eq!(client.fetch(&[1, 2]).await, Ok(vec![None, Some(blocks[1].bytes.clone())]));
}
