//! What a node records of traced requests: its disk, its decoding, and what it gives to others.

use super::asker::{Block, kept};
use super::codecs::{LAYOUT, encoded};
use super::disk::{blocks, filled, setup};
use super::moves::{one_of_two, place};
use super::{KIB, Setup, eventually};
use crate::NodeHandle;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, Ack};
use kvhive_protocol::trace::{Fact, Span, TraceAnswer, TraceAsk};

/// A setup of nodes that trace every request.
fn traced(setup: Setup) -> Setup {
    Setup { sample_ppm: 1_000_000, ..setup }
}

/// Every span that a node keeps.
fn spans(node: &NodeHandle) -> Vec<Span> {
    let TraceAnswer::Newest(newest) = node.plane.tracer.answer(TraceAsk::Newest(256)) else {
        panic!("it traces")
    };
    let of = |trace| match node.plane.tracer.answer(TraceAsk::One(trace)) {
        TraceAnswer::Spans(spans) => spans,
        other => panic!("{other:?}"),
    };
    newest.into_iter().flat_map(|one| of(one.trace)).collect()
}

fn find(spans: &[Span], name: &str) -> Option<Span> {
    spans.iter().find(|span| span.name == name).cloned()
}

/// Waits until a node has recorded a span of this name: one ends when its answer is sent.
async fn recorded(node: &NodeHandle, name: &str) -> Span {
    eventually("it is recorded", || find(&spans(node), name).is_some()).await;
    find(&spans(node), name).expect("it was just there")
}

fn fact(span: &Span, name: &str) -> Option<Fact> {
    span.facts.iter().find(|(known, _)| known == name).map(|(_, fact)| fact.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_from_disk_is_a_part_of_its_fetch() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_coordinator, node) = filled(&traced(setup(folder.path())), &blocks(20)).await;
    let found = node.ask().await.fetch(&[0, 1, 2]).await.expect("it is served");
    assert!(found.iter().all(Option::is_some));
    let (fetch, read) = (recorded(&node, "fetch").await, recorded(&node, "read disk").await);
    assert_eq!((read.parent, fact(&fetch, "kvhive.on_disk")), (Some(fetch.id), Some(Fact::Number(3))));
    assert_eq!(fact(&read, "kvhive.read"), Some(Fact::Number(3)));
    assert_eq!(fact(&read, "kvhive.bytes"), Some(Fact::Number(3 * 64 * KIB as u64)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_decoded_for_its_asker_is_a_part_of_its_fetch() {
    let (_coordinator, node) = traced(Setup::default()).one().await;
    let mut client = node.ask().await;
    client.layout = Some(LAYOUT);
    assert_eq!(client.store(&[encoded(1, Codec::Int8)], Ack::Primary).await, Ok(vec![kept(1)]));
    client.accept = Accept::Raw(LAYOUT);
    assert!(client.fetch(&[1]).await.expect("it is served")[0].is_some());
    let decoded = recorded(&node, "decode").await;
    assert_eq!(fact(&decoded, "kvhive.blocks"), Some(Fact::Number(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_move_are_followed_to_the_node_that_gets_them() {
    let (coordinator, nodes, mut client, [old, new]) = one_of_two(traced(Setup::default())).await;
    let blocks: Vec<Block> = (0..3).map(|number| Block::new(number, 4 * KIB)).collect();
    assert_eq!(client.store(&blocks, Ack::Primary).await, Ok(vec![kept(1); 3]));
    place(&coordinator, client.slot, &[old, new], &[new]);
    eventually("it is given", || coordinator.is_filled(client.slot, new)).await;
    let moved = recorded(&nodes[0], "move blocks").await;
    assert_eq!(fact(&moved, "kvhive.target"), Some(Fact::from(new)));
    let copy = recorded(&nodes[1], "copy").await;
    assert_eq!((copy.trace, fact(&copy, "kvhive.kept")), (moved.trace, Some(Fact::Number(3))));
}
