//! Numbers in bulk: raw bytes to binary32 and back, and which instructions do it. Every path gives the same bits: each
//! operation is one IEEE operation, rounded to nearest even, never fused with another.
#![allow(unsafe_code, reason = "instructions that the CPU was asked about")]

use super::shape::Element;

/// Adding this to a number of magnitude under 2^22 leaves it rounded to nearest even in the low bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// Numbers that are handled at a time: 4 KiB of binary32, which stay in the first cache.
pub(super) const PIECE: usize = 1024;

/// Which instructions are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// What every CPU has.
    Portable,
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Path {
    /// Returns the fastest path of this CPU. The answer of the CPU is remembered by the standard library.
    pub(super) fn best() -> Path {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            return Path::Avx2;
        }
        Path::Portable
    }
}

/// Conversions of one path. Everything generic over it is inlined into a function compiled for that path's instructions.
pub(super) trait Wide {
    /// Fills `values` with the numbers in `raw`, exactly.
    fn load(element: Element, raw: &[u8], values: &mut [f32]);
    /// Writes `values` as numbers of this element: nearest even, saturated at the largest finite one, NaN as the
    /// positive quiet NaN without payload.
    fn save(element: Element, values: &[f32], raw: &mut [u8]);
}

/// What every CPU can do.
pub(super) struct Portable;

impl Wide for Portable {
    #[inline(always)]
    fn load(element: Element, raw: &[u8], values: &mut [f32]) {
        match element {
            Element::F16 => {
                for (two, value) in raw.chunks_exact(2).zip(values) {
                    *value = from_f16(u16::from_le_bytes([two[0], two[1]]));
                }
            }
            Element::Bf16 => load_bf16(raw, values),
            Element::F32 => load_f32(raw, values),
        }
    }

    #[inline(always)]
    fn save(element: Element, values: &[f32], raw: &mut [u8]) {
        match element {
            Element::F16 => {
                for (two, value) in raw.chunks_exact_mut(2).zip(values) {
                    two.copy_from_slice(&to_f16(*value).to_le_bytes());
                }
            }
            Element::Bf16 => save_bf16(values, raw),
            Element::F32 => save_f32(values, raw),
        }
    }
}

/// AVX2 and F16C. Named only inside functions that are compiled for both.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Wide for Avx2 {
    #[inline(always)]
    fn load(element: Element, raw: &[u8], values: &mut [f32]) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
        match element {
            Element::F16 => {
                let count = values.len().min(raw.len() / 2);
                let whole = count / 8 * 8;
                for at in (0..whole).step_by(8) {
                    // SAFETY: 16 bytes from 2 * at and 8 values from at lie within `whole`; the CPU has F16C here.
                    unsafe {
                        let eight = _mm_loadu_si128(raw.as_ptr().add(2 * at).cast::<__m128i>());
                        _mm256_storeu_ps(values.as_mut_ptr().add(at), _mm256_cvtph_ps(eight));
                    }
                }
                Portable::load(element, &raw[2 * whole..2 * count], &mut values[whole..count]);
            }
            Element::Bf16 => load_bf16(raw, values),
            Element::F32 => load_f32(raw, values),
        }
    }

    #[inline(always)]
    fn save(element: Element, values: &[f32], raw: &mut [u8]) {
        use std::arch::x86_64::{
            __m128i, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si128, _mm256_blendv_ps,
            _mm256_cmp_ps, _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_set1_ps,
        };
        match element {
            Element::F16 => {
                let count = values.len().min(raw.len() / 2);
                let whole = count / 8 * 8;
                for at in (0..whole).step_by(8) {
                    // SAFETY: 8 values from at and 16 bytes from 2 * at lie within `whole`; the CPU has AVX and F16C
                    // here. Both limits come first, since `min` and `max` give their second operand when one is NaN.
                    unsafe {
                        let eight = _mm256_loadu_ps(values.as_ptr().add(at));
                        let eight = _mm256_min_ps(_mm256_set1_ps(LARGEST_F16), eight);
                        let eight = _mm256_max_ps(_mm256_set1_ps(-LARGEST_F16), eight);
                        let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(eight, eight);
                        let eight = _mm256_blendv_ps(eight, _mm256_set1_ps(f32::NAN), is_nan);
                        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(eight);
                        _mm_storeu_si128(raw.as_mut_ptr().add(2 * at).cast::<__m128i>(), halves);
                    }
                }
                Portable::save(element, &values[whole..count], &mut raw[2 * whole..2 * count]);
            }
            Element::Bf16 => save_bf16(values, raw),
            Element::F32 => save_f32(values, raw),
        }
    }
}

const LARGEST_F16: f32 = 65504.0;
const LARGEST_BF16: f32 = f32::from_bits(0x7F7F_0000);

#[inline(always)]
fn load_bf16(raw: &[u8], values: &mut [f32]) {
    for (two, value) in raw.chunks_exact(2).zip(values) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes([two[0], two[1]])) << 16);
    }
}

#[inline(always)]
fn load_f32(raw: &[u8], values: &mut [f32]) {
    for (four, value) in raw.chunks_exact(4).zip(values) {
        *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    }
}

#[inline(always)]
fn save_bf16(values: &[f32], raw: &mut [u8]) {
    for (two, value) in raw.chunks_exact_mut(2).zip(values) {
        let bits = saturate(*value, LARGEST_BF16).to_bits();
        let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
        let half = if value.is_nan() { 0x7FC0 } else { rounded };
        two.copy_from_slice(&half.to_le_bytes());
    }
}

#[inline(always)]
fn save_f32(values: &[f32], raw: &mut [u8]) {
    for (four, value) in raw.chunks_exact_mut(4).zip(values) {
        let bits = if value.is_nan() { 0x7FC0_0000 } else { saturate(*value, f32::MAX).to_bits() };
        four.copy_from_slice(&bits.to_le_bytes());
    }
}

/// Returns `value` brought into `[-limit, limit]`; NaN stays.
#[inline(always)]
pub(super) fn saturate(value: f32, limit: f32) -> f32 {
    let value = if value > limit { limit } else { value };
    if value < -limit { -limit } else { value }
}

/// Returns the magnitude's bits, which order as the magnitudes do; 0 for what is not finite.
#[inline(always)]
pub(super) fn finite_magnitude(value: f32) -> i32 {
    let bits = (value.to_bits() & 0x7FFF_FFFF) as i32;
    if bits < 0x7F80_0000 { bits } else { 0 }
}

#[inline(always)]
fn from_f16(half: u16) -> f32 {
    let (sign, rest) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7FFF));
    let magnitude = match rest {
        // What is subnormal there is a whole number of 2^-24.
        0..0x0400 => (rest as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        0x0400..0x7C00 => (rest << 13) + 0x3800_0000,
        _ => (rest << 13) | 0x7F80_0000,
    };
    f32::from_bits(sign | magnitude)
}

#[inline(always)]
fn to_f16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7E00;
    }
    let bits = saturate(value, LARGEST_F16).to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7FFF_FFFF);
    let rest = if magnitude < 0x3880_0000 {
        // Under 2^-14: one unit of 0.5's last place is 2^-24, the subnormals' step, so the sum rounds as they do.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (magnitude - 0x3800_0000 + 0x0FFF + (magnitude >> 13 & 1)) >> 13
    };
    sign | rest as u16
}
