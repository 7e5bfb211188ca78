//! `kvhive bench match`: prefix matches through the network, and within one shard.

use super::Row;
use super::baseline::Baseline;
use super::private::Private;
use crate::cluster::local::Shape;
use crate::commands;
use crate::report::Latencies;
use anyhow::{Result, bail};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Reserve, Rules, Shard, ShardConfig, TierCapacity};
use kvhive_client::StoreOptions;
use kvhive_config::Bytes;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::{
    BlockHeader, BlockKey, Era, KeyList, Layout, LayoutFingerprint, Moment, Slot, TenantId,
};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Keys of one match through the network.
const NETWORK_KEYS: usize = 256;
/// Matches of one run.
const MATCHES: u32 = 5000;
/// Keys of one match within a shard, and blocks that are resident there.
const RESIDENT_KEYS: usize = 512;
const RESIDENT_BLOCKS: usize = 1_000_000;
const RESIDENT_MATCHES: usize = 2000;

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    Ok(vec![network(runs)?, resident(runs)?])
}

fn network(runs: u32) -> Result<Row> {
    const BYTES: usize = 4096;
    let private = Private::start(Shape {
        coordinators: 1,
        nodes: 1,
        devices: 1,
        device_memory: Bytes(64 << 20),
        host_memory: Bytes(0),
        disk: Bytes(0),
        block_size: Bytes(BYTES as u64),
        replicas: 1,
        // A strategy that declines what never comes back would leave nothing to measure.
        strategy: Some("lru".to_owned()),
        tls: false,
    })?;
    let runtime = commands::runtime()?;
    let client = runtime.block_on(private.client(|config| config.connections_per_member = 1))?;
    let blocks = client.namespace("default", "bench", Layout::opaque(BYTES as u32, 16), 0)?;
    let hashes: Vec<[u8; 8]> = (0..NETWORK_KEYS as u64).map(u64::to_le_bytes).collect();
    let prefix = blocks.prefix_of_engine_hashes(&hashes);
    let memory = vec![0u8; BYTES];
    let sources = vec![&memory[..]; NETWORK_KEYS];
    let stored =
        runtime.block_on(blocks.store(&prefix, 0..NETWORK_KEYS, &sources, StoreOptions::default()))?;
    if stored.acknowledged() != NETWORK_KEYS {
        bail!("{} of {NETWORK_KEYS} blocks were stored", stored.acknowledged());
    }
    let mut baseline = Baseline::start()?;
    let (mut ours, mut theirs, mut calls) = (Vec::new(), Vec::new(), Latencies::new());
    let rate = |took: Duration| f64::from(MATCHES) * NETWORK_KEYS as f64 / took.as_secs_f64();
    for _ in 0..runs {
        let begun = Instant::now();
        let one = runtime.block_on(async {
            let mut one = Latencies::new();
            for _ in 0..MATCHES {
                let begun = Instant::now();
                let found = blocks.match_prefix(&prefix).await?;
                one.record(begun.elapsed());
                if found.covered != NETWORK_KEYS {
                    bail!("{} of {NETWORK_KEYS} blocks are covered", found.covered);
                }
            }
            Ok(one)
        })?;
        ours.push(rate(begun.elapsed()));
        calls.merge(&one);
        let begun = Instant::now();
        // The same bytes each way, and nothing done with them.
        baseline.ping(MATCHES, (NETWORK_KEYS * 32) as u32, 256, |_| {})?;
        theirs.push(rate(begun.elapsed()));
    }
    let row = Row::of_runs("network-256", "keys/s", &ours, &theirs, "raw TCP echo of as many bytes");
    let per_second = |nanos: u64| NETWORK_KEYS as f64 * 1e9 / nanos.max(1) as f64;
    Ok(row.with_calls(per_second(calls.quantile(0.5)), per_second(calls.quantile(0.99))))
}

pub(super) fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
        let word = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(at as u32 * 13) ^ at as u64;
        piece.copy_from_slice(&word.to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

fn resident(runs: u32) -> Result<Row> {
    const TENANT: TenantId = TenantId(1);
    let mut shard = Shard::new(ShardConfig {
        classes: vec![1],
        device: TierCapacity { frames: vec![RESIDENT_BLOCKS as u32] },
        host: TierCapacity::default(),
        disk: TierCapacity::default(),
        rules: Rules::new(Strategy::Lru),
        unused_to_disk: true,
        prefetch: 0,
        gc_per_mille: None,
        max_hold: Duration::from_secs(1),
        max_writes: 1,
        low_water_per_mille: 0,
        hash_seed: 1,
    });
    shard.set_tenants(BTreeMap::from([(TENANT, Era(0))]));
    let mut map: HashMap<BlockKey, u32> = HashMap::with_capacity(RESIDENT_BLOCKS);
    for number in 0..RESIDENT_BLOCKS as u64 {
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
            era: Era(0),
            depth: (number % RESIDENT_KEYS as u64) as u32,
            codec: Codec::Raw,
            payload_bytes: 1,
            digest: 0,
        };
        let parent = if header.depth == 0 { BlockKey::NONE } else { key(number - 1) };
        let block = StoreBlock { header, parent };
        match shard.reserve(Moment::ZERO, TENANT, &block, Slot(0), About::default(), &mut Vec::new()) {
            Reserve::Take { ticket, .. } => drop(shard.seal(ticket)),
            other => bail!("block {number} was not taken: {other:?}"),
        }
        map.insert(key(number), number as u32);
    }
    // One prefix after the other, far apart, so that each lookup misses the CPU's cache.
    let ask = |round: usize| -> KeyList {
        let first = round * 7919 % (RESIDENT_BLOCKS / RESIDENT_KEYS) * RESIDENT_KEYS;
        (first..first + RESIDENT_KEYS).map(|number| key(number as u64)).collect()
    };
    let asks: Vec<KeyList> = (0..RESIDENT_MATCHES).map(ask).collect();
    let run = [Run { slot: Slot(0), keys: RESIDENT_KEYS as u32 }];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let rate = |took: Duration| (RESIDENT_MATCHES * RESIDENT_KEYS) as f64 / took.as_secs_f64();
    for _ in 0..runs {
        let begun = Instant::now();
        for keys in &asks {
            let covered = shard.match_runs(Moment::ZERO, TENANT, &run, keys, Duration::from_millis(1));
            if covered != [RESIDENT_KEYS as u32] {
                bail!("{covered:?} of {RESIDENT_KEYS} blocks are covered");
            }
        }
        ours.push(rate(begun.elapsed()));
        let begun = Instant::now();
        for keys in &asks {
            if keys.iter().filter(|key| map.contains_key(key)).count() != RESIDENT_KEYS {
                bail!("the map lost a key");
            }
        }
        theirs.push(rate(begun.elapsed()));
    }
    Ok(Row::of_runs("resident-512-of-1M", "keys/s", &ours, &theirs, "std HashMap, lookups alone"))
}
