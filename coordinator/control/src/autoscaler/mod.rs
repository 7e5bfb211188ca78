//! How many members the cluster should have, and why, in numbers. A machine: it is told what devices report, asked once each
//! stretch of time, and does nothing itself.
//!
//! The size is the smallest that covers enough of what the largest allowed would ([`ScalingPolicy::keep_per_mille`]), by the
//! curve of the last hour, with distances stretched by how much more load is foreseen: twice the requests a second put twice the
//! blocks between two uses of one. More members come at once, fewer only when fewer would have been enough for a while, by a
//! stricter measure: what is given away must be earned again block by block.
//!
//! What may be lost is counted a second, not a request: in a quiet hour a member more saves few blocks, so fewer members do; in a
//! busy one less may go. Over a day that adds up to what the policy lets go.

mod curve;

use crate::predictor::{Figure, Predictor};
use curve::Curve;
use kvhive_protocol::DeviceId;
use kvhive_protocol::scaling::{OBSERVATION_SECONDS, Reuse, ScalingMode, ScalingPolicy};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// What counts for how much one observation later: half after an hour.
const FADE: f64 = 0.943_874_313;
/// Load foreseen counts at most so many times that of late.
const MOST_GROWTH: f64 = 4.0;
/// How many times what the policy lets go may be lost of a request, in the busiest hour and in the quietest.
const LOSS: (f64, f64) = (0.5, 5.0);
/// Fewer keys asked of late say nothing.
const LEAST_ASKED: f64 = 1000.0;
/// Fewer members must cover this part more of what `keep_per_mille` lets go.
const STRICTER: f64 = 1.0 / 3.0;

/// Why a size is recommended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// An operator asked for it.
    Manual,
    /// Nothing is to be recommended.
    Off,
    /// Too little is known.
    Unknown,
    /// The size is below the floor or above the ceiling.
    Bounds,
    /// Fewer would cover too little.
    Capacity,
    /// Requests wait for too long.
    Queue,
    /// Fewer cover enough, and have for long.
    Surplus,
    /// Fewer cover enough, and what is held has no room in them.
    Room,
    /// It was changed too short a time ago, or fewer have not been enough for long enough.
    Cooldown,
    /// It is the right size.
    Right,
}

impl Why {
    /// Returns its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Why::Manual => "manual",
            Why::Off => "off",
            Why::Unknown => "unknown",
            Why::Bounds => "bounds",
            Why::Capacity => "capacity",
            Why::Queue => "queue",
            Why::Surplus => "surplus",
            Why::Room => "room",
            Why::Cooldown => "cooldown",
            Why::Right => "right",
        }
    }
}

/// A recommended size and its reason in numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Recommendation {
    /// Members now.
    pub members: u32,
    /// Members recommended.
    pub size: u32,
    /// Why.
    pub why: Why,
    /// Members that the load asks for by itself, before bounds in time.
    pub needed: u32,
    /// The fewest members that hold what is not to be let go.
    pub holding: u32,
    /// Share of keys that half as many members would cover.
    pub hit_rate_half: f64,
    /// That as many as now would.
    pub hit_rate: f64,
    /// That twice as many would.
    pub hit_rate_double: f64,
    /// That the recommended size would, under the load foreseen.
    pub hit_rate_expected: f64,
    /// That the most members allowed would, under the load foreseen.
    pub hit_rate_ceiling: f64,
    /// Load foreseen by that of late.
    pub growth: f64,
    /// How long requests wait for their device on average, in microseconds.
    pub queue_us: u64,
}

