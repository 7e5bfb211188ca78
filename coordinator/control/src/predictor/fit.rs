//! Which shape fits a series: seasons that were given or found by autocorrelation, and rates out of a small grid, the one that
//! was least wrong some steps ahead. Each error is made before its value is learnt from.

use super::series::{Series, Shape, median, quantile};

/// The most points whose autocorrelation is computed at every lag; a longer series is thinned first.
const MAX_POINTS: usize = 512;
/// A season shorter than this is left to the level.
const MIN_SEASON: usize = 6;
/// Values and those a season before must go together so much.
const MIN_CORRELATION: f64 = 0.3;
/// Another shape must be so much less wrong than a simpler one.
const BETTER: f64 = 0.97;
/// What all but this part of values are above, and all but this part below, is how far they spread: the rest may be outliers.
const OUTLIERS: f64 = 0.03;

/// Returns the series that fits `values` best.
pub(super) fn fit(values: &[Option<f64>], given: &[usize]) -> Series {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    if known.len() < 12 {
        return Series::learn(Shape::PLAIN, values, 0, 0, 0.0).0;
    }
    let mut seasons: Vec<usize> = given.to_vec();
    seasons.extend(find_season(values));
    seasons.retain(|season| *season >= MIN_SEASON && known.len() >= 2 * season && values.len() >= 2 * season);
    seasons.sort_unstable();
    seasons.dedup();
    // A season is learnt from its first two rounds at once, from one where there are no three: what it is judged by comes after.
    let learnt = |season: usize| if values.len() >= 3 * season { 2 } else { 1 };
    let longest = seasons.iter().map(|season| learnt(*season) * season).max().unwrap_or(0);
    let judged_from = longest.max(values.len() / 4);
    let (low, high) = spread(&known);
    // Nobody needs to be wrong by more than all that values spread.
    let judge = |shape: Shape| Series::learn(shape, values, learnt(shape.season), judged_from, high - low);
    let (mut best, mut least) = judge(Shape::PLAIN);
    for season in std::iter::once(0).chain(seasons) {
        let (series, wrong) = best_rates(season, &judge);
        if wrong < least * BETTER {
            (best, least) = (series, wrong);
        }
    }
    best
}

/// Tries the rates of a shape one after the other, each with the best of those before.
fn best_rates(season: usize, judge: &impl Fn(Shape) -> (Series, f64)) -> (Series, f64) {
    const ALPHAS: [f64; 5] = [0.02, 0.05, 0.15, 0.4, 0.7];
    const TRENDS: [(f64, f64); 2] = [(0.05, 0.9), (0.2, 0.98)];
    let mut shape = Shape { season, gamma: 0.1, ..Shape::PLAIN };
    let (mut best, mut best_shape) = ((Series::new(shape), f64::INFINITY), shape);
    let mut attempt = |tried: Shape| {
        let (series, wrong) = judge(tried);
        if wrong < best.1 {
            (best, best_shape) = ((series, wrong), tried);
        }
        best_shape
    };
    for alpha in ALPHAS {
        shape = attempt(Shape { alpha, ..shape });
    }
    for (beta, phi) in TRENDS {
        shape = attempt(Shape { beta, phi, ..shape });
    }
    if season > 0 {
        attempt(Shape { gamma: 0.3, ..shape });
    }
    best
}

/// Returns between which two values all are but outliers.
fn spread(values: &[f64]) -> (f64, f64) {
    let at = |part| quantile(values.to_vec(), part).unwrap_or(0.0);
    (at(OUTLIERS), at(1.0 - OUTLIERS))
}

