//! The cluster's size: what is recommended and why, the policy, and the size that an operator asks for.

use super::answers::{Consistency, Freshness, Trouble};
use super::asked::AskedAs;
use super::audit::Asker;
use super::object::Object;
use super::routes::{Admin, Answer, MAX_BODY_BYTES, READ_LIMIT, Shared};
use crate::actors::mailbox::RaftMessage;
use crate::control_plane::trouble;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use kvhive_control::predictor::{Figure, by_hour};
use kvhive_protocol::control::Command;
use kvhive_protocol::scaling::{
    ForecastReport, MAX_SIZE, MAX_WAIT_S, Observation, ScalingChange, ScalingMode, ScalingPolicy,
    ScalingReport,
};
use kvhive_protocol::{Change, Level, Reason};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use utoipa::ToSchema;

/// What is made of a recommendation.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// None is made.
    Off,
    /// It is shown: a dry run.
    Advise,
    /// Whoever follows it gives the cluster that size.
    Act,
}

/// How the size may change.
#[derive(Serialize, ToSchema)]
pub(super) struct Policy {
    mode: Mode,
    /// The fewest members.
    floor: u32,
    /// The most members.
    ceiling: u32,
    /// How much of what `ceiling` members would cover is to be covered, from 0 to 1.
    keep: f64,
    /// The least time between a change and one to more members, in seconds.
    up_cooldown_s: u32,
    /// How long fewer members must have been enough before they are, in seconds.
    down_cooldown_s: u32,
    /// How far ahead load is foreseen, in seconds.
    look_ahead_s: u32,
    /// Requests that wait for longer for their device, on average, ask for more members, in milliseconds.
    max_queue_ms: f64,
    /// The size that an operator has asked for, in place of what is recommended.
    manual: Option<u32>,
}

/// A recommended size and its reason in numbers. Shares are from 0 to 1.
#[derive(Serialize, ToSchema)]
pub(super) struct Recommended {
    /// Members recommended.
    size: u32,
    /// Members that the load asks for by itself, before bounds in time.
    needed: u32,
    /// Why, in a word: `capacity`, `queue`, `surplus`, `room`, `cooldown`, `right`, `bounds`, `manual`, `unknown`, `off`.
    why: String,
    /// Why, in words and numbers.
    reason: String,
    /// Share of keys that half as many members would have covered of late.
    hit_rate_half: f64,
    /// That as many as there are would.
    hit_rate: f64,
    /// That twice as many would.
    hit_rate_double: f64,
    /// That the recommended size would, under the load foreseen.
    hit_rate_expected: f64,
    /// That the most members allowed would, under the load foreseen.
    hit_rate_ceiling: f64,
    /// Load foreseen by that of late.
    growth: f64,
    /// How long requests wait for their device on average, in milliseconds.
    queue_ms: f64,
}

/// What is expected of one figure at one time.
#[derive(Serialize, ToSchema)]
pub(super) struct Foreseen {
    /// `rate` (keys asked a second), `growth` (bytes a second that are new) or `reuse` (share of keys that are covered).
    figure: String,
    /// How far ahead, in seconds.
    ahead_s: u32,
    /// What is most likely.
    value: f64,
    /// Nine of ten times it is not less; none before enough has come of what was foreseen.
    low: Option<f64>,
    /// Nor more; likewise.
    high: Option<f64>,
    /// Mean error of such forecasts by that of the value a season before: below 1 is better. None while nothing has come, or nothing was off a season
    /// before.
    mase: Option<f64>,
    /// Share of such intervals that held; none before any has come to its time.
    coverage: Option<f64>,
    /// After how many seconds the figure is taken to come back; 0 if it is not.
    season_s: u32,
}

/// What a figure was on average in each hour of the day, over the days that are known: two weeks at most.
#[derive(Serialize, ToSchema)]
pub(super) struct Hourly {
    /// As of `forecast`.
    figure: String,
    /// 24 means, the first that of the hour from 0:00 UTC; none of an hour of which nothing is known.
    means: Vec<Option<f64>>,
}

