//! Whether what several devices are to have goes to all of them at once, or to each by its own way.
//!
//! At once is first, until both are measured at that size; from then on it is what is faster to the slowest of the devices. What fails rests, as a way
//! does, and a bounded share of the bytes goes by what is not taken, so that no measurement stays old.

use super::health::{Health, millis};
use super::rates::{CLASSES, Rate, Rates, class};
use super::reason::PerSecond;
use super::{CLEARLY_PERCENT, ENOUGH, Ends, Link, Links, MEASURED_ONE_IN, PassedOver, STALE};
use kvhive_protocol::links::{PairState, SetReport, TransportKind};
use kvhive_protocol::{DeviceId, Moment};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Sets of devices that are remembered at a time; of more, whichever was chosen for longest ago is forgotten.
pub const MAX_SETS: usize = 256;
/// What was slower than each one's own way is not made again within so long of its last measurement.
const LOST_FOR: Duration = Duration::from_secs(600);

/// Whether a batch goes to all at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ToAll {
    /// It does; else it goes to each by its own way.
    pub at_once: bool,
    /// Whether a communicator is worth having, where none stands.
    pub is_wanted: bool,
    /// Why; its `Display` is in words.
    pub why: WhyToAll,
}

/// Why it does or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhyToAll {
    /// Its communicator does not stand, or rests.
    PassedOver(PassedOver),
    /// One of both is not measured yet.
    First,
    /// What is taken is the faster one, or not clearly slower and in use; in bytes a second until the last device has it.
    Fastest {
        /// To all at once.
        at_once: u64,
        /// To each by its own way.
        each: u64,
    },
    /// The last measurement of what is taken is old.
    Measures,
}

impl fmt::Display for WhyToAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            WhyToAll::PassedOver(why) => write!(f, "at once: {why}"),
            WhyToAll::First => f.write_str("not measured yet"),
            WhyToAll::Fastest { at_once, each } => {
                write!(f, "at once {}, each by its own way {}", PerSecond(at_once), PerSecond(each))
            }
            WhyToAll::Measures => f.write_str("its last measurement is old"),
        }
    }
}

/// What is known of one set.
#[derive(Clone, Debug)]
pub(super) struct Set {
    rates: Rates,
    health: Health,
    transfers: u64,
    bytes: u64,
    failures: u64,
    last: ToAll,
    /// When it was last chosen for.
    used: Moment,
    /// Whether the last batch of each size went at once that was not for a measurement.
    taken: [Option<bool>; CLASSES],
    /// Bytes of all batches of each size, and of those that were for a measurement alone.
    chosen_bytes: [u64; CLASSES],
    measured_bytes: [u64; CLASSES],
}

impl Set {
    fn new(now: Moment) -> Set {
        Set {
            rates: Rates::default(),
            health: Health::default(),
            transfers: 0,
            bytes: 0,
            failures: 0,
            last: ToAll { at_once: false, is_wanted: true, why: WhyToAll::First },
            used: now,
            taken: [None; CLASSES],
            chosen_bytes: [0; CLASSES],
            measured_bytes: [0; CLASSES],
        }
    }

