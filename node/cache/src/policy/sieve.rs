//! `sieve`: a queue in which nothing moves; a hand walks from the oldest to the newest, forgives blocks used since it last
//! came by, and takes the first that was not (Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient
//! Turn-Key Eviction Algorithm for Web Caches", NSDI 2024).

use super::list::{Links, List, MAX_SCAN, Path, entry, value};
use super::{Policy, Removal, Request, Verdict, Visit};

/// A queue, a hand, and one bit a block.
pub struct Sieve {
    links: Links,
    queue: List,
    hand: Option<u32>,
    is_used: Vec<bool>,
    path: Path,
}

impl Sieve {
    /// Makes an empty queue.
    pub fn new() -> Sieve {
        Sieve {
            links: Links::default(),
            queue: List::EMPTY,
            hand: None,
            is_used: Vec::new(),
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

impl Default for Sieve {
    fn default() -> Sieve {
        Sieve::new()
    }
}

impl Policy for Sieve {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, _visit: &Visit) {
        *entry(&mut self.is_used, at) = true;
        // Its place is an old one: children that come in now do not belong below it.
        self.path.begin();
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.take_out(at);
        *entry(&mut self.is_used, at) = false;
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
                if !value(&self.is_used, at) {
                    return Verdict::Evict(at);
                }
                forgiven = Some(at);
            }
            *entry(&mut self.is_used, at) = false;
            self.hand = self.links.newer(at);
        }
        // A long run of used blocks: one of them goes, lest one call walk over the whole pool.
        forgiven.map_or(Verdict::Stuck, Verdict::Evict)
    }

    fn removed(&mut self, at: u32, _why: Removal) {
        self.path.forget(at);
        self.take_out(at);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.links.memory_bytes() + self.is_used.capacity()
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
