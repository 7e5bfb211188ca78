//! What every policy promises to a shard, whatever the shard meets.

use super::{Hint, Policy, Removal, Request, Strategy, Verdict, Visit, build, most_bytes};
use kvhive_protocol::{BlockKey, Moment};
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;

#[derive(Clone, Debug)]
enum Step {
    /// A request for the path from the root to this node of the tree, some of whose resident blocks are being read.
    Request { node: u16, held: u8, hint: u8 },
    /// A record is dropped, by number modulo those resident.
    Drop { nth: u16 },
    /// Something is said of the session of a record, by number modulo those resident.
    Hint { nth: u16, hint: u8 },
    /// The shard looks for what it may let go without a newcomer; every third record may.
    Collect { rest: u8 },
    /// Those that choose shall choose.
    Adjust,
    /// The shard looks for cold blocks.
    Shrink,
    /// Everything is dropped.
    Clear,
}

fn steps() -> impl Generator<Value = Vec<Step>> {
    let request =
        (0u16..600, any::<u8>(), 0u8..4).prop_map(|(node, held, hint)| Step::Request { node, held, hint });
    let drop = any::<u16>().prop_map(|nth| Step::Drop { nth });
    let hinted = (any::<u16>(), 0u8..4).prop_map(|(nth, hint)| Step::Hint { nth, hint });
    let collect = (0u8..3).prop_map(|rest| Step::Collect { rest });
    prop::collection::vec(
        prop_oneof![40 => request, 3 => drop, 4 => hinted, 3 => collect, 1 => Just(Step::Adjust), 1 => Just(Step::Shrink), 1 => Just(Step::Clear)],
        1..300,
    )
}

fn key(number: u64) -> BlockKey {
    let word = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(word ^ word >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_le_bytes());
    BlockKey::from_bytes(bytes)
}

/// Nodes of a tree of three children each, from the root.
fn path(node: u16) -> Vec<u16> {
    let mut path: Vec<u16> =
        std::iter::successors(Some(node), |node| node.checked_sub(1).map(|node| node / 3)).collect();
    path.reverse();
    path
}

fn hint_of(number: u8, seconds: u8) -> Hint {
    [Hint::None, Hint::Over, Hint::Pending, Hint::Returns(seconds.into())][usize::from(number)]
}

struct Pool {
    policy: Box<dyn Policy>,
    is_leaf_first: bool,
    /// Node and parent's record, by record.
    records: Vec<Option<(u16, Option<u32>)>>,
    requests: u64,
}

impl Pool {
    fn resident(&self) -> Vec<u32> {
        (0..self.records.len() as u32).filter(|at| self.records[*at as usize].is_some()).collect()
    }

    fn find(&self, node: u16) -> Option<u32> {
        self.records
            .iter()
            .position(|record| record.is_some_and(|record| record.0 == node))
            .map(|at| at as u32)
    }

    fn request(&mut self, node: u16, held: u8, hint: u8) {
        let path = path(node);
        self.requests += 1;
        let hint = hint_of(hint, held);
        let covered = path.iter().take_while(|node| self.find(**node).is_some()).count() as u32;
        self.policy.begin(&Request {
            now: Moment::from_millis(self.requests * 37),
            number: self.requests,
            blocks: path.len() as u32,
            covered,
            input_tokens: 16 * path.len() as u32,
            output_tokens: 5,
            hint,
        });
        let mut used = Vec::new();
        let mut parent = None;
        for (depth, node) in (0..).zip(path) {
            let partial = used.len() + 1 == depth as usize && held.is_multiple_of(5);
            let visit = Visit { key: key(u64::from(node)), parent, depth, partial };
            parent = match self.find(node) {
                Some(at) => {
                    self.policy.hit(at, &visit);
                    Some(at)
                }
                None => self.admit(node, &visit, &used, held),
            };
            match parent {
                Some(at) => used.push(at),
                None => {
                    self.policy.refused(&visit);
                    if self.is_leaf_first {
                        return;
                    }
                }
            }
        }
    }

    fn admit(&mut self, node: u16, visit: &Visit, used: &[u32], held: u8) -> Option<u32> {
        if self.records.iter().all(Option::is_some) {
            let (records, is_leaf_first) = (&self.records, self.is_leaf_first);
            let may_go = |at: u32| {
                let resident = records.get(at as usize).is_some_and(Option::is_some);
                assert!(resident, "asked about record {at}, which holds nothing");
                let is_parent = records.iter().flatten().any(|record| record.1 == Some(at));
                let is_held = held > 200 || u32::from(held) % 7 == at % 7;
                !(used.contains(&at) || is_held || is_leaf_first && is_parent)
            };
            let verdict = self.policy.victim(visit, &mut |at| may_go(at));
            match verdict {
                Verdict::Evict(at) => {
                    assert!(may_go(at), "record {at} was refused, and named");
                    self.remove(at, Removal::Evicted);
                }
                Verdict::Refuse => return None,
                Verdict::Stuck => {
                    let free: Vec<u32> = self.resident().into_iter().filter(|at| may_go(*at)).collect();
                    assert!(free.is_empty(), "stuck, though {free:?} might go");
                    return None;
                }
            }
        }
        let at = self.records.iter().position(Option::is_none).expect("one has left") as u32;
        self.records[at as usize] = Some((node, visit.parent));
        self.policy.inserted(at, visit);
        Some(at)
    }

