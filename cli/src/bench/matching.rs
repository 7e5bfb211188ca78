//! `kvhive bench match`: prefix matches through the network, and within one shard (`resident`).

use super::baseline::Baseline;
use super::private::{Private, one_device};
use super::{Row, resident};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Result, bail};
use kvhive_client::StoreOptions;
use kvhive_protocol::Layout;
use std::time::{Duration, Instant};

/// Keys of one match through the network.
const NETWORK_KEYS: usize = 256;
/// Matches of one run.
const MATCHES: u32 = 5000;

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let mut rows = vec![network(runs)?];
    rows.extend(resident::rows(runs)?);
    Ok(rows)
}

fn network(runs: u32) -> Result<Row> {
    const BYTES: usize = 4096;
    let private = Private::start(one_device(64 << 20, BYTES as u64))?;
    let runtime = commands::runtime()?;
    let client = runtime.block_on(private.client(|config| config.connections_per_member = 1))?;
    let blocks = client.namespace("default", "bench", Layout::opaque(BYTES as u32, 16), 0)?;
    let hashes: Vec<[u8; 8]> = (0..NETWORK_KEYS as u64).map(u64::to_le_bytes).collect();
    let prefix = blocks.prefix_of_engine_hashes(&hashes);
    let memory = vec![0u8; BYTES];
    let sources = vec![&memory[..]; NETWORK_KEYS];
    let stored =
        runtime.block_on(blocks.store(&prefix, 0..NETWORK_KEYS, &sources, StoreOptions::default()))?;
    if stored.acknowledged() != NETWORK_KEYS {
        bail!("{} of {NETWORK_KEYS} blocks were stored", stored.acknowledged());
    }
    let mut baseline = Baseline::start()?;
    let (mut ours, mut theirs, mut calls) = (Vec::new(), Vec::new(), Latencies::new());
    let rate = |took: Duration| f64::from(MATCHES) * NETWORK_KEYS as f64 / took.as_secs_f64();
    for _ in 0..runs {
        let begun = Instant::now();
        let one = runtime.block_on(async {
            let mut one = Latencies::new();
            for _ in 0..MATCHES {
                let begun = Instant::now();
                let found = blocks.match_prefix(&prefix).await?;
                one.record(begun.elapsed());
                if found.covered != NETWORK_KEYS {
                    bail!("{} of {NETWORK_KEYS} blocks are covered", found.covered);
                }
            }
            Ok(one)
        })?;
        ours.push(rate(begun.elapsed()));
        calls.merge(&one);
        let begun = Instant::now();
        // The same bytes each way, and nothing done with them.
        baseline.ping(MATCHES, (NETWORK_KEYS * 32) as u32, 256, |_| {})?;
        theirs.push(rate(begun.elapsed()));
    }
    let row = Row::of_runs("network-256", "keys/s", &ours, &theirs, "raw TCP echo of as many bytes");
    let per_second = |nanos: u64| NETWORK_KEYS as f64 * 1e9 / nanos.max(1) as f64;
    Ok(row.with_calls(per_second(calls.quantile(0.5)), per_second(calls.quantile(0.99))))
}
