//! Emptying two nodes of a cluster of real processes beside each other: what is said to be lost is what nobody holds afterwards who stays.

use kvhive_client::{Client, NamespaceClient, Prefix, Replica, StoreOptions, StoreOutcome};
use kvhive_protocol::BlockKey;
use kvhive_protocol::explain::Explained;
use kvhive_tests::{Cluster, kvhive};
use serde_json::Value;
use std::process::{Command, Output};

const BLOCK: usize = 16 << 10;
const SEGMENT: usize = 16;
/// Frames of one device.
const FRAMES: u64 = 1024;

/// Four nodes of two devices each, and two copies of each block.
fn cluster() -> Cluster {
    let memory = format!("{}MiB", (FRAMES * BLOCK as u64) >> 20);
    let words =
        ["--coordinators", "1", "--nodes", "4", "--devices", "2", "--replicas", "2", "--host-memory", "0"];
    let sizes = ["--device-memory", &memory, "--block-size", "16KiB", "--strategy", "lru"];
    Cluster::start(&[&words[..], &sizes[..]].concat())
}

fn prefix(blocks: &NamespaceClient, name: u64) -> Prefix {
    let hash = |at: usize| (u128::from(name) << 64 | at as u128).to_le_bytes();
    blocks.prefix_of_engine_hashes(&(0..SEGMENT).map(hash).collect::<Vec<[u8; 16]>>())
}

/// Stores so many segments, each with all its copies.
fn store(cluster: &Cluster, blocks: &NamespaceClient, segments: u64) {
    for name in 0..segments {
        let memory = vec![name as u8; BLOCK];
        let memory = vec![&memory[..]; SEGMENT];
        let options = StoreOptions { ack: Some(kvhive_protocol::data::Ack::All), ..StoreOptions::default() };
        let stored = cluster.wait(blocks.store(&prefix(blocks, name), 0..SEGMENT, &memory, options));
        let outcomes = stored.expect("it is taken").outcomes;
        assert!(outcomes.iter().all(|one| matches!(one, StoreOutcome::Acknowledged { .. })), "{outcomes:?}");
    }
}

/// Returns of how many blocks there is a copy on one of these nodes.
fn held(cluster: &Cluster, client: &Client, blocks: &NamespaceClient, segments: u64, on: &[&str]) -> u64 {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("a list").iter();
    let nodes = nodes.filter(|node| on.iter().any(|name| node["name"] == *name));
    let on: Vec<u64> = nodes.filter_map(|node| node["id"].as_u64()).collect();
    let mut held = 0;
    for name in 0..segments {
        let keys: Vec<BlockKey> = prefix(blocks, name).keys().to_vec();
        let told = cluster.wait(client.explain_keys("default", &keys)).expect("nodes answer");
        let here = |one: &Replica| {
            let is_there = on.iter().any(|member| u64::from(one.device.member.0) == *member);
            is_there && matches!(one.said, Ok(Explained::Here { .. }))
        };
        held += told.blocks.iter().filter(|block| block.replicas.iter().any(here)).count() as u64;
    }
    held
}

/// Empties two nodes beside each other; returns what each came to.
fn drain_both(cluster: &Cluster, more: &[&str]) -> [(Option<i32>, Value, String); 2] {
    let begun = ["node-1", "node-3"].map(|node| {
        let words = ["drain", node, "--dir", cluster.dir(), "--json"].into_iter().chain(more.iter().copied());
        let mut command = Command::new(kvhive());
        command.args(words).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("kvhive is there")
    });
    begun.map(|child| {
        let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
        let report = serde_json::from_slice(&stdout).unwrap_or_default();
        (status.code(), report, String::from_utf8_lossy(&stderr).into_owned())
    })
}

fn lost(both: &[(Option<i32>, Value, String); 2]) -> u64 {
    both.iter().map(|(_, report, _)| report["lost_blocks"].as_u64().unwrap_or_default()).sum()
}

/// Stores so many segments and waits until nodes have said what they hold.
fn filled(segments: u64) -> (Cluster, Client, NamespaceClient) {
    let cluster = cluster();
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    store(&cluster, &blocks, segments);
    cluster.until("nodes to say what they hold", || {
        let status = cluster.status();
        let devices = status["devices"].as_array().expect("a list").iter();
        let held: u64 = devices.filter_map(|device| device["blocks"].as_u64()).sum();
        (held == 2 * segments * SEGMENT as u64).then_some(())
    });
    (cluster, client, blocks)
}

#[test]
fn the_second_of_two_drains_is_refused_where_one_that_takes_may_get_more_than_it_has_room_for() {
    // With two of the nodes a device has 896 blocks on average, of 1024 frames: by where segments go one of the four has more too often.
    const SEGMENTS: u64 = 112;
    let (cluster, client, blocks) = filled(SEGMENTS);
    let both = drain_both(&cluster, &[]);
    let mut codes = both.each_ref().map(|(code, ..)| *code);
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(1)], "{both:?}");
    let refused = both.iter().find(|(code, ..)| *code == Some(1)).map_or("", |(.., said)| said);
    assert!(refused.contains("too_little_room"), "{refused}");
    let left = held(&cluster, &client, &blocks, SEGMENTS, &["node-1", "node-2", "node-3", "node-4"]);
    assert_eq!((left, lost(&both)), (SEGMENTS * SEGMENT as u64, 0), "{both:?}");
}

#[test]
fn two_drains_that_there_is_room_for_lose_nothing() {
    const SEGMENTS: u64 = 80;
    let (cluster, client, blocks) = filled(SEGMENTS);
    let both = drain_both(&cluster, &[]);
    assert_eq!(both.each_ref().map(|(code, ..)| *code), [Some(0); 2], "{both:?}");
    let left = held(&cluster, &client, &blocks, SEGMENTS, &["node-2", "node-4"]);
    assert_eq!((left, lost(&both)), (SEGMENTS * SEGMENT as u64, 0), "{both:?}");
}

#[test]
fn what_two_drains_beside_each_other_are_said_to_have_lost_is_what_is_gone() {
    // More than two nodes have frames for.
    const SEGMENTS: u64 = 150;
    let (cluster, client, blocks) = filled(SEGMENTS);
    let before = held(&cluster, &client, &blocks, SEGMENTS, &["node-1", "node-2", "node-3", "node-4"]);
    assert_eq!(before, SEGMENTS * SEGMENT as u64);
    let both = drain_both(&cluster, &["--yes"]);
    let left = held(&cluster, &client, &blocks, SEGMENTS, &["node-2", "node-4"]);
    assert!(left < before, "there is not room for all");
    assert_eq!(lost(&both), before - left, "{both:?}");
}
