//! Parties: who shares a budget and a policy. Tenants without rules of their own are one party, the commons; every other
//! tenant is one of its own.
//!
//! A quota is a promise of room, not a ceiling: idle room is lent to whoever can use it, and when there is none left, it is
//! the party furthest over its quota that gives (weighted max-min fairness, as in FairRide: Pu et al., NSDI 2016).

use crate::block::Tier;
use crate::declined::Declined;
use crate::policy::Strategy;
use crate::ranking::Ranking;

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

/// One party's standing.
pub(crate) struct Party {
    pub(crate) rules: Rules,
    /// Bytes of frames in use per tier.
    pub(crate) used: [u64; 3],
    /// Its blocks that were declined last.
    pub(crate) declined: Declined,
    rankings: Vec<Option<Ranking>>,
    capacity: u32,
    seed: u64,
    /// It holds a part of the shard only.
    is_apart: bool,
}

impl Party {
    /// Makes the party number `at`.
    pub(crate) fn new(at: usize, rules: Rules, classes: usize, capacity: u32, seed: u64) -> Party {
        let rankings = (0..classes).map(|_| None).collect();
        let declined = Declined::default();
        Party {
            rules,
            used: [0; 3],
            declined,
            rankings,
            capacity,
            seed,
            is_apart: at != usize::from(COMMONS),
        }
    }

    /// Returns the ranking of its blocks of one size class.
    pub(crate) fn ranking(&mut self, class: u8) -> &mut Ranking {
        let (strategy, capacity, seed) = (self.rules.strategy, self.capacity, self.seed);
        let make = || Ranking::new(strategy, capacity, seed, self.is_apart);
        self.rankings[usize::from(class)].get_or_insert_with(make)
    }

    /// Walks over the rankings of its size classes, where there are any yet.
    pub(crate) fn rankings(&mut self) -> impl Iterator<Item = Option<&mut Ranking>> {
        self.rankings.iter_mut().map(Option::as_mut)
    }

    /// Forgets every ranking; they are made anew by the strategy of the day.
    pub(crate) fn forget(&mut self) {
        self.rankings.iter_mut().for_each(|ranking| *ranking = None);
    }

    /// Says of how many blocks of a class its policy has numbers, if it has any of its own.
    pub(crate) fn numbered(&self, class: u8) -> Option<usize> {
        self.rankings[usize::from(class)].as_ref().and_then(Ranking::numbered)
    }

    /// Returns the bytes that its policies hold, and what was declined by them.
    pub(crate) fn memory_bytes(&self) -> usize {
        let rankings: usize = self.rankings.iter().flatten().map(Ranking::memory_bytes).sum();
        rankings + self.declined.memory_bytes()
    }
}

/// The tiers that a block can be written to. What is promised in them is promised in both together.
pub(crate) const MEMORY: &[Tier] = &[Tier::Device, Tier::Host];
/// The tier below them; what is promised there is of no weight in memory, nor the other way round.
pub(crate) const DISK: &[Tier] = &[Tier::Disk];

/// What a search for donors goes by.
pub(crate) struct Want<'a> {
    /// The tiers whose use and promises count.
    pub(crate) by: &'a [Tier],
    /// The tiers that are given from.
    pub(crate) from: &'static [Tier],
    /// Bytes of each tier.
    pub(crate) capacity: [u64; 3],
    /// The party that wants so many bytes more, which count as used.
    pub(crate) coming: Option<(u16, u64)>,
}

/// How far each party is over what it is promised of some tiers. What nobody is promised is for all who are promised nothing,
/// the commons among them, together: they owe alike.
struct Standing<'a> {
    parties: &'a [Party],
    by: &'a [Tier],
    coming: Option<(u16, u64)>,
    of_rest: f64,
}

impl<'a> Standing<'a> {
    fn of(
        parties: &'a [Party],
        by: &'a [Tier],
        capacity: &[u64; 3],
        coming: Option<(u16, u64)>,
    ) -> Standing<'a> {
        let mut standing = Standing { parties, by, coming, of_rest: 0.0 };
        let (mut bound, mut rest_used) = (0u64, 0u64);
        for at in 0..parties.len() {
            match standing.own(at) {
                Some(bytes) => bound = bound.saturating_add(bytes),
                None => rest_used += standing.wants(at),
            }
        }
        let capacity: u64 = by.iter().map(|tier| capacity[*tier as usize]).sum();
        let of_commons = promised(&parties[usize::from(COMMONS)], by).unwrap_or(0);
        let rest = capacity.saturating_sub(bound).max(of_commons);
        standing.of_rest = rest_used as f64 / rest.max(1) as f64;
        standing
    }

    /// Returns what a party is promised of its own.
    fn own(&self, at: usize) -> Option<u64> {
        if at == usize::from(COMMONS) { None } else { promised(&self.parties[at], self.by) }
    }

    /// Returns what a party uses, with what is coming.
    fn wants(&self, at: usize) -> u64 {
        let coming = self.coming.filter(|(party, _)| usize::from(*party) == at);
        used(&self.parties[at], self.by) + coming.map_or(0, |one| one.1)
    }

    fn owes(&self, at: usize) -> f64 {
        self.own(at).map_or(self.of_rest, |bytes| self.wants(at) as f64 / bytes.max(1) as f64)
    }

    /// Says whether who wants more is over its promise. While it is, whoever keeps within its own gives nothing, even if nobody
    /// else can.
    fn is_over(&self) -> bool {
        self.coming.is_some_and(|(party, _)| self.owes(usize::from(party)) > 1.0)
    }

    /// Says whether what a party has here may be taken on another's account: it is over, or theirs is one account.
    fn gives_for(&self, at: usize, other: usize) -> bool {
        at == other || self.owes(at) > 1.0 || (self.own(at).is_none() && self.own(other).is_none())
    }
}

