//! What of a command is worth an event: read off the command and the map before it, completed by what came of it.
//! A command that changed nothing is none; how many slots it concerned is a number, not as many events.

use crate::departures;
use crate::repair::Repair;
use kvhive_protocol::control::{Command, CommandReply, Placing};
use kvhive_protocol::data::Ack;
use kvhive_protocol::scaling::{ScalingChange, ScalingMode};
use kvhive_protocol::{
    Change, ClusterMap, DeviceId, EventKind, Filling, MemberId, Note, Pin, Reason, RulesChange, Slot,
    Subject, TenantId,
};
use std::convert::Infallible;

/// Returns what an event will say if the command changes something.
pub(crate) fn before(command: &Command, map: Option<&ClusterMap>) -> Option<Note> {
    let member = |id: &MemberId| map.and_then(|map| map.members.get(id)).map(|known| known.name.clone());
    let tenant = |id: &TenantId| map.and_then(|map| map.tenants.get(id)).map(|known| known.name.clone());
    let of_member = |kind, id| Some(Note::new(kind, Subject { member: member(id), ..Subject::default() }));
    let of_tenant = |kind, id| Some(Note::new(kind, Subject { tenant: tenant(id), ..Subject::default() }));
    match command {
        Command::Bootstrap { settings, .. } => {
            let note = Note::new(EventKind::ClusterStarted, Subject::default());
            Some(note.with("replicas", settings.replicas.into()).with("lease_ms", settings.lease_ms))
        }
        Command::Register(registration) => {
            let note = Note::new(EventKind::MemberRegistered, Subject::member(&registration.name));
            Some(note.with("devices", registration.devices.len() as u64))
        }
        Command::MarkDown { member, .. } => of_member(EventKind::MemberDown, member),
        Command::Leave { member, .. } => {
            let is_emptied = map.is_some_and(|map| departures::is_emptied(map, *member));
            of_member(if is_emptied { EventKind::MemberRemoved } else { EventKind::MemberLeft }, member)
        }
        Command::SetCoordinators { addresses } => {
            let note = Note::new(EventKind::CoordinatorsChanged, Subject::default());
            Some(note.with("coordinators", addresses.len() as u64))
        }
        Command::RemoveMember { member } => of_member(EventKind::MemberRemoved, member),
        Command::CreateTenant { name, .. } => {
            Some(Note::new(EventKind::TenantCreated, Subject::tenant(name)))
        }
        Command::ClearTenant { tenant } => of_tenant(EventKind::TenantCleared, tenant),
        Command::RotateSecret { tenant, .. } => of_tenant(EventKind::TenantSecretRotated, tenant),
        Command::DeleteTenant { tenant } => of_tenant(EventKind::TenantDeleted, tenant),
        Command::PlaceSlots { changes, .. } => Some(placed(changes, map?)),
        Command::SetAck { ack } => {
            let name = match ack {
                Ack::Primary => "ack_primary",
                Ack::Quorum => "ack_quorum",
                Ack::All => "ack_all",
            };
            Some(Note::new(EventKind::AckChanged, Subject::default()).with(name, 1))
        }
        Command::SetTenantRules { tenant, change } => {
            Some(ruled(of_tenant(EventKind::TenantRulesChanged, tenant)?, change, Change::Keep))
        }
        Command::WeighTenant { tenant, change, weight } => {
            Some(ruled(of_tenant(EventKind::TenantRulesChanged, tenant)?, change, *weight))
        }
        Command::SetDrains { member, drains: false } => {
            let held = map.map_or(0, |map| slots_of(map, *member));
            Some(of_member(EventKind::DrainEnded, member)?.with("slots_held", held))
        }
        Command::SetDrains { member, drains: true } | Command::Empty { member, .. } => {
            let held = map.map_or(0, |map| slots_of(map, *member));
            Some(of_member(EventKind::DrainBegun, member)?.with("slots_held", held))
        }
        Command::EmptyForSize { member, from, to, .. } => {
            let held = map.map_or(0, |map| slots_of(map, *member));
            let note = of_member(EventKind::DrainBegun, member)?.with("slots_held", held);
            Some(note.with("members_before", (*from).into()).with("members_wanted", (*to).into()))
        }
        Command::SetCordon { member, cordoned } => {
            let kind = if *cordoned { EventKind::MemberCordoned } else { EventKind::MemberUncordoned };
            Some(of_member(kind, member)?.with("slots_held", map.map_or(0, |map| slots_of(map, *member))))
        }
        Command::Balance { changes, .. } => {
            let back = changes.iter().filter(|one| one.set.is_empty()).count() as u64;
            let note =
                Note::new(EventKind::SlotsBalanced, Subject::slots(changes.iter().map(|one| one.slot)));
            Some(note.with_some("slots_back_to_their_hash", back))
        }
        Command::Record(note) => Some((**note).clone()),
        Command::SetScaling { change } => Some(scaled(change)),
        Command::ScaleBeyond { size } => {
            let change = ScalingChange { manual: Change::Set(*size), ..ScalingChange::default() };
            Some(scaled(&change).with("beyond_policy", 1))
        }
        // It is told every few minutes: a journal of that would hold nothing else.
        Command::RecordLoad { .. } | Command::RecordStretch { .. } => None,
        Command::SetEngine(engine) => {
            let note = Note::new(EventKind::EngineFollowed, Subject::engine(&engine.name));
            Some(note.with("block_tokens", engine.block_tokens.into()))
        }
        Command::SetPin { name, pin } => {
            let note = pinned(EventKind::PinAdded, name, pin, tenant(&pin.tenant));
            Some(note.with_some("until_ms", pin.ends_ms().unwrap_or(0)))
        }
        Command::RemovePin { name, .. } => {
            let pin = map?.pins.get(name)?;
            Some(pinned(EventKind::PinRemoved, name, pin, tenant(&pin.tenant)))
        }
        Command::RaiseLevel { to } => {
            let from = map.map_or(0, |map| map.level.0);
            let note = Note::new(EventKind::LevelRaised, Subject::default());
            Some(note.with("from", from.into()).with("to", to.0.into()))
        }
        Command::MarkEnded { start: Some((member, _)) } => of_member(EventKind::MemberEnded, member),
        Command::MarkEnded { start: None } => Some(Note::new(EventKind::MemberEnded, Subject::default())),
        Command::RemoveEngine { name } => Some(Note::new(EventKind::EngineForgotten, Subject::engine(name))),
    }
}

