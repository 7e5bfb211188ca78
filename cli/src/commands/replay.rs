//! `kvhive replay`: drive a live cluster with a trace as a serving fleet would: match the prefix, fetch what is covered,
//! store the rest. Blocks hold bytes that tell whose they are, so a wrong one shows.

use crate::report;
use crate::trace::{self, Request};
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvhive_client::{Client, NamespaceClient, Prefix, StoreOptions, StoreOutcome};
use kvhive_config::Bytes;
use kvhive_protocol::data::{About, Hint};
use kvhive_protocol::{BlockKey, Layout};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

mod tally;

use tally::{Report, Tally};

use super::connect::Connect;
use super::generated::Generated;
use super::prompt::{self, block_bytes};
use super::simulate::{share, sweep};

/// Requests in a row that nobody answered, after which a worker gives up.
const HOPELESS: u32 = 5;
/// Blocks fetched or stored by one call: bounds the memory of a worker.
const BLOCKS_PER_CALL: usize = 128;

/// Drive a live cluster with a trace and report hit rate, bytes and latencies
#[derive(Args, Debug)]
pub(crate) struct Replay {
    /// Trace of JSON lines (.gz and .zst are read as they are); without one the built-in workload is generated
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    generated: Generated,
    /// Stop after this many requests of the trace [default: all of a file, 2000 of the built-in workload]
    #[arg(long, value_name = "N")]
    requests: Option<usize>,
    /// Bytes of one block on the wire and in memory, at most a frame of the nodes
    #[arg(long, default_value = "64KiB")]
    block_size: Bytes,
    /// Requests under way at a time; 1 replays in exact order
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Tenant whose blocks these are; created if missing
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Model name: another one makes another namespace, so earlier replays don't count
    #[arg(long, default_value = "replay")]
    model: String,
    /// Tell the cluster after each request whether its session is over; this share of what it is told is true (0 to 1)
    #[arg(long, value_name = "P", value_parser = share)]
    hints: Option<f64>,
    /// Tokens a second that the engine prefills: what is quicker recomputed is not fetched, and no fetch takes longer than that
    #[arg(long, value_name = "TOKENS/S", value_parser = rate)]
    prefill_rate: Option<f64>,
    #[command(flatten)]
    connect: Connect,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Replay {
    /// Runs the replay and prints its report.
    ///
    /// # Errors
    /// When the cluster or the trace cannot be reached; single failed calls are counted in the report.
    pub(crate) async fn run(self) -> Result<()> {
        let requests = self.told(self.load()?)?;
        let client = self.connect.client().await?;
        let report = self.drive(&client, requests).await?;
        if self.json {
            report::print_json(&report)?;
        } else {
            report.print();
            if let Some(bits) = rounded_to(&client, &self.tenant) {
                println!(
                    "note: tenant {} stores numbers in {bits} bits; a replay's blocks are bytes without a layout, which no codec rounds",
                    self.tenant
                );
            }
        }
        if report.wrong_bytes > 0 {
            bail!("{} held wrong bytes", report::counted(report.wrong_bytes as u64, "block"));
        }
        if report.gave_up {
            bail!(
                "nobody answered {HOPELESS} requests in a row, so the replay ended after {} requests; `kvhive status` says who lives",
                report.requests
            );
        }
        Ok(())
    }

    fn load(&self) -> Result<Vec<Request>> {
        let requests = match &self.trace {
            None => self.generated.generate(self.requests),
            Some(path) => {
                trace::open(path)?.take(self.requests.unwrap_or(usize::MAX)).collect::<Result<_, _>>()?
            }
        };
        if requests.is_empty() {
            bail!("the trace has no requests");
        }
        Ok(requests)
    }

    /// Gives each request what is said of its session, if anything shall be.
    fn told(&self, requests: Vec<Request>) -> Result<Vec<(Request, Hint)>> {
        let Some(right) = self.hints else {
            return Ok(requests.into_iter().map(|request| (request, Hint::None)).collect());
        };
        let mut trace = sweep::collect(requests.iter().cloned().map(Ok), self.generated.block_tokens)?;
        trace.give_hints(right, self.generated.seed);
        let hints = (0..trace.requests()).map(|at| trace.request(at).0.hint).collect::<Vec<_>>();
        Ok(requests.into_iter().zip(hints).collect())
    }

    async fn drive(&self, client: &Client, requests: Vec<(Request, Hint)>) -> Result<Report> {
        let block_bytes = block_bytes(self.block_size)?;
        let block_tokens = self.generated.block_tokens;
        let layout = Layout::opaque(block_bytes, block_tokens);
        if client.map().tenant(&self.tenant).is_none() {
            client.create_tenant(&self.tenant).await?;
        }
        let namespace = client.namespace(&self.tenant, &self.model, layout, 0)?;
        let bar = progress(requests.len() as u64);
        let queue: Arc<Mutex<VecDeque<(Request, Hint)>>> = Arc::new(Mutex::new(requests.into()));
        let begun = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..self.concurrency {
            let (queue, namespace, bar) = (queue.clone(), namespace.clone(), bar.clone());
            let prefill_rate = self.prefill_rate;
            workers.spawn(async move {
                let mut worker = Worker::new(namespace, block_bytes as usize, block_tokens, prefill_rate);
                loop {
                    let next = queue.lock().unwrap_or_else(|poison| poison.into_inner()).pop_front();
                    let Some((request, hint)) = next else { return worker.tally };
                    worker.serve(&request, hint).await;
                    if worker.silent >= HOPELESS {
                        // The others need not find out for themselves.
                        queue.lock().unwrap_or_else(|poison| poison.into_inner()).clear();
                        worker.tally.gave_up = true;
                    }
                    bar.inc(1);
                    bar.set_message(worker.tally.line());
                }
            });
        }
        let mut tally = Tally::default();
        while let Some(done) = workers.join_next().await {
            tally.merge(&done.context("a replay worker panicked")?);
        }
        bar.finish_and_clear();
        Ok(tally.report(begun.elapsed()))
    }
}

/// Returns in how many bits a tenant's rules have numbers stored, where that takes bits from them.
fn rounded_to(client: &Client, tenant: &str) -> Option<u8> {
    let map = client.map();
    let (_, known) = map.tenant(tenant).and_then(|(id, _)| map.pool_of(id))?;
    known.rules.quantization_bits.filter(|bits| *bits < 16)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "a positive number of tokens a second is allowed, such as 8000".to_owned())
}

