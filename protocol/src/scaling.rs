//! What the cluster agrees on about its size: the load that it has seen, and what may be made of it.

use crate::tenant::Change;
use serde::{Deserialize, Serialize};

/// How long one observation lasts, in seconds.
pub const OBSERVATION_SECONDS: u64 = 300;
/// The most observations that are remembered: two weeks of them.
pub const MAX_OBSERVATIONS: usize = 4032;
/// The most members that a policy names.
pub const MAX_SIZE: u32 = 1024;
/// The longest time that a policy names, in seconds.
pub const MAX_WAIT_S: u32 = 86_400;
/// Buckets of reuse distances.
pub const REUSE_BUCKETS: usize = 128;
/// Buckets an octave has.
const PARTS: usize = 4;

/// The whole cluster's load during one stretch of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Observation {
    /// Which stretch: seconds since 1970 by [`OBSERVATION_SECONDS`].
    pub bucket: u64,
    /// Keys asked by match.
    pub asked: u64,
    /// Keys of those that were covered.
    pub covered: u64,
    /// Bytes of blocks taken in that were not there: what the working set grew by.
    pub new_bytes: u64,
}

/// The most stretches of time of which it is remembered what sizes would have covered: a day of them.
pub const MAX_STRETCHES: usize = 288;

/// What sizes of the cluster would have covered in one stretch of time, of what any size would have. Shares are in millionths.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stretch {
    /// Which, as of [`Observation::bucket`].
    pub bucket: u64,
    /// The fewest members that the policy allowed.
    pub floor: u32,
    /// The most.
    pub ceiling: u32,
    /// Keys asked that any size would have covered.
    pub asked: u64,
    /// What the fewest would have covered of them.
    pub least_ppm: u32,
    /// What the most would have.
    pub most_ppm: u32,
    /// What as many as there were would have.
    pub got_ppm: u32,
    /// What was aimed at.
    pub aimed_ppm: u32,
}

impl Stretch {
    /// Says what is impossible of it.
    ///
    /// # Errors
    /// The figure, its value and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(format!("{name} of a stretch of time is {value}, allowed is {least} to {most}"))
        };
        within("floor", self.floor, 1, MAX_SIZE)?;
        within("ceiling", self.ceiling, self.floor, MAX_SIZE)?;
        let shares = [self.least_ppm, self.most_ppm, self.got_ppm, self.aimed_ppm];
        shares.into_iter().try_for_each(|share| within("a share", share, 0, 1_000_000))
    }
}

/// How a device would have done with more or less room. Counters count since the device's start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reuse {
    /// Blocks that it has room for, all tiers.
    pub capacity_blocks: u64,
    /// Keys asked by match.
    pub asked: u64,
    /// Uses of a sample, scaled up, by how many blocks of room would have made them hits: see [`reuse_bucket`]. Always
    /// [`REUSE_BUCKETS`] of them.
    pub counts: Vec<u64>,
    /// The same of uses that no room looked at would have made hits.
    pub never: u64,
}

impl Default for Reuse {
    fn default() -> Self {
        Reuse { capacity_blocks: 0, asked: 0, counts: vec![0; REUSE_BUCKETS], never: 0 }
    }
}

/// What is made of a recommendation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScalingMode {
    /// Nothing, and none is made.
    #[default]
    Off,
    /// It is shown, and what would be done about it: a dry run.
    Advise,
    /// The cluster is given that size.
    Act,
}

/// How the cluster's size may change. Replicated; changed by operators only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScalingPolicy {
    /// What is made of a recommendation.
    pub mode: ScalingMode,
    /// The fewest members.
    pub floor: u32,
    /// The most members.
    pub ceiling: u32,
    /// How much of what a cluster of `ceiling` members would cover over a day is to be covered, in thousandths.
    pub keep_per_mille: u16,
    /// The least time between a change and one to more members, in seconds.
    pub up_cooldown_s: u32,
    /// How long fewer members must have been enough before they are, in seconds; also the least time since a change. After a change
    /// to more it is three times as long.
    pub down_cooldown_s: u32,
    /// How far ahead load is foreseen, in seconds: what it takes to start a member and fill it.
    pub look_ahead_s: u32,
    /// A request that waits for longer than this for its device, on average, asks for more members, in microseconds.
    pub max_queue_us: u32,
    /// The size that an operator has asked for, in place of what is recommended: within floor and ceiling, unless they went beyond
    /// them.
    pub manual: Option<u32>,
}

