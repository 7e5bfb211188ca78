//! What the largest cluster and the smallest would have covered over the last day, and from that the hit rate to aim at.

use kvhive_protocol::scaling::{OBSERVATION_SECONDS, Stretch as Written};
use std::collections::VecDeque;

/// Stretches of time of a day.
pub(super) const DAY: usize = (86_400 / OBSERVATION_SECONDS) as usize;
/// How often the space between a hit rate too low and one too high is halved.
const HALVINGS: u32 = 30;

/// A day's aim is let down by what was covered beyond it, but no further than to lose so many times what may be lost.
const MOST_LOST: f64 = 3.0;

/// Hit rates of the smallest cluster that is allowed, of the largest, and of the cluster as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) got: f64,
}

/// One stretch of time.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    asked: f64,
    /// What the smallest cluster that is allowed would have covered of it, and the largest.
    least: f64,
    most: f64,
    /// What the cluster as it was would have covered, and what was aimed at.
    got: f64,
    aimed: f64,
}

impl Stretch {
    /// Returns what is covered by those who aim at so much: no cluster is smaller than allowed, nor larger.
    fn within(&self, aim: f64) -> f64 {
        aim.clamp(self.least.min(self.most), self.most)
    }
}

/// The last day.
#[derive(Clone, Debug, Default)]
pub(super) struct Day {
    bounds: (u32, u32),
    stretches: VecDeque<Stretch>,
}

impl Day {
    /// Adds a stretch of time in which so much was asked, and returns the hit rate to aim at from now on: the least that, aimed at all
    /// day, keeps so much of what the largest cluster would have covered. One hit rate for all hours costs least: where uses lie as
    /// far apart in time, the last member saves as many blocks a second in each. When more cannot be had, it is made up for in other
    /// hours.
    pub(super) fn add(&mut self, bounds: (u32, u32), keep: f64, asked: f64, rates: Rates) -> f64 {
        let Rates { least, most, got } = rates;
        self.push(bounds, Stretch { asked, least, most, got, aimed: got });
        let aim = self.aim((keep - self.surplus()).max(1.0 - MOST_LOST * (1.0 - keep)));
        if let Some(newest) = self.stretches.back_mut() {
            newest.aimed = newest.within(aim);
        }
        aim
    }

    /// Returns its newest stretch of time, which was that of `bucket`.
    pub(super) fn newest(&self, bucket: u64) -> Option<Written> {
        let Stretch { asked, least, most, got, aimed } = *self.stretches.back()?;
        let ppm = |share: f64| (share.clamp(0.0, 1.0) * 1e6).round() as u32;
        let (floor, ceiling) = self.bounds;
        Some(Written {
            bucket,
            floor,
            ceiling,
            asked: asked.round() as u64,
            least_ppm: ppm(least),
            most_ppm: ppm(most),
            got_ppm: ppm(got),
            aimed_ppm: ppm(aimed),
        })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.stretches.len()
    }

