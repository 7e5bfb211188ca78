//! `kvhive replay`: drive a live cluster with a trace as a serving fleet would: match the prefix, fetch what is covered,
//! store the rest. Blocks hold bytes that tell whose they are, so a wrong one shows.

use crate::report::{self, Latencies, Summary};
use crate::trace::{self, Request};
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvhive_client::{Client, NamespaceClient, Prefix, StoreOptions};
use kvhive_config::Bytes;
use kvhive_protocol::data::About;
use kvhive_protocol::{BlockKey, Layout};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::connect::Connect;
use super::generated::Generated;

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
    #[command(flatten)]
    connect: Connect,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a replay came to; the JSON form of it is stable.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    requests: u64,
    blocks: u64,
    hits: u64,
    block_hit_rate: f64,
    tokens: u64,
    tokens_saved: u64,
    tokens_saved_ratio: f64,
    bytes: u64,
    bytes_fetched: u64,
    bytes_stored: u64,
    gb_per_second: f64,
    seconds: f64,
    latencies: CallLatencies,
    stored_blocks: u64,
    refused_blocks: u64,
    errors: u64,
    wrong_bytes: u64,
}

/// Latencies of the three calls, in milliseconds.
#[derive(Serialize, Debug)]
pub(crate) struct CallLatencies {
    r#match: Summary,
    fetch: Summary,
    store: Summary,
}