    fn choose(&mut self, now: Moment, bytes: u64, pair: PairState, each: Option<Rate>) -> ToAll {
        self.used = now;
        let class = class(bytes);
        let own = self.rates.of(class);
        let enough = |rate: Option<Rate>| rate.filter(|rate| rate.samples >= ENOUGH);
        let best = match (enough(own), enough(each)) {
            (Some(own), Some(each)) => {
                let (mut all, mut one) = (own.bytes_per_s, each.bytes_per_s);
                match self.taken[class] {
                    Some(true) => all = all.saturating_mul(CLEARLY_PERCENT) / 100,
                    Some(false) => one = one.saturating_mul(CLEARLY_PERCENT) / 100,
                    None => {}
                }
                let why = WhyToAll::Fastest { at_once: own.bytes_per_s, each: each.bytes_per_s };
                ToAll { at_once: all >= one, is_wanted: all >= one, why }
            }
            _ => ToAll { at_once: true, is_wanted: true, why: WhyToAll::First },
        };
        let passed_over = match pair {
            PairState::Ready | PairState::Busy => self.health.rests(now),
            state => Some(PassedOver::Pair(state)),
        };
        if let Some(why) = passed_over {
            let is_old = own.is_none_or(|own| now.since(own.at) > LOST_FOR);
            let is_wanted = best.is_wanted || is_old;
            self.last = ToAll { at_once: false, is_wanted, why: WhyToAll::PassedOver(why) };
            return self.last;
        }
        self.chosen_bytes[class] = self.chosen_bytes[class].saturating_add(bytes);
        let other = if best.at_once { each } else { own };
        let is_stale = other.is_none_or(|rate| rate.samples < ENOUGH || now.since(rate.at) > STALE);
        let measured = self.measured_bytes[class].saturating_add(bytes);
        let is_spared = measured <= self.chosen_bytes[class] / MEASURED_ONE_IN;
        // One that has failed is tried as it is, and not beside another.
        self.last = if is_stale && is_spared && self.health.is_well() {
            self.measured_bytes[class] = measured;
            ToAll { at_once: !best.at_once, is_wanted: true, why: WhyToAll::Measures }
        } else {
            self.taken[class] = Some(best.at_once);
            best
        };
        if self.last.at_once {
            self.health.begins(now);
        }
        self.last
    }
}

impl Links {
    /// Chooses how so many bytes go to several targets that are all to have them, over a communicator of all that is so far, or to each by what both
    /// ends have. Whoever has them go at once reports with [`Links::ended_to_all`] how it went.
    pub fn choose_to_all(
        &mut self,
        now: Moment,
        targets: &[(DeviceId, Ends)],
        bytes: u64,
        pair: PairState,
    ) -> ToAll {
        let each = self.each_alone(now, targets, class(bytes));
        let names: Vec<DeviceId> = targets.iter().map(|(target, _)| *target).collect();
        self.set(now, &names).choose(now, bytes, pair, each)
    }

    /// Returns what was measured of the best way to each target that it could go by now: that of the slowest of them, and since when and how often
    /// all were measured. None where one was not.
    fn each_alone(&self, now: Moment, targets: &[(DeviceId, Ends)], class: usize) -> Option<Rate> {
        let of = |(target, ends): &(DeviceId, Ends)| {
            let link: &Link = self.links.get(target)?;
            let stands = matches!(ends.nccl, Some(PairState::Ready | PairState::Busy));
            let is_open = |way: &TransportKind| {
                let is_there = ends.has(*way) && (*way != TransportKind::Nccl || stands);
                is_there && link.passed_over(now, *way, ends).is_none()
            };
            let ways = TransportKind::ALL.into_iter().filter(is_open);
            let rates = ways.filter_map(|way| link.way(way).rates.of(class));
            rates.max_by_key(|rate| (rate.samples >= ENOUGH, rate.bytes_per_s))
        };
        let rates: Option<Vec<Rate>> = targets.iter().map(of).collect();
        let together = |one: Rate, other: Rate| Rate {
            bytes_per_s: one.bytes_per_s.min(other.bytes_per_s),
            samples: one.samples.min(other.samples),
            at: one.at.min(other.at),
        };
        rates?.into_iter().reduce(together)
    }

    fn set(&mut self, now: Moment, targets: &[DeviceId]) -> &mut Set {
        let mut name = targets.to_vec();
        name.sort_unstable();
        if !self.sets.contains_key(&name) && self.sets.len() >= MAX_SETS {
            let oldest = self.sets.iter().min_by_key(|(_, set)| set.used).map(|(name, _)| name.clone());
            oldest.map(|name| self.sets.remove(&name));
        }
        self.sets.entry(name).or_insert_with(|| Set::new(now))
    }

    /// A batch for all at once has ended: all have it after so long, or something failed; neither where it did not begin.
    pub fn ended_to_all(
        &mut self,
        now: Moment,
        targets: &[DeviceId],
        bytes: u64,
        how: Option<Result<Duration, ()>>,
    ) {
        let set = self.set(now, targets);
        match how {
            Some(Ok(took)) => {
                set.health.ended(now, true);
                set.rates.measured(now, bytes, took);
                set.transfers += 1;
                set.bytes = set.bytes.saturating_add(bytes);
            }
            Some(Err(())) => {
                set.health.ended(now, false);
                set.failures += 1;
            }
            None => set.health.has_not_begun(now),
        }
    }

