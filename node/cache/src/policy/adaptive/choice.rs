//! Which way to rank is in charge: the learnt one, or a simple one while that is clearly better on the same blocks.

use super::shadow::{Admission, MAX_ROOM, Seen, Shadow};
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
    /// Longest time between the last two uses, or since the last, first; those used once before all others. A newcomer that was
    /// never seen takes nobody's place, nor does one that ranks no better: a part of a loop that is too large stays (as in LIRS).
    Lirs,
}

/// How many there are.
const RANKERS: usize = 4;

impl Ranker {
    /// All of them.
    pub const ALL: [Ranker; RANKERS] = [Ranker::Learnt, Ranker::Lru, Ranker::Lfu, Ranker::Lirs];

    /// How it lets newcomers in.
    pub(super) fn admission(self) -> Admission {
        match self {
            Ranker::Learnt => Admission::NoWorse,
            Ranker::Lru | Ranker::Lfu => Admission::All,
            Ranker::Lirs => Admission::Better,
        }
    }

    /// Its name as reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Ranker::Learnt => "learnt",
            Ranker::Lru => "lru",
            Ranker::Lfu => "lfu",
            Ranker::Lirs => "lirs",
        }
    }
}

/// What the shadow caches say, and what was decided.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Report {
    /// Who ranks now.
    pub in_charge: Ranker,
    /// Hit rates of the shadow caches, of the latest blocks seen, in the order of [`Ranker::ALL`]; of the learnt way's, while it is in
    /// charge, those of the pool.
    pub hit_rates: [f64; RANKERS],
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

/// Windows in which as many sampled uses come as there are places in a shadow cache, and the least uses of a window. At the end
/// of each is decided anew.
const WINDOWS_PER_ROOM: u64 = 2;
const MIN_WINDOW: u64 = 500;

/// Part of the evidence that outlives a window.
const KEPT: f64 = 0.95;

/// Sampled uses below which nobody is put in charge, whoever asks.
const LEAST_EVIDENCE: f64 = 1000.0;

/// Standard errors by which a simple way must be ahead of the learnt one to be put in charge. That it is put there wrongly
/// costs little, for it is about as good then; that it is not costs more.
const AHEAD: f64 = 1.0;

/// A simple way in charge gives way again when it is as far behind.
const BEHIND: f64 = -1.0;

/// What is asked besides where not every block is sampled: there the shadow caches see requests with gaps, in which the learnt
/// way is less itself than a simple one. A simple way must be ahead by so many hits of each block seen, in so many windows in a
/// row, and one in charge stays only while it is ahead by a part of that.
const MARGIN: f64 = 0.01;
const CONFIRMATIONS: u32 = 4;
const MARGIN_BACK: f64 = 0.002;

/// Hits of each block seen by which another simple way must be ahead of one in charge to take its place: they are told apart by their
/// rates, which are not known as well as a difference request by request.
const CLEARLY: f64 = 0.004;

/// A simple way beside the learnt one, request by request: as both see the same, their difference is known far better than
/// the rate of either, and as the blocks of a request come back together, requests are counted and not blocks.
#[derive(Clone, Copy, Default)]
struct Duel {
    /// Hits more than the learnt one, in the request at hand, and in those before: their sum and the sum of squares.
    now: f64,
    sum: f64,
    squares: f64,
}

impl Duel {
    /// Ends the request.
    fn count(&mut self) {
        let now = std::mem::take(&mut self.now);
        self.sum += now;
        self.squares += now * now;
    }

    fn fade(&mut self) {
        self.sum *= KEPT;
        self.squares *= KEPT;
    }

    /// Returns by how many standard errors it is more than so many hits ahead.
    fn lead(&self, hits: f64) -> f64 {
        (self.sum - hits) / self.squares.max(1.0).sqrt()
    }
}

/// The shadow caches and who is in charge.
pub(super) struct Choice {
    shadows: [Shadow; RANKERS],
    one_in: u64,
    in_charge: Ranker,
    /// Whether the first window, which is not over yet, will be before the pool is full.
    begins_empty: bool,
    hits: [f64; RANKERS],
    duels: [Duel; RANKERS],
    seen: f64,
    window: u64,
    left: u64,
    windows_ahead: u32,
    switches: u64,
}

