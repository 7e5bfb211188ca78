//! The cluster map: members, devices, slot → replica set, tenants, under one epoch. Small, raft-replicated, everyone
//! holds a copy.

use crate::block::Codec;
use crate::data::Ack;
use crate::growing::grows;
use crate::ids::{ClusterId, DeviceId, Epoch, Era, Generation, MemberId, Slot, TenantId};
use crate::level::Level;
use crate::pins::Pin;
use crate::tenant::TenantRules;
use crate::{BlockKey, SLOTS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What holds for the whole cluster, set when it is first started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Members that each slot is placed on, while there are as many.
    pub replicas: u8,
    /// Consecutive blocks of a prefix that live together.
    pub segment_blocks: u32,
    /// When a store is answered, unless the request says.
    pub ack: Ack,
    /// How long a heartbeat's answer lets a member serve, in milliseconds.
    pub lease_ms: u64,
    /// How often members send heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a heartbeat's answer lets a member serve reads and take in blocks when no other follows, in milliseconds; at
    /// least `lease_ms`. A clear is not acknowledged before whoever may be serving so has confirmed it or is past that time.
    pub serving_lease_ms: u64,
}

impl Settings {
    /// Says whether a member that is declared down may be serving still.
    pub fn outlives_lease(&self) -> bool {
        self.serving_lease_ms > self.lease_ms
    }
}

/// Starts of a member that are over by the map, of which some process may be serving still: its serving lease lasts longer than
/// the member was one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Lingering {
    /// The newest of them.
    pub generation: Generation,
    /// One of them was at another data address than the member has: a start at that one says nothing of it.
    pub moved: bool,
}

/// One device as its member describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// `host`, later also GPU names.
    pub kind: String,
    /// Bytes of the device tier.
    pub device_bytes: u64,
    /// Bytes of the host tier over it.
    pub host_bytes: u64,
    /// Bytes of the disk tier under it.
    pub disk_bytes: u64,
}

impl DeviceDescription {
    /// Returns the bytes of both tiers in memory: the weight of this device in placement.
    pub fn capacity_bytes(&self) -> u64 {
        self.device_bytes.saturating_add(self.host_bytes)
    }
}

/// Whether a member may hold slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum MemberState {
    /// It registered and its lease has not run out.
    Up,
    /// Its lease ran out, or it left.
    Down,
}

/// One node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Member {
    /// Its name in the cluster file.
    pub name: String,
    /// Its current start.
    pub generation: Generation,
    /// Whether it may hold slots.
    pub state: MemberState,
    /// `host:port` of its data plane.
    pub data_address: String,
    /// `host:port` of its metrics.
    pub metrics_address: String,
    /// Failure domains and whatever else the operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Its devices, by index.
    pub devices: Vec<DeviceDescription>,
    /// How blocks are stored that it is the first to hold, of tenants whose rules ask for nothing.
    pub codec: Codec,
    /// It is being emptied: no slot is wanted there any more, and those that are there leave with their blocks.
    pub drains: bool,
    /// The newest level that it speaks.
    pub speaks: Level,
    /// It is cordoned: it keeps the slots that it has and serves them, and is given no others.
    #[serde(default)]
    pub cordoned: bool,
    /// Starts of it that are over and may be serving still.
    #[serde(default)]
    pub lingers: Option<Lingering>,
    /// By which map its emptying began, if it is being emptied: what was counted of one before is of another.
    #[serde(default)]
    pub drains_since: Epoch,
}
grows!(Member);

/// The devices that a slot is placed on; the first is primary. Empty while no member is up.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReplicaSet(pub Vec<DeviceId>);

impl ReplicaSet {
    /// Returns the primary, if the slot is placed at all.
    pub fn primary(&self) -> Option<DeviceId> {
        self.0.first().copied()
    }

    /// Says whether `device` holds this slot.
    pub fn contains(&self, device: DeviceId) -> bool {
        self.0.contains(&device)
    }
}

/// Replicas of one slot that have yet to be given its older blocks. New ones they get as every replica does.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Filling {
    /// Which replicas, in the order in which they are filled.
    pub devices: Vec<DeviceId>,
    /// The slot's primary is giving the first of them what it holds.
    pub streams: bool,
}

