//! How evenly eight devices are read by many clients that ask by Zipf's law, before work is spread and after: bytes that each has given
//! out. One replica of each slot, and two.

use super::private::{Private, one_device};
use super::{Bar, Row};
use crate::admin::{Admin, Target};
use crate::commands;
use anyhow::{Context, Result, bail};
use kvhive_client::{Client, NamespaceClient, Prefix, StoreOptions};
use kvhive_config::LocalShape;
use kvhive_protocol::data::Ack;
use kvhive_protocol::{ClusterMap, Layout};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const NODES: u32 = 8;
const PREFIXES: usize = 1000;
/// Zipf's.
const EXPONENT: f64 = 1.1;
const BLOCK_BYTES: u64 = 16 << 10;
/// Blocks of each prefix: one segment.
const BLOCKS: usize = 8;
/// Each chooses for itself among the replicas of a hot slot: of a few, many would choose the same.
const CLIENTS: usize = 128;
/// Fetches of all clients together, a second: what two cores do with time to spare.
const FETCHES_A_SECOND: f64 = 800.0;
/// Until devices report what clients ask now rather than before.
const FOLLOWS: Duration = Duration::from_secs(20);
/// How long is counted.
const COUNTED: Duration = Duration::from_secs(15);
/// Decisions until nothing is left to be done; one changes 64 slots at most.
const DECISIONS: usize = 6;
/// How long slots may take to be where they belong.
const LIMIT: Duration = Duration::from_secs(120);
/// The busiest device, by the mean.
const EVEN: Bar = Bar::OursAtMost(1.25);

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let runtime = commands::runtime()?;
    let mut rows = Vec::new();
    for replicas in [1, 2] {
        let (mut after, mut before) = (Vec::new(), Vec::new());
        for run in 0..runs {
            let (uneven, even) = once(&runtime, replicas, u64::from(run))?;
            before.push(uneven);
            after.push(even);
        }
        let row = Row::of_runs(
            &format!("busiest-replicas-{replicas}"),
            "busiest / mean bytes",
            &after,
            &before,
            "the same before `kvhive balance`",
        );
        rows.push(row.with_bar(EVEN));
    }
    Ok(rows)
}

/// Returns what the busiest device is read by the mean, before and after, on a cluster of its own.
fn once(runtime: &Runtime, replicas: u32, seed: u64) -> Result<(f64, f64)> {
    let all = PREFIXES as u64 * BLOCKS as u64 * BLOCK_BYTES;
    // A device has more than its share, and what it is given besides.
    let private = Private::start(LocalShape { nodes: NODES, replicas, ..one_device(all, BLOCK_BYTES) })?;
    let client = runtime.block_on(private.client(|_| {}))?;
    let load = Arc::new(runtime.block_on(Load::of(&private, seed))?);
    let mut readers = JoinSet::new();
    {
        let _inside = runtime.enter();
        for number in 0..CLIENTS {
            readers.spawn(load.clone().read(number, seed));
        }
    }
    let target = Target { admin: None, token_file: None, ca: None, dir: private.folder().to_owned() };
    let admin = target.resolve()?;
    let mut count = || -> Result<f64> {
        std::thread::sleep(FOLLOWS);
        let skew = skew(&private)?;
        // They read until told to end: whoever has ended could not.
        match readers.try_join_next() {
            Some(Ok(Err(error))) => Err(error),
            Some(ended) => bail!("a reader ended: {ended:?}"),
            None => Ok(skew),
        }
    };
    let before = count()?;
    for decision in 0.. {
        if decision == DECISIONS || !balance(&admin)? {
            break;
        }
        runtime.block_on(settled(&client))?;
        std::thread::sleep(FOLLOWS);
    }
    Ok((before, count()?))
}

/// Has work spread; says whether that took a change.
fn balance(admin: &Admin) -> Result<bool> {
    let report: Value = admin.post("/v1/balance", &json!({"dry_run": false}))?;
    tracing::info!(
        before = %report["busiest_to_mean"],
        after = %report["busiest_to_mean_after"],
        because = %report["because"],
        changes = report["changes"].as_array().map_or(0, Vec::len),
        "balance"
    );
    report["applied"].as_bool().context("it says whether it was applied")
}

