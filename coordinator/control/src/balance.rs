//! Spreads work over devices: slots that are read much get more replicas, devices that carry more than others give slots away, or leave
//! it to another replica to be asked first, and what is not read much any more goes back to where its hash says. Decides by what devices
//! report, bytes and waits; the planner moves.
//!
//! Nothing swings: what is done aims well below where it begins, what is taken back must leave everybody well below it for a
//! while, and after each decision the slots must have moved and the reports followed before the next.

mod model;
mod tuning;
mod words;

pub use tuning::BalanceTuning;

use crate::handicaps::Handicaps;
use crate::planner::Places;
use kvhive_protocol::control::Balancing;
use kvhive_protocol::load::Work;
use kvhive_protocol::{ClusterMap, DeviceId, Moment, ReplicaSet, Slot};
use model::Model;
use std::collections::BTreeMap;
use words::shown;

/// A slot that comes to no more than this part of the mean, in per cent, goes back whatever else its device carries.
const NEGLIGIBLE_PERCENT: u64 = 1;

/// What a decision goes by.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// Who may hold slots, and where they belong, with and without what was decided before.
    pub(crate) places: Places<'a>,
    /// How many replicas a slot has by its hash: clients ask the others of so many only where the primary keeps them waiting.
    pub(crate) replicas: usize,
    /// Which slots were to belong elsewhere than by their hash.
    pub(crate) balanced: &'a BTreeMap<Slot, ReplicaSet>,
    /// What each device reported last.
    pub(crate) work: &'a BTreeMap<DeviceId, Work>,
}

impl<'a> Seen<'a> {
    /// Takes from a map what is to be known of it.
    pub(crate) fn of(
        map: &'a ClusterMap,
        places: Places<'a>,
        work: &'a BTreeMap<DeviceId, Work>,
    ) -> Seen<'a> {
        let replicas = usize::from(map.settings.replicas);
        Seen { places, replicas, balanced: &map.balanced, work }
    }

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
    // What has cooled can wait, and what is hot cannot: at least half of what is changed at once is left to that.
    let is_idle = mean < tuning.least_rate;
    let mut cools = if is_idle { tuning.at_once } else { tuning.at_once.div_ceil(2) };
    for (slot, set) in seen.balanced {
        if let Some(gone) = set.0.iter().find(|device| !model.places.contains_key(device)) {
            reasons.insert(*slot, format!("device {gone} is not there to hold it any more"));
            model.put_back(*slot);
            continue;
        }
        let (smaller, rate) = (model.smaller(*slot), model.asked.get(slot).map_or(0, |asked| asked.rate));
        let is_negligible = rate * 100 <= mean * NEGLIGIBLE_PERCENT;
        let is_calm = || model.busiest_with(*slot, &smaller) * 100 <= mean * tuning.calm_percent;
        let is_cold = is_idle || is_negligible || is_calm();
        if may_cool(*slot, is_cold) && cools > 0 {
            cools -= 1;
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

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