impl Default for ScalingPolicy {
    fn default() -> Self {
        ScalingPolicy {
            mode: ScalingMode::Off,
            floor: 1,
            ceiling: 16,
            keep_per_mille: 950,
            up_cooldown_s: 600,
            down_cooldown_s: 3600,
            look_ahead_s: 1800,
            max_queue_us: 20_000,
            manual: None,
        }
    }
}

/// What changes of the policy; the rest stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScalingChange {
    /// See [`ScalingPolicy::mode`].
    pub mode: Option<ScalingMode>,
    /// See [`ScalingPolicy::floor`].
    pub floor: Option<u32>,
    /// See [`ScalingPolicy::ceiling`].
    pub ceiling: Option<u32>,
    /// See [`ScalingPolicy::keep_per_mille`].
    pub keep_per_mille: Option<u16>,
    /// See [`ScalingPolicy::up_cooldown_s`].
    pub up_cooldown_s: Option<u32>,
    /// See [`ScalingPolicy::down_cooldown_s`].
    pub down_cooldown_s: Option<u32>,
    /// See [`ScalingPolicy::look_ahead_s`].
    pub look_ahead_s: Option<u32>,
    /// See [`ScalingPolicy::max_queue_us`].
    pub max_queue_us: Option<u32>,
    /// See [`ScalingPolicy::manual`].
    pub manual: Change<u32>,
}

impl ScalingChange {
    /// Returns the policy after the change.
    ///
    /// # Errors
    /// What is not allowed of it.
    pub fn apply(&self, mut policy: ScalingPolicy) -> Result<ScalingPolicy, String> {
        policy.mode = self.mode.unwrap_or(policy.mode);
        policy.floor = self.floor.unwrap_or(policy.floor);
        policy.ceiling = self.ceiling.unwrap_or(policy.ceiling);
        policy.keep_per_mille = self.keep_per_mille.unwrap_or(policy.keep_per_mille);
        policy.up_cooldown_s = self.up_cooldown_s.unwrap_or(policy.up_cooldown_s);
        policy.down_cooldown_s = self.down_cooldown_s.unwrap_or(policy.down_cooldown_s);
        policy.look_ahead_s = self.look_ahead_s.unwrap_or(policy.look_ahead_s);
        policy.max_queue_us = self.max_queue_us.unwrap_or(policy.max_queue_us);
        match self.manual {
            Change::Keep => {}
            Change::Reset => policy.manual = None,
            Change::Set(size) => policy.manual = Some(size),
        }
        policy.check()?;
        Ok(policy)
    }
}

impl ScalingPolicy {
    /// Says whether a size that was asked for is one that floor and ceiling allow; also where none was.
    pub fn holds_size(&self) -> bool {
        self.manual.is_none_or(|size| (self.floor..=self.ceiling).contains(&size))
    }

    /// Says what is not allowed of it.
    ///
    /// # Errors
    /// The key, its value and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(format!("{name} is {value}, allowed is {least} to {most}"))
        };
        within("floor", self.floor, 1, MAX_SIZE)?;
        within("ceiling", self.ceiling, self.floor, MAX_SIZE)?;
        within("keep_per_mille", u32::from(self.keep_per_mille), 500, 1000)?;
        within("up_cooldown_s", self.up_cooldown_s, 0, MAX_WAIT_S)?;
        within("down_cooldown_s", self.down_cooldown_s, 0, MAX_WAIT_S)?;
        within("look_ahead_s", self.look_ahead_s, 0, MAX_WAIT_S)?;
        within("max_queue_us", self.max_queue_us, 100, 60_000_000)?;
        match self.manual {
            // An operator may go beyond what the policy allows.
            Some(size) => within("size", size, 1, MAX_SIZE),
            None => Ok(()),
        }
    }
}