impl Choice {
    pub(super) fn new(capacity: usize) -> Choice {
        let one_in = capacity.div_ceil(MAX_ROOM).max(1).next_power_of_two() as u64;
        let room = (capacity / one_in as usize).max(1);
        let window = (room as u64 / WINDOWS_PER_ROOM).max(MIN_WINDOW);
        Choice {
            shadows: Ranker::ALL.map(|_| Shadow::new(room)),
            one_in,
            in_charge: Ranker::Learnt,
            begins_empty: one_in == 1 && window > MIN_WINDOW,
            hits: [0.0; RANKERS],
            duels: [Duel::default(); RANKERS],
            seen: 0.0,
            // The first window fills the caches and counts for little.
            window,
            left: window,
            windows_ahead: 0,
            switches: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn put_in_charge(&mut self, ranker: Ranker) {
        self.in_charge = ranker;
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

    /// A sampled block is used, and the pool has it or not. `worth` ranks it for each way.
    pub(super) fn visit(&mut self, seen: Seen, is_hit: bool, worth: &dyn Fn(Ranker, &Seen) -> f32) {
        self.seen += 1.0;
        let mut hits = [0.0; RANKERS];
        for (number, ranker) in Ranker::ALL.into_iter().enumerate() {
            if self.shadows[number].visit(seen, ranker.admission(), &|seen| worth(ranker, seen)) {
                hits[number] = 1.0;
            }
        }
        if self.in_charge == Ranker::Learnt {
            // Its shadow cache has ranked by it from the start: what that holds of a loop that is too large, the pool may lose
            // for good when another way gives way to it. So it counts what it did, not what it would have.
            hits[Ranker::Learnt as usize] = f64::from(u8::from(is_hit));
        }
        for number in 0..RANKERS {
            self.hits[number] += hits[number];
            self.duels[number].now += hits[number] - hits[Ranker::Learnt as usize];
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

    /// Ends a request, and at the end of a window decides who is in charge; returns whether that changed.
    pub(super) fn adjust(&mut self) -> bool {
        self.duels.iter_mut().for_each(Duel::count);
        if self.left > 0 {
            return false;
        }
        self.left = self.window;
        let (before, is_sampled) = (self.in_charge, self.one_in > 1);
        if std::mem::take(&mut self.begins_empty) {
            // Until something is learnt, the one that loses least on a loop that is too large is taken at its word: it has to be
            // behind to give way, and not ahead to come.
            self.in_charge = Ranker::Lirs;
        }
        let best = self.best();
        let is_ahead = self.is_ahead(best);
        self.windows_ahead = if is_ahead { self.windows_ahead.saturating_add(1) } else { 0 };
        if !is_ahead {
            self.in_charge = Ranker::Learnt;
        } else if before != Ranker::Learnt || !is_sampled || self.windows_ahead >= CONFIRMATIONS {
            self.in_charge = best;
        }
        self.hits.iter_mut().for_each(|hits| *hits *= KEPT);
        self.duels.iter_mut().for_each(Duel::fade);
        self.seen *= KEPT;
        self.count_switch(before)
    }

    /// Decides by the evidence at hand who is in charge, without waiting for the end of a window or for more of them; returns
    /// whether that changed.
    pub(super) fn evaluate(&mut self) -> bool {
        let before = self.in_charge;
        match self.reason() {
            Reason::TooLittleEvidence => return false,
            Reason::NoneIsBetter => self.in_charge = Ranker::Learnt,
            Reason::IsBetter | Reason::NotBehind => self.in_charge = self.best(),
        }
        self.count_switch(before)
    }

    fn count_switch(&mut self, before: Ranker) -> bool {
        let changed = self.in_charge != before;
        self.switches += u64::from(changed);
        changed
    }

    /// Returns the best of the simple ways; one in charge is, until another is clearly better.
    fn best(&self) -> Ranker {
        let (mut best, mut most) = match self.in_charge {
            Ranker::Learnt => (Ranker::Lru, self.rate(Ranker::Lru)),
            simple => (simple, self.rate(simple) + CLEARLY),
        };
        for ranker in Ranker::ALL {
            if ranker != Ranker::Learnt && self.rate(ranker) > most {
                (best, most) = (ranker, self.rate(ranker));
            }
        }
        best
    }

    /// Says whether a simple way is so far ahead of the learnt one that it should be, or stay, in charge.
    fn is_ahead(&self, simple: Ranker) -> bool {
        let duel = &self.duels[simple as usize];
        let is_sampled = self.one_in > 1;
        match self.in_charge {
            Ranker::Learnt if is_sampled => duel.lead(MARGIN * self.seen) > AHEAD,
            Ranker::Learnt => duel.lead(0.0) > AHEAD,
            _ if is_sampled => duel.lead(MARGIN_BACK * self.seen) > 0.0,
            _ => duel.lead(0.0) > BEHIND,
        }
    }

    /// Says what the evidence at hand speaks for.
    fn reason(&self) -> Reason {
        if self.seen < LEAST_EVIDENCE {
            Reason::TooLittleEvidence
        } else if !self.is_ahead(self.best()) {
            Reason::NoneIsBetter
        } else if self.duels[self.best() as usize].lead(0.0) > AHEAD {
            Reason::IsBetter
        } else {
            // What keeps one in charge is less than what puts it there.
            Reason::NotBehind
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_way_that_stays_is_not_said_to_be_better_than_it_is() {
        let mut choice = Choice::new(1000);
        assert_eq!(choice.reason(), Reason::TooLittleEvidence);
        choice.seen = 5000.0;
        assert_eq!(choice.reason(), Reason::NoneIsBetter);
        choice.put_in_charge(Ranker::Lirs);
        assert_eq!(choice.reason(), Reason::NotBehind, "as good as the learnt one is enough to stay");
        let lead = |sum| Duel { sum, squares: 100.0, ..Duel::default() };
        for (sum, reason) in
            [(-5.0, Reason::NotBehind), (-20.0, Reason::NoneIsBetter), (20.0, Reason::IsBetter)]
        {
            choice.duels[Ranker::Lirs as usize] = lead(sum);
            assert_eq!(choice.reason(), reason, "{sum} hits ahead");
        }
    }
}