/// Returns how many slots a member holds.
fn slots_of(map: &ClusterMap, member: MemberId) -> u64 {
    let holds = map.slots.iter().filter(|set| set.0.iter().any(|device| device.member == member));
    holds.count() as u64
}

/// Returns why an event happened: as whoever asked said, else as the command does.
pub(crate) fn because(command: &Command, asked: Reason) -> Reason {
    match command {
        Command::SetPin { pin, .. } => asked.or(&pin.reason),
        _ => asked,
    }
}

/// Adds what came of the command.
pub(crate) fn after(note: Note, reply: &CommandReply, repair: Option<Repair>) -> Note {
    let note = match reply {
        CommandReply::Registered { generation, .. } => note.with("generation", generation.0),
        CommandReply::TenantCleared { era, .. } => note.with("era", era.0),
        _ => note,
    };
    let Repair { promoted, lost, filled, unplaced } = repair.unwrap_or_default();
    note.with_some("slots_promoted", promoted.into())
        .with_some("slots_lost", lost.into())
        .with_some("replicas_placed", filled.into())
        .with_some("slots_nowhere", unplaced.into())
}

fn pinned(kind: EventKind, name: &str, pin: &Pin, tenant: Option<String>) -> Note {
    let subject = Subject { pin: Some(name.to_owned()), tenant, ..Subject::default() };
    Note::new(kind, subject).with("keys", pin.keys.len() as u64)
}

