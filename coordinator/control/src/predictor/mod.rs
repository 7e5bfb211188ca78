//! What load is to come, from what was: a machine that is told each stretch of time once ([`Predictor::update_pattern`]) and says
//! what to expect, between which bounds, and how far it was off before.
//!
//! Its whole state follows from the last [`MAX_OBSERVATIONS`] observations: whoever has those has it, and nothing else needs to
//! be kept ([`Predictor::relearn`]). It decides nothing; [`crate::autoscaler`] does.

mod errors;
mod fit;
mod series;

pub use errors::Score;

use errors::{Errors, Made};
use kvhive_protocol::scaling::{MAX_OBSERVATIONS, OBSERVATION_SECONDS, Observation};
use series::{Series, Shape};
use std::collections::VecDeque;

/// Observations of a day.
const DAY: usize = (86_400 / OBSERVATION_SECONDS) as usize;
/// Seasons that are tried besides one that is found: a day and a week.
const GIVEN: [usize; 2] = [DAY, 7 * DAY];
/// Shapes are chosen anew when there are so many observations, and then once a day.
const REFIT_AT: [usize; 7] = [12, 24, 48, 96, 192, 2 * DAY, 3 * DAY];

/// What is forecast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Figure {
    /// Keys asked a second.
    Rate,
    /// Bytes a second by which the working set grows.
    Growth,
    /// Share of keys asked that were covered, from 0 to 1.
    Reuse,
}

impl Figure {
    /// All of them.
    pub const ALL: [Figure; 3] = [Figure::Rate, Figure::Growth, Figure::Reuse];

    /// Returns its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Figure::Rate => "rate",
            Figure::Growth => "growth",
            Figure::Reuse => "reuse",
        }
    }

    fn of(self, observation: &Observation) -> Option<f64> {
        let by_second = |count: u64| Some(count as f64 / OBSERVATION_SECONDS as f64);
        match self {
            Figure::Rate => by_second(observation.asked),
            Figure::Growth => by_second(observation.new_bytes),
            Figure::Reuse if observation.asked == 0 => None,
            Figure::Reuse => Some((observation.covered as f64 / observation.asked as f64).min(1.0)),
        }
    }

    /// Rates are smoothed as logarithms: their seasons and errors multiply.
    fn smoothed(self, value: f64) -> f64 {
        if self == Figure::Reuse { value } else { value.max(0.0).ln_1p() }
    }

    fn unit(self, smoothed: f64) -> f64 {
        match self {
            Figure::Reuse => smoothed.clamp(0.0, 1.0),
            _ => smoothed.min(60.0).exp_m1().max(0.0),
        }
    }
}

/// Returns the mean of a figure for each hour of the day (UTC), none for hours of which nothing is known.
pub fn by_hour<'a>(
    observations: impl IntoIterator<Item = &'a Observation>,
    figure: Figure,
) -> [Option<f64>; 24] {
    let mut sums = [(0.0, 0_u32); 24];
    for observation in observations {
        if let Some(value) = figure.of(observation) {
            let hour = (observation.bucket * OBSERVATION_SECONDS / 3600 % 24) as usize;
            sums[hour].0 += value;
            sums[hour].1 += 1;
        }
    }
    sums.map(|(sum, count)| (count > 0).then(|| sum / f64::from(count)))
}

/// What is expected at one time.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Forecast {
    /// What is most likely.
    pub value: f64,
    /// Nine of ten times it is not less.
    pub low: f64,
    /// Nor more.
    pub high: f64,
}

/// One figure's past and what was made of it.
#[derive(Clone, Debug)]
struct Followed {
    figure: Figure,
    series: Series,
    errors: Errors,
}

/// The workload predictor.
#[derive(Clone, Debug)]
pub struct Predictor {
    /// The last observations, a gap where there was none.
    history: VecDeque<Option<Observation>>,
    last: Option<u64>,
    /// How often anything was observed, up to what counts.
    learnt: usize,
    figures: [Followed; 3],
}

impl Default for Predictor {
    fn default() -> Predictor {
        Predictor::new()
    }
}

impl Predictor {
    /// Makes one that has seen nothing.
    pub fn new() -> Predictor {
        let followed = |figure| Followed { figure, series: Series::new(Shape::PLAIN), errors: Errors::new() };
        Predictor { history: VecDeque::new(), last: None, learnt: 0, figures: Figure::ALL.map(followed) }
    }

