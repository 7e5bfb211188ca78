//! What tenants' rules mean for one device: which tenants its shard keeps apart, and its part of what they are promised.

use crate::view::Serving;
use kvhive_cache::{Pinned, Rules};
use kvhive_protocol::map::DeviceDescription;
use kvhive_protocol::{ClusterMap, DeviceId, Slot, Strategy, TenantId};
use std::collections::BTreeMap;

/// Returns the rules of the tenants that device `index` of this node keeps apart; `strategy` is the node's own.
pub(crate) fn kept_apart(serving: &Serving, index: u16, strategy: Strategy) -> BTreeMap<TenantId, Rules> {
    let device = DeviceId::new(serving.member, index);
    let in_device = Share::of(serving, device, |described| described.device_bytes);
    let in_host = Share::of(serving, device, |described| described.host_bytes);
    let on_disk = Share::of(serving, device, |described| described.disk_bytes);
    let apart = serving.map.tenants.iter().filter(|(_, tenant)| tenant.rules.is_kept_apart());
    let rules = apart.map(|(id, tenant)| {
        let rules = &tenant.rules;
        let quota = [
            rules.device_quota_bytes.map(|bytes| in_device.part(bytes)),
            rules.host_quota_bytes.map(|bytes| in_host.part(bytes)),
            rules.disk_quota_bytes.map(|bytes| on_disk.part(bytes)),
        ];
        (*id, Rules { strategy: rules.strategy.unwrap_or(strategy), quota })
    });
    rules.collect()
}

/// Returns what is pinned on a device at this time, by the wall clock, and when the first of that ends that does by itself.
pub(crate) fn pinned(map: &ClusterMap, device: DeviceId, wall_ms: u64) -> (Pinned, Option<u64>) {
    let mut pinned = Pinned::default();
    let mut ends_ms: Option<u64> = None;
    for pin in map.pins.values().filter(|pin| !pin.has_ended(wall_ms)) {
        ends_ms = ends_ms.into_iter().chain(pin.ends_ms()).min();
        pinned.keys.extend(pin.keys.iter().map(|key| (pin.tenant, key)));
    }
    if !pinned.keys.is_empty() {
        pinned.slots = Slot::all().filter(|slot| map.replicas(*slot).contains(device)).collect();
    }
    (pinned, ends_ms)
}

/// A device's bytes of one tier, and those of all devices that are up.
struct Share {
    own: u64,
    whole: u128,
}

impl Share {
    fn of(serving: &Serving, device: DeviceId, bytes: impl Fn(&DeviceDescription) -> u64) -> Share {
        let mut share = Share { own: 0, whole: 0 };
        for (id, described) in serving.map.devices_up() {
            let bytes = bytes(described);
            share.whole += u128::from(bytes);
            if id == device {
                share.own = bytes;
            }
        }
        share
    }

    /// Returns the device's part of what is promised over all of them: by its size, as blocks are placed.
    fn part(&self, promised: u64) -> u64 {
        let part = u128::from(promised) * u128::from(self.own) / self.whole.max(1);
        u64::try_from(part).expect("a device has no more than all of them have")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::{Member, Settings, Tenant};
    use kvhive_protocol::{
        BlockKey, ClusterId, Era, Generation, MemberId, MemberState, Pin, PinMode, Reason, TenantRules,
    };
    use std::sync::Arc;

    fn member(state: MemberState, devices: &[[u64; 3]]) -> Member {
        let described = |[device_bytes, host_bytes, disk_bytes]: &[u64; 3]| DeviceDescription {
            kind: "host".into(),
            device_bytes: *device_bytes,
            host_bytes: *host_bytes,
            disk_bytes: *disk_bytes,
        };
        Member {
            name: "node".into(),
            generation: Generation(1),
            state,
            data_address: String::new(),
            metrics_address: String::new(),
            labels: BTreeMap::new(),
            devices: devices.iter().map(described).collect(),
            codec: Default::default(),
            speaks: kvhive_protocol::Level::NEWEST,
            drains: false,
            cordoned: false,
            lingers: None,
            drains_since: Default::default(),
        }
    }

    fn serving(rules: &[TenantRules]) -> Serving {
        let tenant =
            |rules: &TenantRules| Tenant { name: String::new(), era: Era(1), secret: [0; 32], rules: *rules };
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 1000,
            heartbeat_ms: 200,
            serving_lease_ms: 1000,
        };
        let map = ClusterMap {
            members: BTreeMap::from([
                (MemberId(1), member(MemberState::Up, &[[100, 0, 1000], [300, 50, 0]])),
                (MemberId(2), member(MemberState::Up, &[[400, 150, 3000]])),
                (MemberId(3), member(MemberState::Down, &[[1 << 40; 3]])),
            ]),
            tenants: (1..).map(TenantId).zip(rules.iter().map(tenant)).collect(),
            ..ClusterMap::founded(ClusterId(1), "test", settings)
        };
        Serving { map: Arc::new(map), member: MemberId(1) }
    }

