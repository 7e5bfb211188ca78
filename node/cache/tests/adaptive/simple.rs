//! Simple policies to compare with, exact and slow: each keeps its leaves in order of one key.

use crate::workloads::Dice;
use kvhive_cache::policy::{Policy, Removal, Request, Verdict, Visit};
use std::collections::{BTreeSet, HashMap};

/// What a simple policy ranks by.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Rule {
    Lru,
    /// Second last use, blocks with one use first (O'Neil et al. 1993); uses of blocks that left are remembered for ever.
    Lru2,
    /// Uses, halved each time that as many blocks were used as fill the cache ten times.
    Lfu,
    /// Uses per time since the first one.
    Hyperbolic,
    Random,
}

#[derive(Clone, Copy, Default)]
struct Block {
    key: u64,
    parent: Option<u32>,
    children: u32,
    depth: u32,
    rank: (u64, u64, u32),
}

#[derive(Clone, Copy, Default)]
struct Seen {
    first: u64,
    last: u64,
    before: u64,
    uses: u64,
    age: u64,
}

pub(crate) struct Simple {
    rule: Rule,
    capacity: u64,
    now: u64,
    uses: u64,
    blocks: HashMap<u32, Block>,
    seen: HashMap<u64, Seen>,
    leaves: BTreeSet<((u64, u64, u32), u32)>,
    dice: Dice,
}

fn short(visit: &Visit) -> u64 {
    u64::from_le_bytes(visit.key.as_bytes()[..8].try_into().expect("eight bytes"))
}

impl Simple {
    pub(crate) fn new(rule: Rule, capacity: usize) -> Simple {
        Simple {
            rule,
            capacity: capacity as u64,
            now: 0,
            uses: 0,
            blocks: HashMap::new(),
            seen: HashMap::new(),
            leaves: BTreeSet::new(),
            dice: Dice(3),
        }
    }

    fn touch(&mut self, at: u32, key: u64) {
        self.uses += 1;
        let age = self.uses / (10 * self.capacity);
        let seen = self.seen.entry(key).or_insert(Seen { first: self.uses, age, ..Seen::default() });
        seen.before = seen.last;
        seen.last = self.now;
        seen.uses = (seen.uses >> (age - seen.age).min(63)) + 1;
        seen.age = age;
        let seen = *seen;
        let block = self.blocks.get_mut(&at).expect("resident");
        self.leaves.remove(&(block.rank, at));
        let depth = u32::MAX - block.depth;
        block.rank = match self.rule {
            Rule::Lru => (seen.last, 0, depth),
            Rule::Lru2 => (seen.before, seen.last, depth),
            Rule::Lfu => (seen.uses, seen.last, depth),
            Rule::Hyperbolic => {
                ((seen.uses as f64 / (self.uses - seen.first + 10) as f64 * 1e12) as u64, seen.last, depth)
            }
            Rule::Random => (self.dice.roll(), 0, depth),
        };
        if block.children == 0 {
            self.leaves.insert((block.rank, at));
        }
    }
}

impl Policy for Simple {
    fn begin(&mut self, _request: &Request) {
        self.now += 1;
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        self.touch(at, short(visit));
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        if let Some(parent) = visit.parent {
            let block = self.blocks.get_mut(&parent).expect("resident");
            block.children += 1;
            self.leaves.remove(&(block.rank, parent));
        }
        let block = Block { key: short(visit), parent: visit.parent, depth: visit.depth, ..Block::default() };
        self.blocks.insert(at, block);
        self.touch(at, block.key);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        self.leaves.iter().find(|(_, at)| may_go(*at)).map_or(Verdict::Stuck, |(_, at)| Verdict::Evict(*at))
    }

    fn removed(&mut self, at: u32, _why: Removal) {
        let block = self.blocks.remove(&at).expect("resident");
        self.leaves.remove(&(block.rank, at));
        if let Some(parent) = block.parent {
            let above = self.blocks.get_mut(&parent).expect("resident");
            above.children -= 1;
            if above.children == 0 {
                self.leaves.insert((above.rank, parent));
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}
