//! Doubly linked lists over dense record numbers, the matter that policies are made of: every step is O(1), a record costs
//! eight bytes, and several lists share one set of links, as no record is in two of them. Knows nothing of blocks.

use super::Visit;

/// No record.
pub(super) const NIL: u32 = u32::MAX;
/// In place of a neighbour: the record is in no list.
const OUT: u32 = u32::MAX - 1;

/// Records that one call looks at in search of one that may go.
pub(super) const MAX_SCAN: usize = 4096;

#[derive(Clone, Copy)]
struct Node {
    newer: u32,
    older: u32,
}

/// The neighbours of every record.
pub(super) struct Links(Column<Node>);

const NOWHERE: Node = Node { newer: OUT, older: OUT };

impl Default for Node {
    fn default() -> Node {
        NOWHERE
    }
}

impl Links {
    /// Makes links for records with numbers below `limit`.
    pub(super) fn new(limit: usize) -> Links {
        Links(Column::new(limit))
    }

    /// Returns the bytes that links for so many records take at most.
    pub(super) const fn bytes(limit: usize) -> usize {
        Column::<Node>::bytes(limit)
    }

    /// Says whether a record is in a list.
    pub(super) fn contains(&self, at: u32) -> bool {
        self.0.get(at).newer != OUT
    }

    /// Returns the next record towards the newest.
    pub(super) fn newer(&self, at: u32) -> Option<u32> {
        Some(self.0.get(at).newer).filter(|next| *next != NIL)
    }

    /// Returns bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    fn node(&mut self, at: u32) -> &mut Node {
        self.0.entry(at)
    }
}

/// A value for each record. It grows with the largest number seen, by an eighth at a time and never beyond its limit as
/// long as the numbers are below that: a full pool has not a byte to spare.
pub(super) struct Column<T> {
    values: Vec<T>,
    limit: usize,
}

/// Values that a column has room for at least.
const LEAST_ROOM: usize = 1024;

impl<T: Copy + Default> Column<T> {
    /// Makes a column for numbers below `limit`.
    pub(super) fn new(limit: usize) -> Column<T> {
        Column { values: Vec::new(), limit }
    }

    /// Returns a record's value, that of a fresh record where the column does not reach.
    pub(super) fn get(&self, at: u32) -> T {
        self.values.get(at as usize).copied().unwrap_or_default()
    }

    /// Returns a record's value to be changed.
    pub(super) fn entry(&mut self, at: u32) -> &mut T {
        let wanted = at as usize + 1;
        if self.values.len() < wanted {
            self.reach(wanted);
        }
        &mut self.values[at as usize]
    }

    fn reach(&mut self, wanted: usize) {
        if self.values.capacity() < wanted {
            let room = (wanted + wanted / 8).max(LEAST_ROOM).min(self.limit).max(wanted);
            self.values.reserve_exact(room - self.values.len());
        }
        self.values.resize(wanted, T::default());
    }

    /// Returns the bytes that a column with this limit takes at most.
    pub(super) const fn bytes(limit: usize) -> usize {
        limit * size_of::<T>()
    }

    /// Changes every value.
    pub(super) fn update(&mut self, change: impl FnMut(&mut T)) {
        self.values.iter_mut().for_each(change);
    }

    /// Returns bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.values.capacity() * size_of::<T>()
    }
}

/// One list; its neighbours lie in [`Links`].
pub(super) struct List {
    newest: u32,
    oldest: u32,
    len: u32,
}

