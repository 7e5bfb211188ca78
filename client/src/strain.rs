//! Whether more is asked than is served, so that nobody is to wait long for a while. Decides by what it is told; the clock is its caller's.
//!
//! Once somebody had to go without who had as much time as the others, somebody has to anyway, and a standing queue makes all the others late
//! (it is told from a burst as by CoDel: Nichols and Jacobson 2012, RFC 8289; shedding by the time in a queue: Maurer, "Fail at scale", 2015).
//! Then all wait again as they would, lest a hiccup be the end of those that were many all along and in no hurry; if that was too soon, the
//! next while is twice as long.

use std::time::Duration;

/// So many say what is usual.
const REMEMBERED: f64 = 8.0;
/// Who had this share of the time that others have, and was late, is not late by having little time.
const USUAL_SHARE: f64 = 0.8;
/// For so long nobody waits longer, at first.
const LEAST_WHILE: f64 = 5.0;
/// And at most.
const MOST_WHILE: f64 = 40.0;
/// So long nobody must have waited until all may wait again: a queue that is kept short is empty now and then.
const IDLE: f64 = 0.1;
/// So long one may wait though others go without.
const SHORT: f64 = 0.005;
/// Or so many times as long as it takes until the next place is free, where that is more: places are never empty then.
const SHORT_TURNS: f64 = 2.0;

/// A mean of the last few; 0 while there is none.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Mean {
    value: f64,
    of: f64,
}

impl Mean {
    /// Takes one more into it.
    pub fn add(&mut self, value: f64) {
        self.of = (self.of + 1.0).min(REMEMBERED);
        self.value += (value - self.value) / self.of;
    }

    /// Returns it.
    pub fn value(&self) -> f64 {
        self.value
    }
}

/// What is known of those who wait for the same and of those who went without.
#[derive(Clone, PartialEq, Debug)]
pub struct Strain {
    /// How much time those have that begin to wait, in seconds.
    has: Mean,
    /// Until when nobody waits long, in seconds: somebody had to go without.
    until: Option<f64>,
    /// For how long that is.
    period: f64,
    /// If somebody has to go without before this, it is to be longer.
    too_soon: f64,
    /// Since when nobody waits.
    idle_since: Option<f64>,
}

impl Default for Strain {
    fn default() -> Strain {
        Strain { has: Mean::default(), until: None, period: LEAST_WHILE, too_soon: 0.0, idle_since: None }
    }
}

impl Strain {
    /// Returns how long somebody may wait who could wait for `spare` seconds and has `left`; the next place is free after `turn`.
    pub fn allows(&mut self, now: Duration, left: f64, spare: f64, turn: f64) -> f64 {
        let now = now.as_secs_f64();
        if self.idle_since.is_some_and(|since| now - since >= IDLE) {
            self.until = None;
        }
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            // As long as it takes until the next one is late.
            self.too_soon = now + self.period + left;
        }
        if self.until.is_some() { spare.min(SHORT.max(SHORT_TURNS * turn)) } else { spare }
    }

    /// One waits who has so many seconds left.
    pub fn waits(&mut self, left: f64) {
        self.has.add(left);
        self.idle_since = None;
    }

    /// One goes without who had so many seconds, while so many others wait. Where they have no more themselves, there is too much to do.
    pub fn went_without(&mut self, now: Duration, had: f64, waiting: usize) {
        let is_alone = waiting == 0 || had < USUAL_SHARE * self.has.value();
        if is_alone || self.until.is_some() {
            return;
        }
        let now = now.as_secs_f64();
        self.period = if now < self.too_soon { (2.0 * self.period).min(MOST_WHILE) } else { LEAST_WHILE };
        self.until = Some(now + self.period);
    }

    /// Nobody waits any more.
    pub fn ends(&mut self, now: Duration) {
        self.idle_since.get_or_insert(now.as_secs_f64());
    }
}
