//! Many strategies and sizes over one trace, as many at a time as there are cores.

use crate::trace::{self, Request, TraceError};
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kvhive_cache::policy::{Strategy, UnknownStrategy, build, shrinks};
use kvhive_cache::simulate::{Future, Outcome, Rules, Setting, Trace, Turn, optimum, replay};
use kvhive_protocol::{BlockKey, Moment};
use serde::{Serialize, Serializer};
use std::fmt;
use std::io::IsTerminal;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Requests between two signs of progress.
const STRIDE: usize = 512;
/// How ghosts and counts are hashed: one trace gives one result.
const SEED: u64 = 1;

/// What was asked for in place of a strategy's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// Every strategy, and the optimum.
    All,
    /// One of them.
    One(Contender),
}

/// What runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contender {
    /// As a node would.
    Strategy(Strategy),
    /// With the whole trace known beforehand.
    Optimum,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Choice, String> {
        match name {
            "all" => Ok(Choice::All),
            "optimum" => Ok(Choice::One(Contender::Optimum)),
            name => match name.parse() {
                Ok(strategy) => Ok(Choice::One(Contender::Strategy(strategy))),
                Err(error @ UnknownStrategy { .. }) => Err(format!("{error}; and optimum, all")),
            },
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Contender::Strategy(strategy) => strategy.fmt(f),
            Contender::Optimum => f.pad("optimum"),
        }
    }
}

impl Serialize for Contender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Says why a row may lie above the optimum, where one is there that may.
pub(super) fn beyond_the_optimum(rows: &[Row]) -> Option<&'static str> {
    let has = |wanted: Contender| rows.iter().any(|row| row.strategy == wanted);
    let shrinks = [Strategy::Compressed, Strategy::Quantized].map(Contender::Strategy).into_iter().any(has);
    (shrinks && has(Contender::Optimum)).then_some(
        "the optimum counts blocks of full size; compressed and quantized shrink blocks, hold more of them, and may lie above it",
    )
}

/// Returns what was chosen, each once, in the order asked for.
pub(crate) fn contenders(choices: &[Choice]) -> Vec<Contender> {
    let mut chosen = Vec::new();
    for choice in choices {
        let more = match choice {
            Choice::One(contender) => vec![*contender],
            Choice::All => {
                let all = Strategy::ALL.into_iter().map(Contender::Strategy);
                all.chain([Contender::Optimum]).collect()
            }
        };
        for contender in more {
            if !chosen.contains(&contender) {
                chosen.push(contender);
            }
        }
    }
    chosen
}

/// How much fits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Size {
    /// So many blocks.
    Blocks(u32),
    /// Percent of the different blocks of the trace.
    Percent(f64),
}

