//! `adaptive`: learns online which blocks come back and when, and ranks them by it.
//!
//! A block's class is what was known at its last use (`class`, `score`); each class has hazards of reuse by age, learnt
//! from resident and remembered blocks alike (`hazard`, `cohort`, `ghosts`); the block with the lowest Gittins index
//! leaves first (`ranking`), and a newcomer that ranks lower still is refused. Leaves leave before their parents, always.

mod ages;
mod choice;
mod class;
mod cohort;
mod ghosts;
mod hazard;
mod hinted;
mod learning;
mod ranking;
mod records;
mod request;
mod score;
mod shadow;

use crate::policy::{ChoiceReport, Hint, Policy, Removal, Request, Verdict, Visit};
use ages::{Ages, Tick};
use choice::Choice;
pub use choice::{Ranker, Report};
use class::Past;
use cohort::Cohorts;
use ghosts::{Ghost, Ghosts};
use hazard::{Hazards, MAX_ROWS};
use kvhive_protocol::BlockKey;
use ranking::{Level, NONE, Ranking, cell};
use records::Records;
use request::{Current, History, Touched};
use score::Score;
use shadow::Admission;

/// Classes of the same rank that are compared by age when a simple way to rank is in charge.
const MAX_TIES: usize = 16;

/// Mean lifetimes in which a use loses half its worth to the aged LFU.
const LFU_LIVES: f32 = 8.0;

/// Mean lifetimes without a use in which half of the uses before it are forgotten: what was popular long ago is no more.
const USES_LIVES: f32 = 64.0;

/// Halvings that the aged LFU tells apart.
const LFU_SCALE: f32 = 24.0;

/// What a block is worth to the aged LFU: the binary logarithm of its uses, less one for each `half_life` since the last.
fn lfu(uses: u8, age: f32, half_life: f32) -> f32 {
    f32::from(uses.max(1)).log2() - age / half_life.max(1.0)
}

/// Makes room for one more, a good deal more at a time but far less than twice, and never beyond the limit.
fn grow<T>(list: &mut Vec<T>, limit: usize) {
    if list.len() == list.capacity() {
        let more = (list.len() / 8).max(1024).min(limit.saturating_sub(list.len()));
        list.reserve_exact(more.max(1));
    }
}

/// Leaves that are offered for one victim before the search is given up.
const MAX_SEARCH: usize = 256;

/// Ghosts that a pool remembers however small it is.
const FEW_GHOSTS: usize = 32_768;

/// Row of a class that was never seen.
const UNSEEN: u16 = u16::MAX;

/// A class that was seen: where its new members go.
#[derive(Clone, Copy, Debug)]
struct Row {
    family: u16,
    /// The cohort that takes new members, when it was opened and how many uses had been seen then.
    open: u32,
    opened: Tick,
    opened_uses: u64,
}

/// The policy; see the module.
pub struct Adaptive {
    capacity: usize,
    now: Tick,
    /// Uses of blocks seen so far.
    uses: u64,
    ages: Ages,
    hazards: Hazards,
    ranking: Ranking,
    cohorts: Cohorts,
    records: Records,
    ghosts: Ghosts,
    score: Score,
    history: History,
    current: Current,
    choice: Choice,
    row_of: Vec<u16>,
    rows: Vec<Row>,
    /// The row whose rank is next to be brought up to date.
    next_rerank: usize,
    /// The next row that is ranked yet by who was in charge before; all those after it are.
    next_relevel: usize,
    /// Uses when what was learnt was last faded.
    faded_at: u64,
    /// Running mean of the age at which blocks leave, in requests.
    life: f32,
}

/// What classes, score, history, shadow caches and the request at hand take at most, as long as that is of some thousand blocks.
const WHATEVER_THE_POOL: usize = 12 << 20;

const HALF_LIFE_USES: u64 = 100_000;
const HALF_LIFE_CAPACITIES: u64 = 64;
const FADES_PER_HALF_LIFE: u64 = 8;
const FADE: f32 = 0.917_004;

/// Uses that may pass, per block of capacity, until a class opens a new cohort: the grain of ages in a large cache.
const COHORTS_PER_CAPACITY: u64 = 4096;

