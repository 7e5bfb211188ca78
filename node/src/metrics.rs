//! The node's metrics, in Prometheus' text format, and its health.

use crate::actors::core::DeviceMessage;
use crate::actors::device::Device;
use crate::actors::uses::CodecUses;
use crate::book::GuestBook;
use crate::data::{DataPlane, VERBS};
use crate::disk::{self, Keyring, Store};
use crate::memory::Memory;
use crate::redis::Door;
use crate::stats::{self, StrategyFigures};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kvhive_cache::{Reason, ShardStats};
use kvhive_client::Fallback;
use kvhive_protocol::TenantId;
use kvhive_protocol::block::Codec;
use kvhive_protocol::load::{MAX_TENANT_LOADS, TenantLoad};
use kvhive_runtime::http::{describe, help_line, record_tls};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A device that does not answer a scrape within this is left out of it.
const DEVICE_LIMIT: Duration = Duration::from_millis(500);

/// What is measured.
pub(crate) struct Sources {
    pub(crate) devices: Vec<Device>,
    pub(crate) stores: Vec<Option<Arc<Store>>>,
    /// Of each device.
    pub(crate) memories: Vec<Memory>,
    /// Keys of the disk tiers, if they are encrypted.
    pub(crate) keys: Option<Arc<Keyring>>,
    pub(crate) plane: Arc<DataPlane>,
    /// The port that speaks Redis, if there is one.
    pub(crate) redis: Option<Arc<Door>>,
    /// Arenas, indices and buffers as the configuration sizes them, in bytes.
    pub(crate) memory_configured: u64,
}

/// Returns the routes `/metrics`, `/healthz` and `/readyz`.
pub(crate) fn routes(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(sources))
}

async fn ready(State(sources): State<Arc<Sources>>) -> Response {
    let view = &sources.plane.view;
    match view.check_serving_lease() {
        Ok(()) if view.is_alone() => {
            let left = view.tenancy().serving.since(view.now()).as_secs();
            let text = format!(
                "degraded: no coordinator has renewed the lease; serving by the last map for {left} s at most\n"
            );
            text.into_response()
        }
        Ok(()) => "ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn scrape(State(sources): State<Arc<Sources>>) -> Response {
    let mut devices = Vec::with_capacity(sources.devices.len());
    let mut reports = Vec::new();
    let strategies = stats::strategies(&sources.devices, false).await;
    for device in &sources.devices {
        let load = device.ask(DEVICE_LIMIT, |reply| DeviceMessage::Load { reply }).await;
        let codecs = device.ask(DEVICE_LIMIT, |reply| DeviceMessage::Codecs { reply }).await;
        let stats = load.ok().map(|(load, stats)| {
            reports.extend(load.tenants);
            stats
        });
        devices.push(stats.zip(codecs.ok()));
    }
    // A recorder of this scrape's own: two nodes in one process never mix.
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        describe();
        record(&sources, &devices);
        record_strategies(&sources, &strategies);
        record_tenants(&sources, &TenantLoad::sums(reports.iter(), MAX_TENANT_LOADS));
    });
    let mut text = handle.render();
    render_latencies(&sources, &mut text);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn render_latencies(sources: &Sources, text: &mut String) {
    const NAME: &str = "kvhive_node_request_seconds";
    text.push_str(&help_line(NAME));
    text.push_str(&format!("# TYPE {NAME} histogram\n"));
    for (verb, took) in VERBS.into_iter().zip(&sources.plane.counters.took) {
        took.read().render(NAME, &format!("verb=\"{verb}\""), text);
    }
}

