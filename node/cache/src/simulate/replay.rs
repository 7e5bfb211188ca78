//! One policy over one trace, without a shard around it: only what is resident, what leaves, and how far each request is
//! covered. The rules of a node are those of [`Rules::Leaf`]; [`Rules::Flat`] is how the literature states its policies.

use super::trace::Trace;
use crate::policy::{Policy, Removal, Request, Verdict, Visit};

const NIL: u32 = u32::MAX;

/// Which blocks may leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rules {
    /// Any block, as if blocks knew nothing of each other: a prefix can get holes, and policies are told no parents.
    Flat,
    /// The same, and the blocks of a request are used from its end, so that its head was used last.
    FlatFromEnd,
    /// Only a block without a resident child that the current request does not use, as in a shard. No prefix has a hole.
    Leaf,
}

/// What a replay came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Requests.
    pub requests: u64,
    /// Their blocks.
    pub blocks: u64,
    /// Blocks that were resident together with every block before them in their request.
    pub hits: u64,
    /// Tokens of their prompts.
    pub tokens: u64,
    /// Tokens of the blocks hit.
    pub tokens_saved: u64,
    /// Blocks that left for others.
    pub evicted: u64,
    /// Blocks that were not taken: not worth it, nothing might leave, or a block before them was not taken.
    pub refused: u64,
}

impl Outcome {
    /// Returns hits by blocks, 0 for an empty trace.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.blocks.max(1) as f64
    }

    /// Counts a request that was covered so far.
    pub(super) fn count(&mut self, input_tokens: u32, blocks: usize, hits: usize, block_tokens: u32) {
        let saved = hits as u64 * u64::from(block_tokens);
        let tokens = match input_tokens {
            0 => blocks as u64 * u64::from(block_tokens),
            known => u64::from(known),
        };
        self.requests += 1;
        self.blocks += blocks as u64;
        self.hits += hits as u64;
        self.tokens += tokens;
        self.tokens_saved += saved.min(tokens);
    }
}

/// Runs a policy, empty at first, over a trace in a pool of `capacity` blocks. One request after the other; what a request
/// names is available at once to the next. `watch` is told the number of each request before it is served.
///
/// # Panics
/// When the policy breaks its contract: it names a record that is not resident or that may not go.
pub fn replay(
    trace: &Trace,
    block_tokens: u32,
    policy: &mut dyn Policy,
    capacity: u32,
    rules: Rules,
    watch: &mut dyn FnMut(usize),
) -> Outcome {
    let mut pool = Pool::new(trace.unique_blocks(), capacity, rules);
    for at in 0..trace.requests() {
        watch(at);
        pool.request(trace, at, block_tokens, policy);
    }
    pool.outcome
}

/// What a record holds.
#[derive(Clone, Copy)]
struct Resident {
    block: u32,
    parent: u32,
    children: u32,
    used_by: u32,
}

struct Pool {
    rules: Rules,
    capacity: usize,
    record_of: Vec<u32>,
    records: Vec<Resident>,
    free: Vec<u32>,
    outcome: Outcome,
}

impl Pool {
    fn new(unique_blocks: usize, capacity: u32, rules: Rules) -> Pool {
        Pool {
            rules,
            capacity: capacity as usize,
            record_of: vec![NIL; unique_blocks],
            records: Vec::new(),
            free: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn request(&mut self, trace: &Trace, at: usize, block_tokens: u32, policy: &mut dyn Policy) {
        let (turn, blocks) = trace.request(at);
        let covered = blocks.iter().take_while(|block| self.record_of[**block as usize] != NIL).count();
        policy.begin(&Request {
            now: turn.now,
            number: at as u64,
            blocks: blocks.len() as u32,
            covered: covered as u32,
            input_tokens: turn.input_tokens,
            output_tokens: turn.output_tokens,
            hint: turn.hint,
        });
        let mut parent = NIL;
        let mut is_refused = false;
        for step in 0..blocks.len() {
            let depth = if self.rules == Rules::FlatFromEnd { blocks.len() - 1 - step } else { step };
            let block = &blocks[depth];
            let visit = Visit {
                key: trace.key(*block),
                parent: Some(parent).filter(|parent| *parent != NIL && self.rules == Rules::Leaf),
                depth: depth as u32,
                partial: turn.partial && depth + 1 == blocks.len(),
            };
            parent = match self.record_of[*block as usize] {
                NIL if is_refused => NIL,
                NIL => self.admit(*block, parent, at as u32, &visit, policy),
                resident => {
                    self.records[resident as usize].used_by = at as u32;
                    policy.hit(resident, &visit);
                    resident
                }
            };
            if parent == NIL {
                policy.refused(&visit);
                self.outcome.refused += 1;
                // Without its parent no block is of use; caches that know no prefixes go on regardless.
                is_refused = self.rules == Rules::Leaf;
            }
        }
        self.outcome.count(turn.input_tokens, blocks.len(), covered, block_tokens);
    }

    /// Takes a block in, if the policy lets it. Returns its record.
    fn admit(
        &mut self,
        block: u32,
        parent: u32,
        request: u32,
        visit: &Visit,
        policy: &mut dyn Policy,
    ) -> u32 {
        if self.records.len() - self.free.len() >= self.capacity {
            let may_go = |records: &[Resident], at: u32| {
                let record = &records[at as usize];
                record.block != NIL
                    && match self.rules {
                        Rules::Flat | Rules::FlatFromEnd => true,
                        Rules::Leaf => record.children == 0 && record.used_by != request,
                    }
            };
            match policy.victim(visit, &mut |at| may_go(&self.records, at)) {
                Verdict::Evict(victim) => {
                    assert!(may_go(&self.records, victim), "the policy named a record that may not go");
                    self.evict(victim);
                    policy.removed(victim, Removal::Evicted);
                }
                Verdict::Refuse | Verdict::Stuck => return NIL,
            }
        }
        let record = Resident { block, parent, children: 0, used_by: request };
        let at = match self.free.pop() {
            Some(at) => {
                self.records[at as usize] = record;
                at
            }
            None => {
                self.records.push(record);
                self.records.len() as u32 - 1
            }
        };
        self.record_of[block as usize] = at;
        if parent != NIL {
            self.records[parent as usize].children += 1;
        }
        policy.inserted(at, visit);
        at
    }

    fn evict(&mut self, at: u32) {
        let Resident { block, parent, .. } = self.records[at as usize];
        self.record_of[block as usize] = NIL;
        // Under flat rules the parent may have gone before, and its record may be another block's: nobody reads the count.
        if parent != NIL && self.rules == Rules::Leaf {
            self.records[parent as usize].children -= 1;
        }
        self.records[at as usize].block = NIL;
        self.free.push(at);
        self.outcome.evicted += 1;
    }
}