/// Counts what a plan does with slots: copies that begin, copies that have arrived, primaries that change.
fn placed(changes: &[Placing], map: &ClusterMap) -> Note {
    let none = Filling::default();
    let now = |slot: Slot| (&map.replicas(slot).0, map.filling.get(&slot).unwrap_or(&none));
    let changes = changes.iter().map(|one| (one, now(one.slot)));
    let new: Vec<_> = changes.filter(|(one, now)| *now != (&one.set, &one.filling)).collect();
    let (mut begun, mut arrived, mut primaries) = (0, 0, 0);
    for (one, (set, filling)) in &new {
        let is_other = !filling.streams || filling.devices != one.filling.devices;
        begun += u64::from(one.filling.streams && is_other);
        let has_come = |device: &DeviceId| one.set.contains(device) && !one.filling.devices.contains(device);
        arrived += u64::from(filling.devices.iter().any(has_come));
        primaries += u64::from(set.first() != one.set.first());
    }
    Note::new(EventKind::SlotsPlaced, Subject::slots(new.iter().map(|(one, _)| one.slot)))
        .with_some("copies_begun", begun)
        .with_some("copies_arrived", arrived)
        .with_some("primaries_changed", primaries)
}

/// Says what becomes of the policy of the cluster's size.
fn scaled(change: &ScalingChange) -> Note {
    let note = Note::new(EventKind::ScalingChanged, Subject::default());
    let mode = change.mode.map(|mode| match mode {
        ScalingMode::Off => ("mode_off", 1),
        ScalingMode::Advise => ("mode_advise", 1),
        ScalingMode::Act => ("mode_act", 1),
    });
    let manual = match change.manual {
        Change::Keep => None,
        Change::Reset => Some(("size_reset", 1)),
        Change::Set(size) => Some(("size", size.into())),
    };
    let numbers = [
        ("floor", change.floor.map(u64::from)),
        ("ceiling", change.ceiling.map(u64::from)),
        ("keep_per_mille", change.keep_per_mille.map(u64::from)),
        ("up_cooldown_s", change.up_cooldown_s.map(u64::from)),
        ("down_cooldown_s", change.down_cooldown_s.map(u64::from)),
        ("look_ahead_s", change.look_ahead_s.map(u64::from)),
        ("max_queue_us", change.max_queue_us.map(u64::from)),
    ];
    let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name, value?)));
    mode.into_iter().chain(manual).chain(numbers).fold(note, |note, (name, value)| note.with(name, value))
}

/// Says which rules are set, to what where that is a number, and which are as for everybody again.
fn ruled(note: Note, change: &RulesChange, weight: Change<u16>) -> Note {
    let strategy = match change.strategy {
        Change::Keep => Change::Keep,
        Change::Reset => Change::Reset,
        Change::Set(_) => Change::Set(1),
    };
    let shares_with = change.shares_with.try_map::<_, Infallible>(|pool| Ok(pool.0.into()));
    let bits = change.quantization_bits.try_map::<_, Infallible>(|bits| Ok(bits.into()));
    let weight = weight.try_map::<_, Infallible>(|weight| Ok(weight.into()));
    let compression = change.compression_per_mille.try_map::<_, Infallible>(|part| Ok(part.into()));
    let rules = [
        ("strategy_set", strategy),
        ("device_quota_bytes", change.device_quota_bytes),
        ("host_quota_bytes", change.host_quota_bytes),
        ("disk_quota_bytes", change.disk_quota_bytes),
        ("quantization_bits", bits.unwrap_or_default()),
        ("compression_per_mille", compression.unwrap_or_default()),
        ("shares_with_tenant", shares_with.unwrap_or_default()),
        ("weight", weight.unwrap_or_default()),
    ];
    rules.into_iter().fold(note, |note, (name, change)| match change {
        Change::Keep => note,
        Change::Reset => note.with(&format!("{name}_reset"), 1),
        Change::Set(value) => note.with(name, value),
    })
}
