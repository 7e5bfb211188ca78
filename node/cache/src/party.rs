//! Parties: who shares a budget and a policy. Tenants without rules of their own are one party, the commons; every other
//! tenant is one of its own.
//!
//! A quota is a promise of room, not a ceiling: idle room is lent to whoever can use it, and when there is none left, it is
//! the party furthest over its quota that gives (weighted max-min fairness, as in FairRide: Pu et al., NSDI 2016).

use crate::block::Tier;
use crate::policy::{self, Policy, Request, Strategy, Verdict, Visit};

/// Number of the party of all tenants without rules of their own.
pub(crate) const COMMONS: u16 = 0;

/// Bytes promised per tier, fastest first; `None` promises nothing of its own.
pub type Quota = [Option<u64>; 3];

/// How the blocks of one party are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// What decides which of its blocks leaves.
    pub strategy: Strategy,
    /// What it is promised.
    pub quota: Quota,
}

impl Rules {
    /// Rules without a promise.
    pub fn new(strategy: Strategy) -> Rules {
        Rules { strategy, quota: [None; 3] }
    }
}

/// A policy and the request that it was told of last.
pub(crate) struct Ranking {
    policy: Box<dyn Policy>,
    told: Option<u64>,
}

impl Ranking {
    pub(crate) fn begin(&mut self, request: &Request) {
        if self.told != Some(request.number) {
            self.told = Some(request.number);
            self.policy.begin(request);
        }
    }

    pub(crate) fn policy(&mut self) -> &mut dyn Policy {
        &mut *self.policy
    }

    pub(crate) fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        self.policy.victim(newcomer, may_go)
    }
}

/// One party's standing.
pub(crate) struct Party {
    pub(crate) rules: Rules,
    /// Bytes of frames in use per tier.
    pub(crate) used: [u64; 3],
    rankings: Vec<Option<Ranking>>,
    capacity: u32,
    seed: u64,
}

impl Party {
    pub(crate) fn new(rules: Rules, classes: usize, capacity: u32, seed: u64) -> Party {
        let rankings = (0..classes).map(|_| None).collect();
        Party { rules, used: [0; 3], rankings, capacity, seed }
    }

    /// Returns the ranking of its blocks of one size class.
    pub(crate) fn ranking(&mut self, class: u8) -> &mut Ranking {
        let (strategy, capacity, seed) = (self.rules.strategy, self.capacity, self.seed);
        let make = || Ranking { policy: policy::build(strategy, capacity, seed), told: None };
        self.rankings[usize::from(class)].get_or_insert_with(make)
    }

    /// Forgets every ranking; they are made anew by the strategy of the day.
    pub(crate) fn forget(&mut self) {
        self.rankings.iter_mut().for_each(|ranking| *ranking = None);
    }

    /// Returns the bytes that its policies hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.rankings.iter().flatten().map(|ranking| ranking.policy.memory_bytes()).sum()
    }
}

/// Returns the parties by how much they owe, who owes most first: use of the tiers over what is promised there. Parties
/// without any block in question do not count. What nobody is promised is the commons'.
pub(crate) fn donors(parties: &[Party], tiers: &[Tier], capacity: [u64; 3]) -> Vec<u16> {
    let of = |values: &dyn Fn(usize) -> u64| -> u64 { tiers.iter().map(|tier| values(*tier as usize)).sum() };
    let promised = |party: &Party| of(&|tier| party.rules.quota[tier].unwrap_or(0));
    let capacity = of(&|tier| capacity[tier]);
    let bound: u64 = parties.iter().skip(1).map(promised).fold(0, u64::saturating_add);
    let mut owing: Vec<(f64, u16)> = Vec::with_capacity(parties.len());
    for (at, party) in parties.iter().enumerate() {
        let used = of(&|tier| party.used[tier]);
        if used > 0 {
            let own = promised(party);
            let share = if at == 0 { own.max(capacity.saturating_sub(bound)) } else { own };
            owing.push((used as f64 / (share.max(1)) as f64, at as u16));
        }
    }
    owing.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
    owing.into_iter().map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(used: u64, quota: Option<u64>) -> Party {
        let rules = Rules { strategy: Strategy::Lru, quota: [quota, None, None] };
        Party { used: [used, 0, 0], ..Party::new(rules, 1, 8, 0) }
    }

    #[test]
    fn who_is_furthest_over_its_promise_gives_first() {
        // 100 bytes, of which 60 are promised: the commons' are 40.
        let parties = [party(40, None), party(35, Some(30)), party(25, Some(30))];
        assert_eq!(donors(&parties, &[Tier::Device], [100, 0, 0]), vec![1, 0, 2]);
        let parties = [party(70, None), party(30, Some(30)), party(0, Some(30))];
        assert_eq!(donors(&parties, &[Tier::Device], [100, 0, 0]), vec![0, 1], "idle room was lent");
    }

    #[test]
    fn a_party_without_a_promise_gives_before_any_that_keeps_within_its_own() {
        let parties = [party(0, None), party(5, None), party(90, Some(95))];
        assert_eq!(donors(&parties, &[Tier::Device], [100, 0, 0]), vec![1, 2]);
    }
}
