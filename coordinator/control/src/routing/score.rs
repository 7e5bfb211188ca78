//! What a request would cost at each engine, in milli-tokens: what is cached costs a part of computing it, by where it is; who
//! waits and who runs costs what it is weighed at. Whole numbers, so that every coordinator says the same.

use super::index::Own;
use super::words;
use kvhive_protocol::engines::{EngineLoad, Known};
use kvhive_protocol::routing::{COMPUTE, Part, Ranked, Term, Weights};
use xxhash_rust::xxh3::xxh3_64;

/// A stretch of a prompt that kvhive covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// How long, in tokens.
    pub tokens: u64,
    /// How much of that is in memory; the rest is on disk.
    pub in_memory: u64,
    /// It is held by the node on the engine's host.
    pub is_local: bool,
}

/// One engine, as it is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// Its name.
    pub engine: String,
    /// What its own cache covers, in its own blocks.
    pub own: Own,
    /// Tokens of those.
    pub block_tokens: u32,
    /// What kvhive covers from the first token on, without a gap.
    pub hive: Vec<Piece>,
    /// Bytes of one token's part of a block in kvhive, if it is known.
    pub token_bytes: Option<u64>,
    /// How busy it is, if anybody said.
    pub load: Option<EngineLoad>,
    /// How old that is, in milliseconds.
    pub load_age_ms: Option<u64>,
    /// Tokens to be computed of requests that were sent there since.
    pub taken_tokens: u64,
    /// What is known of its own cache.
    pub known: Known,
}

/// Ranks engines for a prompt of so many tokens: the cheapest first; of equals the least busy, then by name.
pub fn rank(tokens: u64, engines: Vec<Judged>, weights: &Weights) -> Vec<Ranked> {
    let busy = |one: &Judged| one.load.map_or(0, |load| u64::from(load.running) + u64::from(load.waiting));
    let mut ranked: Vec<(u64, Ranked)> =
        engines.into_iter().map(|one| (busy(&one), judge(tokens, one, weights))).collect();
    ranked.sort_by(|(busy, one), (other_busy, other)| {
        (one.cost, busy, &one.engine).cmp(&(other.cost, other_busy, &other.engine))
    });
    let mut ranked: Vec<Ranked> = ranked.into_iter().map(|(_, one)| one).collect();
    if let Some(first) = ranked.first_mut() {
        first.chance_ppm = 1_000_000;
    }
    ranked
}

/// Draws who comes first among ranked engines: one that is `temperature` tokens dearer than another is chosen e times more rarely.
/// Without a temperature nothing changes.
pub fn choose(ranked: &mut [Ranked], temperature: u32, seed: u64) {
    let Some(cheapest) = ranked.first().map(|one| one.cost) else { return };
    if temperature == 0 {
        return;
    }
    let scale = f64::from(temperature) * COMPUTE as f64;
    let odds: Vec<f64> = ranked.iter().map(|one| (-((one.cost - cheapest) as f64) / scale).exp()).collect();
    let sum: f64 = odds.iter().sum();
    for (one, odds) in ranked.iter_mut().zip(&odds) {
        one.chance_ppm = (odds / sum * 1e6).round() as u32;
    }
    // 53 bits of a hash of the seed, as a part of one.
    let mut left = (xxh3_64(&seed.to_le_bytes()) >> 11) as f64 / (1u64 << 53) as f64 * sum;
    let chosen = odds.iter().position(|odds| {
        left -= odds;
        left < 0.0
    });
    ranked[..=chosen.unwrap_or(0)].rotate_right(1);
}

/// Tokens of a prompt by where they are; what none of them covers is computed.
#[derive(Default)]
struct Covered {
    device: u64,
    host: u64,
    disk: u64,
    hive_local: u64,
    hive_memory: u64,
    hive_disk: u64,
    compute: u64,
}

