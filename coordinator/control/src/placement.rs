//! Where slots belong: weighted rendezvous hashing with bounded loads, replicas spread over failure domains. Pure functions of
//! devices and weights, in integers only, so every coordinator finds the same; stable for ever, a golden test pins them.
//!
//! Sources: Thaler & Ravishankar 1996 (rendezvous hashing); Schindelhauer & Schomaker 2005 (weights by `-ln(u) / w`);
//! Christiani 2020 (darts); Mirrokni, Thorup & Zadimoghaddam 2016 (bounded loads); Gale & Shapley 1962 (whom a full device
//! turns away).

use crate::darts::{self, Darts, Distance, Near};
use crate::domains::{self, Domains, Numbering, Place, Shared};
use crate::log2::minus_log2;
use crate::shares::shares;
use kvhive_protocol::{ClusterMap, DeviceId, ReplicaSet, SLOTS, Slot};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// A device that slots can be placed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which.
    pub device: DeviceId,
    /// Its capacity in bytes, at least 1: its share of the slots is its share of the weights.
    pub weight: u64,
    /// The failure domains that its member is in.
    pub place: Place,
    /// It may be given slots that it does not have. Where slots belong by their hash does not go by that.
    pub takes: bool,
}

/// Returns every device of every member that is up and is not being emptied, ascending, weighted by capacity; of all that are
/// up if nobody else is: slots are somewhere. Those of members that are cordoned take nothing, unless all are.
pub fn candidates(map: &ClusterMap) -> Vec<Candidate> {
    let drains = |device: DeviceId| map.members.get(&device.member).is_some_and(|member| member.drains);
    let all_drain = map.devices_up().all(|(device, _)| drains(device));
    let cordoned = |device: DeviceId| map.members.get(&device.member).is_some_and(|member| member.cordoned);
    let is_in = |device: DeviceId| all_drain || !drains(device);
    let all_cordoned = map.devices_up().all(|(device, _)| !is_in(device) || cordoned(device));
    let mut numbering = Numbering::default();
    map.devices_up()
        .filter(|(device, _)| is_in(*device))
        .filter_map(|(device, described)| {
            let place = numbering.place(map.members.get(&device.member)?);
            let takes = all_cordoned || !cordoned(device);
            Some(Candidate { device, weight: described.capacity_bytes().max(1), place, takes })
        })
        .collect()
}

/// Returns how many members they are of.
pub(crate) fn members(candidates: &[Candidate]) -> usize {
    candidates.chunk_by(|one, next| one.device.member == next.device.member).count()
}

/// Returns how many members of those may be given slots.
pub(crate) fn takers(candidates: &[Candidate]) -> usize {
    let takes = candidates.chunk_by(|one, next| one.device.member == next.device.member);
    takes.filter(|devices| devices[0].takes).count()
}

/// Returns those that may not be given slots.
pub(crate) fn barred(candidates: &[Candidate]) -> BTreeSet<DeviceId> {
    candidates.iter().filter(|candidate| !candidate.takes).map(|candidate| candidate.device).collect()
}

/// Returns the device that `slot` of any number of slots would be on by rendezvous hashing alone, looking at all of them: what
/// [`wanted_map`] is measured against.
pub fn nearest(candidates: &[Candidate], slot: u32) -> Option<DeviceId> {
    // Fractions compared crosswise: a product has at most 118 bits.
    let length = |one: &Candidate| u128::from(minus_log2(darts::pair(one.device, slot)));
    let mut best: Option<(&Candidate, u128)> = None;
    for candidate in candidates {
        let length = length(candidate);
        if best.is_none_or(|(other, least)| {
            length * u128::from(other.weight) < least * u128::from(candidate.weight)
        }) {
            best = Some((candidate, length));
        }
    }
    best.map(|(candidate, _)| candidate.device)
}

