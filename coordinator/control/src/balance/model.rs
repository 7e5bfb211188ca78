//! Who carries what as slots are placed, and which change makes that more even. Goes by whom clients ask: a slot's primary alone, or each
//! client its own choice of the replicas where there are more of them than the cluster's `replicas`.

use super::words::{said, shown};
use super::{BalanceTuning, Seen};
use crate::handicaps::{self, Handicaps};
use crate::placement::{self, Candidate, Completion};
use crate::validate::MAX_REPLICAS;
use kvhive_protocol::control::{Balancing, MAX_BALANCED};
use kvhive_protocol::load::MAX_HOT_SLOTS;
use kvhive_protocol::{DeviceId, Reason, Slot, counted as number};
use std::collections::{BTreeMap, BTreeSet};

/// Slots of one device that are looked at for one change.
const LOOKED_AT: usize = 64;
/// The most devices of one decision that cannot be relieved and are passed over for the next busiest.
const MAX_PASSED_OVER: usize = 256;
/// The most devices that are tried for one place of a set: where domains have nobody to take anything, none of all fits.
const MAX_TRIED: usize = 1024;
/// What a replica more must be better by than a move, in per cent of the mean: it takes memory.
const REPLICA_PERCENT: u64 = 5;
/// What another device must be better by as a slot's primary than one of its replicas that has the blocks already, in per cent of the mean.
const MOVE_PERCENT: u64 = 2;
/// How many times as much a slot must be read as one that goes back to make room for it, where as many as can be do not go by their hash.
const COOLER: u64 = 2;
/// What a change must make better, in per cent of the mean.
const LEAST_GAIN_PERCENT: u64 = 2;

/// Who carries what, as changes make it.
pub(super) struct Model<'a> {
    seen: Seen<'a>,
    spread: Completion<'a>,
    /// Devices that have reported.
    pub(super) devices: Vec<DeviceId>,
    /// All candidates; those that have reported with their position among the devices.
    pub(super) places: BTreeMap<DeviceId, Option<usize>>,
    /// What they carry, each by what it counts for.
    loads: Vec<u64>,
    /// What they count for, in per cent.
    counts: Vec<u64>,
    /// How many slots more a device may hold than its hash gives it; none where its member is cordoned.
    room: Vec<usize>,
    /// They are of members that are cordoned, which keep what they have: a replica more elsewhere is all that relieves them.
    keeps: Vec<bool>,
    pub(super) asked: BTreeMap<Slot, Asked>,
}

/// A slot that is read much, or that does not go by its hash.
pub(super) struct Asked {
    pub(super) rate: u64,
    pub(super) set: Vec<DeviceId>,
}

/// A change that leaves the busiest device less to carry.
struct Better {
    /// What it comes to, with what it takes besides.
    cost: u64,
    slot: Slot,
    set: Vec<DeviceId>,
}

