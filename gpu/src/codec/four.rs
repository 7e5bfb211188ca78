//! Four bits a number. A plane is cut into tiles of at most [`TILE_TOKENS`] tokens and [`TILE_CHANNELS`] channels of one
//! head; tokens outermost, then heads, then channels. A tile's numbers are grouped along tokens or channels; a group has
//! a scale and a zero point, a number is `(zero + code) * scale`.
//!
//! A tile is stored as one byte of exponent, which is even and whose lowest bit says "by token" where the tile may be
//! grouped in two ways; the groups' scales, four bits each; their zero points, a byte each; the codes, every token's from
//! a new byte on; zeros up to the length of the other way. What comes earlier is in the lower bits. A scale is
//! `m * 2^(exponent - 127 + (nibble >> 1))` with m 1 for an even nibble and 1.5 for an odd one. A zero point of -128 makes
//! the whole group NaN.
//!
//! A code has four bits, but three in values of [`CHANNEL_TOKENS`] tokens and more, fewer than a whole tile's, that are
//! grouped by channel: so many scales leave no more of the bytes that grouping by token takes. Where channels walk,
//! their range over some tokens is so much less than that of a token that three bits are several times as close.
#![allow(unsafe_code, reason = "calls functions compiled for instructions that the CPU was asked about")]

use super::eight::CHANNEL_TOKENS;
use super::shape::{Plane, Tensor};
use super::wide::{Path, Portable, ROUNDER, Wide};

/// Tokens of a whole tile, and of a group along the tokens: KIVI's group.
const TILE_TOKENS: usize = 32;
/// Channels of a tile: with its tokens 16 KiB of binary32, which stay in the first cache.
const TILE_CHANNELS: usize = 128;
const TILE: usize = TILE_TOKENS * TILE_CHANNELS;
/// The most groups of a tile, whichever way.
const GROUPS: usize = 128;
/// Channels of a group along the channels: of a whole tile, and of one with fewer tokens, whose keys' scales cost more.
const GROUP_CHANNELS: usize = 32;
const SHORT_GROUP_CHANNELS: usize = 64;
/// The zero point of a group with a NaN in it.
const NAN_ZERO: i8 = -128;
/// The largest magnitude of a zero point, and of zero point and code together.
const LARGEST: f32 = 127.0;
/// Where a tile's scales start.
const SCALES: usize = 1;
/// Set in the exponent of a tile that is grouped by token and might be by channel.
const BY_TOKEN: u8 = 1;

/// How a tile's numbers are grouped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grouping {
    /// One channel of all the tile's tokens, with codes of so many bits.
    Channel { bits: usize },
    /// So many channels of one token, with codes of four bits.
    Token { channels: usize },
}

impl Grouping {
    /// Returns the groupings that a tile of so many tokens may have: the one that draws go to, and the other.
    #[inline(always)]
    fn choices(keys: bool, tokens: usize) -> (Grouping, Option<Grouping>) {
        let by_channel = Grouping::Channel { bits: 4 };
        let by_token = Grouping::Token { channels: GROUP_CHANNELS };
        let short = Grouping::Token { channels: SHORT_GROUP_CHANNELS };
        match (tokens, keys) {
            (TILE_TOKENS, true) => (by_channel, Some(by_token)),
            (TILE_TOKENS, false) => (by_token, Some(by_channel)),
            (CHANNEL_TOKENS.., true) => (by_channel, None),
            (CHANNEL_TOKENS.., false) => (short, Some(Grouping::Channel { bits: 3 })),
            _ => (short, None),
        }
    }

    #[inline(always)]
    fn groups(self, tokens: usize, channels: usize) -> usize {
        match self {
            Grouping::Channel { .. } => channels,
            Grouping::Token { channels: each } => tokens * channels.div_ceil(each),
        }
    }

    #[inline(always)]
    fn bits(self) -> usize {
        match self {
            Grouping::Channel { bits } => bits,
            Grouping::Token { .. } => 4,
        }
    }

    #[inline(always)]
    fn largest_code(self) -> f32 {
        if self.bits() == 3 { 7.0 } else { 15.0 }
    }
}

/// A tile's place in its plane.
#[derive(Clone, Copy)]
struct Tile {
    token: usize,
    column: usize,
    tokens: usize,
    channels: usize,
}

/// Where the parts of a tile of this many tokens and channels start.
struct Parts {
    zeros: usize,
    codes: usize,
    row: usize,
}

