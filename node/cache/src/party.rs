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

    /// Walks over the policies of its size classes, where there are any yet.
    pub(crate) fn rankings(&mut self) -> impl Iterator<Item = Option<&mut dyn Policy>> {
        self.rankings.iter_mut().map(|ranking| ranking.as_mut().map(Ranking::policy))
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

/// What a search for donors goes by.
pub(crate) struct Want<'a> {
    /// The tiers in question.
    pub(crate) tiers: &'a [Tier],
    /// Bytes of each tier.
    pub(crate) capacity: [u64; 3],
    /// The party that wants so many bytes more, which count as used.
    pub(crate) coming: Option<(u16, u64)>,
}

/// The parties that may give, found one by one: usually the first gives.
pub(crate) struct Donors {
    /// How much each owes.
    owing: Vec<(f64, u16)>,
}

/// Parties that owe alike of which the oldest block is looked for; of more, a sample that changes with each search.
const SAMPLED: usize = 16;

impl Donors {
    /// Finds who may give: who owes most is first, by use of the tiers over what is promised there. Parties without any block
    /// in question do not count.
    ///
    /// What nobody is promised is for all who are promised nothing, the commons among them, together: they owe alike. While who
    /// wants more is over its promise, whoever keeps within its own gives nothing, even if nobody else can.
    pub(crate) fn among(parties: &[Party], want: &Want<'_>) -> Donors {
        let promised = |at: usize| {
            let quotas = want.tiers.iter().filter_map(|tier| parties[at].rules.quota[*tier as usize]);
            quotas.reduce(u64::saturating_add)
        };
        let own = |at: usize| if at == usize::from(COMMONS) { None } else { promised(at) };
        let used = |at: usize| want.tiers.iter().map(|tier| parties[at].used[*tier as usize]).sum::<u64>();
        let coming =
            |at: usize| want.coming.filter(|(party, _)| usize::from(*party) == at).map_or(0, |one| one.1);
        let (mut bound, mut rest_used) = (0u64, 0u64);
        for at in 0..parties.len() {
            match own(at) {
                Some(bytes) => bound = bound.saturating_add(bytes),
                None => rest_used += used(at) + coming(at),
            }
        }
        let capacity: u64 = want.tiers.iter().map(|tier| want.capacity[*tier as usize]).sum();
        let rest = capacity.saturating_sub(bound).max(promised(usize::from(COMMONS)).unwrap_or(0));
        let of_rest = rest_used as f64 / rest.max(1) as f64;
        let ratio = |at: usize| match own(at) {
            Some(bytes) => (used(at) + coming(at)) as f64 / bytes.max(1) as f64,
            None => of_rest,
        };
        let is_over = want.coming.is_some_and(|(party, _)| ratio(usize::from(party)) > 1.0);
        let mut owing = Vec::with_capacity(parties.len());
        for at in (0..parties.len()).filter(|at| used(*at) > 0) {
            let owes = ratio(at);
            if owes > 1.0 || !is_over {
                owing.push((owes, at as u16));
            }
        }
        Donors { owing }
    }

    /// Returns who gives next; among those that owe alike, whose coldest block is oldest. `turn` is another one in each search.
    pub(crate) fn next(&mut self, turn: u64, age: impl Fn(u16) -> u32) -> Option<u16> {
        let most = self.owing.iter().map(|(owes, _)| *owes).reduce(f64::max)?;
        let tied = self.owing.iter().filter(|(owes, _)| *owes == most).count();
        let step = tied.div_ceil(SAMPLED);
        let alike = (0..self.owing.len()).filter(|at| self.owing[*at].0 == most);
        let sample = alike.skip((turn % step as u64) as usize).step_by(step);
        let first = if tied == 1 {
            sample.min()
        } else {
            sample.min_by_key(|at| (std::cmp::Reverse(age(self.owing[*at].1)), *at))
        };
        first.map(|at| self.owing.remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(used: u64, quota: Option<u64>) -> Party {
        let rules = Rules { strategy: Strategy::Lru, quota: [quota, None, None] };
        Party { used: [used, 0, 0], ..Party::new(rules, 1, 8, 0) }
    }

    /// Of a device of 100 bytes; the later a party comes, the older is its coldest block.
    fn giving(parties: &[Party], coming: Option<(u16, u64)>) -> Vec<u16> {
        let want = Want { tiers: &[Tier::Device], capacity: [100, 0, 0], coming };
        let mut donors = Donors::among(parties, &want);
        std::iter::from_fn(|| donors.next(0, u32::from)).collect()
    }

    #[test]
    fn of_very_many_parties_that_owe_alike_every_one_gives_when_its_turn_comes() {
        let parties: Vec<Party> = (0..100).map(|_| party(1, None)).collect();
        let want = Want { tiers: &[Tier::Device], capacity: [100, 0, 0], coming: None };
        let first = |turn, age: &dyn Fn(u16) -> u32| Donors::among(&parties, &want).next(turn, age);
        let oldest = |party: u16| u32::from(party == 41);
        assert!((0..20).any(|turn| first(turn, &oldest) == Some(41)));
        let mut donors = Donors::among(&parties, &want);
        let mut all: Vec<u16> = std::iter::from_fn(|| donors.next(3, u32::from)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn who_is_furthest_over_its_promise_gives_first() {
        // 100 bytes, of which 60 are promised: the commons' are 40.
        let parties = [party(40, None), party(35, Some(30)), party(25, Some(30))];
        assert_eq!(giving(&parties, None), [1, 0, 2]);
        let parties = [party(70, None), party(30, Some(30)), party(0, Some(30))];
        assert_eq!(giving(&parties, None), [0, 1], "idle room was lent");
    }

    #[test]
    fn who_has_all_it_was_promised_and_wants_more_gives_itself_or_nobody_does() {
        let full = [party(40, None), party(30, Some(30)), party(30, Some(30))];
        for (wants, gives) in [(COMMONS, 0), (1, 1), (2, 2)] {
            assert_eq!(giving(&full, Some((wants, 1))), [gives]);
        }
        let full = [party(40, None), party(0, Some(0)), party(60, Some(60))];
        assert_eq!(giving(&full, Some((1, 10))), [], "it has nothing to give, and the others owe nothing");
    }

    #[test]
    fn parties_without_a_promise_share_what_is_left_and_the_oldest_block_gives() {
        let parties = [party(10, None), party(5, None), party(85, Some(85))];
        assert_eq!(giving(&parties, Some((COMMONS, 5))), [1, 0]);
        let parties = [party(5, None), party(5, None), party(90, Some(85))];
        assert_eq!(giving(&parties, Some((COMMONS, 5))), [2, 1, 0], "the rest is within its share");
    }
}
