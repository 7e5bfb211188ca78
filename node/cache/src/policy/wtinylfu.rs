//! `w-tinylfu`: newcomers pass a window of 1 %; the block that leaves it comes into the main part, an LRU of two segments, only if
//! a sketch knows it as used more often than the block that would make room (Einziger, Friedman, Manes, "TinyLFU: A Highly
//! Efficient Cache Admission Policy", ACM Transactions on Storage, 2017).

use super::ghosts::{Print, Printer};
use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::sketch::Sketch;
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Out,
    Window,
    /// The main part's trial.
    Probation,
    /// Used again since it came into the main part.
    Protected,
}

/// A window, two segments and a sketch of how often keys are used.
pub struct WTinyLfu {
    window_target: usize,
    protected_target: usize,
    links: Links,
    window: List,
    probation: List,
    protected: List,
    places: Column<Place>,
    prints: Column<Print>,
    printer: Printer,
    sketch: Sketch,
    path: Path,
    /// Blocks that the current request has put into the window, at most: they are its newest.
    from_request: usize,
}

impl WTinyLfu {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>()
            + Links::bytes(capacity)
            + Column::<Place>::bytes(capacity)
            + Column::<Print>::bytes(capacity)
            + Sketch::most_bytes(capacity)
    }

    /// Makes empty segments for `capacity` blocks.
    pub fn new(capacity: u32, seed: u64) -> WTinyLfu {
        let window_target = (capacity as usize / 100).max(1);
        let main = (capacity as usize).saturating_sub(window_target);
        WTinyLfu {
            window_target,
            protected_target: main * 8 / 10,
            links: Links::new(capacity as usize),
            window: List::EMPTY,
            probation: List::EMPTY,
            protected: List::EMPTY,
            places: Column::new(capacity as usize),
            prints: Column::new(capacity as usize),
            printer: Printer::new(seed),
            sketch: Sketch::new(capacity),
            path: Path::NONE,
            from_request: 0,
        }
    }

    fn list(&mut self, place: Place) -> (Option<&mut List>, &mut Links) {
        let list = match place {
            Place::Out => None,
            Place::Window => Some(&mut self.window),
            Place::Probation => Some(&mut self.probation),
            Place::Protected => Some(&mut self.protected),
        };
        (list, &mut self.links)
    }

    /// Puts a block into a segment, whichever it was in.
    fn put(&mut self, at: u32, place: Place, parent: Option<u32>) {
        let before = std::mem::take(self.places.entry(at));
        let below = parent.filter(|parent| self.places.get(*parent) == place);
        if let (Some(list), links) = self.list(before) {
            list.leave(links, at);
        }
        if let (Some(list), links) = self.list(place) {
            list.enter(links, at, below);
        }
        *self.places.entry(at) = place;
    }

    fn estimate(&self, at: u32) -> u64 {
        self.sketch.estimate(self.prints.get(at))
    }

    /// Returns the block that is next to leave a full window. One that may not go, and is of an earlier request, moves on
    /// into the main part: mostly, what is below it in its prefix has passed already, and it would fill the window for good.
    fn candidate(&mut self, may_go: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        for _ in 0..MAX_SCAN {
            let oldest = self.window.oldest().filter(|_| self.window.len() >= self.window_target)?;
            if may_go(oldest) {
                return Some(oldest);
            }
            if self.window.len() <= self.from_request {
                return None;
            }
            self.put(oldest, Place::Probation, None);
        }
        None
    }
}

impl Policy for WTinyLfu {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
        self.from_request = 0;
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        self.sketch.count(self.prints.get(at));
        let parent = self.path.step(at, visit);
        match self.places.get(at) {
            Place::Out => {}
            Place::Window => {
                self.from_request += 1;
                self.put(at, Place::Window, parent);
            }
            Place::Probation | Place::Protected => {
                self.put(at, Place::Protected, parent);
                if self.protected.len() > self.protected_target
                    && let Some(oldest) = self.protected.oldest()
                {
                    self.put(oldest, Place::Probation, None);
                }
            }
        }
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        let print = self.printer.print(&visit.key);
        *self.prints.entry(at) = print;
        self.sketch.count(print);
        let parent = self.path.step(at, visit);
        self.from_request += 1;
        self.put(at, Place::Window, parent);
        if self.window.len() > self.window_target
            && let Some(oldest) = self.window.oldest()
        {
            self.put(oldest, Place::Probation, None);
        }
    }

    fn refused(&mut self, visit: &Visit) {
        self.sketch.count(self.printer.print(&visit.key));
    }

    fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let candidate = self.candidate(may_go);
        let is_window_full = self.window.len() >= self.window_target;
        let mut scan = MAX_SCAN;
        let mut resident = self.probation.oldest_free(&mut self.links, may_go, &mut scan);
        if resident.is_none() {
            resident = self.protected.oldest_free(&mut self.links, may_go, &mut scan);
        }
        match (candidate, resident) {
            (Some(candidate), Some(resident)) if self.estimate(candidate) > self.estimate(resident) => {
                Verdict::Evict(resident)
            }
            (Some(candidate), _) => Verdict::Evict(candidate),
            (None, Some(resident)) if !is_window_full => Verdict::Evict(resident),
            // All of the window is in use: the newcomer itself is the candidate.
            (None, Some(resident)) => {
                let uses = 1 + self.sketch.estimate(self.printer.print(&newcomer.key));
                if uses > self.estimate(resident) { Verdict::Evict(resident) } else { Verdict::Refuse }
            }
            (None, None) => self
                .window
                .oldest_free(&mut self.links, may_go, &mut scan)
                .map_or(Verdict::Stuck, Verdict::Evict),
        }
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, _why: Removal) {
        self.path.forget(at);
        self.put(at, Place::Out, None);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.places.memory_bytes()
            + self.prints.memory_bytes()
            + self.sketch.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::WTinyLfu;
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn only_what_is_used_more_often_is_let_in() {
        let mut pool = Scenario::with_room_for(4, Strategy::WTinyLfu);
        assert_eq!(pool.serve_each("abcdabcef").resident(), "abcf");
        assert_eq!(pool.serve_each("fffg").resident(), "bcfg");
    }

    #[test]
    fn the_rest_of_a_long_cold_prefix_is_refused() {
        let mut pool = Scenario::with_room_for(4, Strategy::WTinyLfu);
        pool.serve("abc abc abc d efgh");
        assert_eq!((pool.resident().as_str(), pool.refused.as_str()), ("abce", "f"));
    }

    #[test]
    fn the_head_of_a_prefix_whose_end_was_let_in_does_not_stay_in_the_window() {
        let policy = WTinyLfu { window_target: 2, ..WTinyLfu::new(6, 7) };
        let mut pool = Scenario::of(6, Box::new(policy));
        pool.serve("a b c d xy xy xy p q uv");
        assert_eq!((pool.resident().as_str(), pool.refused.as_str()), ("cduvxy", ""));
    }
}
