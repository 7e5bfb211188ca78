//! What is kept of each resident block, and the lists of the leaves among them.

use super::class::Past;
use super::cohort::Cohorts;
use super::ranking::{NONE, Ranking};
use crate::policy::list::Column;

/// Cohort of a record that holds no block.
const VACANT: u32 = NONE - 1;

/// In place of the next leaf: the block is none itself.
const HAS_CHILDREN: u32 = NONE - 1;

/// A resident block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    /// The cohort that it is counted in; [`NONE`] while it is part of the request at hand.
    pub(super) cohort: u32,
    /// Its neighbours among its cohort's leaves. While it is part of the request at hand, `previous` is its place there.
    pub(super) previous: u32,
    pub(super) next: u32,
    pub(super) past: Past,
}

const _: () = assert!(size_of::<Resident>() == 20);

impl Default for Resident {
    fn default() -> Resident {
        Resident { cohort: VACANT, previous: NONE, next: NONE, past: Past::EMPTY }
    }
}

impl Resident {
    /// Says whether no resident block names it as its parent. A leaf that is counted in a cohort is in that one's list.
    pub(super) fn is_leaf(&self) -> bool {
        self.next != HAS_CHILDREN
    }

    pub(super) fn is_of_this_request(&self) -> bool {
        self.cohort == NONE
    }
}

/// The resident blocks, by the number of their record.
pub(super) struct Records {
    slots: Column<Resident>,
    count: usize,
}

impl Records {
    /// Makes records for numbers below `limit`.
    pub(super) fn new(limit: usize) -> Records {
        Records { slots: Column::new(limit), count: 0 }
    }

    /// Returns the bytes that records for numbers below `limit` take at most.
    pub(super) const fn most_bytes(limit: usize) -> usize {
        Column::<Resident>::bytes(limit)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns the block of a record, none if the policy was not told of one.
    pub(super) fn get(&self, at: u32) -> Option<Resident> {
        Some(self.slots.get(at)).filter(|record| record.cohort != VACANT)
    }

    pub(super) fn at(&mut self, at: u32) -> &mut Resident {
        self.slots.entry(at)
    }

    /// Takes in a leaf of the request at hand, which has it at `place`.
    pub(super) fn insert(&mut self, at: u32, place: u32) {
        debug_assert!(self.get(at).is_none(), "one block a record at a time");
        *self.at(at) = Resident { cohort: NONE, previous: place, ..Resident::default() };
        self.count += 1;
    }

    pub(super) fn remove(&mut self, at: u32) {
        *self.at(at) = Resident::default();
        self.count -= 1;
    }

    /// Makes a block a leaf, the first of its cohort to leave, or no leaf any more. One that the policy was not told of
    /// stays what it is.
    pub(super) fn set_leaf(&mut self, at: u32, leaf: bool, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        let Some(record) = self.get(at).filter(|record| record.is_leaf() != leaf) else { return };
        let is_counted = !record.is_of_this_request();
        if !leaf && is_counted {
            self.unlist(at, cohorts, ranking);
        }
        self.at(at).next = if leaf { NONE } else { HAS_CHILDREN };
        if leaf && is_counted {
            self.list(at, true, cohorts, ranking);
        }
    }

    /// Puts a leaf into its cohort's list: last, or first when its child has just left.
    pub(super) fn list(&mut self, at: u32, first: bool, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        let number = self.slots.get(at).cohort;
        let cohort = cohorts.get_mut(number);
        let was_empty = cohort.head == NONE;
        let (previous, next) = if first { (NONE, cohort.head) } else { (cohort.tail, NONE) };
        if previous == NONE {
            cohort.head = at;
        } else {
            self.at(previous).next = at;
        }
        if next == NONE {
            cohort.tail = at;
        } else {
            self.at(next).previous = at;
        }
        let record = self.at(at);
        (record.previous, record.next) = (previous, next);
        if was_empty {
            cohorts.list(number, ranking);
        }
    }

    /// Takes a leaf out of its cohort's list.
    pub(super) fn unlist(&mut self, at: u32, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        let Resident { cohort: number, previous, next, .. } = self.slots.get(at);
        let cohort = cohorts.get_mut(number);
        if previous == NONE {
            cohort.head = next;
        } else {
            self.at(previous).next = next;
        }
        if next == NONE {
            cohort.tail = previous;
        } else {
            self.at(next).previous = previous;
        }
        let record = self.at(at);
        (record.previous, record.next) = (NONE, NONE);
        if cohorts.get(number).head == NONE {
            cohorts.unlist(number, ranking);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes()
    }
}