impl Parts {
    #[inline(always)]
    fn of(grouping: Grouping, tokens: usize, channels: usize) -> Parts {
        let groups = grouping.groups(tokens, channels);
        let zeros = SCALES + groups.div_ceil(2);
        Parts { zeros, codes: zeros + groups, row: (channels * grouping.bits()).div_ceil(8) }
    }
}

/// Returns the bytes of a tile. They depend on the shape alone: enough for either grouping.
#[inline(always)]
fn tile_bytes(keys: bool, tokens: usize, channels: usize) -> usize {
    let (usual, other) = Grouping::choices(keys, tokens);
    let bytes = |grouping| {
        let parts = Parts::of(grouping, tokens, channels);
        parts.codes + tokens * parts.row
    };
    bytes(usual).max(other.map_or(0, bytes))
}

/// Returns the bytes of a whole tensor; `None` when they overflow.
pub(super) fn stored_bytes(tensor: &Tensor) -> Option<u64> {
    // What a tile adds to its numbers' bytes is bounded by a small multiple of them, so only products can overflow.
    let strip = |keys: bool, tokens: usize| -> Option<u64> {
        let whole =
            (tensor.head_dim / TILE_CHANNELS as u64)
                .checked_mul(tile_bytes(keys, tokens, TILE_CHANNELS) as u64)?;
        let rest = (tensor.head_dim % TILE_CHANNELS as u64) as usize;
        let last = if rest == 0 { 0 } else { tile_bytes(keys, tokens, rest) as u64 };
        whole.checked_add(last)?.checked_mul(tensor.heads)
    };
    let plane = |keys: bool| -> Option<u64> {
        let whole = (tensor.tokens / TILE_TOKENS as u64).checked_mul(strip(keys, TILE_TOKENS)?)?;
        match (tensor.tokens % TILE_TOKENS as u64) as usize {
            0 => Some(whole),
            rest => whole.checked_add(strip(keys, rest)?),
        }
    };
    plane(true)?.checked_add(plane(false)?)?.checked_mul(tensor.plane_count() / 2)
}

/// Returns the bytes of a plane.
pub(super) fn plane_bytes(plane: &Plane) -> usize {
    tiles(plane).map(|tile| tile_bytes(plane.keys, tile.tokens, tile.channels)).sum()
}

/// Encodes a tensor; both lengths are checked.
pub(super) fn encode(path: Path, tensor: &Tensor, raw: &[u8], stored: &mut [u8]) {
    match path {
        Path::Portable => encode_planes::<Portable>(tensor, raw, stored),
        // SAFETY: this path is chosen only where the CPU has AVX2 and F16C.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { encode_avx2(tensor, raw, stored) },
    }
}