impl Replay {
    /// Runs the replay and prints its report.
    ///
    /// # Errors
    /// When the cluster or the trace cannot be reached; single failed calls are counted in the report.
    pub(crate) async fn run(self) -> Result<()> {
        let requests = self.load()?;
        let client = self.connect.client().await?;
        let report = self.drive(&client, requests).await?;
        if self.json {
            report::print_json(&report)?;
        } else {
            report.print();
        }
        if report.wrong_bytes > 0 {
            bail!("{} blocks held wrong bytes", report.wrong_bytes);
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

    async fn drive(&self, client: &Client, requests: Vec<Request>) -> Result<Report> {
        let block_bytes = u32::try_from(self.block_size.0).context("--block-size is over 4GiB")?;
        let block_tokens = self.generated.block_tokens;
        let layout = Layout::opaque(block_bytes, block_tokens);
        if client.map().tenant(&self.tenant).is_none() {
            client.create_tenant(&self.tenant).await?;
        }
        let namespace = client.namespace(&self.tenant, &self.model, layout, 0)?;
        let bar = progress(requests.len() as u64);
        let queue: Arc<Mutex<VecDeque<Request>>> = Arc::new(Mutex::new(requests.into()));
        let begun = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..self.concurrency {
            let (queue, namespace, bar) = (queue.clone(), namespace.clone(), bar.clone());
            workers.spawn(async move {
                let mut worker = Worker::new(namespace, block_bytes as usize, block_tokens);
                loop {
                    let next = queue.lock().unwrap_or_else(|poison| poison.into_inner()).pop_front();
                    let Some(request) = next else { return worker.tally };
                    worker.serve(&request).await;
                    bar.inc(1);
                    bar.set_message(worker.tally.line());
                }
            });
        }
        let mut tally = Tally::new();
        while let Some(done) = workers.join_next().await {
            tally.merge(&done.context("a replay worker panicked")?);
        }
        bar.finish_and_clear();
        Ok(tally.report(begun.elapsed()))
    }
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
    buffers: Vec<Vec<u8>>,
    tally: Tally,
}

impl Worker {
    fn new(namespace: NamespaceClient, block_bytes: usize, block_tokens: u32) -> Self {
        Worker { namespace, block_bytes, block_tokens, buffers: Vec::new(), tally: Tally::new() }
    }

    async fn serve(&mut self, request: &Request) {
        let hashes: Vec<[u8; 8]> = request.hash_ids.iter().map(|id| id.to_le_bytes()).collect();
        let prefix = self.namespace.prefix_of_engine_hashes(&hashes);
        self.tally.requests += 1;
        self.tally.blocks += request.hash_ids.len() as u64;
        self.tally.tokens += request.tokens(self.block_tokens);
        let begun = Instant::now();
        let covered = match self.namespace.match_prefix(&prefix).await {
            Ok(found) => found.covered,
            Err(error) => {
                self.tally.fail(&error);
                0
            }
        };
        self.tally.matching.record(begun.elapsed());
        let delivered = self.fetch(&prefix, covered).await;
        self.tally.hits += delivered as u64;
        self.tally.tokens_saved += request.tokens_in(delivered, self.block_tokens);
        let tokens = |length: u64| u32::try_from(length).unwrap_or(u32::MAX);
        let about = About {
            input_tokens: tokens(request.input_length),
            output_tokens: tokens(request.output_length),
            ..About::default()
        };
        self.store(&prefix, delivered, StoreOptions { about, ..StoreOptions::default() }).await;
    }

    /// Fetches the covered blocks and returns how many arrived from the first on without a hole.
    async fn fetch(&mut self, prefix: &Prefix, covered: usize) -> usize {
        let mut at = 0;
        while at < covered {
            let until = covered.min(at + BLOCKS_PER_CALL);
            self.make_room(until - at);
            let mut targets: Vec<&mut [u8]> =
                self.buffers[..until - at].iter_mut().map(|buffer| &mut buffer[..]).collect();
            let begun = Instant::now();
            let answer = self.namespace.fetch_into(prefix, at..until, &mut targets).await;
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

    async fn store(&mut self, prefix: &Prefix, from: usize, options: StoreOptions) {
        let mut at = from;
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
                    let kept = report.acknowledged();
                    self.tally.stored_blocks += kept as u64;
                    self.tally.refused_blocks += (until - at - kept) as u64;
                    self.tally.bytes_stored += (report.sent() * self.block_bytes) as u64;
                }
                Err(error) => self.tally.fail(&error),
            }
            at = until;
        }
    }

    fn make_room(&mut self, blocks: usize) {
        while self.buffers.len() < blocks {
            self.buffers.push(vec![0; self.block_bytes]);
        }
    }
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

struct Tally {
    requests: u64,
    blocks: u64,
    hits: u64,
    tokens: u64,
    tokens_saved: u64,
    bytes_fetched: u64,
    bytes_stored: u64,
    stored_blocks: u64,
    refused_blocks: u64,
    errors: u64,
    wrong_bytes: u64,
    matching: Latencies,
    fetching: Latencies,
    storing: Latencies,
}

impl Tally {
    fn new() -> Self {
        Tally {
            requests: 0,
            blocks: 0,
            hits: 0,
            tokens: 0,
            tokens_saved: 0,
            bytes_fetched: 0,
            bytes_stored: 0,
            stored_blocks: 0,
            refused_blocks: 0,
            errors: 0,
            wrong_bytes: 0,
            matching: Latencies::new(),
            fetching: Latencies::new(),
            storing: Latencies::new(),
        }
    }

    fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        tracing::warn!(%error, "call failed");
    }

    fn line(&self) -> String {
        format!("{:.1} % hits", 100.0 * ratio(self.hits, self.blocks))
    }

    fn merge(&mut self, other: &Tally) {
        for (ours, theirs) in [
            (&mut self.requests, other.requests),
            (&mut self.blocks, other.blocks),
            (&mut self.hits, other.hits),
            (&mut self.tokens, other.tokens),
            (&mut self.tokens_saved, other.tokens_saved),
            (&mut self.bytes_fetched, other.bytes_fetched),
            (&mut self.bytes_stored, other.bytes_stored),
            (&mut self.stored_blocks, other.stored_blocks),
            (&mut self.refused_blocks, other.refused_blocks),
            (&mut self.errors, other.errors),
            (&mut self.wrong_bytes, other.wrong_bytes),
        ] {
            *ours += theirs;
        }
        self.matching.merge(&other.matching);
        self.fetching.merge(&other.fetching);
        self.storing.merge(&other.storing);
    }

    fn report(self, took: Duration) -> Report {
        let bytes = self.bytes_fetched + self.bytes_stored;
        let seconds = took.as_secs_f64();
        Report {
            requests: self.requests,
            blocks: self.blocks,
            hits: self.hits,
            block_hit_rate: ratio(self.hits, self.blocks),
            tokens: self.tokens,
            tokens_saved: self.tokens_saved,
            tokens_saved_ratio: ratio(self.tokens_saved, self.tokens),
            bytes,
            bytes_fetched: self.bytes_fetched,
            bytes_stored: self.bytes_stored,
            gb_per_second: bytes as f64 / 1e9 / seconds,
            seconds,
            latencies: CallLatencies {
                r#match: self.matching.summary(),
                fetch: self.fetching.summary(),
                store: self.storing.summary(),
            },
            stored_blocks: self.stored_blocks,
            refused_blocks: self.refused_blocks,
            errors: self.errors,
            wrong_bytes: self.wrong_bytes,
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Report {
    fn print(&self) {
        println!("requests        {}", self.requests);
        println!(
            "blocks          {} looked up, {} hit: {:.2} %",
            self.blocks,
            self.hits,
            100.0 * self.block_hit_rate
        );
        println!(
            "prefill tokens  {} of {} saved: {:.2} %",
            self.tokens_saved,
            self.tokens,
            100.0 * self.tokens_saved_ratio
        );
        println!(
            "bytes moved     {} ({} fetched, {} stored) in {:.1} s: {:.2} GB/s",
            report::bytes(self.bytes),
            report::bytes(self.bytes_fetched),
            report::bytes(self.bytes_stored),
            self.seconds,
            self.gb_per_second
        );
        println!("match           {}", self.latencies.r#match.line());
        println!("fetch           {}", self.latencies.fetch.line());
        println!("store           {}", self.latencies.store.line());
        println!(
            "trouble         {} errors, {} blocks refused, {} blocks with wrong bytes",
            self.errors, self.refused_blocks, self.wrong_bytes
        );
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
