//! The registry as bytes: what a coordinator writes down and sends to one that is far behind. Sections of bounded size
//! behind a version, a checksum at the end; equal registries give equal bytes. Bytes from elsewhere are checked whole.

use crate::dedupe::{self, Client, Dedupe};
use crate::engines::{Engines, MAX_ENGINES_BYTES};
use crate::journal::{Journal, MAX_JOURNAL_BYTES};
use crate::pins::MAX_PINS_BYTES;
use crate::registry::{FIRST_TENANT, Numbers, Registry};
use crate::scaling::Scaling;
use crate::validate;
use kvhive_planted::{Bug, is};
use kvhive_protocol::engines::Engine;
use kvhive_protocol::map::Settings;
use kvhive_protocol::scaling::Stretch;
use kvhive_protocol::{
    ClusterEvent, ClusterId, ClusterMap, Epoch, Filling, Level, Member, MemberId, Pin, ReplicaSet, Slot,
    Tenant, TenantId, codec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// The version of the state that coordinators write down: of registries in snapshots, and of commands and what they do in logs.
/// Raised when one of these changes otherwise than by a newer [`Level`]; no other is read.
pub const STATE_VERSION: u32 = 15;
/// The largest snapshot, in bytes: members and tenants, remembered outcomes, events, engines, pins, and less than 1 MiB each for slots and for
/// what surrounds the rest.
pub const MAX_SNAPSHOT_BYTES: usize = validate::MAX_MAP_BYTES
    + dedupe::MAX_REPLY_BYTES
    + MAX_JOURNAL_BYTES
    + MAX_ENGINES_BYTES
    + MAX_PINS_BYTES
    + (2 << 20);

const MAGIC: [u8; 8] = *b"kvhiveRG";
const HEAD_BYTES: usize = MAGIC.len() + 4;
const SUM_BYTES: usize = 8;
/// Each keeps a section well under the codec's 16 MiB, whatever the items hold.
const MEMBERS_PER_SECTION: usize = 256;
const TENANTS_PER_SECTION: usize = 8192;
const CLIENTS_PER_SECTION: usize = 64;
const EVENTS_PER_SECTION: usize = 1024;
/// No counter gets here by counting; one that is here would overflow.
const MAX_COUNTER: u64 = 1 << 62;

/// Why bytes are no registry.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RestoreError {
    /// They are of another version: use the kvhive that wrote them.
    #[error("snapshot is of version {found}, this kvhive reads {STATE_VERSION}")]
    Version {
        /// What they say.
        found: u32,
    },
    /// They are of a cluster at a level that this build does not speak: use a newer one.
    #[error("snapshot is of a cluster at level {}, this kvhive speaks none after {}", level.0, Level::NEWEST.0)]
    Level {
        /// The cluster's.
        level: Level,
    },
    /// They were damaged, or never were a snapshot: fetch another.
    #[error("snapshot is damaged: {detail}")]
    Damaged {
        /// What is wrong with them.
        detail: String,
    },
    /// They decode to something that no cluster can be in.
    #[error("snapshot is impossible: {detail}")]
    Impossible {
        /// What does not hold.
        detail: String,
    },
}

/// Part of a snapshot, as it is read. The first is the head.
#[derive(Deserialize)]
enum Section {
    Head { applied: u64, events: u64, map: Option<MapHead> },
    Members(Vec<(MemberId, Member)>),
    Slots(Vec<ReplicaSet>),
    Filling(Vec<(Slot, Filling)>),
    Tenants(Vec<(TenantId, Tenant)>),
    Clients(Vec<(u128, Client)>),
    Balanced(Vec<(Slot, ReplicaSet)>),
    Events(Vec<ClusterEvent>),
    Scaling(Scaling),
    Engines(Vec<Engine>),
    Pins(Vec<(String, Pin)>),
    Stretches(Vec<Stretch>),
    Weights(Vec<(TenantId, u16)>),
}

