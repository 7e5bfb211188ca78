//! Ghosts: blocks that left for want of room, remembered for a while by a hash of their key, newest last. Bounded; two keys
//! of one hash are taken for one block, which costs a wrong guess in 2^64 and nothing else.

use super::list::{Links, List};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use kvhive_protocol::BlockKey;
use std::hash::BuildHasher;

/// What a ghost is known by.
pub(super) type Print = u64;

/// Makes prints of keys. A secret seed keeps a stranger from making keys that fall together.
pub(super) struct Printer(FixedState);

impl Printer {
    pub(super) fn new(seed: u64) -> Printer {
        Printer(FixedState::with_seed(seed))
    }

    pub(super) fn print(&self, key: &BlockKey) -> Print {
        self.0.hash_one(key)
    }
}

/// At most so many ghosts, each with a dense number of its own.
pub(super) struct Ghosts {
    limit: usize,
    table: HashTable<u32>,
    prints: Vec<Print>,
    free: Vec<u32>,
    links: Links,
    order: List,
}

impl Ghosts {
    pub(super) fn new(limit: usize) -> Ghosts {
        Ghosts {
            limit,
            table: HashTable::new(),
            prints: Vec::new(),
            free: Vec::new(),
            links: Links::default(),
            order: List::EMPTY,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        self.order.oldest()
    }

    /// Returns the number of the ghost with this print.
    pub(super) fn find(&self, print: Print) -> Option<u32> {
        self.table.find(print, |ghost| self.prints[*ghost as usize] == print).copied()
    }

    /// Remembers a block as the newest ghost, if need be instead of the oldest. Returns its number.
    pub(super) fn remember(&mut self, print: Print) -> Option<u32> {
        if let Some(again) = self.find(print) {
            self.forget(again);
        }
        if self.is_full() {
            self.forget(self.oldest()?);
        }
        let ghost = match self.free.pop() {
            Some(ghost) => {
                self.prints[ghost as usize] = print;
                ghost
            }
            None => {
                self.prints.push(print);
                self.prints.len() as u32 - 1
            }
        };
        let prints = &self.prints;
        self.table.insert_unique(print, ghost, |other| prints[*other as usize]);
        self.order.enter(&mut self.links, ghost, None);
        Some(ghost)
    }

    /// Forgets a ghost. Its number may come back as another's.
    pub(super) fn forget(&mut self, ghost: u32) {
        let print = self.prints[ghost as usize];
        if let Ok(entry) = self.table.find_entry(print, |other| *other == ghost) {
            entry.remove();
            self.order.leave(&mut self.links, ghost);
            self.free.push(ghost);
        }
    }

    /// Forgets the ghost with this print. Says whether there was one.
    pub(super) fn take(&mut self, print: Print) -> bool {
        let found = self.find(print);
        found.inspect(|ghost| self.forget(*ghost)).is_some()
    }

    /// Returns bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.table.allocation_size()
            + self.prints.capacity() * size_of::<Print>()
            + self.free.capacity() * size_of::<u32>()
            + self.links.memory_bytes()
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
        assert_eq!((ghosts.len(), ghosts.find(12), ghosts.oldest()), (1, ghosts.oldest(), ghosts.find(12)));
    }

    #[test]
    fn no_room_is_no_ghost() {
        let mut ghosts = Ghosts::new(0);
        assert_eq!((ghosts.remember(1), ghosts.find(1)), (None, None));
    }
}
