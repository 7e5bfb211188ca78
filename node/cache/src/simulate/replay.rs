//! One policy over one trace, without a shard around it: only what is resident, what leaves, and how far each request is
//! covered. The rules of a node are those of [`Rules::Leaf`]; [`Rules::Flat`] is how the literature states its policies.

use super::trace::{Trace, TraceFull, Turn};
use crate::policy::{Policy, Removal, Request, Strategy, Verdict, Visit, build};
use kvhive_protocol::{BlockKey, Moment};

const NIL: u32 = u32::MAX;
/// The size of a block that was not shrunk, in thousandths.
const WHOLE: u16 = 1000;

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

/// A pool to replay a trace in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Blocks that fit.
    pub capacity: u32,
    /// Which of them may leave.
    pub rules: Rules,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// What a block takes after it was shrunk, in thousandths, for strategies that shrink what is cold before anything leaves;
    /// 1000 where none does. A block never grows back: readers get it decoded.
    pub shrunk_per_mille: u16,
}

/// Runs a policy, empty at first, over a trace. One request after the other; what a request names is available at once to the
/// next. `watch` is told the number of each request before it is served.
///
/// # Panics
/// When the policy breaks its contract: it names a record that is not resident or that may not go.
pub fn replay(
    trace: &Trace,
    policy: &mut dyn Policy,
    setting: Setting,
    watch: &mut dyn FnMut(usize),
) -> Outcome {
    replay_resized(trace, policy, setting, &mut |at, _| {
        watch(at);
        setting.capacity
    })
}

/// The same in a pool whose capacity changes: before each request, `size` is told its number and what it came to so far, and says
/// how many blocks fit from then on. What does not fit any more leaves at once, in the policy's order.
///
/// # Panics
/// As [`replay`].
pub fn replay_resized(
    trace: &Trace,
    policy: &mut dyn Policy,
    setting: Setting,
    size: &mut dyn FnMut(usize, &Outcome) -> u32,
) -> Outcome {
    let mut pool = Pool {
        setting,
        used: 0,
        record_of: vec![NIL; trace.unique_blocks()],
        records: Vec::new(),
        free: Vec::new(),
        cold: Vec::new(),
        outcome: Outcome::default(),
    };
    for at in 0..trace.requests() {
        pool.setting.capacity = size(at, &pool.outcome);
        pool.fit(trace, at, policy);
        pool.request(trace, at, policy);
    }
    pool.outcome
}

/// Serves requests, each the keys of its blocks from token 0 on, with a pool of so many blocks that is empty at first. Returns how many
/// blocks each found.
///
/// # Errors
/// When they name more blocks than a trace may.
pub fn found_by_each<'k>(
    requests: impl Iterator<Item = &'k [BlockKey]>,
    strategy: Strategy,
    capacity: u32,
) -> Result<Vec<u64>, TraceFull> {
    let mut trace = Trace::new();
    for (at, keys) in requests.enumerate() {
        // One a millisecond: what goes by time alone sees some pass.
        let turn = Turn { now: Moment::from_millis(at as u64), ..Turn::default() };
        trace.push(turn, keys.iter().copied())?;
    }
    let mut found = Vec::with_capacity(trace.requests() + 1);
    let setting = Setting { capacity, rules: Rules::Leaf, block_tokens: 1, shrunk_per_mille: WHOLE };
    let outcome = replay_resized(&trace, &mut *build(strategy, capacity, 1), setting, &mut |_, so_far| {
        found.push(so_far.hits);
        capacity
    });
    found.push(outcome.hits);
    Ok(found.windows(2).map(|two| two[1] - two[0]).collect())
}

/// What a record holds.
#[derive(Clone, Copy)]
struct Resident {
    block: u32,
    parent: u32,
    children: u32,
    used_by: u32,
    /// In thousandths of a block.
    size: u16,
}

struct Pool {
    setting: Setting,
    /// In thousandths of a block.
    used: u64,
    record_of: Vec<u32>,
    records: Vec<Resident>,
    free: Vec<u32>,
    cold: Vec<u32>,
    outcome: Outcome,
}

impl Pool {
    fn is_over(&self, blocks_more: u16) -> bool {
        self.used + u64::from(blocks_more) > u64::from(self.setting.capacity) * u64::from(WHOLE)
    }

    /// Lets go what does not fit any more.
    fn fit(&mut self, trace: &Trace, at: usize, policy: &mut dyn Policy) {
        let Some(first) = trace.request(at).1.first().filter(|_| self.is_over(0)) else { return };
        let visit = Visit { key: trace.key(*first), parent: None, depth: 0, partial: false };
        while self.is_over(0) && (self.shrink(policy) || self.make_room(at as u32, &visit, trace, policy)) {}
    }

    /// Evicts one block. Says whether one might go.
    fn make_room(&mut self, request: u32, visit: &Visit, trace: &Trace, policy: &mut dyn Policy) -> bool {
        let Verdict::Evict(victim) = policy.victim(visit, &mut |at| self.may_go(at, request)) else {
            return false;
        };
        assert!(self.may_go(victim, request), "the policy named a record that may not go");
        let block = self.records[victim as usize].block;
        let bared = self.evict(victim);
        policy.removed(victim, &trace.key(block), Removal::Evicted);
        if let Some(parent) = bared {
            policy.set_leaf(parent, true);
        }
        true
    }

