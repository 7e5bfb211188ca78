//! What is kept of each resident block, and the lists of the leaves among them.

use super::class::Past;
use super::cohort::Cohorts;
use super::ranking::{NONE, Ranking};

/// A resident block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    /// Part of its key, zero while the slot is free.
    pub(super) print: u64,
    /// The cohort that it is counted in; [`NONE`] while it is part of the request at hand.
    pub(super) cohort: u32,
    /// Its parent's record, as it was in that record's `stay`.
    pub(super) parent: u32,
    /// Residents that name it as their parent. A leaf is in its cohort's list exactly while this is zero.
    pub(super) children: u32,
    /// Its neighbours among its cohort's leaves. While it is part of the request at hand, `previous` is its place there.
    pub(super) previous: u32,
    pub(super) next: u32,
    pub(super) past: Past,
    pub(super) is_resident: bool,
    /// Tells the blocks of one record apart (wraps).
    pub(super) stay: u8,
    pub(super) parent_stay: u8,
}

const VACANT: Resident = Resident {
    print: 0,
    cohort: NONE,
    parent: NONE,
    children: 0,
    previous: NONE,
    next: NONE,
    past: Past::EMPTY,
    is_resident: false,
    stay: 0,
    parent_stay: 0,
};

/// The resident blocks, by the number of their record.
pub(super) struct Records {
    slots: Vec<Resident>,
    count: usize,
}

impl Records {
    pub(super) fn new() -> Records {
        Records { slots: Vec::new(), count: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns the block of a record, none if the policy was not told of one.
    pub(super) fn get(&self, at: u32) -> Option<&Resident> {
        self.slots.get(at as usize).filter(|record| record.is_resident)
    }

    pub(super) fn at(&mut self, at: u32) -> &mut Resident {
        &mut self.slots[at as usize]
    }

    pub(super) fn insert(&mut self, at: u32, record: Resident) {
        let at = at as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, VACANT);
        }
        debug_assert!(!self.slots[at].is_resident, "one block a record at a time");
        let stay = self.slots[at].stay.wrapping_add(1);
        self.slots[at] = Resident { stay, ..record };
        self.count += 1;
    }

    pub(super) fn remove(&mut self, at: u32) {
        let stay = self.slots[at as usize].stay;
        self.slots[at as usize] = Resident { stay, ..VACANT };
        self.count -= 1;
    }

    /// Counts a child of `parent` more.
    pub(super) fn adopt(&mut self, parent: u32, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        let record = self.at(parent);
        record.children += 1;
        if record.children == 1 && record.cohort != NONE {
            self.unlist(parent, cohorts, ranking);
        }
    }

    /// Counts a child less of the block that is `parent` in its `stay`; another block of that record never had it.
    pub(super) fn bereave(&mut self, parent: u32, stay: u8, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        if self.get(parent).is_none_or(|record| record.stay != stay || record.children == 0) {
            return;
        }
        let record = self.at(parent);
        record.children -= 1;
        if record.children == 0 && record.cohort != NONE {
            self.list(parent, true, cohorts, ranking);
        }
    }

    /// Puts a leaf into its cohort's list: last, or first when its child has just left.
    pub(super) fn list(&mut self, at: u32, first: bool, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        let number = self.slots[at as usize].cohort;
        let cohort = cohorts.get_mut(number);
        let was_empty = cohort.head == NONE;
        let (previous, next) = if first { (NONE, cohort.head) } else { (cohort.tail, NONE) };
        if previous == NONE {
            cohort.head = at;
        } else {
            self.slots[previous as usize].next = at;
        }
        if next == NONE {
            cohort.tail = at;
        } else {
            self.slots[next as usize].previous = at;
        }
        self.slots[at as usize].previous = previous;
        self.slots[at as usize].next = next;
        if was_empty {
            cohorts.list(number, ranking);
        }
    }

    /// Takes a leaf out of its cohort's list.
    pub(super) fn unlist(&mut self, at: u32, cohorts: &mut Cohorts, ranking: &mut Ranking) {
        let Resident { cohort: number, previous, next, .. } = self.slots[at as usize];
        let cohort = cohorts.get_mut(number);
        if previous == NONE {
            cohort.head = next;
        } else {
            self.slots[previous as usize].next = next;
        }
        if next == NONE {
            cohort.tail = previous;
        } else {
            self.slots[next as usize].previous = previous;
        }
        if cohorts.get(number).head == NONE {
            cohorts.unlist(number, ranking);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Resident>()
    }
}
