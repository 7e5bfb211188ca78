//! What more requests than a node can serve do to those that it serves: fetches at a fixed rate, whoever waits for the last ones (an open
//! loop), at four fifths and at three times of what a closed loop gets, and whether all is well again afterwards without anybody's help.
//! The same by many clients, none of which knows how many there are; and what a tenant that asks for little gets while another one floods.

use super::private::{Private, one_device};
use super::{Bar, Row, quantile};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Context, Result, bail};
use kvhive_client::{NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::Layout;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const PREFIXES: usize = 64;
/// One fetch is so much work that those that are told no cost little beside it.
const BLOCK_BYTES: u64 = 256 << 10;
const BLOCKS: usize = 8;
/// Each with connections of its own.
const CLIENTS: usize = 4;
const MANY_CLIENTS: usize = 32;
/// What a read may take: about what computing it anew would.
const DEADLINE: Duration = Duration::from_millis(100);
/// Fetches of each client that are under way when the peak is looked for.
const CLOSED: usize = 4;
/// What the tenant asks for that does not flood, of the peak.
const MODEST: f64 = 0.2;
/// What is asked at first does not count.
const RAMP: Duration = Duration::from_secs(1);
/// How long each stretch is.
const STRETCH: Duration = Duration::from_secs(4);
/// Within this all is well again.
const RECOVERY: Duration = Duration::from_secs(10);
const USUAL: f64 = 0.8;
const OVERLOAD: f64 = 3.0;
/// Of the peak, at three times of it.
const GOODPUT: Bar = Bar::AtLeast(0.9);
/// The 99th percentile of those that are served, of that at four fifths.
const TAIL: Bar = Bar::AtMost(2.0);
/// Of its deadline, until somebody hears that it is not.
const TOLD: Bar = Bar::AtMost(0.1);
/// Of what was served before, or is beside nobody else.
const LEFT: Bar = Bar::AtLeast(0.95);
/// Arrivals are due in steps of this.
const STEP: Duration = Duration::from_millis(1);

/// What came of the fetches of one stretch.
struct Outcome {
    /// Those that brought every block within the deadline.
    good: Latencies,
    /// Those that did not.
    refused: Latencies,
    goods: u64,
    took: Duration,
}

impl Outcome {
    fn new() -> Outcome {
        Outcome { good: Latencies::new(), refused: Latencies::new(), goods: 0, took: Duration::ZERO }
    }

    fn record(&mut self, brought: bool, took: Duration) {
        if brought && took <= DEADLINE {
            self.goods += 1;
            self.good.record(took);
        } else {
            self.refused.record(took);
        }
    }

    fn record_if(&mut self, (counts, (brought, took)): (bool, (bool, Duration))) {
        if counts {
            self.record(brought, took);
        }
    }

    /// Returns fetches a second.
    fn rate(&self) -> f64 {
        self.goods as f64 / self.took.as_secs_f64()
    }
}

/// Clients, what is stored, and memory to fetch it into.
struct Load {
    blocks: Vec<NamespaceClient>,
    prefixes: Vec<Prefix>,
    memory: Mutex<Vec<Vec<u8>>>,
}

impl Load {
    async fn of(private: &Private, tenant: &str, clients: usize) -> Result<Load> {
        let mut blocks = Vec::new();
        for _ in 0..clients {
            let client = private.client(|config| config.request_timeout = DEADLINE).await?;
            client.ensure_tenant(tenant, None).await?;
            blocks.push(client.namespace(tenant, "bench", Layout::opaque(BLOCK_BYTES as u32, 16), 0)?);
        }
        let first = blocks.first().context("there are clients")?;
        let hashes = |number: usize| (0..BLOCKS).map(move |at| ((number << 16 | at) as u128).to_le_bytes());
        let prefixes: Vec<Prefix> = (0..PREFIXES)
            .map(|number| first.prefix_of_engine_hashes(&hashes(number).collect::<Vec<_>>()))
            .collect();
        let memory = vec![5u8; BLOCK_BYTES as usize];
        let pieces = [&memory[..]; BLOCKS];
        // Not by those that measure: what is stored need not be in time.
        let patient = private.client(|_| {}).await?;
        let stores = patient.namespace(tenant, "bench", Layout::opaque(BLOCK_BYTES as u32, 16), 0)?;
        for prefix in &prefixes {
            let report = stores.store(prefix, 0..BLOCKS, &pieces, StoreOptions::default()).await?;
            if report.acknowledged() != BLOCKS {
                bail!("{} of {BLOCKS} blocks were stored: {:?}", report.acknowledged(), report.outcomes);
            }
        }
        Ok(Load { blocks, prefixes, memory: Mutex::default() })
    }

    /// Fetches one prefix; says whether all of it came, and how long that took.
    async fn fetch(&self, draw: usize) -> Result<(bool, Duration)> {
        let free = || self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = free().pop();
        let mut memory = memory.unwrap_or_else(|| vec![0; BLOCKS * BLOCK_BYTES as usize]);
        let mut targets: Vec<&mut [u8]> = memory.chunks_mut(BLOCK_BYTES as usize).collect();
        let clients = self.blocks.len();
        let (client, prefix) = (&self.blocks[draw % clients], &self.prefixes[draw / clients % PREFIXES]);
        let begun = Instant::now();
        let report = client.fetch_into(prefix, 0..BLOCKS, &mut targets).await?;
        let took = begun.elapsed();
        free().push(memory);
        Ok((report.delivered() == BLOCKS, took))
    }

    /// As many at a time as there are connections, each followed by the next.
    async fn closed(self: &Arc<Self>) -> Result<Outcome> {
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for seed in 0..CLOSED * self.blocks.len() {
            let load = self.clone();
            tasks.spawn(async move {
                let mut draws = SmallRng::seed_from_u64(seed as u64);
                let mut outcome = Outcome::new();
                while begun.elapsed() < STRETCH {
                    let (brought, took) =
                        load.fetch(draws.random_range(0..load.blocks.len() * PREFIXES)).await?;
                    outcome.record(brought, took);
                }
                anyhow::Ok(outcome)
            });
        }
        let mut all = Outcome::new();
        while let Some(outcome) = tasks.join_next().await {
            let outcome = outcome??;
            all.good.merge(&outcome.good);
            all.refused.merge(&outcome.refused);
            all.goods += outcome.goods;
        }
        all.took = begun.elapsed();
        Ok(all)
    }

    /// So many a second on average, whatever becomes of those before them (Poisson).
    async fn open(self: &Arc<Self>, rate: f64, stretch: Duration, seed: u64) -> Result<Outcome> {
        let end = RAMP + stretch;
        let mut draws = SmallRng::seed_from_u64(seed);
        let mut outcome = Outcome::new();
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        let mut due = 0.0;
        let mut steps = tokio::time::interval(STEP);
        while begun.elapsed() < end {
            steps.tick().await;
            while due <= begun.elapsed().as_secs_f64() {
                due -= draws.random_range(f64::MIN_POSITIVE..1.0).ln() / rate;
                let (load, draw) = (self.clone(), draws.random_range(0..self.blocks.len() * PREFIXES));
                let counts = begun.elapsed() >= RAMP;
                tasks.spawn(async move { anyhow::Ok((counts, load.fetch(draw).await?)) });
            }
            while let Some(done) = tasks.try_join_next() {
                outcome.record_if(done??);
            }
        }
        // What was asked in time counts, over the time in which it was asked.
        outcome.took = begun.elapsed() - RAMP;
        while let Some(done) = tasks.join_next().await {
            outcome.record_if(done??);
        }
        Ok(outcome)
    }
}

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let runtime = commands::runtime()?;
    let private = Private::start(one_device(PREFIXES as u64 * BLOCKS as u64 * BLOCK_BYTES * 4, BLOCK_BYTES))?;
    // Of the tenant that asks for little: its calls wait for nobody else's in this process.
    let own = commands::runtime()?;
    let load = Arc::new(runtime.block_on(Load::of(&private, "default", CLIENTS))?);
    let many = Arc::new(runtime.block_on(Load::of(&private, "default", MANY_CLIENTS))?);
    let modest = Arc::new(own.block_on(Load::of(&private, "modest", CLIENTS))?);
    let (mut figures, mut by_many, mut shares) = (Figures::default(), Figures::default(), Shares::default());
    for seed in 0..u64::from(runs) {
        figures.measure(&runtime, &load, 4 * seed)?;
        by_many.measure(&runtime, &many, 4 * seed)?;
        shares.measure((&runtime, &load), (&own, &modest), 4 * seed)?;
    }
    let mut rows = figures.rows("3x", true)?;
    rows.extend(by_many.rows("3x-by-many", false)?);
    rows.extend(shares.rows());
    Ok(rows)
}

