//! Membership: the thin hand around the member machine. Registers, sends heartbeats with what the devices hold, has new
//! maps adopted by everything that serves, and only then lets the lease count.

use crate::actors::core::DeviceMessage;
use crate::actors::device::Device;
use crate::book::GuestBook;
use crate::data::{Counters, Replicator};
use crate::disk::Keyring;
use crate::handle::{Ending, SelfEnded};
use crate::view::{Serving, View};
use kvhive_cache::{Member, MemberEffect, MemberEvent, MemberTuning, Tenancy};
use kvhive_client::{ClientError, Coordinators};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::{Command, ControlReply, DeviceLoad, Heartbeat, Registration};
use kvhive_protocol::load::GuestLoad;
use kvhive_protocol::map::DeviceDescription;
use kvhive_protocol::{ClusterMap, DeviceId, Epoch, Generation, Level, MemberId, WireError};
use kvhive_runtime::stopped;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How often the machine is told the time.
const TICK: Duration = Duration::from_millis(10);
/// A registration that is not through within this is tried anew.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);
/// A heartbeat that is not answered within this is lost, however long the lease.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(1);
/// A device that does not say what it holds within this is reported as one that may hold anything.
const LOAD_LIMIT: Duration = Duration::from_millis(50);
/// A device that does not answer within this is asked again.
const ADOPT_LIMIT: Duration = Duration::from_secs(1);
/// The wait before it is asked again.
const ADOPT_PAUSE: Duration = Duration::from_millis(20);
/// The wait before keys that the disk did not let be destroyed are tried again, at first and at most.
const DESTROY_PAUSE: Duration = Duration::from_millis(100);
const MAX_DESTROY_PAUSE: Duration = Duration::from_secs(10);
/// A farewell that is not through within this is left to the lease.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// Events on their way to the machine.
const MAX_EVENTS: usize = 64;

/// What a node says of itself.
#[derive(Clone)]
pub(crate) struct Introduction {
    pub(crate) name: String,
    pub(crate) data_address: String,
    pub(crate) metrics_address: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) devices: Vec<DeviceDescription>,
    pub(crate) codec: Codec,
    pub(crate) speaks: Level,
}

/// What membership works with.
#[derive(Clone)]
pub(crate) struct Membership {
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) introduction: Introduction,
    pub(crate) devices: Vec<Device>,
    pub(crate) replicator: Replicator,
    /// Keys of its disk tiers.
    pub(crate) keys: Option<Arc<Keyring>>,
    pub(crate) view: Arc<View>,
    pub(crate) counters: Arc<Counters>,
    /// Counts the devices that were made anew after a panic, and so lost what they held.
    pub(crate) emptied: watch::Receiver<u64>,
    /// As many of them as there were when it registered last.
    pub(crate) known_emptied: Arc<AtomicU64>,
    /// By whom it is taken off the list of members once it has left, if its name is of this start alone. A client's to ask: nodes do not
    /// say of others that they have ended.
    pub(crate) removal: Option<Arc<Coordinators>>,
    /// Told when it never becomes a member.
    pub(crate) ending: Arc<Ending>,
}

