//! `kvhive bench policy`: what each strategy costs with a million blocks (time a block, memory), what a whole shard does, and what each
//! strategy hits.

use super::Row;
use crate::commands::simulate::sweep::{self, Choice, Contender, Size, Sweep};
use crate::trace::{Workload, generate};
use anyhow::{Result, bail};
use kvhive_cache::Shard;
use kvhive_cache::policy::{Policy, Removal, Request, Strategy, Verdict, Visit, build, most_bytes};
use kvhive_cache::simulate::{Rules, Trace};
use kvhive_protocol::BlockKey;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Blocks that are resident.
const BLOCKS: u32 = 1_000_000;
/// Blocks of a request.
const REQUEST_BLOCKS: u32 = 32;
/// Requests of one run, of each kind.
const REQUESTS: u32 = 8192;
/// What the whole index may take for a block, policies included.
const INDEX_BYTES: f64 = 160.0;
/// Sizes of the pool in percent of a trace's different blocks.
const SIZES: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];
/// Requests of the built-in workload, where no trace is given.
const WORKLOAD_REQUESTS: usize = 2000;
const BLOCK_TOKENS: u32 = 512;

pub(super) fn run(runs: u32, traces: &[PathBuf]) -> Result<Vec<Row>> {
    let mut rows = costs(runs)?;
    rows.extend(super::shard::run(runs)?);
    if traces.is_empty() {
        let workload = Workload { requests: WORKLOAD_REQUESTS, block_tokens: BLOCK_TOKENS, seed: 1 };
        let trace = sweep::collect(generate(workload).into_iter().map(Ok), BLOCK_TOKENS)?;
        rows.extend(rates("builtin", &trace));
    }
    for path in traces {
        rows.extend(rates(&stem(path), &sweep::load(path, None, BLOCK_TOKENS)?));
    }
    Ok(rows)
}

/// Returns a file's name up to its first dot.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Hit rates next to the optimum's.
fn rates(name: &str, trace: &Trace) -> Vec<Row> {
    let contenders = sweep::contenders(&[Choice::All]);
    let sizes = SIZES.map(Size::Percent);
    let sweep = Sweep {
        trace,
        contenders,
        capacities: sizes.map(|size| size.blocks(trace.unique_blocks())).into(),
        rules: Rules::Leaf,
        block_tokens: BLOCK_TOKENS,
        compression_ratio: 0.5,
    };
    let rows = sweep.run();
    let optimum = rows.iter().filter(|row| row.strategy == Contender::Optimum);
    let best: Vec<f64> = optimum.map(|row| row.block_hit_rate).collect();
    let ours = rows.iter().enumerate().filter(|(_, row)| row.strategy != Contender::Optimum);
    ours.map(|(at, row)| {
        let (size, best) = (sizes[at % sizes.len()], best[at % sizes.len()]);
        let case = format!("rate-{name}-{size}-{}", row.strategy);
        Row::of_runs(&case, "share of blocks hit", &[row.block_hit_rate], &[best], "exact offline optimum")
    })
    .collect()
}

/// Time and memory of a block, next to the order that one would write first.
fn costs(runs: u32) -> Result<Vec<Row>> {
    const BASELINE: &str = "LRU in an ordered set";
    let mut textbook = Pool::filled(Box::new(Textbook::default()))?;
    let mut rows = Vec::new();
    for strategy in Strategy::ALL {
        let mut pool = Pool::filled(build(strategy, BLOCKS, 1))?;
        let [mut hits, mut theirs_hits] = [const { Vec::new() }; 2];
        let [mut fresh, mut theirs_fresh, mut again, mut theirs_again] = [const { Vec::new() }; 4];
        for _ in 0..runs {
            hits.push(pool.time_hits());
            theirs_hits.push(textbook.time_hits());
            fresh.push(pool.time_fresh());
            theirs_fresh.push(textbook.time_fresh());
            again.push(pool.time_again());
            theirs_again.push(textbook.time_again());
        }
        // The index of a shard, with what the policy has taken in place of what it may take.
        let beside = Shard::index_bytes(BLOCKS, 1, strategy) as usize - most_bytes(strategy, BLOCKS);
        let memory = [(beside + pool.policy.memory_bytes()) as f64 / f64::from(BLOCKS)];
        let case = |what: &str| format!("{what}-{strategy}");
        rows.push(Row::of_runs(&case("hit"), "ns/block", &hits, &theirs_hits, BASELINE));
        // What is declined costs too: its time is told as that of the evictions that came of all offers.
        for (what, ours, theirs) in [("fresh", &fresh, &theirs_fresh), ("again", &again, &theirs_again)] {
            let (times, theirs) =
                (figures(ours, Offers::ns_an_eviction), figures(theirs, Offers::ns_an_eviction));
            let declined = figures(ours, Offers::declined);
            rows.push(Row::of_runs(
                &case(&format!("evict-{what}")),
                "ns/eviction",
                &times,
                &theirs,
                BASELINE,
            ));
            let unit = "share of blocks declined";
            rows.push(Row::of_runs(
                &case(&format!("declined-{what}")),
                unit,
                &declined,
                &[1.0],
                "all that are offered",
            ));
        }
        rows.push(Row::of_runs(&case("memory"), "bytes/block", &memory, &[INDEX_BYTES], "the index's bar"));
    }
    Ok(rows)
}

