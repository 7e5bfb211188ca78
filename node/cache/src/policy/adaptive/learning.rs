//! What a finished request teaches: uses and disuses are counted by class, ranks follow, what was learnt fades.

use super::ages::BUCKETS;
use super::class::{self, OCTILES, Past};
use super::ghosts::Ghost;
use super::ranking::{self, NONE, cell, level_on_scale};
use super::request::Touched;
use super::shadow::Seen;
use super::{
    Adaptive, COHORTS_PER_CAPACITY, FADE, FADES_PER_HALF_LIFE, HALF_LIFE_CAPACITIES, HALF_LIFE_USES,
    LFU_LIVES, LFU_SCALE, MAX_TIES, Ranker, Row, UNSEEN, lfu,
};

impl Adaptive {
    /// Gives the blocks of the request at hand their classes, now that as much is known of it as will be.
    pub(super) fn settle(&mut self) {
        if self.current.touched.is_empty() {
            return;
        }
        let outlook = self.current.outlook(None, &self.history);
        let facts = self.current.facts(&outlook, &self.history);
        let octile = self.score.octile(&facts);
        self.history.put(self.now, &self.current.request, &facts);
        let mut touched = std::mem::take(&mut self.current.touched);
        let watched = touched.len().saturating_sub(2);
        if self.score.note(&facts, touched[watched].print, self.now) {
            touched[watched].past.set_watched(true);
        }
        self.shadow(&touched, octile);
        // The deepest first: within a cohort it is the first to leave.
        for block in touched.drain(..).rev() {
            let mut past = block.past;
            if block.is_new {
                past.turn = facts.turn;
            }
            let cohort = self.join(past, octile);
            if block.at == NONE {
                self.remember(Ghost::new(block.print, cohort, past));
                continue;
            }
            let record = self.records.at(block.at);
            record.cohort = cohort;
            record.past = past;
            if record.is_leaf() {
                self.records.list(block.at, false, &mut self.cohorts, &mut self.ranking);
            }
        }
        self.current.touched = touched;
    }

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
            self.rerank_all();
        }
    }

    /// Brings the ranks of all classes up to date: another way ranks.
    pub(super) fn rerank_all(&mut self) {
        for row in 0..self.rows.len() {
            self.rerank(row as u16);
        }
    }

    /// Brings the ranks of a class up to date.
    pub(super) fn rerank(&mut self, row: u16) {
        let family = usize::from(self.rows[usize::from(row)].family);
        let learnt = self.hazards.index(row).map(ranking::level);
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

    /// Counts a block as used now into the cohort of its class.
    pub(super) fn join(&mut self, past: Past, octile: usize) -> u32 {
        let row = self.row(past, octile);
        let Row { family, open, opened, opened_uses } = self.rows[usize::from(row)];
        let grain = self.capacity as u64 / COHORTS_PER_CAPACITY;
        let cohort = if (opened == self.now || self.uses - opened_uses <= grain || self.cohorts.is_crowded())
            && self.cohorts.is_open(open, row, opened)
        {
            open
        } else {
            let cohort = self.cohorts.open(row, self.now);
            self.rows[usize::from(row)] =
                Row { family, open: cohort, opened: self.now, opened_uses: self.uses };
            cohort
        };
        let bucket = usize::from(self.cohorts.get(cohort).bucket);
        for bucket in 0..bucket {
            self.hazards.count(row, bucket, past.weight(), 0);
        }
        self.cohorts.join(cohort, past.weight());
        cohort
    }

    /// Returns the row of a block's class, a new one if it is the first of its class.
    pub(super) fn row(&mut self, past: Past, octile: usize) -> u16 {
        let family = past.family(self.current.request.hint);
        let class = family * OCTILES + octile;
        if self.row_of[class] == UNSEEN {
            let row = self.hazards.add_row(past, self.current.request.hint, octile);
            self.ranking.add_row();
            self.rows.push(Row { family: family as u16, open: NONE, opened: 0, opened_uses: 0 });
            self.row_of[class] = row;
            self.rerank(row);
        }
        self.row_of[class]
    }

    pub(super) fn remember(&mut self, ghost: Ghost) {
        if let Some(twin) = self.ghosts.take(ghost.print.into()) {
            self.cohorts.leave(twin.cohort, twin.past.weight());
        }
        let displaced = self.ghosts.put(ghost);
        if let Some(forgotten) = displaced.forgotten {
            self.cohorts.leave(forgotten.cohort, forgotten.past.weight());
        }
        if let Some(sampled) = displaced.sampled {
            let mut before = sampled.past;
            before.set_sampled(false);
            self.cohorts.reweigh(sampled.cohort, before.weight(), sampled.past.weight());
        }
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

    pub(super) fn fade(&mut self) {
        let half_life = HALF_LIFE_USES.max(self.capacity as u64 * HALF_LIFE_CAPACITIES);
        if (self.uses - self.faded_at) * FADES_PER_HALF_LIFE >= half_life {
            self.faded_at = self.uses;
            self.hazards.decay(FADE);
        }
    }

    /// Returns which cell of a level, beginning with `first`, holds the block unused for longest. A simple way to rank ties
    /// classes of the same age. It comes first on its level, so that leaves that may not go are not offered twice.
    pub(super) fn oldest_on_level(&mut self, first: u32) -> u32 {
        let level = self.ranking.level_of(first);
        let mut oldest = first;
        let mut next = Some(first);
        for _ in 0..MAX_TIES {
            let Some(cell) = next.filter(|cell| self.ranking.level_of(*cell) == level) else { break };
            let age = |cell: u32| self.now.wrapping_sub(self.cohorts.get(self.ranking.head(cell)).start);
            if age(cell) > age(oldest) {
                oldest = cell;
            }
            next = self.ranking.after(cell);
        }
        self.ranking.put_first(oldest);
        oldest
    }
}