/// Decodes a tensor; both lengths are checked.
pub(super) fn decode(path: Path, tensor: &Tensor, stored: &[u8], raw: &mut [u8]) {
    match path {
        Path::Portable => decode_planes::<Portable>(tensor, stored, raw),
        // SAFETY: this path is chosen only where the CPU has AVX2 and F16C.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { decode_avx2(tensor, stored, raw) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn encode_avx2(tensor: &Tensor, raw: &[u8], stored: &mut [u8]) {
    encode_planes::<super::avx2::Avx2>(tensor, raw, stored);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2(tensor: &Tensor, stored: &[u8], raw: &mut [u8]) {
    decode_planes::<super::avx2::Avx2>(tensor, stored, raw);
}

fn tiles(plane: &Plane) -> impl Iterator<Item = Tile> + use<> {
    let Plane { tokens, heads, head_dim, .. } = *plane;
    (0..tokens).step_by(TILE_TOKENS).flat_map(move |token| {
        (0..heads).flat_map(move |head| {
            (0..head_dim).step_by(TILE_CHANNELS).map(move |channel| Tile {
                token,
                column: head * head_dim + channel,
                tokens: TILE_TOKENS.min(tokens - token),
                channels: TILE_CHANNELS.min(head_dim - channel),
            })
        })
    })
}

/// What the groups of a tile need.
struct Fit {
    grouping: Grouping,
    groups: usize,
    /// The least step that spans the group's finite values, as [`level`] counts.
    levels: [i32; GROUPS],
    low: [f32; GROUPS],
    has_nan: [bool; GROUPS],
}

/// Returns which scale is the first not under `step`: twice its exponent, and one more for a mantissa of 1.5.
#[inline(always)]
fn level(step: f32) -> i32 {
    (step.to_bits() as i32 + 0x3F_FFFF) >> 22
}

#[inline(always)]
fn scale(exponent: u8, nibble: u8) -> f32 {
    // Only damaged bytes reach the limit; it keeps what they decode to finite.
    let power = (u32::from(exponent) + u32::from(nibble >> 1)).min(254);
    f32::from_bits(power << 23 | u32::from(nibble & 1) << 22)
}

/// Returns the exponent under which the highest of these levels has a nibble, the lowest such; the lowest even one where
/// its lowest bit has another use.
#[inline(always)]
fn exponent_for(highest: i32, has_choice: bool) -> u8 {
    let exponent = ((highest - 14) >> 1).max(1) as u8;
    if has_choice { exponent.next_multiple_of(2) } else { exponent }
}

#[inline(always)]
fn nibble_for(level: i32, exponent: u8) -> u8 {
    (level - 2 * i32::from(exponent)).clamp(0, 15) as u8
}

impl Fit {
    #[inline(always)]
    fn of(grouping: Grouping, tile: &Tile, values: &[f32; TILE]) -> Fit {
        let groups = grouping.groups(tile.tokens, tile.channels);
        let mut low = [f32::INFINITY; GROUPS];
        let mut high = [f32::NEG_INFINITY; GROUPS];
        let mut nan = [0u32; GROUPS];
        match grouping {
            Grouping::Channel { .. } => {
                for row in values.chunks_exact(TILE_CHANNELS).take(tile.tokens) {
                    let row = &row[..tile.channels];
                    for (((value, low), high), nan) in row.iter().zip(&mut low).zip(&mut high).zip(&mut nan) {
                        (*low, *high) = widened(*low, *high, *value);
                        *nan |= u32::from(value.is_nan());
                    }
                }
            }
            Grouping::Token { channels } => {
                let each = tile.channels.div_ceil(channels);
                for (token, row) in values.chunks_exact(TILE_CHANNELS).take(tile.tokens).enumerate() {
                    for (at, part) in row[..tile.channels].chunks(channels).enumerate() {
                        let group = token * each + at;
                        (low[group], high[group], nan[group]) = range(part);
                    }
                }
            }
        }
        let (mut levels, most) = ([0; GROUPS], grouping.largest_code());
        for at in 0..groups {
            if low[at] > high[at] {
                (low[at], high[at]) = (0.0, 0.0);
            }
            // Apart first: their difference may overflow.
            let spanning = high[at] / most - low[at] / most;
            let reaching = low[at].abs().max(high[at].abs()) / LARGEST;
            levels[at] = level(if spanning > reaching { spanning } else { reaching });
        }
        Fit { grouping, groups, levels, low, has_nan: nan.map(|nan| nan != 0) }
    }

    #[inline(always)]
    fn highest(&self) -> i32 {
        self.levels[..self.groups].iter().copied().max().unwrap_or(0)
    }

    /// Returns the summed squares of the scales, in units of the smallest scale's quarter, each as often as its group
    /// has numbers. Whole numbers, so that the order of adding them does not matter.
    #[inline(always)]
    fn cost(&self, tile: &Tile, exponent: u8) -> u64 {
        let mut sum = 0;
        for (at, level) in self.levels[..self.groups].iter().enumerate() {
            let nibble = nibble_for(*level, exponent);
            let halves = 2 + u64::from(nibble & 1);
            let numbers = match self.grouping {
                Grouping::Channel { .. } => tile.tokens,
                Grouping::Token { channels } => {
                    let each = tile.channels.div_ceil(channels);
                    channels.min(tile.channels - at % each * channels)
                }
            };
            sum += ((halves * halves) << (nibble >> 1 << 1)) * numbers as u64;
        }
        sum
    }
}

#[inline(always)]
fn widened(low: f32, high: f32, value: f32) -> (f32, f32) {
    // An infinity is above every finite value, and NaN above none: both leave the range as it is.
    let is_finite = value.abs() < f32::INFINITY;
    let low = if is_finite && value < low { value } else { low };
    (low, if is_finite && value > high { value } else { high })
}

#[inline(always)]
fn range(values: &[f32]) -> (f32, f32, u32) {
    const LANES: usize = 8;
    let (mut low, mut high, mut nan) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0u32; LANES]);
    for some in values.chunks(LANES) {
        for (((value, low), high), nan) in some.iter().zip(&mut low).zip(&mut high).zip(&mut nan) {
            (*low, *high) = widened(*low, *high, *value);
            *nan |= u32::from(value.is_nan());
        }
    }
    let least = low.into_iter().fold(f32::INFINITY, |a, b| if b < a { b } else { a });
    let most = high.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    (least, most, nan.into_iter().fold(0, |a, b| a | b))
}

