//! How promising a whole request looks: a logistic regression on what is known of it, learnt online (AdaGrad: Duchi, Hazan and
//! Singer, JMLR 12, 2011) from whether the end of the request's prefix came back within a few cache lifetimes.

use super::ages::Tick;
use super::class::OCTILES;
use crate::policy::Hint;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// What is known of a request when its blocks are judged.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Facts {
    pub(super) blocks: u32,
    /// Blocks from the start that are resident or remembered.
    pub(super) known: u32,
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) turn: u8,
    pub(super) hint: Hint,
    /// The request before it in its conversation, if remembered.
    pub(super) before: Option<Before>,
}

/// What the request before in the same conversation was like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Before {
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
    /// Seconds from it to this one.
    pub(super) gap_s: f32,
    /// Seconds to it from the one before it, if known.
    pub(super) earlier_gap_s: Option<f32>,
}

const FEATURES: usize = 13;
const LEVELS: usize = 42;
const CROSS_AT: usize = FEATURES * LEVELS;
const WEIGHTS: usize = CROSS_AT + 12 * 24;

/// One weight per feature is active.
pub(super) type Active = [u16; FEATURES + 1];

/// Half steps of the binary logarithm, from 1; 0 means unknown.
fn level(value: Option<f32>) -> usize {
    match value {
        Some(value) if value >= 0.0 => 1 + (((value + 1.0).log2() * 2.0) as usize).min(LEVELS - 2),
        _ => 0,
    }
}

impl Facts {
    fn active(&self) -> Active {
        let known = |tokens: u32| Some(tokens as f32);
        let before = self.before;
        let input = level(known(self.input_tokens));
        let output = level(known(self.output_tokens));
        let levels: [usize; FEATURES] = [
            input,
            output,
            level(known(self.blocks.saturating_sub(self.known))),
            (self.known as f32 / self.blocks.max(1) as f32 * 10.0) as usize,
            usize::from(self.turn).min(10),
            level(before.map(|before| before.gap_s)),
            level(before.map(|before| before.output_tokens as f32)),
            level(before.map(|before| self.input_tokens as f32 - before.input_tokens as f32)),
            level(before.and_then(|before| before.earlier_gap_s)),
            level(Some(self.output_tokens as f32 / (self.input_tokens as f32 + 1.0) * 1000.0)),
            0,
            match self.hint {
                Hint::None => 0,
                Hint::Over => 1,
                Hint::Pending => 2,
                Hint::Returns(seconds) => 2 + level(Some(seconds as f32)).min(LEVELS - 3),
            },
            usize::from(before.is_some()),
        ];
        let mut active = [0; FEATURES + 1];
        for (feature, level) in levels.iter().enumerate() {
            active[feature] = (feature * LEVELS + (*level).min(LEVELS - 1)) as u16;
        }
        active[FEATURES] = (CROSS_AT + (input / 4).min(11) * 24 + (output / 2).min(23)) as u16;
        active
    }
}

const LEARNING_RATE: f32 = 0.15;

/// Bins of the running distribution of scores; a bin is an eighth of a unit of the logit wide.
const BINS: usize = 64;

/// Part of the distribution that each new request keeps.
const BINS_DECAY: f32 = 0.9995;

/// Requests whose outcome is waited for.
pub(super) const MAX_WAITING: usize = 4096;

struct Waiting {
    at: Tick,
    watched: u64,
    blocks: u32,
    active: Active,
    came_back: bool,
}

/// The regression, what it waits to learn from, and the running distribution of its scores.
pub(super) struct Score {
    weights: Vec<f32>,
    squares: Vec<f32>,
    bins: [f32; BINS],
    bins_total: f32,
    /// What one more request adds to its bin: grows instead of decaying all bins each time.
    bin_step: f32,
    waiting: VecDeque<Waiting>,
    /// Number in the queue's life of each watched block's latest entry.
    watched: HashMap<u64, u64, FixedState>,
    popped: u64,
    every: u32,
    skipped: u32,
}

