//! Small caches without blocks that show how well each way to rank would have done: each sees the same sample of blocks,
//! chosen by key, and has room for the same part of the capacity (Waldspurger et al., "Cache Modeling and Optimization using
//! Miniature Simulations", USENIX ATC 2017). As in the pool, only leaves leave and a hit counts only after hits.

use super::ages::Tick;
use super::learning::distance_of_newcomer;
use super::ranking::NONE;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// Room of a shadow cache; a larger pool is sampled.
pub(super) const MAX_ROOM: usize = 8192;

/// Leaves compared for one victim. With few, a way would seem to forgive loops that are a little too large for it, and the learnt
/// one would seem worse than it is, for the pool itself compares all.
const CANDIDATES: usize = 96;

/// Which newcomers a way to rank lets in when there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    All,
    /// Those of no less worth than what would leave.
    NoWorse,
    /// Those that were seen before and are of more worth than what would leave.
    Better,
}

/// What a newcomer is worth by [`Admission::Better`].
fn entry(seen: &Seen) -> Option<f32> {
    seen.gap.map(|gap| distance_of_newcomer(gap.into()))
}

/// What a way to rank may look at.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Seen {
    pub(super) print: u64,
    pub(super) last: Tick,
    pub(super) uses: u8,
    pub(super) row: u16,
    /// Bucket of the time between its last two uses, if there were two.
    pub(super) gap: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    seen: Seen,
    parent: u32,
    children: u32,
    /// Place among the leaves while it is one.
    leaf: u32,
}

/// One shadow cache.
pub(super) struct Shadow {
    room: usize,
    entries: Vec<Entry>,
    free: Vec<u32>,
    leaves: Vec<u32>,
    table: HashTable<u32>,
    hasher: FixedState,
    dice: u64,
    /// The deepest block of the request at hand that is in, and whether all sampled ones before it were in from the start.
    path: u32,
    is_covered: bool,
    is_refused: bool,
}

impl Shadow {
    pub(super) fn new(room: usize) -> Shadow {
        Shadow {
            room,
            entries: Vec::new(),
            free: Vec::new(),
            leaves: Vec::new(),
            table: HashTable::new(),
            hasher: FixedState::default(),
            dice: 0x2545_F491_4F6C_DD1D,
            path: NONE,
            is_covered: true,
            is_refused: false,
        }
    }

    pub(super) fn begin(&mut self) {
        self.path = NONE;
        self.is_covered = true;
        self.is_refused = false;
    }

    /// A block of the request is used; says whether that is a hit. `worth` ranks blocks, the lowest leaves first. What
    /// follows a newcomer that is not let in is not let in either.
    pub(super) fn visit(&mut self, seen: Seen, admission: Admission, worth: &dyn Fn(&Seen) -> f32) -> bool {
        let entries = &self.entries;
        let hash = self.hasher.hash_one(seen.print);
        if let Some(at) = self.table.find(hash, |at| entries[*at as usize].seen.print == seen.print) {
            self.path = *at;
            self.entries[*at as usize].seen = seen;
            return self.is_covered;
        }
        self.is_covered = false;
        if self.is_refused {
            return false;
        }
        if self.table.len() >= self.room {
            let victim = self.victim(seen.last, worth).filter(|at| {
                let leaves = worth(&self.entries[*at as usize].seen);
                match admission {
                    Admission::All => true,
                    Admission::NoWorse => leaves <= worth(&seen),
                    Admission::Better => entry(&seen).is_some_and(|worth| leaves < worth),
                }
            });
            let Some(victim) = victim else {
                self.is_refused = true;
                return false;
            };
            self.remove(victim);
        }
        self.insert(seen, hash);
        false
    }

    /// A block, if it is in, is of another class from now on.
    pub(super) fn reclassify(&mut self, print: u64, row: u16) {
        let entries = &self.entries;
        let hash = self.hasher.hash_one(print);
        if let Some(at) = self.table.find(hash, |at| entries[*at as usize].seen.print == print) {
            self.entries[*at as usize].seen.row = row;
        }
    }

    fn victim(&mut self, now: Tick, worth: &dyn Fn(&Seen) -> f32) -> Option<u32> {
        let mut best: Option<(f32, u32)> = None;
        for _ in 0..CANDIDATES.min(self.leaves.len()) {
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            let at = self.leaves[(self.dice % self.leaves.len() as u64) as usize];
            let seen = &self.entries[at as usize].seen;
            if seen.last == now {
                continue;
            }
            let worth = worth(seen);
            if best.is_none_or(|(least, _)| worth < least) {
                best = Some((worth, at));
            }
        }
        best.map(|(_, at)| at)
    }

    fn insert(&mut self, seen: Seen, hash: u64) {
        let entry = Entry { seen, parent: self.path, children: 0, leaf: NONE };
        let at = self.free.pop().unwrap_or(self.entries.len() as u32);
        if at as usize == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries[at as usize] = entry;
        }
        if self.path != NONE {
            self.entries[self.path as usize].children += 1;
            if self.entries[self.path as usize].children == 1 {
                self.unlist(self.path);
            }
        }
        self.list(at);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.table.insert_unique(hash, at, |at| hasher.hash_one(entries[*at as usize].seen.print));
        self.path = at;
    }

    fn remove(&mut self, at: u32) {
        self.unlist(at);
        let Entry { seen, parent, .. } = self.entries[at as usize];
        if let Ok(entry) = self.table.find_entry(self.hasher.hash_one(seen.print), |other| *other == at) {
            entry.remove();
        }
        self.free.push(at);
        if parent != NONE {
            self.entries[parent as usize].children -= 1;
            if self.entries[parent as usize].children == 0 {
                self.list(parent);
            }
        }
    }

    fn list(&mut self, at: u32) {
        self.entries[at as usize].leaf = self.leaves.len() as u32;
        self.leaves.push(at);
    }

    fn unlist(&mut self, at: u32) {
        let place = self.entries[at as usize].leaf as usize;
        self.leaves.swap_remove(place);
        if let Some(moved) = self.leaves.get(place) {
            self.entries[*moved as usize].leaf = place as u32;
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + (self.free.capacity() + self.leaves.capacity()) * size_of::<u32>()
            + self.table.allocation_size()
    }
}
