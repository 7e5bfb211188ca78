//! `/metrics` of a coordinator, in Prometheus' text format.

use super::routes::Admin;
use crate::actors::mailbox::RaftMessage;
use crate::actors::raft::Figures;
use kvhive_protocol::MemberState;
use kvhive_protocol::control::{ControlReply, Overview};
use kvhive_runtime::http::{describe, record_tls};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An actor that does not answer a scrape within this is left out of it.
const LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn render(admin: &Admin) -> String {
    let figures =
        admin.sources.raft.ask(LIMIT, |reply| RaftMessage::Figures { reply }).await.unwrap_or_default();
    let overview =
        admin.sources.raft.ask(LIMIT, |reply| RaftMessage::Overview { linearizable: false, reply }).await;
    // A recorder of this scrape's own: two coordinators in one process never mix.
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        describe();
        record_figures(admin, &figures);
        if let Ok(ControlReply::Overview(overview)) = &overview {
            record_overview(overview);
        }
    });
    handle.render()
}

fn record_figures(admin: &Admin, figures: &Figures) {
    let log = &admin.sources.log;
    for (name, value) in [
        ("kvhive_coordinator_proposals_total", figures.proposals),
        ("kvhive_coordinator_reads_total", figures.reads),
        ("kvhive_coordinator_refused_total", figures.refused),
        ("kvhive_coordinator_elections_won_total", figures.elections),
        ("kvhive_coordinator_raft_sends_dropped_total", figures.dropped_sends),
        ("kvhive_coordinator_raft_messages_ignored_total", figures.ignored_messages),
        ("kvhive_coordinator_slots_lost_total", figures.lost_slots),
        ("kvhive_coordinator_leases_renewed_total", figures.oversight.renewed),
        ("kvhive_coordinator_leases_expired_total", figures.oversight.expired),
        ("kvhive_coordinator_heartbeats_fenced_total", figures.oversight.fenced),
        ("kvhive_coordinator_plans_total", figures.oversight.plans),
        ("kvhive_coordinator_clears_done_total", figures.oversight.clears_done),
        ("kvhive_coordinator_log_syncs_total", log.syncs.load(Ordering::Relaxed)),
        ("kvhive_coordinator_log_writes_total", log.writes.load(Ordering::Relaxed)),
        ("kvhive_coordinator_log_microseconds_total", log.micros.load(Ordering::Relaxed)),
    ] {
        metrics::counter!(name).absolute(value);
    }
    if let Some(publisher) = &admin.sources.publisher {
        let (blocks, batches) = publisher.figures();
        metrics::gauge!("kvhive_coordinator_block_events_blocks").set(blocks as f64);
        metrics::counter!("kvhive_coordinator_block_events_batches_total").absolute(batches);
    }
    let hashes = admin.sources.control.engines().hash_figures();
    metrics::gauge!("kvhive_coordinator_engine_hashes").set(hashes.known as f64);
    metrics::gauge!("kvhive_coordinator_engine_hashes_room").set(hashes.room as f64);
    metrics::counter!("kvhive_coordinator_engine_hashes_dropped_total").absolute(hashes.dropped);
    for (name, value) in admin.sources.tracer.figures().named() {
        metrics::counter!(name).absolute(value);
    }
    if let Some(tls) = &admin.sources.identity.tls {
        record_tls(tls);
    }
    metrics::gauge!("kvhive_coordinator_waiting").set(figures.waiting as f64);
}

fn record_overview(overview: &Overview) {
    let status = &overview.status;
    metrics::gauge!("kvhive_coordinator_is_leader").set(f64::from(u8::from(status.role == "leader")));
    metrics::gauge!("kvhive_coordinator_term").set(status.term as f64);
    metrics::gauge!("kvhive_coordinator_committed_index").set(status.committed as f64);
    metrics::gauge!("kvhive_coordinator_applied_index").set(status.applied as f64);
    metrics::gauge!("kvhive_coordinator_epoch").set(status.epoch.0 as f64);
    let slots = super::overview::slots(overview);
    metrics::gauge!("kvhive_coordinator_slots_unavailable").set(slots.unavailable as f64);
    metrics::gauge!("kvhive_coordinator_slots_moving").set(slots.moving as f64);
    if let Some(map) = &overview.map {
        for (state, name) in [(MemberState::Up, "up"), (MemberState::Down, "down")] {
            let count = map.members.values().filter(|member| member.state == state).count();
            metrics::gauge!("kvhive_coordinator_members", "state" => name).set(count as f64);
        }
    }
    if let Some(map) = &overview.map {
        metrics::gauge!("kvhive_coordinator_pins").set(map.pins.len() as f64);
    }
    let scaling = &overview.scaling;
    if let Some(advice) = &scaling.advice {
        metrics::gauge!("kvhive_scaling_members").set(f64::from(scaling.members));
        metrics::gauge!("kvhive_scaling_recommended_members").set(f64::from(advice.size));
        metrics::gauge!("kvhive_scaling_queue_seconds").set(advice.queue_us as f64 / 1e6);
    }
    for one in &scaling.forecasts {
        let labels = [("figure", one.figure.clone()), ("ahead", format!("{}s", one.ahead_s))];
        metrics::gauge!("kvhive_forecast", &labels).set(one.value_milli as f64 / 1e3);
        if let Some(mase) = one.mase() {
            metrics::gauge!("kvhive_forecast_mase", &labels).set(mase);
        }
        if let Some(coverage) = one.coverage() {
            metrics::gauge!("kvhive_forecast_coverage", &labels).set(coverage);
        }
    }
    for (device, load) in &overview.loads {
        for (name, value) in [
            ("kvhive_device_blocks", load.blocks),
            ("kvhive_device_used_bytes", load.used_bytes),
            ("kvhive_device_capacity_bytes", load.capacity_bytes),
            ("kvhive_device_pinned_blocks", load.pinned.blocks),
            ("kvhive_device_pinned_bytes", load.pinned.bytes),
        ] {
            metrics::gauge!(name, "device" => device.to_string()).set(value as f64);
        }
    }
}
