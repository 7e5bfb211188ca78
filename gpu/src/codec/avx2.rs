//! The conversions with AVX2 and F16C, bit for bit those of [`Portable`].
#![allow(unsafe_code, reason = "instructions that the CPU was asked about")]

use super::shape::Element;
use super::wide::{LARGEST_F16, Portable, RUN, Wide, load_bf16, load_f32, save_bf16, save_f32};
use std::arch::x86_64::*;

/// AVX2 and F16C. Named only inside functions that are compiled for both.
pub(super) struct Avx2;

impl Wide for Avx2 {
    #[inline(always)]
    fn load(element: Element, raw: &[u8], values: &mut [f32]) {
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

    #[inline(always)]
    fn raise<const INFINITE: u16>(raw: &[u8], most: &mut [u16]) {
        let count = most.len().min(raw.len() / 2);
        let whole = count / 16 * 16;
        for at in (0..whole).step_by(16) {
            // SAFETY: 32 bytes from 2 * at and 16 values from at lie within `whole`; the CPU has AVX2 here.
            unsafe {
                let place = most.as_mut_ptr().add(at).cast::<__m256i>();
                let bits = _mm256_loadu_si256(raw.as_ptr().add(2 * at).cast::<__m256i>());
                let bits = _mm256_and_si256(bits, _mm256_set1_epi16(0x7FFF));
                let is_finite = _mm256_cmpgt_epi16(_mm256_set1_epi16(INFINITE as i16), bits);
                let bits = _mm256_and_si256(bits, is_finite);
                _mm256_storeu_si256(place, _mm256_max_epu16(_mm256_loadu_si256(place), bits));
            }
        }
        Portable::raise::<INFINITE>(&raw[2 * whole..2 * count], &mut most[whole..count]);
    }

    #[inline(always)]
    fn int8(scaled: &[f32; RUN]) -> [u8; RUN] {
        // SAFETY: the CPU has AVX2 here; 32 values are read and 32 bytes written. As in `save`, limits come first: NaN
        // stays, becomes the least integer, and saturates to -128 when packed.
        unsafe {
            let eight = |at: usize| {
                let value = _mm256_loadu_ps(scaled.as_ptr().add(8 * at));
                let value = _mm256_min_ps(_mm256_set1_ps(127.0), value);
                _mm256_cvtps_epi32(_mm256_max_ps(_mm256_set1_ps(-127.0), value))
            };
            let low = _mm256_packs_epi32(eight(0), eight(1));
            let high = _mm256_packs_epi32(eight(2), eight(3));
            in_order(_mm256_packs_epi16(low, high))
        }
    }

    #[inline(always)]
    fn e4m3(scaled: &[f32; RUN]) -> [u8; RUN] {
        // SAFETY: the CPU has AVX2 and F16C here; four times eight values are read.
        unsafe {
            let [a, b, c, d] = [0, 8, 16, 24].map(|at| _mm256_loadu_ps(scaled.as_ptr().add(at)));
            let low = _mm256_set_m128i(halves_of_e4m3(b), halves_of_e4m3(a));
            let high = _mm256_set_m128i(halves_of_e4m3(d), halves_of_e4m3(c));
            // Only NaN is above 0x7E.
            let packed = _mm256_packus_epi16(_mm256_srli_epi16::<7>(low), _mm256_srli_epi16::<7>(high));
            let number = _mm256_min_epu8(packed, _mm256_set1_epi8(0x7F));
            let number = _mm256_permute4x64_epi64::<0b11_01_10_00>(number);
            // Saturated, each keeps its sign.
            let [a, b, c, d] = [a, b, c, d].map(|eight| _mm256_castps_si256(eight));
            let signs = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let signs = _mm256_permutevar8x32_epi32(signs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let signs = _mm256_and_si256(signs, _mm256_set1_epi8(-0x80));
            let is_nan = _mm256_cmpeq_epi8(number, _mm256_set1_epi8(0x7F));
            let mut codes = [0; RUN];
            let coded = _mm256_or_si256(number, _mm256_andnot_si256(is_nan, signs));
            _mm256_storeu_si256(codes.as_mut_ptr().cast::<__m256i>(), coded);
            codes
        }
    }

    #[inline(always)]
    fn from_e4m3(codes: &[u8; RUN]) -> [f32; RUN] {
        let mut values = [0f32; RUN];
        for at in (0..RUN).step_by(8) {
            // SAFETY: the CPU has AVX2 and F16C here; 8 bytes are read and 8 values written.
            unsafe {
                let eight = _mm_loadl_epi64(codes.as_ptr().add(at).cast::<__m128i>());
                let rest = _mm_and_si128(eight, _mm_set1_epi8(0x7F));
                let is_nan = _mm256_cvtepi8_epi32(_mm_cmpeq_epi8(rest, _mm_set1_epi8(0x7F)));
                // Moved into a binary16's place, subnormals and all, it stands for 1/256 of what it is: the biases are
                // 7 and 15.
                let sign =
                    _mm_and_si128(_mm_slli_epi16::<8>(_mm_cvtepu8_epi16(eight)), _mm_set1_epi16(-0x8000));
                let half = _mm_or_si128(sign, _mm_slli_epi16::<7>(_mm_cvtepu8_epi16(rest)));
                let value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0));
                let value = _mm256_or_ps(value, _mm256_castsi256_ps(is_nan));
                _mm256_storeu_ps(values.as_mut_ptr().add(at), value);
            }
        }
        values
    }
}