/// Returns where every slot belongs: each on `replicas` distinct members, or on all of them while there are fewer, and no two in
/// one zone while there is another, nor in one rack, nor on one host.
///
/// As [`nearest`], but no device gets more primaries, nor more replicas in all, than its share rounded up, unless members and
/// domains leave no other way: shards of unequal load evict unequally, and the cluster then hits less than one pool of its size.
/// A full device turns away the slots that are farthest from it, and those go to the next device that they prefer: a stable
/// matching in which no slot can do better, of which there is only one, so no order matters.
///
/// Evenness costs moves when a device joins: of 4 devices a few per cent more than the least, of 64 twice as many.
pub fn wanted_map(candidates: &[Candidate], replicas: usize) -> Vec<ReplicaSet> {
    wanted_of(candidates, u32::from(SLOTS), replicas)
}

/// Lets slots belong where work is more evenly spread by it, if those devices may hold them.
pub(crate) fn balance(map: &ClusterMap, candidates: &[Candidate], wanted: &mut [ReplicaSet]) {
    if map.balanced.is_empty() {
        return;
    }
    let completion = Completion::of(candidates);
    for (slot, set) in map.balanced.iter() {
        if let Some(wanted) = wanted.get_mut(usize::from(slot.0))
            && completion.check(&set.0, wanted.0.len()).is_ok()
        {
            *wanted = set.clone();
        }
    }
}

/// As [`wanted_map`], for another number of slots.
pub fn wanted_of(candidates: &[Candidate], slots: u32, replicas: usize) -> Vec<ReplicaSet> {
    let replicas = replicas.min(members(candidates));
    if replicas == 0 {
        return vec![ReplicaSet::default(); slots as usize];
    }
    let mut matching = Matching {
        candidates,
        domains: Domains::of(candidates),
        darts: Darts::throw(candidates, slots),
        beyond: BTreeMap::new(),
        slots,
        replicas,
        level: 0,
        sets: vec![0; slots as usize * replicas],
        loads: vec![0; candidates.len()],
        least: vec![[0; 3]; slots as usize],
        cursors: vec![0; slots as usize],
    };
    while matching.level < replicas {
        matching.place_level();
    }
    let set = |set: &[u32]| ReplicaSet(set.iter().map(|at| candidates[*at as usize].device).collect());
    matching.sets.chunks(replicas).map(set).collect()
}

/// Gives sets without enough replicas more of them, as long as somebody has none: the first of `wanted` that shares as little of
/// a failure domain as can be, or whoever is nearest of those that do.
pub(crate) struct Completion<'a> {
    candidates: &'a [Candidate],
    /// Of those that take slots.
    domains: Domains,
    all_take: bool,
    places: BTreeMap<DeviceId, usize>,
}

impl<'a> Completion<'a> {
    pub(crate) fn of(candidates: &'a [Candidate]) -> Self {
        let places = candidates.iter().enumerate().map(|(at, candidate)| (candidate.device, at)).collect();
        let takers: Vec<Candidate> = candidates.iter().filter(|one| one.takes).copied().collect();
        let all_take = takers.len() == candidates.len();
        Completion { candidates, domains: Domains::of(&takers), all_take, places }
    }

    /// Returns the next device for a slot that is on `set`; none if it is on every member that takes slots.
    pub(crate) fn next(&self, slot: Slot, set: &[DeviceId], wanted: &[DeviceId]) -> Option<DeviceId> {
        let at = |device: &DeviceId| self.places.get(device).map(|at| &self.candidates[*at]);
        let places: Vec<Place> = set.iter().filter_map(at).map(|candidate| candidate.place).collect();
        let is_free = |candidate: &&Candidate| {
            candidate.takes && set.iter().all(|device| device.member != candidate.device.member)
        };
        let least = match self.all_take {
            true => self.domains.least(&places)?,
            // Domains do not know of replicas on members that take nothing.
            false => {
                let free = self.candidates.iter().filter(is_free);
                free.map(|candidate| domains::shared(&places, candidate.place)).min()?
            }
        };
        let is_allowed =
            |candidate: &&Candidate| is_free(candidate) && domains::shared(&places, candidate.place) == least;
        if let Some(candidate) = wanted.iter().filter_map(at).find(is_allowed) {
            return Some(candidate.device);
        }
        let allowed: Vec<Candidate> = self.candidates.iter().filter(is_allowed).copied().collect();
        nearest(&allowed, u32::from(slot.0))
    }

