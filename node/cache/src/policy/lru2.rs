//! `lru-2`: the block whose last use but one lies farthest back leaves first; blocks used once leave before all others
//! (O'Neil, O'Neil, Weikum, "The LRU-K Page Replacement Algorithm for Database Disk Buffering", SIGMOD 1993). The last use
//! of a block that left is kept for a bounded while: the paper's retained information.

use super::ghosts::{Ghosts, Print, Printer};
use super::list::{Links, List, MAX_SCAN, Path, entry, value};
use super::{Policy, Removal, Request, Verdict, Visit};
use std::collections::BTreeSet;

/// Ghosts for each block of the pool, and at least in all: what is worth knowing about a small pool's past is no less than
/// about a large one's. The least number takes 9 MB.
const GHOSTS_PER_BLOCK: usize = 2;
const MIN_GHOSTS: usize = 1 << 18;

/// The last two uses of a block; 0 is never.
#[derive(Clone, Copy, Default)]
struct Uses {
    last: u64,
    before: u64,
}

/// Least recent last use but one first.
pub struct LruTwo {
    links: Links,
    once: List,
    /// Blocks used twice: (last use but one, record).
    twice: BTreeSet<(u64, u32)>,
    uses: Vec<Uses>,
    prints: Vec<Print>,
    printer: Printer,
    ghosts: Ghosts,
    /// Last use of each ghost.
    ghost_uses: Vec<u64>,
    path: Path,
    clock: u64,
    now: u64,
}

impl LruTwo {
    /// Makes an empty order for `capacity` blocks.
    pub fn new(capacity: u32, seed: u64) -> LruTwo {
        LruTwo {
            links: Links::default(),
            once: List::EMPTY,
            twice: BTreeSet::new(),
            uses: Vec::new(),
            prints: Vec::new(),
            printer: Printer::new(seed),
            ghosts: Ghosts::new((capacity as usize * GHOSTS_PER_BLOCK).max(MIN_GHOSTS)),
            ghost_uses: Vec::new(),
            path: Path::NONE,
            clock: 0,
            now: 0,
        }
    }

    /// Puts a block in order after a use; the use before was at `before`.
    fn place(&mut self, at: u32, before: u64, visit: &Visit) {
        let below = self.path.step(at, visit);
        // Down a path time runs backwards, into the room that begin() left: of equals the deeper block is the older.
        self.now = match below {
            Some(_) => self.now - 1,
            None => {
                self.clock += 1;
                self.clock
            }
        };
        *entry(&mut self.uses, at) = Uses { last: self.now, before };
        if before > 0 {
            self.twice.insert((before, at));
        } else {
            let below = below.filter(|parent| value(&self.uses, *parent).before == 0);
            self.once.enter(&mut self.links, at, below);
        }
    }

    /// Takes a block out. Says whether it was there.
    fn take_out(&mut self, at: u32) -> bool {
        if self.links.contains(at) {
            self.once.leave(&mut self.links, at);
            return true;
        }
        self.twice.remove(&(value(&self.uses, at).before, at))
    }
}

impl Policy for LruTwo {
    fn begin(&mut self, request: &Request) {
        self.path.begin();
        self.clock += u64::from(request.blocks) + 1;
        self.now = self.clock;
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        if self.take_out(at) {
            let before = value(&self.uses, at).last;
            self.place(at, before, visit);
        }
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.take_out(at);
        let print = self.printer.print(&visit.key);
        *entry(&mut self.prints, at) = print;
        let ghost = self.ghosts.find(print);
        let before = ghost.map_or(0, |ghost| self.ghost_uses[ghost as usize]);
        ghost.inspect(|ghost| self.ghosts.forget(*ghost));
        self.place(at, before, visit);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        if let Some(at) = self.once.oldest_free(&mut self.links, may_go, &mut scan) {
            return Verdict::Evict(at);
        }
        let mut oldest = self.twice.iter().take(scan);
        oldest.find(|(_, at)| may_go(*at)).map_or(Verdict::Stuck, |(_, at)| Verdict::Evict(*at))
    }

    fn removed(&mut self, at: u32, why: Removal) {
        self.path.forget(at);
        if !self.take_out(at) {
            return;
        }
        if why == Removal::Evicted
            && let Some(ghost) = self.ghosts.remember(value(&self.prints, at))
        {
            *entry(&mut self.ghost_uses, ghost) = value(&self.uses, at).last;
        }
        self.uses[at as usize] = Uses::default();
    }

    fn memory_bytes(&self) -> usize {
        // A node of the standard library's ordered set holds 11 entries and 12 children; about two thirds of it are full.
        let in_set = size_of::<(u64, u32)>() * 3 / 2 + size_of::<usize>();
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.twice.len() * in_set
            + self.uses.capacity() * size_of::<Uses>()
            + self.prints.capacity() * size_of::<Print>()
            + self.ghosts.memory_bytes()
            + self.ghost_uses.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn blocks_used_once_leave_before_those_used_twice() {
        let mut pool = Scenario::with_room_for(3, Strategy::Lru2);
        assert_eq!(pool.serve_each("aabbcd").resident(), "abd");
        assert_eq!(pool.serve_each("e").resident(), "abe");
    }

    #[test]
    fn a_block_that_comes_back_is_known_to_have_been_used_before() {
        let mut pool = Scenario::with_room_for(3, Strategy::Lru2);
        pool.serve_each("aabbcde");
        assert_eq!(pool.serve_each("d").resident(), "abd");
        assert_eq!(pool.serve_each("e").resident(), "bde", "all were used twice, a the longest ago");
    }
}