impl Membership {
    /// Runs until `stop` turns true, then leaves the cluster.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut machine = Member::new(MemberTuning::default());
        let mut effects = Vec::new();
        // Whom the coordinators know, also while it registers anew.
        let mut known = None;
        let mut stood = Standing::Silent;
        let (events, mut heard) = mpsc::channel(MAX_EVENTS);
        let mut emptied = self.emptied.clone();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                _ = ticks.tick() => MemberEvent::Tick,
                Ok(()) = emptied.changed() => {
                    warn!("a device has lost what it held: registering anew, so that other replicas take over");
                    MemberEvent::Emptied
                }
                event = heard.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = stopped(&mut stop) => break,
            };
            machine.step(self.view.now(), event, &mut effects);
            if let Some(error) = machine.refused() {
                return self.ending.tell(Err(SelfEnded::Refused(error.clone())));
            }
            known = machine.identity().or(known);
            let stands = Standing::of(&self.view);
            if std::mem::replace(&mut stood, stands) != stands {
                stands.tell(&self.view);
            }
            for effect in effects.drain(..) {
                self.perform(&machine, effect, &events);
            }
        }
        self.leave(known).await;
    }

    fn perform(&self, machine: &Member, effect: MemberEffect, events: &mpsc::Sender<MemberEvent>) {
        let (this, events) = (self.clone(), events.clone());
        let identity = machine.identity();
        match effect {
            MemberEffect::Register => {
                tokio::spawn(async move { tell(&events, this.register().await).await });
            }
            MemberEffect::SendHeartbeat { member, generation, epoch } => {
                tokio::spawn(
                    async move { tell(&events, this.heartbeat(member, generation, epoch).await).await },
                );
            }
            MemberEffect::Adopt { map } => {
                let Some((member, _)) = identity else { return };
                tokio::spawn(async move {
                    let cluster = map.cluster;
                    let epoch = this.adopt(member, map).await;
                    tell(&events, MemberEvent::Adopted { cluster, epoch }).await;
                });
            }
            MemberEffect::ServeUntil(tenancy) => {
                if tenancy == Tenancy::NONE {
                    warn!("fenced: serving nothing until registered anew");
                }
                self.view.serve_until(tenancy);
            }
        }
    }

    async fn register(&self) -> MemberEvent {
        self.known_emptied.store(*self.emptied.borrow(), Ordering::SeqCst);
        let Introduction { name, data_address, metrics_address, labels, devices, codec, speaks } =
            self.introduction.clone();
        let request = self.coordinators.request_id();
        let registration =
            Registration { request, name, data_address, metrics_address, labels, devices, codec, speaks };
        match self.coordinators.register(&registration, Instant::now() + REGISTER_LIMIT).await {
            Ok(ControlReply::Registered { member, generation, map }) => {
                info!(%member, %generation, epoch = %map.epoch, "registered");
                self.view.note_refusal(None);
                MemberEvent::Registered { member, generation, map: Arc::new(*map) }
            }
            Ok(other) => {
                error!(?other, "registration was answered otherwise");
                MemberEvent::Failed
            }
            Err(ClientError::Refused(error)) if error != WireError::NoMajority => {
                // Told once: it is asked again until the reason is gone.
                if self.view.note_refusal(Some(error.clone())) {
                    error!(%error, "registration was refused");
                }
                MemberEvent::Refused(error)
            }
            Err(error) => {
                warn!(%error, "registration failed");
                MemberEvent::Failed
            }
        }
    }

    /// Says what is kept of other nodes' slots.
    fn guests(&self) -> GuestLoad {
        let (blocks, bytes, _) = self.view.guests.as_ref().map(GuestBook::kept).unwrap_or_default();
        let counters = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let fetched_blocks = read(&counters.guests_came);
        let given = [&counters.guests_here, &counters.guests_joined, &counters.guests_fetched];
        GuestLoad {
            blocks: blocks as u64,
            bytes,
            given_blocks: given.into_iter().map(read).sum(),
            fetched_blocks,
        }
    }

    async fn heartbeat(&self, member: MemberId, generation: Generation, epoch: Epoch) -> MemberEvent {
        let mut devices = Vec::with_capacity(self.devices.len());
        for (at, device) in self.devices.iter().enumerate() {
            // A device that is too busy to say is reported empty of news, not of blocks: every slot counts as occupied.
            let unknown = DeviceLoad {
                occupied: vec![0xFF; usize::from(kvhive_protocol::SLOTS) / 8],
                ..DeviceLoad::default()
            };
            let asked = std::time::Instant::now();
            let answer = device.ask(LOAD_LIMIT, |reply| DeviceMessage::Load { reply }).await;
            let waited = asked.elapsed();
            // One that was made anew since the registration holds nothing that it was taken to hold then: it registers anew.
            let is_as_registered = self.known_emptied.load(Ordering::SeqCst) == *self.emptied.borrow();
            let mut load = answer.ok().filter(|_| is_as_registered).map_or(unknown, |(load, _)| load);
            (load.work, load.slot_hits) = device.work.tell(self.view.now());
            load.traffic = device.traffic.tell(self.view.now());
            let device = DeviceId::new(member, at as u16);
            load.queue_us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
            let filled = self.replicator.giving.filled(&self.view, device);
            // Of one that was made anew since, others hold what it held and it does not: nobody counts as given all of that.
            let is_as_registered = self.known_emptied.load(Ordering::SeqCst) == *self.emptied.borrow();
            load.filled = if is_as_registered { filled } else { Vec::new() };
            load.given = self.replicator.giving.given(device);
            load.moving = self.replicator.giving.moving(device);
            load.unreached = self.replicator.giving.unreached(device);
            if at == 0 {
                load.guests = self.guests();
            }
            devices.push(load);
        }
        let sent = self.view.now();
        let heartbeat = Heartbeat { member, generation, epoch, devices };
        match self.coordinators.heartbeat(heartbeat, Instant::now() + self.heartbeat_limit()).await {
            Ok(ControlReply::Beat { map }) => MemberEvent::Beat { sent, map: map.map(|map| Arc::new(*map)) },
            Ok(ControlReply::Fenced) => MemberEvent::Fenced,
            Ok(_) | Err(_) => MemberEvent::Failed,
        }
    }

    /// Returns how long to wait for a heartbeat's answer: two that are lost, one after the other, do not cost the lease.
    fn heartbeat_limit(&self) -> Duration {
        let settings = self.view.serving().map(|serving| serving.map.settings.clone());
        let spare = settings.map(|settings| settings.lease_ms.saturating_sub(settings.heartbeat_ms) / 3);
        spare.map_or(HEARTBEAT_LIMIT, |spare| Duration::from_millis(spare).min(HEARTBEAT_LIMIT))
    }

    /// Has everything that serves take over the map, and returns its epoch when every device has confirmed it, and the disk's keys of
    /// eras that have ended are destroyed: from then on no older era is served here, which is what the next heartbeat tells the
    /// coordinators.
    async fn adopt(&self, member: MemberId, map: Arc<ClusterMap>) -> Epoch {
        let epoch = map.epoch;
        self.coordinators.follow(&map);
        let serving = Serving { map, member };
        let ended = self.view.adopt(serving.clone());
        if !ended.is_empty() {
            // They are overwritten as they are dropped, and nobody finds them any more: the map need not wait.
            tokio::task::spawn_blocking(move || drop(ended));
        }
        self.replicator.keep(&serving);
        if let Some(keys) = &self.keys {
            keys.permit(&serving.map);
        }
        for device in &self.devices {
            loop {
                let told =
                    device.ask(ADOPT_LIMIT, |reply| DeviceMessage::Adopt { serving: serving.clone(), reply });
                match told.await {
                    Ok(()) => break,
                    Err(error) => {
                        warn!(%error, %epoch, "a device has not adopted the map yet");
                        tokio::time::sleep(ADOPT_PAUSE).await;
                    }
                }
            }
        }
        if let Some(keys) = &self.keys {
            destroy_ended(keys, epoch).await;
        }
        epoch
    }

    async fn leave(&self, known: Option<(MemberId, Generation)>) {
        let Some((member, generation)) = known else { return };
        self.view.serve_until(Tenancy::NONE);
        let limit = Instant::now() + LEAVE_LIMIT;
        match self.coordinators.submit(Command::Leave { member, generation }, limit).await {
            Ok(_) => info!(%member, "left the cluster"),
            Err(error) => return warn!(%error, "could not say goodbye; the lease will run out"),
        }
        let Some(removal) = &self.removal else { return };
        if let Some(serving) = self.view.serving() {
            removal.follow(&serving.map);
        }
        if let Err(error) = removal.submit(Command::RemoveMember { member }, limit).await {
            info!(%error, %member, "stays on the list of members, as one that is down");
        }
    }
}