fn judge(tokens: u64, one: Judged, weights: &Weights) -> Ranked {
    let covered = covered(tokens, &one);
    let load = one.load.unwrap_or_default();
    let [hive_local, hive_memory, hive_disk] = hive_weights(&one, weights);
    let waiting = match load.queued_tokens {
        Some(queued) => (u64::from(queued), COMPUTE),
        None => (u64::from(load.waiting), u64::from(weights.waiting) * COMPUTE),
    };
    let usage = u64::from(weights.kv_usage) * COMPUTE;
    let parts = [
        (Part::EngineDevice, covered.device, 0),
        (Part::EngineHost, covered.host, weights.engine_host.into()),
        (Part::EngineDisk, covered.disk, weights.engine_disk.into()),
        (Part::HiveLocal, covered.hive_local, hive_local),
        (Part::HiveMemory, covered.hive_memory, hive_memory),
        (Part::HiveDisk, covered.hive_disk, hive_disk),
        (Part::Compute, covered.compute, COMPUTE),
        (Part::Running, load.running.into(), u64::from(weights.running) * COMPUTE),
        (Part::Waiting, waiting.0, waiting.1),
        (Part::Taken, one.taken_tokens, COMPUTE),
        (Part::KvUsage, load.kv_usage_ppm.into(), usage),
    ];
    let terms: Vec<Term> = parts
        .into_iter()
        .filter(|(_, amount, _)| *amount > 0)
        .map(|(part, amount, weight)| {
            let whole = amount.saturating_mul(weight);
            let cost = if part == Part::KvUsage { whole / 1_000_000 } else { whole };
            Term { part, amount, weight, cost }
        })
        .collect();
    let cost = terms.iter().fold(0u64, |sum, term| sum.saturating_add(term.cost));
    let reason = words::reason(tokens, cost, &terms, &one);
    let Judged { engine, known, load_age_ms, .. } = one;
    Ranked { engine, cost, terms, chance_ppm: 0, known, load_age_ms, reason }
}

/// Shares a prompt out: first what the engine has itself, after that what kvhive has, the rest is computed.
fn covered(tokens: u64, one: &Judged) -> Covered {
    let mut left = tokens;
    let mut take = |wanted: u64| {
        let taken = wanted.min(left);
        left -= taken;
        taken
    };
    let own = |blocks: u64| blocks.saturating_mul(one.block_tokens.into());
    let mut covered = Covered {
        device: take(own(one.own.device)),
        host: take(own(one.own.host)),
        disk: take(own(one.own.disk)),
        ..Covered::default()
    };
    let mut skip = covered.device + covered.host + covered.disk;
    for piece in &one.hive {
        let rest = piece.tokens.saturating_sub(skip);
        skip = skip.saturating_sub(piece.tokens);
        let rest = take(rest);
        // Which of a stretch is in memory is not said: of what is left of it as much as of all of it.
        let scaled = u128::from(piece.in_memory.min(piece.tokens)) * u128::from(rest);
        let in_memory = (scaled / u128::from(piece.tokens.max(1))) as u64;
        if piece.is_local {
            covered.hive_local += in_memory;
        } else {
            covered.hive_memory += in_memory;
        }
        covered.hive_disk += rest - in_memory;
    }
    covered.compute = left;
    covered
}

/// Returns what tokens cost in kvhive: on the node beside the engine, in other memory, on disk. Where the engine says how quickly
/// it fetches and computes, that counts; nothing is dearer than computing it, which the engine would do instead.
fn hive_weights(one: &Judged, weights: &Weights) -> [u64; 3] {
    let measured = || {
        let load = one.load?;
        let rate = u128::from(load.fetch_bytes_per_s.filter(|rate| *rate > 0)?);
        let prefill = u128::from(load.prefill_tokens_per_s?);
        let cost = u128::from(one.token_bytes?) * prefill * u128::from(COMPUTE) / rate;
        u64::try_from(cost).ok()
    };
    let memory = measured().unwrap_or(weights.hive_memory.into()).min(COMPUTE);
    let local = u64::from(weights.hive_local).min(memory);
    let disk = u64::from(weights.hive_disk).max(memory).min(COMPUTE);
    [local, memory, disk]
}

#[cfg(test)]
#[path = "score_test.rs"]
mod tests;