impl<'a> Model<'a> {
    pub(super) fn of(seen: &Seen<'a>, handicaps: &Handicaps) -> Model<'a> {
        let known = |candidate: &&Candidate| seen.work.contains_key(&candidate.device);
        let devices: Vec<DeviceId> =
            seen.places.candidates.iter().filter(known).map(|candidate| candidate.device).collect();
        let mut places: BTreeMap<DeviceId, Option<usize>> =
            seen.places.candidates.iter().map(|candidate| (candidate.device, None)).collect();
        places.extend(devices.iter().enumerate().map(|(at, device)| (*device, Some(at))));
        let barred = placement::barred(seen.places.candidates);
        let room = |(held, device)| if barred.contains(device) { 0 } else { usize::max(held / 8, 4) };
        let mut held = vec![0_usize; devices.len()];
        for at in seen.places.hashed.iter().flat_map(|set| &set.0).filter_map(|device| *places.get(device)?) {
            held[at] += 1;
        }
        let mut model = Model {
            seen: *seen,
            spread: Completion::of(seen.places.candidates),
            loads: vec![0; devices.len()],
            counts: devices.iter().map(|device| handicaps.of(*device)).collect(),
            // An eighth of its memory is what others' hot slots may take.
            room: held.into_iter().zip(&devices).map(room).collect(),
            keeps: devices.iter().map(|device| barred.contains(device)).collect(),
            devices,
            places,
            asked: BTreeMap::new(),
        };
        let mut rates: BTreeMap<Slot, u64> = seen.balanced.keys().map(|slot| (*slot, 0)).collect();
        for (at, device) in model.devices.iter().enumerate() {
            let work = &seen.work[device];
            let hot: u64 = work.hot.iter().map(|(_, rate)| *rate).fold(0, u64::saturating_add);
            model.loads[at] = counted(work.read_rate.saturating_sub(hot), model.counts[at]);
            for (slot, rate) in
                work.hot.iter().filter(|(slot, _)| usize::from(slot.0) < seen.places.hashed.len())
            {
                *rates.entry(*slot).or_default() += *rate;
            }
        }
        for (slot, rate) in rates {
            let (hashed, set) = (seen.hashed(slot), seen.wanted(slot));
            for device in set.iter().filter(|device| !hashed.contains(device)) {
                if let Some(at) = model.at(*device) {
                    model.room[at] = model.room[at].saturating_sub(1);
                }
            }
            model.asked.insert(slot, Asked { rate, set: Vec::new() });
            model.place(slot, set.to_vec());
        }
        model
    }

    fn at(&self, device: DeviceId) -> Option<usize> {
        self.places.get(&device).copied().flatten()
    }

    pub(super) fn mean(&self) -> u64 {
        self.loads.iter().sum::<u64>() / self.loads.len().max(1) as u64
    }

    /// Returns what each device carries, in bytes a second.
    pub(super) fn rates(&self) -> Vec<u64> {
        self.loads.iter().zip(&self.counts).map(|(load, counts)| load * handicaps::NONE / counts).collect()
    }

    /// Returns what of a slot's rate is asked of the replica that is so far behind the primary.
    fn part(&self, rate: u64, position: usize, replicas: usize) -> u64 {
        match position {
            _ if replicas > self.seen.replicas => rate / replicas as u64,
            0 => rate,
            _ => 0,
        }
    }

    /// Returns what of a slot's rate a device carries while the slot is on `set`, by what it counts for.
    fn share(&self, at: usize, rate: u64, set: &[DeviceId]) -> u64 {
        let position = set.iter().position(|device| *device == self.devices[at]);
        position.map_or(0, |position| counted(self.part(rate, position, set.len()), self.counts[at]))
    }

    /// Lets a slot be on other devices.
    pub(super) fn place(&mut self, slot: Slot, set: Vec<DeviceId>) {
        let Some(mut asked) = self.asked.remove(&slot) else { return };
        for device in &asked.set {
            let Some(at) = self.at(*device) else { continue };
            self.loads[at] = self.loads[at].saturating_sub(self.share(at, asked.rate, &asked.set));
        }
        for device in &set {
            let Some(at) = self.at(*device) else { continue };
            self.loads[at] += self.share(at, asked.rate, &set);
        }
        asked.set = set;
        self.asked.insert(slot, asked);
    }

    pub(super) fn put_back(&mut self, slot: Slot) {
        self.place(slot, self.seen.hashed(slot).to_vec());
    }

    /// Returns where a slot would be with one replica less, which is where its hash says when there are no more than that gives.
    pub(super) fn smaller(&self, slot: Slot) -> Vec<DeviceId> {
        let hashed = self.seen.hashed(slot);
        match self.asked.get(&slot) {
            Some(asked) if asked.set.len() > hashed.len() + 1 => {
                let without = |at: usize| [&asked.set[..at], &asked.set[at + 1..]].concat();
                // The newest first, unless what is left would share a domain for no reason.
                let mut smaller = (1..asked.set.len()).rev().map(without);
                let is_spread = |set: &Vec<DeviceId>| self.spread.check(set, hashed.len()).is_ok();
                smaller.find(is_spread).unwrap_or_else(|| hashed.to_vec())
            }
            _ => hashed.to_vec(),
        }
    }

    /// Returns what a device would carry if a slot were on `set`.
    fn load_with(&self, at: usize, asked: &Asked, set: &[DeviceId]) -> u64 {
        let has = self.share(at, asked.rate, &asked.set);
        self.loads[at].saturating_sub(has) + self.share(at, asked.rate, set)
    }

    /// Returns what the busiest of these devices would carry if the slot were on them.
    pub(super) fn busiest_with(&self, slot: Slot, set: &[DeviceId]) -> u64 {
        let Some(asked) = self.asked.get(&slot) else { return 0 };
        let load = |(position, device): (usize, &DeviceId)| match self.at(*device) {
            Some(at) => self.load_with(at, asked, set),
            // Who has not reported carries nothing that is known.
            None => self.part(asked.rate, position, set.len()),
        };
        set.iter().enumerate().map(load).max().unwrap_or(0)
    }

    /// Returns what the busiest device, and the busiest of those that carry more than before, would carry if a slot were on `set`.
    fn cost(&self, busiest: usize, asked: &Asked, set: &[DeviceId]) -> u64 {
        let more = |device: &DeviceId| {
            let at = self.at(*device)?;
            Some(self.load_with(at, asked, set)).filter(|load| *load > self.loads[at])
        };
        let taken = set.iter().filter_map(more).max().unwrap_or(0);
        self.load_with(busiest, asked, set).max(taken)
    }

    /// Takes from the busiest device that can be relieved, as long as that makes a difference; says why it stopped where it did
    /// nothing.
    pub(super) fn relieve(&mut self, tuning: &BalanceTuning, reasons: &mut BTreeMap<Slot, String>) -> String {
        if self.devices.len() < 2 {
            let known = number(self.devices.len() as u64, "device");
            return format!("of {known} it is known what is read: at least 2 are needed");
        }
        let mean = self.mean();
        if mean < tuning.least_rate {
            let least = shown(tuning.least_rate);
            return format!("devices are read at {} on average: below {least} nothing is done", shown(mean));
        }
        let mut begins = tuning.beyond_percent;
        // A slot that is read more than all its replicas can take holds up nobody else's relief.
        let mut passed_over: BTreeSet<usize> = BTreeSet::new();
        let mut because = None;
        loop {
            let Some((busiest, load)) = self.busiest(&passed_over) else {
                return because.unwrap_or_default();
            };
            let percent = load * 100 / mean;
            if percent <= begins {
                return because.unwrap_or_else(|| {
                    format!(
                        "the busiest device carries {percent} % of the mean: up to {begins} % nothing is done"
                    )
                });
            }
            let mut found = self.best(busiest, mean, false).filter(|_| reasons.len() < tuning.at_once);
            if let Some((slot, _)) = found
                && self.is_by_hash(slot)
                && self.left(reasons) == 0
                && !self.make_room(slot, tuning.at_once, reasons)
            {
                found = self.best(busiest, mean, true);
            }
            let Some((slot, set)) = found else {
                let why = || {
                    format!(
                        "the busiest device carries {percent} % of the mean, and no slot of it makes that less elsewhere"
                    )
                };
                because.get_or_insert_with(why);
                passed_over.insert(busiest);
                if reasons.len() >= tuning.at_once || passed_over.len() >= MAX_PASSED_OVER {
                    return because.unwrap_or_default();
                }
                continue;
            };
            begins = tuning.aim_percent;
            let asked = &self.asked[&slot];
            let is_it = |device: &DeviceId| *device == self.devices[busiest];
            let position = asked.set.iter().position(is_it).unwrap_or(0);
            let mut why = format!(
                "it is read at {}, a share of {} on device {}, which carries {percent} % of the mean of {}",
                shown(asked.rate),
                shown(self.part(asked.rate, position, asked.set.len())),
                self.devices[busiest],
                shown(mean),
            );
            let counts = self.counts[busiest];
            if counts > handicaps::NONE {
                why += &format!(" (counted for {counts} %: requests wait for it longer than for others)");
            }
            for device in set.iter().filter(|device| !asked.set.contains(device)) {
                if let Some(at) = self.at(*device) {
                    self.room[at] = self.room[at].saturating_sub(1);
                }
            }
            reasons.entry(slot).or_insert(why);
            self.place(slot, set);
        }
    }

    fn is_by_hash(&self, slot: Slot) -> bool {
        self.asked.get(&slot).is_none_or(|asked| asked.set == self.seen.hashed(slot))
    }

    /// Returns how many slots more may belong elsewhere than by their hash, after these changes.
    fn left(&self, reasons: &BTreeMap<Slot, String>) -> usize {
        let is_back = |slot: &&Slot| self.is_by_hash(**slot);
        let (were, are_new): (Vec<&Slot>, Vec<&Slot>) =
            reasons.keys().partition(|slot| self.seen.balanced.contains_key(slot));
        let back = were.into_iter().filter(is_back).count();
        let added = are_new.into_iter().filter(|slot| !is_back(slot)).count();
        (MAX_BALANCED + back).saturating_sub(self.seen.balanced.len() + added)
    }

    /// Lets the slot that is read least of those that do not go by their hash go back, so that another can be placed; says whether there is
    /// one that is read much less.
    fn make_room(&mut self, slot: Slot, at_once: usize, reasons: &mut BTreeMap<Slot, String>) -> bool {
        let most = self.asked.get(&slot).map_or(0, |asked| asked.rate / COOLER);
        let untouched = self.seen.balanced.keys().filter(|slot| !reasons.contains_key(slot));
        let least = untouched.map(|slot| (self.at_most(*slot), *slot)).min();
        let Some((rate, other)) = least.filter(|(rate, _)| *rate <= most && reasons.len() + 2 <= at_once)
        else {
            return false;
        };
        let why = format!(
            "it is read at {} at most, and no more than {MAX_BALANCED} slots can go elsewhere than by their hash",
            shown(rate)
        );
        reasons.insert(other, why);
        self.put_back(other);
        true
    }

    /// Returns what a slot is read at most: a device that does not tell of it reads it no more than the least of those that it tells of.
    fn at_most(&self, slot: Slot) -> u64 {
        let set = self.seen.wanted(slot);
        let are_all_asked = set.len() > self.seen.replicas;
        let most = |device: &DeviceId| {
            let Some(work) = self.seen.work.get(device) else { return u64::MAX };
            match work.hot.iter().find(|(hot, _)| *hot == slot) {
                Some((_, rate)) => *rate,
                None if work.hot.len() < MAX_HOT_SLOTS => 0,
                None => work.hot.iter().map(|(_, rate)| *rate).min().unwrap_or(0),
            }
        };
        let asked = set.iter().take(if are_all_asked { set.len() } else { 1 });
        asked.map(most).fold(0, u64::saturating_add)
    }

    fn busiest(&self, passed_over: &BTreeSet<usize>) -> Option<(usize, u64)> {
        let loads = self.loads.iter().copied().enumerate().filter(|(at, _)| !passed_over.contains(at));
        loads.max_by_key(|(at, load)| (*load, std::cmp::Reverse(*at)))
    }

    /// Returns the change that leaves the busiest device and whoever takes from it the least to carry; only of slots that do not go by their
    /// hash anyway, if no other can be placed.
    fn best(&self, busiest: usize, mean: u64, is_full: bool) -> Option<(Slot, Vec<DeviceId>)> {
        let from = self.devices[busiest];
        let load = self.loads[busiest];
        let part = |slot: &Slot, asked: &Asked| {
            let position = asked.set.iter().position(|device| *device == from)?;
            if is_full && self.is_by_hash(*slot) {
                return None;
            }
            let part = self.part(asked.rate, position, asked.set.len());
            (part > 0).then_some((part, *slot, position))
        };
        let mut slots: Vec<(u64, Slot, usize)> =
            self.asked.iter().filter_map(|(slot, asked)| part(slot, asked)).collect();
        slots.sort_unstable_by(|one, other| other.cmp(one));
        slots.truncate(LOOKED_AT);
        let others = (0..self.devices.len()).filter(|at| *at != busiest);
        let least = others.clone().map(|at| self.loads[at]).min()?;
        let mut takers: Vec<usize> = others.filter(|at| self.room[*at] > 0).collect();
        let mut are_sorted = false;
        let mut best: Option<Better> = None;
        for (share, slot, position) in slots {
            let asked = &self.asked[&slot];
            let replicas = asked.set.len();
            // Whoever takes it carries so much at least: most slots make nothing better, whoever that is.
            let without = load.saturating_sub(counted(share, self.counts[busiest]));
            let most = usize::from(MAX_REPLICAS);
            let left = counted(self.part(asked.rate, position, most), self.counts[busiest]);
            let by_move = without.max(least + share);
            let by_copy = (without + left).max(least + self.part(asked.rate, replicas, most));
            if by_move.min(by_copy) + mean * LEAST_GAIN_PERCENT / 100 > load {
                continue;
            }
            if !std::mem::replace(&mut are_sorted, true) {
                takers.sort_unstable_by_key(|at| (self.loads[*at], *at));
            }
            // What it takes besides, in per cent of the mean.
            let mut consider = |set: Vec<DeviceId>, besides: u64| {
                let cost = self.cost(busiest, asked, &set) + mean * besides / 100;
                if cost + mean * LEAST_GAIN_PERCENT / 100 <= load
                    && best.as_ref().is_none_or(|best| cost < best.cost)
                {
                    best = Some(Better { cost, slot, set });
                }
            };
            let successors = self.successors(asked);
            if !self.keeps[busiest] {
                let led = |to: DeviceId| -> Vec<DeviceId> {
                    let others = asked.set.iter().copied().filter(|device| *device != to);
                    [to].into_iter().chain(others).collect()
                };
                if let Some(set) = self.first(&successors, led) {
                    consider(set, 0);
                }
                let moved = |to: DeviceId| -> Vec<DeviceId> {
                    asked.set.iter().map(|device| if *device == from { to } else { *device }).collect()
                };
                if let Some(set) = self.first(&takers, moved) {
                    consider(set, if successors.is_empty() { 0 } else { MOVE_PERCENT });
                }
            }
            // As many more at once as it takes: later those that carry least will have been given something else.
            let mut copied = Some(asked.set.clone());
            // Once all are asked, those that were not must have room for it as well.
            let mut anew = (!successors.is_empty()).then(|| vec![from]);
            for _ in 1..replicas {
                anew = anew.and_then(|set| self.with_one_more(&set, &takers));
            }
            for more in 1..=(most - replicas.min(most)) as u64 {
                copied = copied.and_then(|set| self.with_one_more(&set, &takers));
                if let Some(set) = copied.clone() {
                    consider(set, REPLICA_PERCENT * more);
                }
                anew = anew.and_then(|set| self.with_one_more(&set, &takers));
                if let Some(set) = anew.clone() {
                    consider(set, REPLICA_PERCENT * more + MOVE_PERCENT * (replicas as u64 - 1));
                }
            }
        }
        best.map(|best| (best.slot, best.set))
    }

    /// Returns which replicas would relieve a slot's primary in its place, the least busy first; none where the others are asked anyway.
    fn successors(&self, asked: &Asked) -> Vec<usize> {
        if asked.set.len() > self.seen.replicas {
            return Vec::new();
        }
        let mut others: Vec<usize> = asked
            .set
            .iter()
            .skip(1)
            .filter_map(|device| self.at(*device))
            .filter(|at| !self.keeps[*at])
            .collect();
        others.sort_unstable_by_key(|at| (self.loads[*at], *at));
        others
    }

    /// Returns the first of the takers that carry least with which the slot may belong to the set.
    fn first(&self, takers: &[usize], with: impl Fn(DeviceId) -> Vec<DeviceId>) -> Option<Vec<DeviceId>> {
        takers
            .iter()
            .take(MAX_TRIED)
            .map(|at| with(self.devices[*at]))
            .find(|set| self.spread.check(set, 1).is_ok())
    }

    /// Returns a set with the first taker besides that may be in it.
    fn with_one_more(&self, set: &[DeviceId], takers: &[usize]) -> Option<Vec<DeviceId>> {
        self.first(takers, |to| set.iter().copied().chain([to]).collect())
    }

    /// Returns what is to change, with the reasons.
    pub(super) fn changes(
        &self,
        seen: &Seen<'_>,
        reasons: BTreeMap<Slot, String>,
        at_once: usize,
    ) -> Vec<Balancing> {
        let mut left = MAX_BALANCED.saturating_sub(seen.balanced.len());
        let mut changes = Vec::new();
        // Those that go back first: they make room.
        let (back, others): (Vec<_>, Vec<_>) =
            reasons.into_iter().partition(|(slot, _)| self.is_by_hash(*slot));
        for (slot, why) in back.into_iter().chain(others) {
            let (hashed, now) = (seen.hashed(slot), seen.wanted(slot));
            let Some(asked) = self.asked.get(&slot) else { continue };
            let (is_back, was) = (asked.set == hashed, seen.balanced.contains_key(&slot));
            let is_same = asked.set == now && is_back != was;
            let is_more = !is_back && !was;
            if is_same || changes.len() == at_once || is_more && left == 0 {
                continue;
            }
            left = left + usize::from(is_back && was) - usize::from(is_more);
            changes.push(Balancing {
                slot,
                set: if is_back { Vec::new() } else { asked.set.clone() },
                reason: Reason::new(format_args!("{why}: {}", said(now, &asked.set))),
            });
        }
        changes
    }
}

/// Returns what a rate is for a device that counts for so much.
fn counted(rate: u64, counts: u64) -> u64 {
    rate.saturating_mul(counts) / handicaps::NONE
}
