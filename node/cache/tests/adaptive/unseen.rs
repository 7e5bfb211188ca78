//! Workloads made up from a seed that nobody had seen the policy on when they were written: loops of several lengths, working
//! sets that move, bursts, sessions in time, shared prompts, days with a job at night.

use crate::replay::{Dice, Line, Trace};
use crate::workloads::Zipf;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Loops of several lengths side by side: (weight, blocks, blocks of a request).
pub(crate) fn loops(parts: &[(u64, u32, u32)], requests: usize, seed: u64) -> Trace {
    let mut dice = Dice(seed);
    let mut hands = vec![0; parts.len()];
    let all: u64 = parts.iter().map(|part| part.0).sum();
    Trace::of((0..requests).map(|_| {
        let mut drawn = dice.below(all);
        let mut base = 0;
        for (hand, (weight, length, run)) in hands.iter_mut().zip(parts) {
            if drawn < *weight {
                let first = *hand;
                *hand = (*hand + run) % (length / run * run);
                return (base + first..base + first + run).collect();
            }
            drawn -= weight;
            base += length;
        }
        Vec::new()
    }))
}

/// A set of `size` blocks is used evenly for `stays` requests; then a part `moves` of it is replaced by others, of a few
/// sets that come back by turns.
pub(crate) fn working_sets(
    size: u32,
    stays: usize,
    moves: f64,
    sets: u32,
    requests: usize,
    seed: u64,
) -> Trace {
    let mut dice = Dice(seed);
    let mut here: Vec<u32> = (0..size).collect();
    let mut set = 0;
    Trace::of((0..requests).map(|at| {
        if at % stays == stays - 1 {
            set = (set + 1) % sets;
            for (place, block) in here.iter_mut().enumerate() {
                if dice.unit() < moves {
                    *block = set * size + place as u32;
                }
            }
        }
        vec![here[dice.below(u64::from(size)) as usize]]
    }))
}

/// Single blocks of fixed popularity; now and then a burst of requests of blocks that never come back.
pub(crate) fn bursts(items: u32, skew: f64, burst: u32, requests: usize, seed: u64) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(seed));
    let mut fresh = items;
    let mut left = 0;
    Trace::of((0..requests).map(|_| {
        if left == 0 && dice.below(4 * u64::from(burst)) == 0 {
            left = burst;
        }
        if left > 0 {
            left -= 1;
            fresh += 6;
            return (fresh - 6..fresh).collect();
        }
        vec![zipf.draw(&mut dice)]
    }))
}

/// Single blocks, each used a few times in quick succession when its turn has come; turns by popularity.
pub(crate) fn flurries(items: u32, skew: f64, requests: usize, seed: u64) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(seed));
    let mut due: VecDeque<(usize, u32)> = VecDeque::new();
    Trace::of((0..requests).map(|at| {
        if let Some(place) = due.iter().position(|(when, _)| *when <= at) {
            let (_, block) = due.remove(place).expect("it was found there");
            return vec![block];
        }
        let block = zipf.draw(&mut dice);
        for _ in 0..dice.below(4) {
            due.push_back((at + 1 + dice.below(30) as usize, block));
        }
        vec![block]
    }))
}

