//! From the leader's overview to the admin API's answers: pure.

use super::answers::{
    Cluster, Coordinator, Device, Guests, HotSlot, Lingers, Node, SlotEntry, SlotList, SlotQuery, Slots,
    Stats, Strategy, Tier, Traffic,
};
use super::page::page;
use kvhive_protocol::control::{DeviceLoad, Overview};
use kvhive_protocol::load::GuestLoad;
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, MemberState, SLOTS, Slot, TenantId};
use std::collections::BTreeMap;

pub(super) fn cluster(overview: &Overview, coordinators: Vec<Coordinator>) -> Cluster {
    let map = overview.map.as_ref();
    Cluster {
        leader: overview.status.leader.clone(),
        term: overview.status.term,
        epoch: overview.status.epoch.0,
        name: map.map(|map| map.name.clone()),
        level: map.map(|map| map.level.0),
        cluster: map.map(|map| map.cluster.to_string()),
        coordinators,
        nodes: nodes(overview),
        devices: all_devices(overview),
        slots: slots(overview),
    }
}

pub(super) fn nodes(overview: &Overview) -> Vec<Node> {
    let Some(map) = &overview.map else { return Vec::new() };
    let first =
        |(device, load): &(DeviceId, DeviceLoad)| (device.index == 0).then_some((device.member, load.guests));
    let told: BTreeMap<MemberId, GuestLoad> = overview.loads.iter().filter_map(first).collect();
    let node = |(id, member): (&MemberId, &kvhive_protocol::Member)| Node {
        id: id.0,
        name: member.name.clone(),
        state: match member.state {
            MemberState::Up => "up",
            MemberState::Down => "down",
        }
        .to_owned(),
        drains: member.drains,
        cordoned: member.cordoned,
        lingers: member
            .lingers
            .map(|lingers| Lingers { generation: lingers.generation.0, moved: lingers.moved }),
        generation: member.generation.0,
        data_address: member.data_address.clone(),
        metrics_address: member.metrics_address.clone(),
        labels: member.labels.clone(),
        devices: member.devices.len(),
        speaks: member.speaks.0,
        guests: told.get(id).map(|told| Guests {
            blocks: told.blocks,
            bytes: told.bytes,
            given_blocks: told.given_blocks,
            fetched_blocks: told.fetched_blocks,
        }),
    };
    map.members.iter().map(node).collect()
}

pub(super) fn slots(overview: &Overview) -> Slots {
    let unavailable = overview.map.as_ref().map_or(u64::from(SLOTS), |map| {
        map.slots.iter().filter(|set| set.primary().is_none()).count() as u64
    });
    Slots { total: u64::from(SLOTS), unavailable, moving: overview.unsettled }
}

fn all_devices(overview: &Overview) -> Vec<Device> {
    devices(overview).into_iter().map(|(_, device)| device).collect()
}

/// Returns every device of every node that is up, ascending.
pub(super) fn devices(overview: &Overview) -> Vec<(DeviceId, Device)> {
    let Some(map) = &overview.map else { return Vec::new() };
    let mut counts: BTreeMap<DeviceId, (u64, u64)> = BTreeMap::new();
    for set in map.slots.iter() {
        for (at, device) in set.0.iter().enumerate() {
            let count = counts.entry(*device).or_default();
            count.0 += u64::from(at == 0);
            count.1 += 1;
        }
    }
    let mut filling: BTreeMap<DeviceId, u64> = BTreeMap::new();
    for device in map.filling.values().flat_map(|filling| &filling.devices) {
        *filling.entry(*device).or_default() += 1;
    }
    let loads: BTreeMap<DeviceId, &DeviceLoad> =
        overview.loads.iter().map(|(device, load)| (*device, load)).collect();
    map.devices_up()
        .map(|(id, description)| {
            let load = loads.get(&id);
            let (primary_slots, slots) = counts.get(&id).copied().unwrap_or_default();
            let device = Device {
                device: id.to_string(),
                node: map.owner(id).map(|owner| owner.name.clone()).unwrap_or_default(),
                kind: description.kind.clone(),
                capacity_bytes: description.capacity_bytes(),
                disk_bytes: description.disk_bytes,
                primary_slots,
                slots,
                blocks: load.map(|load| load.blocks),
                used_bytes: load.map(|load| load.used_bytes),
                hit_rate: load.and_then(|load| rate(load.covered_keys, load.matched_keys)),
                read_rate: load.map(|load| load.work.read_rate),
                wait_us: load.map(|load| load.work.wait_us),
                tiers: load.map_or(Vec::new(), |load| tiers(load)),
                traffic: load.map(|load| traffic(load)),
                filling_slots: filling.get(&id).copied().unwrap_or_default(),
                strategies: load.map_or(Vec::new(), |load| strategies(map, load)),
            };
            (id, device)
        })
        .collect()
}

