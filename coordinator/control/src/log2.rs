//! Binary logarithm in fixed point, so that every coordinator ranks devices alike: `f64::ln` may differ in the last bit
//! between two machines' math libraries, integers do not. Frozen: changing a bit here moves slots.

/// Fraction bits of a result.
const FRACTION_BITS: u32 = 48;
const SEGMENT_BITS: u32 = 10;
const SEGMENTS: usize = 1 << SEGMENT_BITS;

/// `log2(1 + i / SEGMENTS)` for each i, computed by the compiler.
static TABLE: [u64; SEGMENTS + 1] = table();

/// Returns `-log2(hash / 2^64)` with 48 fraction bits: 0 for the greatest hash, 64 for the smallest.
///
/// Linear between 1024 points, which makes it at most 2·10⁻⁷ too large, and monotone.
pub(crate) fn minus_log2(hash: u64) -> u64 {
    let hash = hash.max(1);
    let zeros = hash.leading_zeros();
    let mantissa = (hash << zeros) & (u64::MAX >> 1);
    let rest_bits = 63 - SEGMENT_BITS;
    let segment = (mantissa >> rest_bits) as usize;
    let rest = mantissa & ((1 << rest_bits) - 1);
    let (low, high) = (TABLE[segment], TABLE[segment + 1]);
    let fraction = low + ((u128::from(high - low) * u128::from(rest)) >> rest_bits) as u64;
    (u64::from(zeros + 1) << FRACTION_BITS) - fraction
}

/// Digit by digit: squaring a number doubles its logarithm, and a result of two or more is a binary digit 1.
const fn table() -> [u64; SEGMENTS + 1] {
    const ONE: u32 = 62;
    let mut table = [0; SEGMENTS + 1];
    let mut at = 0;
    while at < SEGMENTS {
        let mut x = ((SEGMENTS + at) as u64) << (ONE - SEGMENT_BITS);
        let mut digit = 0;
        while digit < FRACTION_BITS {
            x = ((x as u128 * x as u128) >> ONE) as u64;
            if x >= 2 << ONE {
                x >>= 1;
                table[at] |= 1 << (FRACTION_BITS - 1 - digit);
            }
            digit += 1;
        }
        at += 1;
    }
    table[SEGMENTS] = 1 << FRACTION_BITS;
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: f64 = (1_u64 << FRACTION_BITS) as f64;

    #[test]
    fn known_points_never_change() {
        assert_eq!(minus_log2(u64::MAX), 1);
        assert_eq!(minus_log2(1 << 63), 1 << FRACTION_BITS);
        assert_eq!(minus_log2(1), 64 << FRACTION_BITS);
        assert_eq!(minus_log2(0), 64 << FRACTION_BITS);
        assert_eq!(minus_log2(3 << 62), GOLDEN_THREE_QUARTERS);
        assert_eq!(minus_log2(0x0123_4567_89AB_CDEF), GOLDEN_COUNTING);
    }
    const GOLDEN_THREE_QUARTERS: u64 = 116_822_670_443_562;
    const GOLDEN_COUNTING: u64 = 2_199_383_890_378_941;

    proptest! {
        #[test]
        fn it_is_the_logarithm(hash in 1_u64..) {
            let exact = 64.0 - (hash as f64).log2();
            let ours = minus_log2(hash) as f64 / UNIT;
            prop_assert!((ours - exact).abs() < 3e-7, "{ours} {exact}");
        }

        #[test]
        fn a_greater_hash_is_never_farther(a: u64, b: u64) {
            prop_assert!(minus_log2(a.max(b)) <= minus_log2(a.min(b)));
        }
    }
}
