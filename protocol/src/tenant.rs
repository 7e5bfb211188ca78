//! A tenant's rules: how its blocks are kept and stored, and whose pool of blocks it names. Kept in the cluster map, so that
//! every node and client has them. What a rule may say is the coordinators' to check.

use crate::ids::TenantId;
use crate::strategy::Strategy;
use serde::{Deserialize, Serialize};

/// How one tenant's blocks are kept and stored. What it does not say is as for everybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TenantRules {
    /// What decides which of its blocks leaves; none for each node's own strategy.
    pub strategy: Option<Strategy>,
    /// Bytes promised to it in the device tiers of the whole cluster, replicas counted. A promise, not a ceiling.
    pub device_quota_bytes: Option<u64>,
    /// Bytes promised to it in the host tiers of the whole cluster, replicas counted.
    pub host_quota_bytes: Option<u64>,
    /// Bytes promised to it in the disk tiers of the whole cluster, replicas counted.
    pub disk_quota_bytes: Option<u64>,
    /// Bits of a stored element: 4, 8, or 16 for blocks as they are.
    pub quantization_bits: Option<u8>,
    /// Stored bytes for 1000 raw ones, where no bits are said.
    pub compression_per_mille: Option<u16>,
    /// The tenant whose blocks it shares: it is another name for that one's pool, and has no other rules.
    pub shares_with: Option<TenantId>,
}

impl TenantRules {
    /// Says whether nodes keep its blocks apart from those of tenants without rules.
    pub fn is_kept_apart(&self) -> bool {
        let quotas = [self.device_quota_bytes, self.host_quota_bytes, self.disk_quota_bytes];
        self.strategy.is_some() || quotas.iter().any(Option::is_some)
    }

    /// Says whether they ask for a codec: nodes' own are for those that do not.
    pub fn asks_for_a_codec(&self) -> bool {
        self.quantization_bits.is_some() || self.compression_per_mille.is_some()
    }

    /// Says whether anything but sharing is ruled.
    pub fn has_own(&self) -> bool {
        TenantRules { shares_with: None, ..*self } != TenantRules::default()
    }
}

/// What becomes of one rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Change<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is as for everybody again.
    Reset,
    /// It says this from now on.
    Set(T),
}

impl<T> Change<T> {
    /// Makes another value of the one that is set.
    ///
    /// # Errors
    /// As `how` has them.
    pub fn try_map<U, E>(self, how: impl FnOnce(T) -> Result<U, E>) -> Result<Change<U>, E> {
        Ok(match self {
            Change::Keep => Change::Keep,
            Change::Reset => Change::Reset,
            Change::Set(value) => Change::Set(how(value)?),
        })
    }

    fn apply(self, rule: &mut Option<T>) {
        match self {
            Change::Keep => {}
            Change::Reset => *rule = None,
            Change::Set(value) => *rule = Some(value),
        }
    }
}

/// A change of some of a tenant's rules. Two changes of different rules hold both, in whatever order they come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RulesChange {
    /// Of [`TenantRules::strategy`].
    pub strategy: Change<Strategy>,
    /// Of [`TenantRules::device_quota_bytes`].
    pub device_quota_bytes: Change<u64>,
    /// Of [`TenantRules::host_quota_bytes`].
    pub host_quota_bytes: Change<u64>,
    /// Of [`TenantRules::disk_quota_bytes`].
    pub disk_quota_bytes: Change<u64>,
    /// Of [`TenantRules::quantization_bits`].
    pub quantization_bits: Change<u8>,
    /// Of [`TenantRules::compression_per_mille`].
    pub compression_per_mille: Change<u16>,
    /// Of [`TenantRules::shares_with`].
    pub shares_with: Change<TenantId>,
}

impl RulesChange {
    /// Returns `rules` with this change made.
    pub fn apply(&self, mut rules: TenantRules) -> TenantRules {
        self.strategy.apply(&mut rules.strategy);
        self.device_quota_bytes.apply(&mut rules.device_quota_bytes);
        self.host_quota_bytes.apply(&mut rules.host_quota_bytes);
        self.disk_quota_bytes.apply(&mut rules.disk_quota_bytes);
        self.quantization_bits.apply(&mut rules.quantization_bits);
        self.compression_per_mille.apply(&mut rules.compression_per_mille);
        self.shares_with.apply(&mut rules.shares_with);
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_different_rules_hold_both_in_either_order() {
        let before = TenantRules { host_quota_bytes: Some(7), ..TenantRules::default() };
        let faster = RulesChange { strategy: Change::Set(Strategy::Adaptive), ..RulesChange::default() };
        let poorer = RulesChange { host_quota_bytes: Change::Reset, ..RulesChange::default() };
        let after = TenantRules { strategy: Some(Strategy::Adaptive), ..TenantRules::default() };
        assert_eq!(poorer.apply(faster.apply(before)), after);
        assert_eq!(faster.apply(poorer.apply(before)), after);
        assert_eq!(RulesChange::default().apply(before), before);
    }
}