    /// Checks that a slot may belong to a set: candidates on distinct members, so many at least, sharing no domain needlessly.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check(&self, set: &[DeviceId], least: usize) -> Result<(), String> {
        if set.len() < least {
            return Err(format!("{} replicas are fewer than {least}", set.len()));
        }
        for (at, device) in set.iter().enumerate() {
            if !self.places.contains_key(device) {
                return Err(format!("device {device} does not exist, is down or is being emptied"));
            }
            if set[..at].iter().any(|other| other.member == device.member) {
                return Err(format!("two replicas would be on member {}", device.member));
            }
        }
        match self.needless(set) {
            Some((one, other, domain)) => Err(format!(
                "{one} and {other} share a {domain}, while another {domain} has no replica of it"
            )),
            None => Ok(()),
        }
    }

    /// Says which two of a set share a failure domain needlessly, and which. Of a set with a device that takes nothing it does not: that one
    /// stays wherever it is.
    pub(crate) fn needless(&self, set: &[DeviceId]) -> Option<(DeviceId, DeviceId, &'static str)> {
        let place = |device: &DeviceId| {
            let candidate = self.candidates.get(*self.places.get(device)?).filter(|one| one.takes)?;
            Some((*device, candidate.place))
        };
        let places: Option<Vec<_>> = set.iter().map(place).collect();
        self.domains.needless(&places?)
    }
}

/// Slots on their way to devices, one more replica of each at a time.
struct Matching<'a> {
    candidates: &'a [Candidate],
    domains: Domains,
    darts: Darts,
    /// What comes after the darts, of slots that got so far.
    beyond: BTreeMap<u32, Vec<Near>>,
    slots: u32,
    replicas: usize,
    /// Replicas that every slot has already.
    level: usize,
    /// Positions of candidates, `replicas` a slot.
    sets: Vec<u32>,
    loads: Vec<u32>,
    /// The least that one more replica of each slot shares with those before.
    least: Vec<Shared>,
    /// How many of its candidates each slot has asked.
    cursors: Vec<u32>,
}

/// A slot that a device has accepted for now; the greatest is turned away first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    distance: Distance,
    slot: u32,
}

