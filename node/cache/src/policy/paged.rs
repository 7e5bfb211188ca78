//! `paged`: what engines do themselves. The blocks of the request being served are in use; when the next one begins they are
//! freed, the last first, to the end of a queue, and frames of one layout are recycled from its front in place, without
//! admission (Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023;
//! the free queue of vLLM's prefix cache).

use super::list::{Column, Links, List, MAX_SCAN};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Out,
    InUse,
    Free,
}

/// A queue of free blocks.
pub struct Paged {
    links: Links,
    free: List,
    states: Column<State>,
    /// Blocks of the current request, the last as the oldest.
    in_use: List,
}

impl Paged {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>() + Links::bytes(capacity) + Column::<State>::bytes(capacity)
    }

    /// Makes an empty queue for `capacity` blocks.
    pub fn new(capacity: u32) -> Paged {
        Paged {
            links: Links::new(capacity as usize),
            free: List::EMPTY,
            states: Column::new(capacity as usize),
            in_use: List::EMPTY,
        }
    }

    fn start_use(&mut self, at: u32) {
        let state = std::mem::replace(self.states.entry(at), State::InUse);
        match state {
            State::Out => {}
            State::InUse => return,
            State::Free => self.free.leave(&mut self.links, at),
        }
        let last = self.in_use.oldest();
        self.in_use.enter(&mut self.links, at, last);
    }
}

impl Policy for Paged {
    fn begin(&mut self, _request: &Request) {
        while let Some(last) = self.in_use.oldest() {
            self.in_use.leave(&mut self.links, last);
            *self.states.entry(last) = State::Free;
            self.free.enter(&mut self.links, last, None);
        }
    }

    fn hit(&mut self, at: u32, _visit: &Visit) {
        self.start_use(at);
    }

    fn inserted(&mut self, at: u32, _visit: &Visit) {
        self.start_use(at);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        self.free.oldest_free(&mut self.links, may_go, &mut scan).map_or(Verdict::Stuck, Verdict::Evict)
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, _why: Removal) {
        match std::mem::take(self.states.entry(at)) {
            State::Out => {}
            State::InUse => self.in_use.leave(&mut self.links, at),
            State::Free => self.free.leave(&mut self.links, at),
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.links.memory_bytes() + self.states.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn blocks_are_freed_the_last_first() {
        let mut pool = Scenario::with_room_for(3, Strategy::Paged);
        assert_eq!(pool.serve("abc x").resident(), "abx");
        assert_eq!(pool.serve("abd").resident(), "abd");
    }

    #[test]
    fn a_request_larger_than_the_pool_keeps_its_head() {
        let mut pool = Scenario::with_room_for(3, Strategy::Paged);
        pool.serve("abcde");
        assert_eq!((pool.resident().as_str(), pool.refused.as_str()), ("abc", "d"));
    }
}
