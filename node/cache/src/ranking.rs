//! A policy as one party has it for one size class. The policies of parties with rules of their own know blocks by numbers of
//! their own, dense among what the party holds: what they remember of each block, ghosts too, is sized by the most that it held at
//! once, not by all that the shard could hold (but the sketch of `w-tinylfu`). The commons, which have most of a shard as a rule, are spared the look-up.

use crate::policy::{self, ChoiceReport, Hint, Policy, Removal, Request, Strategy, Verdict, Visit};
use crate::table::Table;
use kvhive_protocol::BlockKey;

/// Blocks that a policy of dense numbers is sized for at least, and steps in which it is told that there are more.
const STEP: usize = 1024;

/// A policy and the request that it was told of last.
pub(crate) struct Ranking {
    policy: Box<dyn Policy>,
    told: Option<Request>,
    /// None where the policy knows blocks by their records.
    numbers: Option<Numbers>,
}

impl Ranking {
    /// Ranks nothing yet, of at most `capacity` blocks; `dense` by numbers of its own.
    pub(crate) fn new(strategy: Strategy, capacity: u32, seed: u64, dense: bool) -> Ranking {
        let numbers = dense.then(|| Numbers::new(capacity));
        let mut policy = policy::build(strategy, capacity, seed);
        if dense {
            policy.held(STEP);
        }
        Ranking { policy, told: None, numbers }
    }

    /// The calls that follow are of this request: a new one, or the one at hand of which more may be known by now.
    pub(crate) fn begin(&mut self, request: &Request) {
        match self.told.replace(*request) {
            Some(told) if told.number == request.number => {
                if told != *request {
                    self.policy.about(request);
                }
            }
            _ => self.policy.begin(request),
        }
    }

    /// See [`Policy::hit`].
    pub(crate) fn hit(&mut self, at: u32, visit: &Visit) {
        if let Some(number) = self.number(at) {
            let visit = self.known(visit);
            self.policy.hit(number, &visit);
        }
    }

    /// See [`Policy::inserted`]; one that has children already is no leaf.
    pub(crate) fn inserted(&mut self, at: u32, visit: &Visit, has_children: bool) {
        let visit = self.known(visit);
        let number = match &mut self.numbers {
            None => at,
            Some(numbers) => {
                let before = numbers.most();
                let number = numbers.enter(at);
                if numbers.most() > before && numbers.most().is_multiple_of(STEP) {
                    self.policy.held(numbers.most() + STEP);
                }
                number
            }
        };
        self.policy.inserted(number, &visit);
        if has_children {
            self.policy.set_leaf(number, false);
        }
    }

    /// See [`Policy::refused`].
    pub(crate) fn refused(&mut self, visit: &Visit) {
        let visit = self.known(visit);
        self.policy.refused(&visit);
    }

    /// See [`Policy::victim`].
    pub(crate) fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let newcomer = self.known(newcomer);
        let Some(numbers) = &self.numbers else { return self.policy.victim(&newcomer, may_go) };
        match self.policy.victim(&newcomer, &mut |number| may_go(numbers.record(number))) {
            Verdict::Evict(number) => Verdict::Evict(numbers.record(number)),
            verdict => verdict,
        }
    }

    /// See [`Policy::next_to_leave`].
    pub(crate) fn next_to_leave(&mut self, may_go: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let Some(numbers) = &self.numbers else { return self.policy.next_to_leave(may_go) };
        let number = self.policy.next_to_leave(&mut |number| may_go(numbers.record(number)));
        number.map(|number| numbers.record(number))
    }

    /// See [`Policy::hinted`].
    pub(crate) fn hinted(&mut self, at: u32, key: &BlockKey, hint: Hint) {
        if let Some(number) = self.number(at) {
            self.policy.hinted(number, key, hint);
        }
    }

    /// See [`Policy::report`].
    pub(crate) fn report(&self) -> Option<ChoiceReport> {
        self.policy.report()
    }

    /// See [`Policy::adjust`].
    pub(crate) fn adjust(&mut self) {
        self.policy.adjust();
    }

    /// See [`Policy::removed`].
    pub(crate) fn removed(&mut self, at: u32, key: &BlockKey, why: Removal) {
        if let Some(number) = self.number(at) {
            self.policy.removed(number, key, why);
            if let Some(numbers) = &mut self.numbers {
                numbers.leave(at, number);
            }
        }
    }

    /// See [`Policy::set_leaf`].
    pub(crate) fn set_leaf(&mut self, at: u32, leaf: bool) {
        if let Some(number) = self.number(at) {
            self.policy.set_leaf(number, leaf);
        }
    }

    /// See [`Policy::coldest`].
    pub(crate) fn coldest(&mut self, limit: usize, cold: &mut Vec<u32>) {
        let from = cold.len();
        self.policy.coldest(limit, cold);
        if let Some(numbers) = &self.numbers {
            cold[from..].iter_mut().for_each(|one| *one = numbers.record(*one));
        }
    }

    /// Returns how many blocks it has numbers for; none where it needs none.
    pub(crate) fn numbered(&self) -> Option<usize> {
        self.numbers.as_ref().map(|numbers| numbers.table.len())
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.policy.memory_bytes() + self.numbers.as_ref().map_or(0, Numbers::memory_bytes)
    }

    fn number(&self, at: u32) -> Option<u32> {
        self.numbers.as_ref().map_or(Some(at), |numbers| numbers.of(at))
    }

    /// Returns a visit as the policy knows it. A parent that is ranked elsewhere, or not yet, is none to it.
    fn known(&self, visit: &Visit) -> Visit {
        let parent = visit.parent.and_then(|parent| self.number(parent));
        Visit { parent, ..*visit }
    }
}