fn tiers(load: &DeviceLoad) -> Vec<Tier> {
    let named = ["device", "host", "disk"].into_iter().zip(&load.tiers);
    let has = named.filter(|(_, tier)| tier.capacity_bytes > 0);
    has.map(|(name, tier)| Tier {
        tier: name.to_owned(),
        blocks: tier.blocks,
        used_bytes: tier.used_bytes,
        capacity_bytes: tier.capacity_bytes,
        hits: tier.hits,
        closed: tier.closed,
    })
    .collect()
}

fn traffic(load: &DeviceLoad) -> Traffic {
    let within = |us: u64| (us > 0).then_some(us);
    Traffic {
        matched_keys: load.matched_keys,
        covered_keys: load.covered_keys,
        fetched_blocks: load.fetched_blocks,
        stored_blocks: load.stored_blocks,
        evicted_blocks: load.evicted_blocks,
        read_bytes: load.traffic.read_bytes,
        written_bytes: load.traffic.written_bytes,
        fetch_p50_us: within(load.traffic.fetch_p50_us),
        fetch_p99_us: within(load.traffic.fetch_p99_us),
    }
}

fn strategies(map: &ClusterMap, load: &DeviceLoad) -> Vec<Strategy> {
    let chosen = load.strategies.iter().filter_map(|report| {
        let choice = report.choice.as_ref()?;
        let name = |id: &TenantId| map.tenants.get(id).map(|tenant| tenant.name.clone());
        let rates = choice.estimates.iter();
        Some(Strategy {
            tenant: report.tenant.as_ref().and_then(name),
            frame_bytes: report.frame_bytes,
            strategy: report.strategy.name().to_owned(),
            in_charge: choice.in_charge.clone(),
            hit_rates: rates.map(|one| (one.ranker.clone(), f64::from(one.hit_rate_ppm) / 1e6)).collect(),
            evidence: choice.evidence,
            switches: choice.switches,
            reason: choice.reason.as_str().to_owned(),
        })
    });
    chosen.collect()
}

pub(super) fn rate(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

pub(super) fn slot_list(overview: &Overview, wanted: &SlotQuery) -> SlotList {
    let counts = slots(overview);
    let entry = |slot: Slot| {
        let replicas = overview.map.as_ref().map_or(Vec::new(), |map| map.replicas(slot).0.clone());
        let filling = overview.map.as_ref().and_then(|map| map.filling.get(&slot));
        SlotEntry {
            slot: slot.0,
            replicas: replicas.iter().map(DeviceId::to_string).collect(),
            filling: filling.map_or(Vec::new(), |one| one.devices.iter().map(DeviceId::to_string).collect()),
        }
    };
    let is_wanted = |slot: &Slot| wanted.slot.map_or(wanted.full, |one| one == slot.0);
    let listed = Slot::all().filter(is_wanted).map(|slot| (slot.0, slot));
    // Every slot is one page, unless said: an entry is small, and there are no more.
    let (listed, next) = page(listed, wanted.after, wanted.limit.or(Some(usize::from(SLOTS))));
    SlotList {
        total: counts.total,
        unavailable: counts.unavailable,
        moving: counts.moving,
        devices: all_devices(overview),
        slots: listed.into_iter().map(entry).collect(),
        next,
        epoch: overview.status.epoch.0,
    }
}

fn hot_slots(overview: &Overview) -> Vec<HotSlot> {
    let replicas = |slot| overview.map.as_ref().map_or(0, |map| map.replicas(slot).0.len());
    let hits = |slot: Slot, of: DeviceId| {
        let (_, load) = overview.loads.iter().find(|(device, _)| *device == of)?;
        let hits = load.slot_hits.iter().find(|hits| hits.slot == slot)?;
        rate(hits.covered, hits.asked)
    };
    let hot = overview.hottest.iter().map(|(slot, device, read_rate)| HotSlot {
        slot: slot.0,
        device: device.to_string(),
        replicas: replicas(*slot),
        read_rate: *read_rate,
        hit_rate: hits(*slot, *device),
    });
    hot.collect()
}

pub(super) fn stats(overview: &Overview) -> Stats {
    let sum = |field: fn(&DeviceLoad) -> u64| {
        let is_known = !overview.loads.is_empty();
        is_known.then(|| overview.loads.iter().map(|(_, load)| field(load)).sum::<u64>())
    };
    let (matched_keys, covered_keys) = (sum(|load| load.matched_keys), sum(|load| load.covered_keys));
    Stats {
        blocks: sum(|load| load.blocks),
        used_bytes: sum(|load| load.used_bytes),
        capacity_bytes: sum(|load| load.capacity_bytes),
        matched_keys,
        covered_keys,
        hit_rate: covered_keys.zip(matched_keys).and_then(|(part, whole)| rate(part, whole)),
        fetched_blocks: sum(|load| load.fetched_blocks),
        stored_blocks: sum(|load| load.stored_blocks),
        evicted_blocks: sum(|load| load.evicted_blocks),
        read_bytes: sum(|load| load.traffic.read_bytes),
        written_bytes: sum(|load| load.traffic.written_bytes),
        hot_slots: hot_slots(overview),
        devices: all_devices(overview),
    }
}
