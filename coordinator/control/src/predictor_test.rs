//! The predictor, told weeks of made-up load.

use super::*;
use proptest::prelude::*;

/// Load with a day's wave, a quieter weekend, and noise.
struct Load {
    dice: u64,
    noise: f64,
}

impl Load {
    fn new(noise: f64) -> Load {
        Load { dice: 0x9E37_79B9_7F4A_7C15, noise }
    }

    fn random(&mut self) -> f64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Without noise, in keys a second.
    fn level(bucket: u64) -> f64 {
        let turn = bucket as f64 / DAY as f64 * std::f64::consts::TAU;
        1000.0 * (0.8 * -turn.cos() + 0.3 * (2.0 * turn).sin()).exp()
    }

    fn at(&mut self, bucket: u64) -> Observation {
        let noise = (self.noise * (self.random() + self.random() - 1.0)).exp();
        let asked = (Load::level(bucket) * noise * OBSERVATION_SECONDS as f64) as u64;
        let covered = (asked as f64 * (0.5 + 0.05 * self.random())) as u64;
        Observation { bucket, asked, covered, new_bytes: (asked - covered) * 65_536 }
    }
}

fn after_days(days: u64, noise: f64) -> (Predictor, Load) {
    let (mut predictor, mut load) = (Predictor::new(), Load::new(noise));
    for bucket in 0..days * DAY as u64 {
        assert!(predictor.update_pattern(&load.at(bucket)));
    }
    (predictor, load)
}

#[test]
fn a_day_that_comes_back_is_foreseen() {
    let (predictor, _) = after_days(6, 0.2);
    assert_eq!(predictor.season_seconds(Figure::Rate), 86_400);
    for steps in [1, 12, 36, 144, 200] {
        let expected = Load::level(6 * DAY as u64 + u64::from(steps) - 1);
        let forecast = predictor.forecast(Figure::Rate, steps).expect("much was seen");
        assert!((forecast.value / expected).ln().abs() < 0.12, "{steps}: {forecast:?} {expected}");
        assert!(forecast.low < expected && expected < forecast.high, "{steps}: {forecast:?} {expected}");
    }
    for steps in [1, 12, 144] {
        let score = predictor.score(Figure::Rate, steps);
        assert!(score.mase > 0.0 && score.mase < 0.95, "{steps}: {score:?}");
        assert!((0.82..=0.97).contains(&score.coverage), "{steps}: {score:?}");
    }
    let rates = by_hour(predictor.observations(), Figure::Rate);
    let (night, noon) = (rates[0].expect("known"), rates[12].expect("known"));
    assert!(noon > 3.0 * night, "{noon} {night}");
}

/// So many days of a load told by its logarithm at each stretch of time, with noise.
fn days_of(days: usize, seed: u64, noise: f64, level: impl Fn(usize, f64) -> f64) -> Predictor {
    let (mut predictor, mut load) = (Predictor::new(), Load::new(noise));
    load.dice ^= seed.wrapping_mul(0xD134_2543_DE82_EF95);
    let mut walk = 0.0;
    for at in 0..days * DAY {
        walk += load.random() + load.random() - 1.0;
        let noise = noise * (load.random() + load.random() - 1.0);
        let rate = 1000.0 * (level(at, walk) + noise).exp();
        let asked = (rate * OBSERVATION_SECONDS as f64) as u64;
        predictor.update_pattern(&Observation { bucket: at as u64, asked, covered: asked / 2, new_bytes: 0 });
    }
    predictor
}

fn square(at: usize) -> f64 {
    if (8 * DAY / 24..18 * DAY / 24).contains(&(at % DAY)) { 1.6 } else { 0.0 }
}

#[test]
fn a_day_that_steps_up_and_down_is_a_season_and_its_steps_are_foreseen() {
    for (seed, noise) in [(1, 0.1), (2, 0.3), (3, 0.5)] {
        let predictor = days_of(5, seed, noise, |at, _| square(at));
        assert_eq!(predictor.season_seconds(Figure::Rate), 86_400, "{seed}");
        // It is midnight: two hours after eight it is day, and two hours after eighteen night.
        for (hour, expected) in [(6, 1000.0), (10, 4953.0), (16, 4953.0), (20, 1000.0)] {
            let forecast = predictor.forecast(Figure::Rate, hour * 12).expect("much was seen");
            assert!((forecast.value / expected).ln().abs() < 0.25, "{seed} {hour}: {forecast:?}");
        }
        let score = predictor.score(Figure::Rate, 36);
        assert!(score.mase < 1.05, "{score:?}");
    }
}

