//! Moves give way to fetches as far as is set, and not for nothing.

use super::*;
use crate::latency::LatencyRecorder;

const MIB: u64 = 1 << 20;
const LIMITS: MoveLimits = MoveLimits { rate: 256 * MIB, slowdown_percent: 150 };

/// A node that is asked for blocks a hundred times a second while it moves others.
struct World {
    pace: Pace,
    recorder: LatencyRecorder,
    now: Moment,
    moved: u64,
    fetches: bool,
}

impl World {
    fn new(limits: MoveLimits) -> World {
        World {
            pace: Pace::new(limits),
            recorder: LatencyRecorder::default(),
            now: Moment::ZERO + Duration::from_secs(100),
            moved: 0,
            fetches: true,
        }
    }

    /// Lets time pass by the millisecond; a fetch takes as long as `took` says for the bytes that moved in its last ten.
    fn pass(&mut self, seconds: u64, took: impl Fn(u64) -> Duration) -> u64 {
        const BATCH: u64 = MIB;
        let begun = self.moved;
        let mut wakes_at = self.now;
        let mut before = self.moved;
        for at in 0..seconds * 1000 {
            self.now = self.now + Duration::from_millis(1);
            while wakes_at <= self.now {
                match self.pace.ask(self.now, BATCH, &self.recorder.read()) {
                    Some(wait) => wakes_at = self.now + wait,
                    None => self.moved += BATCH,
                }
            }
            if self.fetches && at % 10 == 0 {
                self.recorder.record(took(self.moved - before));
                before = self.moved;
            }
        }
        (self.moved - begun) / seconds
    }
}

fn unhurt(_: u64) -> Duration {
    Duration::from_micros(200)
}

/// A millisecond more for each MiB in ten milliseconds.
fn hurt(moved: u64) -> Duration {
    Duration::from_micros(200 + moved * 1000 / MIB)
}

#[test]
fn without_fetches_moves_take_what_is_set() {
    let mut world = World::new(LIMITS);
    world.fetches = false;
    let rate = world.pass(20, unhurt);
    assert!((240 * MIB..=257 * MIB).contains(&rate), "{} MiB/s", rate / MIB);
}

#[test]
fn fetches_that_are_not_hurt_cost_moves_no_more_than_the_pauses() {
    let mut world = World::new(LIMITS);
    let rate = world.pass(20, unhurt);
    assert!((210 * MIB..=257 * MIB).contains(&rate), "{} MiB/s", rate / MIB);
}

#[test]
fn moves_slow_down_until_fetches_take_no_longer_than_is_set_and_speed_up_when_they_may() {
    let mut world = World::new(LIMITS);
    world.pass(20, hurt);
    // 150 % of 200 us are 100 us more, which are 10 MiB/s.
    let rate = world.pass(60, hurt);
    assert!((4 * MIB..=30 * MIB).contains(&rate), "{} MiB/s", rate / MIB);
    world.pass(30, unhurt);
    let rate = world.pass(20, unhurt);
    assert!(rate >= 200 * MIB, "{} MiB/s", rate / MIB);
}

#[test]
fn a_larger_bound_lets_them_be_faster() {
    let rate = |slowdown_percent| {
        let mut world = World::new(MoveLimits { slowdown_percent, ..LIMITS });
        world.pass(20, hurt);
        world.pass(60, hurt)
    };
    let (strict, loose) = (rate(150), rate(1000));
    assert!(loose > 3 * strict, "{} and {} MiB/s", strict / MIB, loose / MIB);
}

#[test]
fn moves_never_stop_and_a_batch_never_waits_for_long() {
    let limits = MoveLimits { rate: 64 * MIB, slowdown_percent: 100 };
    let mut world = World::new(limits);
    let hopeless = |moved| Duration::from_millis(if moved > 0 { 50 } else { 1 });
    world.pass(30, hopeless);
    assert!((MIB..=5 * MIB).contains(&world.pace.rate()), "at the slowest, or a step from it");
    assert!(world.pass(30, hopeless) > MIB / 2);
    let mut slow = Pace::new(MoveLimits { rate: 1, slowdown_percent: 100 });
    let none = Latencies::default();
    assert_eq!(slow.ask(world.now, MIB, &none), Some(SETTLE_FOR));
    assert_eq!(slow.ask(world.now + SETTLE_FOR, MIB, &none), Some(QUIET_FOR));
    let then = world.now + SETTLE_FOR + QUIET_FOR;
    assert_eq!(slow.ask(then, MIB, &none), None);
    assert_eq!(slow.ask(then, MIB, &none), Some(MOST_OWED), "whoever asks waits for LONGEST of it");
}

#[test]
fn a_load_that_is_slow_by_itself_is_not_taken_for_the_moves_doing() {
    let mut world = World::new(LIMITS);
    let rate = world.pass(30, |_| Duration::from_millis(80));
    assert!(rate >= 200 * MIB, "{} MiB/s", rate / MIB);
    // Also when it became so meanwhile: what is without moves is looked at again and again.
    world.pass(30, |_| Duration::from_millis(400));
    let rate = world.pass(30, |_| Duration::from_millis(400));
    assert!(rate >= 200 * MIB, "{} MiB/s", rate / MIB);
}

#[test]
fn one_slow_fetch_in_a_hundred_that_has_nothing_to_do_with_moves_costs_them_little() {
    let mut world = World::new(LIMITS);
    let (count, dice) = (std::cell::Cell::new(0_u64), |at: u64| at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33);
    let took = |_| {
        count.set(count.get() + 1);
        Duration::from_micros(if dice(count.get()).is_multiple_of(100) { 20_000 } else { 200 })
    };
    world.pass(60, took);
    let rate = world.pass(120, took);
    assert!(rate >= 128 * MIB, "{} MiB/s", rate / MIB);
}
