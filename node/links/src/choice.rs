//! By which way a transfer goes: what both ends have, what was measured of it at this size, and whether it lately failed.
//!
//! Ways that are at hand are taken in the order of [`TransportKind::ALL`] until they are measured; from then on the fastest is. What
//! fails rests, each time for twice as long, and is then tried with one transfer. So that a measurement does not stay old, a
//! bounded share of the bytes goes by ways that are not the best. TCP is taken whatever it did when nothing else is left.
//!
//! What is asked of a pair that is not ready yet goes by TCP at once and is no failure of NCCL: that is not reported here.

use kvhive_protocol::links::{LinkReport, PairState, TransportKind};
use kvhive_protocol::{DeviceId, Moment};
use std::collections::BTreeMap;
use std::time::Duration;

mod health;
mod rates;
mod reason;
mod sets;

use health::Health;
use rates::Rates;
pub use reason::{PassedOver, Reason, Why};
pub use sets::{MAX_SETS, ToAll, WhyToAll};

/// Targets that are remembered at a time; of more, whoever was chosen for longest ago is forgotten.
pub const MAX_TARGETS: usize = 4096;
/// Measurements at one size before a way is compared with others.
const ENOUGH: u64 = 3;
/// How much faster another way must be to take the place of the one taken, in per cent.
const CLEARLY_PERCENT: u64 = 110;
/// A measurement older than this is to be made again.
const STALE: Duration = Duration::from_secs(30);
/// One in so many bytes of each size may go by a way for its measurement alone.
const MEASURED_ONE_IN: u64 = 64;

/// What both ends of a link have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ends {
    /// Both are of one process.
    pub same_process: bool,
    /// Both are on one host, and who reads can map the other's memory.
    pub same_host: bool,
    /// Both have their blocks in GPUs' memory.
    pub both_gpu_tiers: bool,
    /// How far their NCCL pair is; none where one end has no NCCL.
    pub nccl: Option<PairState>,
}

impl Ends {
    fn has(&self, transport: TransportKind) -> bool {
        match transport {
            TransportKind::InProcess => self.same_process,
            TransportKind::SharedMemory => self.same_host,
            TransportKind::Nccl => self.both_gpu_tiers && self.nccl.is_some(),
            TransportKind::Tcp => true,
        }
    }
}

/// By which way a transfer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The way.
    pub transport: TransportKind,
    /// Why; its `Display` is in words.
    pub reason: Reason,
}

/// One way to one target.
#[derive(Clone, Debug, Default)]
struct Way {
    rates: Rates,
    health: Health,
    transfers: u64,
    bytes: u64,
    failures: u64,
}

