//! How wrong forecasts were, by how far ahead they looked; and from that, how wrong the next may be. Intervals are quantiles of
//! past errors, made wider or narrower until they hold as often as they should (Gibbs and Candès, "Adaptive Conformal Inference
//! Under Distribution Shift", NeurIPS 2021): nothing is assumed of how errors are distributed.

use std::collections::VecDeque;

/// How many steps ahead forecasts are scored.
pub(super) const HORIZONS: [u32; 7] = [1, 3, 6, 12, 36, 144, 288];
/// The most errors remembered of one horizon.
const WINDOW: usize = 576;
/// With fewer, intervals are made of the usual error one step ahead.
const ENOUGH: usize = 24;
/// Share of intervals that are to hold.
pub(super) const LEVEL: f64 = 0.9;
/// How fast the width follows what did not hold.
const ADAPT: f64 = 0.03;

/// What a forecast came to, in the figure's own unit.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// How far it was off, as smoothed.
    error: f64,
    /// How far it was off in the figure's unit, and how far the value a season before was.
    off: f64,
    naive_off: f64,
    held: bool,
}

/// A forecast that waits for its time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    /// As smoothed.
    pub(super) value: f64,
    /// Half the width of its interval.
    pub(super) radius: f64,
    /// What the value a season before said, in the figure's unit.
    pub(super) naive: Option<f64>,
}

/// Forecasts of one horizon.
#[derive(Clone, Debug)]
struct Horizon {
    steps: u32,
    made: VecDeque<Made>,
    outcomes: VecDeque<Outcome>,
    /// Share of intervals that may fail, as adapted.
    alpha: f64,
    /// The error that as many stayed within.
    radius: f64,
}

/// How good forecasts were of late.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Score {
    /// Mean absolute error by that of the value a season before (Hyndman and Koehler 2006): below 1 is better than that.
    pub mase: f64,
    /// Whether those values were off by anything: else there is nothing to compare with, and [`Score::mase`] is 0.
    pub is_compared: bool,
    /// Share of intervals that held; 0.9 is meant.
    pub coverage: f64,
    /// Whether any forecast has come to its time: else all of it is 0.
    pub is_known: bool,
}

/// All horizons of one figure.
#[derive(Clone, Debug)]
pub(super) struct Errors {
    horizons: Vec<Horizon>,
}

impl Errors {
    pub(super) fn new() -> Errors {
        let horizon = |steps: &u32| Horizon {
            steps: *steps,
            made: VecDeque::new(),
            outcomes: VecDeque::new(),
            alpha: 1.0 - LEVEL,
            radius: 0.0,
        };
        Errors { horizons: HORIZONS.iter().map(horizon).collect() }
    }

    /// Time has come to `value` (none: nobody knows what was), as smoothed and in the figure's unit: scores what was said of it.
    pub(super) fn judge(&mut self, value: Option<(f64, f64)>, unit: impl Fn(f64) -> f64) {
        for horizon in &mut self.horizons {
            if horizon.made.len() < horizon.steps as usize {
                continue;
            }
            let Some(made) = horizon.made.pop_front() else { continue };
            let Some((smoothed, real)) = value else { continue };
            let error = smoothed - made.value;
            let held = error.abs() <= made.radius;
            let off = (real - unit(made.value)).abs();
            let naive_off = made.naive.map_or(f64::NAN, |naive| (real - naive).abs());
            let failed = if held { 0.0 } else { 1.0 };
            horizon.alpha = (horizon.alpha + ADAPT * (1.0 - LEVEL - failed)).clamp(0.005, 0.4);
            if horizon.outcomes.len() == WINDOW {
                horizon.outcomes.pop_front();
            }
            horizon.outcomes.push_back(Outcome { error, off, naive_off, held });
            horizon.radius = horizon.quantile();
        }
    }

    /// Notes what is said now of the time of each horizon.
    pub(super) fn note(&mut self, make: impl Fn(u32) -> Made) {
        for horizon in &mut self.horizons {
            let made = make(horizon.steps);
            horizon.made.push_back(made);
        }
    }

    /// Returns half the width of an interval so many steps ahead; `scale` is the usual error of one step.
    pub(super) fn radius(&self, steps: u32, scale: f64) -> f64 {
        let plain = |steps: u32| 1.645 * scale * f64::from(steps).sqrt();
        let known: Vec<(f64, f64)> = self
            .horizons
            .iter()
            .filter(|horizon| horizon.outcomes.len() >= ENOUGH)
            .map(|horizon| (f64::from(horizon.steps), horizon.radius))
            .collect();
        let steps_f = f64::from(steps);
        let after = known.iter().position(|(at, _)| *at >= steps_f);
        match after {
            Some(0) => known[0].1,
            Some(at) => {
                let ((low, less), (high, more)) = (known[at - 1], known[at]);
                less + (more - less) * (steps_f - low) / (high - low)
            }
            None => match known.last() {
                Some((at, radius)) => radius.max(plain(steps).min(radius * (steps_f / at).sqrt())),
                None => plain(steps),
            },
        }
    }

    /// Says whether an interval goes by what was measured, and not by the usual error of one step alone.
    pub(super) fn is_measured(&self) -> bool {
        self.horizons.iter().any(|horizon| horizon.outcomes.len() >= ENOUGH)
    }

    /// Returns how good forecasts of the horizon nearest to so many steps were.
    pub(super) fn score(&self, steps: u32) -> Score {
        let nearest = self.horizons.iter().min_by_key(|horizon| horizon.steps.abs_diff(steps));
        let Some(horizon) = nearest.filter(|horizon| !horizon.outcomes.is_empty()) else {
            return Score::default();
        };
        let count = horizon.outcomes.len() as f64;
        let compared = horizon.outcomes.iter().filter(|one| one.naive_off.is_finite());
        let (off, naive) =
            compared.fold((0.0, 0.0), |(off, naive), one| (off + one.off, naive + one.naive_off));
        Score {
            mase: if naive > 0.0 { off / naive } else { 0.0 },
            is_compared: naive > 0.0,
            coverage: horizon.outcomes.iter().filter(|one| one.held).count() as f64 / count,
            is_known: true,
        }
    }
}

impl Horizon {
    fn quantile(&self) -> f64 {
        let mut sizes: Vec<f64> = self.outcomes.iter().map(|one| one.error.abs()).collect();
        let rank = ((sizes.len() as f64 + 1.0) * (1.0 - self.alpha)).ceil() as usize;
        let at = rank.clamp(1, sizes.len()) - 1;
        *sizes.select_nth_unstable_by(at, f64::total_cmp).1
    }
}
