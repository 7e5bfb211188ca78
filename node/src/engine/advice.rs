//! What other settings would have made of recent traffic: the requests are replayed against each, with costs measured here. Nothing is
//! changed by it.

use super::behind::Bytes;
use super::history::Served;
use super::numbers::{median, quantile};
use kvhive_cache::simulate::found_by_each;
use kvhive_client::codec;
use kvhive_protocol::Layout;
use kvhive_protocol::block::Codec;
use kvhive_protocol::strategy::Strategy;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::time::Instant;

/// Fewer requests say nothing.
const LEAST_REQUESTS: usize = 2;
/// What is better by less than this share is not worth a change.
const LEAST_GAIN: f64 = 0.01;
/// How often costs are measured: by how much a gain varies among these, so much of it may be chance.
const MEASUREMENTS: usize = 5;
/// Blocks of a pool that is simulated at most.
const MAX_CAPACITY: u32 = 1 << 24;
/// Strategies that are compared; [`Strategy::Quantized`] besides where it is what there is: it may round what was stored exactly.
const STRATEGIES: [Strategy; 5] =
    [Strategy::Lru, Strategy::Lfu, Strategy::Adaptive, Strategy::Paged, Strategy::Compressed];

/// What settings are to be better at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// How long a request takes, of 95 in 100.
    Latency,
    /// How much memory a block takes.
    Memory,
    /// How many requests are served a second.
    Throughput,
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 3] = [Target::Latency, Target::Memory, Target::Throughput];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Latency => "latency",
            Target::Memory => "memory",
            Target::Throughput => "throughput",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Target::Latency => "ms of a request, 95th percentile",
            Target::Memory => "bytes of a block",
            Target::Throughput => "requests/s",
        }
    }

    /// Says by which share one figure is better than another.
    fn gain(self, before: f64, after: f64) -> f64 {
        match self {
            Target::Throughput => (after - before) / before,
            Target::Latency | Target::Memory => (before - after) / before,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Target, String> {
        let known = Target::ALL.into_iter().find(|target| target.name() == name);
        known
            .ok_or_else(|| format!("target is '{name}': one of 'latency', 'memory', 'throughput' is allowed"))
    }
}

/// What can be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Setting {
    /// Which block leaves a full cache.
    #[serde(rename = "cache_strategy")]
    pub strategy: Strategy,
    /// How new blocks are stored.
    #[serde(serialize_with = "by_name")]
    pub codec: Codec,
}

impl Setting {
    /// Returns what another setting would change, by name: from what, to what.
    fn changes(&self, to: &Setting) -> BTreeMap<&'static str, Changed> {
        let mut changes = BTreeMap::new();
        if self.strategy != to.strategy {
            let changed = Changed { from: self.strategy.name(), to: to.strategy.name() };
            changes.insert("cache_strategy", changed);
        }
        if self.codec != to.codec {
            changes.insert("codec", Changed { from: self.codec.name(), to: to.codec.name() });
        }
        changes
    }
}

fn by_name<S: Serializer>(codec: &Codec, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(codec.name())
}

/// A setting's old and new value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Changed {
    /// What it is.
    pub from: &'static str,
    /// What does better.
    pub to: &'static str,
}

/// One setting that was compared.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Candidate {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// How recent requests would have done with it.
    pub figure: f64,
    /// By how much its gain varies from one measurement to the next.
    pub spread_percentage: f64,
}

/// What settings serve recent traffic better, and what that rests on.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Advice {
    /// What they are better at, by name.
    pub target: &'static str,
    /// What to change; empty where nothing does better.
    pub advised: BTreeMap<&'static str, Changed>,
    /// By how much that is better, in the median of all measurements.
    pub improvement_percentage: f64,
    /// By how much this varies from one measurement to the next.
    pub spread_percentage: f64,
    /// How often costs were measured.
    pub measurements: usize,
    /// What figures are of.
    pub unit: &'static str,
    /// The figure of what is set; none where nothing was served.
    pub before: Option<f64>,
    /// The figure of what is advised.
    pub after: Option<f64>,
    /// Requests that were replayed.
    pub replayed_requests: usize,
    /// All that was compared.
    pub candidates: Vec<Candidate>,
    /// What is set, and what is advised.
    #[serde(skip)]
    pub(super) settings: (Setting, Setting),
}

