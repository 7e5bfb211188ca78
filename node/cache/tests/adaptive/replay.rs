//! A pool without bytes that a policy can be run in: keys, records, leaves, one request at a time.

use kvhive_cache::policy::{Hint, Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::{BlockKey, Moment};
use std::collections::HashMap;

/// One request of a trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) at_ms: u64,
    pub(crate) input_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) blocks: Vec<u32>,
    pub(crate) last_is_partial: bool,
    pub(crate) hint: Hint,
}

/// Requests whose block numbers are dense.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    pub(crate) lines: Vec<Line>,
    pub(crate) footprint: usize,
}

impl Trace {
    /// Makes a trace of requests of the given blocks, a second apart.
    pub(crate) fn of(requests: impl IntoIterator<Item = Vec<u32>>) -> Trace {
        let lines = requests.into_iter().enumerate();
        Trace::of_lines(
            lines.map(|(at, blocks)| Line { at_ms: at as u64 * 1000, blocks, ..Line::default() }).collect(),
        )
    }

    /// Makes a trace of these requests.
    pub(crate) fn of_lines(lines: Vec<Line>) -> Trace {
        let seen: std::collections::HashSet<u32> =
            lines.iter().flat_map(|line| line.blocks.iter().copied()).collect();
        Trace { lines, footprint: seen.len() }
    }
}

/// Numbers that look random (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

/// Returns a key for a block number.
pub(crate) fn key(block: u32) -> BlockKey {
    let mut bytes = [0; 32];
    let mut dice = Dice(u64::from(block) << 1 | 1);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&dice.roll().to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    block: u32,
    parent: Option<u32>,
    children: u32,
    used_by: u64,
}

/// Records of a pool of fixed size, driven by the blocks of requests.
pub(crate) struct Pool {
    pub(crate) policy: Box<dyn Policy>,
    capacity: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    at: HashMap<u32, u32>,
    requests: u64,
}

impl Pool {
    pub(crate) fn new(policy: Box<dyn Policy>, capacity: usize) -> Pool {
        Pool { policy, capacity, slots: Vec::new(), free: Vec::new(), at: HashMap::new(), requests: 0 }
    }

    /// Runs one request; returns how many of its blocks, from the start, were resident.
    pub(crate) fn request(&mut self, line: &Line) -> usize {
        self.requests += 1;
        let covered = line.blocks.iter().take_while(|block| self.at.contains_key(block)).count();
        self.policy.begin(&Request {
            now: Moment::from_millis(line.at_ms),
            number: self.requests,
            blocks: line.blocks.len() as u32,
            covered: covered as u32,
            input_tokens: line.input_tokens,
            output_tokens: line.output_tokens,
            hint: line.hint,
        });
        let mut parent = None;
        let mut is_full = false;
        for (depth, block) in line.blocks.iter().enumerate() {
            let partial = line.last_is_partial && depth + 1 == line.blocks.len();
            let visit = Visit { key: key(*block), parent, depth: depth as u32, partial };
            if depth < covered {
                let at = self.at[block];
                self.slots[at as usize].used_by = self.requests;
                self.policy.hit(at, &visit);
                parent = Some(at);
                continue;
            }
            is_full = is_full || !self.make_room(&visit);
            if is_full {
                self.policy.refused(&visit);
                parent = None;
            } else {
                let at = self.place(*block, parent);
                self.policy.inserted(at, &visit);
                parent = Some(at);
            }
        }
        covered
    }

    fn make_room(&mut self, newcomer: &Visit) -> bool {
        if self.at.len() < self.capacity {
            return true;
        }
        let (slots, now) = (&self.slots, self.requests);
        let verdict = self.policy.victim(newcomer, &mut |at| {
            let slot = slots[at as usize];
            slot.children == 0 && slot.used_by != now
        });
        let Verdict::Evict(at) = verdict else { return false };
        let gone = self.slots[at as usize];
        assert!(
            gone.children == 0 && self.at.remove(&gone.block) == Some(at),
            "what leaves is a resident leaf"
        );
        self.free.push(at);
        self.policy.removed(at, &key(gone.block), Removal::Evicted);
        if let Some(parent) = gone.parent {
            self.slots[parent as usize].children -= 1;
            if self.slots[parent as usize].children == 0 {
                self.policy.set_leaf(parent, true);
            }
        }
        true
    }

    fn place(&mut self, block: u32, parent: Option<u32>) -> u32 {
        let slot = Slot { block, parent, children: 0, used_by: self.requests };
        if let Some(parent) = parent {
            self.slots[parent as usize].children += 1;
        }
        let at = self.free.pop().unwrap_or(self.slots.len() as u32);
        if at as usize == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[at as usize] = slot;
        }
        self.at.insert(block, at);
        at
    }

    /// Runs a trace; returns the part of its blocks that were covered.
    pub(crate) fn run(&mut self, trace: &Trace) -> f64 {
        let (mut hits, mut all) = (0, 0);
        for line in &trace.lines {
            hits += self.request(line);
            all += line.blocks.len();
        }
        hits as f64 / all as f64
    }
}