/// A tenant: whose blocks these are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Raised by each clear.
    pub era: Era,
    /// What its block keys are derived from.
    pub secret: [u8; 32],
    /// How its blocks are kept and stored.
    pub rules: TenantRules,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant")
            .field("name", &self.name)
            .field("era", &self.era)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Who holds what, under one epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ClusterMap {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// This map's version.
    pub epoch: Epoch,
    /// What holds for the whole cluster.
    pub settings: Settings,
    /// Every node that has registered and was not removed since.
    pub members: BTreeMap<MemberId, Member>,
    /// One replica set a slot, [`SLOTS`] of them. Shared, so that a map is cheap to copy.
    pub slots: Arc<Vec<ReplicaSet>>,
    /// Slots of which some replicas lack older blocks. The primary never does.
    pub filling: Arc<BTreeMap<Slot, Filling>>,
    /// Slots that belong elsewhere than their hash says, or on more devices, because of how much they are asked for: the
    /// primary first.
    pub balanced: Arc<BTreeMap<Slot, ReplicaSet>>,
    /// Every tenant.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// What may be said and written down in this cluster.
    pub level: Level,
    /// `host:port` of the control plane of each coordinator that votes. Empty before a leader has said it.
    pub coordinators: Arc<Vec<String>>,
    /// Pinned prefixes, by name.
    #[serde(default)]
    pub pins: Arc<BTreeMap<String, Pin>>,
    /// Members that no map of this cluster has may be serving by one of before: it goes on by an older state.
    #[serde(default)]
    pub strangers: bool,
    /// How many times as much of a node a tenant gets as one that weighs 1, while both want more than there is. Who is not here weighs 1.
    #[serde(default)]
    pub weights: Arc<BTreeMap<TenantId, u16>>,
}
grows!(ClusterMap);

impl ClusterMap {
    /// Makes the first map of a cluster: nobody is there yet, and no slot is anywhere.
    pub fn founded(cluster: ClusterId, name: impl Into<String>, settings: Settings) -> ClusterMap {
        ClusterMap {
            cluster,
            name: name.into(),
            epoch: Epoch(1),
            settings,
            members: BTreeMap::new(),
            slots: Arc::new(vec![ReplicaSet::default(); usize::from(SLOTS)]),
            filling: Arc::default(),
            balanced: Arc::default(),
            tenants: BTreeMap::new(),
            level: Level::NEWEST,
            pins: Arc::default(),
            coordinators: Arc::default(),
            strangers: false,
            weights: Arc::default(),
        }
    }

    /// Returns what a tenant weighs where several share a node.
    pub fn weight(&self, tenant: TenantId) -> u16 {
        self.weights.get(&tenant).copied().unwrap_or(1)
    }

    /// Returns where the slot is placed.
    pub fn replicas(&self, slot: Slot) -> &ReplicaSet {
        static NOWHERE: ReplicaSet = ReplicaSet(Vec::new());
        self.slots.get(usize::from(slot.0)).unwrap_or(&NOWHERE)
    }

    /// Says whether `device` is a replica of `slot` that has yet to be given its older blocks.
    pub fn is_filling(&self, slot: Slot, device: DeviceId) -> bool {
        self.filling.get(&slot).is_some_and(|filling| filling.devices.contains(&device))
    }

    /// Returns whom the slot's primary is giving its blocks to.
    pub fn given_to(&self, slot: Slot) -> Option<DeviceId> {
        self.filling.get(&slot).filter(|filling| filling.streams)?.devices.first().copied()
    }

    /// Returns a member that is being emptied and has the slot.
    pub fn emptied_of(&self, slot: Slot) -> Option<MemberId> {
        let set = &self.replicas(slot).0;
        set.iter().map(|device| device.member).find(|member| self.is_emptied(*member))
    }

