//! What a node tells whoever embeds it.

use crate::actors::core::DeviceMessage;
use crate::actors::device::Device;
use crate::actors::uses::CodecUses;
use crate::data::DataPlane;
use crate::latency::{Latencies, LatencySummary};
use kvhive_cache::{Reason, ShardStats, TierStats};
use kvhive_protocol::block::Codec;
use kvhive_protocol::links::TransportKind;
use kvhive_protocol::pairs::PairsReport;
use kvhive_protocol::strategy::StrategyReport;
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A device that does not answer within this is left out.
const LIMIT: Duration = Duration::from_millis(500);

/// One tier of all devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct TierUse {
    /// Resident blocks.
    pub blocks: u64,
    /// Bytes of frames in use.
    pub used_bytes: u64,
    /// Bytes of all frames.
    pub capacity_bytes: u64,
    /// Blocks that fetches got from there.
    pub hits: u64,
}

impl TierUse {
    fn add(&mut self, tier: TierStats) {
        self.blocks += tier.blocks;
        self.used_bytes += tier.used_bytes;
        self.capacity_bytes += tier.capacity_bytes;
        self.hits += tier.hits;
    }
}

/// Why blocks left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Evictions {
    /// For others that came, or so that there is room when they come.
    pub for_room: u64,
    /// The engine had said that their session is over, or it was long overdue.
    pub over: u64,
    /// Not worth a place on disk when memory ran short.
    pub not_admitted: u64,
    /// Their tenant's era ended.
    pub cleared: u64,
    /// They could not be read any more.
    pub lost: u64,
}

/// What collections have freed for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct CollectedFor {
    /// The reason's name: `cleared`, `over`, `overdue`, `demoted`, `evicted`, `not-admitted`.
    pub reason: &'static str,
    /// Blocks.
    pub blocks: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// What collections came to: they free memory when more than `gc_threshold` of it is used.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Collections {
    /// Times that one began.
    pub runs: u64,
    /// What they have freed, by reason.
    pub freed: Vec<CollectedFor>,
}

/// How one strategy of a device does.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StrategyFigures {
    /// Which of the node's devices.
    pub device: usize,
    /// Which of its strategies, and what that has chosen.
    #[serde(flatten)]
    pub report: StrategyReport,
}

/// What prefetching came to, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Prefetches {
    /// Asked for by matches and hints.
    pub asked: u64,
    /// Used where they were brought.
    pub useful: u64,
    /// Gone from there before they were used.
    pub wasted: u64,
    /// Used before they had come.
    pub late: u64,
    /// Not brought, for want of a free frame.
    pub cancelled: u64,
}

/// The blocks that are stored by one codec.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct CodecFigures {
    /// The codec's name.
    pub codec: &'static str,
    /// Resident blocks.
    pub blocks: u64,
    /// Bytes of these blocks as they are stored.
    pub stored_bytes: u64,
    /// Bytes of these blocks before they were encoded; where their layout was never told, as they are stored.
    pub raw_bytes: u64,
    /// Stored bytes of raw ones, from 0 to 1; 1 when there are no blocks.
    pub ratio: f64,
}

/// What shrinking cold blocks came to, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Shrinks {
    /// Moved to a smaller frame.
    pub done: u64,
    /// Not small enough for one.
    pub unfit: u64,
    /// Given up: no smaller frame was free, or the block was read or gone when it was done.
    pub dropped: u64,
}

/// What has gone from the node's devices to others by one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct TransportUse {
    /// Which.
    pub transport: TransportKind,
    /// Batches that got there.
    pub batches: u64,
    /// Batches that did not, and went another way or not at all.
    pub failures: u64,
    /// Bytes of those that did.
    pub bytes: u64,
}

