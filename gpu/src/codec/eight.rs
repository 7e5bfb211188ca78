//! Eight bits a number, int8 or fp8 e4m3. A plane is stored as its scales, bf16, then its codes, a byte a number, row
//! by row. Keys of at least [`CHANNEL_TOKENS`] tokens have a scale a channel, everything else a scale a token and head.
#![allow(unsafe_code, reason = "calls functions compiled for instructions that the CPU was asked about")]

use super::shape::{Plane, Tensor};
use super::wide::{PIECE, Path, Portable, ROUNDER, Wide, finite_magnitude, saturate};

/// Tokens from which on a scale a channel costs at most an eighth of the codes.
pub(super) const CHANNEL_TOKENS: usize = 16;

/// Bytes of a scale.
const SCALE: usize = 2;

/// Returns the bytes of a whole tensor; `None` when they overflow.
pub(super) fn stored_bytes(tensor: &Tensor) -> Option<u64> {
    let numbers = (tensor.heads * tensor.head_dim).checked_mul(tensor.tokens)?;
    let by_token = tensor.heads.checked_mul(tensor.tokens)?;
    let by_channel = tensor.heads * tensor.head_dim;
    let key_scales = if tensor.tokens >= CHANNEL_TOKENS as u64 { by_channel } else { by_token };
    let both = numbers.checked_mul(2)?.checked_add((key_scales.checked_add(by_token)?).checked_mul(2)?)?;
    both.checked_mul(tensor.plane_count() / 2)
}

/// Encodes a tensor; both lengths are checked.
pub(super) fn encode(path: Path, fp8: bool, tensor: &Tensor, raw: &[u8], stored: &mut [u8]) {
    match (path, fp8) {
        (Path::Portable, false) => encode_planes::<Portable, Int8>(tensor, raw, stored),
        (Path::Portable, true) => encode_planes::<Portable, Fp8>(tensor, raw, stored),
        // SAFETY: this path is chosen only where the CPU has AVX2 and F16C.
        #[cfg(target_arch = "x86_64")]
        (Path::Avx2, _) => unsafe { encode_avx2(fp8, tensor, raw, stored) },
    }
}