    fn request(&mut self, trace: &Trace, at: usize, policy: &mut dyn Policy) {
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
            let depth = if self.setting.rules == Rules::FlatFromEnd { blocks.len() - 1 - step } else { step };
            let block = &blocks[depth];
            let visit = Visit {
                key: trace.key(*block),
                parent: Some(parent).filter(|parent| *parent != NIL && self.setting.rules == Rules::Leaf),
                depth: depth as u32,
                partial: turn.partial && depth + 1 == blocks.len(),
            };
            parent = match self.record_of[*block as usize] {
                NIL if is_refused => NIL,
                NIL => self.admit(*block, parent, at as u32, &visit, trace, policy),
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
                is_refused = self.setting.rules == Rules::Leaf;
            }
        }
        self.outcome.count(turn.input_tokens, blocks.len(), covered, self.setting.block_tokens);
    }

    /// Takes a block in, if the policy lets it. Returns its record.
    fn admit(
        &mut self,
        block: u32,
        parent: u32,
        request: u32,
        visit: &Visit,
        trace: &Trace,
        policy: &mut dyn Policy,
    ) -> u32 {
        while self.is_over(WHOLE) {
            if !self.shrink(policy) && !self.make_room(request, visit, trace, policy) {
                return NIL;
            }
        }
        self.used += u64::from(WHOLE);
        let record = Resident { block, parent, children: 0, used_by: request, size: WHOLE };
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

    fn may_go(&self, at: u32, request: u32) -> bool {
        let record = &self.records[at as usize];
        let is_free = match self.setting.rules {
            Rules::Flat | Rules::FlatFromEnd => true,
            Rules::Leaf => record.children == 0 && record.used_by != request,
        };
        record.block != NIL && is_free
    }

    /// Shrinks the coldest block that is whole. Says whether there was one.
    fn shrink(&mut self, policy: &mut dyn Policy) -> bool {
        while self.setting.shrunk_per_mille < WHOLE {
            self.cold.clear();
            policy.coldest(1, &mut self.cold);
            let Some(at) = self.cold.first() else { break };
            let record = &mut self.records[*at as usize];
            // One that was used since it shrank is named again.
            if record.size == WHOLE {
                record.size = self.setting.shrunk_per_mille.max(1);
                self.used -= u64::from(WHOLE - record.size);
                return true;
            }
        }
        false
    }

    /// Returns its parent if that is a leaf now.
    fn evict(&mut self, at: u32) -> Option<u32> {
        let Resident { block, parent, size, .. } = self.records[at as usize];
        self.used -= u64::from(size);
        self.record_of[block as usize] = NIL;
        self.records[at as usize].block = NIL;
        self.free.push(at);
        self.outcome.evicted += 1;
        // Under flat rules the parent may have gone before, and its record may be another block's: nobody reads the count.
        if parent == NIL || self.setting.rules != Rules::Leaf {
            return None;
        }
        let children = &mut self.records[parent as usize].children;
        *children -= 1;
        (*children == 0).then_some(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Strategy;
    use crate::simulate::Turn;
    use kvhive_protocol::BlockKey;

    fn trace(requests: &str) -> Trace {
        let mut trace = Trace::new();
        for request in requests.split(' ') {
            let keys = request.bytes().map(|id| BlockKey::from_bytes([id; 32]));
            trace.push(Turn::default(), keys).expect("short");
        }
        trace
    }

    fn run(
        requests: &str,
        strategy: Strategy,
        capacity: u32,
        rules: Rules,
        shrunk_per_mille: u16,
    ) -> Outcome {
        let setting = Setting { capacity, rules, block_tokens: 16, shrunk_per_mille };
        replay(&trace(requests), &mut *crate::policy::build(strategy, capacity, 1), setting, &mut |_| {})
    }

    #[test]
    fn under_leaf_rules_the_end_of_a_prefix_leaves_first() {
        // The head of abc is used longest ago; without it the rest would be of no use.
        assert_eq!(run("abc d abc", Strategy::Lru, 3, Rules::Flat, 1000).hits, 0);
        assert_eq!(run("abc d abc", Strategy::Lru, 3, Rules::FlatFromEnd, 1000).hits, 2);
        assert_eq!(run("abc d abc", Strategy::Lru, 3, Rules::Leaf, 1000).hits, 2);
    }

    #[test]
    fn what_a_request_uses_does_not_leave_for_its_own_end() {
        let outcome = run("abcde abcde", Strategy::Lru, 3, Rules::Leaf, 1000);
        assert_eq!((outcome.hits, outcome.refused, outcome.evicted), (3, 4, 0));
        assert_eq!((outcome.tokens, outcome.tokens_saved), (160, 48));
    }

    #[test]
    fn a_pool_that_gets_smaller_lets_go_what_it_would_have_let_go_next() {
        let setting = Setting { capacity: 4, rules: Rules::Leaf, block_tokens: 16, shrunk_per_mille: 1000 };
        let mut sizes = [4, 4, 4, 4, 2, 2, 4, 4].into_iter();
        let mut policy = crate::policy::build(Strategy::Lru, 4, 1);
        let trace = trace("a b c d d c b d");
        let outcome =
            replay_resized(&trace, &mut *policy, setting, &mut |_, _| sizes.next().expect("one a request"));
        assert_eq!((outcome.hits, outcome.evicted), (3, 2), "d and c stay, a and b leave, b comes back");
    }

    #[test]
    fn shrunk_blocks_leave_room_for_more() {
        assert_eq!(run("a b c d a b c d", Strategy::Compressed, 3, Rules::Leaf, 1000).hits, 0);
        let half = run("a b c d a b c d", Strategy::Compressed, 3, Rules::Leaf, 400);
        assert_eq!((half.hits, half.evicted), (4, 0));
        assert_eq!(run("a b c d a b c d", Strategy::Lru, 3, Rules::Leaf, 400).hits, 0, "lru does not shrink");
    }
}