/// Returns after how many steps values come back, if they do.
pub(super) fn find_season(values: &[Option<f64>]) -> Option<usize> {
    let whole = level_out(values)?;
    let thin = whole.len().div_ceil(MAX_POINTS);
    let points: Vec<f64> =
        whole.chunks(thin).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect();
    let all: Vec<f64> = (0..=points.len() / 2).map(|lag| correlation(&points, lag)).collect();
    // The first dip ends what is alike only because it is near; the best after it is a season or a multiple of one.
    let dip = all.iter().position(|one| *one < 0.0)?;
    let (_, best) = peak(&all, dip..all.len())?;
    let (lag, _) = (dip..all.len()).map(|lag| (lag, all[lag])).find(|(lag, one)| {
        let is_peak = all.get(lag + 1).is_none_or(|next| next <= one) && all[lag - 1] <= *one;
        is_peak && *one >= MIN_CORRELATION && *one >= 0.8 * best
    })?;
    let near = (lag.saturating_sub(1) * thin).max(1)..((lag + 1) * thin + 1).min(whole.len() / 2 + 1);
    let exact: Vec<f64> = near.clone().map(|lag| correlation(&whole, lag)).collect();
    let (at, _) = peak(&exact, 0..exact.len())?;
    Some(near.start + at).filter(|season| *season >= MIN_SEASON)
}

fn peak(values: &[f64], within: std::ops::Range<usize>) -> Option<(usize, f64)> {
    within.map(|at| (at, values[at])).max_by(|one, other| one.1.total_cmp(&other.1))
}

/// Fills gaps with what was last known, clips outliers, takes away the straight line through the halves' middles.
fn level_out(values: &[Option<f64>]) -> Option<Vec<f64>> {
    let mut last = values.iter().flatten().next().copied()?;
    let filled: Vec<f64> = values
        .iter()
        .map(|value| {
            last = value.unwrap_or(last);
            last
        })
        .collect();
    let half = filled.len() / 2;
    let (low, high) = (median(filled[..half].to_vec())?, median(filled[half..].to_vec())?);
    let slope = (high - low) / half as f64;
    let flat: Vec<f64> = filled.iter().enumerate().map(|(at, value)| value - slope * at as f64).collect();
    let (low, high) = spread(&flat);
    if high <= low {
        return None;
    }
    Some(flat.into_iter().map(|value| value.clamp(low, high)).collect())
}

/// How much values and those `lag` before go together, from -1 to 1.
fn correlation(values: &[f64], lag: usize) -> f64 {
    let (now, before) = (&values[lag..], &values[..values.len() - lag]);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (here, there) = (mean(now), mean(before));
    let (mut both, mut one, mut other) = (0.0, 0.0, 0.0);
    for (now, before) in now.iter().zip(before) {
        both += (now - here) * (before - there);
        one += (now - here).powi(2);
        other += (before - there).powi(2);
    }
    if one * other > 0.0 { both / (one * other).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(steps: usize, season: usize) -> Vec<Option<f64>> {
        let mut dice = 9_u32;
        let value = |step: usize| {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = f64::from(dice >> 16) / 65_536.0 - 0.5;
            // Not a sine: two peaks of unequal height, as an office's day has.
            let turn = (step % season) as f64 / season as f64 * std::f64::consts::TAU;
            Some(10.0 + 3.0 * turn.sin() + (2.0 * turn).cos() + noise + step as f64 * 0.001)
        };
        (0..steps).map(value).collect()
    }

    #[test]
    fn a_season_is_found_through_noise_gaps_and_outliers() {
        let mut values = wave(1400, 288);
        values[300..340].fill(None);
        values[700] = Some(400.0);
        let found = find_season(&values).expect("there is one");
        assert!((284..=292).contains(&found), "{found}");
        assert_eq!(fit(&values, &[288]).season() / 280, 1);
    }

    #[test]
    fn no_season_is_found_where_there_is_none() {
        let line: Vec<Option<f64>> = (0..600).map(|step| Some(f64::from(step))).collect();
        assert_eq!(fit(&line, &[]).season(), 0);
        assert_eq!(find_season(&vec![Some(4.0); 600]), None);
        assert_eq!(find_season(&vec![None; 600]), None);
    }
}
