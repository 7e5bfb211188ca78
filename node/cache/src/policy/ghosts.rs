//! Ghosts: blocks that left for want of room, remembered for a while by a hash of their key, newest last. Bounded. Two keys of
//! one hash are taken for one block: with a million ghosts that is one newcomer in four thousand, and costs a wrong guess about
//! it and nothing else.

use super::list::Column;
use crate::table::Table;
use foldhash::fast::FixedState;
use kvhive_protocol::BlockKey;
use std::hash::BuildHasher;

/// What a ghost is known by; never [`NOBODY`].
pub(super) type Print = u32;

/// In place of a print: nobody is remembered here.
const NOBODY: Print = 0;

/// Makes prints of keys. A secret seed keeps a stranger from making keys that fall together.
pub(super) struct Printer(FixedState);

impl Printer {
    pub(super) fn new(seed: u64) -> Printer {
        Printer(FixedState::with_seed(seed))
    }

    pub(super) fn print(&self, key: &BlockKey) -> Print {
        ((self.0.hash_one(key) >> 32) as Print).max(NOBODY + 1)
    }
}

/// Spreads a print over the highest bits, which a table looks at.
fn spread(print: Print) -> u64 {
    u64::from(print).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The blocks that left last, in a ring of fixed size: each is remembered until as many have left after it, or it is taken
/// out. A ghost's number is its place in the ring.
pub(super) struct Ghosts {
    limit: u32,
    /// What the limit is to be when the ring has come round, and what it can be at most.
    wanted: u32,
    most: u32,
    /// Places that are more than what is remembered at most; where there are none, those of ghosts taken out stay empty
    /// until their turn comes.
    spare: u32,
    table: Table,
    prints: Column<Print>,
    /// Where the next one goes.
    next: u32,
    /// No ghost is older than the one that is here or comes after.
    oldest: u32,
}

impl Ghosts {
    /// Remembers for as long as no more than `limit` leave.
    pub(super) fn new(limit: usize) -> Ghosts {
        Ghosts::with_spare(limit, 0)
    }

    /// Remembers exactly the last `limit` that were not taken out. Their numbers may change with each one that comes.
    pub(super) fn exactly(limit: usize) -> Ghosts {
        Ghosts::with_spare(limit, limit / 8 + 1)
    }

    fn with_spare(limit: usize, spare: usize) -> Ghosts {
        let limit = limit.min(u32::MAX as usize / 4);
        Ghosts {
            limit: limit as u32,
            wanted: limit as u32,
            most: limit as u32,
            spare: spare as u32,
            table: Table::new(limit),
            prints: Column::new(limit + spare),
            next: 0,
            oldest: 0,
        }
    }

    /// Returns the bytes that so many take at most, with [`Ghosts::exactly`].
    pub(super) const fn bytes(limit: usize) -> usize {
        Table::bytes(limit) + Column::<Print>::bytes(limit + limit / 8 + 1)
    }

    /// Remembers so many from the next time that its ring has come round, or as many as it was made for if that is less. Fewer
    /// than now only while nobody is remembered.
    pub(super) fn sized(&mut self, limit: usize) {
        self.wanted = limit.min(self.most as usize) as u32;
    }

    /// Takes on the limit that is wanted, where the next place is the first: what comes after the last is the newest then.
    fn come_round(&mut self) {
        let is_empty = self.len() == 0;
        if self.next > 0 || self.wanted == self.limit || (self.wanted < self.limit && !is_empty) {
            return;
        }
        let places = self.limit + self.spare;
        self.limit = self.wanted;
        if self.spare > 0 {
            self.spare = self.limit / 8 + 1;
        }
        if !is_empty {
            self.next = places;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns the number of the oldest ghost.
    pub(super) fn oldest(&mut self) -> Option<u32> {
        if self.len() == 0 {
            return None;
        }
        while self.prints.get(self.oldest) == NOBODY {
            self.oldest = self.after(self.oldest);
        }
        Some(self.oldest)
    }

    /// Returns the ghost that the next one takes the place of.
    pub(super) fn next_to_go(&mut self) -> Option<u32> {
        self.come_round();
        Some(self.next).filter(|ghost| self.prints.get(*ghost) != NOBODY)
    }

    /// Returns the number of the ghost with this print.
    pub(super) fn find(&self, print: Print) -> Option<u32> {
        self.table.find(spread(print), |ghost| self.prints.get(ghost) == print)
    }

    /// Remembers a block as the newest ghost. Returns its number.
    pub(super) fn remember(&mut self, print: Print) -> Option<u32> {
        self.come_round();
        if self.limit == 0 {
            return None;
        }
        self.take(print);
        if self.len() >= self.limit as usize
            && let Some(oldest) = self.oldest()
        {
            self.forget(oldest);
        }
        if let Some(displaced) = self.next_to_go() {
            if self.spare > 0 {
                self.close_up();
            } else {
                self.forget(displaced);
            }
        }
        let ghost = self.next;
        self.next = self.after(ghost);
        if self.len() == 0 {
            self.oldest = ghost;
        } else if self.oldest == ghost {
            self.oldest = self.next;
        }
        *self.prints.entry(ghost) = print;
        let prints = &self.prints;
        self.table.insert(spread(print), ghost, |other| spread(prints.get(other)));
        Some(ghost)
    }

    /// Forgets a ghost. Its number may come back as another's.
    pub(super) fn forget(&mut self, ghost: u32) {
        let print = std::mem::replace(self.prints.entry(ghost), NOBODY);
        self.table.remove(spread(print), ghost);
    }

    /// Forgets the ghost with this print. Says whether there was one.
    pub(super) fn take(&mut self, print: Print) -> bool {
        let found = self.find(print);
        found.inspect(|ghost| self.forget(*ghost)).is_some()
    }

    /// Moves the ghosts of a full ring together; there are as many empty places among them as are spare at least.
    fn close_up(&mut self) {
        let (mut from, mut to) = (self.next, self.next);
        for _ in 0..self.limit + self.spare {
            let print = std::mem::replace(self.prints.entry(from), NOBODY);
            if print != NOBODY {
                *self.prints.entry(to) = print;
                self.table.renumber(spread(print), from, to);
                to = self.after(to);
            }
            from = self.after(from);
        }
        (self.oldest, self.next) = (self.next, to);
    }

    fn after(&self, ghost: u32) -> u32 {
        if ghost + 1 < self.limit + self.spare { ghost + 1 } else { 0 }
    }

    /// Returns bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.table.memory_bytes() + self.prints.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ghost_makes_room_for_the_newest() {
        let mut ghosts = Ghosts::new(2);
        for print in [10, 11, 10, 12] {
            ghosts.remember(print);
        }
        let known: Vec<bool> = [10, 11, 12].map(|print| ghosts.find(print).is_some()).into();
        assert_eq!((known, ghosts.len()), (vec![true, false, true], 2));
        assert!(ghosts.take(10) && !ghosts.take(10));
        assert_eq!((ghosts.len(), ghosts.find(12)), (1, ghosts.oldest()));
    }

    #[test]
    fn the_oldest_is_found_whoever_was_taken_out() {
        let mut ghosts = Ghosts::new(5);
        let mut model: Vec<Print> = Vec::new();
        let mut dice = 7u32;
        for print in 1..2000 {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if dice >> 30 == 0 && !model.is_empty() {
                let taken = model.remove((dice >> 8) as usize % model.len());
                assert!(ghosts.take(taken));
            } else {
                ghosts.remember(print);
                model.push(print);
                model.retain(|known| ghosts.find(*known).is_some());
                assert_eq!(model.last(), Some(&print));
            }
            let oldest = ghosts.oldest().map(|ghost| ghosts.prints.get(ghost));
            assert_eq!((oldest.as_ref(), ghosts.len()), (model.first(), model.len()));
        }
    }

    #[test]
    fn as_many_as_fit_are_remembered_exactly_whoever_was_taken_out() {
        let mut ghosts = Ghosts::exactly(20);
        let mut model: Vec<Print> = Vec::new();
        let mut dice = 7u32;
        for print in 1..4000 {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if dice >> 31 == 0 && !model.is_empty() {
                assert!(ghosts.take(model.remove((dice >> 8) as usize % model.len())));
            } else {
                ghosts.remember(print);
                model.push(print);
                model.drain(..model.len().saturating_sub(20));
            }
            let known = |print: &Print| ghosts.find(*print).is_some();
            assert!(model.iter().all(known) && ghosts.len() == model.len());
            let oldest = ghosts.oldest().map(|ghost| ghosts.prints.get(ghost));
            assert_eq!(oldest.as_ref(), model.first());
        }
    }

    #[test]
    fn a_ring_that_grows_forgets_nobody_and_keeps_their_order() {
        for exact in [false, true] {
            let mut ghosts = if exact { Ghosts::exactly(400) } else { Ghosts::new(400) };
            ghosts.sized(5);
            let mut model: Vec<Print> = Vec::new();
            let mut dice = 7u32;
            for print in 1..5000u32 {
                dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if print.is_multiple_of(100) {
                    ghosts.sized(5 + print as usize / 100);
                }
                if dice >> 30 == 0 && !model.is_empty() {
                    assert!(ghosts.take(model.remove((dice >> 8) as usize % model.len())));
                    continue;
                }
                let before = model.len();
                ghosts.remember(print);
                model.push(print);
                model.retain(|known| ghosts.find(*known).is_some());
                let limit = ghosts.limit as usize;
                assert!(model.len() >= before.min(limit) && model.len() <= limit && limit <= 55);
                let oldest = ghosts.oldest().map(|ghost| ghosts.prints.get(ghost));
                assert_eq!((oldest.as_ref(), ghosts.len()), (model.first(), model.len()));
            }
            assert!(ghosts.limit > 40, "{}", ghosts.limit);
        }
    }

    #[test]
    fn no_room_is_no_ghost() {
        let mut ghosts = Ghosts::new(0);
        assert_eq!((ghosts.remember(1), ghosts.find(1), ghosts.next_to_go()), (None, None, None));
    }
}
