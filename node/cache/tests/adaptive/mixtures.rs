//! More workloads made up from a seed, of the kinds that share a cache in earnest.

use crate::replay::{Dice, Trace};
use crate::workloads::Zipf;

/// Requests of several workloads, each request drawn from one of them by weight until all are over; blocks are their own.
pub(crate) fn together(parts: Vec<(u64, Trace)>, seed: u64) -> Trace {
    let mut dice = Dice(seed);
    let mut shift = 0;
    let mut queues = Vec::new();
    for (weight, part) in parts {
        let blocks = part.lines.iter().flat_map(|line| &line.blocks);
        let beyond = shift + blocks.max().map_or(0, |block| block + 1);
        let lines = part.lines.into_iter();
        let shifted =
            lines.map(move |line| line.blocks.iter().map(|block| block + shift).collect::<Vec<u32>>());
        queues.push((weight, shifted.collect::<std::collections::VecDeque<_>>()));
        shift = beyond;
    }
    let mut requests = Vec::new();
    loop {
        queues.retain(|(_, queue)| !queue.is_empty());
        let all: u64 = queues.iter().map(|(weight, _)| weight).sum();
        if all == 0 {
            return Trace::of(requests);
        }
        let mut drawn = dice.below(all);
        for (weight, queue) in &mut queues {
            if drawn < *weight {
                requests.extend(queue.pop_front());
                break;
            }
            drawn -= *weight;
        }
    }
}

/// Single blocks whose popularity drifts: every `every` requests a random item takes a random one's popularity.
pub(crate) fn drifting(items: u32, skew: f64, requests: usize, every: usize, seed: u64) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(seed));
    let mut order: Vec<u32> = (0..items).collect();
    let mut popular = Zipf::new(items, 1.0).draw(&mut dice);
    Trace::of((0..requests).map(|at| {
        if at % every == every - 1 {
            order.swap(popular as usize, dice.below(u64::from(items)) as usize);
            popular = (dice.unit().powi(4) * f64::from(items)) as u32;
        }
        vec![order[zipf.draw(&mut dice) as usize]]
    }))
}

/// Agents: a system prompt of 12 blocks for each of a few kinds; steps that follow each other fast and add one to three blocks;
/// now and then a step goes back to an earlier one and branches, or the agent rests; tenths of them are given up early.
pub(crate) fn agents(sessions: usize, at_once: usize, mean_steps: f64, kinds: u32, seed: u64) -> Trace {
    struct Agent {
        blocks: Vec<u32>,
        rests: u64,
        left: u64,
    }
    let mut dice = Dice(seed);
    let mut fresh = kinds * 12;
    let mut live: Vec<Agent> = Vec::new();
    let mut requests = Vec::new();
    let mut started = 0;
    let mut busy = 0;
    while started < sessions || !live.is_empty() {
        if started < sessions && live.len() < at_once {
            let kind = (dice.unit().powi(2) * f64::from(kinds)) as u32;
            let left = 1 + (-dice.unit().max(1e-9).ln() * mean_steps) as u64;
            live.push(Agent { blocks: (kind * 12..kind * 12 + 12).collect(), rests: 0, left });
            started += 1;
            continue;
        }
        if dice.below(4) == 0 {
            busy = dice.below(live.len() as u64) as usize;
        }
        busy = busy.min(live.len() - 1);
        let agent = &mut live[busy];
        if agent.rests > 0 {
            agent.rests -= 1;
            busy = dice.below(live.len() as u64) as usize;
            continue;
        }
        if dice.below(12) == 0 && agent.blocks.len() > 14 {
            let keep = 12 + dice.below(agent.blocks.len() as u64 - 12) as usize;
            agent.blocks.truncate(keep);
        }
        for _ in 0..1 + dice.below(3) {
            agent.blocks.push(fresh);
            fresh += 1;
        }
        requests.push(agent.blocks.clone());
        agent.left -= 1;
        if agent.left == 0 || dice.below(200) == 0 {
            live.remove(busy);
        } else if dice.below(10) == 0 {
            agent.rests = dice.below(at_once as u64 * 4);
        }
    }
    Trace::of(requests)
}

/// Single blocks of fixed popularity, and a job that reads all of its `job` blocks, ten a request, every `period` requests.
pub(crate) fn with_jobs(items: u32, skew: f64, requests: usize, job: u32, period: usize, seed: u64) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(seed));
    let mut runs = std::collections::VecDeque::new();
    Trace::of((0..requests).map(|at| {
        if at % period == 0 {
            runs.extend(
                (0..job / 10).map(|run| (items + run * 10..items + run * 10 + 10).collect::<Vec<u32>>()),
            );
        }
        if at % 2 == 0
            && let Some(run) = runs.pop_front()
        {
            return run;
        }
        vec![zipf.draw(&mut dice)]
    }))
}

/// Documents with questions; half way their lengths and popularity change from those of the first to those of the second.
pub(crate) fn documents_shift(
    items: u32,
    skews: [f64; 2],
    longest: [u32; 2],
    requests: usize,
    seed: u64,
) -> Trace {
    let mut dice = Dice(seed);
    let zipfs = skews.map(|skew| Zipf::new(items, skew));
    let most = longest[0].max(longest[1]);
    let mut fresh = 2 * items * most;
    Trace::of((0..requests).map(|at| {
        let half = usize::from(at >= requests / 2);
        let document = zipfs[half].draw(&mut dice);
        let length = 1 + Dice(u64::from(document) + seed).below(u64::from(longest[half])) as u32;
        // A third of the documents is there in both halves.
        let base = if document % 3 == 0 { 0 } else { half as u32 * items * most };
        let mut blocks: Vec<u32> = (0..length).map(|block| base + document * most + block).collect();
        for _ in 0..dice.below(4) {
            blocks.push(fresh);
            fresh += 1;
        }
        blocks
    }))
}

/// Blocks that never come back, in requests of `run`.
pub(crate) fn scan(requests: u32, run: u32) -> Trace {
    Trace::of((0..requests).map(|at| (at * run..at * run + run).collect()))
}
