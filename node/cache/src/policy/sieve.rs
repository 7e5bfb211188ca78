//! `sieve`: a queue in which nothing moves; a hand walks from the oldest to the newest, forgives blocks used since it last
//! came by, and takes the first that was not (Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient
//! Turn-Key Eviction Algorithm for Web Caches", NSDI 2024).

use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// A queue, a hand, and one bit a block.
pub struct Sieve {
    links: Links,
    queue: List,
    hand: Option<u32>,
    is_used: Column<bool>,
    path: Path,
}

impl Sieve {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>() + Links::bytes(capacity) + Column::<bool>::bytes(capacity)
    }

    /// Makes an empty queue for `capacity` blocks.
    pub fn new(capacity: u32) -> Sieve {
        Sieve {
            links: Links::new(capacity as usize),
            queue: List::EMPTY,
            hand: None,
            is_used: Column::new(capacity as usize),
            path: Path::NONE,
        }
    }

    fn take_out(&mut self, at: u32) {
        if self.links.contains(at) {
            if self.hand == Some(at) {
                self.hand = self.links.newer(at);
            }
            self.queue.leave(&mut self.links, at);
        }
    }
}

impl Policy for Sieve {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, _visit: &Visit) {
        *self.is_used.entry(at) = true;
        // Its place is an old one: children that come in now do not belong below it.
        self.path.begin();
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.take_out(at);
        *self.is_used.entry(at) = false;
        let below = self.path.step(at, visit);
        self.queue.enter(&mut self.links, at, below);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut forgiven = None;
        // Two rounds: in the first all may have been used.
        for _ in 0..MAX_SCAN.min(2 * self.queue.len()) {
            let Some(at) = self.hand.or(self.queue.oldest()) else { break };
            self.hand = Some(at);
            if may_go(at) {
                if !self.is_used.get(at) {
                    return Verdict::Evict(at);
                }
                forgiven = Some(at);
            }
            *self.is_used.entry(at) = false;
            self.hand = self.links.newer(at);
        }
        // A long run of used blocks: one of them goes, lest one call walk over the whole pool.
        forgiven.map_or(Verdict::Stuck, Verdict::Evict)
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, _why: Removal) {
        self.path.forget(at);
        self.take_out(at);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.links.memory_bytes() + self.is_used.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn the_hand_forgives_once_and_goes_on() {
        let mut pool = Scenario::with_room_for(3, Strategy::Sieve);
        assert_eq!(pool.serve_each("abcad").resident(), "acd");
        assert_eq!(pool.serve_each("e").resident(), "ade");
    }
}
