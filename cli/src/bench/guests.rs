//! What guests spare replicas: ranks of one group that all read the same blocks near one node, which is a replica of a third of them, against
//! the same ranks that each ask the replicas.

use super::Row;
use super::private::{Private, one_device};
use super::stored::{BLOCK_BYTES, BLOCKS, Stored};
use crate::commands;
use crate::report::Latencies;
use anyhow::Result;
use kvhive_client::Client;
use kvhive_config::LocalShape;
use std::time::Instant;
use tokio::task::JoinSet;

const PREFIXES: u64 = 64;
const RANKS: usize = 8;
const NODES: u32 = 3;
/// The node that the ranks are near.
const NEAR: &str = "node-3";

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let runtime = commands::runtime()?;
    let set = PREFIXES * BLOCKS as u64 * BLOCK_BYTES;
    let private =
        Private::start_with(LocalShape { nodes: NODES, ..one_device(set * 2, BLOCK_BYTES) }, |_| Vec::new())?;
    let writer = runtime.block_on(private.client(|_| {}))?;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..RANKS {
        far.push(runtime.block_on(private.client(|_| {}))?);
        near.push(runtime.block_on(private.client(|config| config.near = Some(NEAR.to_owned())))?);
    }
    let (mut out, mut out_far) = (Vec::new(), Vec::new());
    let (mut rate, mut rate_far) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // Blocks of its own: none of them is anybody's guest yet.
        let name = format!("bench-{run}");
        runtime.block_on(Stored::named(&writer, &name, PREFIXES)?.store())?;
        for (ranks, out, rate) in [(&far, &mut out_far, &mut rate_far), (&near, &mut out, &mut rate)] {
            let before = sent(&private)?;
            let begun = Instant::now();
            runtime.block_on(all_read(ranks, &name))?;
            let bytes = set * RANKS as u64;
            rate.push(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9);
            out.push((sent(&private)? - before) / 1e6);
        }
    }
    Ok(vec![
        Row::of_runs("guests-bytes-out", "MB out of other nodes", &out, &out_far, "each asks the replicas"),
        Row::of_runs("guests-fetch", "GB/s", &rate, &rate_far, "each asks the replicas"),
    ])
}

/// Has all ranks read all prefixes at once, each in the same order.
async fn all_read(ranks: &[Client], name: &str) -> Result<()> {
    let mut reads = JoinSet::new();
    for rank in ranks {
        let mut stored = Stored::named(rank, name, PREFIXES)?;
        reads.spawn(async move {
            let mut latencies = Latencies::new();
            for at in 0..PREFIXES as usize {
                stored.fetch(at, &mut latencies).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(read) = reads.join_next().await {
        read??;
    }
    Ok(())
}

/// Returns the bytes that the nodes which no rank is near have been asked for so far.
fn sent(private: &Private) -> Result<f64> {
    private.summed("kvhive_node_fetched_bytes_total", |node| node != NEAR)
}