/// What a tenant gets that asks for little, alone and while another one asks for three times what is served.
#[derive(Default)]
struct Shares {
    alone: Vec<f64>,
    beside: Vec<f64>,
    alone_p99: Vec<f64>,
    beside_p99: Vec<f64>,
}

impl Shares {
    fn measure(
        &mut self,
        (floods_on, flood): (&Runtime, &Arc<Load>),
        (asks_on, modest): (&Runtime, &Arc<Load>),
        seed: u64,
    ) -> Result<()> {
        let peak = floods_on.block_on(flood.closed())?.rate();
        let alone = asks_on.block_on(modest.open(MODEST * peak, STRETCH, seed))?;
        let flooding = flood.clone();
        let flooding =
            floods_on.spawn(async move { flooding.open(OVERLOAD * peak, STRETCH, seed + 1).await });
        let beside = asks_on.block_on(modest.open(MODEST * peak, STRETCH, seed))?;
        floods_on.block_on(flooding)??;
        self.alone.push(alone.rate());
        self.beside.push(beside.rate());
        self.alone_p99.push(p99(&alone.good));
        self.beside_p99.push(p99(&beside.good));
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let alone = "the same tenant alone";
        vec![
            Row::of_runs("modest-beside-flood", "fetches/s", &self.beside, &self.alone, alone).with_bar(LEFT),
            Row::of_runs("modest-p99-beside-flood", "ms p99", &self.beside_p99, &self.alone_p99, alone),
        ]
    }
}

