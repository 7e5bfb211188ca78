//! `kvhive bench policy`: what each strategy costs with a million blocks (time a block, memory), and what it hits.

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
use std::collections::BTreeSet;
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
        let [mut hits, mut inserts, mut theirs_hits, mut theirs_inserts] = [const { Vec::new() }; 4];
        for _ in 0..runs {
            hits.push(pool.time_hits());
            theirs_hits.push(textbook.time_hits());
            inserts.push(pool.time_inserts());
            theirs_inserts.push(textbook.time_inserts());
        }
        // The index of a shard, with what the policy has taken in place of what it may take.
        let beside = Shard::index_bytes(BLOCKS, 1, strategy) as usize - most_bytes(strategy, BLOCKS);
        let memory = [(beside + pool.policy.memory_bytes()) as f64 / f64::from(BLOCKS)];
        let case = |what: &str| format!("{what}-{strategy}");
        rows.push(Row::of_runs(&case("hit"), "ns/block", &hits, &theirs_hits, BASELINE));
        rows.push(Row::of_runs(&case("insert-evict"), "ns/block", &inserts, &theirs_inserts, BASELINE));
        rows.push(Row::of_runs(&case("memory"), "bytes/block", &memory, &[INDEX_BYTES], "the index's bar"));
    }
    Ok(rows)
}

/// A full pool of prefixes, leaf-first as in a shard.
struct Pool {
    policy: Box<dyn Policy>,
    /// Parent, children and last request, by record.
    records: Vec<Record>,
    free: Vec<u32>,
    requests: u64,
    next_key: u64,
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
            next_key: 0,
            random: SmallRng::seed_from_u64(5),
        };
        for _ in 0..2 * BLOCKS / REQUEST_BLOCKS {
            pool.insert_prefix();
        }
        if !pool.free.is_empty() {
            bail!("{} of {BLOCKS} blocks stayed free", pool.free.len());
        }
        Ok(pool)
    }

    /// Returns nanoseconds for each block of new prefixes, taken in place of another or declined.
    fn time_inserts(&mut self) -> f64 {
        let begun = Instant::now();
        let offered: u32 = (0..REQUESTS).map(|_| self.insert_prefix()).sum();
        begun.elapsed().as_nanos() as f64 / f64::from(offered.max(1))
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

    /// Offers a new prefix. Returns the blocks of it that were offered: up to the first that is not taken.
    fn insert_prefix(&mut self) -> u32 {
        self.begin(REQUEST_BLOCKS);
        let mut parent = None;
        for depth in 0..REQUEST_BLOCKS {
            self.next_key += 1;
            let visit = Visit { key: key(self.next_key), parent, depth, partial: false };
            let Some(at) = self.room_for(&visit) else {
                self.policy.refused(&visit);
                return depth + 1;
            };
            let (used_by, number) = (self.requests, self.next_key);
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
