//! What a use teaches: the block's old class had an event, its new one a member. Done for a whole request at once, when as
//! much is known of it as will be. Who ranks by what was learnt is not decided here.

use super::class::{OCTILES, Past};
use super::cohort::Cohort;
use super::ghosts::Ghost;
use super::ranking::NONE;
use super::request::Touched;
use super::{Adaptive, Row, UNSEEN};
use crate::policy::Visit;

/// Uses, and capacities of uses if that is more, in which what was learnt loses half its weight.
const HALF_LIFE_USES: u64 = 100_000;
const HALF_LIFE_CAPACITIES: u64 = 64;
/// Steps in which it is lost, and what is left after one: the eighth root of a half.
const FADES_PER_HALF_LIFE: u64 = 8;
const FADE: f32 = 0.917_004;

/// Uses that may pass, per block of capacity, until a class opens a new cohort: the grain of ages in a large cache.
const COHORTS_PER_CAPACITY: u64 = 4096;

impl Adaptive {
    /// A block is used: notes how long it had waited, and makes it part of the request at hand.
    pub(super) fn touch(&mut self, print: u64, at: u32, known: Option<(Past, u32)>, visit: &Visit) {
        if self.current.is_full() {
            self.settle();
        }
        self.uses += 1;
        let mut past = Past::EMPTY;
        if let Some((old, cohort)) = known {
            self.current.known_block(old);
            past = self.next_past(old);
            if old.is_watched() {
                self.score.came_back(print);
                past.set_watched(false);
            }
            if old.is_sampled() {
                past.set_sampled(false);
            }
            let Cohort { row, family, bucket, .. } = *self.cohorts.get(cohort);
            self.hazards.event(row, family.into(), bucket.into(), old.weight());
            self.cohorts.leave(cohort, old.weight());
        } else {
            self.branch(visit);
            self.current.unknown_block();
            past.uses = 1;
        }
        past.last = self.now;
        past.set_partial(visit.partial);
        past.span = self.current.span;
        self.current.touched.push(Touched { print, at, past, is_new: known.is_none() });
    }

    /// Returns what is remembered of a block after a use now.
    pub(super) fn next_past(&self, old: Past) -> Past {
        let mut past = old;
        past.uses = old.uses.saturating_add(1);
        past.set_gap(match self.ages.bucket(self.now.wrapping_sub(old.last)) {
            0..=4 => 1,
            5..=10 => 2,
            _ => 3,
        });
        past
    }

    /// A block never seen before follows its parent.
    fn branch(&mut self, visit: &Visit) {
        if let Some(parent) = visit.parent.filter(|at| self.records.get(*at).is_some()) {
            let record = self.records.at(parent);
            if record.cohort == NONE {
                let place = record.previous as usize;
                self.current.touched[place].past.add_branch();
            } else {
                record.past.add_branch();
            }
        } else if visit.depth > 0
            && let Some(parent) = self.current.touched.last_mut()
        {
            parent.past.add_branch();
        }
    }

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
                self.remember(Ghost { print: block.print, cohort, past });
                continue;
            }
            let record = self.records.at(block.at);
            record.cohort = cohort;
            record.past = past;
            if record.children == 0 {
                self.records.list(block.at, false, &mut self.cohorts, &mut self.ranking);
            }
        }
        self.current.touched = touched;
    }

    /// Counts a block as used now into the cohort of its class.
    fn join(&mut self, past: Past, octile: usize) -> u32 {
        let row = self.row(past, octile);
        let Row { family, open, opened, opened_uses } = self.rows[usize::from(row)];
        let grain = self.capacity as u64 / COHORTS_PER_CAPACITY;
        let cohort = if (opened == self.now || self.uses - opened_uses <= grain)
            && self.cohorts.is_open(open, row, opened)
        {
            open
        } else {
            let cohort = self.cohorts.open(row, family, self.now);
            self.rows[usize::from(row)] =
                Row { family, open: cohort, opened: self.now, opened_uses: self.uses };
            cohort
        };
        let bucket = usize::from(self.cohorts.get(cohort).bucket);
        for bucket in 0..=bucket {
            self.hazards.at_risk(row, family.into(), bucket, past.weight());
        }
        self.cohorts.join(cohort, past.weight());
        cohort
    }

    /// Returns the row of a block's class, a new one if it is the first of its class.
    pub(super) fn row(&mut self, past: Past, octile: usize) -> u16 {
        let family = past.family(self.current.request.hint);
        let class = family * OCTILES + octile;
        if self.row_of[class] == UNSEEN {
            let row = self.hazards.add_row(family);
            self.ranking.add_row();
            self.rows.push(Row { family: family as u16, open: NONE, opened: 0, opened_uses: 0 });
            self.row_of[class] = row;
            self.rerank(row);
        }
        self.row_of[class]
    }

    pub(super) fn remember(&mut self, ghost: Ghost) {
        if let Some(twin) = self.ghosts.take(ghost.print) {
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

    pub(super) fn fade(&mut self) {
        let half_life = HALF_LIFE_USES.max(self.capacity as u64 * HALF_LIFE_CAPACITIES);
        if (self.uses - self.faded_at) * FADES_PER_HALF_LIFE >= half_life {
            self.faded_at = self.uses;
            self.hazards.decay(FADE);
        }
    }
}