impl fmt::Display for Recommendation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        let (members, size) = (self.members, self.size);
        match self.why {
            Why::Manual => return write!(f, "an operator asked for {size} members"),
            Why::Off => return write!(f, "the autoscaler is off"),
            Why::Unknown => return write!(f, "too little was asked of late to tell"),
            Why::Bounds => write!(f, "{members} members are outside of what the policy allows")?,
            Why::Capacity => write!(f, "{members} members cover too little")?,
            Why::Queue => write!(f, "requests wait {} us for their device", self.queue_us)?,
            Why::Surplus => write!(f, "{size} members have been enough for long")?,
            Why::Room => write!(
                f,
                "{} members would do; what is held has no room in fewer than {}",
                self.needed, self.holding
            )?,
            Why::Cooldown => write!(f, "{} members would do; waiting", self.needed)?,
            Why::Right => write!(f, "{members} members are right")?,
        }
        write!(
            f,
            ": with {:.2} times the load of late {size} cover {:.1} % and the ceiling {:.1} %; of late {:.1} % at half the size, \
             {:.1} % now, {:.1} % at twice",
            self.growth,
            percent(self.hit_rate_expected),
            percent(self.hit_rate_ceiling),
            percent(self.hit_rate_half),
            percent(self.hit_rate),
            percent(self.hit_rate_double),
        )
    }
}

/// The autoscaler.
#[derive(Clone, Debug)]
pub struct Autoscaler {
    curve: Curve,
    /// What the curve's load adds up to in stretches of time.
    weight: f64,
    seen: BTreeMap<DeviceId, Reuse>,
    /// How many members would have been enough, by when, in seconds.
    enough: VecDeque<(u64, u32)>,
    changed: Option<(u64, u32)>,
    /// The fewest members that hold what is not to be let go.
    holding: u32,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Autoscaler::new()
    }
}

impl Autoscaler {
    /// Makes one that knows nothing.
    pub fn new() -> Autoscaler {
        Autoscaler {
            curve: Curve::new(),
            weight: 0.0,
            seen: BTreeMap::new(),
            enough: VecDeque::new(),
            changed: None,
            holding: 0,
        }
    }

    /// Learns what a device of a cluster of `members` has counted since it was last heard of.
    pub fn learn(&mut self, members: u32, device: DeviceId, reuse: &Reuse) {
        let before = self.seen.get(&device);
        self.curve.add(f64::from(members), before, reuse);
        self.seen.insert(device, reuse.clone());
    }

    /// Forgets devices that are gone.
    pub fn keep_only(&mut self, is_there: impl Fn(DeviceId) -> bool) {
        self.seen.retain(|device, _| is_there(*device));
    }

    /// Takes notice of the fewest members that hold what is not to be let go: fewer are not recommended for being enough.
    pub fn must_hold(&mut self, members: u32) {
        self.holding = members;
    }

    /// Recommends a size at the end of a stretch of time. `now` is in seconds, on any clock that goes on.
    pub fn decide(
        &mut self,
        now: u64,
        members: u32,
        queue_us: u64,
        policy: &ScalingPolicy,
        predictor: &Predictor,
    ) -> Recommendation {
        self.weight = self.weight * FADE + 1.0;
        if self.changed.is_none_or(|(_, known)| known != members) {
            self.changed = Some((now, members));
        }
        let growth = self.growth(policy, predictor);
        let keep = self.keep(policy, predictor, growth);
        let by_queue = if queue_us > u64::from(policy.max_queue_us) {
            let times = (queue_us as f64 / f64::from(policy.max_queue_us)).min(2.0);
            (f64::from(members) * times).ceil() as u32
        } else {
            0
        };
        let needed = self.smallest(policy, growth, keep).max(by_queue.min(policy.ceiling));
        let enough = self.smallest(policy, growth.max(1.0), keep + (1.0 - keep) * STRICTER);
        // A queue that is half too long is no reason for fewer.
        let enough = if 2 * queue_us > u64::from(policy.max_queue_us) { enough.max(members) } else { enough };
        let decided = self.choose(now, members, needed, enough.max(needed), by_queue, policy);
        let (size, why) = decided;
        let recommendation = Recommendation {
            members,
            size,
            why,
            needed,
            holding: self.holding,
            hit_rate_half: self.curve.hit_rate(f64::from(members) / 2.0),
            hit_rate: self.curve.hit_rate(f64::from(members)),
            hit_rate_double: self.curve.hit_rate(f64::from(members) * 2.0),
            hit_rate_expected: self.curve.hit_rate(f64::from(size) / growth),
            hit_rate_ceiling: self.curve.hit_rate(f64::from(policy.ceiling) / growth),
            growth,
            queue_us,
        };
        self.curve.fade(FADE);
        recommendation
    }