fn record(sources: &Sources, devices: &[Option<(ShardStats, CodecUses)>]) {
    let Sources { plane, redis, memory_configured, .. } = sources;
    let own_policies: u64 = devices.iter().flatten().map(|(stats, _)| stats.own_policy_bytes).sum();
    let view = &plane.view;
    let counters = &plane.counters;
    let (names, names_evicted) = {
        let names = view.names();
        (names.kept(), names.evicted())
    };
    let (guests, guest_bytes, guest_memory) = view.guests.as_ref().map(GuestBook::kept).unwrap_or_default();
    metrics::counter!("kvhive_node_names_evicted_total").absolute(names_evicted);
    if let Some(keys) = &sources.keys {
        let (there, destroyed) = keys.count();
        metrics::gauge!("kvhive_node_disk_keys").set(there as f64);
        metrics::counter!("kvhive_node_disk_keys_destroyed_total").absolute(destroyed);
    }
    let epoch = view.serving().map_or(0, |serving| serving.map.epoch.0);
    let lag = counters.replication_lag_us.load(Ordering::Relaxed);
    metrics::gauge!("kvhive_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for (name, value) in [
        ("kvhive_node_lease_seconds", view.tenancy().lease.since(view.now()).as_secs_f64()),
        ("kvhive_node_serving_lease_seconds", view.tenancy().serving.since(view.now()).as_secs_f64()),
        ("kvhive_node_epoch", epoch as f64),
        ("kvhive_node_memory_configured_bytes", (memory_configured + own_policies) as f64),
        ("kvhive_node_tenant_policies_bytes", own_policies as f64),
        ("kvhive_node_unwiped_bytes", sources.memories.iter().map(Memory::unwiped_bytes).sum::<u64>() as f64),
        ("kvhive_node_open_connections", plane.open_connections() as f64),
        ("kvhive_node_inflight_bytes", plane.inflight_bytes() as f64),
        ("kvhive_node_waiting_requests", plane.waiting() as f64),
        ("kvhive_node_replication_waiting_batches", plane.replicator.waiting() as f64),
        ("kvhive_node_replication_lag_seconds", lag as f64 / 1e6),
        ("kvhive_node_slots_to_give", plane.replicator.giving.left() as f64),
        ("kvhive_node_give_rate_bytes", plane.gives.rate() as f64),
        ("kvhive_node_take_rate_bytes", plane.takes.rate() as f64),
        ("kvhive_node_names", names as f64),
        ("kvhive_node_guests", guests as f64),
        ("kvhive_node_guest_bytes", guest_bytes as f64),
        ("kvhive_node_guest_memory_bytes", guest_memory as f64),
        ("kvhive_node_memory_readers", plane.sharing.as_ref().map_or(0, |sharing| sharing.guests()) as f64),
        ("kvhive_node_stages", plane.sharing.as_ref().map_or(0, |sharing| sharing.stages()) as f64),
        ("kvhive_node_redis_inflight_bytes", redis.as_ref().map_or(0, |door| door.inflight_bytes()) as f64),
        ("kvhive_node_redis_connections", redis.as_ref().map_or(0, |door| door.open_connections()) as f64),
    ] {
        metrics::gauge!(name).set(value);
    }
    for (name, counter) in [
        ("kvhive_node_connections_total", &counters.connections),
        ("kvhive_node_name_requests_total", &counters.name_asks),
        ("kvhive_node_name_lists_total", &counters.name_lists),
        ("kvhive_node_redis_connections_total", &counters.redis_connections),
        ("kvhive_node_redis_refused_total", &counters.redis_refused),
        ("kvhive_node_redis_commands_total", &counters.redis_commands),
        ("kvhive_node_redis_errors_total", &counters.redis_errors),
        ("kvhive_node_redis_hits_total", &counters.redis_hits),
        ("kvhive_node_redis_misses_total", &counters.redis_misses),
        ("kvhive_node_connections_refused_total", &counters.refused_connections),
        ("kvhive_node_handshakes_refused_total", &counters.refused_handshakes),
        ("kvhive_node_fetched_bytes_total", &counters.fetched_bytes),
        ("kvhive_node_shown_bytes_total", &counters.shown_bytes),
        ("kvhive_node_peer_bytes_total", &counters.peer_bytes),
        ("kvhive_node_gathered_bytes_total", &counters.gathered_bytes),
        ("kvhive_node_scattered_bytes_total", &counters.scattered_bytes),
        ("kvhive_node_stage_failures_total", &counters.stage_failures),
        ("kvhive_node_grants_expired_total", &counters.grants_expired),
        ("kvhive_node_guest_fetched_bytes_total", &counters.guest_fetched_bytes),
        ("kvhive_node_guest_failures_total", &counters.guest_failures),
        ("kvhive_node_guest_came_total", &counters.guests_came),
        ("kvhive_node_stored_bytes_total", &counters.stored_bytes),
        ("kvhive_node_corrupt_blocks_total", &counters.corrupt_blocks),
        ("kvhive_node_decoded_blocks_total", &counters.decoded_blocks),
        ("kvhive_node_undecoded_blocks_total", &counters.undecoded_blocks),
        ("kvhive_node_stalled_transfers_total", &counters.stalled),
        ("kvhive_node_malformed_total", &counters.malformed),
        ("kvhive_node_replicated_blocks_total", &counters.replicated_blocks),
        ("kvhive_node_moved_blocks_total", &counters.moved_blocks),
        ("kvhive_node_move_failures_total", &counters.move_failures),
        ("kvhive_node_replication_failures_total", &counters.replication_failures),
        ("kvhive_node_replication_dropped_blocks_total", &counters.replication_dropped),
        ("kvhive_node_mailbox_full_total", &counters.mailbox_full),
        ("kvhive_node_actor_restarts_total", &counters.actor_restarts),
        ("kvhive_node_snapshots_total", &counters.snapshots),
        ("kvhive_node_snapshot_failures_total", &counters.snapshot_failures),
        ("kvhive_node_snapshot_loaded_blocks_total", &counters.snapshot_loaded_blocks),
        ("kvhive_node_snapshot_damaged_blocks_total", &counters.snapshot_damaged_blocks),
    ] {
        metrics::counter!(name).absolute(counter.load(Ordering::Relaxed));
    }
    for (verb, counter) in [
        ("match", &counters.matches),
        ("fetch", &counters.fetches),
        ("store", &counters.stores),
        ("release", &counters.releases),
    ] {
        metrics::counter!("kvhive_node_requests_total", "verb" => verb)
            .absolute(counter.load(Ordering::Relaxed));
    }
    for (outcome, counter) in [
        ("here", &counters.guests_here),
        ("joined", &counters.guests_joined),
        ("fetched", &counters.guests_fetched),
        ("missed", &counters.guests_missed),
    ] {
        let total = counter.load(Ordering::Relaxed);
        metrics::counter!("kvhive_node_guest_blocks_total", "outcome" => outcome).absolute(total);
    }
    for (reason, counter) in [
        ("busy", &counters.busy),
        ("late", &counters.late),
        ("no_lease", &counters.no_lease),
        ("stale_epoch", &counters.stale_epoch),
        ("forbidden", &counters.forbidden),
    ] {
        let total = counter.load(Ordering::Relaxed);
        metrics::counter!("kvhive_node_requests_refused_total", "reason" => reason).absolute(total);
    }
    for (reason, counter) in [("pass", &counters.share_refused_pass), ("user", &counters.share_refused_user)]
    {
        let total = counter.load(Ordering::Relaxed);
        metrics::counter!("kvhive_node_memory_readers_refused_total", "reason" => reason).absolute(total);
    }
    if let Some(windows) = &plane.windows {
        metrics::gauge!("kvhive_node_windows").set(windows.open() as f64);
        metrics::counter!("kvhive_node_looked_bytes_total").absolute(windows.bytes());
        for why in Fallback::ALL {
            metrics::counter!("kvhive_node_window_fallbacks_total", "reason" => why.as_str())
                .absolute(windows.fallbacks(why));
        }
    }
    plane.replicator.links.record();
    for (name, value) in plane.tracer.figures().named() {
        metrics::counter!(name).absolute(value);
    }
    if let Some(tls) = &plane.listening.tls {
        record_tls(tls);
    }
    for (device, store) in sources.stores.iter().enumerate() {
        if let Some(store) = store {
            disk::record(&device.to_string(), store);
        }
    }
    for (device, stats) in devices.iter().enumerate() {
        if let Some((stats, codecs)) = stats {
            record_device(&device.to_string(), stats);
            record_codecs(&device.to_string(), codecs);
        }
    }
}

