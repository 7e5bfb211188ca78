//! What a command may contain: names, addresses, descriptions, settings, replica sets, and what a whole map must satisfy.
//! Every refusal says what was given, where, and what is allowed.

use crate::placement::{self, Completion};
use crate::{engines, pins, tenant_rules};
use kvhive_protocol::control::{
    Balancing, Command, MAX_BALANCED, MAX_COORDINATORS, MAX_DEVICES, MAX_LABELS, MAX_MEMBERS, MAX_NAME_BYTES,
    MAX_TENANTS, Placing, Registration,
};
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::raft::Seat;
use kvhive_protocol::{
    ClusterMap, DeviceId, Member, MemberId, MemberState, ReplicaSet, SLOTS, Slot, Tenant, TenantRules,
    WireError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// The most replicas that settings may ask for.
pub const MAX_REPLICAS: u8 = 8;
/// The most members that one slot is ever placed on: while it moves, those that it leaves and those that it goes to.
pub const MAX_SET: usize = 2 * MAX_REPLICAS as usize;
/// The most blocks of a segment.
pub const MAX_SEGMENT_BLOCKS: u32 = 1024;
/// The longest that a member may serve on without being heard, in milliseconds.
pub const MAX_SERVING_LEASE_MS: u64 = 24 * 3_600_000;
/// How short and long a lease may be, in milliseconds.
pub const LEASE_MS: RangeInclusive<u64> = 100..=300_000;
/// How short and long a heartbeat interval may be, in milliseconds; besides, two must fit into a lease.
pub const HEARTBEAT_MS: RangeInclusive<u64> = 10..=60_000;
/// The longest `host:port`, in bytes: a DNS name, a colon, a port, brackets.
pub const MAX_ADDRESS_BYTES: usize = 261;
/// Coordinators are numbered up to this.
const MAX_PEER: u64 = 65_535;
/// The longest key of a label, in bytes. What the cluster file allows, the registry must: a node that it refuses never serves.
pub(crate) const MAX_LABEL_KEY_BYTES: usize = 63;
/// The longest value of a label, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;
/// The most bytes that a map's members and tenants take when encoded. With its slots it stays under the codec's
/// 16 MiB, so a map that exists can be sent.
pub const MAX_MAP_BYTES: usize = 14 << 20;

/// Checks what can be said of a command without a map: one that fails here is refused wherever it is applied, so it need
/// not be written into any log first. What passes may still be refused by the map that it meets.
///
/// # Errors
/// [`WireError::Rejected`] with what was given and what is allowed.
pub fn check_command(command: &Command) -> Result<(), WireError> {
    match command {
        Command::Bootstrap { name: cluster, settings: of_all, scaling, coordinators: seats, .. } => {
            name("cluster name", cluster)?;
            scaling.check().map_err(|reason| WireError::rejected(format_args!("scaling: {reason}")))?;
            coordinators(seats)?;
            settings(of_all)
        }
        Command::Register(known) => check_registration(known),
        Command::CreateTenant { name: tenant, rules, .. } => {
            name("tenant name", tenant)?;
            tenant_rules::check_rules(rules)
        }
        Command::SetTenantRules { tenant, change } => tenant_rules::check_change_alone(*tenant, change),
        Command::WeighTenant { tenant, change, weight } => {
            tenant_rules::check_weight(*weight)?;
            tenant_rules::check_change_alone(*tenant, change)
        }
        Command::PlaceSlots { changes, .. } => {
            let mut named = Named::default();
            changes.iter().try_for_each(|one| {
                slot_once(one.slot, &mut named)?;
                set_size(one.slot, &one.set, 1)?;
                set_size(one.slot, &one.filling.devices, 0)
            })
        }
        Command::Balance { changes, .. } => balancing_alone(changes),
        Command::Record(note) => note.check(),
        Command::SetEngine(engine) => engines::check(engine),
        Command::SetCoordinators { addresses } => coordinators(addresses),
        Command::RemoveEngine { name: engine } => name("engine name", engine),
        Command::SetPin { name, pin } => pins::check(name, pin),
        Command::RemovePin { name: pin, .. } => name("pin name", pin),
        Command::Empty { beside: Some(others), .. } | Command::EmptyForSize { beside: Some(others), .. }
            if others.len() > MAX_MEMBERS =>
        {
            Err(WireError::rejected(format_args!(
                "beside names {} members, allowed are {MAX_MEMBERS}",
                others.len()
            )))
        }
        Command::RecordStretch { stretch } => {
            stretch.check().map_err(|reason| WireError::rejected(format_args!("{reason}")))
        }
        Command::MarkDown { .. }
        | Command::SetDrains { .. }
        | Command::Empty { .. }
        | Command::EmptyForSize { .. }
        | Command::Leave { .. }
        | Command::ClearTenant { .. }
        | Command::RotateSecret { .. }
        | Command::DeleteTenant { .. }
        | Command::RemoveMember { .. }
        | Command::SetScaling { .. }
        | Command::ScaleBeyond { .. }
        | Command::RecordLoad { .. }
        | Command::RaiseLevel { .. }
        | Command::MarkEnded { .. }
        | Command::SetAck { .. }
        | Command::SetCordon { .. } => Ok(()),
    }
}

pub(crate) fn name(what: &str, name: &str) -> Result<(), WireError> {
    let starts_well =
        name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if !starts_well || !name.bytes().all(allowed) || name.len() > MAX_NAME_BYTES {
        return Err(WireError::rejected(format_args!(
            "{what} {:?} is not allowed: 1 to {MAX_NAME_BYTES} of a-z 0-9 - _ . starting with a letter or digit",
            shortened(name)
        )));
    }
    Ok(())
}

pub(crate) fn settings(settings: &Settings) -> Result<(), WireError> {
    within("settings.replicas", u64::from(settings.replicas), 1..=u64::from(MAX_REPLICAS))?;
    within("settings.segment_blocks", u64::from(settings.segment_blocks), 1..=u64::from(MAX_SEGMENT_BLOCKS))?;
    within("settings.lease_ms", settings.lease_ms, LEASE_MS)?;
    within("settings.heartbeat_ms", settings.heartbeat_ms, HEARTBEAT_MS)?;
    within("settings.serving_lease_ms", settings.serving_lease_ms, settings.lease_ms..=MAX_SERVING_LEASE_MS)?;
    if settings.heartbeat_ms * 2 > settings.lease_ms {
        return Err(WireError::rejected(format_args!(
            "settings.heartbeat_ms is {}, allowed is at most half of lease_ms = {}: one lost heartbeat must not end a lease",
            settings.heartbeat_ms, settings.lease_ms
        )));
    }
    Ok(())
}

/// Checks what a node says of itself.
///
/// # Errors
/// [`WireError::Rejected`] with what was given and what is allowed.
pub fn check_registration(registration: &Registration) -> Result<(), WireError> {
    name("member name", &registration.name)?;
    address("data_address", &registration.data_address)?;
    address("metrics_address", &registration.metrics_address)?;
    labels(&registration.labels)?;
    devices(&registration.devices)
}

/// Checks what is to be known of a coordinator.
///
/// # Errors
/// [`WireError::Rejected`] with what was given and what is allowed.
pub fn check_seat(peer: u64, seat: &Seat) -> Result<(), WireError> {
    within("peer", peer, 1..=MAX_PEER)?;
    name("coordinator name", &seat.name)?;
    address("raft_address", &seat.raft_address)?;
    address("admin_address", &seat.admin_address)
}

/// Checks new places for some slots: each slot once, its devices exist and are up, its members are distinct, there are as
/// many as settings ask for and members allow, and no block gets lost by it: the primary was a replica, and who was none
/// is known to lack blocks.
pub(crate) fn placement(map: &ClusterMap, changes: &[Placing]) -> Result<(), WireError> {
    let places = Places::of(map);
    let candidates = placement::candidates(map);
    let spread = Completion::of(&candidates);
    let least = placement::takers(&candidates).min(usize::from(map.settings.replicas)).max(1);
    let mut named = Named::default();
    for Placing { slot, set, filling } in changes {
        slot_once(*slot, &mut named)?;
        set_size(*slot, set, least)?;
        places
            .check(slot.0, set, &filling.devices)
            .map_err(|why| WireError::rejected(format_args!("{why}")))?;
        let now = map.replicas(*slot);
        let is_kept = |device: &DeviceId| now.contains(*device) || filling.devices.contains(device);
        let was_lacking = map.is_filling(*slot, set[0]) && map.given_to(*slot) != Some(set[0]);
        if !now.contains(set[0])
            || was_lacking
            || filling.devices.contains(&set[0])
            || !set.iter().all(is_kept)
        {
            return Err(WireError::rejected(format_args!(
                "slot {slot} would lose blocks: its primary must be a replica that lacks none, and who is no replica yet lacks all"
            )));
        }
        if filling.devices.is_empty()
            && let Some((one, other, domain)) = spread.needless(set)
        {
            return Err(WireError::rejected(format_args!(
                "slot {slot} would be on {one} and {other} in one {domain}, while another {domain} has no replica of it"
            )));
        }
        let is_named =
            |at: usize, device: &DeviceId| set.contains(device) && !filling.devices[..at].contains(device);
        if !filling.devices.iter().enumerate().all(|(at, device)| is_named(at, device)) {
            return Err(WireError::rejected(format_args!(
                "slot {slot}: who lacks blocks must be one of its replicas, named once"
            )));
        }
    }
    Ok(())
}

fn balancing_alone(changes: &[Balancing]) -> Result<(), WireError> {
    within("number of slots", changes.len() as u64, 0..=MAX_BALANCED as u64)?;
    let mut named = Named::default();
    changes.iter().try_for_each(|one| {
        slot_once(one.slot, &mut named)?;
        within("number of replicas", one.set.len() as u64, 0..=u64::from(MAX_REPLICAS))
    })
}

/// Checks new places where slots belong: devices that may hold slots, on distinct members, spread over domains, as many as
/// settings ask for and members allow.
pub(crate) fn balancing(map: &ClusterMap, changes: &[Balancing]) -> Result<(), WireError> {
    balancing_alone(changes)?;
    let candidates = placement::candidates(map);
    let spread = Completion::of(&candidates);
    let least = placement::takers(&candidates).min(usize::from(map.settings.replicas));
    for Balancing { slot, set, .. } in changes.iter().filter(|one| !one.set.is_empty()) {
        if let Err(why) = spread.check(set, least) {
            return Err(WireError::rejected(format_args!("slot {slot} cannot belong there: {why}")));
        }
    }
    let removed = changes.iter().filter(|one| one.set.is_empty() && map.balanced.contains_key(&one.slot));
    let added = changes.iter().filter(|one| !one.set.is_empty() && !map.balanced.contains_key(&one.slot));
    let sum = (map.balanced.len() + added.count() - removed.count()) as u64;
    within("number of slots that do not go by their hash", sum, 0..=MAX_BALANCED as u64)
}

/// Checks where the coordinators are said to be.
pub(crate) fn coordinators(addresses: &[String]) -> Result<(), WireError> {
    within("number of coordinators", addresses.len() as u64, 0..=MAX_COORDINATORS as u64)?;
    addresses.iter().try_for_each(|one| address("coordinator's address", one))
}

/// Slots that a command has named: a bit each.
struct Named([u64; SLOTS as usize / 64]);

impl Default for Named {
    fn default() -> Named {
        Named([0; SLOTS as usize / 64])
    }
}

impl Named {
    /// Notes a slot that exists; says whether it was not named before.
    fn insert(&mut self, slot: Slot) -> bool {
        let (word, bit) = (&mut self.0[usize::from(slot.0 / 64)], 1 << (slot.0 % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

fn slot_once(slot: Slot, named: &mut Named) -> Result<(), WireError> {
    if slot.0 >= SLOTS || !named.insert(slot) {
        return Err(WireError::rejected(format_args!(
            "slot {slot} is named twice or does not exist: each of 0 to {} may be named once",
            SLOTS - 1
        )));
    }
    Ok(())
}

fn set_size(slot: Slot, set: &[DeviceId], least: usize) -> Result<(), WireError> {
    if set.len() < least || set.len() > MAX_SET {
        return Err(WireError::rejected(format_args!(
            "slot {slot} would get {} replicas, allowed are {least} to {MAX_SET}",
            set.len()
        )));
    }
    Ok(())
}

/// Returns about how many bytes a member takes in an encoded map; never fewer than it does.
pub(crate) fn member_bytes(member: &Member) -> usize {
    let labels: usize = member.labels.iter().map(|(key, value)| key.len() + value.len() + 16).sum();
    let devices: usize = member.devices.iter().map(|device| device.kind.len() + 32).sum();
    96 + member.name.len() + member.data_address.len() + member.metrics_address.len() + labels + devices
}

/// Returns about how many bytes a tenant takes in an encoded map; never fewer than it does.
pub(crate) fn tenant_bytes(tenant: &Tenant) -> usize {
    let rules = if tenant.rules == TenantRules::default() { 0 } else { 58 };
    64 + tenant.name.len() + rules
}

/// Checks a whole map in linear time: what [`ClusterMap::check`] asks, and the limits of this file.
pub(crate) fn map(map: &ClusterMap) -> Result<(), String> {
    let said = |error: WireError| error.to_string();
    name("cluster name", &map.name).map_err(said)?;
    settings(&map.settings).map_err(said)?;
    if map.slots.len() != usize::from(SLOTS) {
        return Err(format!("{} slots instead of {SLOTS}", map.slots.len()));
    }
    if map.members.len() > MAX_MEMBERS || map.tenants.len() > MAX_TENANTS {
        return Err(format!("{} members and {} tenants are too many", map.members.len(), map.tenants.len()));
    }
    let mut names = BTreeSet::new();
    for member in map.members.values() {
        member_fields(member).map_err(said)?;
        if !names.insert(&member.name) {
            return Err(format!("two members are named {}", member.name));
        }
    }
    let mut names = BTreeSet::new();
    for tenant in map.tenants.values() {
        name("tenant name", &tenant.name).map_err(said)?;
        if !names.insert(&tenant.name) {
            return Err(format!("two tenants are named {}", tenant.name));
        }
    }
    coordinators(&map.coordinators).map_err(said)?;
    tenant_rules::check_all(map).map_err(said)?;
    pins::check_all(map)?;
    let bytes: usize =
        map.members.values().map(member_bytes).chain(map.tenants.values().map(tenant_bytes)).sum();
    if bytes > MAX_MAP_BYTES {
        return Err(format!("members and tenants take {bytes} bytes, allowed are {MAX_MAP_BYTES}"));
    }
    for (slot, filling) in map.filling.iter() {
        map.check_filling(*slot, filling)?;
    }
    // Their devices may have gone since: then they go by their hash.
    let is_bounded = |(slot, set): (&Slot, &ReplicaSet)| {
        slot.0 < SLOTS && (1..=usize::from(MAX_REPLICAS)).contains(&set.0.len())
    };
    if map.balanced.len() > MAX_BALANCED || !map.balanced.iter().all(is_bounded) {
        return Err(format!(
            "{} slots that do not go by their hash are too many or impossible",
            map.balanced.len()
        ));
    }
    slots(map)
}

fn slots(map: &ClusterMap) -> Result<(), String> {
    let places = Places::of(map);
    // Both ascend by slot.
    let mut fillings = map.filling.iter().peekable();
    for (slot, ReplicaSet(set)) in map.slots.iter().enumerate() {
        if set.len() > MAX_SET {
            return Err(format!("slot {slot} has {} replicas, allowed are {MAX_SET}", set.len()));
        }
        let filling = fillings.next_if(|(filled, _)| usize::from(filled.0) == slot);
        places.check(slot as u16, set, filling.map_or(&[], |(_, filling)| &filling.devices))?;
    }
    Ok(())
}

/// How many devices each member that is up has, ascending: looked up for each replica of each slot, so kept small.
struct Places(Vec<(MemberId, usize)>);

impl Places {
    fn of(map: &ClusterMap) -> Self {
        let up = map.members.iter().filter(|(_, member)| member.state == MemberState::Up);
        Places(up.map(|(id, member)| (*id, member.devices.len())).collect())
    }

    fn devices(&self, member: MemberId) -> usize {
        self.0.binary_search_by_key(&member, |(id, _)| *id).map_or(0, |at| self.0[at].1)
    }

    /// Two devices of one member are allowed where one of them lacks blocks: it takes the other's place.
    fn check(&self, slot: u16, set: &[DeviceId], lacking: &[DeviceId]) -> Result<(), String> {
        for (at, device) in set.iter().enumerate() {
            if usize::from(device.index) >= self.devices(device.member) {
                return Err(format!(
                    "slot {slot} would be on device {device}, which is not one of a member that is up"
                ));
            }
            let is_whole = |device: &DeviceId| !lacking.contains(device);
            if is_whole(device)
                && set[..at].iter().any(|other| other.member == device.member && is_whole(other))
            {
                return Err(format!("slot {slot} would have two replicas on member {}", device.member));
            }
        }
        Ok(())
    }
}

fn member_fields(member: &Member) -> Result<(), WireError> {
    name("member name", &member.name)?;
    address("data_address", &member.data_address)?;
    address("metrics_address", &member.metrics_address)?;
    labels(&member.labels)?;
    devices(&member.devices)
}

pub(crate) fn address(what: &str, address: &str) -> Result<(), WireError> {
    let refuse = || {
        Err(WireError::rejected(format_args!(
            "{what} {:?} is not host:port with a port of 1 to 65535 and at most {MAX_ADDRESS_BYTES} bytes",
            shortened(address)
        )))
    };
    let Some((host, port)) = address.rsplit_once(':') else { return refuse() };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_good = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        }
    };
    let port_is_good =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if address.len() > MAX_ADDRESS_BYTES || !host_is_good || !port_is_good {
        return refuse();
    }
    Ok(())
}

fn labels(labels: &BTreeMap<String, String>) -> Result<(), WireError> {
    if labels.len() > MAX_LABELS {
        return Err(WireError::rejected(format_args!("{} labels, allowed are {MAX_LABELS}", labels.len())));
    }
    for (key, value) in labels {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if !(1..=MAX_LABEL_KEY_BYTES).contains(&key.len()) || !key.bytes().all(fits) {
            return Err(WireError::rejected(format_args!(
                "{:?} is no key of a label: 1 to {MAX_LABEL_KEY_BYTES} letters, digits, '.', '_', '-' and '/'",
                shortened(key)
            )));
        }
        if value.len() > MAX_LABEL_BYTES || value.chars().any(char::is_control) {
            return Err(WireError::rejected(format_args!(
                "label {key} has {} bytes, allowed are {MAX_LABEL_BYTES} without control characters",
                value.len()
            )));
        }
    }
    Ok(())
}

fn devices(devices: &[DeviceDescription]) -> Result<(), WireError> {
    within("number of devices", devices.len() as u64, 1..=MAX_DEVICES as u64)?;
    for (at, device) in devices.iter().enumerate() {
        let printable = device.kind.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if device.kind.is_empty() || device.kind.len() > MAX_NAME_BYTES || !printable {
            return Err(WireError::rejected(format_args!(
                "devices[{at}].kind {:?} is not 1 to {MAX_NAME_BYTES} printable ASCII characters",
                shortened(&device.kind)
            )));
        }
        if device.capacity_bytes() == 0 {
            return Err(WireError::rejected(format_args!(
                "devices[{at}] has no bytes in any tier, at least 1 is needed"
            )));
        }
    }
    Ok(())
}

pub(crate) fn within(what: &str, value: u64, allowed: RangeInclusive<u64>) -> Result<(), WireError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(WireError::rejected(format_args!(
        "{what} is {value}, allowed is {} to {}",
        allowed.start(),
        allowed.end()
    )))
}

/// A hostile name may be megabytes long; an error message is not.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