    /// Makes one that has seen these, in order.
    pub fn relearn<'a>(observations: impl IntoIterator<Item = &'a Observation>) -> Predictor {
        let mut predictor = Predictor::new();
        for observation in observations {
            predictor.update_pattern(observation);
        }
        predictor
    }

    /// Learns how one stretch of time was, scores what was said of it, and looks ahead anew. Says whether it was news: one that
    /// is not after the last is not looked at.
    pub fn update_pattern(&mut self, observation: &Observation) -> bool {
        if self.last.is_some_and(|last| observation.bucket <= last) {
            return false;
        }
        let gap = self.last.map_or(0, |last| observation.bucket - last - 1);
        if gap >= MAX_OBSERVATIONS as u64 {
            *self = Predictor::new();
        } else {
            for _ in 0..gap {
                self.step(None);
            }
        }
        self.last = Some(observation.bucket);
        self.step(Some(*observation));
        true
    }

    fn step(&mut self, observation: Option<Observation>) {
        if self.history.len() == MAX_OBSERVATIONS {
            self.history.pop_front();
        }
        self.history.push_back(observation);
        self.learnt += 1;
        let is_due =
            REFIT_AT.contains(&self.learnt) || (self.learnt > 3 * DAY && self.learnt.is_multiple_of(DAY));
        for followed in &mut self.figures {
            followed.step(observation.as_ref(), &self.history, is_due);
        }
    }

    /// Returns what to expect of a figure so many observations ahead: 1 is the next. None before anything was observed.
    pub fn forecast(&self, figure: Figure, steps: u32) -> Option<Forecast> {
        self.last?;
        let followed = self.followed(figure);
        let steps = steps.clamp(1, MAX_OBSERVATIONS as u32);
        let value = followed.series.ahead(steps);
        let radius = followed.errors.radius(steps, followed.series.scale());
        let unit = |value| figure.unit(value);
        Some(Forecast { value: unit(value), low: unit(value - radius), high: unit(value + radius) })
    }

    /// Returns the greatest value, and the greatest upper bound, that is expected of a figure within so many observations.
    pub fn most(&self, figure: Figure, steps: u32) -> Option<Forecast> {
        let all = (1..=steps.max(1)).filter_map(|step| self.forecast(figure, step));
        all.reduce(|most, one| Forecast {
            value: most.value.max(one.value),
            low: most.low.max(one.low),
            high: most.high.max(one.high),
        })
    }

    /// Returns the mean of what is expected of a figure over so many observations, at least one.
    pub fn mean_ahead(&self, figure: Figure, steps: u32) -> Option<f64> {
        let steps = steps.max(1);
        let sum: Option<f64> = (1..=steps).map(|step| Some(self.forecast(figure, step)?.value)).sum();
        Some(sum? / f64::from(steps))
    }

    /// Returns the mean of a figure over the last day, or as much of it as is known; none where nothing is.
    pub fn mean(&self, figure: Figure) -> Option<f64> {
        let day = self.history.iter().rev().take(DAY).flatten().filter_map(|one| figure.of(one));
        let (sum, count) = day.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Says whether enough of what was said of a figure has come for an interval to be worth telling.
    pub fn is_measured(&self, figure: Figure) -> bool {
        self.followed(figure).errors.is_measured()
    }

    /// Returns how good forecasts of a figure so many observations ahead were of late.
    pub fn score(&self, figure: Figure, steps: u32) -> Score {
        self.followed(figure).errors.score(steps)
    }

    /// Returns after how many seconds a figure is taken to come back, 0 if it is not.
    pub fn season_seconds(&self, figure: Figure) -> u64 {
        self.followed(figure).series.season() as u64 * OBSERVATION_SECONDS
    }

    /// Returns what it has seen and remembers.
    pub fn observations(&self) -> impl Iterator<Item = &Observation> {
        self.history.iter().flatten()
    }

    fn followed(&self, figure: Figure) -> &Followed {
        &self.figures[figure as usize]
    }
}

impl Followed {
    fn step(
        &mut self,
        observation: Option<&Observation>,
        history: &VecDeque<Option<Observation>>,
        is_due: bool,
    ) {
        let figure = self.figure;
        let value = observation.and_then(|one| figure.of(one));
        let known = value.map(|value| (figure.smoothed(value), value));
        self.errors.judge(known, |smoothed| figure.unit(smoothed));
        if is_due {
            let values: Vec<Option<f64>> = history
                .iter()
                .map(|one| one.as_ref().and_then(|one| figure.of(one)).map(|value| figure.smoothed(value)))
                .collect();
            self.series = fit::fit(&values, &GIVEN);
        } else {
            self.series.take(known.map(|(smoothed, _)| smoothed));
        }
        let season = self.series.season();
        let Followed { series, errors, .. } = self;
        let radii: Vec<(u32, f64)> =
            errors::HORIZONS.iter().map(|steps| (*steps, errors.radius(*steps, series.scale()))).collect();
        errors.note(|steps| {
            // The newest value of the same part of a season that is known now.
            let back =
                if season == 0 { 0 } else { (steps as usize).div_ceil(season) * season - steps as usize };
            let naive = history.len().checked_sub(back + 1).and_then(|at| history[at].as_ref());
            let radius = radii.iter().find(|(known, _)| *known == steps).map_or(0.0, |(_, radius)| *radius);
            Made { value: series.ahead(steps), radius, naive: naive.and_then(|one| figure.of(one)) }
        });
    }
}

#[cfg(test)]
#[path = "../predictor_test.rs"]
mod tests;
