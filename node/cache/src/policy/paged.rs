//! `paged`: what engines do themselves. The blocks of the request being served are in use; when the next one begins they are
//! freed, the last first, to the end of a queue, and frames of one layout are recycled from its front in place, without
//! admission (Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023;
//! the free queue of vLLM's prefix cache).

use super::list::{Links, List, MAX_SCAN, entry};
use super::{Policy, Removal, Request, Verdict, Visit};

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
    states: Vec<State>,
    /// Blocks of the current request in order. A block that is gone meanwhile is not in use any more.
    in_use: Vec<u32>,
}

impl Paged {
    /// Makes an empty queue.
    pub fn new() -> Paged {
        Paged { links: Links::default(), free: List::EMPTY, states: Vec::new(), in_use: Vec::new() }
    }

    fn start_use(&mut self, at: u32) {
        let state = std::mem::replace(entry(&mut self.states, at), State::InUse);
        match state {
            State::Out => self.in_use.push(at),
            State::InUse => {}
            State::Free => {
                self.free.leave(&mut self.links, at);
                self.in_use.push(at);
            }
        }
    }
}

impl Default for Paged {
    fn default() -> Paged {
        Paged::new()
    }
}

impl Policy for Paged {
    fn begin(&mut self, _request: &Request) {
        for at in self.in_use.drain(..).rev() {
            if self.states[at as usize] == State::InUse {
                self.states[at as usize] = State::Free;
                self.free.enter(&mut self.links, at, None);
            }
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

    fn removed(&mut self, at: u32, _why: Removal) {
        if std::mem::take(entry(&mut self.states, at)) == State::Free {
            self.free.leave(&mut self.links, at);
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.states.capacity() * size_of::<State>()
            + self.in_use.capacity() * size_of::<u32>()
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
