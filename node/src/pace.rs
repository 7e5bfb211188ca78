//! How fast blocks that move pass, behind what is asked: at a set rate, and slower while they make fetches wait. Moves pause for a
//! moment every so often, and what fetches take then is what they take without moves; while they take more than a set part longer with
//! moves, the rate is halved, else it grows by a step (additive increase, multiplicative decrease: Chiu and Jain, 1989).

use crate::actors::device::Device;
use crate::latency::Latencies;
use crate::view::View;
use kvhive_protocol::Moment;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Moves pass for this long, then what they did to fetches is looked at.
const BUSY_FOR: Duration = Duration::from_millis(900);
/// They pause for this long while fetches are asked.
const QUIET_FOR: Duration = Duration::from_millis(100);
/// Before it is looked what they take then: what was asked before the pause still shares with moves.
const SETTLE_FOR: Duration = Duration::from_millis(20);
/// After so long without any move what fetches take is measured anew before the first.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// Fewer fetches say nothing.
const LEAST_FETCHES: u64 = 10;
/// Of more fetches without moves than this the older count for half.
const REMEMBERED: u64 = 512;
/// So many times in a row fetches must have taken too long before moves slow down: of a hundred, one is always the slowest.
const IN_A_ROW: u32 = 2;
/// The slowest that moves become, by the rate that is set: they go on whatever they do.
const SLOWEST: u64 = 256;
/// And in bytes a second, if that much is set.
const SLOWEST_RATE: u64 = 1 << 20;
/// The steps from nothing to the rate that is set.
const STEPS: u64 = 16;
/// What passed may be ahead of the rate by so much.
const MOST_OWED: Duration = Duration::from_secs(60);
/// Whoever moves blocks is kept waiting no longer for one batch, so that nobody takes it for lost.
pub(crate) const LONGEST: Duration = Duration::from_secs(4);

/// How fast moves may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MoveLimits {
    /// Bytes a second, each way.
    pub rate: u64,
    /// What 99 of 100 fetches take may be so many per cent of what they take without moves; from 100 on.
    pub slowdown_percent: u32,
}

/// What passes now.
#[derive(Clone, Debug)]
enum Stretch {
    /// Moves, since then.
    Busy { since: Moment, fetches: Latencies },
    /// None any more, until then.
    Settling { until: Moment },
    /// None, until then.
    Quiet { until: Moment, fetches: Latencies },
}

/// Decides when blocks that move may pass.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    limits: MoveLimits,
    rate: u64,
    free_at: Moment,
    asked_at: Option<Moment>,
    stretch: Stretch,
    quiet: Latencies,
    busy: Latencies,
    /// How often in a row fetches took too long.
    too_long: u32,
}

impl Pace {
    pub(crate) fn new(limits: MoveLimits) -> Pace {
        let fetches = Latencies::default();
        Pace {
            limits,
            rate: limits.rate.max(1),
            free_at: Moment::ZERO,
            asked_at: None,
            stretch: Stretch::Busy { since: Moment::ZERO, fetches },
            quiet: Latencies::default(),
            busy: Latencies::default(),
            too_long: 0,
        }
    }

    /// Returns the rate of now, in bytes a second.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// Asks whether a batch of so many bytes may pass: none when it may, else how long to wait before asking again. `fetches` are all
    /// that were answered so far.
    pub(crate) fn ask(&mut self, now: Moment, bytes: u64, fetches: &Latencies) -> Option<Duration> {
        let is_first = self.asked_at.replace(now).is_none_or(|then| now.since(then) > FORGOTTEN_AFTER);
        if is_first {
            (self.quiet, self.busy) = (Latencies::default(), Latencies::default());
            self.pause(now);
        }
        if let Stretch::Settling { until } = self.stretch {
            if now < until {
                return Some(until.since(now));
            }
            self.stretch = Stretch::Quiet { until: now + QUIET_FOR, fetches: fetches.clone() };
        }
        if let Stretch::Quiet { until, fetches: before } = &self.stretch {
            if now < *until {
                return Some(until.since(now));
            }
            self.quiet.merge(&fetches.since(before));
            if self.quiet.count() > REMEMBERED {
                self.quiet.halve();
            }
            self.stretch = Stretch::Busy { since: now, fetches: fetches.clone() };
        }
        if now < self.free_at {
            return Some(self.free_at.since(now));
        }
        if let Stretch::Busy { since, fetches: before } = &self.stretch
            && now.since(*since) >= BUSY_FOR
        {
            let lately = fetches.since(before);
            self.busy.merge(&lately);
            self.adjust();
            if lately.count() > 0 {
                return Some(self.pause(now));
            }
            self.stretch = Stretch::Busy { since: now, fetches: fetches.clone() };
        }
        self.passes(now, bytes);
        None
    }

    /// Notes that a batch passes, in its turn or not.
    fn passes(&mut self, now: Moment, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.free_at = (self.free_at.max(now) + takes).min(now + MOST_OWED);
    }

    fn pause(&mut self, now: Moment) -> Duration {
        self.stretch = Stretch::Settling { until: now + SETTLE_FOR };
        SETTLE_FOR
    }

    fn adjust(&mut self) {
        let fewer = self.quiet.count().min(self.busy.count());
        if self.busy.count() == 0 {
            // Nobody waits for anything.
            self.rate = self.limits.rate.max(1);
        } else if fewer >= LEAST_FETCHES {
            // Of few fetches no more can be told than what the slowest took.
            let share = 1.0 - 1.0 / fewer.min(100) as f64;
            let slowest = |of: &Latencies| of.quantile(share).unwrap_or_default();
            let bound = slowest(&self.quiet) * self.limits.slowdown_percent.max(100) / 100;
            self.too_long = if slowest(&self.busy) > bound { self.too_long + 1 } else { 0 };
            self.rate = match self.too_long {
                0 => self.faster(),
                IN_A_ROW.. => self.slower(),
                _ => self.rate,
            };
            self.busy = Latencies::default();
        }
    }

    fn slower(&self) -> u64 {
        let slowest = (self.limits.rate / SLOWEST).max(SLOWEST_RATE).min(self.limits.rate).max(1);
        (self.rate / 2).max(slowest)
    }

    fn faster(&self) -> u64 {
        (self.rate + (self.limits.rate / STEPS).max(1)).min(self.limits.rate.max(1))
    }
}

/// What all of a node's moves one way pass.
pub(crate) struct Pacer {
    pace: Mutex<Pace>,
    devices: Vec<Device>,
    view: Arc<View>,
}

impl Pacer {
    pub(crate) fn new(limits: MoveLimits, devices: Vec<Device>, view: Arc<View>) -> Pacer {
        Pacer { pace: Mutex::new(Pace::new(limits)), devices, view }
    }

    /// Waits until a batch may pass.
    pub(crate) async fn pass(&self, bytes: u64) {
        let now = || self.view.now();
        let begun = now();
        loop {
            let Some(wait) = self.ask(now(), bytes) else { return };
            let left = LONGEST.saturating_sub(now().since(begun));
            if left.is_zero() {
                // Others may always be first. What passes out of turn is owed all the same.
                return self.pace().passes(now(), bytes);
            }
            tokio::time::sleep(wait.min(left)).await;
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn ask(&self, now: Moment, bytes: u64) -> Option<Duration> {
        let mut fetches = Latencies::default();
        self.devices.iter().for_each(|device| fetches.merge(&device.traffic.fetches()));
        self.pace().ask(now, bytes, &fetches)
    }

    /// Returns the rate of now, in bytes a second.
    pub(crate) fn rate(&self) -> u64 {
        self.pace().rate()
    }
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod tests;