fn promised(party: &Party, tiers: &[Tier]) -> Option<u64> {
    tiers.iter().filter_map(|tier| party.rules.quota[*tier as usize]).reduce(u64::saturating_add)
}

fn used(party: &Party, tiers: &[Tier]) -> u64 {
    tiers.iter().map(|tier| party.used[*tier as usize]).sum()
}

/// A party that may give.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Donor {
    owes: f64,
    pub(crate) party: u16,
    /// The tiers that it gives from.
    pub(crate) from: &'static [Tier],
}

/// The parties that may give, found one by one: usually the first gives.
pub(crate) struct Donors {
    owing: Vec<Donor>,
}

/// Parties that owe alike of which the oldest block is looked for; of more, a sample that changes with each search.
const SAMPLED: usize = 16;

impl Donors {
    /// Finds who may give: who owes most is first, by use of the tiers over what is promised there. Parties without any block
    /// to give do not count.
    pub(crate) fn among(parties: &[Party], want: &Want<'_>) -> Donors {
        let standing = Standing::of(parties, want.by, &want.capacity, want.coming);
        let is_over = standing.is_over();
        let mut owing = Vec::with_capacity(parties.len());
        for at in (0..parties.len()).filter(|at| used(&parties[*at], want.from) > 0) {
            let owes = standing.owes(at);
            if owes > 1.0 || !is_over {
                owing.push(Donor { owes, party: at as u16, from: want.from });
            }
        }
        Donors { owing }
    }

    /// Finds who may give when every tier is full: memory moves a block of so many bytes of this party down, so that the disk
    /// must lose one. What leaves the disk is a matter of its use and promises alone. But who owes there may give from memory
    /// instead, where it costs nobody else a promise: what leaves is its strategy's to say, wherever it rests.
    pub(crate) fn below(parties: &[Party], capacity: &[u64; 3], (moves, bytes): (u16, u64)) -> Donors {
        let memory = Standing::of(parties, MEMORY, capacity, None);
        let disk = Standing::of(parties, DISK, capacity, Some((moves, bytes)));
        let is_over = disk.is_over();
        let mut owing = Vec::with_capacity(parties.len());
        for (at, party) in parties.iter().enumerate() {
            let owes = disk.owes(at);
            if owes <= 1.0 && is_over {
                continue;
            }
            let from = match (used(party, DISK) > 0, used(party, MEMORY) > 0) {
                (on_disk, true) if memory.gives_for(at, usize::from(moves)) => {
                    if on_disk {
                        &Tier::ALL
                    } else {
                        MEMORY
                    }
                }
                (true, _) => DISK,
                _ => continue,
            };
            owing.push(Donor { owes, party: at as u16, from });
        }
        Donors { owing }
    }

    /// Returns who gives next; among those that owe alike, whose coldest block is oldest. `turn` is another one in each search.
    pub(crate) fn next(&mut self, turn: u64, age: impl Fn(&Donor) -> u32) -> Option<Donor> {
        let most = self.owing.iter().map(|donor| donor.owes).reduce(f64::max)?;
        let tied = self.owing.iter().filter(|donor| donor.owes == most).count();
        let step = tied.div_ceil(SAMPLED);
        let alike = (0..self.owing.len()).filter(|at| self.owing[*at].owes == most);
        let sample = alike.skip((turn % step as u64) as usize).step_by(step);
        let first = if tied == 1 {
            sample.min()
        } else {
            sample.min_by_key(|at| (std::cmp::Reverse(age(&self.owing[*at])), *at))
        };
        first.map(|at| self.owing.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(used: u64, quota: Option<u64>) -> Party {
        let rules = Rules { strategy: Strategy::Lru, quota: [quota, None, None] };
        Party { used: [used, 0, 0], ..Party::new(1, rules, 1, 8, 0) }
    }

    /// Of a device of 100 bytes; the later a party comes, the older is its coldest block.
    fn giving(parties: &[Party], coming: Option<(u16, u64)>) -> Vec<u16> {
        all(Donors::among(parties, &Want { by: MEMORY, from: MEMORY, capacity: [100, 0, 0], coming }))
    }

    fn all(mut donors: Donors) -> Vec<u16> {
        std::iter::from_fn(|| donors.next(0, |donor| donor.party.into())).map(|donor| donor.party).collect()
    }

    #[test]
    fn of_very_many_parties_that_owe_alike_every_one_gives_when_its_turn_comes() {
        let parties: Vec<Party> = (0..100).map(|_| party(1, None)).collect();
        let want = Want { by: MEMORY, from: MEMORY, capacity: [100, 0, 0], coming: None };
        let first = |turn| {
            Donors::among(&parties, &want)
                .next(turn, |donor| u32::from(donor.party == 41))
                .map(|one| one.party)
        };
        assert!((0..20).any(|turn| first(turn) == Some(41)));
        let mut all = all(Donors::among(&parties, &want));
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