fn progress(requests: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} requests  {per_sec}  {msg}  {eta} left");
    ProgressBar::new(requests).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// One request at a time, as one serving process would.
struct Worker {
    namespace: NamespaceClient,
    block_bytes: usize,
    block_tokens: u32,
    prefill_rate: Option<f64>,
    buffers: Vec<Vec<u8>>,
    tally: Tally,
    /// Requests in a row that nobody answered anything of.
    silent: u32,
}

impl Worker {
    fn new(
        namespace: NamespaceClient,
        block_bytes: usize,
        block_tokens: u32,
        prefill_rate: Option<f64>,
    ) -> Self {
        Worker {
            namespace,
            block_bytes,
            block_tokens,
            prefill_rate,
            buffers: Vec::new(),
            tally: Tally::default(),
            silent: 0,
        }
    }

    async fn serve(&mut self, request: &Request, hint: Hint) {
        let prefix = prompt::of_trace(&self.namespace, &request.hash_ids);
        self.tally.requests += 1;
        self.tally.blocks += request.hash_ids.len() as u64;
        self.tally.tokens += request.tokens(self.block_tokens);
        let begun = Instant::now();
        let found = self.namespace.match_prefix(&prefix).await;
        let mut is_answered = found.as_ref().is_ok_and(|found| found.unreachable == 0);
        let covered = match found {
            Ok(found) => found.covered,
            Err(error) => {
                self.tally.fail(&error);
                0
            }
        };
        self.tally.matching.record(begun.elapsed());
        let patience = self.patience(&prefix, covered);
        let delivered = match patience {
            Patience::Recompute => 0,
            Patience::Fetch(limit) => self.fetch(&prefix, covered, limit).await,
        };
        self.tally.hits += delivered as u64;
        self.tally.tokens_saved += request.tokens_in(delivered, self.block_tokens);
        let tokens = |length: u64| u32::try_from(length).unwrap_or(u32::MAX);
        let about = About {
            input_tokens: tokens(request.input_length),
            output_tokens: tokens(request.output_length),
            ..About::default()
        };
        // What was recomputed because that is quicker is in the cluster all the same.
        let stored_from = if patience == Patience::Recompute { covered } else { delivered };
        is_answered |=
            self.store(&prefix, stored_from, StoreOptions { about, ..StoreOptions::default() }).await;
        if hint != Hint::None {
            match self.namespace.release(&prefix, hint).await {
                Ok(report) => self.tally.released_copies += report.copies,
                Err(error) => self.tally.fail(&error),
            }
        }
        self.silent = if is_answered { 0 } else { self.silent + 1 };
    }

    /// Says whether the covered blocks are to be fetched, and how long that may take in all.
    fn patience(&mut self, prefix: &Prefix, covered: usize) -> Patience {
        let Some(rate) = self.prefill_rate.filter(|_| covered > 0) else { return Patience::Fetch(None) };
        match self.namespace.advise(prefix, 0..covered, rate) {
            Ok(advice) if advice.is_worth_fetching() => Patience::Fetch(Some(advice.recomputing)),
            Ok(_) => {
                self.tally.recomputed_blocks += covered as u64;
                Patience::Recompute
            }
            Err(error) => {
                self.tally.fail(&error);
                Patience::Fetch(None)
            }
        }
    }

