//! What coordinators agree on about the cluster's size: the policy, and the load of the last two weeks, from which each of them
//! foresees what is to come. Members need none of it, so it is no part of the map and raises no epoch.

use kvhive_protocol::scaling::{
    MAX_OBSERVATIONS, MAX_STRETCHES, Observation, ScalingChange, ScalingPolicy, Stretch,
};
use kvhive_protocol::{Change, WireError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Stretches by which the clocks of two leaders may differ.
const MAX_AHEAD: u64 = 2;

/// The replicated memory of load and policy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Scaling {
    policy: ScalingPolicy,
    /// Ascending, at most [`MAX_OBSERVATIONS`].
    observations: VecDeque<Observation>,
    /// Ascending, at most [`MAX_STRETCHES`]. Written down by itself, as it came later.
    #[serde(skip)]
    stretches: VecDeque<Stretch>,
}

impl Scaling {
    /// Returns how the size may change.
    pub fn policy(&self) -> &ScalingPolicy {
        &self.policy
    }

    /// Returns how the load was, oldest first.
    pub fn observations(&self) -> impl ExactSizeIterator<Item = &Observation> {
        self.observations.iter()
    }

    /// Returns the newest observation.
    pub fn newest(&self) -> Option<&Observation> {
        self.observations.back()
    }

    /// Returns what sizes would have covered, oldest first.
    pub fn stretches(&self) -> impl ExactSizeIterator<Item = &Stretch> {
        self.stretches.iter()
    }

    /// Takes over what a cluster begins with.
    pub(crate) fn begin(&mut self, policy: ScalingPolicy) -> Result<(), WireError> {
        policy.check().map_err(|reason| WireError::rejected(format_args!("scaling: {reason}")))?;
        self.policy = policy;
        Ok(())
    }

    /// Changes the policy. Where it `binds`, a size must be one that it allows, and one that was asked for stays so; who went beyond it
    /// may go on changing the rest.
    pub(crate) fn change(&mut self, change: &ScalingChange, binds: bool) -> Result<(), WireError> {
        let policy = applied(self.policy, change)?;
        let was_held = matches!(change.manual, Change::Set(_)) || self.policy.holds_size();
        if binds && was_held && !policy.holds_size() {
            let (floor, ceiling) = (policy.floor, policy.ceiling);
            return Err(WireError::BeyondPolicy { size: policy.manual.unwrap_or_default(), floor, ceiling });
        }
        self.policy = policy;
        Ok(())
    }

    /// Asks for a size, whatever the policy allows.
    pub(crate) fn go_beyond(&mut self, size: u32) -> Result<(), WireError> {
        let change = ScalingChange { manual: Change::Set(size), ..ScalingChange::default() };
        self.policy = applied(self.policy, &change)?;
        Ok(())
    }

    /// Remembers how a stretch of time was. One that is not after the newest changes nothing: two leaders may tell of it.
    pub(crate) fn record(&mut self, observation: Observation) {
        if self.newest().is_some_and(|newest| observation.bucket <= newest.bucket) {
            return;
        }
        if self.observations.len() == MAX_OBSERVATIONS {
            self.observations.pop_front();
        }
        self.observations.push_back(observation);
    }

    /// Remembers what sizes would have covered in a stretch of time, unless that is not after the newest: two leaders may tell of it. Those
    /// that lie far ahead were told by a leader whose clock was wrong, and go.
    pub(crate) fn remember(&mut self, stretch: Stretch) -> Result<(), WireError> {
        stretch.check().map_err(|reason| WireError::rejected(format_args!("{reason}")))?;
        let is_wrong = |newest: &Stretch| newest.bucket.saturating_sub(stretch.bucket) > MAX_AHEAD;
        while self.stretches.back().is_some_and(is_wrong) {
            self.stretches.pop_back();
        }
        if self.stretches.back().is_some_and(|newest| stretch.bucket <= newest.bucket) {
            return Ok(());
        }
        if self.stretches.len() == MAX_STRETCHES {
            self.stretches.pop_front();
        }
        self.stretches.push_back(stretch);
        Ok(())
    }

    /// Takes over the stretches that were read beside it.
    pub(crate) fn with_stretches(self, stretches: Vec<Stretch>) -> Scaling {
        Scaling { stretches: stretches.into(), ..self }
    }

    /// Says what is impossible of one that was read.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.policy.check()?;
        if self.observations.len() > MAX_OBSERVATIONS {
            return Err(format!("{} observations, at most {MAX_OBSERVATIONS}", self.observations.len()));
        }
        if self.stretches.len() > MAX_STRETCHES {
            return Err(format!("{} stretches of time, at most {MAX_STRETCHES}", self.stretches.len()));
        }
        self.stretches.iter().try_for_each(Stretch::check)?;
        let ascend = self.stretches.iter().zip(self.stretches.iter().skip(1));
        if let Some((one, _)) = ascend.into_iter().find(|(one, next)| one.bucket >= next.bucket) {
            return Err(format!("stretches of time do not ascend after {}", one.bucket));
        }
        let ascend = self.observations.iter().zip(self.observations.iter().skip(1));
        match ascend.into_iter().find(|(one, next)| one.bucket >= next.bucket) {
            Some((one, _)) => Err(format!("observations do not ascend after {}", one.bucket)),
            None => Ok(()),
        }
    }
}

