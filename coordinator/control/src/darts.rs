//! Which devices are nearest to each slot, found without looking at every pair. Each device throws darts at slots: its stream of
//! them is its own, and how fast it throws is its weight. How long until a slot is first hit is then exponentially distributed
//! with the weight as its rate, as in weighted rendezvous hashing, and in a short time every slot is hit by the few devices that
//! are near to it. What no dart has hit by then has its distance from a hash of the pair, added to that time: an exponential
//! distribution has no memory.
//!
//! Frozen: changing a bit here moves slots.

use crate::log2::minus_log2;
use crate::placement::Candidate;
use kvhive_protocol::DeviceId;
use xxhash_rust::xxh3::xxh3_64;

/// How long darts are thrown: so that 2^-32 of slots are hit by none, and the others by 22 on average.
const DEPTH: u64 = 32;
/// Fraction bits of the times between darts.
const TIME_BITS: u32 = 32;
/// Distances from here on are those of pairs that no dart has hit.
const BEYOND: u64 = 1 << 63;

/// How far a device is from a slot; the smaller, the nearer.
pub(crate) type Distance = u64;

/// A device that a dart says is near to a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Near {
    pub(crate) distance: Distance,
    /// Its position among the candidates.
    pub(crate) at: u32,
}

/// The devices nearest to each slot.
pub(crate) struct Darts {
    near: Vec<Near>,
    /// For each slot where in `near` its own begin, and the end.
    begins: Vec<u32>,
    weights: Weights,
}

/// Weights in a form that multiplies well.
struct Weights {
    each: Vec<u64>,
    total: u64,
}

impl Weights {
    /// Keeps 32 bits of the greatest; a device that has no weight beside it has the least there is.
    fn of(candidates: &[Candidate]) -> Weights {
        let greatest = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(1);
        let shift = (u64::BITS - greatest.leading_zeros()).saturating_sub(32);
        let each: Vec<u64> = candidates.iter().map(|candidate| (candidate.weight >> shift).max(1)).collect();
        let total = each.iter().sum();
        Weights { each, total }
    }
}

impl Darts {
    /// Lets every candidate throw at so many slots.
    pub(crate) fn throw(candidates: &[Candidate], slots: u32) -> Darts {
        let weights = Weights::of(candidates);
        let mut thrown: Vec<(u32, Near)> = Vec::with_capacity(slots as usize * DEPTH as usize);
        let mut begins = vec![0_u32; slots as usize + 1];
        for ((candidate, weight), at) in candidates.iter().zip(&weights.each).zip(0..) {
            let time = (u128::from(*weight) * u128::from(u64::from(slots) * DEPTH)) << TIME_BITS;
            let time = (time / u128::from(weights.total)) as u64;
            let unit = (u128::MAX >> 1) / u128::from(time.max(1));
            let mut stream = Stream::of(candidate.device);
            while let Some(hit) = stream.next_before(time, slots) {
                let distance = ((u128::from(hit.time) * unit) >> 64) as u64;
                thrown.push((hit.slot, Near { distance, at }));
                begins[hit.slot as usize + 1] += 1;
            }
        }
        for slot in 0..slots as usize {
            begins[slot + 1] += begins[slot];
        }
        let mut ends: Vec<u32> = begins[..slots as usize].to_vec();
        let mut near = vec![Near::default(); thrown.len()];
        for (slot, dart) in thrown {
            let end = &mut ends[slot as usize];
            near[*end as usize] = dart;
            *end += 1;
        }
        for slot in 0..slots as usize {
            near[begins[slot] as usize..begins[slot + 1] as usize].sort_unstable();
        }
        Darts { near, begins, weights }
    }

    /// Returns whose darts have hit the slot, the nearest first; some more than once.
    pub(crate) fn near(&self, slot: u32) -> &[Near] {
        &self.near[self.begins[slot as usize] as usize..self.begins[slot as usize + 1] as usize]
    }

    /// Returns how far a candidate is whose darts have not hit the slot.
    pub(crate) fn beyond(&self, candidates: &[Candidate], slot: u32, at: u32) -> Near {
        let length = u128::from(minus_log2(pair(candidates[at as usize].device, slot)));
        let far =
            ((length * u128::from(self.weights.total)) << 14) / u128::from(self.weights.each[at as usize]);
        Near { distance: BEYOND | shortened(far), at }
    }
}

/// Keeps the order of numbers and 56 bits of each.
fn shortened(number: u128) -> u64 {
    let shift = (u128::BITS - number.leading_zeros()).saturating_sub(56);
    u64::from(shift) << 56 | (number >> shift) as u64
}

/// Hashes a device and a slot.
pub(crate) fn pair(device: DeviceId, slot: u32) -> u64 {
    let mut pair = [0; 10];
    pair[..4].copy_from_slice(&slot.to_le_bytes());
    pair[4..8].copy_from_slice(&device.member.0.to_le_bytes());
    pair[8..].copy_from_slice(&device.index.to_le_bytes());
    xxh3_64(&pair)
}

/// One device's darts.
struct Stream {
    state: u64,
    time: u64,
}

struct Hit {
    slot: u32,
    time: u64,
}

impl Stream {
    fn of(device: DeviceId) -> Stream {
        let mut name = [0; 6];
        name[..4].copy_from_slice(&device.member.0.to_le_bytes());
        name[4..].copy_from_slice(&device.index.to_le_bytes());
        Stream { state: xxh3_64(&name), time: 0 }
    }

    /// Throws the next, unless it would hit later.
    fn next_before(&mut self, end: u64, slots: u32) -> Option<Hit> {
        let random = self.next_random();
        // The upper half says when, the lower one where.
        self.time += minus_log2(random | u64::from(u32::MAX)) >> (48 - TIME_BITS);
        let slot = (((random & u64::from(u32::MAX)) * u64::from(slots)) >> 32) as u32;
        (self.time < end).then_some(Hit { slot, time: self.time })
    }

    /// SplitMix64 (Steele, Lea & Flood 2014).
    fn next_random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}
