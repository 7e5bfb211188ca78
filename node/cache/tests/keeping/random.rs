//! Random use of all of it at once.

use super::{Scenario, TENANT, key};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{BlockId, Effect, Known, Tier};
use kvhive_protocol::Era;
use kvhive_protocol::data::Hint;
use kvhive_protocol::explain::{Explained, Since};
use proptest::prelude::{Just, TestCaseError, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::collections::{BTreeMap, BTreeSet, HashMap};

#[derive(Clone, Debug)]
enum Step {
    Serve { session: u8, blocks: u8, hint: u8 },
    Match { session: u8, blocks: u8, hold_ms: u64 },
    Release { session: u8, blocks: u8, hint: u8 },
    Read(u8, u8),
    Unread(usize),
    Tend,
    Copied(usize, bool),
    Open(bool),
    Clear,
    Wait(u64),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::strategy::Strategy as _;
    let session = || (0u8..5, 1u8..6);
    let step = prop_oneof![
        4 => (session(), 0u8..4).prop_map(|((session, blocks), hint)| Step::Serve { session, blocks, hint }),
        3 => (session(), 0u64..5000).prop_map(|((session, blocks), hold_ms)| Step::Match { session, blocks, hold_ms }),
        3 => (session(), 0u8..4).prop_map(|((session, blocks), hint)| Step::Release { session, blocks, hint }),
        2 => session().prop_map(|(session, block)| Step::Read(session, block - 1)),
        2 => any::<usize>().prop_map(Step::Unread),
        4 => Just(Step::Tend),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(at, done)| Step::Copied(at, done)),
        1 => any::<bool>().prop_map(Step::Open),
        1 => Just(Step::Clear),
        2 => (0u64..70_000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..150)
}

fn hint(number: u8) -> Hint {
    [Hint::None, Hint::Over, Hint::Pending, Hint::Returns(3)][usize::from(number)]
}

proptest! {
    /// Nothing that is held and that nobody has come for leaves but by a clear, every invariant holds after each step, and in the end the memory is no fuller
    /// than its threshold. What was stored once is here, or is known to have gone, unless others that went since are remembered instead.
    #[test]
    fn any_use_keeps_every_invariant_and_the_threshold(strategy in 0usize..12, steps in steps()) {
        let mut scene = Scenario::of([6, 4, 6], Strategy::ALL[strategy], Some(600));
        let (mut readers, mut copies): (Vec<BlockId>, Vec<_>) = (Vec::new(), Vec::new());
        let mut numbers: HashMap<BlockId, u64> = HashMap::new();
        let mut held: HashMap<u64, u64> = HashMap::new();
        let mut stored: BTreeSet<u64> = BTreeSet::new();
        for step in steps {
            let of = |session: u8, blocks: u8| u64::from(session) * 10..u64::from(session) * 10 + u64::from(blocks);
            match step {
                Step::Serve { session, blocks, hint: number } => {
                    scene.hint = hint(number);
                    for (depth, number) in (0..).zip(of(session, blocks)) {
                        // This one goes on from the one before it.
                        held.retain(|before, _| before + 1 != number);
                        if let Some(id) = scene.try_store(number, depth) {
                            numbers.insert(id, number);
                            stored.insert(number);
                        }
                    }
                }
                Step::Match { session, blocks, hold_ms } => {
                    let numbers = of(session, blocks);
                    let covered = scene.matched(numbers.clone(), hold_ms);
                    if covered > 0 {
                        let until = held.entry(numbers.start + u64::from(covered) - 1).or_default();
                        *until = (*until).max(scene.now + hold_ms);
                    }
                }
                Step::Release { session, blocks, hint: number } => {
                    scene.release(of(session, blocks), hint(number));
                }
                Step::Read(session, block) => {
                    let number = of(session, block).end;
                    held.remove(&number);
                    readers.extend(scene.read(number));
                }
                Step::Unread(at) if !readers.is_empty() => {
                    scene.shard.unread(readers.swap_remove(at % readers.len()));
                }
                Step::Tend => scene.shard.tend(scene.now(), &mut scene.effects),
                Step::Copied(at, done) if !copies.is_empty() => {
                    scene.shard.copied(copies.swap_remove(at % copies.len()), done);
                }
                Step::Open(open) => scene.shard.set_open(Tier::Disk, open),
                Step::Clear => {
                    scene.era += 1;
                    held.clear();
                    scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(scene.era))]));
                }
                Step::Wait(ms) => scene.now += ms,
                _ => {}
            }
            for effect in scene.effects.drain(..) {
                match effect {
                    Effect::Drop { id, .. } => {
                        let until = numbers.remove(&id).and_then(|number| held.get(&number));
                        prop_assert!(until.is_none_or(|until| *until <= scene.now), "{:?} was held", id);
                    }
                    Effect::Copy { ticket, .. } => copies.push(ticket),
                    Effect::Shrink { .. } => prop_assert!(false, "there are no smaller frames"),
                }
            }
            if let Err(broken) = scene.shard.invariants() {
                return Err(TestCaseError::fail(broken));
            }
            for number in &stored {
                let known = scene.shard.explain(scene.now(), TENANT, &key(*number));
                let never = matches!(known, Known::Not(Explained::Unknown { since: Since::Began, .. }));
                prop_assert!(!never, "{} was stored once", number);
                let is_here = matches!(known, Known::Here { .. });
                prop_assert_eq!(is_here, scene.is_here(*number), "{}: {:?}", number, known);
            }
        }
        readers.into_iter().for_each(|id| scene.shard.unread(id));
        for ticket in copies {
            scene.shard.copied(ticket, true);
        }
        scene.shard.set_open(Tier::Disk, true);
        scene.now += 100_000;
        scene.settle();
        let [device, host, _] = scene.tiers();
        prop_assert!(device + host <= 6, "{} of 10 frames are in use", device + host);
    }
}
