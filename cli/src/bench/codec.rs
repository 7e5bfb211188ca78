//! `kvhive bench codec`: each codec's speed on one core next to a copy of the same bytes, what it stores of fp16, and
//! what it does to attention's output.

use super::Row;
use anyhow::{Result, ensure};
use kvhive_gpu::codec::{Codec, Element, Order, Shape, decode, encode};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::hint::black_box;
use std::time::Instant;

const LAYERS: u32 = 32;
const KV_HEADS: u32 = 8;
const HEAD_DIM: u32 = 128;
/// Tokens of a block whose speed is measured, and of those whose ratio and error are.
const TOKENS: u32 = 64;
const BLOCK_TOKENS: [u32; 4] = [16, 32, 64, 128];
/// Blocks that a run goes through: far more than the caches hold of one, so that each comes from memory.
const BLOCKS: usize = 16;
/// Tokens attended to, and queries that do.
const CONTEXT: usize = 512;
const QUERIES: usize = 64;
/// One channel in so many of the keys is an outlier, one of these times as large as the others.
const OUTLIER_EVERY: usize = 32;
const OUTLIER_GAINS: [u8; 2] = [10, 20];
/// Tensors and queries that the error is measured with; the speed is with the first.
const SEEDS: [u64; 3] = [7, 8, 9];

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for codec in [Codec::Int8, Codec::Fp8, Codec::Int4, Codec::Lossless] {
        rows.extend(speed(codec, Walk::new(SEEDS[0], OUTLIER_GAINS[0]), "", runs)?);
    }
    let unrelated = Walk { keeps: 0.0, step: 1.0, ..Walk::new(SEEDS[0], OUTLIER_GAINS[0]) };
    rows.extend(speed(Codec::Lossless, unrelated, "-unrelated", runs)?);
    for tokens in BLOCK_TOKENS {
        for gain in OUTLIER_GAINS {
            rows.extend(loss(tokens, gain, &SEEDS)?);
        }
    }
    Ok(rows)
}

fn shape(tokens: u32, layers: u32) -> Shape {
    Shape::Tensor {
        layers,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        tokens,
        element: Element::F16,
        order: Order::LayersFirst,
    }
}

