//! `lru-2`: the block whose last use but one lies farthest back leaves first; blocks used once leave before all others
//! (O'Neil, O'Neil, Weikum, "The LRU-K Page Replacement Algorithm for Database Disk Buffering", SIGMOD 1993). The last use
//! of a block that left is kept for a bounded while: the paper's retained information.

use super::ghosts::{Ghosts, Printer};
use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;
use std::collections::BTreeSet;

/// Ghosts at least in all: what is worth knowing about a small pool's past is no less than about a large one's. They take 5 MB.
const MIN_GHOSTS: usize = 1 << 18;

/// Returns how many ghosts there are for a pool of so many blocks: four for five.
fn ghosts(blocks: usize) -> usize {
    (blocks - blocks / 5).max(MIN_GHOSTS)
}

/// When a block was used, in uses of any block. What was used so long ago that it cannot be told is used at 1, and 0 is never.
type Time = u32;

/// From then on all times are taken back: a request has as much room until the end of time.
const LATE: Time = 1 << 31;
/// Blocks of a request for which time is set aside.
const MAX_PATH: u32 = 1 << 24;

/// Bytes of an entry of the standard library's ordered set, at most: a node has 11 places of which 5 are taken at least, four
/// numbers of its own, and where it is no leaf 12 children.
const BYTES_IN_SET: usize = 26;

/// The last two uses of a block.
#[derive(Clone, Copy, Default)]
struct Uses {
    last: Time,
    before: Time,
}

/// Least recent last use but one first.
pub struct LruTwo {
    links: Links,
    once: List,
    /// Blocks used twice: (last use but one, record).
    twice: BTreeSet<(Time, u32)>,
    uses: Column<Uses>,
    printer: Printer,
    ghosts: Ghosts,
    /// Last use of each ghost.
    ghost_uses: Column<Time>,
    path: Path,
    clock: Time,
    now: Time,
}

impl LruTwo {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        let ghosts = ghosts(capacity);
        size_of::<Self>()
            + Links::bytes(capacity)
            + capacity * BYTES_IN_SET
            + Column::<Uses>::bytes(capacity)
            + Ghosts::bytes(ghosts)
            + Column::<Time>::bytes(ghosts)
    }

    /// Makes an empty order for `capacity` blocks.
    pub fn new(capacity: u32, seed: u64) -> LruTwo {
        let ghosts = ghosts(capacity as usize);
        LruTwo {
            links: Links::new(capacity as usize),
            once: List::EMPTY,
            twice: BTreeSet::new(),
            uses: Column::new(capacity as usize),
            printer: Printer::new(seed),
            ghosts: Ghosts::new(ghosts),
            ghost_uses: Column::new(ghosts),
            path: Path::NONE,
            clock: 0,
            now: 0,
        }
    }

    /// Puts a block in order after a use; the use before was at `before`.
    fn place(&mut self, at: u32, before: Time, visit: &Visit) {
        let below = self.path.step(at, visit);
        // Down a path time runs backwards, into the room that begin() left: of equals the deeper block is the older.
        self.now = match below {
            Some(_) => (self.now - 1).max(1),
            None => {
                self.clock = self.clock.saturating_add(1);
                self.clock
            }
        };
        *self.uses.entry(at) = Uses { last: self.now, before };
        if before > 0 {
            self.twice.insert((before, at));
        } else {
            let below = below.filter(|parent| self.uses.get(*parent).before == 0);
            self.once.enter(&mut self.links, at, below);
        }
    }

    /// Takes all times back.
    fn take_back(&mut self) {
        let earlier = |time: Time| time.min(1).max(time.saturating_sub(LATE));
        self.clock = earlier(self.clock);
        self.uses.update(|uses| *uses = Uses { last: earlier(uses.last), before: earlier(uses.before) });
        self.ghost_uses.update(|time| *time = earlier(*time));
        self.twice =
            std::mem::take(&mut self.twice).into_iter().map(|(time, at)| (earlier(time), at)).collect();
    }

    /// Takes a block out. Says whether it was there.
    fn take_out(&mut self, at: u32) -> bool {
        if self.links.contains(at) {
            self.once.leave(&mut self.links, at);
            return true;
        }
        self.twice.remove(&(self.uses.get(at).before, at))
    }
}

impl Policy for LruTwo {
    fn begin(&mut self, request: &Request) {
        self.path.begin();
        if self.clock >= LATE {
            self.take_back();
        }
        self.clock += request.blocks.min(MAX_PATH) + 1;
        self.now = self.clock;
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        if self.take_out(at) {
            let before = self.uses.get(at).last;
            self.place(at, before, visit);
        }
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.take_out(at);
        let print = self.printer.print(&visit.key);
        let ghost = self.ghosts.find(print);
        let before = ghost.map_or(0, |ghost| self.ghost_uses.get(ghost));
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

    fn removed(&mut self, at: u32, key: &BlockKey, why: Removal) {
        self.path.forget(at);
        if !self.take_out(at) {
            return;
        }
        if why == Removal::Evicted
            && let Some(ghost) = self.ghosts.remember(self.printer.print(key))
        {
            *self.ghost_uses.entry(ghost) = self.uses.get(at).last;
        }
        *self.uses.entry(at) = Uses::default();
    }

    fn held(&mut self, most: usize) {
        self.ghosts.sized(ghosts(most));
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.twice.len() * BYTES_IN_SET
            + self.uses.memory_bytes()
            + self.ghosts.memory_bytes()
            + self.ghost_uses.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn blocks_used_once_leave_before_those_used_twice() {
        let mut pool = Scenario::with_room_for(3, Strategy::Lru2);
        assert_eq!(pool.serve_each("aabbcd").resident(), "abd");
        assert_eq!(pool.serve_each("e").resident(), "abe");
    }

    #[test]
    fn the_order_outlives_the_end_of_time() {
        let mut policy = LruTwo::new(4, 1);
        let visit =
            |at| Visit { key: BlockKey::from_bytes([at; 32]), parent: None, depth: 0, partial: false };
        let order = |policy: &mut LruTwo| {
            let mut all = policy.twice.iter().map(|(_, at)| *at).collect::<Vec<u32>>();
            all.insert(0, policy.once.oldest().expect("3 was used once"));
            all
        };
        policy.clock = LATE - 7;
        for at in [0, 1, 2, 2, 1, 0] {
            policy.begin(&Request { blocks: 1, ..Request::default() });
            match policy.uses.get(at).last {
                0 => policy.inserted(at, &visit(at as u8)),
                _ => policy.hit(at, &visit(at as u8)),
            }
        }
        policy.inserted(3, &visit(3));
        assert_eq!(order(&mut policy), [3, 0, 1, 2]);
        assert!(policy.clock < LATE && policy.twice.first().is_some_and(|(time, _)| *time == 1));
        policy.begin(&Request { blocks: 1, ..Request::default() });
        policy.hit(3, &visit(3));
        assert_eq!(policy.twice.iter().map(|(_, at)| *at).collect::<Vec<u32>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_block_that_comes_back_is_known_to_have_been_used_before() {
        let mut pool = Scenario::with_room_for(3, Strategy::Lru2);
        pool.serve_each("aabbcde");
        assert_eq!(pool.serve_each("d").resident(), "abd");
        assert_eq!(pool.serve_each("e").resident(), "bde", "all were used twice, a the longest ago");
    }
}
