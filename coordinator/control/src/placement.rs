//! Where slots belong: weighted rendezvous hashing with bounded loads. Pure functions of devices and weights, in integers
//! only, so every coordinator finds the same; stable for ever, a golden test pins them.
//!
//! Sources: Thaler & Ravishankar 1996 (rendezvous hashing); Schindelhauer & Schomaker 2005 (weights by `-ln(u) / w`);
//! Mirrokni, Thorup & Zadimoghaddam 2016 (bounded loads); Gale & Shapley 1962 (whom a full device turns away).

use crate::log2::minus_log2;
use kvhive_protocol::{ClusterMap, DeviceId, ReplicaSet, SLOTS, Slot};
use std::collections::BinaryHeap;
use xxhash_rust::xxh3::xxh3_64;

/// A device that slots can be placed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which.
    pub device: DeviceId,
    /// Its capacity in bytes, at least 1: its share of the slots is its share of the weights.
    pub weight: u64,
}

/// Returns every device of every member that is up and is not being emptied, ascending, weighted by capacity; of all that are
/// up if nobody else is: slots are somewhere.
pub fn candidates(map: &ClusterMap) -> Vec<Candidate> {
    let drains = |device: DeviceId| map.members.get(&device.member).is_some_and(|member| member.drains);
    let all_drain = map.devices_up().all(|(device, _)| drains(device));
    map.devices_up()
        .filter(|(device, _)| all_drain || !drains(*device))
        .map(|(device, described)| Candidate { device, weight: described.capacity_bytes().max(1) })
        .collect()
}

/// Returns how many members they are of.
pub(crate) fn members(candidates: &[Candidate]) -> usize {
    candidates.chunk_by(|one, next| one.device.member == next.device.member).count()
}

/// Returns all candidates in the order in which `slot` prefers them.
pub fn rank(candidates: &[Candidate], slot: Slot) -> Vec<DeviceId> {
    let mut distances: Vec<Distance> =
        candidates.iter().map(|candidate| Distance::of(slot, candidate)).collect();
    distances.sort_unstable();
    distances.into_iter().map(|distance| distance.device).collect()
}

/// Returns where `slot` belongs if loads were not bounded: the first `replicas` of its [`rank`] on distinct members.
pub fn wanted(candidates: &[Candidate], slot: Slot, replicas: usize) -> Vec<DeviceId> {
    let mut set: Vec<DeviceId> = Vec::with_capacity(replicas);
    for device in rank(candidates, slot) {
        if set.len() == replicas {
            break;
        }
        if set.iter().all(|other| other.member != device.member) {
            set.push(device);
        }
    }
    set
}

/// Returns where every slot belongs: each on `replicas` distinct members, or on all of them while there are fewer.
///
/// As [`wanted`], but no device gets more primaries, nor more replicas in all, than its share rounded up, unless the
/// members leave no other way: shards of unequal load evict unequally, and the cluster then hits less than one pool of
/// its size. A full device turns away the slots that are farthest from it, and those go to the next device that they
/// prefer: a stable matching in which no slot can do better, of which there is only one, so no order matters.
///
/// Evenness costs moves when a device joins: of 4 devices 4 % more than the least, of 16 18 %, of 64 twice as many.
pub fn wanted_map(candidates: &[Candidate], replicas: usize) -> Vec<ReplicaSet> {
    let mut sets = vec![ReplicaSet::default(); usize::from(SLOTS)];
    if candidates.is_empty() {
        return sets;
    }
    let mut preferences: Vec<Preference> = Slot::all().map(Preference::new).collect();
    let mut loads = vec![0_u64; candidates.len()];
    for level in 1..=replicas as u64 {
        place_level(candidates, &shares(candidates, level), &mut preferences, &mut loads, &mut sets);
    }
    sets
}

/// Returns how many of `level` placements of every slot each candidate may get: its share, rounded up.
fn shares(candidates: &[Candidate], level: u64) -> Vec<u64> {
    let total: u128 = candidates.iter().map(|candidate| u128::from(candidate.weight)).sum();
    let placements = u128::from(u64::from(SLOTS) * level);
    let share = |candidate: &Candidate| (u128::from(candidate.weight) * placements).div_ceil(total) as u64;
    candidates.iter().map(share).collect()
}

