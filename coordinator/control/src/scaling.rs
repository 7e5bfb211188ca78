//! What coordinators agree on about the cluster's size: the policy, and the load of the last two weeks, from which each of them
//! foresees what is to come. Members need none of it, so it is no part of the map and raises no epoch.

use kvhive_protocol::WireError;
use kvhive_protocol::scaling::{MAX_OBSERVATIONS, Observation, ScalingChange, ScalingPolicy};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The replicated memory of load and policy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Scaling {
    policy: ScalingPolicy,
    /// Ascending, at most [`MAX_OBSERVATIONS`].
    observations: VecDeque<Observation>,
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

    /// Takes over what a cluster begins with.
    pub(crate) fn begin(&mut self, policy: ScalingPolicy) -> Result<(), WireError> {
        policy.check().map_err(|reason| WireError::rejected(format_args!("scaling: {reason}")))?;
        self.policy = policy;
        Ok(())
    }

    pub(crate) fn change(&mut self, change: &ScalingChange) -> Result<(), WireError> {
        self.policy =
            change.apply(self.policy).map_err(|reason| WireError::rejected(format_args!("{reason}")))?;
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

    /// Says what is impossible of one that was read.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.policy.check()?;
        if self.observations.len() > MAX_OBSERVATIONS {
            return Err(format!("{} observations, at most {MAX_OBSERVATIONS}", self.observations.len()));
        }
        let ascend = self.observations.iter().zip(self.observations.iter().skip(1));
        match ascend.into_iter().find(|(one, next)| one.bucket >= next.bucket) {
            Some((one, _)) => Err(format!("observations do not ascend after {}", one.bucket)),
            None => Ok(()),
        }
    }
}
