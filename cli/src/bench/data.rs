//! `kvhive bench data`: a real node behind real sockets, next to TCP alone.

use super::baseline::Baseline;
use super::private::{Private, one_device};
use super::{Row, cpu};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Result, bail};
use kvhive_client::{Client, ClientConfig, NamespaceClient, Prefix, StoreOptions};
use kvhive_config::LocalShape;
use kvhive_protocol::Layout;
use std::time::Instant;

/// Bytes moved by one run of a throughput case.
const RUN_BYTES: u64 = 1 << 30;
/// Bytes moved by one run of a small-block case.
const SMALL_RUN_BYTES: u64 = 256 << 20;
/// Blocks asked for by one call.
pub(super) const BATCH_BYTES: u64 = 16 << 20;
/// Device tier of the node that is measured.
const DEVICE_BYTES: u64 = 256 << 20;
/// Round trips of one latency run.
const ROUND_TRIPS: u32 = 5000;
/// Bytes that ask for a block, roughly: what a 4 KiB fetch's request takes on the wire.
const ASK_BYTES: u32 = 160;

pub(super) fn run(runs: u32, tls: bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, bytes, total) in [("1MiB", 1u64 << 20, RUN_BYTES), ("64KiB", 64 << 10, SMALL_RUN_BYTES)] {
        let mut bench = Throughput::start(bytes, tls)?;
        let (mut fetch, mut store) = (Figures::default(), Figures::default());
        bench.fetch(total / 4, Way::Sockets)?;
        for blast in Blast::BOTH {
            bench.blast(total / 4, true, blast)?;
        }
        for _ in 0..runs {
            fetch.ours.push(bench.fetch(total, Way::Sockets)?);
            store.ours.push(bench.store(total)?);
            for (at, blast) in Blast::BOTH.into_iter().enumerate() {
                fetch.baselines[at].push(bench.blast(total, true, blast)?);
                store.baselines[at].push(bench.blast(total, false, blast)?);
            }
        }
        for (figures, case) in [(&fetch, "fetch"), (&store, "store")] {
            rows.extend(figures.rows(&format!("{case}-{name}"), "GB/s", |run| run.0));
        }
        if name == "1MiB" {
            for (figures, case) in [(&fetch, "fetch"), (&store, "store")] {
                rows.extend(figures.rows(&format!("cpu-per-gb-{case}-{name}"), "CPU s/GB", |run| run.1));
            }
            rows.extend(looks(&mut bench, runs, total)?);
        }
    }
    rows.push(latency(runs, tls)?);
    Ok(rows)
}

/// Fetches out of the node's memory, against the same over sockets.
fn looks(bench: &mut Throughput, runs: u32, total: u64) -> Result<Vec<Row>> {
    bench.fetch(total / 4, Way::Memory)?;
    let (mut ours, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(bench.fetch(total, Way::Memory)?);
        baseline.push(bench.fetch(total, Way::Sockets)?);
    }
    let row = |case, unit, of: fn(&Run) -> f64| {
        let figures = |runs: &[Run]| runs.iter().map(of).collect::<Vec<_>>();
        Row::of_runs(case, unit, &figures(&ours), &figures(&baseline), "the same fetch over TCP")
    };
    Ok(vec![
        row("shm-fetch-1MiB", "GB/s", |run| run.0),
        row("cpu-per-gb-shm-fetch-1MiB", "CPU s/GB", |run| run.1),
    ])
}

/// By which way blocks come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Over a connection, as from another host.
    Sockets,
    /// Out of the node's memory.
    Memory,
}

/// One run: GB/s, and CPU seconds a GB of both ends.
pub(super) type Run = (f64, f64);

/// The two readings of "what TCP itself does".
#[derive(Clone, Copy)]
enum Blast {
    /// From and to as much memory as ours: what stays in a cache is not moved at all.
    SameMemory,
    /// Out of and into one piece again and again, as iperf does: the least that the sockets cost.
    OnePiece,
}

impl Blast {
    const BOTH: [Blast; 2] = [Blast::SameMemory, Blast::OnePiece];

    fn name(self) -> &'static str {
        match self {
            Blast::SameMemory => "raw TCP blast over the same memory",
            Blast::OnePiece => "raw TCP blast of one cached piece",
        }
    }
}

