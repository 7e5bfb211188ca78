//! `kvhive simulate`: the rules of a node over a trace, without bytes or sockets.

use super::generated::Generated;
use crate::report;
use crate::trace::{self, Request};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use kvhive_cache::simulate::Simulation;
use kvhive_protocol::BlockKey;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Run the node's own rules over a trace, without bytes or sockets, and report the hit rate
#[derive(Args, Debug)]
pub(crate) struct Simulate {
    /// Trace of JSON lines (.gz and .zst are read as they are); without one the built-in workload is generated
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    generated: Generated,
    /// Stop after this many requests of the trace [default: all of a file, 2000 of the built-in workload]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Which blocks leave first
    #[arg(long, value_enum, default_value_t = Strategy::Lru)]
    strategy: Strategy,
    /// Blocks that fit, all devices and tiers together
    #[arg(long, value_name = "N")]
    capacity_blocks: u32,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a shard keeps.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strategy {
    /// Least recently used first, leaves before their parents
    Lru,
}

/// What a simulation came to; stable.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    strategy: Strategy,
    capacity_blocks: u32,
    requests: u64,
    blocks: u64,
    hits: u64,
    block_hit_rate: f64,
    tokens_saved_ratio: f64,
    seconds: f64,
}

impl Simulate {
    /// Runs the simulation and prints its report.
    ///
    /// # Errors
    /// When the trace cannot be read.
    pub(crate) fn run(self) -> Result<()> {
        let report = match &self.trace {
            None => self.simulate(self.generated.generate(self.requests).into_iter().map(Ok)),
            Some(path) => self.simulate(trace::open(path)?.take(self.requests.unwrap_or(usize::MAX))),
        }?;
        if self.json {
            return report::print_json(&report);
        }
        println!("strategy        {:?}, {} blocks", report.strategy, report.capacity_blocks);
        println!("requests        {}", report.requests);
        println!(
            "blocks          {} looked up, {} hit: {:.2} %",
            report.blocks,
            report.hits,
            100.0 * report.block_hit_rate
        );
        println!("prefill tokens  {:.2} % saved", 100.0 * report.tokens_saved_ratio);
        println!("took            {:.2} s", report.seconds);
        Ok(())
    }

    fn simulate(&self, requests: impl Iterator<Item = Result<Request, trace::TraceError>>) -> Result<Report> {
        let begun = Instant::now();
        let mut shard = Simulation::new(self.capacity_blocks);
        let (mut asked, mut tokens, mut saved) = (0u64, 0u64, 0u64);
        let mut keys = Vec::new();
        for request in requests {
            let request = request?;
            keys.clear();
            keys.extend(request.hash_ids.iter().map(|id| key(*id)));
            let hits = shard.request(&keys);
            asked += 1;
            tokens += request.tokens(self.generated.block_tokens);
            saved += request.tokens_in(hits, self.generated.block_tokens);
        }
        if asked == 0 {
            bail!("the trace has no requests");
        }
        let totals = shard.totals();
        Ok(Report {
            strategy: self.strategy,
            capacity_blocks: self.capacity_blocks,
            requests: totals.requests,
            blocks: totals.blocks,
            hits: totals.hits,
            block_hit_rate: totals.hits as f64 / totals.blocks.max(1) as f64,
            tokens_saved_ratio: saved as f64 / tokens.max(1) as f64,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

/// Spreads a trace's id over a key, as a hash would.
fn key(id: u64) -> BlockKey {
    let mut bytes = [0; 32];
    for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
        let word = (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(16 * at as u32) ^ (at as u64);
        piece.copy_from_slice(&word.to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}