/// Records what each tenant has here, over all devices.
fn record_tenants(sources: &Sources, tenants: &[(TenantId, TenantLoad)]) {
    let Some(serving) = sources.plane.view.serving() else { return };
    let turns = &sources.plane.turns;
    turns.retain(|tenant| serving.map.tenants.contains_key(&tenant));
    for (id, load) in tenants {
        let figures = turns.figures(*id);
        let Some(tenant) = serving.map.tenants.get(id) else { continue };
        for (at, tier) in ["device", "host", "disk"].into_iter().enumerate() {
            let labels = [("tenant", tenant.name.clone()), ("tier", tier.to_owned())];
            metrics::gauge!("kvhive_node_tenant_blocks", &labels).set(load.blocks[at] as f64);
            metrics::gauge!("kvhive_node_tenant_used_bytes", &labels).set(load.used_bytes[at] as f64);
        }
        for (name, value) in [
            ("kvhive_node_tenant_matched_keys_total", load.matched_keys),
            ("kvhive_node_tenant_covered_keys_total", load.covered_keys),
            ("kvhive_node_tenant_hits_total", load.fetched_blocks),
            ("kvhive_node_tenant_misses_total", load.missed_blocks),
            ("kvhive_node_tenant_stored_blocks_total", load.stored_blocks),
            ("kvhive_node_tenant_evicted_blocks_total", load.evicted_blocks),
            ("kvhive_node_tenant_refused_blocks_total", load.refused_blocks),
            ("kvhive_node_tenant_transfer_bytes_total", figures.bytes),
            ("kvhive_node_tenant_waited_requests_total", figures.waited),
            ("kvhive_node_tenant_late_requests_total", figures.late),
        ] {
            metrics::counter!(name, "tenant" => tenant.name.clone()).absolute(value);
        }
    }
}

