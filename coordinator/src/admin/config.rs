//! The configuration that is in effect: what the cluster has agreed on, and what this coordinator was started with. Secrets are named and
//! never shown.

use super::answers::{Consistency, Trouble};
use super::routes::{Answer, Shared};
use crate::config::CoordinatorConfig;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use kvhive_protocol::ClusterMap;
use kvhive_protocol::data::Ack;
use kvhive_protocol::scaling::{ScalingMode, ScalingPolicy};
use kvhive_runtime::http::{Problem, Role};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// What stands for a secret that there is.
const SECRET: &str = "set, not shown";
const FOUNDED: &str = "decided when the cluster was first started, for good";
const RESTART: &str =
    "in the cluster file, then restart the coordinator; what the one that leads was started with counts";
const RESTART_OWN: &str = "in the cluster file, then restart this coordinator";
const RESTART_ALL: &str = "in the cluster file, then restart every process";
const SCALING: &str =
    "PATCH /v1/scaling, or `kvhive scale set`; the cluster file counts only when a cluster is first started";

/// `/v1/config`.
#[derive(Serialize, ToSchema)]
pub(super) struct Config {
    /// Which coordinator says so.
    coordinator: String,
    settings: Vec<Setting>,
    epoch: u64,
}

/// One setting.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Setting {
    /// Its name in the cluster file.
    key: String,
    /// As the cluster file would say it; null where there is none.
    value: Option<String>,
    of: Scope,
    /// It can be changed while the cluster runs.
    live: bool,
    /// How it is changed.
    change: String,
}

/// Whose a setting is: agreed on by the whole `cluster`, or what this `coordinator` was started with.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scope {
    Cluster,
    Coordinator,
}

/// What a coordinator was started with, as far as it may be shown.
pub(crate) struct Own {
    name: String,
    settings: Vec<Setting>,
}

impl Own {
    pub(crate) fn of(config: &CoordinatorConfig) -> Own {
        let own = config.peers.iter().find(|peer| peer.peer == config.peer);
        let name = own.map(|own| own.name.clone()).unwrap_or_default();
        let roles = config.access.roles();
        let token = |role| roles.contains(&role).then(|| SECRET.to_owned());
        let events = config.block_events.as_ref();
        let all = [
            ("cluster.repair_after", Some(time(config.repair_after)), RESTART),
            ("cluster.balance", Some(if config.balance { "continuous" } else { "off" }.to_owned()), RESTART),
            ("cluster.max_level", Some(config.speaks.0.to_string()), RESTART_OWN),
            ("cluster.token_file", Some(SECRET.to_owned()), RESTART_ALL),
            ("cluster.operator_token_file", token(Role::Operator), RESTART_OWN),
            ("cluster.viewer_token_file", token(Role::Viewer), RESTART_OWN),
            ("raft.election_timeout", Some(time(config.election_timeout)), RESTART_OWN),
            ("raft.heartbeat", Some(time(config.heartbeat)), RESTART_OWN),
            ("raft.snapshot_every", Some(config.snapshot_every.to_string()), RESTART_OWN),
            (
                "coordinator.id",
                Some(name.clone()),
                "`kvhive raft add` and `kvhive raft remove` replace it by another",
            ),
            (
                "coordinator.peer",
                Some(config.peer.to_string()),
                "`kvhive raft add` and `kvhive raft remove` replace it by another",
            ),
            ("coordinator.raft", Some(config.raft_listen.to_string()), RESTART_OWN),
            ("coordinator.admin", Some(config.admin_listen.to_string()), RESTART_OWN),
            ("coordinator.data_dir", Some(config.data_dir.display().to_string()), RESTART_OWN),
            ("coordinator.block_events", events.map(|events| events.listen.to_string()), RESTART_OWN),
            (
                "coordinator.block_events_replay",
                events.and_then(|events| events.replay).map(|replay| replay.to_string()),
                RESTART_OWN,
            ),
            ("coordinator.block_events_topic", events.map(|events| events.topic.clone()), RESTART_OWN),
            ("traces", Some(on(config.tracer.is_on())), RESTART_OWN),
        ];
        let setting = |(key, value, change): (&str, Option<String>, &str)| Setting {
            key: key.to_owned(),
            value,
            of: Scope::Coordinator,
            live: false,
            change: change.to_owned(),
        };
        let mut settings: Vec<Setting> = all.into_iter().map(setting).collect();
        let change = match config.tls {
            Some(_) => {
                "put other files in the place of the certificate's: they are read again; on or off in the cluster file, then restart every process"
            }
            None => RESTART_ALL,
        };
        settings.push(Setting {
            key: "tls".to_owned(),
            value: Some(on(config.tls.is_some())),
            of: Scope::Coordinator,
            live: config.tls.is_some(),
            change: change.to_owned(),
        });
        Own { name, settings }
    }
}

