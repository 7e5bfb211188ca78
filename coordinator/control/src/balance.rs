//! Spreads work over devices: slots that are read much get more replicas, devices that carry more than others give slots away,
//! and what is not read much any more goes back to where its hash says. Decides by what devices report, bytes and waits; the planner moves.
//!
//! Nothing swings: what is done aims well below where it begins, what is taken back must leave everybody well below it for a
//! while, and after each decision the slots must have moved and the reports followed before the next.

mod tuning;
mod words;

pub use tuning::BalanceTuning;

use crate::handicaps::{self, Handicaps};
use crate::placement::{self, Candidate, Completion};
use crate::planner::Places;
use crate::validate::MAX_REPLICAS;
use kvhive_protocol::control::{Balancing, MAX_BALANCED};
use kvhive_protocol::load::Work;
use kvhive_protocol::{DeviceId, Moment, Reason, ReplicaSet, Slot, counted as number};
use std::collections::{BTreeMap, BTreeSet};
use words::{said, shown};

/// Slots of one device that are looked at for one change.
const LOOKED_AT: usize = 64;
/// The most devices of one decision that cannot be relieved and are passed over for the next busiest.
const MAX_PASSED_OVER: usize = 256;
/// What a replica more must be better by than a move, in per cent of the mean: it takes memory.
const REPLICA_PERCENT: u64 = 5;
/// What a change must make better, in per cent of the mean.
const LEAST_GAIN_PERCENT: u64 = 2;
/// A slot that comes to no more than this part of the mean, in per cent, goes back whatever else its device carries.
const NEGLIGIBLE_PERCENT: u64 = 1;

/// What a decision goes by.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// Who may hold slots, and where they belong, with and without what was decided before.
    pub(crate) places: Places<'a>,
    /// Which slots were to belong elsewhere than by their hash.
    pub(crate) balanced: &'a BTreeMap<Slot, ReplicaSet>,
    /// What each device reported last.
    pub(crate) work: &'a BTreeMap<DeviceId, Work>,
}

impl<'a> Seen<'a> {
    fn hashed(&self, slot: Slot) -> &'a [DeviceId] {
        &self.places.hashed[usize::from(slot.0)].0
    }

    /// Returns where a slot belongs now, which is not what was decided while somebody who is cordoned keeps it.
    fn wanted(&self, slot: Slot) -> &'a [DeviceId] {
        &self.places.wanted[usize::from(slot.0)].0
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Decided {
    /// What each device carries, and what it would with the changes.
    pub(crate) rates: Vec<(DeviceId, u64, u64)>,
    pub(crate) changes: Vec<Balancing>,
    /// Why there are none.
    pub(crate) because: String,
}

/// The leader's memory of what work did lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct Balancer {
    /// Since when slots are where they belong.
    calm_since: Option<Moment>,
    /// Since when slots that do not go by their hash could.
    cold_since: BTreeMap<Slot, Moment>,
    /// When it was learned last which devices are slower.
    learned_at: Option<Moment>,
    handicaps: Handicaps,
}

impl Balancer {
    /// Returns what each device counts for.
    pub(crate) fn handicaps(&self) -> &Handicaps {
        &self.handicaps
    }

    /// Says whether reports say anything that is to be gone by now: slots are where they belong, and reports have followed.
    pub(crate) fn is_due(&mut self, now: Moment, tuning: &BalanceTuning, is_settled: bool) -> bool {
        if !is_settled {
            self.calm_since = None;
            return false;
        }
        let is_calm = now.since(*self.calm_since.get_or_insert(now)) >= tuning.settle;
        is_calm && (tuning.continuous || self.is_to_learn(now, tuning))
    }

    fn is_to_learn(&self, now: Moment, tuning: &BalanceTuning) -> bool {
        self.learned_at.is_none_or(|then| now.since(then) >= tuning.settle)
    }

    /// Learns from what is due, and says what to change if that is to be done without being asked for.
    pub(crate) fn step(&mut self, now: Moment, tuning: &BalanceTuning, seen: &Seen<'_>) -> Vec<Balancing> {
        if self.is_to_learn(now, tuning) {
            self.learned_at = Some(now);
            self.handicaps.learn(seen.work);
        }
        if !tuning.continuous {
            return Vec::new();
        }
        let Balancer { cold_since, handicaps, .. } = &mut *self;
        cold_since.retain(|slot, _| seen.balanced.contains_key(slot));
        let decided = decide(tuning, seen, handicaps, |slot, is_cold| {
            if !is_cold {
                cold_since.remove(&slot);
                return false;
            }
            now.since(*cold_since.entry(slot).or_insert(now)) >= tuning.cool_for
        });
        if !decided.changes.is_empty() {
            self.calm_since = None;
        }
        decided.changes
    }
}

