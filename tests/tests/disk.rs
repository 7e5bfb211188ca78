//! A node with a disk tier that is killed again and again under load: what comes back is what was stored, or nothing.

use kvhive_client::{FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome};
use kvhive_protocol::data::Ack;
use kvhive_tests::Cluster;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const BLOCK: usize = 64 << 10;
/// Prefixes that are stored and fetched, over and over.
const PREFIXES: u64 = 160;
/// Blocks of each.
const DEPTH: usize = 5;
const WRITERS: u64 = 3;

/// Kills, unless `KVHIVE_KILLS` says how many.
const KILLS: u64 = 6;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// The next of a sequence that a seed begins.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn prefix(blocks: &NamespaceClient, name: u64) -> Prefix {
    let hashes: Vec<[u8; 16]> =
        (0..DEPTH as u128).map(|at| (u128::from(name) << 64 | at).to_le_bytes()).collect();
    blocks.prefix_of_engine_hashes(&hashes)
}

/// Bytes that say which block of which prefix they are, to the last.
fn content(name: u64, at: usize) -> Vec<u8> {
    let mut word = name.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (at as u64) << 56;
    let mut block = vec![0; BLOCK];
    for piece in block.chunks_mut(8) {
        next(&mut word);
        piece.copy_from_slice(&word.to_le_bytes());
    }
    block
}

/// Stores one prefix; says whether all of it was acknowledged.
async fn store(blocks: &NamespaceClient, name: u64) -> bool {
    let memory: Vec<Vec<u8>> = (0..DEPTH).map(|at| content(name, at)).collect();
    let memory: Vec<&[u8]> = memory.iter().map(|block| &block[..]).collect();
    let options = StoreOptions { ack: Some(Ack::Primary), ..StoreOptions::default() };
    let report = blocks.store(&prefix(blocks, name), 0..DEPTH, &memory, options).await;
    let report = report.expect("the arguments fit");
    report.outcomes.iter().all(|one| matches!(one, StoreOutcome::Acknowledged { .. }))
}

/// Fetches one prefix, compares every byte that comes, and returns how many blocks came.
async fn fetch(blocks: &NamespaceClient, name: u64) -> u64 {
    let mut memory = vec![vec![0u8; BLOCK]; DEPTH];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let report = blocks.fetch_into(&prefix(blocks, name), 0..DEPTH, &mut targets).await;
    let report = report.expect("the arguments fit");
    let mut came = 0;
    for (at, outcome) in report.outcomes.iter().enumerate() {
        if matches!(outcome, FetchOutcome::Loaded(_)) {
            assert!(memory[at] == content(name, at), "block {at} of prefix {name} has wrong bytes");
            came += 1;
        }
    }
    came
}

/// Returns a figure of a node's metrics, summed over its labels; none when the node does not answer.
fn figure(metrics: &str, name: &str) -> Option<u64> {
    let page =
        ureq::get(format!("http://{metrics}/metrics")).call().ok()?.body_mut().read_to_string().ok()?;
    let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
    let values = page.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Some(values.sum::<f64>() as u64)
}

/// Stores and fetches at random until it is told to stop.
async fn load(blocks: NamespaceClient, seed: u64, stop: Arc<AtomicBool>, stores: Arc<AtomicU64>) {
    let mut state = seed;
    while !stop.load(Ordering::Relaxed) {
        let name = next(&mut state) % PREFIXES;
        if next(&mut state).is_multiple_of(2) {
            fetch(&blocks, name).await;
        } else {
            stores.fetch_add(u64::from(store(&blocks, name).await), Ordering::Relaxed);
        }
    }
}

#[test]
fn a_node_killed_at_any_moment_serves_no_damaged_or_foreign_block() {
    let kills = number("KVHIVE_KILLS", KILLS);
    let mut state = number("KVHIVE_KILL_SEED", 1);
    let shape = ["--coordinators", "1", "--nodes", "1", "--devices", "1", "--device-memory", "4MiB"];
    let disk = ["--host-memory", "2MiB", "--disk", "40MiB"];
    let cluster = Cluster::start(&[&shape[..], &disk[..]].concat());
    let client = cluster.client();
    let blocks = cluster.blocks(&client, BLOCK as u32);
    let metrics = cluster.status()["nodes"][0]["metrics_address"].as_str().expect("an address").to_owned();
    let mut running = None;
    let (mut found, mut stored, mut bad) = (0, 0, 0);
    for round in 0..kills {
        let (stop, stores) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| cluster.spawn(load(blocks.clone(), next(&mut state), stop.clone(), stores.clone())))
            .collect();
        // The first blocks must have come, then at any moment.
        cluster.until("stores go on", || (stores.load(Ordering::Relaxed) > 0).then_some(()));
        std::thread::sleep(Duration::from_millis(next(&mut state) % 400));
        bad += figure(&metrics, "kvhive_node_disk_bad_records_total").unwrap_or(0);
        match running.take() {
            None => cluster.signal("node-1", "KILL"),
            Some(respawned) => drop(respawned),
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            cluster.wait(writer).expect("no byte was wrong");
        }
        stored += stores.load(Ordering::Relaxed);
        running = Some(cluster.respawn("node-1"));
        // A page that answers, of a node that knows its disk.
        cluster.until("the disk is open again", || {
            (figure(&metrics, "kvhive_node_disk_open")? == 1).then_some(())
        });
        // What nobody else stores: acknowledged when the node serves again.
        let probe = PREFIXES + round;
        cluster.until("the node serves again", || cluster.wait(store(&blocks, probe)).then_some(()));
        let came = (0..PREFIXES).map(|name| cluster.wait(fetch(&blocks, name))).sum::<u64>();
        println!("kill {round}: {came} blocks came back");
        found += came;
    }
    assert!(stored > 0 && found > 0, "{stored} prefixes stored, {found} blocks found after kills");
    assert_eq!(client.stats().corrupt_blocks, 0, "none was even sent");
    println!(
        "{kills} kills, {stored} prefixes stored under load, {found} blocks came back after kills, none wrong, \
         {bad} records did not verify and were misses"
    );
}
