//! Keeps the ranks of classes up to date, by whichever way to rank the shadow caches show to be best.

use super::ages::BUCKETS;
use super::choice::Ranker;
use super::ranking::{self, cell, level_on_scale};
use super::request::Touched;
use super::shadow::Seen;
use super::{Adaptive, class};

/// Mean lifetimes in which a use loses half its worth to the aged LFU.
const LFU_LIVES: f32 = 8.0;

/// Halvings that the aged LFU tells apart.
const LFU_SCALE: f32 = 24.0;

/// What a block is worth to the aged LFU: the binary logarithm of its uses, less one for each `half_life` since the last.
fn lfu(uses: u8, age: f32, half_life: f32) -> f32 {
    f32::from(uses.max(1)).log2() - age / half_life.max(1.0)
}

impl Adaptive {
    /// Lets the shadow caches see the sampled blocks of the request, and decides who ranks.
    pub(super) fn shadow(&mut self, touched: &[Touched], octile: usize) {
        self.choice.begin();
        for block in touched {
            if !self.choice.samples(block.print) {
                continue;
            }
            let row = self.row(block.past, octile);
            let seen = Seen { print: block.print, last: block.past.last, uses: block.past.uses, row };
            let (now, ages, ranking, fade) = (self.now, &self.ages, &self.ranking, self.life * LFU_LIVES);
            self.choice.visit(seen, &|ranker, seen| {
                let age = now.wrapping_sub(seen.last);
                match ranker {
                    Ranker::Learnt => f32::from(ranking.learnt_level(cell(seen.row, ages.bucket(age) as u8))),
                    Ranker::Lru => -(age as f32),
                    Ranker::Lfu => lfu(seen.uses, age as f32, fade),
                }
            });
        }
        if self.choice.adjust() {
            for row in 0..self.rows.len() {
                self.rerank(row as u16);
            }
        }
    }

    /// Brings the ranks of a class up to date.
    pub(super) fn rerank(&mut self, row: u16) {
        let family = usize::from(self.rows[usize::from(row)].family);
        let learnt = self.hazards.index(row, family).map(ranking::level);
        let mut levels = learnt;
        let uses = class::uses_of(family);
        for (bucket, level) in levels.iter_mut().enumerate() {
            match self.choice.in_charge() {
                Ranker::Learnt => break,
                Ranker::Lru => *level = level_on_scale(1.0 - bucket as f32 / BUCKETS as f32),
                Ranker::Lfu => {
                    let worth = lfu(uses, self.ages.begin(bucket) as f32, self.life * LFU_LIVES);
                    *level = level_on_scale((worth + LFU_SCALE) / (LFU_SCALE + 8.0));
                }
            }
        }
        self.ranking.rerank(row, &learnt, &levels);
    }

    /// Brings the ranks of some classes up to date, in turn.
    pub(super) fn rerank_some(&mut self) {
        let rows = self.rows.len();
        let period = if self.now < 2048 { 64 } else { 256 };
        for _ in 0..rows.div_ceil(period) {
            self.next_rerank = (self.next_rerank + 1) % rows;
            self.rerank(self.next_rerank as u16);
        }
    }
}
