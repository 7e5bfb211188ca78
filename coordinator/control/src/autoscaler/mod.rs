//! How many members the cluster should have, and why, in numbers. A machine: it is told what devices report, asked once each
//! stretch of time, and does nothing itself.
//!
//! The size is the smallest whose hit rate, by the curve of the last hour, reaches what is aimed at, with distances stretched by
//! how much more load is foreseen: twice the requests a second put twice the blocks between two uses of one. What is aimed at is
//! one hit rate for all hours of a day (`day.rs`), such that over the day so much is covered of what the largest cluster would have
//! covered as the policy says ([`ScalingPolicy::keep_per_mille`]).
//!
//! A size is left when it is off by more than a band around that, so that what chance does to load changes nothing: for more
//! members soon, for fewer only when fewer would have been enough for long. Who has just gone one way goes the other only after
//! longer still, and to more only once what lacks adds up to a part of what a day may lose: a load that turns twice a day is followed
//! by a size that turns twice a day, and a night in which little is asked by none.

mod curve;
mod day;

use crate::predictor::{Figure, Predictor};
use curve::Curve;
use day::{DAY, Day, Rates};
use kvhive_protocol::scaling::{OBSERVATION_SECONDS, Reuse, ScalingMode, ScalingPolicy, Stretch};
use kvhive_protocol::{DeviceId, counted, counted_are};
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// What counts for how much one observation later: half after two hours.
const FADE: f64 = 0.971_531_941;
/// Load foreseen counts at most so many times that of late.
const MOST_GROWTH: f64 = 4.0;
/// So many loads foreseen one after the other are evened out: what a cache holds follows the load of half an hour, not of a moment.
const EVENED: usize = 6;
/// Fewer keys asked of late say nothing.
const LEAST_ASKED: f64 = 1000.0;
/// A size is left when what it covers is off by this part of what the policy lets go.
const BAND: f64 = 1.0 / 3.0;
/// Fewer members after more must have been enough for so many times as long as fewer after fewer.
const TURN_DOWN: u64 = 3;
/// More members after fewer must have been lacking this part of the hits that the policy lets go in a day: at night that takes hours, in
/// a morning minutes.
const TURN_UP: f64 = 0.2;

/// The cluster as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cluster {
    /// Members that serve and stay.
    pub members: u32,
    /// How many of those are cordoned. They serve what they hold, and are on their way out or are not to be relied on: what is asked for
    /// is that the others are enough.
    pub cordoned: u32,
    /// How long requests wait for their device on average, in microseconds.
    pub queue_us: u64,
}

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
    /// Members that the load asks for by itself, before bounds in time, and those that are cordoned.
    pub needed: u32,
    /// Members that are cordoned, of all sizes here.
    pub cordoned: u32,
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
    /// That which is aimed at, all day.
    pub hit_rate_aim: f64,
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
            Why::Manual => return write!(f, "an operator asked for {}", counted(size, "member")),
            Why::Off => return write!(f, "the autoscaler is off"),
            Why::Unknown => return write!(f, "too little was asked of late to tell"),
            Why::Bounds => write!(f, "{} outside of what the policy allows", counted_are(members, "member"))?,
            Why::Capacity => write!(f, "{} too few", counted_are(members, "member"))?,
            Why::Queue => write!(f, "requests wait {} us for their device", self.queue_us)?,
            Why::Surplus => write!(f, "{} would have been enough for long", counted(size, "member"))?,
            Why::Room => write!(
                f,
                "{} would do; what is held has no room in fewer than {}",
                counted(self.needed, "member"),
                self.holding
            )?,
            Why::Cooldown => write!(f, "{} would do; waiting", counted(self.needed, "member"))?,
            Why::Right => write!(f, "{} right", counted_are(members, "member"))?,
        }
        if self.cordoned > 0 {
            write!(f, ", {} of them cordoned and not relied on", self.cordoned)?;
        }
        write!(
            f,
            ": {:.1} % are aimed at; with {:.2} times the load of late {size} would cover {:.1} % and the ceiling {:.1} %; of late {:.1} % at half the size, \
             {:.1} % now, {:.1} % at twice",
            percent(self.hit_rate_aim),
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
    /// What was asked since the last decision.
    asked: f64,
    day: Day,
    /// The loads foreseen last.
    foreseen: VecDeque<f64>,
    seen: BTreeMap<DeviceId, Reuse>,
    /// How many members would have been enough, by when, in seconds.
    enough: VecDeque<(u64, u32)>,
    /// When the size changed last, to what, and which way.
    changed: Option<Changed>,
    /// Hits that there were too few for since the size changed, less those beyond what was aimed at, never less than none: a cumulative
    /// sum (Page, "Continuous inspection schemes", 1954), which chance does not add to for long.
    lacking: f64,
    /// The fewest members that hold what is not to be let go.
    holding: u32,
}