    /// Reports every set of targets, ascending.
    pub fn report_sets(&self, now: Moment) -> Vec<SetReport> {
        let report = |(targets, set): (&Vec<DeviceId>, &Set)| SetReport {
            targets: targets.clone(),
            at_once: set.last.at_once,
            reason: set.last.why.to_string(),
            transfers: set.transfers,
            bytes: set.bytes,
            failures: set.failures,
            rates: set.rates.report(now),
            rests_ms: set.health.rests_for(now).map(millis),
        };
        self.sets.iter().map(report).collect()
    }
}

/// The sets of targets of one device.
pub(super) type Sets = BTreeMap<Vec<DeviceId>, Set>;

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::MemberId;
    use proptest::prelude::*;

    const TWO: [DeviceId; 2] = [DeviceId::new(MemberId(2), 0), DeviceId::new(MemberId(3), 0)];
    const BYTES: u64 = 4 << 20;

    /// Both, of whom each has this in common with the source.
    fn two(ends: Ends) -> [(DeviceId, Ends); 2] {
        TWO.map(|target| (target, ends))
    }

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// Says that so many batches went to a target by TCP, at so many MB/s.
    fn alone(links: &mut Links, ms: u64, target: DeviceId, mb_per_s: u64, times: u64) {
        for _ in 0..times {
            links.choose(at(ms), target, BYTES, Ends::default());
            let took = Duration::from_nanos(BYTES * 1000 / mb_per_s);
            links.ended(at(ms), target, TransportKind::Tcp, BYTES, Some(took), true);
        }
    }

    fn at_once(links: &mut Links, ms: u64, mb_per_s: u64, times: u64) {
        for _ in 0..times {
            let took = Duration::from_nanos(BYTES * 1000 / mb_per_s);
            links.ended_to_all(at(ms), &TWO, BYTES, Some(Ok(took)));
        }
    }

    fn chosen(links: &mut Links, ms: u64, pair: PairState) -> (bool, String) {
        let choice = links.choose_to_all(at(ms), &two(Ends::default()), BYTES, pair);
        (choice.at_once, choice.why.to_string())
    }

    #[test]
    fn what_is_not_measured_goes_at_once_over_a_communicator_that_stands() {
        for state in PairState::ALL {
            let told = chosen(&mut Links::default(), 0, state);
            match state {
                PairState::Ready | PairState::Busy => assert_eq!(told, (true, "not measured yet".to_owned())),
                _ => assert_eq!(told, (false, format!("at once: its pair is {state}"))),
            }
        }
    }

    #[test]
    fn it_goes_to_each_alone_where_the_slowest_of_them_has_it_clearly_sooner() {
        let mut links = Links::default();
        alone(&mut links, 1, TWO[0], 3000, 3);
        alone(&mut links, 1, TWO[1], 900, 3);
        at_once(&mut links, 2, 1000, 3);
        let told = chosen(&mut links, 3, PairState::Ready);
        assert_eq!(told, (true, "at once 1.0 GB/s, each by its own way 900.0 MB/s".to_owned()));
        alone(&mut links, 4, TWO[1], 1050, 30);
        assert!(chosen(&mut links, 5, PairState::Ready).0, "not clearly");
        alone(&mut links, 6, TWO[1], 2000, 30);
        assert!(!chosen(&mut links, 7, PairState::Ready).0);
        let small = links.choose_to_all(at(8), &two(Ends::default()), 1000, PairState::Ready);
        assert_eq!((small.at_once, small.why), (true, WhyToAll::First), "another size");
        let [told] = &links.report_sets(at(9))[..] else { panic!("one set") };
        assert_eq!((&told.targets[..], told.transfers, told.bytes), (&TWO[..], 3, 3 * BYTES));
    }

    #[test]
    fn what_fails_rests_longer_each_time_and_what_did_not_begin_is_no_failure() {
        let mut links = Links::default();
        let mut now = 0;
        for (failures, rest_ms) in [(1, 1000), (2, 2000), (3, 4000)] {
            assert!(chosen(&mut links, now, PairState::Ready).0);
            links.ended_to_all(at(now), &TWO, BYTES, None);
            assert!(chosen(&mut links, now, PairState::Ready).0, "it is tried again at once");
            links.ended_to_all(at(now), &TWO, BYTES, Some(Err(())));
            let told = chosen(&mut links, now, PairState::Ready);
            assert_eq!(told, (false, format!("at once: rests for {rest_ms} ms after {failures} failures")));
            now += rest_ms;
        }
        assert!(chosen(&mut links, now, PairState::Ready).0);
        at_once(&mut links, now, 1000, 1);
        assert!(chosen(&mut links, now, PairState::Ready).0);
    }

    #[test]
    fn a_fast_pair_is_a_way_of_its_own_while_it_stands() {
        let mut links = Links::default();
        let ends = |state| Ends { both_gpu_tiers: true, nccl: Some(state), ..Ends::default() };
        for target in TWO {
            alone(&mut links, 1, target, 500, 3);
            for _ in 0..3 {
                let took = Duration::from_nanos(BYTES * 1000 / 5000);
                links.ended(at(1), target, TransportKind::Nccl, BYTES, Some(took), true);
            }
        }
        at_once(&mut links, 1, 1000, 3);
        for (state, goes_at_once) in
            [(PairState::Idle, true), (PairState::Cold, true), (PairState::Busy, false)]
        {
            let choice = links.choose_to_all(at(2), &two(ends(state)), BYTES, PairState::Ready);
            assert_eq!(choice.at_once, goes_at_once, "{state}: {}", choice.why);
        }
    }

    #[test]
    fn what_has_lost_is_not_wanted_again_for_a_while() {
        let mut links = Links::default();
        let wanted = |links: &mut Links, ms: u64| {
            links.choose_to_all(at(ms), &two(Ends::default()), BYTES, PairState::Idle).is_wanted
        };
        assert!(wanted(&mut links, 0), "nobody knows");
        for target in TWO {
            alone(&mut links, 1, target, 2000, 3);
        }
        at_once(&mut links, 1, 1000, 3);
        assert!(!wanted(&mut links, 2));
        assert!(!wanted(&mut links, 600_000));
        assert!(wanted(&mut links, 600_002));
    }

    #[test]
    fn a_bounded_share_keeps_what_is_not_taken_measured() {
        let mut links = Links::default();
        for target in TWO {
            alone(&mut links, 1, target, 2000, 3);
        }
        at_once(&mut links, 1, 1000, 3);
        let (mut tried, all) = (0, 640);
        for ms in 0..all {
            // An hour, in which nothing else is measured.
            tried += u64::from(chosen(&mut links, 5000 * ms, PairState::Ready).0);
        }
        assert_eq!(tried, all / MEASURED_ONE_IN);
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_bounded_and_what_rests_is_never_taken(
            steps in prop::collection::vec((0u16..400, 0u64..9_000, 0usize..7, 0u8..3), 1..400),
        ) {
            let mut links = Links::default();
            let mut now = 0;
            for (other, later, state, how) in steps {
                now += later;
                let targets = [TWO[0], DeviceId::new(MemberId(9), other)];
                let rests = links.sets.get(targets.as_slice()).is_some_and(|set| set.health.rests(at(now)).is_some());
                let ends = targets.map(|target| (target, Ends::default()));
                let choice = links.choose_to_all(at(now), &ends, BYTES, PairState::ALL[state]);
                let stands = matches!(PairState::ALL[state], PairState::Ready | PairState::Busy);
                prop_assert!(!choice.at_once || (stands && !rests));
                if choice.at_once {
                    let how = [None, Some(Err(())), Some(Ok(Duration::from_millis(later + 1)))][usize::from(how)];
                    links.ended_to_all(at(now), &targets, BYTES, how);
                }
                prop_assert!(links.sets.len() <= MAX_SETS);
            }
        }
    }
}
