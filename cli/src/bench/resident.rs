//! The rows of `kvhive bench match` within one shard: a match, the same with all that it leaves to be told to the strategy, and
//! a store with its eviction; of a full shard of a million blocks, under the plainest strategy and the one that most nodes have.

use super::{Row, quantile};
use anyhow::{Result, bail};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Effect, Reserve, Rules, Shard, ShardConfig, TierCapacity};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

const TENANT: TenantId = TenantId(1);
/// Keys of one match, and blocks that are resident.
const KEYS: usize = 512;
const BLOCKS: usize = 1_000_000;
/// Matches of one run.
const MATCHES: usize = 1900;
/// Blocks of one store, and stores of one run.
const STORED: usize = 32;
const STORES: usize = 2000;
/// Time from one request to the next.
const APART_MS: u64 = 1;

const MAP: &str = "std HashMap, lookups alone";
const QUEUE: &str = "std HashMap and a queue, first in first out";

pub(super) fn rows(runs: u32) -> Result<Vec<Row>> {
    let mut map: HashMap<BlockKey, u32> =
        (0..BLOCKS as u64).map(|number| (key(number), number as u32)).collect();
    let asks: Vec<KeyList> = (0..MATCHES).map(ask).collect();
    let mut rows = Vec::new();
    for strategy in [Strategy::Lru, Strategy::Adaptive] {
        let mut pool = Pool::filled(strategy)?;
        let [mut found, mut told, mut map_found] = [const { Calls::NONE }; 3];
        for _ in 0..runs {
            pool.match_all(&asks, &mut found, &mut told)?;
            map_found.time(&asks, |keys| keys.iter().filter(|key| map.contains_key(key)).count() == KEYS)?;
        }
        let micros = |nanos: f64| nanos / 1e3;
        let row = |case: String, ours: &Calls| ours.row(&case, "µs", micros, &map_found, MAP);
        let rate = |nanos: f64| KEYS as f64 * 1e9 / nanos;
        if strategy == Strategy::Adaptive {
            rows.insert(0, found.row("resident-512-of-1M", "keys/s", rate, &map_found, MAP));
        }
        rows.push(row(format!("match-512-{strategy}"), &found));
        rows.push(row(format!("match-and-tell-512-{strategy}"), &told));
        let (mut stored, mut map_stored) = (Calls::NONE, Calls::NONE);
        let mut queue: VecDeque<BlockKey> = (0..BLOCKS as u64).map(key).collect();
        for _ in 0..runs {
            pool.store_all(&mut stored)?;
            let fresh: Vec<Vec<BlockKey>> = (0..STORES).map(|_| pool.fresh().collect()).collect();
            map_stored.time(&fresh, |keys| {
                keys.iter().all(|key| {
                    queue.push_back(*key);
                    let oldest = queue.pop_front();
                    map.insert(*key, 0).is_none()
                        && oldest.is_some_and(|oldest| map.remove(&oldest).is_some())
                })
            })?;
        }
        let each = |nanos: f64| nanos / STORED as f64;
        rows.push(stored.row(&format!("store-and-evict-{strategy}"), "ns/block", each, &map_stored, QUEUE));
        map = (0..BLOCKS as u64).map(|number| (key(number), number as u32)).collect();
    }
    Ok(rows)
}

/// What single calls took, in nanoseconds, run by run. Of a run the median counts: on a busy machine the kernel takes the core from
/// some of them for longer than they need.
struct Calls {
    medians: Vec<f64>,
    all: Vec<f64>,
}

impl Calls {
    const NONE: Calls = Calls { medians: Vec::new(), all: Vec::new() };

    fn add(&mut self, run: Vec<f64>) {
        self.medians.push(quantile(&run, 0.5));
        self.all.extend(run);
    }

    /// Times one run of calls, each of which has to do well.
    fn time<T: Clone>(&mut self, asks: &[T], mut call: impl FnMut(&T) -> bool) -> Result<()> {
        let mut run = Vec::with_capacity(asks.len());
        for ask in asks {
            // As ours are.
            let ask = &ask.clone();
            let begun = Instant::now();
            let is_right = call(ask);
            run.push(begun.elapsed().as_nanos() as f64);
            if !is_right {
                bail!("the baseline lost a key");
            }
        }
        self.add(run);
        Ok(())
    }

    fn row(
        &self,
        case: &str,
        unit: &'static str,
        figure: impl Fn(f64) -> f64,
        baseline: &Calls,
        baseline_name: &str,
    ) -> Row {
        let figures = |nanos: &[f64]| nanos.iter().map(|one| figure(*one)).collect::<Vec<_>>();
        let row =
            Row::of_runs(case, unit, &figures(&self.medians), &figures(&baseline.medians), baseline_name);
        row.with_calls(figure(quantile(&self.all, 0.5)), figure(quantile(&self.all, 0.99)))
    }
}