impl Size {
    /// Returns the blocks that fit, one at least.
    pub(crate) fn blocks(self, unique_blocks: usize) -> u32 {
        match self {
            Size::Blocks(blocks) => blocks,
            Size::Percent(percent) => ((percent / 100.0 * unique_blocks as f64).round() as u32).max(1),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("{text:?} is no size; expected blocks from 1, or percent above 0, up to 100");
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().map_err(|_| wrong())?;
                if percent > 0.0 && percent <= 100.0 { Ok(Size::Percent(percent)) } else { Err(wrong()) }
            }
            None => match text.parse() {
                Ok(0) | Err(_) => Err(wrong()),
                Ok(blocks) => Ok(Size::Blocks(blocks)),
            },
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Blocks(blocks) => write!(f, "{blocks}"),
            Size::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// What one simulation came to; stable.
#[derive(Clone, Copy, Serialize, Debug)]
pub(crate) struct Row {
    pub(crate) strategy: Contender,
    pub(crate) capacity_blocks: u32,
    pub(crate) requests: u64,
    pub(crate) blocks: u64,
    pub(crate) hits: u64,
    pub(crate) block_hit_rate: f64,
    pub(crate) tokens_saved_ratio: f64,
    pub(crate) seconds: f64,
}

/// Reads a trace file into memory, at most so many requests of it.
///
/// # Errors
/// When it cannot be read, is too long or has no requests.
pub(crate) fn load(path: &Path, requests: Option<usize>, block_tokens: u32) -> Result<Trace> {
    collect(trace::open(path)?.take(requests.unwrap_or(usize::MAX)), block_tokens)
}

/// Puts requests into a trace in memory.
///
/// # Errors
/// The first among them; when they are too many, or none.
pub(crate) fn collect(
    requests: impl Iterator<Item = Result<Request, TraceError>>,
    block_tokens: u32,
) -> Result<Trace> {
    let mut trace = Trace::new();
    for request in requests {
        let request = request?;
        let turn = turn(&request, block_tokens);
        trace.push(turn, request.hash_ids.iter().map(|id| key(*id)))?;
    }
    if trace.requests() == 0 {
        bail!("the trace has no requests");
    }
    Ok(trace)
}

/// Returns what a trace says of a request besides its blocks.
pub(super) fn turn(request: &Request, block_tokens: u32) -> Turn {
    let tokens_that_fit = request.hash_ids.len() as u64 * u64::from(block_tokens);
    Turn {
        now: Moment::from_nanos((request.timestamp * 1e6) as u64),
        input_tokens: u32::try_from(request.input_length).unwrap_or(u32::MAX),
        output_tokens: u32::try_from(request.output_length).unwrap_or(u32::MAX),
        partial: (1..tokens_that_fit).contains(&request.input_length),
        ..Turn::default()
    }
}

/// Spreads a trace's id over a key, as a hash would.
pub(super) fn key(id: u64) -> BlockKey {
    let mut bytes = [0; 32];
    for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
        let word = id.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(16 * at as u32);
        piece.copy_from_slice(&(word ^ (at as u64)).to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

/// What is to run: each contender at each capacity.
pub(crate) struct Sweep<'a> {
    pub(crate) trace: &'a Trace,
    pub(crate) contenders: Vec<Contender>,
    pub(crate) capacities: Vec<u32>,
    pub(crate) rules: Rules,
    pub(crate) block_tokens: u32,
    /// What remains of a block that its strategy shrinks.
    pub(crate) compression_ratio: f64,
}

impl Sweep<'_> {
    /// Runs everything. Rows come contender by contender, in the order of the capacities.
    pub(crate) fn run(&self) -> Vec<Row> {
        let jobs: Vec<(Contender, u32)> = self
            .contenders
            .iter()
            .flat_map(|contender| self.capacities.iter().map(|capacity| (*contender, *capacity)))
            .collect();
        let future = self.contenders.contains(&Contender::Optimum).then(|| Future::of(self.trace));
        let bar = progress((jobs.len() * self.trace.requests()) as u64);
        let next = AtomicUsize::new(0);
        let rows = Mutex::new(vec![None; jobs.len()]);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(jobs.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some((contender, capacity)) = jobs.get(at) else { break };
                        let row = self.simulate(*contender, *capacity, future.as_ref(), &bar);
                        rows.lock().expect("a worker that panics ends the program")[at] = Some(row);
                    }
                });
            }
        });
        bar.finish_and_clear();
        let rows = rows.into_inner().expect("no worker is left");
        rows.into_iter().map(|row| row.expect("every job has run")).collect()
    }

    fn simulate(
        &self,
        contender: Contender,
        capacity: u32,
        future: Option<&Future>,
        bar: &ProgressBar,
    ) -> Row {
        let begun = Instant::now();
        let mut watch = |at: usize| {
            if at % STRIDE == STRIDE - 1 {
                bar.inc(STRIDE as u64);
            }
        };
        let outcome = match contender {
            Contender::Optimum => {
                let future = future.expect("it was read where the optimum runs");
                optimum(self.trace, future, self.block_tokens, capacity, &mut watch)
            }
            Contender::Strategy(strategy) => {
                let setting = self.setting(strategy, capacity);
                let records = u64::from(capacity) * 1000 / u64::from(setting.shrunk_per_mille);
                let records = u32::try_from(records).unwrap_or(u32::MAX);
                replay(self.trace, &mut *build(strategy, records, SEED), setting, &mut watch)
            }
        };
        bar.inc((self.trace.requests() % STRIDE) as u64);
        row(contender, capacity, &outcome, begun.elapsed().as_secs_f64())
    }

    fn setting(&self, strategy: Strategy, capacity: u32) -> Setting {
        let shrunk_per_mille = match shrinks(strategy) {
            Some(_) => (1000.0 * self.compression_ratio).round().clamp(1.0, 1000.0) as u16,
            None => 1000,
        };
        Setting { capacity, rules: self.rules, block_tokens: self.block_tokens, shrunk_per_mille }
    }
}