/// What offers of new blocks to a full pool came to in one run.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Offers {
    nanos: f64,
    /// Blocks, up to the first of each prefix that is declined.
    offered: u32,
    /// Blocks that left for one of these.
    evicted: u32,
}

impl Offers {
    fn ns_an_eviction(&self) -> f64 {
        self.nanos / f64::from(self.evicted.max(1))
    }

    fn declined(&self) -> f64 {
        1.0 - f64::from(self.evicted) / f64::from(self.offered.max(1))
    }
}

fn figures(runs: &[Offers], figure: impl Fn(&Offers) -> f64) -> Vec<f64> {
    runs.iter().map(figure).collect()
}

/// A full pool of prefixes, leaf-first as in a shard.
struct Pool {
    policy: Box<dyn Policy>,
    /// Parent, children and last request, by record.
    records: Vec<Record>,
    free: Vec<u32>,
    requests: u64,
    /// Keys are numbered by the prefixes that they are of, [`REQUEST_BLOCKS`] each.
    next_prefix: u64,
    evicted: u32,
    random: SmallRng,
}

#[derive(Clone, Copy)]
struct Record {
    parent: Option<u32>,
    children: u32,
    used_by: u64,
    /// What its key is made of.
    number: u64,
    is_resident: bool,
}

impl Pool {
    /// Fills a pool twice over, so that there are ghosts where the policy has any.
    fn filled(policy: Box<dyn Policy>) -> Result<Pool> {
        let empty = Record { parent: None, children: 0, used_by: 0, number: 0, is_resident: false };
        let mut pool = Pool {
            policy,
            records: vec![empty; BLOCKS as usize],
            free: (0..BLOCKS).rev().collect(),
            requests: 0,
            next_prefix: 0,
            evicted: 0,
            random: SmallRng::seed_from_u64(5),
        };
        for _ in 0..2 * BLOCKS / REQUEST_BLOCKS {
            pool.insert_fresh();
        }
        if !pool.free.is_empty() {
            bail!("{} of {BLOCKS} blocks stayed free", pool.free.len());
        }
        Ok(pool)
    }

    /// Offers prefixes that were never seen.
    fn time_fresh(&mut self) -> Offers {
        self.time(|pool| (0..REQUESTS).map(|_| pool.insert_fresh()).sum())
    }

    /// Offers prefixes that were evicted or declined: those that a policy with a memory has wanted back.
    fn time_again(&mut self) -> Offers {
        let gone = self.gone();
        self.time(|pool| gone.iter().map(|prefix| pool.insert_prefix(*prefix)).sum())
    }

    fn time(&mut self, offer: impl FnOnce(&mut Pool) -> u32) -> Offers {
        self.evicted = 0;
        let begun = Instant::now();
        let offered = offer(self);
        Offers { nanos: begun.elapsed().as_nanos() as f64, offered, evicted: self.evicted }
    }

    /// Returns the prefixes seen last of which nothing is here.
    fn gone(&self) -> Vec<u64> {
        let resident = self.records.iter().filter(|record| record.is_resident);
        let here: HashSet<u64> = resident.map(|record| record.number / u64::from(REQUEST_BLOCKS)).collect();
        (0..self.next_prefix).rev().filter(|prefix| !here.contains(prefix)).take(REQUESTS as usize).collect()
    }

    /// Returns nanoseconds for each block of resident prefixes that are used again.
    fn time_hits(&mut self) -> f64 {
        let prefixes: Vec<Vec<u32>> = (0..REQUESTS).map(|_| self.some_prefix()).collect();
        let blocks: usize = prefixes.iter().map(Vec::len).sum();
        let begun = Instant::now();
        for prefix in &prefixes {
            self.begin(prefix.len() as u32);
            let mut parent = None;
            for (depth, at) in (0..).zip(prefix) {
                let key = key(self.records[*at as usize].number);
                let visit = Visit { key, parent, depth, partial: false };
                self.policy.hit(*at, &visit);
                parent = Some(*at);
            }
        }
        begun.elapsed().as_nanos() as f64 / blocks.max(1) as f64
    }

    fn begin(&mut self, blocks: u32) {
        self.requests += 1;
        self.policy.begin(&Request { number: self.requests, blocks, ..Request::default() });
    }

    fn insert_fresh(&mut self) -> u32 {
        self.next_prefix += 1;
        self.insert_prefix(self.next_prefix - 1)
    }