/// Sessions in time: they begin by chance, each turn brings the whole conversation so far and some more blocks; the time to the
/// next is logarithmic-normal. A session begins with one of some system prompts. Lengths of prompts and answers are told.
pub(crate) fn sessions(
    count: usize,
    every_ms: u64,
    mean_turns: f64,
    think_ms: f64,
    spread: f64,
    prompts: u32,
    seed: u64,
) -> Trace {
    let mut dice = Dice(seed);
    let popular = Zipf::new(prompts, 1.0);
    let mut fresh = prompts * 8;
    let mut queue = BinaryHeap::new();
    let mut blocks_of: Vec<Vec<u32>> = Vec::new();
    let mut at = 0;
    for session in 0..count {
        at += (-dice.unit().max(1e-9).ln() * every_ms as f64) as u64;
        let prompt = popular.draw(&mut dice);
        blocks_of.push((prompt * 8..prompt * 8 + 1 + prompt % 8).collect());
        queue.push(Reverse((at, session)));
    }
    let mut lines = Vec::new();
    while let Some(Reverse((at_ms, session))) = queue.pop() {
        let blocks = &mut blocks_of[session];
        let added = 1 + (dice.unit().powi(3) * 24.0) as u32;
        blocks.extend(fresh..fresh + added);
        fresh += added;
        let answer = 1 + dice.below(700) as u32;
        let input_tokens = blocks.len() as u32 * 512 - dice.below(512) as u32;
        lines.push(Line {
            at_ms,
            input_tokens,
            output_tokens: answer,
            blocks: blocks.clone(),
            ..Line::default()
        });
        if dice.unit() > 1.0 / mean_turns {
            let normal: f64 = (0..12).map(|_| dice.unit()).sum::<f64>() - 6.0;
            queue.push(Reverse((at_ms + (think_ms * (normal * spread).exp()) as u64, session)));
        }
    }
    Trace::of_lines(lines)
}

/// Calls of tools: one of `kinds` long prompts, by popularity, a question of its own, and with a chance the same again with an
/// answer some requests later.
pub(crate) fn tools(kinds: u32, skew: f64, requests: usize, again: f64, seed: u64) -> Trace {
    let (zipf, mut dice) = (Zipf::new(kinds, skew), Dice(seed));
    let mut fresh = kinds * 40;
    let mut due: BinaryHeap<Reverse<(usize, Vec<u32>)>> = BinaryHeap::new();
    Trace::of((0..requests).map(|at| {
        let is_due = due.peek().is_some_and(|Reverse((when, _))| *when <= at);
        let mut blocks = if is_due {
            due.pop().map(|Reverse((_, blocks))| blocks).unwrap_or_default()
        } else {
            let kind = zipf.draw(&mut dice);
            (kind * 40..kind * 40 + 3 + kind * 7 % 37).collect()
        };
        for _ in 0..1 + dice.below(6) {
            blocks.push(fresh);
            fresh += 1;
        }
        if dice.unit() < again {
            due.push(Reverse((at + 1 + (dice.unit().powi(4) * 2000.0) as usize, blocks.clone())));
        }
        blocks
    }))
}

/// Days of `day` requests of other work, each ending in a job that reads the same `job` blocks, `run` a request, alone.
pub(crate) fn nightly(work: Trace, day: usize, job: u32, run: u32) -> Trace {
    let base = work.lines.iter().flat_map(|line| &line.blocks).max().map_or(0, |block| block + 1);
    let mut requests = Vec::new();
    for (at, line) in work.lines.into_iter().enumerate() {
        requests.push(line.blocks);
        if at % day == day - 1 {
            requests
                .extend((0..job / run).map(|part| (base + part * run..base + part * run + run).collect()));
        }
    }
    Trace::of(requests)
}

/// Questions over retrieved documents: a prompt that all share, then a few documents by popularity in the order of their
/// rank, then the question.
pub(crate) fn retrieval(items: u32, skew: f64, requests: usize, seed: u64) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(seed));
    let mut numbers: std::collections::HashMap<Vec<u32>, u32> = std::collections::HashMap::new();
    let mut fresh = 3;
    Trace::of((0..requests).map(|_| {
        let mut found: Vec<u32> = (0..1 + dice.below(4)).map(|_| zipf.draw(&mut dice)).collect();
        found.sort_unstable();
        found.dedup();
        let mut blocks = vec![0, 1, 2];
        // The same document after others is other blocks.
        for end in 1..=found.len() {
            let first = *numbers.entry(found[..end].to_vec()).or_insert_with(|| {
                fresh += 4;
                fresh - 4
            });
            blocks.extend(first..first + 4);
        }
        blocks.push(fresh);
        fresh += 1;
        blocks
    }))
}