/// Recent traffic, and what it lay in.
pub(super) struct Sample {
    pub(super) served: Vec<Served>,
    pub(super) blocks: Vec<Bytes>,
    pub(super) layout: Layout,
    /// Frames by the bytes of one.
    pub(super) frames: BTreeMap<u64, u64>,
    /// Whether no request waits until its blocks are stored.
    pub(super) is_behind: bool,
    /// Seconds that fetching a block takes where no request fetched one; none where that is not known either.
    pub(super) fetch_seconds: Option<f64>,
}

/// What a codec comes to, measured on recent blocks.
#[derive(Clone, Copy)]
struct CodecCost {
    frame_bytes: u64,
    capacity: u64,
    encode_seconds: f64,
    decode_seconds: f64,
    /// What a request waits for at each block that it computes.
    rounding_seconds: f64,
}

/// One measurement: seconds of a block as it is stored now, and codecs.
struct Costs {
    compute: f64,
    fetch: f64,
    store: f64,
    codecs: HashMap<Codec, CodecCost>,
}

/// A setting, with a figure of each measurement, and by how much that is better than what is set.
struct Compared {
    setting: Setting,
    figures: Vec<f64>,
    gains: Vec<f64>,
    gain: f64,
}

impl Compared {
    fn figure(&self) -> f64 {
        median(self.figures.clone()).unwrap_or_default()
    }