#[derive(Clone, Copy, Debug)]
struct Changed {
    at: u64,
    members: u32,
    way: Ordering,
}

/// How many members would do.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// What is aimed at.
    right: u32,
    /// Fewer than these are too few.
    least: u32,
    /// These are enough for certain.
    enough: u32,
    by_queue: u32,
    /// Of what a day may lose a part is lost already.
    lacks_much: bool,
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
            asked: 0.0,
            day: Day::default(),
            foreseen: VecDeque::new(),
            seen: BTreeMap::new(),
            enough: VecDeque::new(),
            changed: None,
            lacking: 0.0,
            holding: 0,
        }
    }

    /// Learns what a device of a cluster of `members` has counted since it was last heard of.
    pub fn learn(&mut self, members: u32, device: DeviceId, reuse: &Reuse) {
        let before = self.seen.get(&device);
        self.asked += self.curve.add(f64::from(members), before, reuse);
        self.seen.insert(device, reuse.clone());
    }

    /// Forgets devices that are gone.
    pub fn keep_only(&mut self, is_there: impl Fn(DeviceId) -> bool) {
        self.seen.retain(|device, _| is_there(*device));
    }

    /// Takes over the day that another leader has written down, of which `bucket` is the next stretch of time.
    pub fn recall<'a>(&mut self, bucket: u64, written: impl Iterator<Item = &'a Stretch>) {
        let is_of_day =
            |one: &&Stretch| one.bucket < bucket && one.bucket.saturating_add(DAY as u64) >= bucket;
        self.day = Day::of(written.filter(is_of_day));
    }

    /// Returns what sizes would have covered in the stretch of time that was decided on last, for another leader to recall.
    pub fn newest(&self, bucket: u64) -> Option<Stretch> {
        self.day.newest(bucket)
    }

    /// Returns of how many stretches of time the day is known.
    #[cfg(test)]
    pub(crate) fn known(&self) -> usize {
        self.day.len()
    }

    /// Takes notice of the fewest members that hold what is not to be let go: fewer are not recommended for being enough.
    pub fn must_hold(&mut self, members: u32) {
        self.holding = members;
    }

    /// Recommends a size at the end of a stretch of time. `now` is in seconds, on any clock that goes on.
    pub fn decide(
        &mut self,
        now: u64,
        cluster: Cluster,
        policy: &ScalingPolicy,
        predictor: &Predictor,
    ) -> Recommendation {
        let Cluster { members, cordoned, queue_us } = cluster;
        self.weight = self.weight * FADE + 1.0;
        if self.changed.is_none_or(|changed| changed.members != members) {
            let way = self.changed.map_or(Ordering::Equal, |changed| members.cmp(&changed.members));
            self.changed = Some(Changed { at: now, members, way });
            self.lacking = 0.0;
        }
        let keep = f64::from(policy.keep_per_mille) / 1000.0;
        let aim = self.aim(members, policy, keep);
        let band = BAND * (1.0 - keep) * aim;
        let growth = self.growth(policy, predictor);
        let by_queue = if queue_us > u64::from(policy.max_queue_us) {
            let times = (queue_us as f64 / f64::from(policy.max_queue_us)).min(2.0);
            ((f64::from(members) * times).ceil() as u32).min(policy.ceiling)
        } else {
            0
        };
        // Those that are cordoned are there beside those that are needed, as far as there may be so many.
        let smallest = |aim| (self.smallest(policy, growth, aim) + cordoned).min(policy.ceiling);
        let right = smallest(aim).max(by_queue);
        let enough = smallest(aim + band).max(right);
        let least = smallest(aim - band).max(by_queue);
        // A queue that is half too long is no reason for fewer.
        let enough = if 2 * queue_us > u64::from(policy.max_queue_us) { enough.max(members) } else { enough };
        let foreseen = self.of_late() * growth * OBSERVATION_SECONDS as f64;
        let relied_on = f64::from(members.saturating_sub(cordoned).max(1));
        let lacks = foreseen * (aim - self.curve.hit_rate(relied_on / growth));
        self.lacking = (self.lacking + lacks).max(0.0);
        let lacks_much = self.lacking >= TURN_UP * (1.0 - keep) * self.day.hits();
        let (size, why) =
            self.choose(now, members, Sizes { right, least, enough, by_queue, lacks_much }, policy);
        let recommendation = Recommendation {
            members,
            size,
            why,
            needed: right,
            cordoned,
            holding: self.holding,
            hit_rate_half: self.curve.hit_rate(f64::from(members) / 2.0),
            hit_rate: self.curve.hit_rate(f64::from(members)),
            hit_rate_double: self.curve.hit_rate(f64::from(members) * 2.0),
            hit_rate_expected: self.curve.hit_rate(f64::from(size.saturating_sub(cordoned)) / growth),
            hit_rate_ceiling: self.curve.hit_rate(f64::from(policy.ceiling) / growth),
            hit_rate_aim: aim,
            growth,
            queue_us,
        };
        self.curve.fade(FADE);
        recommendation
    }

    fn choose(&mut self, now: u64, members: u32, sizes: Sizes, policy: &ScalingPolicy) -> (u32, Why) {
        let Sizes { right, least, enough, by_queue, lacks_much } = sizes;
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
        let (since, way) =
            self.changed.map_or((0, Ordering::Equal), |one| (now.saturating_sub(one.at), one.way));
        let cooldown = u64::from(policy.down_cooldown_s);
        let window = if way == Ordering::Greater { TURN_DOWN * cooldown } else { cooldown };
        let (by_load, enough) = (enough, enough.max(self.holding.min(members)));
        self.enough.push_back((now, enough));
        // A sample as old as the longest window stays: only then has it lasted so long.
        while self.enough.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= TURN_DOWN * cooldown) {
            self.enough.pop_front();
        }
        if least > members {
            let why = if by_queue == right { Why::Queue } else { Why::Capacity };
            let cooldown = u64::from(policy.up_cooldown_s);
            let lasts = way != Ordering::Less || by_queue > 0 || lacks_much;
            return if lasts && since >= cooldown { (right, why) } else { (members, Why::Cooldown) };
        }
        if enough < members {
            let in_window = self.enough.iter().filter(|(at, _)| now.saturating_sub(*at) <= window);
            let most = in_window.map(|(_, enough)| *enough).max().unwrap_or(members);
            // What many learnt of a busy time says little of what few will see in a quiet one: no more than half go at a time.
            let most = most.max(members.div_ceil(2));
            let lasted = self.enough.front().is_some_and(|(at, _)| now.saturating_sub(*at) >= window);
            let may = lasted && since >= window && most < members;
            return if may { (most, Why::Surplus) } else { (members, Why::Cooldown) };
        }
        (members, if by_load < members { Why::Room } else { Why::Right })
    }

    /// Returns the fewest members that cover so much under so many times the load; the most where none do.
    fn smallest(&self, policy: &ScalingPolicy, growth: f64, wanted: f64) -> u32 {
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

    /// Returns the hit rate to aim at. How much is used again at all comes and goes by what is asked, and no size changes that: the day
    /// is remembered by shares of it.
    fn aim(&mut self, members: u32, policy: &ScalingPolicy, keep: f64) -> f64 {
        let reused = self.curve.reused();
        let share_of = |size: u32| self.curve.hit_rate(f64::from(size)) / reused.max(f64::MIN_POSITIVE);
        let rates =
            Rates { least: share_of(policy.floor), most: share_of(policy.ceiling), got: share_of(members) };
        let asked = std::mem::take(&mut self.asked) * reused;
        self.day.add((policy.floor, policy.ceiling), keep, asked, rates) * reused
    }

    /// Returns the load of late, in keys asked a second.
    fn of_late(&self) -> f64 {
        self.curve.asked() / (self.weight * OBSERVATION_SECONDS as f64)
    }

    /// Returns how many times the load of late is foreseen.
    fn growth(&mut self, policy: &ScalingPolicy, predictor: &Predictor) -> f64 {
        let of_late = self.of_late();
        // The middle of what is looked at is as far ahead as the policy says.
        let steps = (2 * u64::from(policy.look_ahead_s)).div_ceil(OBSERVATION_SECONDS) as u32;
        match predictor.mean_ahead(Figure::Rate, steps) {
            Some(foreseen) if of_late > 0.0 => {
                if self.foreseen.len() == EVENED {
                    self.foreseen.pop_front();
                }
                self.foreseen.push_back(foreseen);
                let foreseen = self.foreseen.iter().sum::<f64>() / self.foreseen.len() as f64;
                (foreseen / of_late).clamp(1.0 / MOST_GROWTH, MOST_GROWTH)
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
#[path = "../autoscaler_test.rs"]
mod tests;
