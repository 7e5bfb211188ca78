//! `compressed` and `quantized`: evict last, shrink first. Blocks grow cold in the order of their last use; the shard re-encodes
//! the coldest with a denser codec, lossless or not, and only blocks that could not shrink enough leave. The order is the
//! compression cache's (Douglis, "The Compression Cache: Using On-line Compression to Extend Physical Memory", USENIX 1993);
//! that tensors of keys and values bear few bits is KIVI's finding (Liu et al., ICML 2024). Which codec is the shard's matter.

use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// Least recently used first, in two parts: the cold were named by [`Policy::coldest`] since their last use.
pub struct Shrinking {
    links: Links,
    warm: List,
    cold: List,
    is_cold: Column<bool>,
    path: Path,
}

impl Shrinking {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>() + Links::bytes(capacity) + Column::<bool>::bytes(capacity)
    }

    /// Makes an empty order for `capacity` blocks.
    pub fn new(capacity: u32) -> Shrinking {
        Shrinking {
            links: Links::new(capacity as usize),
            warm: List::EMPTY,
            cold: List::EMPTY,
            is_cold: Column::new(capacity as usize),
            path: Path::NONE,
        }
    }

    fn take_out(&mut self, at: u32) {
        if self.links.contains(at) {
            let list = if self.is_cold.get(at) { &mut self.cold } else { &mut self.warm };
            list.leave(&mut self.links, at);
        }
    }

    fn place(&mut self, at: u32, visit: &Visit) {
        self.take_out(at);
        *self.is_cold.entry(at) = false;
        let below = self.path.step(at, visit).filter(|parent| !self.is_cold.get(*parent));
        self.warm.enter(&mut self.links, at, below);
    }
}

impl Policy for Shrinking {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        self.place(at, visit);
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.place(at, visit);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        for list in [&mut self.cold, &mut self.warm] {
            if let Some(at) = list.oldest_free(&mut self.links, may_go, &mut scan) {
                return Verdict::Evict(at);
            }
        }
        Verdict::Stuck
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, _why: Removal) {
        self.path.forget(at);
        self.take_out(at);
    }

    fn coldest(&mut self, limit: usize, cold: &mut Vec<u32>) {
        for _ in 0..limit {
            let Some(at) = self.warm.oldest() else { break };
            self.warm.leave(&mut self.links, at);
            *self.is_cold.entry(at) = true;
            self.cold.enter(&mut self.links, at, None);
            cold.push(at);
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.links.memory_bytes() + self.is_cold.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_named_for_shrinking_once_until_it_is_used_again() {
        let mut policy = Shrinking::new(4);
        let visit = Visit { key: kvhive_protocol::BlockKey::NONE, parent: None, depth: 0, partial: false };
        for at in 0..4 {
            policy.inserted(at, &visit);
        }
        let mut named = Vec::new();
        policy.coldest(2, &mut named);
        policy.hit(0, &visit);
        policy.coldest(9, &mut named);
        assert_eq!(named, [0, 1, 2, 3, 0]);
        assert_eq!(policy.victim(&visit, &mut |_| true), Verdict::Evict(1));
    }
}
