//! Blocks that are not resident but remembered, in two parts of fixed size: the latest ones that left or were refused, and
//! longer, of those forgotten there, a sample chosen by key (as SHARDS does: Waldspurger et al., FAST 2015). The first part
//! tells what a block that comes back was; the second shows how long others wait, at a fraction of the memory.

use super::class::{Past, SAMPLE};
use crate::table::Table;
use foldhash::fast::FixedState;
use std::hash::BuildHasher;

/// A remembered block.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Ghost {
    /// Half of its print; a ghost that is taken for another one costs a misjudged block, no more.
    pub(super) print: u32,
    /// The cohort that it still is counted in.
    pub(super) cohort: u32,
    pub(super) past: Past,
}

const _: () = assert!(size_of::<Ghost>() == 16);

impl Ghost {
    pub(super) fn new(print: u64, cohort: u32, past: Past) -> Ghost {
        Ghost { print: half(print), cohort, past }
    }
}

/// Returns the half of a print that ghosts are known by.
fn half(print: u64) -> u32 {
    print as u32
}

/// Cohort of a slot that holds no ghost.
const VACANT: u32 = u32::MAX;

/// What had to give way to a new ghost.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Displaced {
    /// Is remembered on, and stands for [`SAMPLE`] blocks from now.
    pub(super) sampled: Option<Ghost>,
    pub(super) forgotten: Option<Ghost>,
}

/// First-in first-out slots.
struct Ring {
    slots: Vec<Ghost>,
    oldest: usize,
    limit: usize,
    /// What the limit is to be when the slot that is next is the first.
    wanted: usize,
    most: usize,
}

impl Ring {
    fn with_limit(limit: usize) -> Ring {
        let limit = limit.clamp(1, (u32::MAX / 4) as usize);
        Ring { slots: Vec::new(), oldest: 0, limit, wanted: limit, most: limit }
    }

    /// Puts a ghost in; returns its slot and what was there.
    fn put(&mut self, ghost: Ghost) -> (usize, Option<Ghost>) {
        // Only there do new slots come after the newest.
        if self.oldest == 0 {
            self.limit = self.wanted.max(self.slots.len());
        }
        if self.slots.len() < self.limit {
            super::grow(&mut self.slots, self.limit);
            self.slots.push(ghost);
            return (self.slots.len() - 1, None);
        }
        let slot = self.oldest;
        self.oldest = (slot + 1) % self.limit;
        let old = std::mem::replace(&mut self.slots[slot], ghost);
        (slot, (old.cohort != VACANT).then_some(old))
    }
}

/// The ghosts, found by their print.
pub(super) struct Ghosts {
    latest: Ring,
    sample: Ring,
    /// Slots of `latest`, and with the highest bit set of `sample`.
    table: Table,
    hasher: FixedState,
}

const IN_SAMPLE: u32 = 1 << 31;

fn at<'a>(latest: &'a Ring, sample: &'a Ring, slot: u32) -> &'a Ghost {
    if slot & IN_SAMPLE == 0 {
        &latest.slots[slot as usize]
    } else {
        &sample.slots[(slot & !IN_SAMPLE) as usize]
    }
}

impl Ghosts {
    /// Remembers so many of the latest blocks, and a sample of so many.
    pub(super) fn with_limits(latest: usize, sample: usize) -> Ghosts {
        Ghosts {
            latest: Ring::with_limit(latest),
            sample: Ring::with_limit(sample),
            table: Table::new(latest + sample),
            hasher: FixedState::default(),
        }
    }

    /// Remembers so many from the next time that its parts have come round, if it was made for as many; never fewer than now.
    pub(super) fn sized(&mut self, limit: usize) {
        self.latest.wanted = Ghosts::latest_of(limit).min(self.latest.most);
        self.sample.wanted = (limit / 4).clamp(1, self.sample.most);
    }

    /// Remembers so many in all.
    pub(super) fn of(limit: usize) -> Ghosts {
        Ghosts::with_limits(Ghosts::latest_of(limit), limit / 4)
    }

    fn latest_of(limit: usize) -> usize {
        limit / 4 * 3
    }

    /// Returns the bytes that so many take at most.
    pub(super) const fn most_bytes(limit: usize) -> usize {
        limit * size_of::<Ghost>() + Table::bytes(limit)
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, print: u64) -> Option<&Ghost> {
        let print = half(print);
        let (latest, sample) = (&self.latest, &self.sample);
        let is_it = |slot: u32| at(latest, sample, slot).print == print;
        let found = self.table.find(self.hasher.hash_one(print), is_it);
        found.map(|slot| at(latest, sample, slot))
    }

    /// Takes a ghost out: its block is back.
    pub(super) fn take(&mut self, print: u64) -> Option<Ghost> {
        let print = half(print);
        let (latest, sample) = (&self.latest, &self.sample);
        let is_it = |slot: u32| at(latest, sample, slot).print == print;
        let hash = self.hasher.hash_one(print);
        let slot = self.table.find(hash, is_it)?;
        self.table.remove(hash, slot);
        let ring = if slot & IN_SAMPLE == 0 { &mut self.latest } else { &mut self.sample };
        let ghost = &mut ring.slots[(slot & !IN_SAMPLE) as usize];
        let taken = *ghost;
        ghost.cohort = VACANT;
        Some(taken)
    }

    /// Remembers a block that is no ghost yet.
    pub(super) fn put(&mut self, ghost: Ghost) -> Displaced {
        debug_assert!(self.get(ghost.print.into()).is_none(), "a block becomes a ghost once");
        let (slot, old) = self.latest.put(ghost);
        let mut displaced = Displaced::default();
        if let Some(mut old) = old {
            self.strike(old.print, slot as u32);
            let is_sampled = (self.hasher.hash_one(old.print) >> 32) % u64::from(SAMPLE) == 0;
            if is_sampled && !old.past.is_sampled() {
                old.past.set_sampled(true);
                displaced.sampled = Some(old);
                let (slot, forgotten) = self.sample.put(old);
                if let Some(forgotten) = forgotten {
                    self.strike(forgotten.print, slot as u32 | IN_SAMPLE);
                    displaced.forgotten = Some(forgotten);
                }
                self.enter(old.print, slot as u32 | IN_SAMPLE);
            } else {
                displaced.forgotten = Some(old);
            }
        }
        self.enter(ghost.print, slot as u32);
        displaced
    }

    fn enter(&mut self, print: u32, slot: u32) {
        let (latest, sample, hasher) = (&self.latest, &self.sample, &self.hasher);
        let hash_of = |slot: u32| hasher.hash_one(at(latest, sample, slot).print);
        self.table.insert(hasher.hash_one(print), slot, hash_of);
    }

    fn strike(&mut self, print: u32, slot: u32) {
        self.table.remove(self.hasher.hash_one(print), slot);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let slots = self.latest.slots.capacity() + self.sample.slots.capacity();
        slots * size_of::<Ghost>() + self.table.memory_bytes()
    }
}
