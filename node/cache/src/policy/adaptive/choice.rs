//! Which way to rank is in charge: the learnt one, or a simple one while that is clearly better on the same blocks.

use super::shadow::{MAX_ROOM, Seen, Shadow};
use kvhive_protocol::strategy::{ChoiceReport, Estimate, Reason};
use std::fmt;

/// A way to rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ranker {
    /// By learnt hazards of reuse, with refusal.
    Learnt,
    /// Least recently used first.
    Lru,
    /// Least used first, uses ageing with time (LRFU: Lee et al., IEEE ToC 50, 2001).
    Lfu,
}

impl Ranker {
    /// All of them.
    pub const ALL: [Ranker; 3] = [Ranker::Learnt, Ranker::Lru, Ranker::Lfu];

    /// Its name as reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Ranker::Learnt => "learnt",
            Ranker::Lru => "lru",
            Ranker::Lfu => "lfu",
        }
    }
}

/// What the shadow caches say, and what was decided.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Report {
    /// Who ranks now.
    pub in_charge: Ranker,
    /// Hit rates of the shadow caches, of the latest blocks seen, in the order of [`Ranker::ALL`].
    pub hit_rates: [f64; 3],
    /// Sampled blocks that the rates rest on.
    pub evidence: f64,
    /// One in so many blocks is sampled.
    pub sampled_one_in: u64,
    /// Times that another one was put in charge.
    pub switches: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ranks; shadow hit rates", self.in_charge.name())?;
        for (ranker, rate) in Ranker::ALL.iter().zip(self.hit_rates) {
            write!(f, " {} {:.2} %,", ranker.name(), rate * 100.0)?;
        }
        write!(
            f,
            " of {:.0} blocks, one in {} sampled; {} switches",
            self.evidence, self.sampled_one_in, self.switches
        )
    }
}

/// By so much must a simple way be better to be put in charge.
const MARGIN: f64 = 0.01;

/// A simple way in charge gives way again when it is not even this much better.
const MARGIN_BACK: f64 = 0.002;

/// Sampled uses, per place in a shadow cache, after which is decided anew, and the least number of them.
const WINDOW_PER_ROOM: u64 = 4;
const MIN_WINDOW: u64 = 2000;

/// Part of the evidence that outlives a window.
const KEPT: f64 = 0.7;

/// Sampled uses below which nobody is put in charge, whoever asks.
const LEAST_EVIDENCE: f64 = 1000.0;

/// Windows in a row in which a simple way must be better.
const CONFIRMATIONS: u32 = 2;

/// The shadow caches and who is in charge.
pub(super) struct Choice {
    shadows: [Shadow; 3],
    one_in: u64,
    in_charge: Ranker,
    hits: [f64; 3],
    seen: f64,
    window: u64,
    left: u64,
    better_windows: u32,
    switches: u64,
}

impl Choice {
    pub(super) fn new(capacity: usize) -> Choice {
        let one_in = capacity.div_ceil(MAX_ROOM).max(1).next_power_of_two() as u64;
        let room = (capacity / one_in as usize).max(1);
        let window = (room as u64 * WINDOW_PER_ROOM).max(MIN_WINDOW);
        Choice {
            shadows: [Shadow::new(room), Shadow::new(room), Shadow::new(room)],
            one_in,
            in_charge: Ranker::Learnt,
            hits: [0.0; 3],
            seen: 0.0,
            // The first window fills the caches and counts for little.
            window,
            left: window,
            better_windows: 0,
            switches: 0,
        }
    }

    pub(super) fn in_charge(&self) -> Ranker {
        self.in_charge
    }

    /// Whether this block is of the sample.
    pub(super) fn samples(&self, print: u64) -> bool {
        print.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40 & (self.one_in - 1) == 0
    }

    pub(super) fn begin(&mut self) {
        for shadow in &mut self.shadows {
            shadow.begin();
        }
    }

    /// A sampled block is used. `worth` ranks it for each way.
    pub(super) fn visit(&mut self, seen: Seen, worth: &dyn Fn(Ranker, &Seen) -> f32) {
        self.seen += 1.0;
        for (number, ranker) in Ranker::ALL.into_iter().enumerate() {
            let refuses = ranker == Ranker::Learnt;
            if self.shadows[number].visit(seen, refuses, &|seen| worth(ranker, seen)) {
                self.hits[number] += 1.0;
            }
        }
        self.left = self.left.saturating_sub(1);
    }

