//! Which blocks a cluster is known to have, so that they are not sent again: for a while, as it may drop them without a word.

use kvhive_protocol::Moment;
use std::collections::HashSet;
use std::time::Duration;

/// Blocks of one generation at most.
const MOST: usize = 1 << 16;

/// A block's name in one group.
type Name = (u32, Vec<u8>);

/// Two generations of names; the older one goes when the newer is full or old enough.
#[derive(Debug)]
pub struct Known {
    lasts: Duration,
    newer: HashSet<Name>,
    older: HashSet<Name>,
    begun: Moment,
}

impl Known {
    /// Makes one that forgets a name after between one and two times `lasts`.
    pub fn new(lasts: Duration) -> Known {
        Known { lasts, newer: HashSet::new(), older: HashSet::new(), begun: Moment::ZERO }
    }

    /// Says whether a block is known to be there; if not, it is from now on.
    pub fn insert(&mut self, now: Moment, group: usize, hash: &[u8]) -> bool {
        if self.newer.len() >= MOST || now.since(self.begun) >= self.lasts {
            self.older = std::mem::take(&mut self.newer);
            if now.since(self.begun) >= self.lasts.saturating_mul(2) {
                self.older.clear();
            }
            self.begun = now;
        }
        let name = (group as u32, hash.to_vec());
        let is_known = self.older.contains(&name) || self.newer.contains(&name);
        if !is_known {
            self.newer.insert(name);
        }
        is_known
    }

    /// Takes back that a block is there.
    pub fn remove(&mut self, group: usize, hash: &[u8]) {
        let name = (group as u32, hash.to_vec());
        self.newer.remove(&name);
        self.older.remove(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1000)
    }

    #[test]
    fn a_block_is_known_until_it_is_taken_back_or_old() {
        let mut known = Known::new(Duration::from_secs(60));
        assert!(!known.insert(at(1), 0, b"one"));
        assert!(known.insert(at(2), 0, b"one"));
        assert!(!known.insert(at(2), 1, b"one"), "of another group");
        known.remove(0, b"one");
        assert!(!known.insert(at(3), 0, b"one"));
        assert!(known.insert(at(70), 0, b"one"), "of the older generation");
        assert!(!known.insert(at(140), 0, b"one"), "it was said again when it was known: not counted anew");
        assert!(!known.insert(at(900), 0, b"one"));
    }

    #[test]
    fn no_more_names_are_kept_than_two_generations_hold() {
        let mut known = Known::new(Duration::from_secs(3600));
        for name in 0..3 * MOST as u64 {
            known.insert(at(1), 0, &name.to_le_bytes());
        }
        assert!(known.newer.len() + known.older.len() <= 2 * MOST);
        assert!(known.insert(at(1), 0, &(3 * MOST as u64 - 1).to_le_bytes()));
        assert!(!known.insert(at(1), 0, &0u64.to_le_bytes()));
    }
}
