//! How many of a row of blocks are worth asking for, parents first: what comes after a gap would be found by nobody. Once a size finds no
//! free frame, no block of it or larger is taken in any more; of what is read for one fetch no more is held than there is room for.

/// How far an intake has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Intake {
    /// The smallest size that found no free frame.
    full_from: Option<u64>,
}

impl Intake {
    /// Says whether a block of so many bytes may still find a frame.
    pub fn may_fit(&self, bytes: u64) -> bool {
        self.full_from.is_none_or(|full| bytes < full)
    }

    /// A block of so many bytes found no free frame.
    pub fn full(&mut self, bytes: u64) {
        self.full_from = Some(self.full_from.map_or(bytes, |full| full.min(bytes)));
    }
}

/// Returns how many of some blocks, from the first on, are held at a time by who may hold so much: those that fit together, and one
/// whatever its size.
pub fn held_at_once(sizes: impl IntoIterator<Item = u64>, most: u64) -> usize {
    let (mut held, mut sum) = (0, 0u64);
    for size in sizes {
        sum = sum.saturating_add(size);
        if held > 0 && sum > most {
            break;
        }
        held += 1;
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_held_as_fit_and_one_whatever_its_size() {
        let held = |sizes: &[u64]| held_at_once(sizes.iter().copied(), 10);
        assert_eq!([held(&[]), held(&[11, 1]), held(&[4, 6, 1]), held(&[4, 7, 1])], [0, 1, 2, 1]);
        assert_eq!(held(&[1, u64::MAX, 1]), 1);
    }

    #[test]
    fn what_found_no_frame_and_what_is_larger_is_not_asked_for_again() {
        let fits = |intake: &Intake| [1, 9, 10, 11, 20].map(|bytes| intake.may_fit(bytes));
        let mut intake = Intake::default();
        assert_eq!(fits(&intake), [true; 5]);
        intake.full(20);
        assert_eq!(fits(&intake), [true, true, true, true, false]);
        intake.full(10);
        intake.full(11);
        assert_eq!(fits(&intake), [true, true, false, false, false]);
    }
}