impl Adaptive {
    /// Makes a policy for a pool of so many blocks.
    pub fn new(capacity: usize) -> Adaptive {
        let ages = Ages::new();
        let ghosts = Adaptive::ghost_limit(capacity);
        Adaptive {
            capacity,
            now: 0,
            uses: 0,
            hazards: Hazards::new(ages.clone()),
            ranking: Ranking::new(),
            cohorts: Cohorts::new(ages.clone(), capacity),
            ages,
            records: Records::new(capacity),
            ghosts: Ghosts::of(ghosts),
            score: Score::new(),
            history: History::new(),
            current: Current::default(),
            choice: Choice::new(capacity),
            row_of: vec![UNSEEN; MAX_ROWS],
            rows: Vec::new(),
            next_rerank: 0,
            next_relevel: usize::MAX,
            faded_at: 0,
            life: 100.0,
        }
    }

    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        let ghosts = Ghosts::most_bytes(Adaptive::ghost_limit(capacity));
        WHATEVER_THE_POOL + Records::most_bytes(capacity) + ghosts + Cohorts::most_bytes(capacity)
    }

    /// Returns how many blocks that are not resident are remembered at most: half as many as fit, and in a small pool
    /// 32,768, so that what comes back late is learnt there too.
    pub fn ghost_limit(capacity: usize) -> usize {
        (capacity / 2).max(FEW_GHOSTS)
    }

    /// Returns how many blocks are remembered that are not resident.
    pub fn ghosts(&self) -> usize {
        self.ghosts.len()
    }

    /// Returns how many blocks are resident.
    pub fn resident(&self) -> usize {
        self.records.count()
    }

    /// A block is used: notes how long it had waited, and makes it part of the request at hand.
    fn touch(&mut self, print: u64, at: u32, known: Option<(Past, u32)>, visit: &Visit) {
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
            self.cohorts.leave_used(cohort, old.weight(), &mut self.hazards);
        } else {
            self.branch(visit);
            self.current.unknown_block();
            past.uses = 1;
        }
        past.last = self.now;
        past.set_partial(visit.partial);
        past.set_span(self.current.span);
        self.current.touched.push(Touched { print, at, past, is_new: known.is_none(), is_hit: false });
    }

    /// Returns what is remembered of a block after a use now.
    fn next_past(&self, old: Past) -> Past {
        let mut past = old;
        let halvings = self.now.wrapping_sub(old.last) as f32 / (self.life * USES_LIVES).max(1.0);
        let kept = (f32::from(old.uses) * (-halvings).exp2()).round() as u8;
        past.uses = kept.max(1).saturating_add(1);
        past.set_gap(self.ages.bucket(self.now.wrapping_sub(old.last)));
        past
    }

    /// A block never seen before follows its parent.
    fn branch(&mut self, visit: &Visit) {
        if let Some(parent) = visit.parent
            && let Some(record) = self.records.get(parent)
        {
            if record.is_of_this_request() {
                self.current.touched[record.previous as usize].past.add_branch();
            } else {
                self.records.at(parent).past.add_branch();
            }
        } else if visit.depth > 0
            && let Some(parent) = self.current.touched.last_mut()
        {
            parent.past.add_branch();
        }
    }

    /// Returns the leaf of the lowest rank that may go, if that is not above `level`.
    fn lowest_below(&mut self, level: Level, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut offered = 0;
        let mut next = self.ranking.lowest(0);
        if self.choice.in_charge() != Ranker::Learnt {
            next = next.map(|first| self.oldest_on_level(first));
        }
        while let Some(cell) = next {
            if self.ranking.level_of(cell) > level {
                return Verdict::Refuse;
            }
            let mut cohort = self.ranking.head(cell);
            while cohort != NONE {
                let mut leaf = self.cohorts.get(cohort).head;
                while leaf != NONE {
                    if may_go(leaf) {
                        return Verdict::Evict(leaf);
                    }
                    offered += 1;
                    if offered >= MAX_SEARCH {
                        return Verdict::Stuck;
                    }
                    leaf = self.records.get(leaf).map_or(NONE, |record| record.next);
                }
                cohort = self.cohorts.get(cohort).next;
            }
            next = self.ranking.after(cell);
        }
        Verdict::Stuck
    }

    /// Says who ranks now, and on what evidence.
    pub fn report(&self) -> Report {
        self.choice.report()
    }

    /// Returns the rank that a newcomer would have.
    fn level_of(&mut self, visit: &Visit) -> Level {
        let ghost = self.ghosts.get(print(&visit.key)).map(|ghost| ghost.past);
        let outlook = self.current.outlook(ghost, &self.history);
        let octile = self.current.judged(&outlook).unwrap_or_else(|| {
            let octile = self.score.octile(&self.current.facts(&outlook, &self.history));
            self.current.set_judged(outlook, octile);
            octile
        });
        let mut past = ghost.map_or(Past::EMPTY, |old| self.next_past(old));
        past.uses = past.uses.max(1);
        past.set_partial(visit.partial);
        let row = self.row(past, octile);
        self.ranking.level_of(cell(row, 0))
    }
}

/// Cache lifetimes that the score waits for a request's prefix to come back.
const PATIENCE: f32 = 4.0;

/// The shortest time that it waits, in requests.
const MIN_HORIZON: f32 = 20.0;

/// Part of the running mean of lifetimes that each block that leaves replaces.
const LIFE_RATE: f32 = 0.001;