/// Returns what 99 of 100 took at most, in milliseconds; no number where there were none.
fn p99(latencies: &Latencies) -> f64 {
    if latencies.is_empty() { f64::NAN } else { latencies.quantile(0.99) as f64 / 1e6 }
}

/// One figure a run.
#[derive(Default)]
struct Figures {
    peak: Vec<f64>,
    goodput: Vec<f64>,
    usual_p99: Vec<f64>,
    over_p99: Vec<f64>,
    refused_p99: Vec<f64>,
    before: Vec<f64>,
    after: Vec<f64>,
}

impl Figures {
    fn measure(&mut self, runtime: &Runtime, load: &Arc<Load>, seed: u64) -> Result<()> {
        let peak = runtime.block_on(load.closed())?;
        let usual = USUAL * peak.rate();
        let before = runtime.block_on(load.open(usual, STRETCH, seed))?;
        let over = runtime.block_on(load.open(OVERLOAD * peak.rate(), STRETCH, seed + 1))?;
        // At once: what is asked within a second of the overload's end is what does not count.
        let after = runtime.block_on(load.open(usual, RECOVERY - RAMP, seed + 2))?;
        self.peak.push(peak.rate());
        self.goodput.push(over.rate());
        self.usual_p99.push(p99(&before.good));
        self.over_p99.push(p99(&over.good));
        self.refused_p99.push(p99(&over.refused));
        self.before.push(before.rate());
        self.after.push(after.rate());
        Ok(())
    }

    /// Returns its rows; also that of how all is afterwards, if wanted.
    fn rows(&self, of: &str, and_after: bool) -> Result<Vec<Row>> {
        let deadline = vec![DEADLINE.as_secs_f64() * 1e3; self.peak.len()];
        let row = |what: &str, unit, these: &[f64], those: &[f64], than| {
            Row::of_runs(&format!("{what}-{of}"), unit, these, those, than)
        };
        let mut rows = vec![
            row("goodput-at", "fetches/s", &self.goodput, &self.peak, "the peak of a closed loop")
                .with_bar(GOODPUT),
            row("p99-at", "ms p99", &self.over_p99, &self.usual_p99, "the same at 0.8 of the peak")
                .with_bar(TAIL),
            row("told-no-at", "ms p99", &self.refused_p99, &deadline, "the deadline of a read")
                .with_bar(TOLD),
        ];
        if and_after {
            let before = "the same rate before";
            let row = Row::of_runs("goodput-after", "fetches/s", &self.after, &self.before, before);
            rows.push(row.with_bar(LEFT));
        }
        if quantile(&self.before, 0.5) == 0.0 {
            bail!("nothing was fetched within {DEADLINE:?}");
        }
        Ok(rows)
    }
}
