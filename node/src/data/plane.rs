//! What all connections share: the way to the devices, the view of the cluster, bounds and counters.

use crate::actors::core::DeviceMessage;
use crate::actors::device::Device;
use crate::data::counters::{Counters, count};
use crate::data::fair::Wanted;
use crate::data::recall::Recall;
use crate::data::replicate::Replicator;
use crate::data::turns::{Turn, Turns};
use crate::pace::{MoveLimits, Pacer};
use crate::passing::Passing;
use crate::share::Sharing;
use crate::view::View;
use kvhive_client::Windows;
use kvhive_protocol::{DeviceId, TenantId, WireError};
use kvhive_runtime::{AskError, Reply};
use kvhive_spans::{Span, Tracer};
use kvhive_wire::{Fault, Listening};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// A device actor that does not answer within this is busy.
const ACTOR_LIMIT: Duration = Duration::from_secs(2);

/// Into so many shares the room for decoded blocks is parted; a fetch has one at most.
const DECODING_SHARES: u64 = 8;

/// Requests that a device's disk and GPU have at a time: as many as a fast disk needs to give all it has. The others wait by tenant.
pub(crate) const BRINGING_PLACES: usize = 32;

/// Who says nothing of it has so much time: as much as clients have unless they are told otherwise.
pub(super) const UNSAID: Duration = Duration::from_secs(5);

/// Bounds of the data plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Payload bytes of stores being received at a time.
    pub(crate) inflight_bytes: u64,
    /// Transfers under way at a time; the others wait by tenant.
    pub(crate) places: usize,
    /// A transfer that needs more than this, and more than its bytes at `least_rate`, has stalled.
    pub(crate) stall: Duration,
    /// Bytes a second below which a peer counts as stalled.
    pub(crate) least_rate: u64,
    /// How fast blocks of slots that move go to others.
    pub(crate) gives: MoveLimits,
    /// And come from them.
    pub(crate) takes: MoveLimits,
}

/// What all connections share.
pub(crate) struct DataPlane {
    pub(crate) view: Arc<View>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) replicator: Replicator,
    pub(crate) listening: Listening,
    pub(crate) tracer: Tracer,
    /// Its memory as others see it, if they do.
    pub(crate) sharing: Option<Arc<Sharing>>,
    /// Other nodes' memory as this one sees it; none where the system does not say which host this is.
    pub(crate) windows: Option<Arc<Windows>>,
    pub(super) recall: Recall,
    pub(super) connections: Arc<Semaphore>,
    /// What blocks pass that move to others.
    pub(crate) gives: Arc<Pacer>,
    /// And those that come from them.
    pub(crate) takes: Pacer,
    devices: Vec<Device>,
    /// Of each device's GPU, frames that guests pass; none where none are set aside.
    passing: Vec<Option<Passing>>,
    limits: Limits,
    /// One permit a KiB of payload.
    pub(super) inflight: Arc<Semaphore>,
    /// One permit a KiB of blocks that are decoded for askers who want them raw: as many as of payload.
    pub(crate) decoding: Arc<Semaphore>,
    /// One permit a KiB of blocks that are brought back from GPUs for other replicas: as many as of payload.
    pub(super) copying: Arc<Semaphore>,
    /// One permit a KiB of blocks that are read from disks and GPUs: as many as of payload.
    pub(super) bringing: Arc<Semaphore>,
    /// The part of these that one device's disk and GPU may hold: one that stalls leaves the others theirs.
    pub(super) bringing_of: Vec<Arc<Semaphore>>,
    /// Whose blocks are sent or received next, and whose a device's disk and GPU bring next.
    pub(crate) turns: Arc<Turns>,
    turns_of: Vec<Arc<Turns>>,
    inflight_kib: u32,
    device_kib: u32,
}

impl DataPlane {
    pub(crate) fn new(
        devices: Vec<Device>,
        view: Arc<View>,
        counters: Arc<Counters>,
        replicator: Replicator,
        listening: Listening,
        sharing: Option<Arc<Sharing>>,
        limits: Limits,
    ) -> DataPlane {
        let inflight_kib = kib(limits.inflight_bytes).clamp(1, 1 << 28);
        let device_kib = (inflight_kib / devices.len().max(1) as u32).max(1);
        let pacer = |moves| Pacer::new(moves, devices.clone(), view.clone());
        let (gives, takes) = (Arc::new(pacer(limits.gives)), pacer(limits.takes));
        DataPlane {
            view,
            counters,
            listening,
            sharing,
            windows: Windows::new(),
            tracer: replicator.tracer.clone(),
            recall: Recall::default(),
            replicator,
            gives,
            takes,
            connections: Arc::new(Semaphore::new(limits.connections)),
            limits,
            inflight: Arc::new(Semaphore::new(inflight_kib as usize)),
            decoding: Arc::new(Semaphore::new(inflight_kib as usize)),
            copying: Arc::new(Semaphore::new(inflight_kib as usize)),
            bringing: Arc::new(Semaphore::new(inflight_kib as usize)),
            bringing_of: devices.iter().map(|_| Arc::new(Semaphore::new(device_kib as usize))).collect(),
            turns: Turns::counted(limits.places),
            turns_of: devices.iter().map(|_| Turns::new(BRINGING_PLACES)).collect(),
            inflight_kib,
            device_kib,
            passing: Vec::new(),
            devices,
        }
    }

