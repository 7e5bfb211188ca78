//! What a node that joins does to those who read meanwhile, and what is moved for it: fetches, one after the other, before it
//! comes and until its share of the blocks is there.

use super::private::{Private, one_device};
use super::stored::{BLOCK_BYTES, BLOCKS, Stored};
use super::{Bar, Row, quantile};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Result, bail};
use kvhive_client::Client;
use kvhive_config::LocalShape;
use kvhive_protocol::SLOTS;
use kvhive_protocol::map::ClusterMap;
use std::time::{Duration, Instant};

const PREFIXES: u64 = 512;
const NODES: u32 = 3;
/// Who leaves and comes again, empty.
const JOINS: &str = "node-3";
/// How long is read before it comes.
const BEFORE: Duration = Duration::from_secs(5);
/// How long each step may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Of the 99th percentile before it comes.
const TAIL: Bar = Bar::AtMost(2.0);
/// Of the least that must move.
const MOVED: Bar = Bar::AtMost(1.1);

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let runtime = commands::runtime()?;
    let mut private = Private::start_with(
        // Any one of them could hold everything.
        LocalShape {
            nodes: NODES,
            ..one_device(PREFIXES * BLOCKS as u64 * BLOCK_BYTES * 5 / 4, BLOCK_BYTES)
        },
        |_| vec![("KVHIVE_CLUSTER__REPAIR_AFTER".to_owned(), "1s".to_owned())],
    )?;
    let client = runtime.block_on(private.client(|_| {}))?;
    let mut stored = Stored::new(&client, PREFIXES)?;
    let (mut joining, mut before) = (Vec::new(), Vec::new());
    let (mut moved, mut least) = (Vec::new(), Vec::new());
    let mut calls = Latencies::new();
    for _ in 0..runs {
        private.cluster().kill(JOINS)?;
        runtime.block_on(until(&client, "the others to hold every slot", |map| !holds_any(map)))?;
        // What it held alone is gone.
        runtime.block_on(stored.store())?;
        let moved_before = moved_blocks(&private)?;
        let begun = Instant::now();
        let quiet = runtime.block_on(read(&mut stored, async |_| Ok(begun.elapsed() > BEFORE)))?;
        before.push(quiet.quantile(0.99) as f64 / 1e6);

        private.cluster().respawn(JOINS)?;
        let begun = Instant::now();
        let busy = runtime.block_on(read(&mut stored, async |_| {
            if begun.elapsed() > LIMIT {
                bail!("{JOINS} has not got its share after {} s", LIMIT.as_secs());
            }
            let map = client.refresh().await?;
            Ok(map.filling.is_empty() && share_of(&map) * f64::from(NODES) > 0.9)
        }))?;
        joining.push(busy.quantile(0.99) as f64 / 1e6);
        calls.merge(&busy);
        moved.push(moved_blocks(&private)? - moved_before);
        least.push((PREFIXES * BLOCKS as u64) as f64 / f64::from(NODES));
    }
    let reads =
        Row::of_runs("fetch-while-joining-p99", "ms p99", &joining, &before, "the same before it comes");
    Ok(vec![
        reads.with_calls(calls.quantile(0.5) as f64 / 1e6, quantile(&joining, 0.99)).with_bar(TAIL),
        Row::of_runs("blocks-moved", "blocks", &moved, &least, "its share of all blocks").with_bar(MOVED),
    ])
}

/// Fetches one prefix after the other until `ends` says so; it is asked ten times a second.
async fn read(stored: &mut Stored, mut ends: impl AsyncFnMut(usize) -> Result<bool>) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    let mut asked = Instant::now();
    for at in 0.. {
        stored.fetch(at, &mut latencies).await?;
        if asked.elapsed() > Duration::from_millis(100) {
            asked = Instant::now();
            if ends(at).await? {
                break;
            }
        }
    }
    Ok(latencies)
}

/// Returns which share of the slots the node that joins is the primary of.
fn share_of(map: &ClusterMap) -> f64 {
    let primaries = map.slots.iter().filter_map(|replicas| replicas.primary());
    let its = primaries.filter(|device| map.owner(*device).is_some_and(|owner| owner.name == JOINS));
    its.count() as f64 / f64::from(SLOTS)
}

/// Says whether the node that joins is a replica of any slot: one of its own, or a second one of a slot that is read much.
fn holds_any(map: &ClusterMap) -> bool {
    let devices = map.slots.iter().flat_map(|replicas| &replicas.0);
    devices.into_iter().any(|device| map.owner(*device).is_some_and(|owner| owner.name == JOINS))
}

async fn until(client: &Client, what: &str, is_so: impl Fn(&ClusterMap) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let map = client.refresh().await?;
        if map.filling.is_empty() && is_so(&map) {
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            bail!("waited for {} s for {what}", LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns how many blocks nodes have been given by others so far.
fn moved_blocks(private: &Private) -> Result<f64> {
    let running = private.running();
    private.summed("kvhive_node_moved_blocks_total", |node| running.iter().any(|one| one == node))
}
