//! The number of a request of the data plane: which of its asker's it is, and how much time there is for it. An answer repeats it as it is, so
//! peers that know nothing of the second part need not: one that does not read it takes all for a number, one that does not write it has not
//! asked often enough to reach it.
//!
//! ```text
//! bit  0              40                                             64
//!      which one      milliseconds left, rounded up; 0 says nothing
//! ```

use std::time::Duration;

/// Bits that say which request it is: of so many under way at a time none has another's number.
const COUNT_BITS: u32 = 40;
/// The longest time that is told, in milliseconds: more than four hours.
const MOST_MS: u64 = u64::MAX >> COUNT_BITS;

/// Returns the number of an asker's request for which there is so much time.
pub fn timed(count: u64, left: Duration) -> u64 {
    let ms = u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    ms.clamp(1, MOST_MS) << COUNT_BITS | (count & ((1 << COUNT_BITS) - 1))
}

/// Returns how much time there is for the request of this number, if its asker says so.
pub fn time_left(number: u64) -> Option<Duration> {
    match number >> COUNT_BITS {
        0 => None,
        ms => Some(Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_read_as_it_was_written_and_never_as_none() {
        let ms = Duration::from_millis;
        for (left, read) in [
            (Duration::ZERO, ms(1)),
            (Duration::from_nanos(1), ms(1)),
            (ms(100), ms(100)),
            (Duration::from_micros(100_001), ms(101)),
            (Duration::MAX, ms(MOST_MS)),
        ] {
            for count in [0, 7, u64::MAX] {
                assert_eq!(time_left(timed(count, left)), Some(read), "{left:?}");
            }
        }
    }

    #[test]
    fn a_number_that_was_only_counted_says_nothing() {
        assert_eq!([0, 1, (1 << COUNT_BITS) - 1].map(time_left), [None; 3]);
    }

    #[test]
    fn two_requests_one_after_the_other_have_different_numbers() {
        let left = Duration::from_secs(5);
        for count in [0, (1 << COUNT_BITS) - 1, u64::MAX - 1] {
            assert_ne!(timed(count, left), timed(count + 1, left));
        }
    }
}
