//! A coordinator without raft: one map, changed by the test.

use super::TOKEN;
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::{
    Command, CommandReply, ControlReply, ControlRequest, DeviceLoad, Heartbeat, Registration,
};
use kvhive_protocol::data::Ack;
use kvhive_protocol::emptying::{Displaced, Given};
use kvhive_protocol::frame::Kind;
use kvhive_protocol::handshake::TokenKey;
use kvhive_protocol::load::{SlotGiven, TenantLoad};
use kvhive_protocol::map::{DeviceDescription, Member, MemberState, ReplicaSet, Settings, Tenant};
use kvhive_protocol::strategy::StrategyReport;
use kvhive_protocol::{
    ClusterId, ClusterMap, DeviceId, Epoch, Era, Generation, MemberId, SLOTS, Slot, TenantId, TenantRules,
    WireError,
};
use kvhive_wire::{Connection, Listening};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Placed nowhere, so that a request for it is misdirected.
pub(super) const UNPLACED: Slot = Slot(SLOTS - 1);
pub(super) const TENANT: TenantId = TenantId(1);

pub(super) struct FakeCoordinator {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

struct Script {
    map: ClusterMap,
    silent: bool,
    fenced: bool,
    /// Who is given no newer map.
    kept_behind: Option<MemberId>,
    confirmed: BTreeMap<MemberId, Epoch>,
    /// When the last heartbeat came.
    last_beat: Instant,
    /// What registrations are answered.
    refuses: Option<WireError>,
    left: Vec<MemberId>,
    removed: Vec<MemberId>,
    occupied: Vec<u8>,
    filled: Vec<(Slot, DeviceId)>,
    tenants: Vec<(TenantId, TenantLoad)>,
    strategies: Vec<StrategyReport>,
    /// What each member's first device told last of emptying.
    emptying: BTreeMap<MemberId, DeviceLoad>,
}

impl FakeCoordinator {
    pub(super) async fn start() -> FakeCoordinator {
        FakeCoordinator::leasing(Duration::from_secs(1)).await
    }

    /// As [`FakeCoordinator::start`], with leases of this length.
    pub(super) async fn leasing(lease: Duration) -> FakeCoordinator {
        let lease_ms = lease.as_millis() as u64;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let tenant =
            Tenant { name: "default".into(), era: Era(1), secret: [7; 32], rules: TenantRules::default() };
        let settings = Settings {
            replicas: 3,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms,
            heartbeat_ms: 20,
            serving_lease_ms: lease_ms,
        };
        let map = ClusterMap {
            tenants: BTreeMap::from([(TENANT, tenant)]),
            ..ClusterMap::founded(ClusterId(77), "test", settings)
        };
        let script = Arc::new(Mutex::new(Script {
            map,
            silent: false,
            fenced: false,
            kept_behind: None,
            confirmed: BTreeMap::new(),
            last_beat: Instant::now(),
            refuses: None,
            left: Vec::new(),
            removed: Vec::new(),
            occupied: Vec::new(),
            filled: Vec::new(),
            tenants: Vec::new(),
            strategies: Vec::new(),
            emptying: BTreeMap::new(),
        }));
        let served = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, served.clone()));
            }
        });
        FakeCoordinator { address, script }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics holding it")
    }

    /// Answers nothing any more, or again.
    pub(super) fn be_silent(&self, silent: bool) {
        self.script().silent = silent;
    }

    /// Gives a member no newer map, or everybody again.
    pub(super) fn keep_behind(&self, member: Option<MemberId>) {
        self.script().kept_behind = member;
    }

    /// Fences every member once: it is answered so until it registers anew.
    pub(super) fn fence(&self) {
        self.script().fenced = true;
    }

    /// Refuses registrations with this, or takes them again.
    pub(super) fn refuse(&self, error: Option<WireError>) {
        self.script().refuses = error;
    }

    /// Changes the map under a new epoch.
    pub(super) fn change(&self, how: impl FnOnce(&mut ClusterMap)) {
        let mut script = self.script();
        script.map.epoch = script.map.epoch.next();
        how(&mut script.map);
    }

    /// Returns what a member has registered its devices as.
    pub(super) fn devices(&self, member: MemberId) -> Vec<DeviceDescription> {
        self.script().map.members[&member].devices.clone()
    }

    /// Returns how blocks are stored on each member.
    pub(super) fn codecs(&self) -> Vec<Codec> {
        let script = self.script.lock().expect("no test panics with it");
        script.map.members.values().map(|member| member.codec).collect()
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.script().map.epoch
    }

    /// Returns for how long no heartbeat has come, answered or not.
    pub(super) fn silence(&self) -> Duration {
        self.script().last_beat.elapsed()
    }

    /// Takes all tenants off the map; returns them, and the map's epoch.
    pub(super) fn delete_tenants(&self) -> (BTreeMap<TenantId, Tenant>, Epoch) {
        let mut script = self.script();
        script.map.epoch = script.map.epoch.next();
        (std::mem::take(&mut script.map.tenants), script.map.epoch)
    }

    /// Raises the tenant's era; returns the era and the map's epoch.
    pub(super) fn clear(&self) -> (Era, Epoch) {
        let mut script = self.script();
        script.map.epoch = script.map.epoch.next();
        let epoch = script.map.epoch;
        let tenant = script.map.tenants.get_mut(&TENANT).expect("it is there");
        tenant.era = tenant.era.next();
        (tenant.era, epoch)
    }

    /// Says whether the member's heartbeats report this epoch.
    pub(super) fn has_confirmed(&self, member: MemberId, epoch: Epoch) -> bool {
        self.script().confirmed.get(&member).is_some_and(|confirmed| *confirmed >= epoch)
    }

    pub(super) fn left(&self) -> Vec<MemberId> {
        self.script().left.clone()
    }

    pub(super) fn removed(&self) -> Vec<MemberId> {
        self.script().removed.clone()
    }

    /// Returns what the last heartbeat said of tenants.
    pub(super) fn tenants(&self) -> Vec<(TenantId, TenantLoad)> {
        self.script().tenants.clone()
    }

    /// Says whether any member's heartbeats have said that `device` was given all of `slot`.
    pub(super) fn is_filled(&self, slot: Slot, device: DeviceId) -> bool {
        self.script().filled.contains(&(slot, device))
    }

    /// Returns what members' last heartbeats say of emptying `member`: what was given away, and what was let go.
    pub(super) fn emptying(&self, member: MemberId) -> (Given, Displaced) {
        let script = self.script();
        let (mut given, mut displaced) = (Given::default(), Displaced::default());
        for load in script.emptying.values() {
            load.given.iter().filter(|(of, _)| *of == member).for_each(|(_, one)| given.add(one));
            load.displaced.iter().filter(|(of, _)| *of == member).for_each(|(_, one)| displaced.add(one));
        }
        (given, displaced)
    }

    /// Returns what the member's last heartbeat says has gone so far of slots that are on their way from it.
    pub(super) fn moving(&self, member: MemberId) -> Vec<SlotGiven> {
        self.script().emptying.get(&member).map(|load| load.moving.clone()).unwrap_or_default()
    }

    /// Returns what the last heartbeat said of strategies that choose.
    pub(super) fn strategies(&self) -> Vec<StrategyReport> {
        self.script().strategies.clone()
    }

    /// Returns the slots that the last heartbeat said to be occupied.
    pub(super) fn occupied(&self) -> Vec<u8> {
        self.script().occupied.clone()
    }
}