    /// Says whether a member is being emptied.
    pub fn is_emptied(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|member| member.drains)
    }

    /// Returns by which map a member's emptying began, if it is being emptied.
    pub fn emptied_since(&self, member: MemberId) -> Option<Epoch> {
        self.members.get(&member).filter(|member| member.drains).map(|member| member.drains_since)
    }

    /// Says whether anybody but `device` has all blocks of the slot, by this map, and stays.
    pub fn stays_elsewhere(&self, slot: Slot, device: DeviceId) -> bool {
        let stays = |other: &&DeviceId| {
            **other != device && !self.is_filling(slot, **other) && !self.is_emptied(other.member)
        };
        self.replicas(slot).0.iter().any(|other| stays(&other))
    }

    /// Returns where the segment with this home key is placed.
    pub fn replicas_of(&self, home: &BlockKey) -> &ReplicaSet {
        self.replicas(home.slot())
    }

    /// Returns the member that owns `device`, if the device exists.
    pub fn owner(&self, device: DeviceId) -> Option<&Member> {
        self.members.get(&device.member).filter(|member| usize::from(device.index) < member.devices.len())
    }

    /// Finds a tenant by name.
    pub fn tenant(&self, name: &str) -> Option<(TenantId, &Tenant)> {
        self.tenants.iter().find(|(_, tenant)| tenant.name == name).map(|(id, tenant)| (*id, tenant))
    }

    /// Returns the tenant whose blocks those of `tenant` are: itself, unless it shares another's.
    pub fn pool_of(&self, tenant: TenantId) -> Option<(TenantId, &Tenant)> {
        let known = self.tenants.get(&tenant)?;
        let pool = known.rules.shares_with.unwrap_or(tenant);
        self.tenants.get(&pool).map(|of_pool| (pool, of_pool))
    }

    /// Finds a member by name.
    pub fn member(&self, name: &str) -> Option<(MemberId, &Member)> {
        self.members.iter().find(|(_, member)| member.name == name).map(|(id, member)| (*id, member))
    }

    /// Returns every device of every member that is up, with its description.
    pub fn devices_up(&self) -> impl Iterator<Item = (DeviceId, &DeviceDescription)> {
        self.members.iter().filter(|(_, member)| member.state == MemberState::Up).flat_map(|(id, member)| {
            member.devices.iter().enumerate().map(|(at, device)| (DeviceId::new(*id, at as u16), device))
        })
    }

    /// Checks what every map must satisfy: each slot has one replica set, its devices exist, are up, and no two of
    /// them are on one member, unless one is taking the other's place; names are unique.
    ///
    /// # Errors
    /// A sentence that says what does not hold.
    pub fn check(&self) -> Result<(), String> {
        if self.slots.len() != usize::from(SLOTS) {
            return Err(format!("{} slots instead of {SLOTS}", self.slots.len()));
        }
        for (slot, set) in self.slots.iter().enumerate() {
            for (at, device) in set.0.iter().enumerate() {
                let owner = self
                    .owner(*device)
                    .ok_or_else(|| format!("slot {slot} is on unknown device {device}"))?;
                if owner.state != MemberState::Up {
                    return Err(format!("slot {slot} is on device {device}, whose member is down"));
                }
                let alike = set.0[..at].iter().filter(|other| other.member == device.member);
                let lacks = |device: &DeviceId| self.is_filling(Slot(slot as u16), *device);
                if alike.into_iter().any(|other| !lacks(other) && !lacks(device)) {
                    return Err(format!("slot {slot} has two replicas on member {}", device.member));
                }
            }
        }
        for (slot, filling) in self.filling.iter() {
            self.check_filling(*slot, filling)?;
        }
        for (at, member) in self.members.values().enumerate() {
            if self.members.values().skip(at + 1).any(|other| other.name == member.name) {
                return Err(format!("two members are named {}", member.name));
            }
        }
        for (at, tenant) in self.tenants.values().enumerate() {
            if self.tenants.values().skip(at + 1).any(|other| other.name == tenant.name) {
                return Err(format!("two tenants are named {}", tenant.name));
            }
            let pool = tenant.rules.shares_with.map(|pool| self.tenants.get(&pool));
            if pool.is_some_and(|pool| pool.is_none_or(|pool| pool.rules.shares_with.is_some())) {
                return Err(format!("tenant {} shares what is no tenant's own", tenant.name));
            }
        }
        Ok(())
    }

    /// Checks what must hold of a slot's replicas that lack blocks: they are replicas, each once, and the primary is none of
    /// them.
    ///
    /// # Errors
    /// A sentence that says what does not hold.
    pub fn check_filling(&self, slot: Slot, filling: &Filling) -> Result<(), String> {
        let set = self.replicas(slot);
        let is_one = |at: usize, device: &DeviceId| {
            set.contains(*device) && set.primary() != Some(*device) && !filling.devices[..at].contains(device)
        };
        if slot.0 >= SLOTS || filling.devices.is_empty() {
            return Err(format!("slot {slot} does not exist, or none of its replicas lacks blocks"));
        }
        match filling.devices.iter().enumerate().find(|(at, device)| !is_one(*at, device)) {
            Some((_, device)) => Err(format!(
                "device {device} lacks blocks of slot {slot} and is its primary, none of its replicas, or named twice"
            )),
            None => Ok(()),
        }
    }
}
