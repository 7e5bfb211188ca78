//! How work is spread, in words.

use kvhive_protocol::{DeviceId, counted};

/// Says what changes between two sets.
pub(super) fn said(before: &[DeviceId], after: &[DeviceId]) -> String {
    let list = |devices: &[DeviceId], other: &[DeviceId]| {
        let names: Vec<String> =
            devices.iter().filter(|device| !other.contains(device)).map(DeviceId::to_string).collect();
        names.join(", ")
    };
    let replicas = counted(after.len() as u64, "replica");
    match (list(after, before), list(before, after)) {
        (added, gone) if added.is_empty() && gone.is_empty() => {
            let first = after.first().map(DeviceId::to_string).unwrap_or_default();
            format!("{replicas}, {first} is asked first")
        }
        (added, gone) if gone.is_empty() => format!("{replicas}, on {added} too"),
        (added, gone) if added.is_empty() => format!("{replicas}, not on {gone} any more"),
        (added, gone) => format!("{replicas}, on {added} instead of {gone}"),
    }
}

/// Writes a rate for people.
pub(super) fn shown(rate: u64) -> String {
    format!("{}.{} MiB/s", rate >> 20, ((rate % (1 << 20)) * 10) >> 20)
}