/// What the leader makes of the cluster's size. Shares are in millionths.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScalingReport {
    /// How the size may change.
    pub policy: ScalingPolicy,
    /// Members that serve and stay: up, and not being emptied.
    pub members: u32,
    /// What is recommended, since the end of the last stretch of time; none before that.
    pub advice: Option<Advice>,
    /// What is foreseen.
    pub forecasts: Vec<ForecastReport>,
    /// Stretches of time that this is known from.
    pub observations: u32,
}

/// A recommended size and its reason in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Advice {
    /// Members recommended.
    pub size: u32,
    /// Members that the load asks for by itself, before bounds in time.
    pub needed: u32,
    /// Why, in a word.
    pub why: String,
    /// Why, in words and numbers.
    pub reason: String,
    /// Share of keys that half as many members would have covered of late.
    pub hit_rate_half_ppm: u32,
    /// That as many as there are would.
    pub hit_rate_ppm: u32,
    /// That twice as many would.
    pub hit_rate_double_ppm: u32,
    /// That the recommended size would, under the load foreseen.
    pub hit_rate_expected_ppm: u32,
    /// That the most members allowed would, under the load foreseen.
    pub hit_rate_ceiling_ppm: u32,
    /// Load foreseen by that of late.
    pub growth_ppm: u32,
    /// How long requests wait for their device on average, in microseconds.
    pub queue_us: u64,
}

/// What is expected of one figure at one time, in thousandths of its unit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForecastReport {
    /// `rate` (keys asked a second), `growth` (bytes a second that are new) or `reuse` (share of keys that are covered).
    pub figure: String,
    /// How far ahead, in seconds.
    pub ahead_s: u32,
    /// What is most likely.
    pub value_milli: u64,
    /// Nine of ten times it is not less. Above the upper bound while too little has come of what was foreseen for an interval; see
    /// [`ForecastReport::bounds`].
    pub low_milli: u64,
    /// Nor more.
    pub high_milli: u64,
    /// Mean error of such forecasts by that of the value a season before: below a million is better. 0 while there is nothing to compare with; see
    /// [`ForecastReport::mase`].
    pub mase_ppm: u32,
    /// Share of such intervals that held. 0 before any has come to its time; see [`ForecastReport::coverage`].
    pub coverage_ppm: u32,
    /// After how many seconds the figure is taken to come back; 0 if it is not.
    pub season_s: u32,
}

impl ForecastReport {
    /// The upper bound by which builds of before say that none is known.
    const UNBOUNDED: u64 = u64::MAX;

    /// Returns how an interval is told that may not be known: then as one that nothing is in. Builds of before show both bounds, to two
    /// digits as what is most likely: as if that were exact.
    pub fn told(value_milli: u64, bounds: Option<(u64, u64)>) -> (u64, u64) {
        let high = value_milli.saturating_sub(1);
        bounds.unwrap_or((high + 1, high))
    }

    /// Returns the interval, if it is known.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        let is_known = self.low_milli <= self.high_milli && self.high_milli != Self::UNBOUNDED;
        is_known.then_some((self.low_milli, self.high_milli))
    }

    /// What stands for a share of 0 that was found: a build of before shows as much, which is next to nothing.
    const NONE_OF_IT: u32 = 1;

    /// Returns how a share in millionths is told that may not be known.
    pub fn figure_of(ppm: Option<u32>) -> u32 {
        ppm.map_or(0, |ppm| ppm.max(Self::NONE_OF_IT))
    }

    fn share(told: u32) -> f64 {
        if told == Self::NONE_OF_IT { 0.0 } else { f64::from(told) / 1e6 }
    }

    /// Returns the mean error of such forecasts by that of the value a season before; none where nothing has come, or nothing was off a season
    /// before.
    pub fn mase(&self) -> Option<f64> {
        (self.mase_ppm > 0).then(|| Self::share(self.mase_ppm))
    }

    /// Returns the share of such intervals that held; none before any has come to its time.
    pub fn coverage(&self) -> Option<f64> {
        // A leader of before says 0 of both or of neither.
        (self.mase_ppm > 0 || self.coverage_ppm > 0).then(|| Self::share(self.coverage_ppm))
    }
}