/// Both ways of one codec, a copy of the same bytes before each.
fn speed(codec: Codec, mut walk: Walk, case: &str, runs: u32) -> Result<[Row; 2]> {
    let shape = shape(TOKENS, LAYERS);
    let blocks: Vec<Vec<u8>> =
        (0..BLOCKS).map(|_| walk.block(LAYERS as usize, KV_HEADS as usize, TOKENS as usize)).collect();
    let bytes: usize = blocks.iter().map(Vec::len).sum();
    let mut stored = vec![Vec::new(); BLOCKS];
    let mut back = blocks.clone();
    let rate = |begun: Instant| bytes as f64 / begun.elapsed().as_secs_f64() / 1e9;
    let (mut encodes, mut decodes, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    // The first round touches all memory and is not counted.
    for round in 0..=runs {
        let begun = Instant::now();
        for (block, back) in blocks.iter().zip(&mut back) {
            black_box(&mut *back).copy_from_slice(black_box(block));
        }
        let copy = rate(begun);
        let begun = Instant::now();
        for (block, stored) in blocks.iter().zip(&mut stored) {
            encode(codec, &shape, black_box(block), stored)?;
        }
        let encoded = rate(begun);
        let begun = Instant::now();
        for (stored, back) in stored.iter().zip(&mut back) {
            decode(codec, &shape, black_box(stored), back)?;
        }
        let decoded = rate(begun);
        ensure!(!codec.is_exact() || blocks == back, "{codec} changed a block");
        if round > 0 {
            copies.push(copy);
            encodes.push(encoded);
            decodes.push(decoded);
        }
    }
    let row = |way, ours: &[f64]| {
        Row::of_runs(&format!("{codec}-{way}{case}"), "GB/s", ours, &copies, "memcpy of the raw bytes")
    };
    Ok([row("encode", &encodes), row("decode", &decodes)])
}

/// What each codec stores, and what it does to attention's output, in blocks of this many tokens; a run a seed.
fn loss(tokens: u32, gain: u8, seeds: &[u64]) -> Result<Vec<Row>> {
    let codecs = [Codec::Lossless, Codec::Int8, Codec::Fp8, Codec::Int4];
    let (mut ratios, mut errors) = (vec![Vec::new(); codecs.len()], vec![Vec::new(); codecs.len()]);
    let mut baselines = Vec::new();
    let shape = shape(tokens, 1);
    for seed in seeds {
        let mut walk = Walk::new(*seed, gain);
        let blocks: Vec<Vec<u8>> = (0..CONTEXT / tokens as usize)
            .map(|_| walk.block(1, KV_HEADS as usize, tokens as usize))
            .collect();
        let raw: usize = blocks.iter().map(Vec::len).sum();
        let queries: Vec<f32> =
            (0..KV_HEADS as usize * QUERIES * HEAD_DIM as usize).map(|_| walk.normal()).collect();
        let exact = attention(&queries, &blocks);
        let plain: Vec<Vec<u8>> = blocks.iter().map(|block| four_bits_by_token(block)).collect();
        baselines.push(distance(&exact, &attention(&queries, &plain)));
        for ((codec, ratios), errors) in codecs.into_iter().zip(&mut ratios).zip(&mut errors) {
            let (mut stored, mut bytes) = (Vec::new(), 0);
            let mut back = blocks.clone();
            for (block, back) in blocks.iter().zip(&mut back) {
                encode(codec, &shape, block, &mut stored)?;
                decode(codec, &shape, &stored, back)?;
                bytes += stored.len();
            }
            ratios.push(bytes as f64 / raw as f64);
            if !codec.is_exact() {
                errors.push(distance(&exact, &attention(&queries, &back)));
            }
        }
    }
    let mut rows = Vec::new();
    let case = format!("{tokens}-tokens-outliers-x{gain}");
    let raw = vec![1.0; seeds.len()];
    for ((codec, ratios), errors) in codecs.into_iter().zip(ratios).zip(errors) {
        rows.push(Row::of_runs(&format!("{codec}-stored-{case}"), "stored/raw", &ratios, &raw, "raw fp16"));
        if !errors.is_empty() {
            let case = format!("{codec}-attention-error-{case}");
            let baseline_name = "4 bits, one scale a token and head";
            rows.push(Row::of_runs(&case, "relative", &errors, &baselines, baseline_name));
        }
    }
    Ok(rows)
}

/// Tensors whose channels walk from token to token, from one block to the next; some channels of the keys are outliers.
struct Walk {
    random: SmallRng,
    levels: Vec<f32>,
    /// What of a number goes into the next token's: all of it, unless nothing is to be related.
    keeps: f32,
    /// A step's size next to the spread at the start.
    step: f32,
    gain: f32,
}

impl Walk {
    fn new(seed: u64, gain: u8) -> Walk {
        let random = SmallRng::seed_from_u64(seed);
        Walk { random, levels: Vec::new(), keeps: 1.0, step: 0.1, gain: f32::from(gain) }
    }

    /// Returns a roughly normal number of variance 1.
    fn normal(&mut self) -> f32 {
        let bits: u64 = self.random.random();
        // Four draws of 16 bits: their sum has mean 2 and variance 1/3.
        let sum: u64 = (0..4).map(|at| bits >> (16 * at) & 0xFFFF).sum();
        (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
    }

    /// Returns the next block, `[layers, 2, tokens, heads, head_dim]`.
    fn block(&mut self, layers: usize, heads: usize, tokens: usize) -> Vec<u8> {
        let width = heads * HEAD_DIM as usize;
        if self.levels.is_empty() {
            self.levels = (0..layers * 2 * width).map(|_| self.normal()).collect();
        }
        let mut raw = Vec::with_capacity(layers * 2 * tokens * width * 2);
        for plane in 0..layers * 2 {
            for _ in 0..tokens {
                for channel in 0..width {
                    let step = self.normal() * self.step;
                    let level = &mut self.levels[plane * width + channel];
                    *level = *level * self.keeps + step;
                    let is_outlier = plane % 2 == 0 && channel % OUTLIER_EVERY == 5;
                    let value = *level * if is_outlier { self.gain } else { 1.0 };
                    raw.extend_from_slice(&to_f16(value).to_le_bytes());
                }
            }
        }
        raw
    }
}

/// Rounds half up: only makes data. Magnitudes under 2^-14 become 0.
fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7FFF_FFFF);
    if magnitude < 0x3880_0000 { sign } else { sign | ((magnitude - 0x3800_0000 + 0x1000) >> 13) as u16 }
}