/// Destroys the disk's keys of eras that have ended, however long the disk takes: an erasure that was not done is not confirmed.
async fn destroy_ended(keys: &Arc<Keyring>, epoch: Epoch) {
    let mut pauses = DESTROY_PAUSE;
    // Where none has ended nobody waits for the disk, which may hang while it makes the key of an era that stands.
    while keys.has_ended_keys() {
        let (at_work, turn) = (keys.clone(), keys.turn().await);
        let destroying = move || {
            let _turn = turn;
            at_work.destroy_ended()
        };
        let destroyed = tokio::task::spawn_blocking(destroying).await;
        let error = match destroyed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => std::io::Error::other(panic),
        };
        error!(
            %error, %epoch, folder = %keys.folder().display(),
            "cannot destroy the disk's keys of tenants or eras that are no more; until it is done this node confirms no map, and when its lease has run out it sends no heartbeats"
        );
        tokio::time::sleep(pauses).await;
        pauses = (pauses * 2).min(MAX_DESTROY_PAUSE);
    }
}

/// How far a node may serve, as it is told in the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Silent,
    /// No coordinator has renewed its lease; it answers reads by the last map.
    Alone,
    Member,
}

impl Standing {
    fn of(view: &View) -> Standing {
        if view.check_lease().is_ok() {
            Standing::Member
        } else if view.is_alone() {
            Standing::Alone
        } else {
            Standing::Silent
        }
    }

    fn tell(self, view: &View) {
        let left = view.tenancy().serving.since(view.now());
        let epoch = view.serving().map_or(Epoch(0), |serving| serving.map.epoch);
        match self {
            Standing::Member => info!(%epoch, "holding a lease: serving"),
            Standing::Alone => warn!(
                %epoch, for_at_most = ?left,
                "no coordinator has renewed the lease: serving what is here by the last map, and looking for one that leads"
            ),
            Standing::Silent => {
                warn!("serving nothing: no coordinator has renewed the lease; looking for one that leads")
            }
        }
    }
}

async fn tell(events: &mpsc::Sender<MemberEvent>, event: MemberEvent) {
    // The machine is gone when the node stops.
    let _ = events.send(event).await;
}