/// Returns the bucket of a reuse distance in blocks: each octave is parted in four, and the last takes what is farther.
pub fn reuse_bucket(blocks: u64) -> usize {
    let blocks = blocks.max(1);
    let octave = blocks.ilog2() as usize;
    let part = if octave >= 2 { blocks >> (octave - 2) & 3 } else { blocks << (2 - octave) & 3 };
    (octave * PARTS + part as usize).min(REUSE_BUCKETS - 1)
}

/// Returns the least number of blocks of a bucket, and that of the next.
pub fn reuse_range(bucket: usize) -> (f64, f64) {
    let octave = (1_u64 << (bucket / PARTS).min(63)) as f64;
    let part = (bucket % PARTS) as f64;
    let edge = |part: f64| octave * (1.0 + part / PARTS as f64);
    (edge(part), edge(part + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_nothing_is_told_apart_from_one_that_nobody_knows() {
        let told = |mase: Option<u32>, coverage: Option<u32>| ForecastReport {
            figure: "rate".to_owned(),
            ahead_s: 300,
            value_milli: 0,
            low_milli: 0,
            high_milli: 0,
            mase_ppm: ForecastReport::figure_of(mase),
            coverage_ppm: ForecastReport::figure_of(coverage),
            season_s: 0,
        };
        for (mase, coverage) in [(None, None), (None, Some(0)), (None, Some(900_000)), (Some(0), Some(0))] {
            let one = told(mase, coverage);
            let shares = [mase, coverage].map(|ppm| ppm.map(|ppm| f64::from(ppm) / 1e6));
            assert_eq!([one.mase(), one.coverage()], shares, "{one:?}");
        }
        // As one of before tells it: it has compared, and no interval held.
        let before = ForecastReport { mase_ppm: 700_000, coverage_ppm: 0, ..told(None, None) };
        assert_eq!((before.mase(), before.coverage()), (Some(0.7), Some(0.0)));
    }

    #[test]
    fn an_interval_that_nobody_knows_reads_back_as_none_and_shows_as_what_is_most_likely() {
        let with = |(low_milli, high_milli): (u64, u64)| ForecastReport {
            figure: "rate".to_owned(),
            ahead_s: 300,
            value_milli: 4_000,
            low_milli,
            high_milli,
            mase_ppm: 0,
            coverage_ppm: 0,
            season_s: 0,
        };
        for value in [0, 1, 4_000, u64::MAX] {
            let told = ForecastReport::told(value, None);
            assert_eq!(with(told).bounds(), None, "{value}");
            assert!(
                told.0.abs_diff(value) <= 1 && told.1.abs_diff(value) <= 1,
                "as one of before shows it: {told:?}"
            );
            for bounds in [(value, value), (0, value.min(u64::MAX - 1))] {
                let one = with(ForecastReport::told(value, Some(bounds)));
                assert_eq!(one.bounds(), Some(bounds).filter(|(_, high)| *high < u64::MAX), "{value}");
            }
        }
        assert_eq!(with((0, u64::MAX)).bounds(), None, "as one of before says it");
    }

    #[test]
    fn a_distance_is_within_its_bucket() {
        for blocks in (1..64).chain([1000, 123_456, 987_654_321]) {
            let (from, to) = reuse_range(reuse_bucket(blocks));
            let blocks = blocks as f64;
            assert!(from <= blocks && blocks < to && to <= 1.25 * from, "{blocks} {from} {to}");
        }
        assert_eq!(reuse_bucket(u64::MAX), REUSE_BUCKETS - 1);
    }
}