/// Everything about the cluster's size.
#[derive(Serialize, ToSchema)]
pub(super) struct Scaling {
    policy: Policy,
    /// Members that serve and stay.
    members: u32,
    /// The size to have: what an operator asked for, or what is recommended while the mode is `act`; else as it is.
    target: u32,
    /// None before a leader has looked at load for one stretch of time.
    recommendation: Option<Recommended>,
    forecast: Vec<Foreseen>,
    /// As far as the coordinator that is asked knows.
    by_hour: Vec<Hourly>,
    /// Stretches of five minutes that forecasts are made from.
    observations: u32,
}

/// What changes of the policy; what is not named stays.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyPatch {
    mode: Option<Mode>,
    #[schema(minimum = 1, maximum = 1024)]
    floor: Option<u32>,
    #[schema(minimum = 1, maximum = 1024)]
    ceiling: Option<u32>,
    #[schema(minimum = 0.5, maximum = 1.0)]
    keep: Option<f64>,
    #[schema(maximum = 86400)]
    up_cooldown_s: Option<u32>,
    #[schema(maximum = 86400)]
    down_cooldown_s: Option<u32>,
    #[schema(maximum = 86400)]
    look_ahead_s: Option<u32>,
    #[schema(minimum = 0.1, maximum = 60000.0)]
    max_queue_ms: Option<f64>,
    /// Whether a size that an operator has asked for is given up.
    #[serde(default)]
    automatic: bool,
    /// Why, for the journal of events.
    reason: Option<String>,
}

/// A size that an operator asks for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Size {
    /// Members.
    #[schema(minimum = 1, maximum = 1024)]
    size: u32,
    /// Whether it may be fewer than the policy's floor or more than its ceiling; who asked so is in the journal of events.
    #[serde(default)]
    force: bool,
    /// Why, for the journal of events.
    reason: Option<String>,
}

/// What is recommended and why, the policy, and what is foreseen.
#[utoipa::path(get, path = "/v1/scaling", params(Consistency), responses((status = 200, body = Scaling), (status = 503, body = Problem)))]
pub(super) async fn scaling(
    State(admin): Shared,
    query: Result<Query<Consistency>, QueryRejection>,
) -> Answer<Scaling> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    show(&admin, query.consistency).await
}

/// Changes the policy.
#[utoipa::path(patch, path = "/v1/scaling", params(AskedAs), request_body = PolicyPatch, responses((status = 200, body = Scaling), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn change_policy(
    State(admin): Shared,
    asked: AskedAs,
    body: Result<Json<Object<PolicyPatch>>, JsonRejection>,
) -> Answer<Scaling> {
    let Json(Object(patch)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    patch.check()?;
    let keep = patch.keep.map(|keep| within("keep", keep, 0.5, 1.0)).transpose()?;
    let queue = patch.max_queue_ms.map(|ms| within("max_queue_ms", ms, 0.1, 60_000.0)).transpose()?;
    let change = ScalingChange {
        mode: patch.mode.map(|mode| match mode {
            Mode::Off => ScalingMode::Off,
            Mode::Advise => ScalingMode::Advise,
            Mode::Act => ScalingMode::Act,
        }),
        floor: patch.floor,
        ceiling: patch.ceiling,
        keep_per_mille: keep.map(|keep| (keep * 1000.0).round() as u16),
        up_cooldown_s: patch.up_cooldown_s,
        down_cooldown_s: patch.down_cooldown_s,
        look_ahead_s: patch.look_ahead_s,
        max_queue_us: queue.map(|ms| (ms * 1000.0).round() as u32),
        manual: if patch.automatic { Change::Reset } else { Change::Keep },
    };
    submit(&admin, asked, change, patch.reason).await
}

/// Asks for a size, in place of what is recommended, until `PATCH` with `automatic` gives it up. Whoever follows `target` brings
/// it about: `kvhive scale to` and `kvhive scale follow`. Refused with the code `beyond_policy` below the policy's floor and above its
/// ceiling, unless it says `force`.
#[utoipa::path(post, path = "/v1/scaling", params(AskedAs), request_body = Size, responses((status = 200, body = Scaling), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn set_size(
    State(admin): Shared,
    asked: AskedAs,
    asker: Asker,
    body: Result<Json<Object<Size>>, JsonRejection>,
) -> Answer<Scaling> {
    let Json(Object(Size { size, force, reason })) =
        body.map_err(|error| Trouble::unusable_body(&error, MAX_BODY_BYTES))?;
    within("size", size, 1, MAX_SIZE)?;
    let scaling = admin.overview(Freshness::Linearizable).await?.scaling;
    let policy = ScalingPolicy { manual: Some(size), ..scaling.policy };
    // Where the policy holds nothing yet, nobody need go beyond it.
    if !force || policy.holds_size() || admin.level() < Level::CHECKED {
        let change = ScalingChange { manual: Change::Set(size), ..ScalingChange::default() };
        return submit(&admin, asked, change, reason).await;
    }
    let (floor, ceiling) = (policy.floor, policy.ceiling);
    let why = reason.unwrap_or_else(|| "asked for through the admin API".to_owned());
    let reason = Reason::new(format_args!("{asker} goes beyond {floor} to {ceiling} members: {why}"));
    admin.submit_because(asked, Command::ScaleBeyond { size }, reason).await?;
    show(&admin, Freshness::Linearizable).await
}