impl Score {
    pub(super) fn new() -> Score {
        Score {
            weights: vec![0.0; WEIGHTS],
            squares: vec![1.0; WEIGHTS],
            bins: [1.0; BINS],
            bins_total: BINS as f32,
            bin_step: 1.0,
            waiting: VecDeque::new(),
            watched: HashMap::default(),
            popped: 0,
            every: 1,
            skipped: 0,
        }
    }

    fn logit(&self, active: &Active) -> f32 {
        active.iter().map(|at| self.weights[usize::from(*at)]).sum()
    }

    /// Returns in which eighth of all requests this one ranks.
    pub(super) fn octile(&self, facts: &Facts) -> usize {
        let bin = Self::bin(self.logit(&facts.active()));
        let below: f32 = self.bins[..bin].iter().sum::<f32>() + self.bins[bin] * 0.5;
        ((below / self.bins_total * OCTILES as f32) as usize).min(OCTILES - 1)
    }

    fn bin(logit: f32) -> usize {
        ((logit + 4.0) * 8.0).clamp(0.0, (BINS - 1) as f32) as usize
    }

    /// Counts a request into the distribution and, if its turn has come, waits to see whether the block `watched` is used
    /// again. Returns whether it waits.
    pub(super) fn note(&mut self, facts: &Facts, watched: u64, now: Tick) -> bool {
        let active = facts.active();
        let bin = Self::bin(self.logit(&active));
        self.bins[bin] += self.bin_step;
        self.bins_total += self.bin_step;
        self.bin_step /= BINS_DECAY;
        if self.bin_step > 1e6 {
            self.bins.iter_mut().for_each(|bin| *bin /= self.bin_step);
            self.bins_total /= self.bin_step;
            self.bin_step = 1.0;
        }
        self.skipped += 1;
        if self.skipped < self.every {
            return false;
        }
        self.skipped = 0;
        if self.waiting.len() >= MAX_WAITING {
            // The outcome takes too many requests to wait for each: look at fewer of them.
            self.every = self.every.saturating_mul(2).min(1 << 16);
            return false;
        }
        if self.waiting.len() < MAX_WAITING / 4 && self.every > 1 {
            self.every /= 2;
        }
        self.watched.insert(watched, self.popped + self.waiting.len() as u64);
        self.waiting.push_back(Waiting { at: now, watched, blocks: facts.blocks, active, came_back: false });
        true
    }

    /// Notes that a watched block was used again.
    pub(super) fn came_back(&mut self, watched: u64) {
        if let Some(number) = self.watched.remove(&watched)
            && let Some(waiting) =
                number.checked_sub(self.popped).and_then(|at| self.waiting.get_mut(at as usize))
        {
            waiting.came_back = true;
        }
    }

    /// Learns from the requests, oldest first, that came back or have waited longer than `horizon`.
    pub(super) fn learn(&mut self, now: Tick, horizon: u32) {
        while let Some(first) = self.waiting.front() {
            if !first.came_back && now.wrapping_sub(first.at) <= horizon {
                return;
            }
            let Some(first) = self.waiting.pop_front() else { return };
            if !first.came_back && self.watched.get(&first.watched) == Some(&self.popped) {
                self.watched.remove(&first.watched);
            }
            self.popped += 1;
            self.train(&first.active, first.came_back, first.blocks);
        }
    }

    fn train(&mut self, active: &Active, came_back: bool, blocks: u32) {
        let belief = 1.0 / (1.0 + (-self.logit(active)).exp());
        let target = if came_back { 1.0 } else { 0.0 };
        let error = (belief - target) * (blocks as f32 / 16.0).min(4.0).sqrt();
        for at in active {
            let at = usize::from(*at);
            self.squares[at] += error * error;
            self.weights[at] -= LEARNING_RATE * error / self.squares[at].sqrt();
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        (self.weights.capacity() + self.squares.capacity()) * size_of::<f32>()
            + self.waiting.capacity() * size_of::<Waiting>()
            + self.watched.allocation_size()
    }
}