#[inline(always)]
fn best_fit(keys: bool, tile: &Tile, values: &[f32; TILE]) -> Fit {
    let (usual, other) = Grouping::choices(keys, tile.tokens);
    let usual = Fit::of(usual, tile, values);
    let Some(other) = other else { return usual };
    let other = Fit::of(other, tile, values);
    let exponent = exponent_for(usual.highest().max(other.highest()), true);
    if other.cost(tile, exponent) < usual.cost(tile, exponent) { other } else { usual }
}

#[inline(always)]
fn encode_planes<W: Wide>(tensor: &Tensor, raw: &[u8], mut stored: &mut [u8]) {
    let mut values = [0f32; TILE];
    for plane in tensor.planes() {
        for tile in tiles(&plane) {
            let (place, rest) = stored.split_at_mut(tile_bytes(plane.keys, tile.tokens, tile.channels));
            for (at, row) in values.chunks_exact_mut(TILE_CHANNELS).take(tile.tokens).enumerate() {
                let numbers = plane.range(tile.token + at, tile.column, tile.channels);
                W::load(plane.element, &raw[numbers], &mut row[..tile.channels]);
            }
            encode_tile(plane.keys, &tile, &values, place);
            stored = rest;
        }
    }
}

#[inline(always)]
fn encode_tile(keys: bool, tile: &Tile, values: &[f32; TILE], place: &mut [u8]) {
    let fit = best_fit(keys, tile, values);
    let has_choice = Grouping::choices(keys, tile.tokens).1.is_some();
    let parts = Parts::of(fit.grouping, tile.tokens, tile.channels);
    let exponent = exponent_for(fit.highest(), has_choice);
    let (head, codes) = place.split_at_mut(parts.codes);
    head.fill(0);
    let is_by_token = has_choice && matches!(fit.grouping, Grouping::Token { .. });
    head[0] = exponent | if is_by_token { BY_TOKEN } else { 0 };
    let (mut inverses, mut zeros) = ([0f32; GROUPS], [0f32; GROUPS]);
    for at in 0..fit.groups {
        let nibble = nibble_for(fit.levels[at], exponent);
        head[SCALES + at / 2] |= nibble << (at % 2 * 4);
        let zero = if fit.has_nan[at] {
            NAN_ZERO
        } else {
            inverses[at] = 1.0 / scale(exponent, nibble);
            zeros[at] = (fit.low[at] * inverses[at] + ROUNDER) - ROUNDER;
            zeros[at] as i8
        };
        head[parts.zeros + at] = zero as u8;
    }
    let (mut inverse, mut zero) = (inverses, zeros);
    let (codes, unused) = codes.split_at_mut(tile.tokens * parts.row);
    unused.fill(0);
    let rows = values.chunks_exact(TILE_CHANNELS).zip(codes.chunks_exact_mut(parts.row));
    for (token, (row, codes)) in rows.enumerate() {
        spread(fit.grouping, tile, token, &inverses, &mut inverse);
        spread(fit.grouping, tile, token, &zeros, &mut zero);
        let mut wide = [0u8; TILE_CHANNELS];
        for (((code, value), inverse), zero) in
            wide[..tile.channels].iter_mut().zip(row).zip(&inverse).zip(&zero)
        {
            *code = code_of(*value * *inverse, *zero, fit.grouping.largest_code());
        }
        pack(fit.grouping.bits(), &wide, codes);
    }
}

/// Packs codes of three or four bits, the earlier ones into lower bits.
#[inline(always)]
fn pack(bits: usize, wide: &[u8; TILE_CHANNELS], codes: &mut [u8]) {
    if bits == 4 {
        for (code, two) in codes.iter_mut().zip(wide.chunks_exact(2)) {
            *code = two[0] | two[1] << 4;
        }
        return;
    }
    for (three, eight) in codes.chunks_mut(3).zip(wide.as_chunks::<8>().0) {
        let word = eight.iter().rev().fold(0u32, |word, code| word << 3 | u32::from(*code));
        three.copy_from_slice(&word.to_le_bytes()[..three.len()]);
    }
}