    fn remove(&mut self, at: u32, why: Removal) {
        let (node, parent) = self.records[at as usize].take().expect("what leaves is resident");
        self.policy.removed(at, &key(u64::from(node)), why);
        let has_child = |at: u32| self.records.iter().flatten().any(|record| record.1 == Some(at));
        if let Some(parent) = parent.filter(|parent| !has_child(*parent)) {
            self.policy.set_leaf(parent, true);
        }
    }

    fn drop_record(&mut self, at: u32) {
        self.remove(at, Removal::Dropped);
        for record in self.records.iter_mut().flatten().filter(|record| record.1 == Some(at)) {
            record.1 = None;
        }
    }

    fn collect(&mut self, rest: u32) {
        let records = &self.records;
        let may_go = |at: u32| {
            assert!(records[at as usize].is_some(), "asked about record {at}, which holds nothing");
            let is_parent = records.iter().flatten().any(|record| record.1 == Some(at));
            at % 3 == rest && !is_parent
        };
        if let Some(at) = self.policy.next_to_leave(&mut |at| may_go(at)) {
            assert!(may_go(at), "record {at} was refused, and named");
            self.remove(at, Removal::Evicted);
        }
    }

    fn is_empty_when_cleared(&mut self) {
        for at in self.resident() {
            self.drop_record(at);
        }
        let visit = Visit { key: key(0), parent: None, depth: 0, partial: false };
        let mut cold = Vec::new();
        self.policy.coldest(9, &mut cold);
        let verdict = self.policy.victim(&visit, &mut |at| panic!("record {at} is gone"));
        assert!(matches!(verdict, Verdict::Stuck | Verdict::Refuse), "{verdict:?} of nothing");
        assert!(cold.is_empty(), "{cold:?} of nothing");
    }
}

proptest! {
    #[test]
    fn only_residents_that_may_go_are_named(capacity in 1u32..40, is_leaf_first: bool, steps in steps()) {
        for strategy in Strategy::ALL {
            let mut pool = Pool {
                policy: build(strategy, capacity, 3),
                // It offers leaves alone, which is what a shard lets go.
                is_leaf_first: is_leaf_first || strategy == Strategy::Adaptive,
                records: vec![None; capacity as usize],
                requests: 0,
            };
            for step in &steps {
                match *step {
                    Step::Request { node, held, hint } => pool.request(node, held, hint),
                    Step::Drop { nth } => {
                        let resident = pool.resident();
                        if !resident.is_empty() {
                            pool.drop_record(resident[usize::from(nth) % resident.len()]);
                        }
                    }
                    Step::Hint { nth, hint } => {
                        let resident = pool.resident();
                        if !resident.is_empty() {
                            let at = resident[usize::from(nth) % resident.len()];
                            let node = pool.records[at as usize].expect("it is resident").0;
                            pool.policy.hinted(at, &key(node.into()), hint_of(hint, 7));
                        }
                    }
                    Step::Collect { rest } => pool.collect(rest.into()),
                    Step::Adjust => pool.policy.adjust(),
                    Step::Shrink => {
                        let mut cold = Vec::new();
                        pool.policy.coldest(3, &mut cold);
                        assert!(cold.iter().all(|at| pool.records[*at as usize].is_some()) && cold.len() <= 3);
                    }
                    Step::Clear => pool.is_empty_when_cleared(),
                }
            }
            pool.is_empty_when_cleared();
        }
    }
}

#[test]
fn memory_is_bounded_by_the_capacity_not_by_the_keys_seen() {
    const BLOCKS: u32 = 20_000;
    for strategy in Strategy::ALL {
        let mut policy = build(strategy, BLOCKS, 1);
        let mut seen = [0; 2];
        let mut keys = vec![key(0); BLOCKS as usize];
        for (round, seen) in seen.iter_mut().enumerate() {
            for number in 0..BLOCKS * 20 {
                let key = key(u64::from(number) + u64::from(BLOCKS) * 20 * round as u64);
                let visit = Visit { key, parent: None, depth: 0, partial: false };
                policy.begin(&Request { number: u64::from(number), blocks: 1, ..Request::default() });
                let mut at = number;
                if round > 0 || number >= BLOCKS {
                    match policy.victim(&visit, &mut |_| true) {
                        Verdict::Evict(victim) => {
                            policy.removed(victim, &keys[victim as usize], Removal::Evicted);
                            at = victim;
                        }
                        _ => {
                            policy.refused(&visit);
                            continue;
                        }
                    }
                }
                policy.inserted(at, &visit);
                keys[at as usize] = key;
            }
            *seen = policy.memory_bytes();
        }
        let most = most_bytes(strategy, BLOCKS);
        assert!(seen[1] <= most, "{strategy}: {seen:?}, said to be {most} at most");
        assert!(seen[1] <= seen[0] * 5 / 4, "{strategy} grows: {seen:?}");
    }
}