/// Records what the strategies have chosen that choose: per device, tenant with rules of its own and size of frames.
fn record_strategies(sources: &Sources, strategies: &[StrategyFigures]) {
    let serving = sources.plane.view.serving();
    for StrategyFigures { device, report } in strategies {
        let Some(choice) = &report.choice else { continue };
        let known = |id: TenantId| serving.as_ref()?.map.tenants.get(&id).map(|tenant| tenant.name.clone());
        let tenant = report.tenant.map_or_else(String::new, |id| known(id).unwrap_or_default());
        let of = [
            ("device", device.to_string()),
            ("tenant", tenant),
            ("frame_bytes", report.frame_bytes.to_string()),
            ("strategy", report.strategy.to_string()),
        ];
        metrics::counter!("kvhive_node_strategy_switches_total", &of).absolute(choice.switches);
        metrics::gauge!("kvhive_node_strategy_evidence", &of).set(choice.evidence as f64);
        for estimate in &choice.estimates {
            let mut labels = of.to_vec();
            labels.push(("ranker", estimate.ranker.clone()));
            let rate = f64::from(estimate.hit_rate_ppm) / 1e6;
            let is_in_charge = estimate.ranker == choice.in_charge;
            metrics::gauge!("kvhive_node_strategy_estimated_hit_rate", &labels).set(rate);
            metrics::gauge!("kvhive_node_strategy_in_charge", &labels).set(f64::from(u8::from(is_in_charge)));
        }
    }
}

fn record_codecs(device: &str, codecs: &CodecUses) {
    for (codec, one) in Codec::ALL.iter().zip(&codecs.0) {
        let labels = [("device", device.to_owned()), ("codec", codec.name().to_owned())];
        metrics::gauge!("kvhive_node_codec_blocks", &labels).set(one.blocks as f64);
        metrics::gauge!("kvhive_node_codec_stored_bytes", &labels).set(one.stored_bytes as f64);
        metrics::gauge!("kvhive_node_codec_raw_bytes", &labels).set(one.raw_bytes as f64);
    }
}