/// The same as it is written: of what the registry has, nothing is copied first. Variants stand in the order of [`Section`]'s.
#[derive(Serialize)]
enum Written<'a> {
    Head { applied: u64, events: u64, map: Option<MapHead> },
    Members(Vec<(MemberId, &'a Member)>),
    Slots(&'a [ReplicaSet]),
    Filling(Vec<(Slot, &'a Filling)>),
    Tenants(Vec<(TenantId, &'a Tenant)>),
    Clients(&'a [(&'a u128, &'a Client)]),
    Balanced(Vec<(Slot, &'a ReplicaSet)>),
    Events(&'a [&'a ClusterEvent]),
    Scaling(&'a Scaling),
    Engines(Vec<&'a Engine>),
    Pins(Vec<(&'a str, &'a Pin)>),
    Stretches(Vec<Stretch>),
    Weights(Vec<(TenantId, u16)>),
}

/// What a map has once.
#[derive(Serialize, Deserialize)]
struct MapHead {
    cluster: ClusterId,
    name: String,
    epoch: Epoch,
    settings: Settings,
    level: Level,
    last: Numbers,
    coordinators: Vec<String>,
    strangers: bool,
}

impl Registry {
    /// Returns everything [`Registry::restore`] needs. Holds the tenants' secrets: whoever stores it guards it.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 << 10);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&STATE_VERSION.to_le_bytes());
        let map = self.map.as_deref();
        let head = map.map(|map| MapHead {
            cluster: map.cluster,
            name: map.name.clone(),
            epoch: map.epoch,
            settings: map.settings.clone(),
            level: map.level,
            last: self.last,
            coordinators: map.coordinators.to_vec(),
            strangers: map.strangers,
        });
        put(&mut out, &Written::Head { applied: self.applied, events: self.journal.newest(), map: head });
        if let Some(map) = map {
            let members: Vec<_> = map.members.iter().map(|(id, member)| (*id, member)).collect();
            for part in members.chunks(MEMBERS_PER_SECTION) {
                put(&mut out, &Written::Members(part.to_vec()));
            }
            put(&mut out, &Written::Slots(&map.slots));
            put(&mut out, &Written::Filling(map.filling.iter().map(|(slot, one)| (*slot, one)).collect()));
            put(&mut out, &Written::Balanced(map.balanced.iter().map(|(slot, set)| (*slot, set)).collect()));
            let tenants: Vec<_> = map.tenants.iter().map(|(id, tenant)| (*id, tenant)).collect();
            for part in tenants.chunks(TENANTS_PER_SECTION) {
                put(&mut out, &Written::Tenants(part.to_vec()));
            }
            if !map.pins.is_empty() {
                let pins = map.pins.iter().map(|(name, pin)| (name.as_str(), pin)).collect();
                put(&mut out, &Written::Pins(pins));
            }
            // As with stretches.
            let weights: Vec<_> = map.weights.iter().map(|(id, weight)| (*id, *weight)).collect();
            for part in weights.chunks(TENANTS_PER_SECTION) {
                put(&mut out, &Written::Weights(part.to_vec()));
            }
        }
        let clients: Vec<_> = self.dedupe.iter().filter(|_| !is(Bug::SnapshotForgetsOutcomes)).collect();
        for part in clients.chunks(CLIENTS_PER_SECTION) {
            put(&mut out, &Written::Clients(part));
        }
        let events: Vec<_> = self.journal.iter().collect();
        for part in events.chunks(EVENTS_PER_SECTION) {
            put(&mut out, &Written::Events(part));
        }
        put(&mut out, &Written::Scaling(&self.scaling));
        // There is none below the level from which builds know the section.
        if self.scaling.stretches().len() > 0 {
            put(&mut out, &Written::Stretches(self.scaling.stretches().copied().collect()));
        }
        let engines = self.engines.all();
        if !engines.is_empty() {
            put(&mut out, &Written::Engines(engines.values().collect()));
        }
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        debug_assert!(out.len() <= MAX_SNAPSHOT_BYTES);
        out
    }

    /// Makes the registry again that gave these bytes.
    ///
    /// # Errors
    /// [`RestoreError`] for bytes that no [`Registry::snapshot`] of this version can have given; allocates no more than
    /// a few times their length first.
    pub fn restore(bytes: &[u8]) -> Result<Registry, RestoreError> {
        let damaged = |detail: &str| RestoreError::Damaged { detail: detail.to_owned() };
        if bytes.len() < HEAD_BYTES + SUM_BYTES || bytes[..MAGIC.len()] != MAGIC {
            return Err(damaged("it does not start as one"));
        }
        let found = u32::from_le_bytes(four(&bytes[MAGIC.len()..]));
        if found != STATE_VERSION {
            return Err(RestoreError::Version { found });
        }
        let (body, sum) = bytes.split_at(bytes.len() - SUM_BYTES);
        if xxh3_64(body).to_le_bytes() != *sum {
            return Err(damaged("its checksum does not match"));
        }
        let mut parts = Parts::default();
        let mut rest = &body[HEAD_BYTES..];
        while !rest.is_empty() {
            let (section, after) = take(rest)?;
            parts.add(section)?;
            rest = after;
        }
        parts.build().map_err(|detail| RestoreError::Impossible { detail })
    }
}

/// What was read so far.
#[derive(Default)]
struct Parts {
    head: Option<(u64, u64, Option<MapHead>)>,
    members: Vec<(MemberId, Member)>,
    slots: Vec<ReplicaSet>,
    filling: Vec<(Slot, Filling)>,
    balanced: Vec<(Slot, ReplicaSet)>,
    tenants: Vec<(TenantId, Tenant)>,
    clients: Vec<(u128, Client)>,
    events: Vec<ClusterEvent>,
    scaling: Scaling,
    engines: Vec<Engine>,
    pins: Vec<(String, Pin)>,
    stretches: Vec<Stretch>,
    weights: Vec<(TenantId, u16)>,
}

impl Parts {
    fn add(&mut self, section: Section) -> Result<(), RestoreError> {
        match section {
            // First, as what follows may be of kinds that are not known here.
            Section::Head { map: Some(MapHead { level, .. }), .. } if level > Level::NEWEST => {
                return Err(RestoreError::Level { level });
            }
            Section::Head { applied, events, map } if self.head.is_none() => {
                self.head = Some((applied, events, map));
            }
            _ if self.head.is_none() => {
                return Err(RestoreError::Damaged { detail: "the head is not first".to_owned() });
            }
            Section::Head { .. } => {
                return Err(RestoreError::Damaged { detail: "there are two heads".to_owned() });
            }
            Section::Members(part) => self.members.extend(part),
            Section::Slots(part) => self.slots.extend(part),
            Section::Filling(part) => self.filling.extend(part),
            Section::Balanced(part) => self.balanced.extend(part),
            Section::Tenants(part) => self.tenants.extend(part),
            Section::Clients(part) => self.clients.extend(part),
            Section::Events(part) => self.events.extend(part),
            Section::Scaling(scaling) => self.scaling = scaling,
            Section::Engines(part) => self.engines.extend(part),
            Section::Pins(part) => self.pins.extend(part),
            Section::Stretches(part) => self.stretches.extend(part),
            Section::Weights(part) => self.weights.extend(part),
        }
        Ok(())
    }

    fn build(self) -> Result<Registry, String> {
        let (applied, events, head) = self.head.ok_or("there is no head")?;
        counter("applied index", applied)?;
        counter("number of events", events)?;
        let dedupe = Dedupe::restore(self.clients, applied)?;
        let journal = Journal::restore(self.events, events)?;
        let scaling = self.scaling.with_stretches(self.stretches);
        scaling.check()?;
        let Some(head) = head else {
            let bare = self.members.is_empty() && self.slots.is_empty() && self.tenants.is_empty();
            let bare = bare && self.engines.is_empty() && self.pins.is_empty() && self.weights.is_empty();
            if bare {
                return Ok(Registry::from_parts(
                    applied,
                    None,
                    dedupe,
                    journal,
                    scaling,
                    Engines::default(),
                    Numbers::default(),
                ));
            }
            return Err(
                "a cluster that was never started has members, slots, tenants, weights, engines or pins"
                    .to_owned(),
            );
        };
        counter("epoch", head.epoch.0)?;
        // Some that were there are no more.
        if !self.members.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("members' numbers do not ascend".to_owned());
        }
        let ends = self.members.first().zip(self.members.last());
        if let Some(((first, _), (greatest, _))) =
            ends.filter(|ends| ends.0.0.0 == 0 || ends.1.0 > head.last.member)
        {
            return Err(format!("members {first} to {greatest}, of {} there have been", head.last.member));
        }
        for (_, member) in &self.members {
            counter("generation", member.generation.0)?;
        }
        if !self.tenants.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("tenants' numbers do not ascend".to_owned());
        }
        let ends = (self.tenants.first(), self.tenants.last());
        let (Some((first, _)), Some((greatest, _))) = ends else {
            return Err("there is no tenant".to_owned());
        };
        if *first != FIRST_TENANT || *greatest > head.last.tenant {
            return Err(format!("tenants {first} to {greatest}, of {} there have been", head.last.tenant));
        }
        for (_, tenant) in &self.tenants {
            counter("era", tenant.era.0)?;
        }
        if !self.filling.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("slots of which replicas lack blocks do not ascend".to_owned());
        }
        if !self.balanced.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("slots that do not go by their hash do not ascend".to_owned());
        }
        if !self.pins.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("pins do not ascend by their names".to_owned());
        }
        if !self.weights.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("tenants' weights do not ascend".to_owned());
        }
        let map = ClusterMap {
            cluster: head.cluster,
            name: head.name,
            epoch: head.epoch,
            settings: head.settings,
            level: head.level,
            members: BTreeMap::from_iter(self.members),
            slots: Arc::new(self.slots),
            filling: Arc::new(BTreeMap::from_iter(self.filling)),
            balanced: Arc::new(BTreeMap::from_iter(self.balanced)),
            tenants: BTreeMap::from_iter(self.tenants),
            pins: Arc::new(BTreeMap::from_iter(self.pins)),
            coordinators: Arc::new(head.coordinators),
            strangers: head.strangers,
            weights: Arc::new(BTreeMap::from_iter(self.weights)),
        };
        validate::map(&map)?;
        let engines = Engines::restore(self.engines, &map)?;
        let map = Some(map);
        Ok(Registry::from_parts(applied, map, dedupe, journal, scaling, engines, head.last))
    }
}

fn put(out: &mut Vec<u8>, section: &Written<'_>) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    codec::encode_into(section, out)
        .expect("the limits of names, labels and replies keep each section under 16 MiB");
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn take(rest: &[u8]) -> Result<(Section, &[u8]), RestoreError> {
    let cut_short = || RestoreError::Damaged { detail: "a section is cut short".to_owned() };
    if rest.len() < 4 {
        return Err(cut_short());
    }
    let length = u32::from_le_bytes(four(rest)) as usize;
    let section = rest[4..].get(..length).ok_or_else(cut_short)?;
    let decoded =
        codec::decode(section).map_err(|error| RestoreError::Damaged { detail: error.to_string() })?;
    Ok((decoded, &rest[4 + length..]))
}

fn four(bytes: &[u8]) -> [u8; 4] {
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

fn counter(what: &str, value: u64) -> Result<(), String> {
    if value > MAX_COUNTER {
        return Err(format!("{what} {value} is beyond what counting reaches"));
    }
    Ok(())
}
