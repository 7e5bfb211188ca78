//! Blocks that are not resident but remembered: the latest ones that left or were refused, up to a fixed number.

use super::class::Past;
use hashbrown::HashTable;

/// A remembered block.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Ghost {
    /// Part of its key; a ghost that is taken for another one costs a misjudged block, no more.
    pub(super) print: u64,
    /// The cohort that it still is counted in.
    pub(super) cohort: u32,
    pub(super) past: Past,
}

/// A slot that holds no ghost.
const VACANT: u32 = u32::MAX;

/// Ghosts in the order of their leaving, found by their print.
pub(super) struct Ghosts {
    ring: Vec<Ghost>,
    oldest: usize,
    limit: usize,
    table: HashTable<u32>,
}

/// Mixes a print for the table: an engine chooses its keys.
fn hash(print: u64) -> u64 {
    print.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

impl Ghosts {
    pub(super) fn with_limit(limit: usize) -> Ghosts {
        Ghosts {
            ring: Vec::new(),
            oldest: 0,
            limit: limit.clamp(1, VACANT as usize - 1),
            table: HashTable::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, print: u64) -> Option<&Ghost> {
        self.table
            .find(hash(print), |at| self.ring[*at as usize].print == print)
            .map(|at| &self.ring[*at as usize])
    }

    /// Takes a ghost out: its block is back.
    pub(super) fn take(&mut self, print: u64) -> Option<Ghost> {
        let ring = &mut self.ring;
        let entry = self.table.find_entry(hash(print), |at| ring[*at as usize].print == print).ok()?;
        let (at, _) = entry.remove();
        let ghost = self.ring[at as usize];
        self.ring[at as usize].cohort = VACANT;
        Some(ghost)
    }

    /// Remembers a block; returns the one that is forgotten for it.
    pub(super) fn put(&mut self, ghost: Ghost) -> Option<Ghost> {
        debug_assert!(self.get(ghost.print).is_none(), "a block becomes a ghost once");
        let (at, forgotten) = if self.ring.len() < self.limit {
            self.ring.push(ghost);
            (self.ring.len() - 1, None)
        } else {
            let at = self.oldest;
            self.oldest = (self.oldest + 1) % self.limit;
            let old = std::mem::replace(&mut self.ring[at], ghost);
            let was_there = old.cohort != VACANT;
            if was_there {
                if let Ok(entry) = self.table.find_entry(hash(old.print), |slot| *slot as usize == at) {
                    entry.remove();
                }
            }
            (at, was_there.then_some(old))
        };
        let ring = &self.ring;
        let at = u32::try_from(at).expect("the limit is below 2^32");
        self.table.insert_unique(hash(ghost.print), at, |slot| hash(ring[*slot as usize].print));
        forgotten
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.ring.capacity() * size_of::<Ghost>() + self.table.allocation_size()
    }
}
