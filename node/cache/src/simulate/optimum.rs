//! The best that any cache of a size could have done with a trace. Belady's MIN with bypass (Belady, "A study of replacement
//! algorithms for a virtual-storage computer", 1966) keeps the blocks used soonest and may refuse a newcomer. A parent is
//! never used later than its child, and of equals the deeper goes first: so MIN never leaves a hole in a prefix, and is the
//! exact optimum of prefix hits too.

use super::replay::Outcome;
use super::trace::Trace;
use std::collections::BTreeSet;

const NEVER: u32 = u32::MAX;

/// When each block of a trace is used next, seen from each of its visits. Made once, used at every size.
pub struct Future {
    next: Vec<u32>,
}

impl Future {
    /// Reads a trace from its end.
    pub fn of(trace: &Trace) -> Future {
        let mut soonest = vec![NEVER; trace.unique_blocks()];
        let mut next = Vec::new();
        for at in (0..trace.requests()).rev() {
            for block in trace.request(at).1.iter().rev() {
                next.push(std::mem::replace(&mut soonest[*block as usize], at as u32));
            }
        }
        next.reverse();
        Future { next }
    }
}

/// Runs the optimum of a pool of `capacity` blocks over a trace. `watch` is told the number of each request.
pub fn optimum(
    trace: &Trace,
    future: &Future,
    block_tokens: u32,
    capacity: u32,
    watch: &mut dyn FnMut(usize),
) -> Outcome {
    let mut outcome = Outcome::default();
    // (next use, depth, block), and each resident block's next use.
    let mut kept: BTreeSet<(u32, u32, u32)> = BTreeSet::new();
    let mut next_of = vec![NEVER; trace.unique_blocks()];
    let mut depth_of = vec![0; trace.unique_blocks()];
    let mut nexts = future.next.iter();
    for at in 0..trace.requests() {
        watch(at);
        let (turn, blocks) = trace.request(at);
        let hits = blocks.iter().take_while(|block| next_of[**block as usize] != NEVER).count();
        outcome.count(turn.input_tokens, blocks.len(), hits, block_tokens);
        for ((depth, block), next) in (0u32..).zip(blocks).zip(&mut nexts) {
            let before = std::mem::replace(&mut next_of[*block as usize], NEVER);
            if before != NEVER {
                kept.remove(&(before, depth_of[*block as usize], *block));
            }
            if *next == NEVER {
                continue;
            }
            if kept.len() >= capacity as usize {
                match kept.last() {
                    Some(last) if (last.0, last.1) > (*next, depth) => {
                        next_of[last.2 as usize] = NEVER;
                        kept.pop_last();
                        outcome.evicted += 1;
                    }
                    _ => {
                        outcome.refused += 1;
                        continue;
                    }
                }
            }
            next_of[*block as usize] = *next;
            depth_of[*block as usize] = depth;
            kept.insert((*next, depth, *block));
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::Turn;
    use kvhive_protocol::BlockKey;

    fn trace(requests: &[&str]) -> Trace {
        let mut trace = Trace::new();
        for request in requests {
            let keys = request.bytes().map(|id| BlockKey::from_bytes([id; 32]));
            trace.push(Turn::default(), keys).expect("short");
        }
        trace
    }

    #[test]
    fn the_optimum_lets_pass_what_never_comes_back() {
        let trace = trace(&["ab", "c", "d", "ab", "c"]);
        let outcome = optimum(&trace, &Future::of(&trace), 16, 2, &mut |_| {});
        assert_eq!((outcome.blocks, outcome.hits, outcome.tokens, outcome.tokens_saved), (7, 2, 112, 32));
    }

    #[test]
    fn of_equals_the_deeper_block_goes() {
        let trace = trace(&["abc", "abc"]);
        let future = Future::of(&trace);
        for capacity in 0..4 {
            assert_eq!(optimum(&trace, &future, 16, capacity, &mut |_| {}).hits, u64::from(capacity));
        }
    }
}