/// Gives each slot one more device, by deferred acceptance.
fn place_level(
    candidates: &[Candidate],
    shares: &[u64],
    preferences: &mut [Preference],
    loads: &mut [u64],
    sets: &mut [ReplicaSet],
) {
    let mut accepted: Vec<BinaryHeap<Claim>> = vec![BinaryHeap::new(); candidates.len()];
    let mut waiting: Vec<u16> = (0..SLOTS).rev().collect();
    let mut homeless = Vec::new();
    while let Some(slot) = waiting.pop() {
        let set = &sets[usize::from(slot)];
        let Some((at, distance)) = preferences[usize::from(slot)].next(candidates, set) else {
            homeless.push(slot);
            continue;
        };
        accepted[at].push(Claim { distance, slot });
        if accepted[at].len() as u64 > shares[at].saturating_sub(loads[at]) {
            waiting.extend(accepted[at].pop().map(|farthest| farthest.slot));
        }
    }
    for (at, claims) in accepted.into_iter().enumerate() {
        loads[at] += claims.len() as u64;
        for claim in claims {
            sets[usize::from(claim.slot)].0.push(candidates[at].device);
        }
    }
    for preference in preferences.iter_mut() {
        preference.rewind();
    }
    // Every device of every member left is full, as on two members of unequal size: then the share gives way.
    for slot in homeless {
        let set = &mut sets[usize::from(slot)];
        let preference = &mut preferences[usize::from(slot)];
        if let Some((at, _)) = preference.next(candidates, set) {
            set.0.push(candidates[at].device);
            loads[at] += 1;
        }
        preference.rewind();
    }
}

/// The candidates in the order in which one slot prefers them, found as far as asked for.
struct Preference {
    slot: Slot,
    /// Positions of the nearest candidates, nearest first.
    nearest: Vec<(u32, u64)>,
    next: usize,
}

impl Preference {
    /// Few slots are turned away more often.
    const FIRST: usize = 8;

    fn new(slot: Slot) -> Self {
        Preference { slot, nearest: Vec::new(), next: 0 }
    }

    fn rewind(&mut self) {
        self.next = 0;
    }

    /// Returns the next candidate on a member that is not in `set`, and how far it is.
    fn next(&mut self, candidates: &[Candidate], set: &ReplicaSet) -> Option<(usize, u64)> {
        loop {
            if self.next == self.nearest.len() {
                if self.nearest.len() == candidates.len() {
                    return None;
                }
                self.look_further(candidates);
            }
            let (at, distance) = self.nearest[self.next];
            self.next += 1;
            let at = at as usize;
            if set.0.iter().all(|other| other.member != candidates[at].device.member) {
                return Some((at, distance));
            }
        }
    }

    fn look_further(&mut self, candidates: &[Candidate]) {
        let count = (self.nearest.len() * 4).max(Self::FIRST).min(candidates.len());
        let mut distances: Vec<(Distance, u32)> = candidates
            .iter()
            .zip(0..)
            .map(|(candidate, at)| (Distance::of(self.slot, candidate), at))
            .collect();
        if count < distances.len() {
            distances.select_nth_unstable(count - 1);
            distances.truncate(count);
        }
        distances.sort_unstable();
        self.nearest.clear();
        self.nearest.extend(distances.iter().map(|(distance, at)| (*at, distance.length)));
    }
}

/// A slot that a device has accepted for now; the greatest is turned away first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    distance: u64,
    slot: u16,
}

/// How far a device is from a slot: `length / weight`, the smaller the better.
#[derive(Clone, Copy)]
struct Distance {
    /// `-log2` of the pair's hash as a number between 0 and 1, with 48 fraction bits; at most 2^54.
    length: u64,
    weight: u64,
    device: DeviceId,
}

impl Distance {
    fn of(slot: Slot, candidate: &Candidate) -> Self {
        let mut pair = [0; 8];
        pair[..2].copy_from_slice(&slot.0.to_le_bytes());
        pair[2..6].copy_from_slice(&candidate.device.member.0.to_le_bytes());
        pair[6..].copy_from_slice(&candidate.device.index.to_le_bytes());
        Distance { length: minus_log2(xxh3_64(&pair)), weight: candidate.weight, device: candidate.device }
    }
}

impl Ord for Distance {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Fractions compared crosswise: a product has at most 118 bits.
        let ours = u128::from(self.length) * u128::from(other.weight);
        let theirs = u128::from(other.length) * u128::from(self.weight);
        ours.cmp(&theirs).then(self.device.cmp(&other.device))
    }
}

impl PartialOrd for Distance {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Distance {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Distance {}

#[cfg(test)]
#[path = "placement_test.rs"]
mod tests;
