//! Blocks that came before their parents: told by a print of the parent's key, so that they are found when it comes. Only the first
//! of each piece of a prefix whose beginning is not here is one. Bounded: of more than fit none is noted, and those are searched
//! for that are gone.

use std::collections::BTreeSet;

/// Of so many frames one may be noted.
const PART: usize = 64;
/// As many may be noted whatever the size.
const LEAST: usize = 1024;
/// Bytes that one takes at most: nodes of a set are half full at least.
const EACH: usize = 48;

/// The blocks whose parents are not here.
pub(crate) struct Orphans {
    /// The print of the parent, the record and its generation.
    noted: BTreeSet<(u64, u32, u32)>,
    limit: usize,
    /// With so many notes more than there are those are looked for that are gone.
    patience: usize,
}

impl Orphans {
    pub(crate) fn new(frames: usize) -> Orphans {
        Orphans { noted: BTreeSet::new(), limit: Orphans::limit(frames), patience: 0 }
    }

    fn limit(frames: usize) -> usize {
        (frames / PART).max(LEAST.min(frames))
    }

    /// Returns the bytes that those of so many frames take at most.
    pub(crate) fn bytes(frames: usize) -> usize {
        Orphans::limit(frames) * EACH
    }

    /// Notes that the parent of this record is not here. `is_one` says of a record whether its still is not.
    pub(crate) fn note(
        &mut self,
        print: u64,
        (at, generation): (u32, u32),
        is_one: impl Fn(u32, u32) -> bool,
    ) {
        if self.noted.len() >= self.limit {
            // A search pays off when it is not made for each.
            if self.patience > 0 {
                self.patience -= 1;
                return;
            }
            self.noted.retain(|(_, at, generation)| is_one(*at, *generation));
            self.patience = self.noted.len() / 4;
            if self.noted.len() >= self.limit {
                return;
            }
        }
        self.noted.insert((print, at, generation));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    /// Takes one of those whose parent has this print.
    pub(crate) fn take(&mut self, print: u64) -> Option<(u32, u32)> {
        let first = *self.noted.range((print, 0, 0)..=(print, u32::MAX, u32::MAX)).next()?;
        self.noted.remove(&first);
        Some((first.1, first.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_noted_than_fit_and_those_that_are_gone_make_room() {
        let mut orphans = Orphans::new(10);
        for at in 0..10 {
            orphans.note(u64::from(at), (at, 1), |_, _| true);
        }
        orphans.note(10, (10, 1), |_, _| true);
        assert_eq!((orphans.noted.len(), orphans.take(10)), (10, None), "all are here");
        for at in 20..23 {
            orphans.note(u64::from(at), (at, 1), |at, _| at >= 5);
        }
        assert_eq!((orphans.take(22), orphans.take(3)), (Some((22, 1)), None));
        assert_eq!((orphans.take(5), orphans.take(5)), (Some((5, 1)), None));
    }

    #[test]
    fn a_parent_gets_all_of_its_own() {
        let mut orphans = Orphans::new(100);
        for at in 0..3 {
            orphans.note(7, (at, 1), |_, _| true);
        }
        orphans.note(8, (9, 1), |_, _| true);
        assert_eq!(
            [7, 7, 7, 7].map(|print| orphans.take(print)),
            [Some((0, 1)), Some((1, 1)), Some((2, 1)), None]
        );
        assert!(!orphans.is_empty());
    }
}