/// A full shard.
struct Pool {
    shard: Shard,
    effects: Vec<Effect>,
    now_ms: u64,
    /// Number of the next block that was never stored.
    next: u64,
}

impl Pool {
    fn filled(strategy: Strategy) -> Result<Pool> {
        let mut shard = Shard::new(ShardConfig {
            classes: vec![1],
            device: TierCapacity { frames: vec![BLOCKS as u32] },
            host: TierCapacity::default(),
            disk: TierCapacity::default(),
            rules: Rules::new(strategy),
            unused_to_disk: true,
            prefetch: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            max_hold: Duration::from_secs(1),
            max_writes: 1,
            low_water_per_mille: 0,
            hash_seed: 1,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(0))]));
        let next = BLOCKS.next_multiple_of(KEYS) as u64;
        let mut pool = Pool { shard, effects: Vec::new(), now_ms: 0, next };
        for number in 0..BLOCKS as u64 {
            pool.store(block(number, number % KEYS as u64))?;
        }
        Ok(pool)
    }

    fn store(&mut self, block: StoreBlock) -> Result<bool> {
        let now = Moment::from_millis(self.now_ms);
        self.effects.clear();
        match self.shard.reserve(now, TENANT, &block, Slot(0), About::default(), &mut self.effects) {
            Reserve::Take { ticket, .. } => Ok(self.shard.seal(ticket).is_some()),
            Reserve::Refused(_) => Ok(false),
            Reserve::Present(id) => bail!("{id:?} is here, which was never stored"),
        }
    }

    /// Times one run of matches, each alone and with what is told of it then.
    fn match_all(&mut self, asks: &[KeyList], found: &mut Calls, told: &mut Calls) -> Result<()> {
        let run = [Run { slot: Slot(0), keys: KEYS as u32 }];
        let [mut matches, mut tells] = [const { Vec::new() }; 2];
        for keys in asks {
            self.now_ms += APART_MS;
            let now = Moment::from_millis(self.now_ms);
            // A node has just decoded them: they are in the CPU's cache, and nothing else is.
            let keys = &keys.clone();
            let begun = Instant::now();
            let covered = self.shard.match_runs(now, TENANT, &run, keys, Duration::from_millis(1));
            matches.push(begun.elapsed().as_nanos() as f64);
            while self.shard.untold() > 0 {
                self.shard.tell_some();
            }
            tells.push(begun.elapsed().as_nanos() as f64);
            if covered != [KEYS as u32] {
                bail!("{covered:?} of {KEYS} blocks are covered");
            }
        }
        found.add(matches);
        told.add(tells);
        Ok(())
    }

    /// Times one run of stores of prefixes that were never stored.
    fn store_all(&mut self, stored: &mut Calls) -> Result<()> {
        let mut run = Vec::with_capacity(STORES);
        let evicted = self.shard.stats().evicted;
        for _ in 0..STORES {
            self.now_ms += APART_MS;
            let first = self.next;
            let blocks: Vec<StoreBlock> =
                (0..STORED as u64).map(|depth| block(first + depth, depth)).collect();
            self.next += STORED as u64;
            let begun = Instant::now();
            for block in blocks {
                self.store(block)?;
            }
            run.push(begun.elapsed().as_nanos() as f64);
        }
        stored.add(run);
        let evicted = self.shard.stats().evicted - evicted;
        // What is declined costs less: then this would be no figure of stores.
        if evicted < (STORES * STORED) as u64 {
            bail!("{evicted} blocks left for {}", STORES * STORED);
        }
        Ok(())
    }

    /// Returns the keys of a prefix that was never stored.
    fn fresh(&mut self) -> impl Iterator<Item = BlockKey> + use<> {
        let first = self.next;
        self.next += STORED as u64;
        (first..self.next).map(key)
    }
}

/// One prefix after the other, far apart, so that each lookup misses the CPU's cache.
fn ask(round: usize) -> KeyList {
    let first = round * 7919 % (BLOCKS / KEYS) * KEYS;
    (first..first + KEYS).map(|number| key(number as u64)).collect()
}

pub(super) fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
        let word = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(at as u32 * 13) ^ at as u64;
        piece.copy_from_slice(&word.to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

/// A block that goes on from the one before it.
fn block(number: u64, depth: u64) -> StoreBlock {
    let header = BlockHeader {
        key: key(number),
        fingerprint: LayoutFingerprint::default(),
        tenant: TENANT,
        era: Era(0),
        depth: depth as u32,
        codec: Codec::Raw,
        payload_bytes: 1,
        digest: 0,
    };
    StoreBlock { header, parent: if depth == 0 { BlockKey::NONE } else { key(number - 1) } }
}