    /// Offers a prefix. Returns the blocks of it that were offered: up to the first that is not taken.
    fn insert_prefix(&mut self, prefix: u64) -> u32 {
        self.begin(REQUEST_BLOCKS);
        let mut parent = None;
        for depth in 0..REQUEST_BLOCKS {
            let number = prefix * u64::from(REQUEST_BLOCKS) + u64::from(depth);
            let visit = Visit { key: key(number), parent, depth, partial: false };
            let Some(at) = self.room_for(&visit) else {
                self.policy.refused(&visit);
                return depth + 1;
            };
            let used_by = self.requests;
            self.records[at as usize] = Record { parent, children: 0, used_by, number, is_resident: true };
            if let Some(parent) = parent {
                self.records[parent as usize].children += 1;
            }
            self.policy.inserted(at, &visit);
            parent = Some(at);
        }
        REQUEST_BLOCKS
    }

    fn room_for(&mut self, visit: &Visit) -> Option<u32> {
        if let Some(at) = self.free.pop() {
            return Some(at);
        }
        let (records, now) = (&self.records, self.requests);
        let mut may_go = |at: u32| {
            let record = &records[at as usize];
            record.children == 0 && record.used_by != now
        };
        let Verdict::Evict(at) = self.policy.victim(visit, &mut may_go) else { return None };
        let gone = &mut self.records[at as usize];
        gone.is_resident = false;
        let (parent, key) = (gone.parent, key(gone.number));
        self.evicted += 1;
        self.policy.removed(at, &key, Removal::Evicted);
        if let Some(parent) = parent {
            self.records[parent as usize].children -= 1;
            if self.records[parent as usize].children == 0 {
                self.policy.set_leaf(parent, true);
            }
        }
        Some(at)
    }

    /// Returns the way from the root to some resident block.
    fn some_prefix(&mut self) -> Vec<u32> {
        let mut at = self.random.random_range(0..BLOCKS);
        while !self.records[at as usize].is_resident {
            at = (at + 1) % BLOCKS;
        }
        let up = std::iter::successors(Some(at), |at| self.records[*at as usize].parent);
        let mut prefix: Vec<u32> = up.collect();
        prefix.reverse();
        prefix
    }
}

fn key(number: u64) -> BlockKey {
    let word = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = [0; 32];
    for (at, piece) in (0..4).zip(bytes.chunks_exact_mut(8)) {
        piece.copy_from_slice(&word.rotate_left(16 * at).to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

/// LRU as one would write it first: a set ordered by last use, the deeper block of a request first.
#[derive(Default)]
struct Textbook {
    order: BTreeSet<(u64, u32)>,
    used: Vec<u64>,
    request: u64,
}

impl Textbook {
    fn place(&mut self, at: u32, depth: u32) {
        if self.used.len() <= at as usize {
            self.used.resize(at as usize + 1, 0);
        }
        let used = (self.request << 32) + u64::from(u32::MAX - depth);
        let before = std::mem::replace(&mut self.used[at as usize], used);
        self.order.remove(&(before, at));
        self.order.insert((used, at));
    }
}

impl Policy for Textbook {
    fn begin(&mut self, request: &Request) {
        self.request = request.number;
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        self.place(at, visit.depth);
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.place(at, visit.depth);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let oldest = self.order.iter().find(|(_, at)| may_go(*at));
        oldest.map_or(Verdict::Stuck, |(_, at)| Verdict::Evict(*at))
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, _why: Removal) {
        self.order.remove(&(self.used[at as usize], at));
    }

    fn memory_bytes(&self) -> usize {
        self.order.len() * size_of::<(u64, u32)>() + self.used.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declined_is_no_eviction() {
        let offers = Offers { nanos: 1000.0, offered: 8, evicted: 2 };
        assert_eq!((offers.ns_an_eviction(), offers.declined()), (500.0, 0.75));
        let mut pool = Pool::filled(build(Strategy::Lru, BLOCKS, 1)).expect("it fills");
        let blocks = REQUESTS * REQUEST_BLOCKS;
        for offers in [pool.time_fresh(), pool.time_again()] {
            assert_eq!((offers.offered, offers.evicted, offers.declined()), (blocks, blocks, 0.0));
        }
        // An LRU has given up the prefixes before those that it holds.
        assert_eq!(pool.gone().len(), REQUESTS as usize);
    }

    #[test]
    fn rates_are_named_by_trace_size_and_strategy_and_stay_below_the_optimum() {
        let workload = Workload { requests: 60, block_tokens: 512, seed: 2 };
        let trace = sweep::collect(generate(workload).into_iter().map(Ok), 512).expect("requests");
        let rows = rates("chats", &trace);
        assert_eq!(rows.len(), Strategy::ALL.len() * SIZES.len());
        assert_eq!(rows[0].case, "rate-chats-1%-lru");
        let shrinks = |row: &Row| row.case.ends_with("compressed") || row.case.ends_with("quantized");
        assert!(rows.iter().all(|row| shrinks(row) || row.ours <= row.baseline), "{rows:?}");
        assert_eq!(stem(Path::new("/x/coding_agents_a.jsonl.gz")), "coding_agents_a");
    }
}