/// A node's figures since it started; a device whose actor panicked counts from its new beginning.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct NodeStats {
    /// Matches, fetches, stores and releases that were answered: those that were refused are none, and in no latency.
    pub requests: u64,
    /// Blocks that fetches found.
    pub hits: u64,
    /// Blocks that fetches did not find.
    pub misses: u64,
    /// Hits of all blocks that were asked for, from 0 to 1; 0 when none were.
    pub hit_rate: f64,
    /// Keys that matches asked for.
    pub matched_keys: u64,
    /// Keys of those that were covered.
    pub covered_keys: u64,
    /// Latency of matches, in milliseconds.
    pub match_latency: LatencySummary,
    /// Latency of fetches, in milliseconds.
    pub fetch_latency: LatencySummary,
    /// Latency of stores, in milliseconds.
    pub store_latency: LatencySummary,
    /// Latency of releases, in milliseconds.
    pub release_latency: LatencySummary,
    /// The device tiers.
    pub device: TierUse,
    /// The host tiers.
    pub host: TierUse,
    /// The disk tiers.
    pub disk: TierUse,
    /// Bytes of memory that is locked, so that none of it is swapped out.
    pub pinned_bytes: u64,
    /// Used bytes of the device tiers, from 0 to 1.
    pub device_utilization: f64,
    /// Share of the last moment in which its GPUs did something, whoever had them do it, from 0 to 1: the mean of those of which NVML tells it. None
    /// where it tells it of none.
    pub gpu_utilization: Option<f64>,
    /// Blocks that left, by reason.
    pub evictions: Evictions,
    /// Blocks moved down a tier.
    pub demoted: u64,
    /// Blocks moved up a tier.
    pub promoted: u64,
    /// What prefetching came to.
    pub prefetch: Prefetches,
    /// What collections came to.
    pub collections: Collections,
    /// Blocks that engines have said something of without using them.
    pub released: u64,
    /// How each strategy does that has ranked something.
    pub strategies: Vec<StrategyFigures>,
    /// How the blocks are stored, codec by codec.
    pub codecs: Vec<CodecFigures>,
    /// What shrinking came to.
    pub shrinks: Shrinks,
    /// Blocks decoded for askers who want them raw.
    pub decoded_for_askers: u64,
    /// What has gone to other devices, by each way.
    pub transports: Vec<TransportUse>,
    /// What its GPUs do with NCCL, those that have it.
    pub nccl: Vec<PairsReport>,
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl NodeStats {
    fn add(&mut self, shard: &ShardStats) {
        self.hits += shard.hits;
        self.misses += shard.misses;
        self.matched_keys += shard.matched_keys;
        self.covered_keys += shard.covered_keys;
        self.device.add(shard.device);
        self.host.add(shard.host);
        self.disk.add(shard.disk);
        self.evictions.for_room += shard.evicted - shard.not_admitted - shard.evicted_over;
        self.evictions.over += shard.evicted_over;
        self.collections.runs += shard.collections;
        for (freed, more) in self.collections.freed.iter_mut().zip(shard.collected) {
            freed.blocks += more.blocks;
            freed.bytes += more.bytes;
        }
        self.released += shard.released;
        self.evictions.not_admitted += shard.not_admitted;
        self.evictions.cleared += shard.cleared;
        self.evictions.lost += shard.lost;
        self.demoted += shard.demoted;
        self.promoted += shard.promoted;
        self.prefetch.asked += shard.prefetched;
        self.prefetch.useful += shard.prefetch_useful;
        self.prefetch.wasted += shard.prefetch_wasted;
        self.prefetch.late += shard.prefetch_late;
        self.prefetch.cancelled += shard.prefetch_cancelled;
        self.shrinks.done += shard.shrunk;
        self.shrinks.unfit += shard.shrink_unfit;
        self.shrinks.dropped += shard.shrink_dropped;
    }
}

/// Returns the figures of every codec.
fn codec_figures(uses: &CodecUses) -> Vec<CodecFigures> {
    let figures = Codec::ALL.iter().zip(&uses.0).map(|(codec, one)| CodecFigures {
        codec: codec.name(),
        blocks: one.blocks,
        stored_bytes: one.stored_bytes,
        raw_bytes: one.raw_bytes,
        ratio: if one.raw_bytes == 0 { 1.0 } else { share(one.stored_bytes, one.raw_bytes) },
    });
    figures.collect()
}

/// Returns the latencies of matches, fetches, stores and releases.
pub(crate) fn latencies(plane: &DataPlane) -> [Latencies; 4] {
    plane.counters.took.each_ref().map(|recorder| recorder.read())
}

/// Asks everybody.
pub(crate) async fn gather(devices: &[Device], plane: &DataPlane) -> NodeStats {
    let counters = &plane.counters;
    let took = latencies(plane);
    let requests = took.iter().map(|latencies| latencies.count()).sum();
    let [matches, fetches, stores, releases] = took.map(|latencies| latencies.summary());
    let mut stats = NodeStats {
        requests,
        match_latency: matches,
        fetch_latency: fetches,
        store_latency: stores,
        release_latency: releases,
        ..NodeStats::default()
    };
    let nothing = |why: Reason| CollectedFor { reason: why.name(), blocks: 0, bytes: 0 };
    stats.collections.freed = Reason::ALL.map(nothing).to_vec();
    stats.strategies = strategies(devices, false).await;
    let mut uses = CodecUses::default();
    for device in devices {
        if let Ok(of_device) = device.ask(LIMIT, |reply| DeviceMessage::Codecs { reply }).await {
            uses.merge(&of_device);
        }
        if let Ok((_, shard)) = device.ask(LIMIT, |reply| DeviceMessage::Load { reply }).await {
            stats.add(&shard);
        }
    }
    stats.hit_rate = share(stats.hits, stats.hits + stats.misses);
    stats.codecs = codec_figures(&uses);
    stats.decoded_for_askers = counters.decoded_blocks.load(Ordering::Relaxed);
    stats.transports = plane.replicator.links.used();
    stats.nccl = plane.replicator.links.pairs();
    stats.device_utilization = share(stats.device.used_bytes, stats.device.capacity_bytes);
    stats
}

/// Asks how the strategies do, and has those choose that choose, if that is wanted.
pub(crate) async fn strategies(devices: &[Device], adjust: bool) -> Vec<StrategyFigures> {
    let mut figures = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        let asked = device.ask(LIMIT, |reply| DeviceMessage::Strategies { adjust, of_sizes: false, reply });
        let reports = asked.await.unwrap_or_default();
        figures.extend(reports.into_iter().map(|report| StrategyFigures { device: number, report }));
    }
    figures
}