#[derive(Default)]
struct Figures {
    ours: Vec<Run>,
    baselines: [Vec<Run>; 2],
}

impl Figures {
    /// Makes a row against each blast.
    fn rows(&self, case: &str, unit: &'static str, of: impl Fn(&Run) -> f64) -> Vec<Row> {
        let figures = |runs: &[Run]| runs.iter().map(&of).collect::<Vec<_>>();
        let ours = figures(&self.ours);
        let against = Blast::BOTH.iter().zip(&self.baselines);
        against.map(|(blast, runs)| Row::of_runs(case, unit, &ours, &figures(runs), blast.name())).collect()
    }
}

/// One stream of blocks of one size.
pub(super) struct Throughput {
    runtime: tokio::runtime::Runtime,
    private: Private,
    baseline: Baseline,
    blocks: NamespaceClient,
    looking: Client,
    looked_at: NamespaceClient,
    block_bytes: u64,
    memory: Vec<Vec<u8>>,
    fetched: Prefix,
    stored: u64,
}

impl Throughput {
    pub(super) fn start(block_bytes: u64, tls: bool) -> Result<Throughput> {
        let private = Private::start(LocalShape { tls, ..one_device(DEVICE_BYTES, block_bytes) })?;
        let runtime = commands::runtime()?;
        let client = runtime.block_on(private.client(|config| config.connections_per_member = 1))?;
        let layout = Layout::opaque(block_bytes as u32, 16);
        let blocks = client.namespace("default", "bench", layout, 0)?;
        let looking = runtime.block_on(private.client(|config| {
            config.connections_per_member = 1;
            config.shared_memory = true;
        }))?;
        let looked_at = looking.namespace("default", "bench", layout, 0)?;
        let batch = (BATCH_BYTES / block_bytes) as usize;
        let memory = (0..batch).map(|at| vec![at as u8; block_bytes as usize]).collect();
        let hashes: Vec<[u8; 8]> = (0..batch as u64).map(u64::to_le_bytes).collect();
        let fetched = blocks.prefix_of_engine_hashes(&hashes);
        let mut bench = Throughput {
            runtime,
            private,
            baseline: Baseline::start()?,
            blocks,
            looking,
            looked_at,
            block_bytes,
            memory,
            fetched,
            stored: 0,
        };
        let first = bench.fetched.clone();
        bench.store_batch(&first)?;
        Ok(bench)
    }