fn record_device(device: &str, stats: &ShardStats) {
    for (tier, figures) in [("device", stats.device), ("host", stats.host), ("disk", stats.disk)] {
        let labels = [("device", device.to_owned()), ("tier", tier.to_owned())];
        metrics::gauge!("kvhive_node_blocks", &labels).set(figures.blocks as f64);
        metrics::gauge!("kvhive_node_used_bytes", &labels).set(figures.used_bytes as f64);
        metrics::gauge!("kvhive_node_capacity_bytes", &labels).set(figures.capacity_bytes as f64);
        metrics::counter!("kvhive_node_tier_hits_total", &labels).absolute(figures.hits);
    }
    for (name, value) in [
        ("kvhive_node_writes_under_way", stats.filling),
        ("kvhive_node_readers", stats.readers),
        ("kvhive_node_leaving_blocks", stats.leaving),
        ("kvhive_node_given_up_frames", stats.given_up),
        ("kvhive_node_untold_uses", stats.untold),
        ("kvhive_node_shrinking_blocks", stats.shrinking),
        ("kvhive_node_pinned_blocks", stats.pinned_blocks),
        ("kvhive_node_pinned_bytes", stats.pinned_bytes),
    ] {
        metrics::gauge!(name, "device" => device.to_owned()).set(value as f64);
    }
    for (name, value) in [
        ("kvhive_node_matched_keys_total", stats.matched_keys),
        ("kvhive_node_covered_keys_total", stats.covered_keys),
        ("kvhive_node_hits_total", stats.hits),
        ("kvhive_node_misses_total", stats.misses),
        ("kvhive_node_stored_blocks_total", stats.stored),
        ("kvhive_node_already_stored_blocks_total", stats.already),
        ("kvhive_node_abandoned_writes_total", stats.abandoned),
        ("kvhive_node_cleared_blocks_total", stats.cleared),
        ("kvhive_node_demoted_blocks_total", stats.demoted),
        ("kvhive_node_promoted_blocks_total", stats.promoted),
        ("kvhive_node_lost_blocks_total", stats.lost),
        ("kvhive_node_not_admitted_to_disk_total", stats.not_admitted),
        ("kvhive_node_declined_stores_total", stats.declined),
        ("kvhive_node_collections_total", stats.collections),
        ("kvhive_node_released_blocks_total", stats.released),
        ("kvhive_node_unawaited_sessions_total", stats.unawaited),
        ("kvhive_node_pins_refused_total", stats.pins_refused),
    ] {
        metrics::counter!(name, "device" => device.to_owned()).absolute(value);
    }
    for (reason, value) in stats.evictions() {
        let labels = [("device", device.to_owned()), ("reason", reason.as_str().to_owned())];
        metrics::counter!("kvhive_node_evicted_blocks_total", &labels).absolute(value);
    }
    for (reason, freed) in Reason::ALL.into_iter().zip(stats.collected) {
        let labels = [("device", device.to_owned()), ("reason", reason.name().to_owned())];
        metrics::counter!("kvhive_node_collected_blocks_total", &labels).absolute(freed.blocks);
        metrics::counter!("kvhive_node_collected_bytes_total", &labels).absolute(freed.bytes);
    }
    for (outcome, value) in [
        ("asked", stats.prefetched),
        ("useful", stats.prefetch_useful),
        ("wasted", stats.prefetch_wasted),
        ("late", stats.prefetch_late),
        ("cancelled", stats.prefetch_cancelled),
    ] {
        let labels = [("device", device.to_owned()), ("outcome", outcome.to_owned())];
        metrics::counter!("kvhive_node_prefetched_blocks_total", &labels).absolute(value);
    }
    for (outcome, value) in
        [("done", stats.shrunk), ("unfit", stats.shrink_unfit), ("dropped", stats.shrink_dropped)]
    {
        let labels = [("device", device.to_owned()), ("outcome", outcome.to_owned())];
        metrics::counter!("kvhive_node_shrunk_blocks_total", &labels).absolute(value);
    }
    for (reason, value) in [
        ("no_room", stats.refused_no_room),
        ("too_large", stats.refused_too_large),
        ("in_flight", stats.refused_in_flight),
        ("wrong_era", stats.refused_wrong_era),
    ] {
        let labels = [("device", device.to_owned()), ("reason", reason.to_owned())];
        metrics::counter!("kvhive_node_refused_blocks_total", &labels).absolute(value);
    }
}