impl Matching<'_> {
    /// Candidates that are looked for at first where darts were not enough.
    const FIRST: usize = 32;

    /// Gives each slot one more device, by deferred acceptance.
    fn place_level(&mut self) {
        self.cursors.fill(0);
        self.beyond.clear();
        for slot in 0..self.slots {
            let places = self.places(slot);
            self.least[slot as usize] = self.domains.least(&places).unwrap_or_default();
        }
        let shares = shares(self.candidates, self.slots, self.level as u32 + 1);
        let rooms: Vec<usize> = shares
            .iter()
            .zip(&self.loads)
            .map(|(share, load)| share.saturating_sub(*load) as usize)
            .collect();
        let mut accepted: Vec<BinaryHeap<Claim>> = vec![BinaryHeap::new(); self.candidates.len()];
        let mut waiting: Vec<u32> = (0..self.slots).rev().collect();
        let mut homeless = Vec::new();
        while let Some(slot) = waiting.pop() {
            let Some(Near { distance, at }) = self.next(slot) else {
                homeless.push(slot);
                continue;
            };
            let (claims, room) = (&mut accepted[at as usize], rooms[at as usize]);
            let claim = Claim { distance, slot };
            if claims.len() < room {
                claims.push(claim);
            } else if let Some(mut farthest) = claims.peek_mut().filter(|farthest| claim < **farthest) {
                waiting.push(farthest.slot);
                *farthest = claim;
            } else {
                waiting.push(slot);
            }
        }
        let mut accepted: Vec<Vec<u32>> =
            accepted.into_iter().map(|claims| claims.into_iter().map(|claim| claim.slot).collect()).collect();
        homeless.sort_unstable();
        for slot in homeless {
            self.house(slot, &rooms, &shares, &mut accepted);
        }
        for (at, slots) in accepted.into_iter().enumerate() {
            self.loads[at] += slots.len() as u32;
            for slot in slots {
                self.sets[slot as usize * self.replicas + self.level] = at as u32;
            }
        }
        self.level += 1;
    }

    /// Finds a place for a slot whose every candidate is full: that of another slot which can go where there is room, or, if there
    /// is none, one on the candidate that is the least over its share.
    fn house(&self, slot: u32, rooms: &[usize], shares: &[u32], accepted: &mut [Vec<u32>]) {
        /// The most devices with room that are tried.
        const TRIED: usize = 64;
        let (mut allowed, mut spare) = (Vec::new(), Vec::new());
        for at in 0..self.candidates.len() as u32 {
            if self.is_allowed(slot, at) {
                allowed.push(at);
            } else if accepted[at as usize].len() < rooms[at as usize] && spare.len() < TRIED {
                spare.push(at);
            }
        }
        for at in &allowed {
            if spare.is_empty() {
                break;
            }
            let other = accepted[*at as usize].iter().enumerate().find_map(|(position, other)| {
                let to = spare.iter().find(|to| self.is_allowed(*other, **to))?;
                Some((position, *to))
            });
            if let Some((position, to)) = other {
                let other = std::mem::replace(&mut accepted[*at as usize][position], slot);
                accepted[to as usize].push(other);
                return;
            }
        }
        let load = |at: u32| u64::from(self.loads[at as usize]) + accepted[at as usize].len() as u64 + 1;
        let fuller = |one: &u32, other: &u32| -> Ordering {
            let (ours, theirs) = (load(*one), load(*other));
            let (our_share, their_share) = (shares[*one as usize].max(1), shares[*other as usize].max(1));
            (ours * u64::from(their_share)).cmp(&(theirs * u64::from(our_share))).then(one.cmp(other))
        };
        let at = allowed.into_iter().min_by(fuller).expect("a slot is on fewer members than there are");
        accepted[at as usize].push(slot);
    }

    fn set(&self, slot: u32) -> &[u32] {
        let begin = slot as usize * self.replicas;
        &self.sets[begin..begin + self.level]
    }

    fn places(&self, slot: u32) -> Vec<Place> {
        self.set(slot).iter().map(|at| self.candidates[*at as usize].place).collect()
    }

    /// Says whether a device may be the slot's next: on another member, sharing as little as can be.
    fn is_allowed(&self, slot: u32, at: u32) -> bool {
        let (set, candidate) = (self.set(slot), &self.candidates[at as usize]);
        let mut shared = [0; 3];
        for other in set {
            let other = &self.candidates[*other as usize];
            if other.device.member == candidate.device.member {
                return false;
            }
            for (level, shared) in shared.iter_mut().enumerate() {
                *shared += u32::from(other.place.0[level] == candidate.place.0[level]);
            }
        }
        shared == self.least[slot as usize]
    }

    /// Returns the next device that the slot prefers, of those that it may be on.
    fn next(&mut self, slot: u32) -> Option<Near> {
        loop {
            let cursor = self.cursors[slot as usize] as usize;
            let near = self.darts.near(slot);
            if let Some(next) = near.get(cursor).copied() {
                self.cursors[slot as usize] += 1;
                if self.is_allowed(slot, next.at) {
                    return Some(next);
                }
                continue;
            }
            let cursor = cursor - near.len();
            let known = self.beyond.get(&slot).map_or(0, Vec::len);
            if cursor < known {
                self.cursors[slot as usize] += 1;
                return self.beyond.get(&slot).map(|beyond| beyond[cursor]);
            }
            let beyond = self.look_beyond(slot, (known * 4).max(Self::FIRST));
            if beyond.len() == known {
                return None;
            }
            self.beyond.insert(slot, beyond);
        }
    }

    /// Returns so many of the nearest devices that no dart of theirs has hit the slot.
    fn look_beyond(&self, slot: u32, count: usize) -> Vec<Near> {
        let mut hit: Vec<u32> = self.darts.near(slot).iter().map(|near| near.at).collect();
        hit.sort_unstable();
        let mut beyond: Vec<Near> = (0..self.candidates.len() as u32)
            .filter(|at| self.is_allowed(slot, *at) && hit.binary_search(at).is_err())
            .map(|at| self.darts.beyond(self.candidates, slot, at))
            .collect();
        if count < beyond.len() {
            beyond.select_nth_unstable(count - 1);
            beyond.truncate(count);
        }
        beyond.sort_unstable();
        beyond
    }
}

#[cfg(test)]
#[path = "placement_test.rs"]
mod tests;