    #[test]
    fn each_device_promises_its_part_by_size_of_what_is_up() {
        let none = TenantRules::default();
        let serving = serving(&[
            none,
            TenantRules {
                device_quota_bytes: Some(80),
                host_quota_bytes: Some(1 << 60),
                disk_quota_bytes: Some(400),
                ..none
            },
            TenantRules { strategy: Some(Strategy::Sieve), ..none },
            TenantRules { quantization_bits: Some(4), ..none },
            TenantRules { disk_quota_bytes: Some(8), ..none },
        ]);
        let quota = |tiers: [u64; 3]| Rules { strategy: Strategy::Lfu, quota: tiers.map(Some) };
        let disk = |bytes| Rules { strategy: Strategy::Lfu, quota: [None, None, Some(bytes)] };
        let sieve = Rules::new(Strategy::Sieve);
        for (index, tiers, on_disk) in [(0, [10, 0, 100], 2), (1, [30, 1 << 58, 0], 0)] {
            let expected = BTreeMap::from([
                (TenantId(2), quota(tiers)),
                (TenantId(3), sieve),
                (TenantId(5), disk(on_disk)),
            ]);
            assert_eq!(kept_apart(&serving, index, Strategy::Lfu), expected);
        }
        let other = Serving { member: MemberId(2), ..serving };
        let of_other = kept_apart(&other, 0, Strategy::Lfu);
        assert_eq!(of_other[&TenantId(2)], quota([40, 3 << 58, 300]));
    }

    #[test]
    fn a_device_keeps_what_is_pinned_now_in_the_slots_that_it_has() {
        let device = DeviceId::new(MemberId(1), 0);
        let key = |byte| BlockKey::from_bytes([byte; 32]);
        let pin = |keys: &[u8], mode| Pin {
            tenant: TenantId(1),
            keys: keys.iter().map(|byte| key(*byte)).collect(),
            mode,
            reason: Reason::default(),
        };
        let mut map = (*serving(&[TenantRules::default()]).map).clone();
        Arc::make_mut(&mut map.slots)[5].0.push(device);
        map.pins = Arc::new(BTreeMap::from([
            ("always".into(), pin(&[1, 2], PinMode::Hard)),
            ("long".into(), pin(&[2, 3], PinMode::Soft { until_ms: 2000 })),
            ("short".into(), pin(&[3, 4], PinMode::Soft { until_ms: 1000 })),
        ]));
        let keys = |wall_ms| {
            let (pinned, ends_ms) = pinned(&map, device, wall_ms);
            assert_eq!(pinned.slots, [Slot(5)].into());
            let bytes = |(tenant, key): &(TenantId, BlockKey)| (tenant.0, key.as_bytes()[0]);
            (pinned.keys.iter().map(bytes).collect::<Vec<_>>(), ends_ms)
        };
        assert_eq!(keys(999), (vec![(1, 1), (1, 2), (1, 3), (1, 4)], Some(1000)));
        assert_eq!(keys(1000), (vec![(1, 1), (1, 2), (1, 3)], Some(2000)));
        assert_eq!(keys(2000), (vec![(1, 1), (1, 2)], None));
    }
}