fn applied(policy: ScalingPolicy, change: &ScalingChange) -> Result<ScalingPolicy, WireError> {
    change.apply(policy).map_err(|reason| WireError::rejected(format_args!("{reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(size: u32) -> ScalingChange {
        ScalingChange { manual: Change::Set(size), ..ScalingChange::default() }
    }

    fn floor(floor: u32) -> ScalingChange {
        ScalingChange { floor: Some(floor), ..ScalingChange::default() }
    }

    fn of_two_to_eight() -> Scaling {
        let mut scaling = Scaling::default();
        scaling
            .begin(ScalingPolicy { floor: 2, ceiling: 8, ..ScalingPolicy::default() })
            .expect("it may be so");
        scaling
    }

    #[test]
    fn floor_and_ceiling_hold_sizes_that_are_asked_for() {
        let mut scaling = of_two_to_eight();
        for size in [2, 8] {
            assert_eq!(scaling.change(&asked(size), true), Ok(()));
            assert_eq!(scaling.policy().manual, Some(size));
        }
        for size in [1, 9] {
            let refused = scaling.change(&asked(size), true);
            assert_eq!(refused, Err(WireError::BeyondPolicy { size, floor: 2, ceiling: 8 }));
            assert_eq!(scaling.policy().manual, Some(8), "nothing has changed");
        }
        // With a ceiling of its own it is another matter.
        assert_eq!(scaling.change(&ScalingChange { ceiling: Some(9), ..asked(9) }, true), Ok(()));
        // Nor does the policy leave behind a size that it allowed.
        let narrowed = ScalingChange { ceiling: Some(4), ..ScalingChange::default() };
        let refused = scaling.change(&narrowed, true);
        assert_eq!(refused, Err(WireError::BeyondPolicy { size: 9, floor: 2, ceiling: 4 }));
        assert_eq!(scaling.change(&ScalingChange { manual: Change::Reset, ..narrowed }, true), Ok(()));
    }

    #[test]
    fn a_day_of_what_sizes_would_have_covered_is_remembered_and_each_stretch_once() {
        let stretch = |bucket| Stretch { bucket, floor: 1, ceiling: 8, ..Stretch::default() };
        let mut scaling = Scaling::default();
        for bucket in 1..=MAX_STRETCHES as u64 + 2 {
            for bucket in [bucket, bucket - 1] {
                assert_eq!(scaling.remember(stretch(bucket)), Ok(()));
            }
        }
        let known: Vec<u64> = scaling.stretches().map(|one| one.bucket).collect();
        assert_eq!((known.len(), known[0]), (MAX_STRETCHES, 3));
        assert_eq!(scaling.check(), Ok(()));
        assert!(
            scaling.remember(Stretch { floor: 9, ..stretch(999) }).is_err(),
            "the floor is above the ceiling"
        );
        let read = |stretches: &[Stretch]| Scaling::default().with_stretches(stretches.to_vec()).check();
        assert!(read(&[stretch(2), stretch(2)]).is_err(), "they do not ascend");
        assert!(read(&vec![stretch(1); MAX_STRETCHES + 1]).is_err(), "they are too many");
        assert!(read(&[Stretch { got_ppm: 1_000_001, ..stretch(2) }]).is_err());
        assert!(read(&[Stretch { floor: 9, ..stretch(2) }]).is_err());
    }

    #[test]
    fn a_leader_whose_clock_was_wrong_stops_no_day() {
        let stretch = |bucket| Stretch { bucket, floor: 1, ceiling: 8, ..Stretch::default() };
        let mut scaling = Scaling::default();
        for bucket in [10, 11, 5000, 5001, 12, 14, 13] {
            assert_eq!(scaling.remember(stretch(bucket)), Ok(()));
        }
        let known: Vec<u64> = scaling.stretches().map(|one| one.bucket).collect();
        assert_eq!(known, [10, 11, 12, 14], "and one that is a little late is no reason to forget");
        assert_eq!(scaling.check(), Ok(()));
    }

    #[test]
    fn who_goes_beyond_them_says_so_and_the_rest_can_be_changed_then() {
        let mut scaling = of_two_to_eight();
        assert_eq!(scaling.go_beyond(1), Ok(()));
        assert_eq!(scaling.policy().manual, Some(1));
        assert_eq!(scaling.change(&floor(3), true), Ok(()), "it is beyond the policy as it was");
        assert!(matches!(scaling.go_beyond(0), Err(WireError::Rejected { .. })), "there is one at least");
        // Within it again it is held again.
        assert_eq!(scaling.change(&floor(1), true), Ok(()));
        assert!(scaling.change(&floor(2), true).is_err());
        // Where not every coordinator knows of it, it binds nobody.
        assert_eq!(scaling.change(&asked(100), false), Ok(()));
    }
}