    /// Has guests pass these frames, by the index of their device.
    pub(crate) fn with_passing(self, passing: Vec<Option<Passing>>) -> DataPlane {
        DataPlane { passing, ..self }
    }

    /// Returns the frames that guests pass of a device's GPU, if there are any.
    pub(crate) fn passing(&self, device: DeviceId) -> Option<&Passing> {
        self.passing.get(usize::from(device.index))?.as_ref()
    }

    /// Asks the actor of one of this node's devices; one that has no room or time is busy.
    pub(super) async fn ask<T>(
        &self,
        span: &Span,
        device: DeviceId,
        question: impl FnOnce(Reply<T>) -> DeviceMessage,
    ) -> Result<T, WireError> {
        let actor = self.device(device).ok_or(WireError::WrongDevice { device })?;
        let asked = Instant::now();
        let answered = actor.ask_traced(span, ACTOR_LIMIT, question).await;
        actor.work.waited(asked.elapsed());
        answered.map_err(|error| match error {
            AskError::Full => {
                count(&self.counters.mailbox_full);
                WireError::busy("the device's mailbox is full")
            }
            AskError::Deadline => WireError::busy("the device did not answer in time"),
            AskError::Closed => WireError::busy("the device is being restarted"),
        })
    }

    /// Waits until it is a tenant's turn to have so many bytes sent or received; what it comes to may show later.
    pub(super) async fn turn(
        &self,
        span: &Span,
        tenant: TenantId,
        bytes: Option<u64>,
        until: Instant,
    ) -> Result<Turn, WireError> {
        let _waiting = span.part("turn");
        let left = until.saturating_duration_since(Instant::now());
        let wanted = Wanted { tenant, weight: self.view.weight_of(tenant), bytes, left, is_part: false };
        self.turns.take(wanted).await.ok_or(WireError::Deadline)
    }

    /// Says that a tenant's request was late, and counts that.
    pub(super) fn late(&self, tenant: TenantId) -> WireError {
        self.turns.count_late(tenant);
        WireError::Deadline
    }

    /// Waits until it is a tenant's turn to have a device's disk or GPU bring so many bytes; none where that would be late.
    pub(crate) async fn device_turn(
        &self,
        device: DeviceId,
        tenant: TenantId,
        bytes: u64,
        until: Instant,
    ) -> Option<Turn> {
        let turns = self.turns_of.get(usize::from(device.index))?;
        let wanted = Wanted {
            tenant,
            weight: self.view.weight_of(tenant),
            bytes: Some(bytes),
            left: until.saturating_duration_since(Instant::now()),
            is_part: false,
        };
        turns.take(wanted).await
    }

    /// Returns how many requests wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.turns_of.iter().fold(self.turns.waiting(), |sum, turns| sum + turns.waiting())
    }

    /// Returns this node's devices, by their index.
    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Returns one of this node's devices.
    pub(super) fn device(&self, device: DeviceId) -> Option<&Device> {
        self.devices.get(usize::from(device.index))
    }

    /// Lets a transfer of `bytes` go on at the peer's pace, unless it stalls.
    pub(super) async fn paced<T>(
        &self,
        bytes: u64,
        transfer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let limit = self.limits.stall + Duration::from_secs(bytes / self.limits.least_rate.max(1));
        timeout(limit, transfer).await.unwrap_or_else(|_| {
            count(&self.counters.stalled);
            Err(Fault::Timeout(limit))
        })
    }

    /// Returns the permits that a payload takes; one larger than all of them takes all.
    pub(super) fn permits(&self, bytes: u64) -> u32 {
        kib(bytes).min(self.inflight_kib)
    }

    /// Returns the permits that a block takes of its device's part; one larger than that takes all of it.
    pub(crate) fn device_permits(&self, bytes: u64) -> u32 {
        kib(bytes).min(self.device_kib)
    }

    /// Returns the most bytes that one fetch may have decoded, unless one block has more: an asker that reads slowly leaves
    /// the others room.
    pub(super) fn most_decoded(&self) -> u64 {
        u64::from(self.inflight_kib) * 1024 / DECODING_SHARES
    }

    /// Returns how many connections stand, handshakes included.
    pub(crate) fn open_connections(&self) -> usize {
        self.limits.connections.saturating_sub(self.connections.available_permits())
    }

    /// Returns the payload bytes of stores that are being received, in whole KiB.
    pub(crate) fn inflight_bytes(&self) -> u64 {
        (self.inflight_kib as usize).saturating_sub(self.inflight.available_permits()) as u64 * 1024
    }

    /// Waits until no connection stands.
    pub(crate) async fn drained(&self) {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        // Never closed: the permits come back as connections end.
        let _ = self.connections.acquire_many(all).await;
    }
}

/// Returns how many KiB hold `bytes`.
pub(super) fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}