    /// Runs `work` on `bytes` bytes and returns its speed and cost, both ends' processes counted.
    fn measure(
        &mut self,
        bytes: u64,
        server: u32,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Run> {
        let pids = [std::process::id(), server];
        let (cpu_before, begun) = (cpu::of_processes(&pids)?, Instant::now());
        work(self)?;
        let (took, cpu) = (begun.elapsed(), cpu::of_processes(&pids)? - cpu_before);
        let gigabytes = bytes as f64 / 1e9;
        Ok((gigabytes / took.as_secs_f64(), cpu.as_secs_f64() / gigabytes))
    }

    pub(super) fn fetch(&mut self, bytes: u64, way: Way) -> Result<Run> {
        let server = self.private.node_pids()[0];
        let looked_at = self.looking.stats().bytes_looked_at;
        let run = self.measure(bytes, server, |bench| {
            let asked = if way == Way::Memory { &bench.looked_at } else { &bench.blocks };
            let blocks = bench.fetched.len();
            for _ in 0..bytes / BATCH_BYTES {
                let mut targets: Vec<&mut [u8]> =
                    bench.memory.iter_mut().map(|block| &mut block[..]).collect();
                let report =
                    bench.runtime.block_on(asked.fetch_into(&bench.fetched, 0..blocks, &mut targets))?;
                if report.delivered() != blocks {
                    bail!("{} of {blocks} blocks were fetched", report.delivered());
                }
            }
            Ok(())
        })?;
        let looked_at = self.looking.stats().bytes_looked_at - looked_at;
        if way == Way::Memory && looked_at != bytes / BATCH_BYTES * BATCH_BYTES {
            bail!("{looked_at} of {bytes} bytes came out of the node's memory: {:?}", self.looking.stats());
        }
        Ok(run)
    }

    pub(super) fn store(&mut self, bytes: u64) -> Result<Run> {
        let server = self.private.node_pids()[0];
        let run = self.measure(bytes, server, |bench| {
            for _ in 0..bytes / BATCH_BYTES {
                bench.stored += 1;
                let hashes: Vec<[u8; 16]> = (0..bench.memory.len() as u128)
                    .map(|at| (u128::from(bench.stored) << 64 | at).to_le_bytes())
                    .collect();
                let prefix = bench.blocks.prefix_of_engine_hashes(&hashes);
                bench.store_batch(&prefix)?;
            }
            Ok(())
        })?;
        self.restore()?;
        Ok(run)
    }

    /// Stores again what stores have pushed out and is fetched next.
    pub(super) fn restore(&mut self) -> Result<()> {
        let fetched = self.fetched.clone();
        self.store_batch(&fetched)
    }

    /// Returns how another client reaches the same cluster.
    pub(super) fn client_config(&self) -> Result<ClientConfig> {
        self.private.client_config()
    }

    fn store_batch(&mut self, prefix: &Prefix) -> Result<()> {
        let blocks: Vec<&[u8]> = self.memory.iter().map(|block| &block[..]).collect();
        let report = self.runtime.block_on(self.blocks.store(
            prefix,
            0..blocks.len(),
            &blocks,
            StoreOptions::default(),
        ))?;
        if report.acknowledged() != blocks.len() {
            bail!("{} of {} blocks were stored: {:?}", report.acknowledged(), blocks.len(), report.outcomes);
        }
        Ok(())
    }

    fn blast(&mut self, bytes: u64, receive: bool, blast: Blast) -> Result<Run> {
        let (server, block) = (self.baseline.pid(), self.block_bytes as usize);
        let (near, far) = match blast {
            Blast::SameMemory => (BATCH_BYTES as usize, DEVICE_BYTES as usize),
            Blast::OnePiece => (block, block),
        };
        self.measure(bytes, server, |bench| {
            let count = bytes / block as u64;
            if receive {
                bench.baseline.blast(count, block, near)
            } else {
                bench.baseline.sink(count, block, near, far)
            }
        })
    }
}

fn latency(runs: u32, tls: bool) -> Result<Row> {
    const BYTES: usize = 4096;
    let private = Private::start(LocalShape { tls, ..one_device(64 << 20, BYTES as u64) })?;
    // As a serving process would that awaits one block: no other thread between it and the socket.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(private.client(|config| config.connections_per_member = 1))?;
    let blocks = client.namespace("default", "bench", Layout::opaque(BYTES as u32, 16), 0)?;
    let prefix = blocks.prefix_of_engine_hashes(&[[7u8; 8]]);
    let mut memory = vec![7u8; BYTES];
    let stored = runtime.block_on(blocks.store(&prefix, 0..1, &[&memory], StoreOptions::default()))?;
    if stored.acknowledged() != 1 {
        bail!("the block was not stored: {:?}", stored.outcomes);
    }
    let mut baseline = Baseline::start()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut calls = Latencies::new();
    for _ in 0..runs {
        let mut one = Latencies::new();
        for _ in 0..ROUND_TRIPS {
            let begun = Instant::now();
            let report = runtime.block_on(blocks.fetch_into(&prefix, 0..1, &mut [&mut memory[..]]))?;
            one.record(begun.elapsed());
            if report.delivered() != 1 {
                bail!("the block was not fetched");
            }
        }
        let mut raw = Latencies::new();
        baseline.ping(ROUND_TRIPS, ASK_BYTES, BYTES, |took| raw.record(took))?;
        ours.push(one.quantile(0.5) as f64 / 1e3);
        theirs.push(raw.quantile(0.5) as f64 / 1e3);
        calls.merge(&one);
    }
    let row = Row::of_runs("fetch-4KiB-latency", "µs p50", &ours, &theirs, "raw TCP ping-pong");
    Ok(row.with_calls(calls.quantile(0.5) as f64 / 1e3, calls.quantile(0.99) as f64 / 1e3))
}