#[test]
fn load_without_a_day_is_given_none() {
    for seed in 1..=6 {
        let flat = days_of(4, seed, 0.4, |_, _| 0.0);
        assert_eq!(flat.season_seconds(Figure::Rate), 0, "flat, {seed}");
        let wanders = days_of(4, seed, 0.1, |_, walk| 0.05 * walk);
        assert_eq!(wanders.season_seconds(Figure::Rate), 0, "a walk, {seed}");
        let grows = days_of(4, seed, 0.2, |at, _| at as f64 / (2.0 * DAY as f64));
        assert_eq!(grows.season_seconds(Figure::Rate), 0, "growth, {seed}");
    }
}

/// Loads of kinds, noises and seeds that nothing was tuned on.
#[test]
fn nine_of_ten_intervals_hold_whatever_load_does() {
    type Level = fn(usize, f64) -> f64;
    let kinds: [(&str, Level); 4] = [
        ("square", |at, _| square(at)),
        ("wave", |at, _| (at as f64 / DAY as f64 * std::f64::consts::TAU).sin()),
        ("flat", |_, _| 0.0),
        ("walk", |_, walk| 0.03 * walk),
    ];
    for (kind, level) in kinds {
        for seed in [21, 22] {
            let predictor = days_of(5, seed, 0.35, level);
            // Of half a day ahead five days say less.
            for (steps, least) in [(1, 0.84), (12, 0.84), (36, 0.84), (144, 0.75)] {
                let score = predictor.score(Figure::Rate, steps);
                assert!((least..=0.97).contains(&score.coverage), "{kind} {seed} {steps}: {score:?}");
            }
        }
    }
}

#[test]
fn gaps_and_outliers_do_not_lead_it_astray() {
    let (mut predictor, mut load) = (Predictor::new(), Load::new(0.2));
    for bucket in 0..6 * DAY as u64 {
        let mut observation = load.at(bucket);
        match bucket % 97 {
            3..7 => continue,
            50 => observation.asked *= 40,
            80 => observation.asked = 0,
            _ => {}
        }
        predictor.update_pattern(&observation);
    }
    let steps = 70;
    let expected = Load::level(6 * DAY as u64 + 69);
    let forecast = predictor.forecast(Figure::Rate, steps).expect("much was seen");
    assert!((forecast.value / expected).ln().abs() < 0.2, "{forecast:?} {expected}");
}

#[test]
fn another_level_is_followed_within_the_hour() {
    let (mut predictor, mut load) = after_days(4, 0.2);
    let from = 4 * DAY as u64;
    for bucket in from..from + 12 {
        let observation = load.at(bucket);
        predictor.update_pattern(&Observation { asked: observation.asked * 5, ..observation });
    }
    let expected = 5.0 * Load::level(from + 12);
    let forecast = predictor.forecast(Figure::Rate, 1).expect("much was seen");
    assert!((forecast.value / expected).ln().abs() < 0.5, "{forecast:?} {expected}");
    assert!(predictor.score(Figure::Rate, 1).mase > 0.0);
}

#[test]
fn what_was_seen_is_all_that_is_needed_to_know_as_much() {
    let (predictor, mut load) = after_days(3, 0.3);
    let observations: Vec<Observation> = predictor.observations().copied().collect();
    let again = Predictor::relearn(&observations);
    for figure in Figure::ALL {
        assert_eq!(again.forecast(figure, 40), predictor.forecast(figure, 40));
        assert_eq!(again.score(figure, 12), predictor.score(figure, 12));
    }
    let mut again = again;
    assert!(!again.update_pattern(&load.at(17)), "it is long past");
    assert_eq!(Predictor::new().forecast(Figure::Rate, 1), None);
}

#[test]
fn after_a_gap_longer_than_its_memory_it_begins_anew() {
    let (mut predictor, mut load) = after_days(1, 0.1);
    predictor.update_pattern(&load.at(1 << 40));
    assert_eq!(predictor.observations().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_seen_bounds_hold_and_memory_is_bounded(
        seen in prop::collection::vec((0_u64..9, any::<u64>(), any::<u64>(), 0_u64..u64::MAX), 1..40),
        start in 0_u64..1 << 50,
    ) {
        let mut predictor = Predictor::new();
        let mut bucket = start;
        for (gap, asked, covered, new_bytes) in seen {
            bucket += gap;
            predictor.update_pattern(&Observation { bucket, asked, covered, new_bytes });
            for figure in Figure::ALL {
                for steps in [1, 7, 500, u32::MAX] {
                    let Forecast { value, low, high } = predictor.forecast(figure, steps).expect("seen");
                    prop_assert!(value.is_finite() && low <= value && value <= high && low >= 0.0 && high.is_finite());
                }
                let score = predictor.score(figure, 3);
                prop_assert!((0.0..=1.0).contains(&score.coverage) && score.mase.is_finite());
            }
        }
        prop_assert!(predictor.history.len() <= MAX_OBSERVATIONS);
    }
}
