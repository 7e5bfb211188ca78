//! `kvhive bench placement`: how long it takes to find where every slot belongs, how evenly that is, and what moves when a device joins.

use super::{Bar, Row};
use anyhow::Result;
use kvhive_control::Place;
use kvhive_control::placement::{Candidate, nearest, wanted_of};
use kvhive_protocol::{DeviceId, MemberId, ReplicaSet, SLOTS};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

const BASELINE: &str = "weighted rendezvous over every pair, unbounded";
const SAMPLED: &str = "weighted rendezvous over every pair, unbounded; every 64th slot, times 64";
/// Of every so many slots one is timed where there are many pairs: each slot costs the baseline the same.
const SAMPLE: u32 = 64;
/// More pairs of slots and devices than this are many.
const MANY_PAIRS: u64 = 10_000_000;
const LEAST: &str = "the share of the device that joins";
const GIB: u64 = 1 << 30;
/// Seconds that it may take.
const TIME: Bar = Bar::OursAtMost(1.0);
/// Of the least that must move.
const MOVED: Bar = Bar::AtMost(1.1);
/// Devices that there are with the one that joins.
const GROWN: [u32; 5] = [4, 8, 16, 64, 1000];
/// Devices of a member, members of a rack, racks of a zone.
const SHAPE: [u32; 3] = [8, 5, 25];

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut uneven: BTreeMap<(u32, u32), f64> = BTreeMap::new();
    for (devices, slots, replicas) in
        [(64, 4096, 2), (1000, 4096, 2), (10_000, 1 << 16, 1), (10_000, 1 << 16, 2)]
    {
        let candidates = candidates(devices);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut our_most = 0.0;
        let is_sampled = u64::from(devices) * u64::from(slots) > MANY_PAIRS;
        let every = if is_sampled { SAMPLE } else { 1 };
        for _ in 0..runs {
            let begun = Instant::now();
            let sets = black_box(wanted_of(black_box(&candidates), slots, replicas));
            ours.push(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            for slot in (0..slots).step_by(every as usize) {
                black_box(nearest(black_box(&candidates), slot));
            }
            theirs.push(begun.elapsed().as_secs_f64() * f64::from(every));
            our_most = most(sets.iter().filter_map(ReplicaSet::primary), devices, slots);
        }
        let of = format!("{devices}x{slots}x{replicas}");
        let baseline = if is_sampled { SAMPLED } else { BASELINE };
        rows.push(Row::of_runs(&format!("plan-{of}"), "s", &ours, &theirs, baseline).with_bar(TIME));
        // How even that is takes every slot, is no matter of time and the same however many replicas there are.
        let their_most = *uneven
            .entry((devices, slots))
            .or_insert_with(|| most(primaries(&candidates, slots).into_iter(), devices, slots));
        let unit = "greatest / mean primaries";
        rows.push(Row::of_runs(&format!("even-{of}"), unit, &[our_most], &[their_most], BASELINE));
    }
    for devices in GROWN {
        let (moved, least) = moved(devices, u32::from(SLOTS));
        let row = Row::of_runs(&format!("moved-{devices}"), "slots", &[moved], &[least], LEAST);
        rows.push(row.with_bar(MOVED));
    }
    Ok(rows)
}

/// Returns how many slots change their device when the last of so many equal ones joins, one a member, and how many must.
fn moved(devices: u32, slots: u32) -> (f64, f64) {
    let one = |at: u32| Candidate {
        device: DeviceId::new(MemberId(at + 1), 0),
        weight: GIB,
        place: Place([0, 0, at]),
        takes: true,
    };
    let grown: Vec<Candidate> = (0..devices).map(one).collect();
    let before = wanted_of(&grown[..grown.len() - 1], slots, 1);
    let after = wanted_of(&grown, slots, 1);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    (moved as f64, f64::from(slots) / f64::from(devices))
}

/// Returns the device nearest to each slot, looked for on all cores.
fn primaries(candidates: &[Candidate], slots: u32) -> Vec<DeviceId> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    std::thread::scope(|scope| {
        let part = |worker: u32| {
            let own = (worker..slots).step_by(workers as usize);
            move || own.filter_map(|slot| nearest(candidates, slot)).collect::<Vec<_>>()
        };
        let parts: Vec<_> = (0..workers).map(|worker| scope.spawn(part(worker))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("finding the nearest does not panic")).collect()
    })
}

/// Returns devices of two sizes, in zones, racks and members.
fn candidates(devices: u32) -> Vec<Candidate> {
    let one = |at: u32| {
        let member = at / SHAPE[0];
        let rack = member / SHAPE[1];
        Candidate {
            device: DeviceId::new(MemberId(member + 1), (at % SHAPE[0]) as u16),
            weight: GIB * if member.is_multiple_of(2) { 80 } else { 96 },
            place: Place([rack / SHAPE[2], rack, member]),
            takes: true,
        }
    };
    (0..devices).map(one).collect()
}

/// Returns how many primaries the device has that has most, as a multiple of what it would have on average.
fn most(primaries: impl Iterator<Item = DeviceId>, devices: u32, slots: u32) -> f64 {
    let mut counts: BTreeMap<DeviceId, u32> = BTreeMap::new();
    for device in primaries {
        *counts.entry(device).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    f64::from(most) * f64::from(devices) / f64::from(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_when_a_device_joins_is_within_the_bar_of_few_devices_alone() {
        for (devices, is_within) in [(4, true), (8, true), (64, false)] {
            let (moved, least) = moved(devices, u32::from(SLOTS));
            let row = Row::of_runs("moved", "slots", &[moved], &[least], LEAST).with_bar(MOVED);
            assert!(moved >= least.floor(), "{devices}: {moved} of {least}");
            assert_eq!(row.bar.map(|bar| bar.met), Some(is_within), "{devices}: {moved} of {least}");
        }
    }
}