/// Part of a key that stands for it. The shard's index hashes the first eight bytes, placement uses the last.
fn print(key: &BlockKey) -> u64 {
    let bytes: [u8; 8] = key.as_bytes()[8..16].try_into().expect("a key has 32 bytes");
    u64::from_le_bytes(bytes)
}

impl Policy for Adaptive {
    fn begin(&mut self, request: &Request) {
        self.settle();
        self.now = self.now.wrapping_add(1);
        self.cohorts.age(self.now, &mut self.hazards, &mut self.ranking);
        self.score.learn(self.now, (self.life * PATIENCE).max(MIN_HORIZON) as u32);
        self.rerank_some();
        self.relevel_some();
        self.fade();
        self.current.begin(request);
    }

    fn about(&mut self, request: &Request) {
        self.current.about(request);
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        let Some(record) = self.records.get(at) else {
            return self.inserted(at, visit);
        };
        if record.is_of_this_request() {
            return;
        }
        if record.is_leaf() {
            self.records.unlist(at, &mut self.cohorts, &mut self.ranking);
        }
        self.touch(print(&visit.key), at, Some((record.past, record.cohort)), visit);
        let place = self.current.touched.len() as u32 - 1;
        self.current.touched[place as usize].is_hit = true;
        let record = self.records.at(at);
        record.cohort = NONE;
        record.previous = place;
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        let print = print(&visit.key);
        if self.records.get(at).is_some() {
            debug_assert!(false, "a record is taken once");
            return;
        }
        let ghost = self.ghosts.take(print);
        self.touch(print, at, ghost.map(|ghost| (ghost.past, ghost.cohort)), visit);
        if let Some(parent) = visit.parent {
            self.records.set_leaf(parent, false, &mut self.cohorts, &mut self.ranking);
        }
        self.records.insert(at, self.current.touched.len() as u32 - 1);
    }

    fn refused(&mut self, visit: &Visit) {
        let print = print(&visit.key);
        let ghost = self.ghosts.take(print);
        self.touch(print, NONE, ghost.map(|ghost| (ghost.past, ghost.cohort)), visit);
    }

    fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let level = match self.choice.in_charge().admission() {
            Admission::All => Level::MAX,
            Admission::NoWorse => self.level_of(newcomer),
            Admission::Better => {
                let ghost = self.ghosts.get(print(&newcomer.key)).map(|ghost| ghost.past);
                let Some(gap) = ghost.and_then(|past| self.next_past(past).gap()) else {
                    return Verdict::Refuse;
                };
                let level = ranking::level_on_scale(learning::distance_of_newcomer(gap.into()));
                level.saturating_sub(1)
            }
        };
        self.lowest_below(level, may_go)
    }

    fn hinted(&mut self, at: u32, key: &BlockKey, hint: Hint) {
        self.reclassify(at, print(key), hint);
    }

    fn next_to_leave(&mut self, may_go: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        match self.lowest_below(Level::MAX, may_go) {
            Verdict::Evict(at) => Some(at),
            Verdict::Refuse | Verdict::Stuck => None,
        }
    }

    fn report(&self) -> Option<ChoiceReport> {
        Some(self.choice.chosen())
    }

    fn adjust(&mut self) {
        self.settle();
        if self.choice.evaluate() {
            self.begin_relevel();
        }
    }

    fn removed(&mut self, at: u32, key: &BlockKey, why: Removal) {
        let Some(record) = self.records.get(at) else { return };
        let (cohort, past) = (record.cohort, record.past);
        if record.is_of_this_request() {
            // It leaves within the request that used it: remembered with the others at the end, whatever the reason.
            self.current.touched[record.previous as usize].at = NONE;
        } else {
            if record.is_leaf() {
                self.records.unlist(at, &mut self.cohorts, &mut self.ranking);
            }
            match why {
                Removal::Evicted => {
                    self.life += LIFE_RATE * (self.now.wrapping_sub(past.last) as f32 - self.life);
                    self.remember(Ghost::new(print(key), cohort, past));
                }
                Removal::Dropped => self.cohorts.leave(cohort, past.weight()),
            }
        }
        self.records.remove(at);
    }

    fn set_leaf(&mut self, at: u32, leaf: bool) {
        self.records.set_leaf(at, leaf, &mut self.cohorts, &mut self.ranking);
    }

    fn held(&mut self, most: usize) {
        self.ghosts.sized(Adaptive::ghost_limit(most));
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Adaptive>()
            + self.hazards.memory_bytes()
            + self.ranking.memory_bytes()
            + self.cohorts.memory_bytes()
            + self.records.memory_bytes()
            + self.ghosts.memory_bytes()
            + self.score.memory_bytes()
            + self.history.memory_bytes()
            + self.choice.memory_bytes()
            + self.current.touched.capacity() * size_of::<Touched>()
            + self.row_of.capacity() * size_of::<u16>()
            + self.rows.capacity() * size_of::<Row>()
    }
}