async fn submit(
    admin: &Admin,
    asked: AskedAs,
    change: ScalingChange,
    reason: Option<String>,
) -> Answer<Scaling> {
    let reason = reason.map(Reason::new).unwrap_or_default();
    admin.submit_because(asked, Command::SetScaling { change }, reason).await?;
    show(admin, Freshness::Linearizable).await
}

async fn show(admin: &Admin, freshness: Freshness) -> Answer<Scaling> {
    let report = admin.overview(freshness).await?.scaling;
    let asked = admin.sources.raft.ask(READ_LIMIT, |reply| RaftMessage::Observations { reply });
    Ok(Json(Scaling::of(report, &asked.await.map_err(trouble)?)))
}

impl PolicyPatch {
    /// Refuses what no policy may be, whatever it is now. What does not fit the rest of it is the cluster's to refuse.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        for (name, value, least, most) in [
            ("floor", self.floor, 1, MAX_SIZE),
            ("ceiling", self.ceiling, self.floor.unwrap_or(1), MAX_SIZE),
            ("up_cooldown_s", self.up_cooldown_s, 0, MAX_WAIT_S),
            ("down_cooldown_s", self.down_cooldown_s, 0, MAX_WAIT_S),
            ("look_ahead_s", self.look_ahead_s, 0, MAX_WAIT_S),
        ] {
            value.map_or(Ok(0), |value| within(name, value, least, most))?;
        }
        Ok(())
    }
}

fn within<T: PartialOrd + Copy + Display>(name: &str, value: T, least: T, most: T) -> Result<T, Trouble> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Trouble::bad_request(format!("{name} is {value}, allowed is {least} to {most}")))
}

impl Scaling {
    fn of(report: ScalingReport, seen: &[Observation]) -> Scaling {
        let ScalingReport { policy, members, advice, forecasts, observations } = report;
        let share = |ppm: u32| f64::from(ppm) / 1e6;
        let recommended = advice.as_ref().map(|advice| advice.size);
        let target = match policy.mode {
            ScalingMode::Act => recommended,
            ScalingMode::Off | ScalingMode::Advise => None,
        };
        let mode = match policy.mode {
            ScalingMode::Off => Mode::Off,
            ScalingMode::Advise => Mode::Advise,
            ScalingMode::Act => Mode::Act,
        };
        Scaling {
            target: policy.manual.or(target).unwrap_or(members),
            policy: Policy {
                mode,
                floor: policy.floor,
                ceiling: policy.ceiling,
                keep: f64::from(policy.keep_per_mille) / 1000.0,
                up_cooldown_s: policy.up_cooldown_s,
                down_cooldown_s: policy.down_cooldown_s,
                look_ahead_s: policy.look_ahead_s,
                max_queue_ms: f64::from(policy.max_queue_us) / 1000.0,
                manual: policy.manual,
            },
            members,
            recommendation: advice.map(|advice| Recommended {
                size: advice.size,
                needed: advice.needed,
                why: advice.why,
                reason: advice.reason,
                hit_rate_half: share(advice.hit_rate_half_ppm),
                hit_rate: share(advice.hit_rate_ppm),
                hit_rate_double: share(advice.hit_rate_double_ppm),
                hit_rate_expected: share(advice.hit_rate_expected_ppm),
                hit_rate_ceiling: share(advice.hit_rate_ceiling_ppm),
                growth: share(advice.growth_ppm),
                queue_ms: advice.queue_us as f64 / 1000.0,
            }),
            forecast: forecasts.into_iter().map(Foreseen::of).collect(),
            by_hour: Figure::ALL.map(|figure| Hourly::of(figure, seen)).into(),
            observations,
        }
    }
}