/// Returns the magnitudes of eight values, rounded as e4m3 does, as binary16 of 1/256 of them: the biases are 7 and 15, so
/// seven places above the lowest lies the code.
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[inline(always)]
unsafe fn halves_of_e4m3(value: __m256) -> __m128i {
    // SAFETY: by this function's own contract; registers only.
    unsafe {
        let bits = |bits: i32| _mm256_castsi256_ps(_mm256_set1_epi32(bits));
        // The limit comes first: NaN stays.
        let magnitude = _mm256_min_ps(_mm256_set1_ps(448.0), _mm256_and_ps(value, bits(0x7FFF_FFFF)));
        // The last place of 2^20 times a power of two is an eighth of it: the sum is rounded to four significant bits,
        // and what is under 2^-6, subnormal, to 2^-9.
        let power = _mm256_max_ps(_mm256_and_ps(magnitude, bits(0x7F80_0000)), _mm256_set1_ps(0.015625));
        let power = _mm256_add_epi32(_mm256_castps_si256(power), _mm256_set1_epi32(20 << 23));
        let power = _mm256_castsi256_ps(power);
        let rounded = _mm256_sub_ps(_mm256_add_ps(magnitude, power), power);
        let rounded = _mm256_mul_ps(rounded, _mm256_set1_ps(1.0 / 256.0));
        // NaN stays above every number.
        _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(rounded)
    }
}

/// Packing works within halves of 128 bits and leaves groups of four bytes in the order 0 2 4 6 1 3 5 7.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn in_order(packed: __m256i) -> [u8; RUN] {
    let mut codes = [0; RUN];
    // SAFETY: by this function's own contract; 32 bytes are written.
    unsafe {
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let codes = codes.as_mut_ptr().cast::<__m256i>();
        _mm256_storeu_si256(codes, _mm256_permutevar8x32_epi32(packed, order));
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::wide::Path;

    #[test]
    fn e4m3_agrees_with_the_portable_path_on_both_sides_of_every_tie() {
        if Path::best() == Path::Portable {
            return;
        }
        for low in [0, 1, 0x7FFF, 0x8000, 0xFFFF] {
            for start in (0..=u16::MAX).step_by(RUN) {
                let scaled: [f32; RUN] =
                    std::array::from_fn(|at| f32::from_bits((u32::from(start) + at as u32) << 16 | low));
                assert_eq!(Avx2::e4m3(&scaled), Portable::e4m3(&scaled), "from {:e} on", scaled[0]);
            }
        }
    }
}