impl List {
    pub(super) const EMPTY: List = List { newest: NIL, oldest: NIL, len: 0 };

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        Some(self.oldest).filter(|at| *at != NIL)
    }

    /// Returns the oldest record after making it the newest.
    pub(super) fn turn(&mut self, links: &mut Links) -> Option<u32> {
        let at = self.oldest()?;
        self.leave(links, at);
        self.enter(links, at, None);
        Some(at)
    }

    /// Puts a record that is in no list at the newest end; or, given `below`, which is in this list, just older than that.
    pub(super) fn enter(&mut self, links: &mut Links, at: u32, below: Option<u32>) {
        debug_assert!(!links.contains(at), "record {at} is in a list");
        let newer = below.unwrap_or(NIL);
        let older = below.map_or(self.newest, |below| links.node(below).older);
        *links.node(at) = Node { newer, older };
        match newer {
            NIL => self.newest = at,
            newer => links.node(newer).older = at,
        }
        match older {
            NIL => self.oldest = at,
            older => links.node(older).newer = at,
        }
        self.len += 1;
    }

    /// Takes out a record that is in this list.
    pub(super) fn leave(&mut self, links: &mut Links, at: u32) {
        debug_assert!(links.contains(at), "record {at} is in no list");
        let Node { newer, older } = std::mem::replace(links.node(at), NOWHERE);
        match newer {
            NIL => self.newest = older,
            newer => links.node(newer).older = older,
        }
        match older {
            NIL => self.oldest = newer,
            older => links.node(older).newer = newer,
        }
        self.len -= 1;
    }

    /// Returns the oldest record that may go, which stays. Those found on the way that may not go are in use, by a reader or
    /// by a longer prefix, and become the newest: the next search does not meet them again. `scan` bounds the search.
    pub(super) fn oldest_free(
        &mut self,
        links: &mut Links,
        may_go: &mut dyn FnMut(u32) -> bool,
        scan: &mut usize,
    ) -> Option<u32> {
        for _ in 0..self.len {
            let at = self.oldest()?;
            if *scan == 0 {
                return None;
            }
            *scan -= 1;
            if may_go(at) {
                return Some(at);
            }
            self.turn(links);
        }
        None
    }
}

/// The path that the current request walks down. A block goes just below its parent where both were used by one request, so
/// that among equals the end of a prefix leaves before its head, as vLLM frees its blocks in reverse.
pub(super) struct Path {
    last: u32,
}

impl Path {
    pub(super) const NONE: Path = Path { last: NIL };

    /// Ends the path: another request begins.
    pub(super) fn begin(&mut self) {
        self.last = NIL;
    }

    /// Moves on to record `at`. Returns its parent, if that was the step before.
    pub(super) fn step(&mut self, at: u32, visit: &Visit) -> Option<u32> {
        let before = std::mem::replace(&mut self.last, at);
        visit.parent.filter(|parent| *parent == before && before != NIL && before != at)
    }

    /// Forgets a record that is gone: its number may come back as another block's.
    pub(super) fn forget(&mut self, at: u32) {
        if self.last == at {
            self.last = NIL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_oldest(list: &List, links: &Links) -> Vec<u32> {
        std::iter::successors(list.oldest(), |at| links.newer(*at)).collect()
    }

    #[test]
    fn records_enter_at_the_newest_end_or_below_another() {
        let (mut links, mut list) = (Links::new(8), List::EMPTY);
        list.enter(&mut links, 3, None);
        list.enter(&mut links, 1, Some(3));
        list.enter(&mut links, 7, None);
        list.enter(&mut links, 2, Some(7));
        assert_eq!(from_oldest(&list, &links), [1, 3, 2, 7]);
        list.leave(&mut links, 3);
        list.leave(&mut links, 7);
        assert_eq!(from_oldest(&list, &links), [1, 2]);
        assert!(!links.contains(7) && !links.contains(900));
    }

    #[test]
    fn a_record_that_may_not_go_is_passed_over_once() {
        let (mut links, mut list) = (Links::new(8), List::EMPTY);
        for at in 0..4 {
            list.enter(&mut links, at, None);
        }
        let mut asked = Vec::new();
        let mut may_go = |at| {
            asked.push(at);
            at > 1
        };
        let mut scan = MAX_SCAN;
        assert_eq!(list.oldest_free(&mut links, &mut may_go, &mut scan), Some(2));
        list.leave(&mut links, 2);
        assert_eq!(list.oldest_free(&mut links, &mut may_go, &mut scan), Some(3));
        assert_eq!(asked, [0, 1, 2, 3]);
    }

    #[test]
    fn a_search_ends_when_nothing_may_go() {
        let (mut links, mut list) = (Links::new(8), List::EMPTY);
        for at in 0..10 {
            list.enter(&mut links, at, None);
        }
        let mut scan = MAX_SCAN;
        assert_eq!(list.oldest_free(&mut links, &mut |_| false, &mut scan), None);
        assert_eq!((MAX_SCAN - scan, from_oldest(&list, &links)), (10, (0..10).collect()));
        let mut scan = 3;
        assert_eq!(list.oldest_free(&mut links, &mut |at| at > 5, &mut scan), None);
    }
}