impl Way {
    /// Counts that so much was given to it.
    fn gave(&mut self, bytes: u64) {
        self.transfers += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

#[derive(Clone, Debug)]
struct Link {
    ways: [Way; TransportKind::ALL.len()],
    last: Choice,
    /// When it was last chosen for.
    used: Moment,
    /// By what the last transfer of each size went that was not for a measurement.
    taken: [Option<TransportKind>; rates::CLASSES],
    /// Bytes of all transfers of each size, and of those that were for a measurement alone.
    chosen_bytes: [u64; rates::CLASSES],
    measured_bytes: [u64; rates::CLASSES],
}

impl Link {
    fn new(now: Moment) -> Link {
        let reason = Reason { why: Why::NothingElse, passed_over: None };
        Link {
            ways: Default::default(),
            last: Choice { transport: TransportKind::Tcp, reason },
            used: now,
            taken: [None; rates::CLASSES],
            chosen_bytes: [0; rates::CLASSES],
            measured_bytes: [0; rates::CLASSES],
        }
    }

    fn way(&self, transport: TransportKind) -> &Way {
        &self.ways[transport as usize]
    }

    /// Says why a way that both ends have is not taken now.
    fn passed_over(&self, now: Moment, transport: TransportKind, ends: &Ends) -> Option<PassedOver> {
        let pair = ends.nccl.filter(|_| transport == TransportKind::Nccl);
        if let Some(
            state @ (PairState::Offered | PairState::Joining | PairState::Aborting | PairState::Cold),
        ) = pair
        {
            return Some(PassedOver::Pair(state));
        }
        self.way(transport).health.rests(now)
    }

    /// Returns what is measured of a way, once that is enough to compare it.
    fn measured(&self, transport: TransportKind, class: usize) -> Option<u64> {
        self.way(transport).rates.of(class).filter(|rate| rate.samples >= ENOUGH).map(|rate| rate.bytes_per_s)
    }

    /// Returns the best of those that may be taken, which are in the order in which they are taken unmeasured.
    fn best(&self, open: &[TransportKind], class: usize) -> (TransportKind, Why) {
        let Some(first) = open.first().copied() else { return (TransportKind::Tcp, Why::AllRest) };
        if first == TransportKind::InProcess {
            return (first, Why::OneProcess);
        }
        let weighed = |transport: TransportKind, rate: u64| match self.taken[class] == Some(transport) {
            true => rate.saturating_mul(CLEARLY_PERCENT) / 100,
            false => rate,
        };
        let (mut best, mut best_rate) = (first, self.measured(first, class));
        let mut second: Option<(TransportKind, u64)> = None;
        for other in open[1..].iter().copied() {
            let (Some(old), Some(new)) = (best_rate, self.measured(other, class)) else { continue };
            let runner_up = if weighed(other, new) > weighed(best, old) {
                let old_best = (best, old);
                (best, best_rate) = (other, Some(new));
                old_best
            } else {
                (other, new)
            };
            if second.is_none_or(|(_, rate)| rate < runner_up.1) {
                second = Some(runner_up);
            }
        }
        let why = match (best_rate, second) {
            (Some(rate), Some((other, other_rate))) => Why::Fastest { rate, other, other_rate },
            (None, _) if open.len() > 1 => Why::First,
            (Some(rate), None) if open.len() > 1 => Why::FirstMeasured { rate },
            _ => Why::NothingElse,
        };
        (best, why)
    }

    /// Returns the way whose measurement is the oldest, of those too old or too few, if there are bytes to spare for that.
    fn to_measure(
        &self,
        now: Moment,
        (open, best): (&[TransportKind], TransportKind),
        (bytes, class): (u64, usize),
        pair: Option<PairState>,
    ) -> Option<TransportKind> {
        let spared =
            self.measured_bytes[class].saturating_add(bytes) <= self.chosen_bytes[class] / MEASURED_ONE_IN;
        if !spared || best == TransportKind::InProcess {
            return None;
        }
        let stands = matches!(pair, Some(PairState::Ready | PairState::Busy));
        let others = open.iter().copied().filter(|other| {
            *other != best && (*other != TransportKind::Nccl || stands) && self.way(*other).health.is_well()
        });
        let measured = others.map(|other| (self.way(other).rates.of(class), other));
        let is_stale = |rate: &Option<rates::Rate>| {
            rate.is_none_or(|rate| rate.samples < ENOUGH || now.since(rate.at) > STALE)
        };
        let stale = measured.filter(|(rate, _)| is_stale(rate));
        stale.min_by_key(|(rate, _)| rate.map(|rate| rate.at)).map(|(_, other)| other)
    }

    fn choose(&mut self, now: Moment, bytes: u64, ends: &Ends) -> Choice {
        let class = rates::class(bytes);
        self.used = now;
        self.chosen_bytes[class] = self.chosen_bytes[class].saturating_add(bytes);
        let (mut open, mut passed_over) = (Vec::with_capacity(TransportKind::ALL.len()), None);
        for transport in TransportKind::ALL.into_iter().filter(|transport| ends.has(*transport)) {
            match self.passed_over(now, transport, ends) {
                None => open.push(transport),
                Some(why) => passed_over = passed_over.or(Some((transport, why))),
            }
        }
        let (best, why) = self.best(&open, class);
        let (transport, why) = match self.to_measure(now, (&open, best), (bytes, class), ends.nccl) {
            Some(other) => {
                self.measured_bytes[class] += bytes;
                (other, Why::Measures)
            }
            None => {
                self.taken[class] = Some(best);
                let failures = self.way(best).health.failures();
                (best, if failures > 0 && why != Why::AllRest { Why::Tries { failures } } else { why })
            }
        };
        self.ways[transport as usize].health.begins(now);
        // Of those that come after what is taken nobody asks.
        let passed_over = passed_over.filter(|(other, _)| *other < transport);
        self.last = Choice { transport, reason: Reason { why, passed_over } };
        self.last
    }

    fn report(&self, now: Moment, target: DeviceId) -> LinkReport {
        let known = |transport: &TransportKind| {
            let way = self.way(*transport);
            way.transfers + way.failures > 0 || *transport == self.last.transport
        };
        LinkReport {
            target,
            transport: self.last.transport,
            reason: self.last.reason.to_string(),
            transports: TransportKind::ALL
                .into_iter()
                .filter(known)
                .map(|transport| {
                    let way = self.way(transport);
                    kvhive_protocol::links::TransportReport {
                        transport,
                        transfers: way.transfers,
                        bytes: way.bytes,
                        failures: way.failures,
                        rates: way.rates.report(now),
                        rests_ms: way.health.rests_for(now).map(health::millis),
                    }
                })
                .collect(),
        }
    }
}

/// The ways from one device to all others.
#[derive(Clone, Debug, Default)]
pub struct Links {
    links: BTreeMap<DeviceId, Link>,
    /// Several targets that were to have the same, ascending.
    sets: sets::Sets,
}

impl Links {
    /// Chooses by which way so many bytes go to `target`. Whoever asks reports with [`Links::ended`] how it went, or takes it
    /// for not begun.
    pub fn choose(&mut self, now: Moment, target: DeviceId, bytes: u64, ends: Ends) -> Choice {
        self.link(now, target).choose(now, bytes, &ends)
    }

    fn link(&mut self, now: Moment, target: DeviceId) -> &mut Link {
        if !self.links.contains_key(&target) && self.links.len() >= MAX_TARGETS {
            let oldest = self.links.iter().min_by_key(|(_, link)| link.used).map(|(target, _)| *target);
            oldest.map(|target| self.links.remove(&target));
        }
        self.links.entry(target).or_insert_with(|| Link::new(now))
    }

    /// Blocks were given to a target, which fetches them by a way that it chose: sent, or shown. Nobody knows here whether and how soon they get there,
    /// so it says nothing of how fast and how well the way is.
    pub fn went(&mut self, now: Moment, target: DeviceId, transport: TransportKind, bytes: u64) {
        let link = self.link(now, target);
        link.used = now;
        let has_gone = link.ways.iter().any(|way| way.transfers + way.failures > 0);
        if link.last.transport != transport || !has_gone {
            link.last = Choice { transport, reason: Reason { why: Why::Fetched, passed_over: None } };
        }
        link.ways[transport as usize].gave(bytes);
    }

    /// A transfer that was to go by a pair went by TCP at once, as the pair was not there, or not free.
    pub fn has_not_begun(&mut self, now: Moment, target: DeviceId, pair: PairState) {
        let Some(link) = self.links.get_mut(&target) else { return };
        link.ways[TransportKind::Nccl as usize].health.has_not_begun(now);
        let passed_over = Some((TransportKind::Nccl, PassedOver::Pair(pair)));
        link.last =
            Choice { transport: TransportKind::Tcp, reason: Reason { why: Why::NothingElse, passed_over } };
    }

    /// A transfer of so many bytes has ended, well or not, and took so long: none where it has waited for something else.
    pub fn ended(
        &mut self,
        now: Moment,
        target: DeviceId,
        transport: TransportKind,
        bytes: u64,
        took: Option<Duration>,
        ok: bool,
    ) {
        let Some(link) = self.links.get_mut(&target) else { return };
        let way = &mut link.ways[transport as usize];
        way.health.ended(now, ok);
        if ok {
            way.gave(bytes);
            if let Some(took) = took {
                way.rates.measured(now, bytes, took);
            }
        } else {
            way.failures += 1;
        }
    }

    /// Forgets devices that are no more or have become others: nothing that is known of them holds.
    pub fn retain(&mut self, stays: impl Fn(&DeviceId) -> bool) {
        self.links.retain(|target, _| stays(target));
        self.sets.retain(|targets, _| targets.iter().all(&stays));
    }

    /// Returns what was chosen last for each target, ascending.
    pub fn chosen(&self) -> impl Iterator<Item = (DeviceId, Choice)> {
        self.links.iter().map(|(target, link)| (*target, link.last))
    }

    /// Reports every link, ascending by target.
    pub fn report(&self, now: Moment) -> Vec<LinkReport> {
        self.links.iter().map(|(target, link)| link.report(now, *target)).collect()
    }
}

#[cfg(test)]
#[path = "choice_test.rs"]
mod choice_test;
