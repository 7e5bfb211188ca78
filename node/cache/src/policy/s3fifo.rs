//! `s3-fifo`: newcomers pass a small queue, a tenth of the pool; what is used there more than once moves on to the main queue,
//! the rest leaves and is remembered: who comes back goes to the main queue at once (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO
//! Queues Are All You Need for Cache Eviction", SOSP 2023).

use super::ghosts::{Ghosts, Printer};
use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// Uses that are counted.
const MAX_COUNT: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Out,
    Small,
    Main,
}

/// Three queues; the third holds ghosts.
pub struct S3Fifo {
    small_target: usize,
    main_target: usize,
    links: Links,
    small: List,
    main: List,
    places: Column<Place>,
    counts: Column<u8>,
    printer: Printer,
    /// Blocks that left the small queue lately; each is a ghost for as many that leave after it as the main queue has places.
    ghosts: Ghosts,
    path: Path,
}

impl S3Fifo {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>()
            + Links::bytes(capacity)
            + Column::<Place>::bytes(capacity)
            + Column::<u8>::bytes(capacity)
            + Ghosts::bytes(capacity)
    }

    /// Makes empty queues for `capacity` blocks.
    pub fn new(capacity: u32, seed: u64) -> S3Fifo {
        let small_target = (capacity as usize / 10).max(1);
        let main_target = (capacity as usize).saturating_sub(small_target);
        S3Fifo {
            small_target,
            main_target,
            links: Links::new(capacity as usize),
            small: List::EMPTY,
            main: List::EMPTY,
            places: Column::new(capacity as usize),
            counts: Column::new(capacity as usize),
            printer: Printer::new(seed),
            ghosts: Ghosts::new(main_target),
            path: Path::NONE,
        }
    }

    /// Takes a block out. Returns where it was.
    fn take_out(&mut self, at: u32) -> Place {
        let place = std::mem::take(self.places.entry(at));
        match place {
            Place::Out => {}
            Place::Small => self.small.leave(&mut self.links, at),
            Place::Main => self.main.leave(&mut self.links, at),
        }
        place
    }

    /// Walks over the small queue. Returns the first block that was hardly used, unless the main queue overflows before.
    fn search_small(&mut self, may_go: &mut dyn FnMut(u32) -> bool, scan: &mut usize) -> Option<u32> {
        for _ in 0..self.small.len() {
            let at = self.small.oldest()?;
            if *scan == 0 {
                return None;
            }
            *scan -= 1;
            if self.counts.get(at) > 1 {
                self.small.leave(&mut self.links, at);
                *self.places.entry(at) = Place::Main;
                *self.counts.entry(at) = 0;
                self.main.enter(&mut self.links, at, None);
                if self.main.len() > self.main_target {
                    return None;
                }
            } else if may_go(at) {
                return Some(at);
            } else {
                self.small.turn(&mut self.links);
            }
        }
        None
    }

    /// Walks over the main queue, each use being a life. Returns the first block without one.
    fn search_main(&mut self, may_go: &mut dyn FnMut(u32) -> bool, scan: &mut usize) -> Option<u32> {
        let mut spared = None;
        let lives = 1 + usize::from(MAX_COUNT);
        for _ in 0..self.main.len() * lives {
            if *scan == 0 {
                break;
            }
            *scan -= 1;
            let at = self.main.oldest()?;
            if may_go(at) {
                if self.counts.get(at) == 0 {
                    return Some(at);
                }
                spared = Some(at);
            }
            let count = self.counts.entry(at);
            *count = count.saturating_sub(1);
            self.main.turn(&mut self.links);
        }
        // A long run of used blocks: one of them goes, lest one call walk over the whole pool.
        spared
    }
}

impl Policy for S3Fifo {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, _visit: &Visit) {
        let count = self.counts.entry(at);
        *count = (*count + 1).min(MAX_COUNT);
        // Its place is an old one: children that come in now do not belong below it.
        self.path.begin();
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.take_out(at);
        let print = self.printer.print(&visit.key);
        *self.counts.entry(at) = 0;
        let (place, list) = match self.ghosts.take(print) {
            true => (Place::Main, &mut self.main),
            false => (Place::Small, &mut self.small),
        };
        let below = self.path.step(at, visit).filter(|parent| self.places.get(*parent) == place);
        list.enter(&mut self.links, at, below);
        *self.places.entry(at) = place;
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        let mut found = None;
        if self.small.len() >= self.small_target || self.main.len() == 0 {
            found = self.search_small(may_go, &mut scan);
        }
        if found.is_none() {
            // The small queue may have used up the search; the main one has its own.
            found = self.search_main(may_go, &mut scan.max(MAX_SCAN / 2));
        }
        if found.is_none() {
            found = self.small.oldest_free(&mut self.links, may_go, &mut scan);
        }
        found.map_or(Verdict::Stuck, Verdict::Evict)
    }

    fn removed(&mut self, at: u32, key: &BlockKey, why: Removal) {
        self.path.forget(at);
        if self.take_out(at) == Place::Small && why == Removal::Evicted {
            self.ghosts.remember(self.printer.print(key));
        }
    }

    fn held(&mut self, most: usize) {
        self.ghosts.sized(most);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.places.memory_bytes()
            + self.counts.memory_bytes()
            + self.ghosts.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn one_time_newcomers_leave_and_the_others_stay() {
        let mut pool = Scenario::with_room_for(10, Strategy::S3Fifo);
        assert_eq!(pool.serve_each("abcdefghijaak").resident(), "acdefghijk");
        // The ghost of b brings it to the main queue; what comes after leaves from the small one.
        assert_eq!(pool.serve_each("blmnopqrs").resident(), "ablmnopqrs");
    }
}
