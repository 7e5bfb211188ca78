//! How likely a block is to be used again, by class and age, learnt online.
//!
//! For each class and age bucket: how many blocks came that far without a use (at risk) and how many were used in it
//! (events); their ratio is the discrete hazard of Kaplan and Meier (JASA 53, 1958), in which blocks that are forgotten
//! unseen count as censored. A bucket counts when it is over, for used and unused blocks alike: if blocks counted as at risk when
//! they come to it, a young class would look as if its blocks never came back, for their uses are still ahead of it.
//! A class that has seen little is drawn to what is known of those like it in uses and gap, in score, and in gap alone, those
//! to the whole (empirical Bayes); an age at which it has seen little, to as many times that as near ages have.
//! From the hazards follows the Gittins index (J. Royal Stat. Soc. B 41, 1979): the best ratio, over all times to hold the
//! block from now, of the chance of a use to the expected time held. It is the rank of the block.

use super::ages::{Ages, BUCKETS};
use super::class::{FAMILIES, KINDS, OCTILES, Past};
use super::grow;
use crate::policy::Hint;

/// Weight of what is drawn to: as if so many blocks had been seen.
const SHRINK: f32 = 30.0;

/// Part of a bucket's events that counts for its neighbour's ratio to what was believed, and the events as many as which have
/// been believed beforehand.
const NEAR: f32 = 0.5;
const NEAR_SHRINK: f32 = 10.0;

/// What is believed of a bucket nobody has reached: half an event in so many blocks.
const PRIOR_AT_RISK: f32 = 20.0;

/// A hazard of which nothing was seen is believed to be at most this.
const MOST_BELIEVED: f32 = 0.9;

/// What became of blocks that are alike in something.
#[derive(Clone, Debug)]
struct Counts {
    at_risk: [f32; BUCKETS],
    events: [f32; BUCKETS],
}

impl Counts {
    fn new() -> Counts {
        Counts { at_risk: [0.0; BUCKETS], events: [0.0; BUCKETS] }
    }

    fn scale(&mut self, by: f32) {
        for value in self.at_risk.iter_mut().chain(self.events.iter_mut()) {
            *value *= by;
        }
    }

    /// Returns the hazard of each bucket, drawn to `belief` where little was seen, and to as many times `belief` as the buckets
    /// near by have.
    fn hazard(&self, belief: &[f32; BUCKETS]) -> [f32; BUCKETS] {
        let near = |order: &mut dyn Iterator<Item = usize>| {
            let mut sums = [(0.0, 0.0); BUCKETS];
            let (mut events, mut expected) = (0.0, 0.0);
            for at in order {
                sums[at] = (events, expected);
                events = (events + self.events[at]) * NEAR;
                expected = (expected + self.at_risk[at] * belief[at]) * NEAR;
            }
            sums
        };
        let younger = near(&mut (0..BUCKETS));
        let older = near(&mut (0..BUCKETS).rev());
        let mut hazard = *belief;
        for (at, hazard) in hazard.iter_mut().enumerate() {
            let events = younger[at].0 + older[at].0 + NEAR_SHRINK;
            let expected = younger[at].1 + older[at].1 + NEAR_SHRINK;
            let belief = (*hazard * events / expected).min(MOST_BELIEVED);
            *hazard = (self.events[at] + SHRINK * belief) / (self.at_risk[at] + SHRINK);
        }
        hazard
    }
}

/// In place of counts: there are none yet.
const NONE: u16 = u16::MAX;

/// Where the counts are of those that are like a class in something.
#[derive(Clone, Copy)]
struct Alike {
    kind: u16,
    judged_kind: u16,
    family: u16,
    gap: u16,
    coarse_gap: u16,
}

/// A class's own counts, and those like it.
struct OfRow {
    alike: Alike,
    own: Counts,
}

/// The learnt hazards of all classes.
pub(super) struct Hazards {
    ages: Ages,
    whole: Counts,
    counts: Vec<Counts>,
    kinds: Vec<u16>,
    judged_kinds: Vec<u16>,
    families: Vec<u16>,
    gaps: Vec<u16>,
    coarse_gaps: Vec<u16>,
    rows: Vec<OfRow>,
}

impl Hazards {
    pub(super) fn new(ages: Ages) -> Hazards {
        Hazards {
            ages,
            whole: Counts::new(),
            counts: Vec::new(),
            kinds: vec![NONE; KINDS],
            judged_kinds: vec![NONE; KINDS * OCTILES],
            families: vec![NONE; FAMILIES],
            gaps: vec![NONE; FAMILIES],
            coarse_gaps: vec![NONE; KINDS],
            rows: Vec::new(),
        }
    }