fn row(strategy: Contender, capacity_blocks: u32, outcome: &Outcome, seconds: f64) -> Row {
    Row {
        strategy,
        capacity_blocks,
        requests: outcome.requests,
        blocks: outcome.blocks,
        hits: outcome.hits,
        block_hit_rate: outcome.hit_rate(),
        tokens_saved_ratio: outcome.tokens_saved as f64 / outcome.tokens.max(1) as f64,
        seconds,
    }
}

fn progress(requests: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:32} {percent} %  {per_sec} requests  {eta} left");
    ProgressBar::new(requests).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Workload, generate};

    fn workload() -> Trace {
        let requests = generate(Workload { requests: 150, block_tokens: 512, seed: 3 });
        collect(requests.into_iter().map(Ok), 512).expect("requests")
    }

    #[test]
    fn sizes_are_blocks_or_percent() {
        let sizes: Vec<u32> = ["5000", "1%", "0.5%", "0.0001%"]
            .map(|text| text.parse::<Size>().expect("a size").blocks(20_000))
            .into();
        assert_eq!(sizes, [5000, 200, 100, 1]);
        for wrong in ["0", "-3", "0%", "101%", "NaN%", "x", ""] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_are_chosen_once_and_an_unknown_name_is_answered_with_the_known_ones() {
        let lru: Choice = "lru".parse().expect("a strategy");
        let chosen = contenders(&[lru, Choice::All, lru]);
        assert_eq!((chosen.len(), chosen[0].to_string()), (Strategy::ALL.len() + 1, "lru".to_owned()));
        let error = "lruu".parse::<Choice>().expect_err("no such name");
        assert!(error.contains("w-tinylfu") && error.ends_with("optimum, all"), "{error}");
    }

    #[test]
    fn why_a_row_may_lie_above_the_optimum_is_said_where_both_are_there() {
        let row = |strategy| row(strategy, 1, &Outcome::default(), 1.0);
        let [optimum, lru, shrinks] = [
            Contender::Optimum,
            Contender::Strategy(Strategy::Lru),
            Contender::Strategy(Strategy::Quantized),
        ];
        assert_eq!(beyond_the_optimum(&[row(optimum), row(lru)]), None);
        assert_eq!(beyond_the_optimum(&[row(shrinks), row(lru)]), None);
        assert!(beyond_the_optimum(&[row(optimum), row(shrinks)]).is_some());
    }

    #[test]
    fn no_strategy_beats_the_optimum_and_rows_come_in_order() {
        let trace = workload();
        let sweep = Sweep {
            trace: &trace,
            contenders: contenders(&[Choice::All]),
            capacities: vec![40, 300],
            rules: Rules::Leaf,
            block_tokens: 512,
            compression_ratio: 1.0,
        };
        let rows = sweep.run();
        assert_eq!(rows.len(), sweep.contenders.len() * 2);
        let best = &rows[rows.len() - 2..];
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(row.strategy, sweep.contenders[at / 2]);
            assert_eq!(row.capacity_blocks, sweep.capacities[at % 2]);
            assert!(row.hits <= best[at % 2].hits, "{row:?}");
        }
        assert!(best[0].hits > 0 && best[0].hits < best[1].hits);
    }

    #[test]
    fn a_denser_codec_holds_more() {
        let trace = workload();
        let hits = |compression_ratio| {
            let strategy = Contender::Strategy(Strategy::Quantized);
            let (contenders, capacities) = (vec![strategy], vec![100]);
            let (rules, block_tokens) = (Rules::Leaf, 512);
            let sweep =
                Sweep { trace: &trace, contenders, capacities, rules, block_tokens, compression_ratio };
            sweep.run()[0].hits
        };
        assert!(hits(0.25) > hits(1.0));
    }

    #[test]
    fn a_row_has_the_fields_that_machines_read() {
        let row = row(Contender::Optimum, 7, &Outcome::default(), 0.5);
        let json = serde_json::to_string(&row).expect("plain values");
        assert_eq!(
            json,
            "{\"strategy\":\"optimum\",\"capacity_blocks\":7,\"requests\":0,\"blocks\":0,\"hits\":0,\
             \"block_hit_rate\":0.0,\"tokens_saved_ratio\":0.0,\"seconds\":0.5}"
        );
    }
}