/// Numbers for records, as few as there were records at a time at most.
struct Numbers {
    /// The record of each number; of one that is free the number that is free after it.
    records: Vec<u32>,
    free: u32,
    table: Table,
    limit: usize,
}

/// No number.
const NOBODY: u32 = u32::MAX;

impl Numbers {
    fn new(limit: u32) -> Numbers {
        let limit = limit as usize;
        Numbers { records: Vec::new(), free: NOBODY, table: Table::new(limit), limit }
    }

    /// Returns the bytes that so many take at most.
    #[cfg(test)]
    const fn most_bytes(limit: usize) -> usize {
        limit * size_of::<u32>() + Table::bytes(limit)
    }

    /// Spreads a record's number over the highest bits, which a table looks at.
    fn spread(at: u32) -> u64 {
        u64::from(at).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Returns how many records there were at once at most.
    fn most(&self) -> usize {
        self.records.len()
    }

    fn of(&self, at: u32) -> Option<u32> {
        self.table.find(Numbers::spread(at), |number| self.record(number) == at)
    }

    fn record(&self, number: u32) -> u32 {
        self.records[number as usize]
    }

    fn enter(&mut self, at: u32) -> u32 {
        debug_assert!(self.of(at).is_none(), "record {at} is ranked once");
        let number = if self.free == NOBODY {
            if self.records.len() == self.records.capacity() {
                let more = (self.records.len() / 8).max(STEP);
                self.records.reserve_exact(more.min(self.limit.saturating_sub(self.records.len())).max(1));
            }
            self.records.push(at);
            self.records.len() as u32 - 1
        } else {
            let number = self.free;
            self.free = std::mem::replace(&mut self.records[number as usize], at);
            number
        };
        let records = &self.records;
        self.table.insert(Numbers::spread(at), number, |other| Numbers::spread(records[other as usize]));
        number
    }

    fn leave(&mut self, at: u32, number: u32) {
        if self.table.remove(Numbers::spread(at), number) {
            self.records[number as usize] = std::mem::replace(&mut self.free, number);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.records.capacity() * size_of::<u32>() + self.table.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(number: u32, parent: Option<u32>) -> Visit {
        let mut key = [3; 32];
        key[..4].copy_from_slice(&number.wrapping_mul(0x9E37_79B9).to_le_bytes());
        key[8..12].copy_from_slice(&number.to_le_bytes());
        Visit { key: BlockKey::from_bytes(key), parent, depth: u32::from(parent.is_some()), partial: false }
    }

    /// Serves a little of everything from a pool of eight blocks with records that lie `apart`; returns who left.
    fn left(strategy: Strategy, dense: bool, apart: u32) -> Vec<u32> {
        let mut ranking = Ranking::new(strategy, 8 * apart, 1, dense);
        // The block of each record, and its child's.
        let mut here: Vec<Option<u32>> = vec![None; 8];
        let mut left = Vec::new();
        for round in 0..300u32 {
            let number = if round % 3 == 0 { round % 5 } else { round };
            ranking.begin(&Request { number: round.into(), blocks: 1, ..Request::default() });
            let visit = visit(number, None);
            if let Some(slot) = here.iter().position(|one| *one == Some(number)) {
                ranking.hit(slot as u32 * apart, &visit);
                continue;
            }
            let mut slot = here.iter().position(Option::is_none);
            if slot.is_none() {
                let mut may_go = |at: u32| at.is_multiple_of(apart) && here[(at / apart) as usize].is_some();
                match ranking.victim(&visit, &mut may_go) {
                    Verdict::Evict(at) => {
                        let gone = here[(at / apart) as usize].take().expect("it was there");
                        ranking.removed(at, &self::visit(gone, None).key, Removal::Evicted);
                        left.push(gone);
                        slot = Some((at / apart) as usize);
                    }
                    _ => {
                        ranking.refused(&visit);
                        continue;
                    }
                }
            }
            let slot = slot.expect("one is free now");
            ranking.inserted(slot as u32 * apart, &visit, false);
            here[slot] = Some(number);
        }
        left
    }

    #[test]
    fn a_policy_decides_alike_whatever_it_knows_its_blocks_by() {
        for strategy in Strategy::ALL {
            let by_record = left(strategy, false, 1);
            // Those that decline what never comes back let few leave.
            assert!(by_record.len() > 30, "{strategy}: {by_record:?}");
            assert_eq!(left(strategy, true, 1), by_record, "{strategy}");
        }
    }

    #[test]
    fn what_a_party_remembers_of_its_blocks_is_sized_by_what_it_holds() {
        const FRAMES: u32 = 1 << 20;
        let bytes = |dense, blocks: u32| {
            let mut ranking = Ranking::new(Strategy::Lru, FRAMES, 1, dense);
            for number in 0..blocks {
                // Anywhere in the shard.
                ranking.inserted(number.wrapping_mul(1039 * 101) % FRAMES, &visit(number, None), false);
            }
            ranking.memory_bytes()
        };
        assert!(bytes(true, 1000) < 64 << 10 && bytes(false, 1000) > 4 << 20);
        for blocks in [10_000, 100_000] {
            let each = bytes(true, blocks) as f64 / f64::from(blocks);
            assert!(each < 30.0, "{each} bytes for each of {blocks}");
        }
    }

    #[test]
    fn a_block_of_a_tenant_with_rules_takes_eleven_bytes_more_at_most() {
        const BLOCKS: u32 = 1_000_000;
        for strategy in Strategy::ALL {
            let index = crate::Shard::index_bytes(BLOCKS, 1, strategy) as usize;
            let bytes = (index + Numbers::most_bytes(BLOCKS as usize)) as f64 / f64::from(BLOCKS);
            // As docs/tenants.md says.
            assert!(bytes <= 171.0, "{strategy}: {bytes}");
        }
        let mut numbers = Numbers::new(20_000);
        for round in 0..3 {
            for at in 0..20_000 {
                let number = numbers.enter(at * 7 + round);
                assert!(number < 20_000 && numbers.record(number) == at * 7 + round);
            }
            assert!(numbers.memory_bytes() <= Numbers::most_bytes(20_000));
            for at in 0..20_000 {
                let number = numbers.of(at * 7 + round).expect("it has one");
                numbers.leave(at * 7 + round, number);
            }
        }
    }

    #[test]
    fn what_left_a_party_is_remembered_by_what_it_holds_and_not_by_what_the_shard_could() {
        const FRAMES: u32 = 1 << 20;
        const HELD: u32 = 1000;
        for strategy in Strategy::ALL {
            let mut ranking = Ranking::new(strategy, FRAMES, 1, true);
            let small = policy::most_bytes(strategy, 2 * HELD);
            let at_once = ranking.memory_bytes();
            for number in 0..60_000 {
                ranking.begin(&Request { number: number.into(), blocks: 1, ..Request::default() });
                if number >= HELD {
                    ranking.removed(number % HELD, &visit(number - HELD, None).key, Removal::Evicted);
                }
                ranking.inserted(number % HELD, &visit(number, None), false);
            }
            let bytes = ranking.memory_bytes() - at_once;
            assert!(bytes <= small + (64 << 10), "{strategy}: {bytes}, {small} for a pool of that size");
        }
    }

    #[test]
    fn a_parent_that_is_ranked_elsewhere_is_none_to_the_policy() {
        let mut ranking = Ranking::new(Strategy::Lru, 100, 1, true);
        ranking.begin(&Request { number: 1, blocks: 2, ..Request::default() });
        // Record 1 would be number 1 of this ranking, were it here.
        ranking.inserted(50, &visit(0, Some(1)), false);
        ranking.inserted(60, &visit(1, Some(50)), true);
        assert_eq!(ranking.known(&visit(2, Some(1))).parent, None);
        assert_eq!(ranking.known(&visit(2, Some(60))).parent, Some(1));
        ranking.removed(60, &visit(1, None).key, Removal::Dropped);
        assert_eq!((ranking.known(&visit(2, Some(60))).parent, ranking.number(60)), (None, None));
    }
}
