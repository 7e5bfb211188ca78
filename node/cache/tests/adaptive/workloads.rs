//! Workloads made up from a seed, to judge the policy where no trace is at hand.

use crate::replay::{Dice, Trace};

/// Draws 0.. with probability proportional to 1/(n+1)^skew.
pub(crate) struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(items: u32, skew: f64) -> Zipf {
        let mut sum = 0.0;
        Zipf {
            sums: (1..=items)
                .map(|item| {
                    sum += f64::from(item).powf(-skew);
                    sum
                })
                .collect(),
        }
    }

    pub(crate) fn draw(&self, dice: &mut Dice) -> u32 {
        let total = self.sums[self.sums.len() - 1];
        let at = dice.unit() * total;
        self.sums.partition_point(|sum| *sum < at) as u32
    }
}

/// Single blocks of fixed popularity.
pub(crate) fn zipf(items: u32, skew: f64, requests: usize) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(1));
    Trace::of((0..requests).map(|_| vec![zipf.draw(&mut dice)]))
}

/// The popularity of single blocks, drawn anew `phases` times.
pub(crate) fn zipf_phases(items: u32, skew: f64, requests: usize, phases: u32) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(1));
    let per_phase = requests / phases as usize;
    Trace::of((0..requests).map(|at| {
        let phase = (at / per_phase) as u32;
        vec![(zipf.draw(&mut dice) as u64 * 2_654_435_761 + u64::from(phase) * 7919 * 13) as u32 % items]
    }))
}

/// Popular documents of up to `longest` blocks, each followed by a question of its own.
pub(crate) fn documents(items: u32, skew: f64, longest: u32, requests: usize) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(2));
    let mut fresh = items * longest;
    Trace::of((0..requests).map(|_| {
        let document = zipf.draw(&mut dice);
        let length = 1 + Dice(u64::from(document)).below(u64::from(longest)) as u32;
        let mut blocks: Vec<u32> = (0..length).map(|block| document * longest + block).collect();
        for _ in 0..1 + dice.below(3) {
            blocks.push(fresh);
            fresh += 1;
        }
        blocks
    }))
}

/// A loop over `items` blocks in requests of `run` blocks.
pub(crate) fn around(items: u32, run: u32, requests: usize) -> Trace {
    let runs = items / run;
    Trace::of((0..requests as u32).map(|at| (0..run).map(|block| at % runs * run + block).collect()))
}

/// A popular set, with a scan of blocks that never return through it every other request.
pub(crate) fn zipf_and_scan(items: u32, skew: f64, requests: usize) -> Trace {
    let (zipf, mut dice) = (Zipf::new(items, skew), Dice(3));
    let mut fresh = items;
    Trace::of((0..requests).map(|at| {
        if at % 2 == 0 {
            return vec![zipf.draw(&mut dice)];
        }
        fresh += 1;
        vec![fresh - 1]
    }))
}

/// Conversations: a shared prompt of 4 blocks, turns that each add blocks, thinking times and lengths that differ widely.
pub(crate) fn chats(sessions: usize, at_once: usize, mean_turns: f64, seed: u64) -> Trace {
    let mut dice = Dice(seed);
    let mut fresh = 4;
    let mut live: Vec<Vec<u32>> = Vec::new();
    let mut requests = Vec::new();
    let mut started = 0;
    while started < sessions || !live.is_empty() {
        if started < sessions && live.len() < at_once {
            live.push((0..4).collect());
            started += 1;
        }
        // The latest conversations are the liveliest.
        let back = (dice.unit().powi(3) * live.len() as f64) as usize;
        let which = live.len() - 1 - back.min(live.len() - 1);
        for _ in 0..1 + dice.below(6) {
            live[which].push(fresh);
            fresh += 1;
        }
        requests.push(live[which].clone());
        if dice.unit() < 1.0 / mean_turns {
            live.remove(which);
        }
    }
    Trace::of(requests)
}

/// Requests of one workload after those of another; blocks of the second are its own.
pub(crate) fn then(first: Trace, second: Trace) -> Trace {
    let shift = first.lines.iter().flat_map(|line| &line.blocks).max().map_or(0, |block| block + 1);
    let second = second.lines.into_iter().map(|line| line.blocks.iter().map(|block| block + shift).collect());
    Trace::of(first.lines.into_iter().map(|line| line.blocks).chain(second))
}