/// Finds changes. `may_cool` is told of each slot that does not go by its hash whether it could, and says whether it is to.
pub(crate) fn decide(
    tuning: &BalanceTuning,
    seen: &Seen<'_>,
    handicaps: &Handicaps,
    mut may_cool: impl FnMut(Slot, bool) -> bool,
) -> Decided {
    let mut model = Model::of(seen, handicaps);
    let before = model.rates();
    let mean = model.mean();
    let mut reasons: BTreeMap<Slot, String> = BTreeMap::new();
    for (slot, set) in seen.balanced {
        if let Some(gone) = set.0.iter().find(|device| !model.places.contains_key(device)) {
            reasons.insert(*slot, format!("device {gone} is not there to hold it any more"));
            model.put_back(*slot);
            continue;
        }
        let (smaller, rate) = (model.smaller(*slot), model.asked.get(slot).map_or(0, |asked| asked.rate));
        let is_negligible = rate * 100 <= mean * NEGLIGIBLE_PERCENT;
        let is_idle = mean < tuning.least_rate;
        let is_calm = || model.busiest_with(*slot, &smaller) * 100 <= mean * tuning.calm_percent;
        let is_cold = is_idle || is_negligible || is_calm();
        if may_cool(*slot, is_cold) {
            reasons.insert(
                *slot,
                format!(
                    "it is read at {} only: {} instead of {} replicas",
                    shown(rate),
                    smaller.len(),
                    set.0.len()
                ),
            );
            model.place(*slot, smaller);
        }
    }
    let because = model.relieve(tuning, &mut reasons);
    let changes: Vec<Balancing> = model.changes(seen, reasons, tuning.at_once);
    // Not every thought of it is a change: what is told is what the changes come to.
    let mut changed = Model::of(seen, handicaps);
    for change in &changes {
        match &change.set[..] {
            [] => changed.put_back(change.slot),
            set => changed.place(change.slot, set.to_vec()),
        }
    }
    let rates = model.devices.iter().zip(before).zip(changed.rates());
    let rates = rates.map(|((device, before), after)| (*device, before, after)).collect();
    Decided { rates, because: if changes.is_empty() { because } else { String::new() }, changes }
}

/// Who carries what, as changes make it.
struct Model<'a> {
    seen: Seen<'a>,
    spread: Completion<'a>,
    /// Devices that have reported.
    devices: Vec<DeviceId>,
    /// All candidates; those that have reported with their position among the devices.
    places: BTreeMap<DeviceId, Option<usize>>,
    /// What they carry, each by what it counts for.
    loads: Vec<u64>,
    /// What they count for, in per cent.
    counts: Vec<u64>,
    /// How many slots more a device may hold than its hash gives it; none where its member is cordoned.
    room: Vec<usize>,
    /// They are of members that are cordoned, which keep what they have: a replica more elsewhere is all that relieves them.
    keeps: Vec<bool>,
    asked: BTreeMap<Slot, Asked>,
}

/// A slot that is read much, or that does not go by its hash.
struct Asked {
    rate: u64,
    set: Vec<DeviceId>,
}