impl Hourly {
    fn of(figure: Figure, seen: &[Observation]) -> Hourly {
        Hourly { figure: figure.name().to_owned(), means: by_hour(seen, figure).into() }
    }
}

impl Foreseen {
    fn of(forecast: ForecastReport) -> Foreseen {
        let milli = |value: u64| value as f64 / 1000.0;
        let bounds = forecast.bounds();
        let (mase, coverage) = (forecast.mase(), forecast.coverage());
        Foreseen {
            figure: forecast.figure,
            ahead_s: forecast.ahead_s,
            value: milli(forecast.value_milli),
            low: bounds.map(|(low, _)| milli(low)),
            high: bounds.map(|(_, high)| milli(high)),
            mase,
            coverage,
            season_s: forecast.season_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::scaling::{Advice, OBSERVATION_SECONDS};

    fn target(mode: ScalingMode, manual: Option<u32>, recommended: Option<u32>) -> u32 {
        let advice = |size| Advice {
            size,
            needed: size,
            why: "capacity".to_owned(),
            reason: "more would be covered".to_owned(),
            hit_rate_half_ppm: 0,
            hit_rate_ppm: 0,
            hit_rate_double_ppm: 0,
            hit_rate_expected_ppm: 0,
            hit_rate_ceiling_ppm: 0,
            growth_ppm: 0,
            queue_us: 0,
        };
        let report = ScalingReport {
            policy: ScalingPolicy { mode, manual, ..ScalingPolicy::default() },
            members: 3,
            advice: recommended.map(advice),
            ..ScalingReport::default()
        };
        Scaling::of(report, &[]).target
    }

    #[test]
    fn what_was_is_told_by_the_hour_of_the_day() {
        // Two days of 300 keys a second in the hour from 5:00, half of them covered, and nothing known of other hours.
        let seen: Vec<Observation> = [5, 29]
            .into_iter()
            .map(|hour| Observation {
                bucket: hour * 3600 / OBSERVATION_SECONDS,
                asked: 300 * OBSERVATION_SECONDS,
                covered: 150 * OBSERVATION_SECONDS,
                new_bytes: 0,
            })
            .collect();
        let told = Scaling::of(ScalingReport::default(), &seen).by_hour;
        let figures: Vec<&str> = told.iter().map(|one| one.figure.as_str()).collect();
        assert_eq!(figures, ["rate", "growth", "reuse"]);
        for (one, mean) in told.iter().zip([300.0, 0.0, 0.5]) {
            assert_eq!((one.means.len(), one.means[5]), (24, Some(mean)), "{}", one.figure);
            assert_eq!(one.means.iter().flatten().count(), 1, "{}", one.figure);
        }
    }

    #[test]
    fn what_is_recommended_is_the_target_of_those_who_follow_while_the_mode_is_act_alone() {
        use ScalingMode::{Act, Advise, Off};
        for (mode, manual, recommended, expected) in [
            (Off, None, Some(5), 3),
            (Advise, None, Some(5), 3),
            (Act, None, Some(5), 5),
            (Act, None, Some(2), 2),
            // Nobody has looked at load yet: it stays as it is.
            (Act, None, None, 3),
            // What an operator asked for goes first, whatever the mode.
            (Act, Some(4), Some(5), 4),
            (Off, Some(4), Some(5), 4),
        ] {
            assert_eq!(target(mode, manual, recommended), expected, "{mode:?} {manual:?} {recommended:?}");
        }
    }
}
