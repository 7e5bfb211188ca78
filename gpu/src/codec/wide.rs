//! Numbers in bulk: raw bytes to binary32 and back, and which instructions do it. Every path gives the same bits: each
//! operation is one IEEE operation, rounded to nearest even, never fused with another.
use super::shape::Element;

/// Adding this to a number of magnitude under 2^22 leaves it rounded to nearest even in the low bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// Numbers that are handled at a time: 4 KiB of binary32, which stay in the first cache.
pub(super) const PIECE: usize = 1024;

/// Numbers that stay in registers from memory to their codes.
pub(super) const RUN: usize = 32;

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
    /// Raises each of `most` to its number's magnitude, numbers of 16 bits from `INFINITE` on not being finite.
    fn raise<const INFINITE: u16>(raw: &[u8], most: &mut [u16]);
    /// Returns the int8 codes of scaled values.
    fn int8(scaled: &[f32; RUN]) -> [u8; RUN];
    /// Returns the e4m3 codes of scaled values.
    fn e4m3(scaled: &[f32; RUN]) -> [u8; RUN];
    /// Returns what e4m3 codes stand for; some NaN for NaN.
    fn from_e4m3(codes: &[u8; RUN]) -> [f32; RUN];
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

    #[inline(always)]
    fn raise<const INFINITE: u16>(raw: &[u8], most: &mut [u16]) {
        for (most, two) in most.iter_mut().zip(raw.chunks_exact(2)) {
            let bits = u16::from_le_bytes([two[0], two[1]]) & 0x7FFF;
            *most = (if bits < INFINITE { bits } else { 0 }).max(*most);
        }
    }

    #[inline(always)]
    fn int8(scaled: &[f32; RUN]) -> [u8; RUN] {
        scaled.map(to_int8)
    }

    #[inline(always)]
    fn e4m3(scaled: &[f32; RUN]) -> [u8; RUN] {
        scaled.map(to_e4m3)
    }

    #[inline(always)]
    fn from_e4m3(codes: &[u8; RUN]) -> [f32; RUN] {
        codes.map(from_e4m3)
    }
}

pub(super) const LARGEST_F16: f32 = 65504.0;
const LARGEST_BF16: f32 = f32::from_bits(0x7F7F_0000);

#[inline(always)]
pub(super) fn load_bf16(raw: &[u8], values: &mut [f32]) {
    for (two, value) in raw.chunks_exact(2).zip(values) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes([two[0], two[1]])) << 16);
    }
}

#[inline(always)]
pub(super) fn load_f32(raw: &[u8], values: &mut [f32]) {
    for (four, value) in raw.chunks_exact(4).zip(values) {
        *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    }
}

#[inline(always)]
pub(super) fn save_bf16(values: &[f32], raw: &mut [u8]) {
    for (two, value) in raw.chunks_exact_mut(2).zip(values) {
        let bits = saturate(*value, LARGEST_BF16).to_bits();
        let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
        let half = if value.is_nan() { 0x7FC0 } else { rounded };
        two.copy_from_slice(&half.to_le_bytes());
    }
}

#[inline(always)]
pub(super) fn save_f32(values: &[f32], raw: &mut [u8]) {
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

/// Returns the nearest of -127 to 127; -128 for NaN.
#[inline(always)]
pub(super) fn to_int8(scaled: f32) -> u8 {
    let rounded = (saturate(scaled, 127.0) + ROUNDER).to_bits() as u8;
    if scaled.is_nan() { 0x80 } else { rounded }
}

/// What is under 2^-6 is subnormal in e4m3. The last place of this is 2^-9, the subnormals' step, so that a sum with it
/// rounds as they do.
const E4M3_STEP: f32 = 16384.0;

/// Returns the nearest e4m3, 448 at most; 0x7F for NaN.
#[inline(always)]
pub(super) fn to_e4m3(scaled: f32) -> u8 {
    if scaled.is_nan() {
        return 0x7F;
    }
    let bits = saturate(scaled, 448.0).to_bits();
    let (sign, magnitude) = (bits >> 24 & 0x80, bits & 0x7FFF_FFFF);
    let subnormal = (f32::from_bits(magnitude) + E4M3_STEP).to_bits().wrapping_sub(E4M3_STEP.to_bits());
    let normal = magnitude.wrapping_add(0x7_FFFF + (magnitude >> 20 & 1)).wrapping_sub(120 << 23) >> 20;
    (sign | if magnitude < 0x3C80_0000 { subnormal } else { normal }) as u8
}

/// Returns what an e4m3 code stands for.
#[inline(always)]
pub(super) fn from_e4m3(code: u8) -> f32 {
    let (sign, rest) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7F));
    let subnormal = (f32::from_bits(E4M3_STEP.to_bits() | rest) - E4M3_STEP).to_bits();
    let magnitude = if rest < 8 { subnormal } else { (rest << 20) + (120 << 23) };
    if rest == 0x7F { f32::NAN } else { f32::from_bits(sign | magnitude) }
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