/// Decodes a tensor; both lengths are checked.
pub(super) fn decode(path: Path, fp8: bool, tensor: &Tensor, stored: &[u8], raw: &mut [u8]) {
    match (path, fp8) {
        (Path::Portable, false) => decode_planes::<Portable, Int8>(tensor, stored, raw),
        (Path::Portable, true) => decode_planes::<Portable, Fp8>(tensor, stored, raw),
        // SAFETY: this path is chosen only where the CPU has AVX2 and F16C.
        #[cfg(target_arch = "x86_64")]
        (Path::Avx2, _) => unsafe { decode_avx2(fp8, tensor, stored, raw) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn encode_avx2(fp8: bool, tensor: &Tensor, raw: &[u8], stored: &mut [u8]) {
    if fp8 {
        encode_planes::<super::wide::Avx2, Fp8>(tensor, raw, stored);
    } else {
        encode_planes::<super::wide::Avx2, Int8>(tensor, raw, stored);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn decode_avx2(fp8: bool, tensor: &Tensor, stored: &[u8], raw: &mut [u8]) {
    if fp8 {
        decode_planes::<super::wide::Avx2, Fp8>(tensor, stored, raw);
    } else {
        decode_planes::<super::wide::Avx2, Int8>(tensor, stored, raw);
    }
}

/// A code of one byte.
trait Code {
    /// The largest magnitude that has a code.
    const LARGEST: f32;
    /// Returns the code nearest to a scaled value; what is beyond the largest gets the largest.
    fn code(scaled: f32) -> u8;
    /// Returns what a code stands for before it is scaled.
    fn value(code: u8) -> f32;
}

/// Two's complement; -128 is NaN.
struct Int8;

impl Code for Int8 {
    const LARGEST: f32 = 127.0;

    #[inline(always)]
    fn code(scaled: f32) -> u8 {
        let rounded = (saturate(scaled, 127.0) + ROUNDER).to_bits() as u8;
        if scaled.is_nan() { 0x80 } else { rounded }
    }

    #[inline(always)]
    fn value(code: u8) -> f32 {
        if code == 0x80 { f32::NAN } else { f32::from(code as i8) }
    }
}

/// OCP e4m3: bias 7, no infinities, 0x7F and 0xFF are NaN.
struct Fp8;

impl Code for Fp8 {
    const LARGEST: f32 = 448.0;

    #[inline(always)]
    fn code(scaled: f32) -> u8 {
        let bits = saturate(scaled, 448.0).to_bits();
        let (sign, magnitude) = (bits >> 24 & 0x80, bits & 0x7FFF_FFFF);
        // Under 2^-6: the last place of 2^14 is 2^-9, the subnormals' step, so the sum rounds as they do.
        const STEP: f32 = 16384.0;
        let subnormal = (f32::from_bits(magnitude) + STEP).to_bits().wrapping_sub(STEP.to_bits());
        let normal = magnitude.wrapping_add(0x7_FFFF + (magnitude >> 20 & 1)).wrapping_sub(120 << 23) >> 20;
        let rest = if magnitude < 0x3C80_0000 { subnormal } else { normal };
        let rest = if scaled.is_nan() { 0x7F } else { rest };
        (sign | rest) as u8
    }

    #[inline(always)]
    fn value(code: u8) -> f32 {
        const STEP: f32 = 16384.0;
        let (sign, rest) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7F));
        let subnormal = (f32::from_bits(STEP.to_bits() | rest) - STEP).to_bits();
        let magnitude = if rest < 8 { subnormal } else { (rest << 20) + (120 << 23) };
        if rest == 0x7F { f32::NAN } else { f32::from_bits(sign | magnitude) }
    }
}

/// Returns the bits of the scale that brings a magnitude under the largest code, rounded up; 0 where its reciprocal
/// would not be finite: such a group is stored as zeros.
#[inline(always)]
fn scale_for<C: Code>(magnitude: i32) -> u16 {
    let exact = f32::from_bits(magnitude as u32) / C::LARGEST;
    let half = (exact.to_bits() + 0xFFFF) >> 16;
    if half < 0x0080 { 0 } else { half as u16 }
}

#[inline(always)]
fn scale_value(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Returns 1 / scale, 0 for a scale of 0.
#[inline(always)]
fn reciprocal(half: u16) -> f32 {
    if half == 0 { 0.0 } else { 1.0 / scale_value(half) }
}

#[inline(always)]
fn by_channel(plane: &Plane) -> bool {
    plane.keys && plane.tokens >= CHANNEL_TOKENS
}

#[inline(always)]
fn scales_bytes(plane: &Plane) -> usize {
    SCALE * if by_channel(plane) { plane.width() } else { plane.tokens * plane.heads }
}

#[inline(always)]
fn encode_planes<W: Wide, C: Code>(tensor: &Tensor, raw: &[u8], mut stored: &mut [u8]) {
    for plane in tensor.planes() {
        let (scales, rest) = stored.split_at_mut(scales_bytes(&plane));
        let (codes, rest) = rest.split_at_mut(plane.tokens * plane.width());
        if by_channel(&plane) {
            encode_channels::<W, C>(&plane, raw, scales, codes);
        } else {
            encode_tokens::<W, C>(&plane, raw, scales, codes);
        }
        stored = rest;
    }
}

#[inline(always)]
fn encode_channels<W: Wide, C: Code>(plane: &Plane, raw: &[u8], scales: &mut [u8], codes: &mut [u8]) {
    let width = plane.width();
    let mut piece = [0f32; PIECE];
    let mut inverses = [0f32; PIECE];
    for column in (0..width).step_by(PIECE) {
        let count = PIECE.min(width - column);
        let mut largest = [0i32; PIECE];
        for token in 0..plane.tokens {
            W::load(plane.element, &raw[plane.range(token, column, count)], &mut piece[..count]);
            for (most, value) in largest[..count].iter_mut().zip(&piece[..count]) {
                *most = finite_magnitude(*value).max(*most);
            }
        }
        let places = scales[column * SCALE..(column + count) * SCALE].chunks_exact_mut(SCALE);
        for ((place, inverse), most) in places.zip(&mut inverses).zip(&largest) {
            let half = scale_for::<C>(*most);
            *inverse = reciprocal(half);
            place.copy_from_slice(&half.to_le_bytes());
        }
        for token in 0..plane.tokens {
            W::load(plane.element, &raw[plane.range(token, column, count)], &mut piece[..count]);
            let places = &mut codes[token * width + column..][..count];
            for ((code, value), inverse) in places.iter_mut().zip(&piece).zip(&inverses) {
                *code = C::code(*value * *inverse);
            }
        }
    }
}

#[inline(always)]
fn encode_tokens<W: Wide, C: Code>(plane: &Plane, raw: &[u8], scales: &mut [u8], codes: &mut [u8]) {
    let mut piece = [0f32; PIECE];
    let rows = codes.chunks_exact_mut(plane.head_dim).zip(scales.chunks_exact_mut(SCALE));
    for (at, (codes, scale)) in rows.enumerate() {
        let (token, first) = (at / plane.heads, at % plane.heads * plane.head_dim);
        let mut largest = 0;
        for column in (0..plane.head_dim).step_by(PIECE) {
            let count = PIECE.min(plane.head_dim - column);
            W::load(plane.element, &raw[plane.range(token, first + column, count)], &mut piece[..count]);
            for value in &piece[..count] {
                largest = finite_magnitude(*value).max(largest);
            }
        }
        let half = scale_for::<C>(largest);
        let inverse = reciprocal(half);
        scale.copy_from_slice(&half.to_le_bytes());
        for column in (0..plane.head_dim).step_by(PIECE) {
            let count = PIECE.min(plane.head_dim - column);
            if plane.head_dim > PIECE {
                W::load(plane.element, &raw[plane.range(token, first + column, count)], &mut piece[..count]);
            }
            for (code, value) in codes[column..column + count].iter_mut().zip(&piece) {
                *code = C::code(*value * inverse);
            }
        }
    }
}

#[inline(always)]
fn decode_planes<W: Wide, C: Code>(tensor: &Tensor, mut stored: &[u8], raw: &mut [u8]) {
    for plane in tensor.planes() {
        let (scales, rest) = stored.split_at(scales_bytes(&plane));
        let (codes, rest) = rest.split_at(plane.tokens * plane.width());
        if by_channel(&plane) {
            decode_channels::<W, C>(&plane, scales, codes, raw);
        } else {
            decode_tokens::<W, C>(&plane, scales, codes, raw);
        }
        stored = rest;
    }
}

#[inline(always)]
fn decode_channels<W: Wide, C: Code>(plane: &Plane, scales: &[u8], codes: &[u8], raw: &mut [u8]) {
    let width = plane.width();
    let mut piece = [0f32; PIECE];
    let mut factors = [0f32; PIECE];
    for column in (0..width).step_by(PIECE) {
        let count = PIECE.min(width - column);
        let places = scales[column * SCALE..(column + count) * SCALE].chunks_exact(SCALE);
        for (place, factor) in places.zip(&mut factors) {
            *factor = scale_value(u16::from_le_bytes([place[0], place[1]]));
        }
        for token in 0..plane.tokens {
            let codes = &codes[token * width + column..][..count];
            for ((value, code), factor) in piece.iter_mut().zip(codes).zip(&factors) {
                *value = C::value(*code) * *factor;
            }
            W::save(plane.element, &piece[..count], &mut raw[plane.range(token, column, count)]);
        }
    }
}

#[inline(always)]
fn decode_tokens<W: Wide, C: Code>(plane: &Plane, scales: &[u8], codes: &[u8], raw: &mut [u8]) {
    let mut piece = [0f32; PIECE];
    let rows = codes.chunks_exact(plane.head_dim).zip(scales.chunks_exact(SCALE));
    for (at, (codes, scale)) in rows.enumerate() {
        let (token, first) = (at / plane.heads, at % plane.heads * plane.head_dim);
        let factor = scale_value(u16::from_le_bytes([scale[0], scale[1]]));
        for column in (0..plane.head_dim).step_by(PIECE) {
            let count = PIECE.min(plane.head_dim - column);
            for (value, code) in piece.iter_mut().zip(&codes[column..column + count]) {
                *value = C::value(*code) * factor;
            }
            let place = plane.range(token, first + column, count);
            W::save(plane.element, &piece[..count], &mut raw[place]);
        }
    }
}
