//! How what goes from GPU to GPU is cut: by the rule that all nodes of the cluster's level know.

use super::super::asker::{Block, kept};
use super::super::guests::know;
use super::super::{KIB, MIB, Setup, eventually};
use super::{NodeHandle, PairState, Wrong, by_nccl, gone_by, in_order, is_real, pair};
use kvhive_protocol::data::Ack;
use kvhive_protocol::{DeviceId, Level};

/// One block that is too small to be sent alone, and one that is not.
const LENGTHS: [usize; 2] = [4 * KIB, MIB];
/// Half a mebibyte, of which the first is one.
const LEAST: usize = 512 * KIB;

fn mixed(from: u64) -> Vec<Block> {
    (from..).zip(LENGTHS).map(|(number, bytes)| Block::new(number, bytes)).collect()
}

/// Checks that a node has what was copied to it.
async fn has(node: &NodeHandle, from: u64) {
    let mut asker = node.ask().await;
    asker.device = DeviceId::new(node.member().expect("it is a member"), 0);
    let expected: Vec<_> = mixed(from).into_iter().map(|block| Some(block.bytes)).collect();
    assert!(asker.fetch(&[from, from + 1]).await == Ok(expected), "blocks from {from}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_blocks_are_packed_with_large_ones_once_all_nodes_know_how() {
    if is_real() {
        return println!("SKIPPED: a real NCCL does not tell what it is asked to send");
    }
    // Nothing has that name: it is there for what is noted.
    let setup = Setup { wrong: Some(Wrong::at("node-0", "nothing:1:fail")), frame_bytes: MIB, ..by_nccl() };
    let sends = setup.wrong.as_ref().expect("it was said").once.path().join("sends");
    let (coordinator, nodes) = in_order([&setup; 2]).await;
    let mut client = nodes[0].ask().await;
    assert_eq!(client.store(&mixed(0), Ack::All).await, Ok(vec![kept(2); 2]), "by TCP meanwhile");
    eventually("a pair stands", || pair(&nodes[0]) == Some(PairState::Ready)).await;
    let apart = LENGTHS.to_vec();
    let packed = vec![LEAST, LENGTHS[1] - (LEAST - LENGTHS[0])];
    // As in a cluster one of whose nodes is of the build before, and when that one is upgraded: who receives has not heard of it yet.
    for (from, level, told, expected) in [(10, Level::DAYS, 2, apart), (20, Level::PACKED, 1, packed)] {
        coordinator.change(|map| map.level = level);
        know(&coordinator, &nodes[..told]).await;
        client.epoch = coordinator.epoch();
        let _ = std::fs::remove_file(&sends);
        let before = gone_by(&nodes[0], "nccl");
        assert_eq!(client.store(&mixed(from), Ack::All).await, Ok(vec![kept(2); 2]), "at level {level}");
        let bytes = LENGTHS.iter().sum::<usize>() as u64;
        assert_eq!(gone_by(&nodes[0], "nccl") - before, bytes, "at level {level}");
        let sent = std::fs::read_to_string(&sends).expect("it was sent");
        let sent: Vec<usize> = sent.lines().map(|line| line.parse().expect("it is a number")).collect();
        assert_eq!(sent, expected, "at level {level}");
        has(&nodes[1], from).await;
        // From here on it is given no newer map.
        coordinator.keep_behind(nodes[1].member());
    }
    let serving = nodes[1].plane.view.serving().expect("it serves");
    assert_eq!(serving.map.level, Level::DAYS, "it went by what it was told");
}