/// Subnormals, which a codec may give back, included.
fn from_f16(half: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(half & 0x7FFF) << 13) * f32::from_bits(0x7780_0000);
    if half & 0x8000 == 0 { magnitude } else { -magnitude }
}

fn numbers(block: &[u8]) -> Vec<f32> {
    block.chunks_exact(2).map(|two| from_f16(u16::from_le_bytes([two[0], two[1]]))).collect()
}

/// What an engine without a codec would do in four bits: symmetric, one scale a token and head.
fn four_bits_by_token(block: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(block.len());
    for head in numbers(block).chunks(HEAD_DIM as usize) {
        let scale = head.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs())) / 7.0;
        for value in head {
            raw.extend_from_slice(&to_f16((value / scale).round() * scale).to_le_bytes());
        }
    }
    raw
}

/// Returns softmax(QKᵀ/√d)V of every head and query over the blocks' tokens.
fn attention(queries: &[f32], blocks: &[Vec<u8>]) -> Vec<f64> {
    let (heads, dim) = (KV_HEADS as usize, HEAD_DIM as usize);
    let blocks: Vec<Vec<f32>> = blocks.iter().map(|block| numbers(block)).collect();
    let mut outputs = Vec::with_capacity(queries.len());
    for (at, query) in queries.chunks(dim).enumerate() {
        let head = at % heads;
        let rows = |keys: bool| {
            blocks.iter().flat_map(move |block| {
                let (of_keys, of_values) = block.split_at(block.len() / 2);
                let half = if keys { of_keys } else { of_values };
                half.chunks(heads * dim).map(move |row| &row[head * dim..][..dim])
            })
        };
        let logits: Vec<f64> = rows(true)
            .map(|key| {
                let dot: f32 = key.iter().zip(query).map(|(key, query)| key * query).sum();
                f64::from(dot) / (dim as f64).sqrt()
            })
            .collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut output = vec![0.0; dim];
        for (weight, value) in weights.iter().zip(rows(false)) {
            for (output, value) in output.iter_mut().zip(value) {
                *output += weight / sum * f64::from(*value);
            }
        }
        outputs.extend(output);
    }
    outputs
}

/// Returns |a - b| / |a|.
fn distance(exact: &[f64], other: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    norm(&mut exact.iter().zip(other).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int4_keeps_attention_within_one_percent_at_28_percent_of_the_bytes() {
        for (tokens, gain) in [(16, 10), (16, 20), (64, 20)] {
            let rows = loss(tokens, gain, &SEEDS[..1]).expect("the shapes are sound");
            let of = |start: &str| rows.iter().find(|row| row.case.starts_with(start)).expect("a row").ours;
            let error = of("int4-attention-error");
            assert!(error <= 0.01, "{tokens} tokens, outliers x{gain}: {error}");
            assert!(of("int4-stored") <= 0.28 && of("lossless-stored") < 0.7);
            assert!(of("int8-attention-error") < of("fp8-attention-error"));
        }
    }
}