    fn spread(&self) -> f64 {
        let most = self.gains.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most - self.gains.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Compares settings on recent traffic, among codecs that may be taken.
pub(super) fn advise(target: Target, now: Setting, sample: &Sample, codecs: &[Codec]) -> Advice {
    let mut advice = Advice {
        target: target.name(),
        advised: BTreeMap::new(),
        improvement_percentage: 0.0,
        spread_percentage: 0.0,
        measurements: MEASUREMENTS,
        unit: target.unit(),
        before: None,
        after: None,
        replayed_requests: sample.served.len(),
        candidates: Vec::new(),
        settings: (now, now),
    };
    if sample.served.len() < LEAST_REQUESTS || sample.blocks.is_empty() {
        return advice;
    }
    let measured: Vec<Costs> = (0..MEASUREMENTS).map(|at| costs(sample, codecs, at)).collect();
    let known = |codec: &Codec| measured.iter().all(|costs| costs.codecs.contains_key(codec));
    let known: Vec<Codec> = codecs.iter().copied().filter(known).collect();
    if !known.contains(&now.codec) {
        return advice;
    }
    let compared = |setting| Compared { setting, figures: Vec::new(), gains: Vec::new(), gain: 0.0 };
    let mut candidates: Vec<Compared> = settings(target, now, &known).into_iter().map(compared).collect();
    let Some(current) = candidates.iter().position(|one| one.setting == now) else { return advice };
    let mut replays = HashMap::new();
    for costs in &measured {
        for one in &mut candidates {
            one.figures.push(figure(target, one.setting, now, sample, costs, &mut replays));
        }
        let before = candidates[current].figures.last().copied().unwrap_or_default();
        for one in &mut candidates {
            one.gains.push(target.gain(before, one.figures.last().copied().unwrap_or_default()));
        }
    }
    let before = candidates[current].figure();
    for one in &mut candidates {
        one.gain = target.gain(before, one.figure());
    }
    let best = best(&candidates, now);
    let shown = best.or_else(|| candidates.iter().max_by(|one, other| one.gain.total_cmp(&other.gain)));
    advice.spread_percentage = shown.map_or(0.0, |shown| 100.0 * shown.spread());
    (advice.before, advice.after) = (Some(before), Some(before));
    if let Some(best) = best {
        advice.after = Some(best.figure());
        advice.improvement_percentage = 100.0 * best.gain;
        advice.advised = now.changes(&best.setting);
        advice.settings = (now, best.setting);
    }
    let told = |one: &Compared| Candidate {
        setting: one.setting,
        figure: one.figure(),
        spread_percentage: 100.0 * one.spread(),
    };
    advice.candidates = candidates.iter().map(told).collect();
    advice
}

fn settings(target: Target, now: Setting, codecs: &[Codec]) -> Vec<Setting> {
    let mut strategies = STRATEGIES.to_vec();
    if !strategies.contains(&now.strategy) {
        strategies.push(now.strategy);
    }
    // What a block takes depends on its codec alone.
    strategies.retain(|strategy| target != Target::Memory || *strategy == now.strategy);
    codecs
        .iter()
        .flat_map(|codec| strategies.iter().map(|strategy| Setting { strategy: *strategy, codec: *codec }))
        .collect()
}

/// Returns what is surely better than what is set now; of those that are as good as the best, what changes least.
fn best(candidates: &[Compared], now: Setting) -> Option<&Compared> {
    let sure = || candidates.iter().filter(|one| one.gain >= LEAST_GAIN && one.gain > one.spread());
    let best = sure().max_by(|one, other| one.gain.total_cmp(&other.gain))?;
    let least = best.gain - best.spread().max(LEAST_GAIN);
    sure().filter(|one| one.gain >= least).min_by(|one, other| {
        let changes = |one: &Compared| now.changes(&one.setting).len();
        changes(one).cmp(&changes(other)).then(other.gain.total_cmp(&one.gain))
    })
}

/// Makes one of several measurements: of codecs anew, of the rest by some of the requests.
fn costs(sample: &Sample, codecs: &[Codec], number: usize) -> Costs {
    // Each request is in one measurement; where none of these has a figure, all have.
    let of = |figure: fn(&Served) -> Option<f64>| {
        let some = sample.served.iter().skip(number).step_by(MEASUREMENTS);
        median(some.filter_map(figure).collect())
            .or_else(|| median(sample.served.iter().filter_map(figure).collect()))
    };
    let compute = of(|one| one.compute_seconds).unwrap_or(0.0);
    // Where it is not known at all what a block found saves, it saves nothing.
    let fetch = of(|one| one.fetch_seconds).or(sample.fetch_seconds).unwrap_or(compute);
    let store = of(|one| one.store_seconds).unwrap_or(0.0);
    let codecs = codecs.iter().filter_map(|codec| Some((*codec, measured(*codec, sample)?))).collect();
    Costs { compute, fetch, store, codecs }
}

/// Measures a codec on recent blocks; none where it cannot store them, or they do not fit any frame.
fn measured(codec: Codec, sample: &Sample) -> Option<CodecCost> {
    let mut stored_bytes = Vec::new();
    let (mut encode_seconds, mut decode_seconds) = (0.0, 0.0);
    for block in &sample.blocks {
        if codec == Codec::Raw {
            stored_bytes.push(block.len() as f64);
            continue;
        }
        let (mut stored, mut back) = (Vec::new(), vec![0; block.len()]);
        let begun = Instant::now();
        codec::encode(codec, &sample.layout, block, &mut stored).ok()?;
        encode_seconds += begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        codec::decode(codec, &sample.layout, &stored, &mut back).ok()?;
        decode_seconds += begun.elapsed().as_secs_f64();
        stored_bytes.push(stored.len() as f64);
    }
    let typical = median(stored_bytes)? as u64;
    let (&frame_bytes, &capacity) = sample.frames.range(typical..).next()?;
    let count = sample.blocks.len() as f64;
    let (encode_seconds, decode_seconds) = (encode_seconds / count, decode_seconds / count);
    // A request goes on with what comes back of a block, where that is not what was stored.
    let rounding_seconds = if codec.is_exact() { 0.0 } else { encode_seconds + decode_seconds };
    Some(CodecCost { frame_bytes, capacity, encode_seconds, decode_seconds, rounding_seconds })
}

/// Says how recent requests would have done with a setting.
fn figure(
    target: Target,
    setting: Setting,
    now: Setting,
    sample: &Sample,
    costs: &Costs,
    replays: &mut HashMap<(Strategy, u64), Vec<u64>>,
) -> f64 {
    let (codec, codec_now) = (costs.codecs[&setting.codec], costs.codecs[&now.codec]);
    if target == Target::Memory {
        return codec.frame_bytes as f64;
    }
    let of = (setting.strategy, codec.capacity);
    let covered = replays.entry(of).or_insert_with(|| replayed(&sample.served, of.0, of.1));
    // What was measured includes codecs as they are used now.
    let fetch = (costs.fetch + codec.decode_seconds - codec_now.decode_seconds).max(0.0);
    let compute = costs.compute + codec.rounding_seconds - codec_now.rounding_seconds;
    let waits = if sample.is_behind { 0.0 } else { codec.encode_seconds - codec_now.encode_seconds };
    let new_seconds = (compute + costs.store + waits).max(0.0);
    let (mut seconds, mut stored) = (Vec::with_capacity(sample.served.len()), 0);
    for (one, covered) in sample.served.iter().zip(covered.iter()) {
        let found = (*covered as usize).min(one.most);
        let new = one.keys.len() - found;
        stored += new;
        seconds.push(found as f64 * fetch + new as f64 * new_seconds + one.rest_seconds);
    }
    if target == Target::Latency {
        seconds.sort_by(f64::total_cmp);
        return quantile(&seconds, 0.95).unwrap_or_default() * 1e3;
    }
    // Blocks are stored behind all requests: that can be what the others wait for.
    let behind = if sample.is_behind { stored as f64 * codec.encode_seconds } else { 0.0 };
    seconds.len() as f64 / seconds.iter().sum::<f64>().max(behind).max(1e-9)
}

/// Serves requests with a pool of so many blocks that is empty at first; returns how many blocks each found.
fn replayed(served: &[Served], strategy: Strategy, capacity: u64) -> Vec<u64> {
    let capacity = u32::try_from(capacity).unwrap_or(MAX_CAPACITY).clamp(1, MAX_CAPACITY);
    found_by_each(served.iter().map(|one| &one.keys[..]), strategy, capacity)
        .expect("as few blocks are remembered as a trace may have")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::{AxisOrder, BlockKey, Dtype};

    const NOW: Setting = Setting { strategy: Strategy::Lru, codec: Codec::Raw };

    fn keys(prompt: u8, blocks: u8) -> Vec<BlockKey> {
        (0..blocks)
            .map(|at| BlockKey::from_bytes(std::array::from_fn(|byte| [prompt, at][byte % 2])))
            .collect()
    }

    fn served(keys: Vec<BlockKey>, fetch_seconds: Option<f64>) -> Served {
        let most = keys.len();
        let (compute_seconds, store_seconds) = (Some(1e-3), Some(1e-5));
        Served { keys, most, compute_seconds, fetch_seconds, store_seconds, rest_seconds: 1e-3 }
    }

    /// Blocks of numbers that repeat, and room for so many of them.
    fn sample(served: Vec<Served>, frames: u64) -> Sample {
        let (dtype, order) = (Dtype::F16, AxisOrder::LayersFirst);
        let layout = Layout { layers: 2, kv_heads: 2, head_dim: 16, tokens: 16, dtype, order };
        let block: Bytes = (0..4096).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into();
        let frames = BTreeMap::from([(4096, frames)]);
        Sample { served, blocks: vec![block], layout, frames, is_behind: true, fetch_seconds: None }
    }

    /// Six prompts in a loop, of which four have room: what is kept of it gains, as long as fetching is cheaper than computing.
    fn loop_of(fetch_seconds: impl Fn(usize) -> f64) -> Sample {
        let prompt = |at: usize| keys((at % 6) as u8, 15);
        sample((0..60).map(|at| served(prompt(at), Some(fetch_seconds(at)))).collect(), 64)
    }

    #[test]
    fn of_settings_that_do_as_well_the_one_that_is_set_stays() {
        for strategy in [Strategy::Lru, Strategy::Compressed, Strategy::Paged, Strategy::Quantized] {
            let sample = sample((0..20).map(|_| served(keys(1, 8), Some(1e-4))).collect(), 64);
            let advice = advise(Target::Latency, Setting { strategy, ..NOW }, &sample, &[Codec::Raw]);
            assert!(advice.advised.is_empty() && advice.settings.0 == advice.settings.1);
            let figure = advice.before.expect("requests were served");
            assert!(figure > 0.0 && advice.candidates.iter().all(|one| one.figure == figure));
            assert_eq!(advice.candidates.len(), if strategy == Strategy::Quantized { 6 } else { 5 });
        }
    }

    #[test]
    fn what_keeps_a_part_of_a_loop_is_advised_unless_that_may_be_chance() {
        let surely = advise(Target::Throughput, NOW, &loop_of(|_| 1e-4), &[Codec::Raw]);
        let adaptive = Changed { from: "lru", to: "adaptive" };
        assert_eq!(surely.advised, BTreeMap::from([("cache_strategy", adaptive)]));
        assert_eq!(surely.settings.1, Setting { strategy: Strategy::Adaptive, ..NOW });
        let (before, after) = (surely.before.expect("it is known"), surely.after.expect("it is known"));
        assert!((surely.improvement_percentage - 100.0 * (after / before - 1.0)).abs() < 1e-6);
        assert!(surely.improvement_percentage > 10.0);
        // A part of each measurement is slow to fetch, another part in each.
        let varying = |at: usize| 1e-4 + (at % 5) as f64 * 3e-4;
        let maybe = advise(Target::Throughput, NOW, &loop_of(varying), &[Codec::Raw]);
        assert!(maybe.advised.is_empty() && maybe.improvement_percentage == 0.0);
        assert!(maybe.spread_percentage > 10.0 && maybe.before == maybe.after);
    }

    #[test]
    fn where_nobody_knows_what_a_found_block_saves_nothing_is_claimed() {
        let unknown = |fetch_seconds| Sample {
            fetch_seconds,
            ..sample((0..20).map(|_| served(keys(1, 8), None)).collect(), 4)
        };
        let advice = advise(Target::Throughput, NOW, &unknown(None), &[Codec::Raw]);
        assert!(advice.advised.is_empty() && advice.improvement_percentage == 0.0);
        let measured = advise(Target::Throughput, NOW, &unknown(Some(1e-4)), &[Codec::Raw]);
        assert!(measured.before.is_some() && measured.spread_percentage == 0.0);
        let nothing = advise(Target::Latency, NOW, &sample(Vec::new(), 4), &[Codec::Raw]);
        assert_eq!((nothing.before, nothing.replayed_requests), (None, 0));
    }

    #[test]
    fn a_request_does_not_pay_for_what_is_stored_behind_it() {
        // All miss, so that nothing is decoded.
        let missing = || (0..20).map(|at| served(keys(at, 8), None)).collect();
        let figures = |is_behind| {
            let sample = Sample { is_behind, ..sample(missing(), 64) };
            let advice = advise(Target::Latency, NOW, &sample, &[Codec::Raw, Codec::Lossless]);
            assert!(advice.advised.is_empty());
            [Codec::Raw, Codec::Lossless].map(|codec| {
                let of = |one: &&Candidate| one.setting == Setting { codec, ..NOW };
                advice.candidates.iter().find(of).expect("it was compared").figure
            })
        };
        let ([raw, lossless], [raw_waits, lossless_waits]) = (figures(true), figures(false));
        assert!(raw == lossless && raw == raw_waits && lossless_waits > raw_waits);
    }

    #[test]
    fn memory_is_of_frames_and_what_fits_none_is_not_compared() {
        let two = || (0..2).map(|_| served(keys(1, 8), None)).collect();
        let mut sample = sample(two(), 64);
        sample.frames.insert(2304, 64);
        let codecs = [Codec::Raw, Codec::Int8, Codec::Int4];
        let advice = advise(Target::Memory, NOW, &sample, &codecs);
        assert_eq!(advice.advised, BTreeMap::from([("codec", Changed { from: "raw", to: "int8" })]));
        assert_eq!((advice.before, advice.after), (Some(4096.0), Some(2304.0)));
        sample.frames.remove(&4096);
        assert!(advise(Target::Memory, NOW, &sample, &codecs).candidates.is_empty());
        assert!(
            "beauty".parse::<Target>().expect_err("unknown").contains("'latency', 'memory', 'throughput'")
        );
    }
}