    fn rate(&self, ranker: Ranker) -> f64 {
        self.hits[ranker as usize] / self.seen.max(1.0)
    }

    /// A sampled block is of another class from now on.
    pub(super) fn reclassify(&mut self, print: u64, row: u16) {
        self.shadows.iter_mut().for_each(|shadow| shadow.reclassify(print, row));
    }

    /// At the end of a window decides who is in charge; returns whether that changed.
    pub(super) fn adjust(&mut self) -> bool {
        if self.left > 0 {
            return false;
        }
        self.left = self.window;
        let best = if self.rate(Ranker::Lru) >= self.rate(Ranker::Lfu) { Ranker::Lru } else { Ranker::Lfu };
        let lead = self.rate(best) - self.rate(Ranker::Learnt);
        let before = self.in_charge;
        if before == Ranker::Learnt {
            self.better_windows = if lead > MARGIN { self.better_windows + 1 } else { 0 };
            if self.better_windows >= CONFIRMATIONS {
                self.in_charge = best;
            }
        } else if lead < MARGIN_BACK {
            self.in_charge = Ranker::Learnt;
            self.better_windows = 0;
        } else if self.rate(best) > self.rate(before) + MARGIN {
            self.in_charge = best;
        }
        self.hits.iter_mut().for_each(|hits| *hits *= KEPT);
        self.seen *= KEPT;
        let changed = self.in_charge != before;
        self.switches += u64::from(changed);
        changed
    }

    /// Decides by the evidence at hand who is in charge, without waiting for the end of a window or for a second one; returns
    /// whether that changed.
    pub(super) fn evaluate(&mut self) -> bool {
        let before = self.in_charge;
        match self.reason() {
            Reason::TooLittleEvidence => return false,
            Reason::NoneIsBetter => self.in_charge = Ranker::Learnt,
            Reason::IsBetter => self.in_charge = self.best(),
        }
        self.better_windows = 0;
        let changed = self.in_charge != before;
        self.switches += u64::from(changed);
        changed
    }

    /// Returns the better of the simple ways; the one in charge where they are alike.
    fn best(&self) -> Ranker {
        let (lru, lfu) = (self.rate(Ranker::Lru), self.rate(Ranker::Lfu));
        match self.in_charge {
            Ranker::Learnt if lru >= lfu => Ranker::Lru,
            Ranker::Learnt => Ranker::Lfu,
            Ranker::Lru if lfu > lru + MARGIN => Ranker::Lfu,
            Ranker::Lfu if lru > lfu + MARGIN => Ranker::Lru,
            simple => simple,
        }
    }

    /// Says what the evidence at hand speaks for.
    fn reason(&self) -> Reason {
        if self.seen < LEAST_EVIDENCE {
            return Reason::TooLittleEvidence;
        }
        let margin = if self.in_charge == Ranker::Learnt { MARGIN } else { MARGIN_BACK };
        let lead = self.rate(self.best()) - self.rate(Ranker::Learnt);
        if lead > margin { Reason::IsBetter } else { Reason::NoneIsBetter }
    }

    /// Returns what was chosen, as it is told to others.
    pub(super) fn chosen(&self) -> ChoiceReport {
        let ppm = |rate: f64| (rate * 1e6).round() as u32;
        let estimate = |ranker: Ranker| Estimate {
            ranker: ranker.name().to_owned(),
            hit_rate_ppm: ppm(self.rate(ranker)),
        };
        ChoiceReport {
            in_charge: self.in_charge.name().to_owned(),
            estimates: Ranker::ALL.into_iter().map(estimate).collect(),
            evidence: self.seen as u64,
            sampled_one_in: self.one_in,
            switches: self.switches,
            reason: self.reason(),
        }
    }

    pub(super) fn report(&self) -> Report {
        Report {
            in_charge: self.in_charge,
            hit_rates: Ranker::ALL.map(|ranker| self.rate(ranker)),
            evidence: self.seen,
            sampled_one_in: self.one_in,
            switches: self.switches,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.shadows.iter().map(Shadow::memory_bytes).sum()
    }
}
