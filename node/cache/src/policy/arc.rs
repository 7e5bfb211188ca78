//! `arc`: blocks used once and blocks used more often in two lists, whose shares follow where the ghosts come back
//! (Megiddo, Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003). Resident blocks and ghosts together
//! are at most twice what fits.

use super::ghosts::{Ghosts, Print, Printer};
use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// In which list a block is.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Out,
    /// T1 of the paper: used once lately.
    Recent,
    /// T2: used more than once.
    Frequent,
}

/// Recency and frequency, balanced by their ghosts.
pub struct Arc {
    capacity: usize,
    /// p of the paper: how many blocks the recent list should have.
    target: f64,
    links: Links,
    recent: List,
    frequent: List,
    places: Column<Place>,
    printer: Printer,
    recent_ghosts: Ghosts,
    frequent_ghosts: Ghosts,
    path: Path,
}

impl Arc {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>()
            + Links::bytes(capacity)
            + Column::<Place>::bytes(capacity)
            + 2 * Ghosts::bytes(capacity.max(1))
    }

    /// Makes empty lists for `blocks` blocks.
    pub fn new(blocks: u32, seed: u64) -> Arc {
        let capacity = blocks.max(1) as usize;
        Arc {
            capacity,
            target: 0.0,
            links: Links::new(capacity),
            recent: List::EMPTY,
            frequent: List::EMPTY,
            places: Column::new(capacity),
            printer: Printer::new(seed),
            recent_ghosts: Ghosts::exactly(capacity),
            frequent_ghosts: Ghosts::exactly(capacity),
            path: Path::NONE,
        }
    }

    /// Returns what the target becomes when this block comes in.
    fn target_with(&self, print: Print) -> f64 {
        let (recent, frequent) = (self.recent_ghosts.len() as f64, self.frequent_ghosts.len() as f64);
        if self.recent_ghosts.find(print).is_some() {
            (self.target + (frequent / recent).max(1.0)).min(self.capacity as f64)
        } else if self.frequent_ghosts.find(print).is_some() {
            (self.target - (recent / frequent).max(1.0)).max(0.0)
        } else {
            self.target
        }
    }

    fn place(&mut self, at: u32, place: Place, visit: &Visit) {
        self.take_out(at);
        let below = self.path.step(at, visit).filter(|parent| self.places.get(*parent) == place);
        *self.places.entry(at) = place;
        let list = if place == Place::Recent { &mut self.recent } else { &mut self.frequent };
        list.enter(&mut self.links, at, below);
    }

    /// Takes a block out. Returns where it was.
    fn take_out(&mut self, at: u32) -> Place {
        let place = std::mem::take(self.places.entry(at));
        match place {
            Place::Out => {}
            Place::Recent => self.recent.leave(&mut self.links, at),
            Place::Frequent => self.frequent.leave(&mut self.links, at),
        }
        place
    }

    /// Forgets ghosts beyond the paper's bounds: recent blocks and their ghosts fit into the pool, all together into two.
    fn forget_surplus(&mut self) {
        while self.recent.len() + self.recent_ghosts.len() > self.capacity
            && let Some(oldest) = self.recent_ghosts.oldest()
        {
            self.recent_ghosts.forget(oldest);
        }
        let resident = self.recent.len() + self.frequent.len();
        while resident + self.recent_ghosts.len() + self.frequent_ghosts.len() > 2 * self.capacity
            && let Some(oldest) = self.frequent_ghosts.oldest()
        {
            self.frequent_ghosts.forget(oldest);
        }
    }
}

impl Policy for Arc {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        self.place(at, Place::Frequent, visit);
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        let print = self.printer.print(&visit.key);
        self.target = self.target_with(print);
        let came_back = self.recent_ghosts.take(print) || self.frequent_ghosts.take(print);
        self.place(at, if came_back { Place::Frequent } else { Place::Recent }, visit);
        self.forget_surplus();
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let print = self.printer.print(&newcomer.key);
        let (recent, target) = (self.recent.len() as f64, self.target_with(print));
        let was_frequent = self.frequent_ghosts.find(print).is_some();
        let mut lists = [&mut self.frequent, &mut self.recent];
        if recent > target || (was_frequent && recent == target) {
            lists.reverse();
        }
        let mut scan = MAX_SCAN;
        for list in lists {
            if let Some(at) = list.oldest_free(&mut self.links, may_go, &mut scan) {
                return Verdict::Evict(at);
            }
        }
        Verdict::Stuck
    }

    fn removed(&mut self, at: u32, key: &BlockKey, why: Removal) {
        self.path.forget(at);
        let place = self.take_out(at);
        if why == Removal::Evicted {
            let print = self.printer.print(key);
            match place {
                Place::Out => None,
                Place::Recent => self.recent_ghosts.remember(print),
                Place::Frequent => self.frequent_ghosts.remember(print),
            };
            self.forget_surplus();
        }
    }

    fn held(&mut self, most: usize) {
        self.recent_ghosts.sized(most);
        self.frequent_ghosts.sized(most);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.places.memory_bytes()
            + self.recent_ghosts.memory_bytes()
            + self.frequent_ghosts.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn a_scan_passes_by_what_was_used_twice() {
        let mut pool = Scenario::with_room_for(4, Strategy::Arc);
        assert_eq!(pool.serve_each("aabbcdefgh").resident(), "abgh");
    }

    #[test]
    fn a_ghost_that_comes_back_moves_the_balance() {
        let mut arc = Arc::new(4, 1);
        arc.target = 1.0;
        arc.recent_ghosts.remember(10);
        arc.frequent_ghosts.remember(20);
        arc.frequent_ghosts.remember(21);
        assert_eq!([10, 20, 30].map(|print| arc.target_with(print)), [3.0, 0.0, 1.0]);
    }
}
