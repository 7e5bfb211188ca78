//! `kvhive bench memory`: what a node's memory comes to after a million stores into a cache ten times too small, next to
//! what its configuration says.

use super::Row;
use super::private::{Private, one_device};
use crate::commands;
use anyhow::{Context, Result, bail};
use kvhive_client::StoreOptions;
use kvhive_protocol::Layout;

const BLOCK_BYTES: u64 = 16 << 10;
const FRAMES: u64 = 100_000;
const STORES: u64 = 1_000_000;
const BATCH: usize = 500;

pub(super) fn run() -> Result<Vec<Row>> {
    let private = Private::start(one_device(FRAMES * BLOCK_BYTES, BLOCK_BYTES))?;
    let runtime = commands::runtime()?;
    let client = runtime.block_on(private.client(|_| {}))?;
    let blocks = client.namespace("default", "bench", Layout::opaque(BLOCK_BYTES as u32, 16), 0)?;
    let memory = vec![5u8; BLOCK_BYTES as usize];
    let sources = vec![&memory[..]; BATCH];
    for round in 0..STORES / BATCH as u64 {
        let hashes: Vec<[u8; 16]> =
            (0..BATCH as u128).map(|at| (u128::from(round) << 64 | at).to_le_bytes()).collect();
        let prefix = blocks.prefix_of_engine_hashes(&hashes);
        let report = runtime.block_on(blocks.store(&prefix, 0..BATCH, &sources, StoreOptions::default()))?;
        if report.acknowledged() != BATCH {
            bail!("round {round}: {} of {BATCH} blocks were stored", report.acknowledged());
        }
    }
    let resident = resident_bytes(private.node_pids()[0])?;
    let configured = configured_bytes(&client)?;
    Ok(vec![Row::of_runs(
        "node-resident-after-1M-stores",
        "bytes",
        &[resident],
        &[configured],
        "arenas, index and buffers as configured",
    )])
}

pub(super) fn resident_bytes(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("the kernel does not say how much memory the node has")? * 1024.0)
}

pub(super) fn configured_bytes(client: &kvhive_client::Client) -> Result<f64> {
    figure(client, "kvhive_node_memory_configured_bytes")
}

/// Asks the node itself, as Prometheus would.
pub(super) fn figure(client: &kvhive_client::Client, name: &str) -> Result<f64> {
    let map = client.map();
    let address = &map.members.values().next().context("there is one node")?.metrics_address;
    let text = ureq::get(format!("http://{address}/metrics")).call()?.body_mut().read_to_string()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value.with_context(|| format!("the node does not say {name}"))
}