/// Undoes [`pack`]; there are as many codes as a row has numbers, and zeros.
#[inline(always)]
fn unpack(bits: usize, codes: &[u8], wide: &mut [u8; TILE_CHANNELS]) {
    if bits == 4 {
        for (two, code) in wide.chunks_exact_mut(2).zip(codes) {
            (two[0], two[1]) = (code & 15, code >> 4);
        }
        return;
    }
    for (three, eight) in codes.chunks(3).zip(wide.as_chunks_mut::<8>().0) {
        let word = three.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for (at, code) in eight.iter_mut().enumerate() {
            *code = (word >> (3 * at) & 7) as u8;
        }
    }
}

/// Returns the code of a scaled value over a zero point; 0 for NaN, whose group says that it is one.
#[inline(always)]
fn code_of(scaled: f32, zero: f32, largest: f32) -> u8 {
    let top = zero + largest;
    let value = if scaled > top { top } else { scaled };
    let value = if value < zero { zero } else { value };
    let code = (value + ROUNDER).to_bits().wrapping_sub((zero + ROUNDER).to_bits());
    if scaled.is_nan() { 0 } else { code as u8 }
}

/// Sets what belongs to the groups of one token's numbers. By channel it is the same for each token and already there.
#[inline(always)]
fn spread(
    grouping: Grouping,
    tile: &Tile,
    token: usize,
    of_groups: &[f32; GROUPS],
    of_numbers: &mut [f32; TILE_CHANNELS],
) {
    if let Grouping::Token { channels } = grouping {
        let each = tile.channels.div_ceil(channels);
        let groups = &of_groups[token * each..][..each];
        for (part, value) in of_numbers[..tile.channels].chunks_mut(channels).zip(groups) {
            part.fill(*value);
        }
    }
}

#[inline(always)]
fn decode_planes<W: Wide>(tensor: &Tensor, mut stored: &[u8], raw: &mut [u8]) {
    for plane in tensor.planes() {
        for tile in tiles(&plane) {
            let (place, rest) = stored.split_at(tile_bytes(plane.keys, tile.tokens, tile.channels));
            decode_tile::<W>(&plane, &tile, place, raw);
            stored = rest;
        }
    }
}

#[inline(always)]
fn decode_tile<W: Wide>(plane: &Plane, tile: &Tile, place: &[u8], raw: &mut [u8]) {
    let (usual, other) = Grouping::choices(plane.keys, tile.tokens);
    let is_by_token = place[0] & BY_TOKEN != 0;
    let (grouping, exponent) = match other {
        Some(other) if matches!(other, Grouping::Token { .. }) == is_by_token => {
            (other, place[0] & !BY_TOKEN)
        }
        Some(_) => (usual, place[0] & !BY_TOKEN),
        None => (usual, place[0]),
    };
    let parts = Parts::of(grouping, tile.tokens, tile.channels);
    let (head, codes) = place.split_at(parts.codes);
    let (mut scales, mut zeros) = ([0f32; GROUPS], [0f32; GROUPS]);
    for at in 0..grouping.groups(tile.tokens, tile.channels) {
        let nibble = head[SCALES + at / 2] >> (at % 2 * 4) & 15;
        let zero = head[parts.zeros + at] as i8;
        zeros[at] = f32::from(zero);
        scales[at] = if zero == NAN_ZERO { f32::NAN } else { scale(exponent, nibble) };
    }
    let (mut factor, mut zero) = (scales, zeros);
    for (token, codes) in codes.chunks_exact(parts.row).take(tile.tokens).enumerate() {
        spread(grouping, tile, token, &scales, &mut factor);
        spread(grouping, tile, token, &zeros, &mut zero);
        let mut wide = [0u8; TILE_CHANNELS];
        unpack(grouping.bits(), codes, &mut wide);
        let mut values = [0f32; TILE_CHANNELS];
        for (((value, code), factor), zero) in values.iter_mut().zip(&wide).zip(&factor).zip(&zero) {
            *value = (*zero + f32::from(*code)) * *factor;
        }
        let numbers = plane.range(tile.token + token, tile.column, tile.channels);
        W::save(plane.element, &values[..tile.channels], &mut raw[numbers]);
    }
}
