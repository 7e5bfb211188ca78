//! `lfu`: the least frequently used block leaves first, with dynamic aging (LFU-DA: Arlitt, Cherkasova, Dilley, Friedrich,
//! Jin, "Evaluating Content Management Techniques for Web Proxy Caches", 1999): a block's priority is its count plus the
//! priority of the last block that left, so counts of long ago stop to matter. Of equals the least recently used leaves.

use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// Priorities lie in a window of so many from the age upwards, so a ring of lists holds them all.
const RING: usize = 256;
/// Uses that are counted: the largest distance from the age.
const MAX_COUNT: u8 = (RING - 1) as u8;

/// Least frequently used first.
pub struct Lfu {
    links: Links,
    /// Blocks by priority modulo [`RING`].
    ring: Vec<List>,
    /// The priority below which no block is, modulo [`RING`].
    age: u8,
    is_aging: bool,
    /// Uses of each block, and its place in the ring.
    counts: Column<u8>,
    places: Column<u8>,
    path: Path,
}

impl Lfu {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>()
            + Links::bytes(capacity)
            + RING * size_of::<List>()
            + 2 * Column::<u8>::bytes(capacity)
    }

    /// Makes the policy that `lfu` names, for `capacity` blocks: it ages.
    pub fn aging(capacity: u32) -> Lfu {
        Lfu {
            links: Links::new(capacity as usize),
            ring: (0..RING).map(|_| List::EMPTY).collect(),
            age: 0,
            is_aging: true,
            counts: Column::new(capacity as usize),
            places: Column::new(capacity as usize),
            path: Path::NONE,
        }
    }

    /// Makes the textbook policy, for comparison: what was popular once stays for good.
    pub fn plain(capacity: u32) -> Lfu {
        Lfu { is_aging: false, ..Lfu::aging(capacity) }
    }

    fn place(&mut self, at: u32, count: u8, visit: &Visit) {
        self.take_out(at);
        let place = self.age.wrapping_add(count);
        *self.counts.entry(at) = count;
        *self.places.entry(at) = place;
        let below = self.path.step(at, visit).filter(|parent| self.places.get(*parent) == place);
        self.ring[usize::from(place)].enter(&mut self.links, at, below);
    }

    fn take_out(&mut self, at: u32) {
        if self.links.contains(at) {
            self.ring[usize::from(self.places.get(at))].leave(&mut self.links, at);
        }
    }
}

impl Policy for Lfu {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        let count = self.counts.get(at).saturating_add(1);
        self.place(at, count, visit);
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.place(at, 1, visit);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        for above in 0..=MAX_COUNT {
            let list = &mut self.ring[usize::from(self.age.wrapping_add(above))];
            if let Some(at) = list.oldest_free(&mut self.links, may_go, &mut scan) {
                return Verdict::Evict(at);
            }
        }
        Verdict::Stuck
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, why: Removal) {
        self.path.forget(at);
        if !self.links.contains(at) {
            return;
        }
        self.take_out(at);
        if self.is_aging && why == Removal::Evicted {
            // Blocks that could not go may lie lower than the one that left; the age never passes them.
            let left = self.places.get(at);
            while self.age != left && self.ring[usize::from(self.age)].len() == 0 {
                self.age = self.age.wrapping_add(1);
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.links.memory_bytes()
            + self.ring.capacity() * size_of::<List>()
            + self.counts.memory_bytes()
            + self.places.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn what_was_popular_long_ago_leaves_when_counts_age() {
        let mut plain = Scenario::of(2, Box::new(Lfu::plain(2)));
        assert_eq!(plain.serve_each("aaaabbccdd").resident(), "ad");
        let mut aging = Scenario::with_room_for(2, Strategy::Lfu);
        assert_eq!(aging.serve_each("aaaabbccdd").resident(), "cd");
    }

    #[test]
    fn the_ring_comes_around_without_losing_its_order() {
        let mut pool = Scenario::with_room_for(2, Strategy::Lfu);
        // Each pair of letters raises the age by one or two: it passes 256 more than once.
        for _ in 0..200 {
            pool.serve_each("aabbccdd");
        }
        assert_eq!(pool.serve_each("xxxyz").resident(), "xz");
    }
}
