//! The shard's part of `kvhive bench policy`: what a store that evicts another block takes in all, index and memory of what left
//! included, and what it takes to say why a block is not there.

use super::Row;
use super::resident::key;
use anyhow::{Result, bail};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Known, Reserve, Rules, Shard, ShardConfig, TierCapacity};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::explain::Explained;
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Blocks that are resident.
const BLOCKS: u64 = 1_000_000;
/// Blocks of one prefix.
const PREFIX_BLOCKS: u64 = 32;
/// Blocks stored, and asked for, by one run.
const OF_A_RUN: u64 = 256 * 1024;
/// What a store with its eviction may take, in nanoseconds.
const BAR_NS: f64 = 2000.0;
const TENANT: TenantId = TenantId(1);

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let mut shard = Shard::new(ShardConfig {
        classes: vec![1],
        device: TierCapacity { frames: vec![BLOCKS as u32] },
        host: TierCapacity::default(),
        disk: TierCapacity::default(),
        rules: Rules::new(Strategy::Lru),
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
    // Twice over: then as many have left as are remembered.
    let mut next = store(&mut shard, 0, 2 * BLOCKS)?;
    let (mut evicting, mut explaining, mut looking) = (Vec::new(), Vec::new(), Vec::new());
    let each = |took: Duration| took.as_nanos() as f64 / OF_A_RUN as f64;
    for _ in 0..runs {
        let begun = Instant::now();
        next = store(&mut shard, next, OF_A_RUN)?;
        evicting.push(each(begun.elapsed()));
        // The last that have left, in an order in which none is in the processor's cache.
        let left = next - BLOCKS - OF_A_RUN;
        let keys: KeyList = (0..OF_A_RUN).map(|at| key(left + at * 7919 % OF_A_RUN)).collect();
        let now = at(next);
        let begun = Instant::now();
        let is_known =
            |key: &BlockKey| matches!(shard.explain(now, TENANT, key), Known::Not(Explained::Gone(_)));
        let known = keys.iter().filter(is_known).count() as u64;
        explaining.push(each(begun.elapsed()));
        if known < OF_A_RUN * 9 / 10 {
            bail!("{known} of {OF_A_RUN} blocks that left are remembered");
        }
        let alone: Vec<Run> = (0..OF_A_RUN).map(|_| Run { slot: Slot(0), keys: 1 }).collect();
        let begun = Instant::now();
        let found = shard.survey_runs(TENANT, &alone, &keys);
        looking.push(each(begun.elapsed()));
        if found.iter().any(|one| one.covered > 0) {
            bail!("a block that left is here");
        }
    }
    Ok(vec![
        Row::of_runs("shard-evict-lru", "ns/store", &evicting, &[BAR_NS], "the bar"),
        Row::of_runs("shard-explain", "ns/block", &explaining, &looking, "looking it up in the index alone"),
    ])
}

/// Stores so many blocks, from this number on; returns the next one.
fn store(shard: &mut Shard, from: u64, count: u64) -> Result<u64> {
    let mut effects = Vec::new();
    for number in from..from + count {
        let depth = (number % PREFIX_BLOCKS) as u32;
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
            era: Era(0),
            depth,
            codec: Codec::Raw,
            payload_bytes: 1,
            digest: 0,
        };
        let parent = if depth == 0 { BlockKey::NONE } else { key(number - 1) };
        let block = StoreBlock { header, parent };
        match shard.reserve(at(number), TENANT, &block, Slot(0), About::default(), &mut effects) {
            Reserve::Take { ticket, .. } => drop(shard.seal(ticket)),
            other => bail!("block {number} was not taken: {other:?}"),
        }
        effects.clear();
    }
    Ok(from + count)
}

/// A hundred blocks a millisecond.
fn at(number: u64) -> Moment {
    Moment::from_millis(number / 100)
}
