//! Placement is frozen, even, weighted, on distinct members, and moves little.

use super::*;
use kvhive_protocol::MemberId;
use proptest::prelude::*;
use xxhash_rust::xxh3::Xxh3Default;

const GIB: u64 = 1 << 30;

/// One candidate a weight; the inner list is one member.
fn members(weights: &[&[u64]]) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (member, devices) in weights.iter().enumerate() {
        for (index, weight) in devices.iter().enumerate() {
            let device = DeviceId::new(MemberId(member as u32 + 1), index as u16);
            candidates.push(Candidate { device, weight: *weight });
        }
    }
    candidates
}

fn equal(members_count: usize, devices: usize) -> Vec<Candidate> {
    members(&vec![vec![GIB; devices].as_slice(); members_count])
}

/// The greatest deviation from a weight's share, in per cent of it, of the first `level` places of all sets.
fn deviation(candidates: &[Candidate], sets: &[ReplicaSet], level: usize) -> f64 {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight as f64).sum();
    let placed: usize = sets.iter().map(|set| set.0.len().min(level)).sum();
    let of = |candidate: &Candidate| {
        let have = sets
            .iter()
            .filter(|set| set.0.iter().take(level).any(|device| *device == candidate.device))
            .count();
        let share = placed as f64 * candidate.weight as f64 / total;
        (have as f64 - share).abs() / share * 100.0
    };
    candidates.iter().map(of).fold(0.0, f64::max)
}

fn moved(before: &[ReplicaSet], after: &[ReplicaSet]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before.primary() != after.primary()).count()
}

fn digest(sets: &[ReplicaSet]) -> u64 {
    let mut hash = Xxh3Default::new();
    for device in sets.iter().flat_map(|set| &set.0) {
        hash.update(&device.member.0.to_le_bytes());
        hash.update(&device.index.to_le_bytes());
    }
    hash.digest()
}

#[test]
fn placement_is_frozen() {
    // A change of any of these moves data on every running cluster: it needs a new placement version instead.
    let four = equal(2, 2);
    let names: Vec<String> = rank(&four, Slot(0)).iter().map(DeviceId::to_string).collect();
    assert_eq!(names, ["1/0", "1/1", "2/1", "2/0"]);
    let odd = members(&[&[GIB, 3 * GIB], &[80 * GIB], &[7 * GIB, 1, 5 * GIB]]);
    let digests =
        [digest(&wanted_map(&four, 1)), digest(&wanted_map(&four, 2)), digest(&wanted_map(&odd, 3))];
    assert_eq!(digests, [4904541310647488708, 6885370655070181537, 2471183985190808832]);
}

#[test]
fn equal_devices_fill_evenly() {
    for (members, devices) in [(2, 2), (4, 1), (1, 4), (3, 1), (8, 8), (16, 1), (5, 3)] {
        let candidates = equal(members, devices);
        let sets = wanted_map(&candidates, 1);
        let off = deviation(&candidates, &sets, 1);
        assert!(off <= 5.0, "{members} members of {devices} devices: {off:.1} %");
    }
}

#[test]
fn replicas_fill_evenly_too() {
    for (members, devices, replicas) in [(2, 2, 2), (3, 1, 2), (4, 2, 3), (8, 8, 2)] {
        let candidates = equal(members, devices);
        let sets = wanted_map(&candidates, replicas);
        let off = deviation(&candidates, &sets, replicas);
        assert!(off <= 5.0, "{members} members of {devices} devices, {replicas} replicas: {off:.1} %");
    }
}

#[test]
fn a_device_of_twice_the_bytes_gets_twice_the_slots() {
    let candidates = members(&[&[GIB], &[2 * GIB], &[3 * GIB], &[10 * GIB]]);
    let sets = wanted_map(&candidates, 1);
    assert!(deviation(&candidates, &sets, 1) < 1.0);
    let huge = Candidate { weight: u64::MAX, ..candidates[0] };
    let sets = wanted_map(&[huge, candidates[1]], 1);
    assert_eq!(sets.iter().filter(|set| set.primary() == Some(huge.device)).count(), usize::from(SLOTS));
}

#[test]
fn a_joining_device_takes_little_more_than_its_share() {
    for (devices, at_most_percent) in [(2, 101), (4, 106), (8, 107), (16, 120), (64, 250)] {
        let grown = equal(devices, 1);
        let before = wanted_map(&grown[..devices - 1], 1);
        let after = wanted_map(&grown, 1);
        let least = usize::from(SLOTS) / devices;
        let moved = moved(&before, &after);
        assert!(
            moved * 100 <= least * at_most_percent,
            "{devices} devices: {moved} moved, at least {least} must"
        );
    }
}

#[test]
fn two_unequal_members_still_hold_two_replicas() {
    let candidates = members(&[&[90 * GIB, 90 * GIB], &[GIB]]);
    for set in wanted_map(&candidates, 2) {
        assert_eq!(set.0.len(), 2);
        assert!(set.contains(candidates[2].device));
    }
}

#[test]
fn nobody_to_place_on_is_an_empty_map() {
    assert_eq!(wanted_map(&[], 2), vec![ReplicaSet::default(); usize::from(SLOTS)]);
    assert_eq!(wanted(&[], Slot(3), 2), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_slot_has_distinct_members_and_nobody_is_overloaded(
        weights in prop::collection::vec(prop::collection::vec(1..200_u64, 1..4), 1..9),
        replicas in 1..4_usize,
    ) {
        let lists: Vec<&[u64]> = weights.iter().map(Vec::as_slice).collect();
        let candidates = members(&lists);
        let sets = wanted_map(&candidates, replicas);
        prop_assert_eq!(&sets, &wanted_map(&candidates, replicas));
        let shares = shares(&candidates, 1);
        for (at, candidate) in candidates.iter().enumerate() {
            let primaries = sets.iter().filter(|set| set.primary() == Some(candidate.device)).count() as u64;
            prop_assert!(primaries <= shares[at]);
        }
        for set in sets {
            prop_assert_eq!(set.0.len(), replicas.min(weights.len()));
            let mut owners: Vec<MemberId> = set.0.iter().map(|device| device.member).collect();
            owners.sort();
            owners.dedup();
            prop_assert_eq!(owners.len(), set.0.len());
        }
    }

    #[test]
    fn a_slots_rank_of_two_devices_ignores_all_others(slot in 0..SLOTS, without in 0..6_usize) {
        let all = members(&[&[5, 9], &[1, 7], &[3, 3]]);
        let mut fewer = all.clone();
        let gone = fewer.remove(without).device;
        let mut expected = rank(&all, Slot(slot));
        expected.retain(|device| *device != gone);
        prop_assert_eq!(rank(&fewer, Slot(slot)), expected);
        prop_assert_eq!(&wanted(&all, Slot(slot), 1)[..], &rank(&all, Slot(slot))[..1]);
    }
}