    /// Makes room for one more class; returns its number.
    pub(super) fn add_row(&mut self, past: Past, hint: Hint, octile: usize) -> u16 {
        let counts = &mut self.counts;
        let mut place = |slot: &mut u16| {
            if *slot == NONE {
                *slot = u16::try_from(counts.len()).expect("there are fewer than classes");
                grow(counts, usize::from(NONE));
                counts.push(Counts::new());
            }
            *slot
        };
        let kind = past.kind(hint);
        let mut once = past;
        once.uses = 1;
        let alike = Alike {
            kind: place(&mut self.kinds[kind]),
            judged_kind: place(&mut self.judged_kinds[kind * OCTILES + octile]),
            family: place(&mut self.families[past.family(hint)]),
            gap: place(&mut self.gaps[once.family(hint)]),
            coarse_gap: place(&mut self.coarse_gaps[once.kind(hint)]),
        };
        grow(&mut self.rows, MAX_ROWS);
        self.rows.push(OfRow { alike, own: Counts::new() });
        u16::try_from(self.rows.len() - 1).expect("there are fewer classes than 2^16")
    }

    /// Notes that of blocks of the weight `at_risk` that came to `bucket` unused, those of the weight `used` were used in it.
    pub(super) fn count(&mut self, row: u16, bucket: usize, at_risk: u32, used: u32) {
        let (at_risk, used) = (at_risk as f32 / 256.0, used as f32 / 256.0);
        let add = |counts: &mut Counts| {
            counts.at_risk[bucket] += at_risk;
            counts.events[bucket] += used;
        };
        let OfRow { alike, own } = &mut self.rows[usize::from(row)];
        add(own);
        add(&mut self.whole);
        for alike in [alike.kind, alike.judged_kind, alike.family, alike.gap, alike.coarse_gap] {
            add(&mut self.counts[usize::from(alike)]);
        }
    }

    /// Forgets a part of everything learnt.
    pub(super) fn decay(&mut self, by: f32) {
        self.whole.scale(by);
        let own = self.rows.iter_mut().map(|row| &mut row.own);
        self.counts.iter_mut().chain(own).for_each(|counts| counts.scale(by));
    }

    /// Returns the hazard of each bucket for a class.
    fn of(&self, row: u16) -> [f32; BUCKETS] {
        let OfRow { alike, own } = &self.rows[usize::from(row)];
        let counts = |at: u16| &self.counts[usize::from(at)];
        let whole = std::array::from_fn(|bucket| {
            (self.whole.events[bucket] + 0.5) / (self.whole.at_risk[bucket] + PRIOR_AT_RISK)
        });
        let kind = counts(alike.kind).hazard(&whole);
        let judged_kind = counts(alike.judged_kind).hazard(&kind);
        let coarse_gap = counts(alike.coarse_gap).hazard(&whole);
        let gap = counts(alike.gap).hazard(&coarse_gap);
        // What a finer look at one thing says holds beside what one at another does.
        let family = counts(alike.family).hazard(&times(&kind, &gap, &coarse_gap));
        own.hazard(&times(&family, &judged_kind, &kind)).map(|hazard| hazard.min(0.999))
    }

    /// Returns the Gittins index of each bucket for a class: chance of a use per request held.
    pub(super) fn index(&self, row: u16) -> [f32; BUCKETS] {
        gittins(&self.ages, &self.of(row))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let places = [&self.kinds, &self.judged_kinds, &self.families, &self.gaps, &self.coarse_gaps];
        let places: usize = places.iter().map(|places| places.capacity()).sum();
        self.counts.capacity() * size_of::<Counts>()
            + self.rows.capacity() * size_of::<OfRow>()
            + places * size_of::<u16>()
    }
}

/// Returns hazards as many times others as `finer` are `coarse`.
fn times(hazard: &[f32; BUCKETS], finer: &[f32; BUCKETS], coarse: &[f32; BUCKETS]) -> [f32; BUCKETS] {
    std::array::from_fn(|at| (hazard[at] * finer[at] / coarse[at]).min(MOST_BELIEVED))
}

/// Families and score levels there can be.
pub(super) const MAX_ROWS: usize = FAMILIES * OCTILES;

fn gittins(ages: &Ages, hazard: &[f32; BUCKETS]) -> [f32; BUCKETS] {
    let mut index = [0.0; BUCKETS];
    for (from, index) in index.iter_mut().enumerate() {
        let mut alive: f32 = 1.0;
        let mut held: f32 = 0.0;
        for (bucket, chance) in hazard.iter().enumerate().skip(from) {
            let after = alive * (1.0 - chance);
            held += ages.width(bucket) * (alive + after) * 0.5;
            alive = after;
            *index = f32::max(*index, (1.0 - alive) / held);
            if alive < 1e-4 {
                break;
            }
        }
    }
    index
}
