//! One figure over time: level, damped trend and season by exponential smoothing in its error-correction form (Holt 1957,
//! Winters 1960; damping: Gardner and McKenzie, "Forecasting Trends in Time Series", 1985). An outlier is clipped before it is
//! learnt from, as in Gelper, Fried and Croux, "Robust Forecasting with Exponential and Holt-Winters Smoothing", 2010; several
//! in a row on one side are no outliers but another level. A gap moves time on and teaches nothing.

/// Errors beyond so many times their usual size are clipped to that.
const CLIP: f64 = 2.0;
/// The biweight's constant that belongs to that: errors of a normal distribution leave the scale where it is.
const BIWEIGHT: f64 = 2.52;
/// How fast the usual size of errors follows them.
const SCALE_RATE: f64 = 0.05;
/// So many clipped errors in a row on one side are believed.
const BELIEVED_AFTER: i32 = 3;
/// Share of a believed error that moves the level, at least.
const BELIEVED_ALPHA: f64 = 0.4;

/// How many steps ahead a shape is judged: what follows a value closely may still know nothing of the next hour.
const JUDGED: [u32; 3] = [1, 12, 36];

/// How a series is smoothed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Shape {
    /// Steps of a season; 0 for none.
    pub(super) season: usize,
    /// Share of an error that moves the level.
    pub(super) alpha: f64,
    /// Share of that which moves the trend.
    pub(super) beta: f64,
    /// Share of an error that moves its part of the season.
    pub(super) gamma: f64,
    /// What is left of the trend a step later.
    pub(super) phi: f64,
}

impl Shape {
    /// Follows the level and nothing else, until there is enough to learn more from.
    pub(super) const PLAIN: Shape = Shape { season: 0, alpha: 0.2, beta: 0.0, gamma: 0.0, phi: 0.9 };
}

/// The state of one smoothed series.
#[derive(Clone, Debug)]
pub(super) struct Series {
    shape: Shape,
    level: f64,
    trend: f64,
    /// What each part of a season adds; empty without one.
    season: Vec<f64>,
    /// The part that the next value is of.
    next: usize,
    /// The usual size of an error.
    scale: f64,
    /// Clipped errors in a row, negative for those below.
    run: i32,
    is_empty: bool,
}

impl Series {
    /// Makes a series that knows nothing.
    pub(super) fn new(shape: Shape) -> Series {
        Series {
            shape,
            level: 0.0,
            trend: 0.0,
            season: vec![0.0; shape.season],
            next: 0,
            scale: 0.0,
            run: 0,
            is_empty: true,
        }
    }

    /// Makes a series that has learnt `values`, its season from their first `seasons` at once. Returns it and by how much it was
    /// wrong some steps ahead ([`JUDGED`]), from `judged_from` on. An error counts as `worst` at most: an outlier says nothing of how
    /// well a shape does. The rest count as they are, and no middle of them is taken, by which a load that steps up and down twice a
    /// day would be foreseen well by whoever says that it stays.
    pub(super) fn learn(
        shape: Shape,
        values: &[Option<f64>],
        seasons: usize,
        judged_from: usize,
        worst: f64,
    ) -> (Series, f64) {
        let mut series = Series::new(shape);
        if shape.season > 0 {
            let first = &values[..values.len().min(seasons * shape.season)];
            series.season = first_season(first, shape.season);
            let known: Vec<f64> =
                values[..values.len().min(shape.season)].iter().flatten().copied().collect();
            if !known.is_empty() {
                series.level = known.iter().sum::<f64>() / known.len() as f64;
                series.is_empty = false;
            }
            let errors = values.iter().take(shape.season).zip(&series.season);
            let errors =
                errors.filter_map(|(value, part)| Some((value.as_ref()? - series.level - part).abs()));
            series.scale = median(errors.collect()).unwrap_or(0.0) * 1.483;
        }
        let mut wrong = [(0.0, 0_u32); JUDGED.len()];
        let mut said = vec![vec![0.0; values.len()]; JUDGED.len()];
        for (at, value) in values.iter().enumerate() {
            for ((steps, said), wrong) in JUDGED.iter().zip(&mut said).zip(&mut wrong) {
                if let Some(later) = said.get_mut(at + *steps as usize - 1) {
                    *later = series.ahead(*steps);
                }
                if let Some(value) = value.filter(|_| at >= judged_from) {
                    wrong.0 += (value - said[at]).abs().min(worst);
                    wrong.1 += 1;
                }
            }
            series.take(*value);
        }
        let is_judged = wrong.iter().all(|(_, count)| *count > 0);
        let means = wrong.iter().map(|(sum, count)| sum / f64::from(*count));
        (series, if is_judged { means.sum() } else { f64::INFINITY })
    }

    /// Returns what is expected `steps` ahead, at least one.
    pub(super) fn ahead(&self, steps: u32) -> f64 {
        let phi = self.shape.phi;
        // The sum of phi + phi² + … + phi^steps.
        let damped = phi * (1.0 - phi.powi(steps.min(1 << 20) as i32)) / (1.0 - phi);
        let part = match self.season.len() {
            0 => 0.0,
            parts => self.season[(self.next + steps as usize - 1) % parts],
        };
        self.level + self.trend * damped + part
    }

