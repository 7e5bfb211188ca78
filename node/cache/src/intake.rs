//! Taking in many blocks of one shard, parents first: once a size finds no free frame, no block of it or larger is asked for any
//! more, for what comes later is deeper in its prefix and would be found by nobody.

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

#[cfg(test)]
mod tests {
    use super::*;

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
