//! A trace in memory: requests and the blocks that they name, numbered densely so that many simulations can share it.

use crate::policy::Hint;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use kvhive_protocol::{BlockKey, Moment};
use std::hash::BuildHasher;
use thiserror::Error;

/// The most visits of one trace: they take eight bytes each with the optimum's.
const MAX_VISITS: usize = 1 << 30;

/// One request of a trace.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Turn {
    /// When it came.
    pub now: Moment,
    /// Tokens of its prompt, 0 if not known.
    pub input_tokens: u32,
    /// Tokens of its answer, 0 if not known.
    pub output_tokens: u32,
    /// Whether its last block is not full of tokens.
    pub partial: bool,
    /// What the engine said.
    pub hint: Hint,
}

/// The trace is longer than this program counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the trace names {visits} blocks, at most {MAX_VISITS} are allowed")]
pub struct TraceFull {
    /// Blocks named, each as often as it was.
    pub visits: usize,
}

/// Requests in order. A block is known by its number, from 0 in the order of first use.
pub struct Trace {
    turns: Vec<Turn>,
    ends: Vec<u32>,
    visits: Vec<u32>,
    keys: Vec<BlockKey>,
    numbers: HashTable<u32>,
    hasher: FixedState,
}

impl Trace {
    /// Makes an empty trace.
    pub fn new() -> Trace {
        Trace {
            turns: Vec::new(),
            ends: Vec::new(),
            visits: Vec::new(),
            keys: Vec::new(),
            numbers: HashTable::new(),
            hasher: FixedState::with_seed(0x7261_6365),
        }
    }

    /// Adds a request that names these blocks, from its first token on.
    ///
    /// # Errors
    /// When the trace becomes too long; the request is not added.
    pub fn push(
        &mut self,
        turn: Turn,
        prefix: impl ExactSizeIterator<Item = BlockKey>,
    ) -> Result<(), TraceFull> {
        let visits = self.visits.len() + prefix.len();
        if visits > MAX_VISITS {
            return Err(TraceFull { visits });
        }
        for key in prefix {
            let number = self.number(key);
            self.visits.push(number);
        }
        self.turns.push(turn);
        self.ends.push(self.visits.len() as u32);
        Ok(())
    }

    /// Returns how many requests it has.
    pub fn requests(&self) -> usize {
        self.turns.len()
    }

    /// Returns how many different blocks it names: what sizes in percent are of.
    pub fn unique_blocks(&self) -> usize {
        self.keys.len()
    }

    /// Returns a request and the numbers of its blocks.
    pub fn request(&self, at: usize) -> (&Turn, &[u32]) {
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&self.turns[at], &self.visits[from as usize..self.ends[at] as usize])
    }

    /// Returns the key of a block.
    pub fn key(&self, number: u32) -> BlockKey {
        self.keys[number as usize]
    }

    /// Gives each request the hint of an engine that knows the future: its session is [`Hint::Over`] if no later request
    /// uses its last full block, else a continuation is [`Hint::Pending`]. A share `right` of the hints, chosen by `seed`,
    /// is true; the others say the contrary.
    pub fn give_hints(&mut self, right: f64, seed: u64) {
        let hasher = FixedState::with_seed(seed);
        let mut comes_back = vec![false; self.keys.len()];
        for at in (0..self.turns.len()).rev() {
            let (turn, blocks) = self.request(at);
            let full = blocks.len() - usize::from(turn.partial && blocks.len() > 1);
            let over = full.checked_sub(1).is_none_or(|last| !comes_back[blocks[last] as usize]);
            let blocks = blocks.to_vec();
            for block in blocks {
                comes_back[block as usize] = true;
            }
            let draw = (hasher.hash_one(at) >> 11) as f64 / (1u64 << 53) as f64;
            self.turns[at].hint = if over == (draw < right) { Hint::Over } else { Hint::Pending };
        }
    }

    fn number(&mut self, key: BlockKey) -> u32 {
        let hash = self.hasher.hash_one(key);
        let keys = &self.keys;
        if let Some(number) = self.numbers.find(hash, |number| keys[*number as usize] == key) {
            return *number;
        }
        let number = keys.len() as u32;
        let hasher = &self.hasher;
        self.numbers.insert_unique(hash, number, |number| hasher.hash_one(keys[*number as usize]));
        self.keys.push(key);
        number
    }
}

impl Default for Trace {
    fn default() -> Trace {
        Trace::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u8) -> BlockKey {
        BlockKey::from_bytes([id; 32])
    }

    fn hints(trace: &Trace) -> Vec<Hint> {
        (0..trace.requests()).map(|at| trace.request(at).0.hint).collect()
    }

    #[test]
    fn equal_keys_get_equal_numbers() {
        let mut trace = Trace::new();
        trace.push(Turn::default(), [7, 8, 9].map(key).into_iter()).expect("short");
        trace.push(Turn::default(), [7, 8, 5].map(key).into_iter()).expect("short");
        assert_eq!((trace.request(0).1, trace.request(1).1), (&[0, 1, 2][..], &[0, 1, 3][..]));
        assert_eq!((trace.requests(), trace.unique_blocks(), trace.key(3)), (2, 4, key(5)));
    }

    #[test]
    fn a_session_is_over_when_nobody_uses_its_last_full_block_again() {
        let mut trace = Trace::new();
        let partial = Turn { partial: true, ..Turn::default() };
        trace.push(partial, [1, 2, 30].map(key).into_iter()).expect("short");
        trace.push(Turn::default(), [9].map(key).into_iter()).expect("short");
        trace.push(partial, [1, 2, 3, 40].map(key).into_iter()).expect("short");
        trace.give_hints(1.0, 1);
        assert_eq!(hints(&trace), [Hint::Pending, Hint::Over, Hint::Over]);
        trace.give_hints(0.0, 1);
        assert_eq!(hints(&trace), [Hint::Over, Hint::Pending, Hint::Pending]);
    }
}
