//! What a cluster whose size is to follow its load is measured by: how many members the busiest hour needs, and how few member hours
//! anybody could have done with who knew the load beforehand. Both come from replays at fixed sizes.

use kvhive_cache::policy::{Strategy, build};
use kvhive_cache::simulate::{Outcome, Rules, Setting, Trace, replay_resized};
use kvhive_protocol::scaling::{MAX_SIZE, OBSERVATION_SECONDS};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How ghosts and counts are hashed.
const SEED: u64 = 1;
/// Stretches of time of an hour.
const HOUR: usize = (3600 / OBSERVATION_SECONDS) as usize;

/// Days of load, and members that may take them.
pub(super) struct Ground<'a> {
    pub(super) trace: &'a Trace,
    pub(super) strategy: Strategy,
    pub(super) block_tokens: u32,
    pub(super) days: u32,
    pub(super) member_blocks: u32,
}

/// What a cluster of one size came to in each stretch of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stretches {
    pub(super) outcome: Outcome,
    asked: Vec<u64>,
    hits: Vec<u64>,
}

/// The hour of the most load, and what can be had of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Peak {
    /// Which, from 0.
    pub(super) hour: usize,
    /// Hits in that hour of a cluster from which nothing ever has to leave.
    pub(super) most: u64,
}

impl Ground<'_> {
    /// Runs a cluster of always so many blocks.
    pub(super) fn fixed(&self, blocks: u32) -> Stretches {
        let Ground { trace, strategy, block_tokens, .. } = *self;
        let setting = Setting { capacity: blocks, rules: Rules::Leaf, block_tokens, shrunk_per_mille: 1000 };
        let stretches = self.days as usize * 24 * HOUR;
        let (mut asked, mut hits) = (Vec::with_capacity(stretches + 1), Vec::with_capacity(stretches + 1));
        let outcome =
            replay_resized(trace, &mut *build(strategy, blocks, SEED), setting, &mut |at, so_far| {
                let seconds = trace.request(at).0.now.as_nanos() / 1_000_000_000;
                while asked.len() as u64 <= seconds / OBSERVATION_SECONDS {
                    asked.push(so_far.blocks);
                    hits.push(so_far.hits);
                }
                blocks
            });
        asked.resize(stretches + 1, outcome.blocks);
        hits.resize(stretches + 1, outcome.hits);
        let each = |sums: &[u64]| sums.windows(2).map(|two| two[1] - two[0]).collect();
        Stretches { outcome, asked: each(&asked), hits: each(&hits) }
    }

    /// Returns the busiest hour.
    pub(super) fn peak(&self) -> Peak {
        let unlimited = self.fixed(u32::try_from(self.trace.unique_blocks()).unwrap_or(u32::MAX).max(1));
        let hours = unlimited.asked.chunks(HOUR).map(|hour| hour.iter().sum::<u64>());
        // The first of them, where there are several.
        let busiest = hours.enumerate().max_by_key(|(at, asked)| (*asked, std::cmp::Reverse(*at)));
        let hour = busiest.map_or(0, |(at, _)| at);
        Peak { hour, most: unlimited.hits_in(hour) }
    }

    /// Returns the fewest members that have, in the busiest hour, so much of the hits that there are to be had: one fewer has not. None
    /// when as many as a policy may name have not.
    pub(super) fn members_for(&self, peak: Peak, keep: f64) -> Option<u32> {
        let is_enough = |members: u32| {
            let blocks = members.checked_mul(self.member_blocks);
            blocks
                .is_none_or(|blocks| self.fixed(blocks).hits_in(peak.hour) as f64 >= keep * peak.most as f64)
        };
        // Two at least: with one there is nothing to scale.
        let (mut low, mut high) = (2, 2);
        while !is_enough(high) {
            low = high + 1;
            high = (2 * high).min(MAX_SIZE);
            if low > MAX_SIZE {
                return None;
            }
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if is_enough(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(high)
    }

    /// Returns fewer member hours than any sizes from 1 to `members` can come to that have so many hits, whoever chooses them and
    /// whatever is known beforehand.
    ///
    /// A size holds for a stretch of time and may be any other in the next; what it would have to begin with is there. In `lru` what a
    /// smaller cluster holds a larger one holds too (Mattson et al., "Evaluation techniques for storage hierarchies", 1970), so whatever
    /// sizes there were before, no more is there than that, and no more hits. Members are not whole: of all mixtures of sizes the
    /// cheapest is taken. Both err to fewer hours. With a strategy of which that does not hold it is an estimate.
    pub(super) fn least_hours(&self, members: u32, hits: u64) -> f64 {
        let sizes = self.all_sizes(members);
        let mut steps = Vec::new();
        let stretches = sizes.first().map_or(0, |one| one.hits.len());
        let (mut cost, mut have) = (stretches as f64, 0.0);
        for at in 0..stretches {
            let hits: Vec<u64> = sizes.iter().map(|one| one.hits[at]).collect();
            have += hits.first().map_or(0.0, |hits| *hits as f64);
            steps.extend(hull(&hits));
        }
        steps.sort_by(|one, other| other.gain().total_cmp(&one.gain()));
        for step in steps {
            let lacks = hits as f64 - have;
            if lacks <= 0.0 {
                break;
            }
            let part = (lacks / step.hits).min(1.0);
            cost += part * step.members;
            have += part * step.hits;
        }
        cost * OBSERVATION_SECONDS as f64 / 3600.0
    }

    fn all_sizes(&self, members: u32) -> Vec<Stretches> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(vec![None; members as usize]);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(members as usize) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= members as usize {
                            break;
                        }
                        let blocks = self.member_blocks.saturating_mul(at as u32 + 1);
                        let one = self.fixed(blocks);
                        done.lock().expect("a worker that panics ends the program")[at] = Some(one);
                    }
                });
            }
        });
        let done = done.into_inner().expect("no worker is left");
        done.into_iter().map(|one| one.expect("every size has run")).collect()
    }
}

impl Stretches {
    pub(super) fn hits_in(&self, hour: usize) -> u64 {
        self.hits.chunks(HOUR).nth(hour).map_or(0, |hour| hour.iter().sum())
    }
}

/// So many members more, and the hits that they bring.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Step {
    members: f64,
    hits: f64,
}

impl Step {
    fn gain(&self) -> f64 {
        self.hits / self.members
    }
}

/// Returns by which steps hits grow with members where sizes may be mixed: each brings less a member than the one before, and none
/// brings nothing.
fn hull(hits: &[u64]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut before, mut skipped) = (hits.first().copied().unwrap_or(0), 0.0);
    for hits in hits.iter().skip(1) {
        skipped += 1.0;
        if *hits <= before {
            continue;
        }
        let mut step = Step { members: skipped, hits: (*hits - before) as f64 };
        (before, skipped) = (*hits, 0.0);
        while let Some(last) = steps.pop_if(|last| last.gain() <= step.gain()) {
            step = Step { members: last.members + step.members, hits: last.hits + step.hits };
        }
        steps.push(step);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_bring_less_and_less() {
        let step = |members, hits| Step { members, hits };
        assert_eq!(hull(&[5, 6, 9, 10, 10, 10]), [step(2.0, 4.0), step(1.0, 1.0)]);
        assert_eq!(hull(&[5, 5, 4, 8]), [step(3.0, 3.0)]);
        assert_eq!(hull(&[7]), []);
    }
}