    /// Fetches the covered blocks, within `limit` in all, and returns how many arrived from the first on without a hole.
    async fn fetch(&mut self, prefix: &Prefix, covered: usize, limit: Option<Duration>) -> usize {
        let ends = limit.map(|limit| Instant::now() + limit);
        let mut at = 0;
        while at < covered {
            let until = covered.min(at + BLOCKS_PER_CALL);
            self.make_room(until - at);
            let mut targets: Vec<&mut [u8]> =
                self.buffers[..until - at].iter_mut().map(|buffer| &mut buffer[..]).collect();
            let begun = Instant::now();
            let answer = match ends {
                None => self.namespace.fetch_into(prefix, at..until, &mut targets).await,
                Some(ends) => {
                    let hurried = self.namespace.within(ends.saturating_duration_since(begun));
                    hurried.fetch_into(prefix, at..until, &mut targets).await
                }
            };
            self.tally.fetching.record(begun.elapsed());
            let delivered = match answer {
                Ok(report) => report.delivered(),
                Err(error) => {
                    self.tally.fail(&error);
                    0
                }
            };
            for (key, buffer) in prefix.keys()[at..at + delivered].iter().zip(&self.buffers) {
                if !is_content(key, buffer) {
                    self.tally.wrong_bytes += 1;
                }
            }
            self.tally.bytes_fetched += (delivered * self.block_bytes) as u64;
            at += delivered;
            if at < until {
                break;
            }
        }
        at
    }

    /// Stores the blocks from `from` on; says whether anybody answered.
    async fn store(&mut self, prefix: &Prefix, from: usize, options: StoreOptions) -> bool {
        let mut at = from;
        let mut is_answered = false;
        while at < prefix.keys().len() {
            let until = prefix.keys().len().min(at + BLOCKS_PER_CALL);
            self.make_room(until - at);
            for (key, buffer) in prefix.keys()[at..until].iter().zip(&mut self.buffers) {
                write_content(key, buffer);
            }
            let blocks: Vec<&[u8]> = self.buffers[..until - at].iter().map(|buffer| &buffer[..]).collect();
            let begun = Instant::now();
            let answer = self.namespace.store(prefix, at..until, &blocks, options).await;
            self.tally.storing.record(begun.elapsed());
            match answer {
                Ok(report) => {
                    is_answered |= report.outcomes.iter().any(|one| *one != StoreOutcome::Unreachable);
                    self.tally.stored_blocks += report.acknowledged() as u64;
                    report.outcomes.iter().for_each(|outcome| self.tally.refused.add(*outcome));
                    self.tally.bytes_stored += (report.sent() * self.block_bytes) as u64;
                }
                Err(error) => self.tally.fail(&error),
            }
            at = until;
        }
        is_answered
    }

    fn make_room(&mut self, blocks: usize) {
        while self.buffers.len() < blocks {
            self.buffers.push(vec![0; self.block_bytes]);
        }
    }
}

/// What a worker does with blocks that the cluster has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Computes them, because that is quicker.
    Recompute,
    /// Fetches them, within this time if one is given.
    Fetch(Option<Duration>),
}

/// Fills a block with bytes that follow from its key (SplitMix64, Steele et al. 2014): any byte tells where it came from.
fn write_content(key: &BlockKey, block: &mut [u8]) {
    let mut words = words(key);
    let mut pieces = block.chunks_exact_mut(8);
    for piece in &mut pieces {
        piece.copy_from_slice(&words().to_le_bytes());
    }
    let last = words().to_le_bytes();
    let rest = pieces.into_remainder();
    rest.copy_from_slice(&last[..rest.len()]);
}

fn is_content(key: &BlockKey, block: &[u8]) -> bool {
    let mut words = words(key);
    let pieces = block.chunks_exact(8);
    let rest = pieces.remainder();
    for piece in pieces {
        if piece != words().to_le_bytes() {
            return false;
        }
    }
    rest == &words().to_le_bytes()[..rest.len()]
}

fn words(key: &BlockKey) -> impl FnMut() -> u64 {
    let mut state = u64::from_le_bytes(key.as_bytes()[..8].try_into().expect("a key has 32 bytes"));
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells_whose_it_is() {
        let (ours, theirs) = (BlockKey::from_bytes([1; 32]), BlockKey::from_bytes([2; 32]));
        let mut block = vec![0; 1003];
        write_content(&ours, &mut block);
        assert!(is_content(&ours, &block));
        assert!(!is_content(&theirs, &block));
        block[1002] ^= 1;
        assert!(!is_content(&ours, &block));
    }
}