fn on(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.to_owned()
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// Returns what the whole cluster has agreed on.
fn agreed(map: &ClusterMap, policy: &ScalingPolicy) -> Vec<Setting> {
    let settings = &map.settings;
    let ack = match settings.ack {
        Ack::Primary => "primary",
        Ack::Quorum => "quorum",
        Ack::All => "all",
    };
    let mode = match policy.mode {
        ScalingMode::Off => "off",
        ScalingMode::Advise => "advise",
        ScalingMode::Act => "act",
    };
    let seconds = |count: u32| time(Duration::from_secs(count.into()));
    let ms = |count: u64| time(Duration::from_millis(count));
    let all = [
        ("cluster.name", map.name.clone(), false, FOUNDED),
        ("cluster.replicas", settings.replicas.to_string(), false, FOUNDED),
        ("cluster.segment_blocks", settings.segment_blocks.to_string(), false, FOUNDED),
        (
            "cluster.ack",
            ack.to_owned(),
            false,
            "each store may say otherwise; the default was decided when the cluster was first started",
        ),
        ("cluster.lease", ms(settings.lease_ms), false, FOUNDED),
        ("cluster.serving_lease", ms(settings.serving_lease_ms), false, FOUNDED),
        ("cluster.heartbeat", ms(settings.heartbeat_ms), false, FOUNDED),
        ("scaling.mode", mode.to_owned(), true, SCALING),
        ("scaling.floor", policy.floor.to_string(), true, SCALING),
        ("scaling.ceiling", policy.ceiling.to_string(), true, SCALING),
        ("scaling.keep", (f64::from(policy.keep_per_mille) / 1e3).to_string(), true, SCALING),
        ("scaling.up_cooldown", seconds(policy.up_cooldown_s), true, SCALING),
        ("scaling.down_cooldown", seconds(policy.down_cooldown_s), true, SCALING),
        ("scaling.look_ahead", seconds(policy.look_ahead_s), true, SCALING),
        ("scaling.max_queue", time(Duration::from_micros(policy.max_queue_us.into())), true, SCALING),
    ];
    let setting = |(key, value, live, change): (&str, String, bool, &str)| Setting {
        key: key.to_owned(),
        value: Some(value),
        of: Scope::Cluster,
        live,
        change: change.to_owned(),
    };
    all.into_iter().map(setting).collect()
}

/// The configuration in effect: what the cluster has agreed on, and what this coordinator was started with; of each setting whether it can be
/// changed while the cluster runs, and how. Tenants' rules, pins and engines have routes of their own, and nodes files of their own.
#[utoipa::path(get, path = "/v1/config", params(Consistency), responses((status = 200, body = Config), (status = 503, body = Problem)))]
pub(super) async fn config(
    State(admin): Shared,
    query: Result<Query<Consistency>, QueryRejection>,
) -> Answer<Config> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(query.consistency).await?;
    let own = &admin.sources.own;
    let agreed = overview.map.as_ref().map_or(Vec::new(), |map| agreed(map, &overview.scaling.policy));
    Ok(Json(Config {
        coordinator: own.name.clone(),
        settings: agreed.into_iter().chain(own.settings.iter().cloned()).collect(),
        epoch: overview.status.epoch.0,
    }))
}