    /// Takes the next value, or none for a gap. Returns by how much it was more than expected.
    pub(super) fn take(&mut self, value: Option<f64>) -> Option<f64> {
        let part = if self.season.is_empty() { 0.0 } else { self.season[self.next] };
        let before = self.next;
        self.next = if self.season.is_empty() { 0 } else { (self.next + 1) % self.season.len() };
        let Some(value) = value else {
            self.trend *= self.shape.phi;
            self.level += self.trend;
            return None;
        };
        if self.is_empty {
            self.is_empty = false;
            self.level = value - part;
            return Some(0.0);
        }
        let error = value - (self.level + self.shape.phi * self.trend + part);
        let learnt = self.clip(error);
        let Shape { alpha, beta, gamma, phi, .. } = self.shape;
        self.level += phi * self.trend;
        self.trend *= phi;
        if self.run.abs() > BELIEVED_AFTER {
            // Another level, whatever the trend and the season are.
            self.level += alpha.max(BELIEVED_ALPHA) * learnt;
            return Some(error);
        }
        self.level += alpha * learnt;
        self.trend += alpha * beta * learnt;
        if let Some(part) = self.season.get_mut(before) {
            *part += gamma * (1.0 - alpha) * learnt;
        }
        Some(error)
    }

    /// Clips an error to what is usual, and learns what is.
    fn clip(&mut self, error: f64) -> f64 {
        if self.scale <= 0.0 {
            self.scale = error.abs();
            return error;
        }
        let scale = self.scale.max(1e-4 * (1.0 + self.level.abs()));
        let ratio = (error / scale).abs();
        let weight =
            if ratio <= CLIP { BIWEIGHT * (1.0 - (1.0 - (ratio / CLIP).powi(2)).powi(3)) } else { BIWEIGHT };
        self.scale = scale * (SCALE_RATE * weight + 1.0 - SCALE_RATE).sqrt();
        if ratio <= CLIP {
            self.run = 0;
            return error;
        }
        let side = if error > 0.0 { 1 } else { -1 };
        self.run = if self.run.signum() == side { self.run.saturating_add(side) } else { side };
        if self.run.abs() > BELIEVED_AFTER { error } else { error.signum() * CLIP * scale }
    }

    /// Returns the usual size of an error.
    pub(super) fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns how many steps its season has, 0 for none.
    pub(super) fn season(&self) -> usize {
        self.shape.season
    }
}

/// Returns what each part of a season adds, from at most two of them, evened out over neighbours; sums to zero.
fn first_season(values: &[Option<f64>], season: usize) -> Vec<f64> {
    let mean_of = |values: &[Option<f64>]| {
        let known: Vec<f64> = values.iter().flatten().copied().collect();
        if known.is_empty() { None } else { Some(known.iter().sum::<f64>() / known.len() as f64) }
    };
    let mut parts = vec![(0.0, 0_u32); season];
    for cycle in values.chunks(season) {
        let Some(mean) = mean_of(cycle) else { continue };
        for (part, value) in parts.iter_mut().zip(cycle) {
            if let Some(value) = value {
                part.0 += value - mean;
                part.1 += 1;
            }
        }
    }
    let raw: Vec<f64> = parts.iter().map(|(sum, count)| sum / f64::from((*count).max(1))).collect();
    let reach = season / 48;
    let even = |at: usize| {
        let near = (0..=2 * reach).map(|step| raw[(at + season + step - reach) % season]);
        median(near.collect()).unwrap_or(0.0)
    };
    let even: Vec<f64> = (0..season).map(even).collect();
    let mean = even.iter().sum::<f64>() / season.max(1) as f64;
    even.into_iter().map(|part| part - mean).collect()
}

/// Returns the one that so large a part of them, from 0 to 1, is below.
pub(super) fn quantile(mut values: Vec<f64>, part: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let at = (last as f64 * part).round() as usize;
    Some(*values.select_nth_unstable_by(at, f64::total_cmp).1)
}

/// Returns the middle one.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { season: 0, alpha: 0.4, beta: 0.1, gamma: 0.0, phi: 0.9 };

    fn flat(series: &mut Series, value: f64, steps: usize) {
        for step in 0..steps {
            series.take(Some(value + if step % 2 == 0 { 0.1 } else { -0.1 }));
        }
    }

    #[test]
    fn one_outlier_moves_little_and_a_lasting_change_is_followed() {
        let mut series = Series::new(SHAPE);
        flat(&mut series, 10.0, 60);
        series.take(Some(1000.0));
        assert!((series.ahead(1) - 10.0).abs() < 1.0, "{}", series.ahead(1));
        flat(&mut series, 10.0, 20);
        flat(&mut series, 30.0, 12);
        assert!((series.ahead(1) - 30.0).abs() < 1.5, "{}", series.ahead(1));
    }

    #[test]
    fn a_trend_goes_on_and_fades() {
        let mut series = Series::new(Shape { beta: 0.3, phi: 0.95, ..SHAPE });
        for step in 0..200 {
            series.take(Some(f64::from(step)));
        }
        let near = series.ahead(1);
        assert!((198.0..204.0).contains(&near), "{near}");
        assert!(series.ahead(1000) > near && series.ahead(1000) < near + 25.0);
        assert!((series.ahead(1000) - series.ahead(100_000)).abs() < 1e-6);
    }

    #[test]
    fn after_a_gap_the_season_is_where_it_would_have_been() {
        let shape = Shape { season: 24, alpha: 0.2, beta: 0.0, gamma: 0.1, phi: 0.9 };
        let wave = |step: usize| 5.0 + (step as f64 / 24.0 * std::f64::consts::TAU).sin();
        let values: Vec<Option<f64>> = (0..96).map(|step| Some(wave(step))).collect();
        let (mut series, error) = Series::learn(shape, &values, 2, 48, 10.0);
        assert!(error < 0.3, "{error}");
        for _ in 96..103 {
            series.take(None);
        }
        assert!((series.ahead(1) - wave(103)).abs() < 0.15, "{} {}", series.ahead(1), wave(103));
    }
}