async fn converse(stream: TcpStream, script: Arc<Mutex<Script>>) {
    let cluster = script.lock().expect("no test panics holding it").map.cluster;
    let (token, levels) = (TokenKey::new(TOKEN), Default::default());
    let listening = Listening { token, cluster: Some(cluster), tls: None, levels };
    let Ok((mut connection, _)) = Connection::accept(stream, &listening, Duration::from_secs(5)).await else {
        return;
    };
    while let Ok(frame) = connection.receive().await {
        let Ok(request) = connection.message::<ControlRequest>() else { return };
        let Some(reply) = script.lock().expect("no test panics holding it").answer(request) else { continue };
        if connection.send(Kind::ControlReply, frame.request, &reply, &[]).await.is_err() {
            return;
        }
    }
}

impl Script {
    fn answer(&mut self, request: ControlRequest) -> Option<ControlReply> {
        if self.silent {
            return None;
        }
        Some(match request {
            ControlRequest::Register(registration) => match &self.refuses {
                Some(error) => ControlReply::Failed(error.clone()),
                None => self.register(registration),
            },
            ControlRequest::Heartbeat(heartbeat) => self.beat(heartbeat),
            ControlRequest::Submit { command: Command::Leave { member, .. }, .. } => {
                self.left.push(member);
                ControlReply::Done(CommandReply::Applied { epoch: self.map.epoch })
            }
            ControlRequest::Submit { command: Command::RemoveMember { member }, .. } => {
                assert!(self.left.contains(&member), "it serves still");
                self.removed.push(member);
                ControlReply::Done(CommandReply::Applied { epoch: self.map.epoch })
            }
            // Clients do.
            ControlRequest::FetchMap { .. } => ControlReply::Map(Some(Box::new(self.map.clone()))),
            other => panic!("no node asks {other:?}"),
        })
    }

    fn register(&mut self, registration: Registration) -> ControlReply {
        self.fenced = false;
        self.map.epoch = self.map.epoch.next();
        let known = self.map.member(&registration.name).map(|(id, member)| (id, member.generation));
        let fresh = (MemberId(self.map.members.len() as u32 + 1), Generation(0));
        let (id, generation) = known.unwrap_or(fresh);
        let generation = generation.next();
        let member = Member {
            name: registration.name,
            generation,
            state: MemberState::Up,
            data_address: registration.data_address,
            metrics_address: registration.metrics_address,
            labels: registration.labels,
            devices: registration.devices,
            codec: registration.codec,
            drains: false,
            cordoned: false,
            lingers: None,
            drains_since: Default::default(),
            speaks: kvhive_protocol::Level::NEWEST,
        };
        self.map.members.insert(id, member);
        let everywhere: Vec<_> = self.map.members.keys().map(|id| DeviceId::new(*id, 0)).collect();
        let mut slots = vec![ReplicaSet(everywhere); usize::from(SLOTS)];
        slots[usize::from(UNPLACED.0)] = ReplicaSet::default();
        self.map.slots = Arc::new(slots);
        ControlReply::Registered { member: id, generation, map: Box::new(self.map.clone()) }
    }

    fn beat(&mut self, heartbeat: Heartbeat) -> ControlReply {
        self.last_beat = Instant::now();
        let generation = self.map.members.get(&heartbeat.member).map(|member| member.generation);
        if self.fenced || generation != Some(heartbeat.generation) {
            return ControlReply::Fenced;
        }
        self.confirmed.insert(heartbeat.member, heartbeat.epoch);
        self.tenants.clone_from(&heartbeat.devices[0].tenants);
        self.strategies.clone_from(&heartbeat.devices[0].strategies);
        self.occupied.clone_from(&heartbeat.devices[0].occupied);
        self.filled.extend(&heartbeat.devices[0].filled);
        self.emptying.insert(heartbeat.member, heartbeat.devices[0].clone());
        let newer = heartbeat.epoch < self.map.epoch && self.kept_behind != Some(heartbeat.member);
        ControlReply::Beat { map: newer.then(|| Box::new(self.map.clone())) }
    }
}
