//! Why the overseer proposes what it proposes, in words and numbers for the journal of events.

use crate::leases::{self, Record};
use kvhive_protocol::control::{Balancing, Command};
use kvhive_protocol::events::MAX_REASON_BYTES;
use kvhive_protocol::map::Settings;
use kvhive_protocol::{ClusterMap, DeviceId, Filling, MemberId, MemberState, Moment, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How many members a reason names.
const MAX_NAMED: usize = 4;

/// Says for how long a member has been silent.
pub(crate) fn silent(now: Moment, record: &Record, settings: &Settings) -> Reason {
    let silence = now.since(record.lease_until) + leases::grace(settings);
    Reason::new(format_args!(
        "no heartbeat for {} ms, its lease is {} ms",
        silence.as_millis(),
        settings.lease_ms
    ))
}

/// Says what a plan does, and what about the cluster makes it do so.
pub(crate) fn plan(map: &ClusterMap, command: &Command, avoided: &BTreeSet<DeviceId>) -> Reason {
    let Command::PlaceSlots { changes, .. } = command else { return Reason::default() };
    let none = Filling::default();
    let (mut begun, mut arrived) = (BTreeMap::<MemberId, u32>::new(), 0u32);
    let (mut restored, mut emptied, mut sure) = (0u32, 0u32, 0u32);
    for one in changes {
        let (set, lacked) = (map.replicas(one.slot), map.filling.get(&one.slot).unwrap_or(&none));
        let came = |device: &&DeviceId| one.set.contains(device) && !one.filling.devices.contains(device);
        arrived += u32::from(lacked.devices.iter().any(|device| came(&device)));
        let to = one.filling.devices.first().filter(|_| one.filling.streams);
        let is_under_way = |device: &&DeviceId| lacked.streams && lacked.devices.first() == Some(*device);
        if let Some(to) = to.filter(|device| !is_under_way(device)) {
            *begun.entry(to.member).or_default() += 1;
            let is_replica = set.contains(*to);
            let is_emptied = map.emptied_of(one.slot).is_some();
            emptied += u32::from(is_emptied);
            restored += u32::from(!is_emptied && is_replica && lacked.devices.contains(to));
            sure += u32::from(!is_emptied && is_replica && !lacked.devices.contains(to));
        }
    }
    let name = |id: &MemberId| map.members.get(id).map_or("?", |member| member.name.as_str());
    let mut text = String::new();
    let total: u32 = begun.values().sum();
    if total > 0 {
        let _ = write!(
            text,
            "{} to be copied to {}",
            if total == 1 { "1 slot begins".to_owned() } else { format!("{total} slots begin") },
            few(begun.keys().map(name))
        );
    }
    for (count, why) in [
        (emptied, "as members are being emptied that have them"),
        (restored, "to replicas that lack older blocks"),
        (sure, "to make sure of copies before these become primary"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} of them {why}");
        }
    }
    if arrived > 0 {
        let slots = if arrived == 1 { "slot has" } else { "slots have" };
        let _ = write!(text, "{}{arrived} {slots} arrived", if text.is_empty() { "" } else { "; " });
    }
    if text.is_empty() {
        let slots = if changes.len() == 1 { "slot goes" } else { "slots go" };
        let _ = write!(text, "{} {slots} on", changes.len());
    }
    let draining = map.members.values().filter(|member| member.drains && member.state == MemberState::Up);
    let draining: Vec<&str> = draining.map(|member| member.name.as_str()).collect();
    if !draining.is_empty() {
        let _ = write!(text, "; being emptied: {}", few(draining.into_iter()));
    }
    if !avoided.is_empty() {
        let silent: BTreeSet<MemberId> = avoided.iter().map(|device| device.member).collect();
        let _ = write!(text, "; passed over as they do not answer: {}", few(silent.iter().map(name)));
    }
    Reason::new(text)
}

/// Says what of work is spread otherwise, slot by slot as far as there is room.
pub fn balance_reason(changes: &[Balancing]) -> Reason {
    let mut text = String::new();
    for (at, one) in changes.iter().enumerate() {
        let _ = write!(text, "{}slot {}: {}", if at == 0 { "" } else { "; " }, one.slot, one.reason);
        if text.len() > MAX_REASON_BYTES {
            break;
        }
    }
    Reason::new(text)
}

fn few<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.len().checked_sub(MAX_NAMED) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MAX_NAMED].join(", ")),
    }
}