    fn choose(
        &mut self,
        now: u64,
        members: u32,
        needed: u32,
        enough: u32,
        by_queue: u32,
        policy: &ScalingPolicy,
    ) -> (u32, Why) {
        if let Some(size) = policy.manual {
            return (size, Why::Manual);
        }
        if policy.mode == ScalingMode::Off {
            return (members, Why::Off);
        }
        let within = members.clamp(policy.floor, policy.ceiling);
        if within != members {
            return (within, Why::Bounds);
        }
        if self.curve.asked() < LEAST_ASKED && by_queue == 0 {
            return (members, Why::Unknown);
        }
        let window = u64::from(policy.down_cooldown_s);
        let (by_load, enough) = (enough, enough.max(self.holding.min(members)));
        self.enough.push_back((now, enough));
        // A sample as old as the window stays: only then has it lasted so long.
        while self.enough.len() > 1
            && self.enough.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= window)
        {
            self.enough.pop_front();
        }
        let since = self.changed.map_or(0, |(at, _)| now.saturating_sub(at));
        if needed > members {
            let why = if by_queue == needed { Why::Queue } else { Why::Capacity };
            let may = since >= u64::from(policy.up_cooldown_s);
            return if may { (needed, why) } else { (members, Why::Cooldown) };
        }
        let most = self.enough.iter().map(|(_, enough)| *enough).max().unwrap_or(members);
        let lasted = self.enough.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= window);
        if enough < members {
            let may = lasted && since >= window && most < members;
            return if may { (most, Why::Surplus) } else { (members, Why::Cooldown) };
        }
        (members, if by_load < members { Why::Room } else { Why::Right })
    }

    /// Returns the fewest members that cover so much of what the most would, under so many times the load.
    fn smallest(&self, policy: &ScalingPolicy, growth: f64, keep: f64) -> u32 {
        let wanted = keep * self.curve.hit_rate(f64::from(policy.ceiling) / growth);
        let (mut low, mut high) = (policy.floor, policy.ceiling);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.curve.hit_rate(f64::from(middle) / growth) >= wanted {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// Returns how much of what the most members would cover is to be covered at the load foreseen.
    fn keep(&self, policy: &ScalingPolicy, predictor: &Predictor, growth: f64) -> f64 {
        let keep = f64::from(policy.keep_per_mille) / 1000.0;
        let foreseen = growth * self.of_late();
        let usual = predictor.mean(Figure::Rate).unwrap_or(foreseen);
        let times = if foreseen > 0.0 { (usual / foreseen).clamp(LOSS.0, LOSS.1) } else { 1.0 };
        (1.0 - (1.0 - keep) * times).max(0.0)
    }

    /// Returns the load of late, in keys asked a second.
    fn of_late(&self) -> f64 {
        self.curve.asked() / (self.weight * OBSERVATION_SECONDS as f64)
    }

    /// Returns how many times the load of late is foreseen; what may well be more counts for half.
    fn growth(&self, policy: &ScalingPolicy, predictor: &Predictor) -> f64 {
        let of_late = self.of_late();
        let steps = u64::from(policy.look_ahead_s).div_ceil(OBSERVATION_SECONDS) as u32;
        match predictor.most(Figure::Rate, steps) {
            Some(most) if of_late > 0.0 => {
                let foreseen = most.value + (most.high - most.value) / 2.0;
                (foreseen / of_late).clamp(1.0 / MOST_GROWTH, MOST_GROWTH)
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
#[path = "../autoscaler_test.rs"]
mod tests;