    /// Makes one of stretches of time that were written down, oldest first.
    pub(super) fn of<'a>(written: impl Iterator<Item = &'a Written>) -> Day {
        let mut day = Day::default();
        for one in written {
            let shares = [one.least_ppm, one.most_ppm, one.got_ppm, one.aimed_ppm];
            let [least, most, got, aimed] = shares.map(|ppm| f64::from(ppm) / 1e6);
            day.push((one.floor, one.ceiling), Stretch { asked: one.asked as f64, least, most, got, aimed });
        }
        day
    }

    /// Adds a stretch of time. What is known of other bounds says nothing of these.
    fn push(&mut self, bounds: (u32, u32), stretch: Stretch) {
        if self.bounds != bounds {
            *self = Day { bounds, stretches: VecDeque::new() };
        }
        if self.stretches.len() == DAY {
            self.stretches.pop_front();
        }
        self.stretches.push_back(stretch);
    }

    /// Returns how many hits the largest cluster would have had in the last day, as far as that is known. Of a first night it is not known
    /// how much the day brings: it is taken for half a day like what is known: more would hold the first morning up.
    pub(super) fn hits(&self) -> f64 {
        self.most_hits() * (DAY as f64 / 2.0 / self.stretches.len().max(1) as f64).max(1.0)
    }

    fn most_hits(&self) -> f64 {
        self.stretches.iter().map(|one| one.asked * one.most).sum()
    }

    /// Returns how much more was covered than was aimed at, by what the largest cluster would have covered: members are whole, come
    /// before they are needed and go after. What is not known of a day had no surplus.
    fn surplus(&self) -> f64 {
        let most = self.most_hits();
        let more: f64 = self.stretches.iter().map(|one| one.asked * (one.got - one.aimed)).sum();
        let known = self.stretches.len() as f64 / DAY as f64;
        if most > 0.0 { known * more / most } else { 0.0 }
    }

    fn aim(&self, keep: f64) -> f64 {
        let kept = |aim: f64| -> f64 { self.stretches.iter().map(|one| one.asked * one.within(aim)).sum() };
        let wanted = keep * self.stretches.iter().map(|one| one.asked * one.most).sum::<f64>();
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let middle = (low + high) / 2.0;
            if kept(middle) >= wanted {
                high = middle;
            } else {
                low = middle;
            }
        }
        high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stretch of time in which just so much was covered as was aimed at.
    fn add(day: &mut Day, keep: f64, asked: f64, least: f64, most: f64) -> f64 {
        let aim = day.add((1, 8), keep, asked, Rates { least, most, got: 0.0 });
        if let Some(newest) = day.stretches.back_mut() {
            newest.got = newest.aimed;
        }
        aim
    }

    #[test]
    fn what_busy_hours_cannot_have_quiet_ones_make_up_for() {
        let aim = |keep| {
            let mut day = Day::default();
            add(&mut day, keep, 300.0, 0.1, 0.5);
            add(&mut day, keep, 100.0, 0.2, 0.9);
            day.aim(keep)
        };
        // 0.95 of 300 * 0.5 + 100 * 0.9 is 228: 150 at most in the busy hour, so 78 in the quiet one.
        assert!((aim(0.95) - 0.78).abs() < 1e-6, "{}", aim(0.95));
        assert!((aim(1.0) - 0.9).abs() < 1e-6, "{}", aim(1.0));
        // 0.7 of it is 168, which 0.42 of either comes to.
        assert!((aim(0.7) - 0.42).abs() < 1e-6, "{}", aim(0.7));
    }

    #[test]
    fn a_day_is_remembered_and_other_bounds_are_another_cluster() {
        let mut day = Day::default();
        for _ in 0..DAY {
            add(&mut day, 0.5, 1.0, 0.0, 0.2);
        }
        let mut aim = 0.0;
        for _ in 0..DAY {
            aim = add(&mut day, 0.5, 1.0, 0.0, 0.6);
        }
        assert!((aim - 0.3).abs() < 1e-6, "{aim}");
        let aim = day.add((1, 9), 0.5, 1.0, Rates { least: 0.0, most: 0.8, got: 0.4 });
        assert!((aim - 0.4).abs() < 1e-6, "{aim}");
    }

    #[test]
    fn what_was_covered_beyond_the_aim_is_given_back() {
        let (mut day, mut aim) = (Day::default(), 0.0);
        let rates = Rates { least: 0.0, most: 0.8, got: 0.78 };
        for _ in 0..2 * DAY {
            aim = day.add((1, 8), 0.95, 1.0, rates);
        }
        // 0.95 of 0.8 is 0.76; of that no more than three times what may be lost is given up.
        assert!((0.68 - 1e-6..0.75).contains(&aim), "{aim}");
        for _ in 0..2 * DAY {
            aim = day.add((1, 8), 0.95, 1.0, Rates { got: 0.5, ..rates });
        }
        assert!(aim > 0.76, "{aim}");
    }
}