/// Waits until slots that were given another place are there.
async fn settled(client: &Client) -> Result<()> {
    let begun = Instant::now();
    let is_there = |map: &ClusterMap| {
        map.filling.is_empty() && map.balanced.iter().all(|(slot, set)| map.replicas(*slot) == set)
    };
    while !is_there(&*client.refresh().await?) {
        if begun.elapsed() > LIMIT {
            bail!("slots are not where they belong after {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Returns what the busiest node has given out for a while, by the mean of all.
fn skew(private: &Private) -> Result<f64> {
    let given = || -> Result<Vec<f64>> {
        let of = |name: &str| private.summed("kvhive_node_fetched_bytes_total", |node| node == name);
        private.config().nodes.iter().map(|node| of(&node.id)).collect()
    };
    let before = given()?;
    std::thread::sleep(COUNTED);
    let read: Vec<f64> = given()?.iter().zip(before).map(|(now, before)| now - before).collect();
    tracing::info!(?read, "bytes that nodes gave out");
    Ok(busiest(&read))
}

/// Returns the greatest of some figures by their mean.
fn busiest(figures: &[f64]) -> f64 {
    let sum: f64 = figures.iter().sum();
    figures.iter().copied().fold(0.0, f64::max) * figures.len() as f64 / sum
}

/// Clients, what is stored, and how often what is asked for.
struct Load {
    blocks: Vec<NamespaceClient>,
    prefixes: Vec<Prefix>,
    /// How often a prefix up to it is asked for, from 0 to 1.
    up_to: Vec<f64>,
}

impl Load {
    async fn of(private: &Private, seed: u64) -> Result<Load> {
        let mut blocks = Vec::new();
        for _ in 0..CLIENTS {
            let client = private.client(|config| config.connections_per_member = 1).await?;
            blocks.push(client.namespace("default", "bench", Layout::opaque(BLOCK_BYTES as u32, 16), 0)?);
        }
        let first = blocks.first().context("there are clients")?;
        let prefix = |number: usize| {
            let head = seed << 32 | number as u64;
            let hashes: Vec<[u8; 16]> =
                (0..BLOCKS as u128).map(|at| (u128::from(head) << 64 | at).to_le_bytes()).collect();
            first.prefix_of_engine_hashes(&hashes)
        };
        let prefixes: Vec<Prefix> = (0..PREFIXES).map(prefix).collect();
        let memory = vec![5u8; BLOCK_BYTES as usize];
        let pieces = [&memory[..]; BLOCKS];
        for prefix in &prefixes {
            let options = StoreOptions { ack: Some(Ack::All), ..StoreOptions::default() };
            let report = first.store(prefix, 0..BLOCKS, &pieces, options).await?;
            if report.acknowledged() != BLOCKS {
                bail!("{} of {BLOCKS} blocks were stored: {:?}", report.acknowledged(), report.outcomes);
            }
        }
        Ok(Load { blocks, prefixes, up_to: zipf(PREFIXES, EXPONENT) })
    }

    /// Fetches one prefix after the other for one client, as often as its part of all fetches is.
    async fn read(self: Arc<Self>, number: usize, seed: u64) -> Result<()> {
        let mut draws = SmallRng::seed_from_u64(seed << 32 | number as u64);
        let mut memory = vec![vec![0; BLOCK_BYTES as usize]; BLOCKS];
        let pause = 2.0 * self.blocks.len() as f64 / FETCHES_A_SECOND;
        loop {
            tokio::time::sleep(Duration::from_secs_f64(draws.random_range(0.0..pause))).await;
            let draw: f64 = draws.random_range(0.0..1.0);
            let at = self.up_to.partition_point(|up_to| *up_to < draw).min(self.prefixes.len() - 1);
            let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
            let report = self.blocks[number].fetch_into(&self.prefixes[at], 0..BLOCKS, &mut targets).await?;
            if report.delivered() != BLOCKS {
                bail!("{} of {BLOCKS} blocks were fetched: {:?}", report.delivered(), report.outcomes);
            }
        }
    }
}

/// Returns how often one up to each of so many is asked for by Zipf's law, from 0 to 1.
fn zipf(count: usize, exponent: f64) -> Vec<f64> {
    let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-exponent)).collect();
    let sum: f64 = weights.iter().sum();
    let mut up_to = 0.0;
    let add = |weight: f64| {
        up_to += weight / sum;
        up_to
    };
    weights.into_iter().map(add).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_asked_for_as_often_as_zipf_says() {
        let up_to = zipf(1000, 1.1);
        // 1 / (1 + 2^-1.1 + 3^-1.1 + …) of the first thousand.
        assert!((up_to[0] - 0.1794).abs() < 0.001, "{}", up_to[0]);
        assert!((up_to[1] - up_to[0] - up_to[0] * 2f64.powf(-1.1)).abs() < 1e-12);
        assert!((up_to[999] - 1.0).abs() < 1e-9 && up_to.is_sorted());
    }

    #[test]
    fn the_busiest_is_told_by_the_mean() {
        assert_eq!(busiest(&[1.0, 1.0, 4.0, 2.0]), 2.0);
    }
}
