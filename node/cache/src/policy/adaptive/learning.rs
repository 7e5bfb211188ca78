//! What a finished request teaches: uses and disuses are counted by class, ranks follow, what was learnt fades.

use super::ages::BUCKETS;
use super::class::{self, OCTILES, Past};
use super::ghosts::Ghost;
use super::ranking::{self, Level, NONE, cell, level_on_scale};
use super::request::Touched;
use super::shadow::Seen;
use super::{
    Adaptive, COHORTS_PER_CAPACITY, FADE, FADES_PER_HALF_LIFE, HALF_LIFE_CAPACITIES, HALF_LIFE_USES,
    LFU_LIVES, LFU_SCALE, MAX_TIES, Ranker, Row, UNSEEN, lfu,
};

/// Classes that one request ranks anew by what was learnt, at most: some microseconds each.
const RERANKS: usize = 8;

/// Classes that one request ranks by who is in charge now, while they are ranked by who was before: a fraction of that each.
const RELEVELS: usize = 128;

/// What a block of a family is worth at an age, by the longer of its last gap and the age, on a scale from 0 to 1.
fn distance(family: usize, bucket: usize) -> f32 {
    let all = 2.0 * BUCKETS as f32;
    match class::gap_of(family) {
        Some(gap) => 1.0 - gap.max(bucket) as f32 / all,
        None => 0.5 - (bucket + 1) as f32 / all,
    }
}

/// What a newcomer is worth on that scale: a little less than a block like it that is in, so that it does not take the place of one
/// for a difference that is chance.
pub(super) fn distance_of_newcomer(gap: usize) -> f32 {
    1.0 - (gap + 1) as f32 / (2.0 * BUCKETS as f32)
}

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
            let seen = Seen {
                print: block.print,
                last: block.past.last,
                uses: block.past.uses,
                row,
                gap: block.past.gap(),
            };
            let (now, ages, ranking, fade) = (self.now, &self.ages, &self.ranking, self.life * LFU_LIVES);
            let rows = &self.rows;
            self.choice.visit(seen, block.is_hit, &|ranker, seen| {
                let age = now.wrapping_sub(seen.last);
                match ranker {
                    Ranker::Learnt => f32::from(ranking.learnt_level(cell(seen.row, ages.bucket(age) as u8))),
                    Ranker::Lru => -(age as f32),
                    Ranker::Lfu => lfu(seen.uses, age as f32, fade),
                    Ranker::Lirs => distance(rows[usize::from(seen.row)].family.into(), ages.bucket(age)),
                }
            });
        }
        if self.choice.adjust() {
            self.begin_relevel();
        }
    }

    /// Another way ranks: gives all classes its ranks, some now and as many with each request that follows.
    pub(super) fn begin_relevel(&mut self) {
        self.next_relevel = 0;
        self.relevel_some();
    }

    /// Gives some classes that have the ranks of who was in charge before those of who is now, as far as there are any.
    pub(super) fn relevel_some(&mut self) {
        let until = self.rows.len().min(self.next_relevel.saturating_add(RELEVELS));
        for row in self.next_relevel..until {
            let learnt = self.ranking.learnt_of(row as u16);
            self.rank(row as u16, learnt);
        }
        self.next_relevel = if until < self.rows.len() { until } else { usize::MAX };
    }

    /// Brings the ranks of a class up to date.
    pub(super) fn rerank(&mut self, row: u16) {
        self.rank(row, self.hazards.index(row).map(ranking::level));
    }

    /// Ranks a class by who is in charge.
    fn rank(&mut self, row: u16, learnt: [Level; BUCKETS]) {
        let family = usize::from(self.rows[usize::from(row)].family);
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
                Ranker::Lirs => *level = level_on_scale(distance(family, bucket)),
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
        for _ in 0..rows.div_ceil(period).min(RERANKS) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Hint, Policy, Request};

    /// A policy that has seen so many classes.
    fn policy(classes: usize) -> Adaptive {
        let mut policy = Adaptive::new(1000);
        let hints = [Hint::None, Hint::Over, Hint::Pending, Hint::Returns(9)];
        let mut pasts =
            (0..hints.len() * 255 * BUCKETS).map(|at| (at / BUCKETS / 255, at / BUCKETS % 255, at % BUCKETS));
        while policy.rows.len() < classes {
            let (hint, uses, gap) = pasts.next().expect("there are more classes");
            let uses = uses as u8 + 1;
            policy.current.request.hint = hints[hint];
            let mut past = Past::EMPTY;
            past.uses = uses;
            past.set_gap(gap);
            for octile in 0..OCTILES {
                policy.row(past, octile);
            }
        }
        policy
    }

    fn levels(policy: &Adaptive) -> Vec<Level> {
        let cells = 0..policy.rows.len() * BUCKETS;
        cells.map(|cell| policy.ranking.level_of(cell as u32)).collect()
    }

    #[test]
    fn another_way_to_rank_costs_no_request_more_than_some_classes() {
        let mut policy = policy(5 * RELEVELS / 2);
        policy.choice.put_in_charge(Ranker::Lru);
        let (before, mut steps) = (levels(&policy), 0);
        policy.begin_relevel();
        let all = levels(&policy);
        assert_eq!(all[RELEVELS * BUCKETS..], before[RELEVELS * BUCKETS..], "the others keep their turn");
        while policy.next_relevel != usize::MAX {
            policy.begin(&Request::default());
            steps += 1;
        }
        assert_eq!(steps, policy.rows.len().div_ceil(RELEVELS) - 1);
        let of_lru = |bucket: usize| level_on_scale(1.0 - bucket as f32 / BUCKETS as f32);
        assert!(levels(&policy).iter().enumerate().all(|(at, level)| *level == of_lru(at % BUCKETS)));
    }

    #[test]
    fn one_request_ranks_few_classes_anew_however_many_there_are() {
        let mut policy = policy(RERANKS * 64 + 1);
        for _ in 0..3 {
            let from = policy.next_rerank;
            policy.begin(&Request::default());
            assert_eq!((policy.next_rerank + policy.rows.len() - from) % policy.rows.len(), RERANKS);
        }
    }
}