impl<'a> Model<'a> {
    fn of(seen: &Seen<'a>, handicaps: &Handicaps) -> Model<'a> {
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

    fn mean(&self) -> u64 {
        self.loads.iter().sum::<u64>() / self.loads.len().max(1) as u64
    }

    /// Returns what each device carries, in bytes a second.
    fn rates(&self) -> Vec<u64> {
        self.loads.iter().zip(&self.counts).map(|(load, counts)| load * handicaps::NONE / counts).collect()
    }

    /// Returns what a part of a slot's rate is for a device.
    fn share(&self, at: usize, rate: u64, parts: usize) -> u64 {
        counted(rate / parts.max(1) as u64, self.counts[at])
    }

    /// Lets a slot be on other devices, which its readers share evenly.
    fn place(&mut self, slot: Slot, set: Vec<DeviceId>) {
        let Some(asked) = self.asked.get_mut(&slot) else { return };
        let old = std::mem::replace(&mut asked.set, set.clone());
        let rate = asked.rate;
        for device in &old {
            let Some(at) = self.at(*device) else { continue };
            self.loads[at] = self.loads[at].saturating_sub(self.share(at, rate, old.len()));
        }
        for device in &set {
            let Some(at) = self.at(*device) else { continue };
            self.loads[at] += self.share(at, rate, set.len());
        }
    }

    fn put_back(&mut self, slot: Slot) {
        self.place(slot, self.seen.hashed(slot).to_vec());
    }

    /// Returns where a slot would be with one replica less, which is where its hash says when there are no more than that gives.
    fn smaller(&self, slot: Slot) -> Vec<DeviceId> {
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

    /// Returns what the busiest of these devices would carry if the slot were on them.
    fn busiest_with(&self, slot: Slot, set: &[DeviceId]) -> u64 {
        let Some(asked) = self.asked.get(&slot) else { return 0 };
        let load = |device: &DeviceId| {
            // Who has not reported carries nothing that is known.
            let Some(at) = self.at(*device) else { return asked.rate / set.len().max(1) as u64 };
            let has =
                if asked.set.contains(device) { self.share(at, asked.rate, asked.set.len()) } else { 0 };
            self.loads[at].saturating_sub(has) + self.share(at, asked.rate, set.len())
        };
        set.iter().map(load).max().unwrap_or(0)
    }

    /// Takes from the busiest device that can be relieved, as long as that makes a difference; says why it stopped where it did
    /// nothing.
    fn relieve(&mut self, tuning: &BalanceTuning, reasons: &mut BTreeMap<Slot, String>) -> String {
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
            let Some((slot, set)) = self.best(busiest, mean).filter(|_| reasons.len() < tuning.at_once)
            else {
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
            let mut why = format!(
                "it is read at {}, a share of {} on device {}, which carries {percent} % of the mean of {}",
                shown(asked.rate),
                shown(asked.rate / asked.set.len() as u64),
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

    fn busiest(&self, passed_over: &BTreeSet<usize>) -> Option<(usize, u64)> {
        let loads = self.loads.iter().copied().enumerate().filter(|(at, _)| !passed_over.contains(at));
        loads.max_by_key(|(at, load)| (*load, std::cmp::Reverse(*at)))
    }

    /// Returns the change that leaves the busiest device and whoever takes from it the least to carry.
    fn best(&self, busiest: usize, mean: u64) -> Option<(Slot, Vec<DeviceId>)> {
        let from = self.devices[busiest];
        let load = self.loads[busiest];
        let mut slots: Vec<(u64, Slot)> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.rate > 0 && asked.set.contains(&from))
            .map(|(slot, asked)| (asked.rate / asked.set.len() as u64, *slot))
            .collect();
        slots.sort_unstable_by(|one, other| other.cmp(one));
        slots.truncate(LOOKED_AT);
        let mut takers: Vec<usize> =
            (0..self.devices.len()).filter(|at| self.room[*at] > 0 && *at != busiest).collect();
        let least = takers.iter().map(|at| self.loads[*at]).min()?;
        let mut are_sorted = false;
        let mut best: Option<(u64, Slot, Vec<DeviceId>)> = None;
        for (share, slot) in slots {
            let asked = &self.asked[&slot];
            // Whoever takes it carries so much at least: most slots make nothing better, whoever that is.
            let part = asked.rate / (asked.set.len() as u64 + 1);
            let (relief, left) = (counted(share, self.counts[busiest]), counted(part, self.counts[busiest]));
            let by_move = (load - relief.min(load)).max(least + share);
            let by_copy = (load - relief.min(load) + left).max(least + part);
            if by_move.min(by_copy) + mean * LEAST_GAIN_PERCENT / 100 > load {
                continue;
            }
            if !std::mem::replace(&mut are_sorted, true) {
                takers.sort_unstable_by_key(|at| (self.loads[*at], *at));
            }
            let mut consider = |cost: u64, set: Vec<DeviceId>| {
                if cost + mean * LEAST_GAIN_PERCENT / 100 <= load
                    && best.as_ref().is_none_or(|best| cost < best.0)
                {
                    best = Some((cost, slot, set));
                }
            };
            let moved = |to: DeviceId| -> Vec<DeviceId> {
                asked.set.iter().map(|device| if *device == from { to } else { *device }).collect()
            };
            if !self.keeps[busiest]
                && let Some((to, set)) = self.first(&takers, moved)
            {
                let taken = counted(share, self.counts[to]);
                consider((load - relief.min(load)).max(self.loads[to] + taken), set);
            }
            let copied = |to: DeviceId| -> Vec<DeviceId> { asked.set.iter().copied().chain([to]).collect() };
            if asked.set.len() < usize::from(MAX_REPLICAS)
                && let Some((to, set)) = self.first(&takers, copied)
            {
                let left =
                    (load - relief.min(load) + left).max(self.loads[to] + counted(part, self.counts[to]));
                consider(left + mean * REPLICA_PERCENT / 100, set);
            }
        }
        best.map(|(_, slot, set)| (slot, set))
    }

    /// Returns the first taker with which the slot may belong to the set.
    fn first(
        &self,
        takers: &[usize],
        with: impl Fn(DeviceId) -> Vec<DeviceId>,
    ) -> Option<(usize, Vec<DeviceId>)> {
        takers.iter().find_map(|at| {
            let set = with(self.devices[*at]);
            self.spread.check(&set, 1).is_ok().then_some((*at, set))
        })
    }

    /// Returns what is to change, with the reasons.
    fn changes(&self, seen: &Seen<'_>, reasons: BTreeMap<Slot, String>, at_once: usize) -> Vec<Balancing> {
        let mut left = MAX_BALANCED.saturating_sub(seen.balanced.len());
        let mut changes = Vec::new();
        for (slot, why) in reasons {
            let (hashed, now) = (seen.hashed(slot), seen.wanted(slot));
            let Some(asked) = self.asked.get(&slot) else { continue };
            let is_back = asked.set == hashed;
            let is_same = asked.set == now && is_back != seen.balanced.contains_key(&slot);
            let is_more = !is_back && !seen.balanced.contains_key(&slot);
            if is_same || changes.len() == at_once || is_more && left == 0 {
                continue;
            }
            left -= usize::from(is_more);
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

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
