//! Stages: memory of this process's GPUs that it lends to GPUs of nodes on this host. A call has one alone; what may still be used by a node,
//! since something of a call was not answered, is used by no other and freed when that node has let go of it.

use crate::client::Shared;
use crate::fetch::run_all;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::route::segment_at;
use crate::stats::count;
use kvhive_gpu::cuda::{CudaError, Gpu, Stage};
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::share::{HostId, NotShared, Pass, ShareAnswer};
use kvhive_protocol::stage::{LendRequest, MAX_STAGE_BYTES, StageLoan};
use kvhive_protocol::{ClusterMap, DeviceId, Generation, Level};
use kvhive_wire::{Visit, this_host};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

/// Bytes of a stage, unless one block has more.
const STAGE_BYTES: u64 = 32 << 20;
/// Stages that a client has at most, those among them that it waits to be let go of.
const MOST_STAGES: usize = 4;
/// A node is waited for so long until it has a stage open.
const OPEN_LIMIT: Duration = Duration::from_secs(1);
/// And no longer than this part of a call's time, as does the stage itself: the rest is the blocks'.
const PART_OF_LIMIT: u32 = 4;
/// What has failed, or was refused, is not tried again before.
const REST: Duration = Duration::from_secs(30);
/// A node that is on another host, or has no GPU, stays so until it starts anew.
const LONG_REST: Duration = Duration::from_secs(600);

/// All stages of a client.
pub(crate) struct Stages {
    host: HostId,
    free: Mutex<Vec<LentStage>>,
    room: Arc<Semaphore>,
    /// To whom nothing is lent before, as long as it is the same start.
    rests: Mutex<HashMap<DeviceId, (Generation, Instant)>>,
}

/// A stage and whom it is lent to.
struct LentStage {
    stage: Option<Stage>,
    gpu: Arc<Gpu>,
    holders: Mutex<Holders>,
    runtime: Handle,
    room: Option<OwnedSemaphorePermit>,
}

/// Who may have a stage open.
#[derive(Default)]
struct Holders {
    lent: HashMap<DeviceId, Lent>,
    /// Those who did not say so, or of an earlier start. A stage that has some is lent to nobody after this call.
    unsure: Vec<Visit>,
}

struct Lent {
    generation: Generation,
    pass: Pass,
    visit: Visit,
}

impl LentStage {
    fn bytes(&self) -> u64 {
        self.stage.as_ref().map_or(0, Stage::len)
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        // Nothing is left half-done under this lock.
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LentStage {
    fn drop(&mut self) {
        let (Some(stage), room) = (self.stage.take(), self.room.take()) else { return };
        let Holders { lent, unsure } = std::mem::take(&mut *self.holders());
        let visits: Vec<Visit> = lent.into_values().map(|lent| lent.visit).chain(unsure).collect();
        // Freed when nobody has it open any more. Where that is never heard of it stays the GPU's to the end of the process.
        let stage = ManuallyDrop::new(stage);
        self.runtime.spawn(async move {
            for visit in visits {
                visit.take_back().await;
            }
            let stage = ManuallyDrop::into_inner(stage);
            // The driver may wait for all that the GPU does.
            let _ = spawn_blocking(move || drop(stage)).await;
            drop(room);
        });
    }
}

/// A stage that was shown at a door. However its showing ends, who may have opened it is waited for.
struct Shown<'a> {
    visit: Option<Visit>,
    lent: &'a LentStage,
}

impl Shown<'_> {
    /// Waits until it is taken.
    async fn taken(mut self, limit: Duration) -> io::Result<Visit> {
        let visit = self.visit.as_mut().expect("only the end takes it");
        let taken = visit.taken(limit).await;
        // Who has closed the door has it not open.
        let closed = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
        match taken {
            Ok(()) => Ok(self.visit.take().expect("only the end takes it")),
            Err(error) => {
                if closed.contains(&error.kind()) {
                    self.visit = None;
                }
                Err(error)
            }
        }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.lent.holders().unsure.extend(self.visit.take());
    }
}

/// A stage that one call has. Blocks lie on it one after the other, from its first byte on.
pub struct StageLease {
    stages: Arc<Stages>,
    lent: Option<LentStage>,
    /// A node may use it, whatever becomes of the call.
    is_in_use: AtomicBool,
}

impl StageLease {
    fn lent(&self) -> &LentStage {
        self.lent.as_ref().expect("only drop takes it")
    }

    fn stage(&self) -> &Stage {
        self.lent().stage.as_ref().expect("only drop takes it")
    }

    /// Returns the address of its first byte.
    pub fn address(&self) -> u64 {
        self.stage().address()
    }

    /// Writes bytes of the host's on it, for who has none on a GPU. Blocks the thread.
    ///
    /// # Errors
    /// When they do not all lie on it, or the GPU fails.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
        self.stage().write(at, bytes)
    }

    /// Reads bytes of it into the host's. Blocks the thread.
    ///
    /// # Errors
    /// As for [`StageLease::write`].
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), CudaError> {
        self.stage().read(at, into)
    }

    /// Returns its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.lent().bytes()
    }

    /// Says whether a node may use it still that did not say it is done. Nothing may be put on it or asked of it any more: it is for who
    /// has it to go by the host's memory.
    pub fn is_spent(&self) -> bool {
        self.is_in_use.load(Ordering::Relaxed)
    }

    /// Returns by what a device knows the stage, if it does and the stage is not spent.
    pub(crate) fn pass(&self, device: DeviceId) -> Option<Pass> {
        if self.is_spent() {
            return None;
        }
        self.lent().holders().lent.get(&device).map(|lent| lent.pass)
    }

    /// Says that a node is about to use it.
    pub(crate) fn begin(&self) -> Use<'_> {
        Use { lease: self, is_over: false }
    }

    /// Says that a device could not do something with it: it is lent nothing for a while.
    pub(crate) fn is_of_no_use_to(&self, device: DeviceId) {
        let generation = self.lent().holders().lent.get(&device).map(|lent| lent.generation);
        if let Some(generation) = generation {
            self.stages.rest(device, generation, REST);
        }
    }
}

impl Drop for StageLease {
    fn drop(&mut self) {
        let is_spent = self.is_spent();
        let lent = self.lent.take().filter(|lent| !is_spent && lent.holders().unsure.is_empty());
        if let Some(lent) = lent {
            self.stages.free().push(lent);
        }
    }
}

/// A node uses a stage, until it has said that it does not any more.
pub(crate) struct Use<'a> {
    lease: &'a StageLease,
    is_over: bool,
}

impl Use<'_> {
    /// Hears that the node is done.
    pub(crate) fn end(mut self) {
        self.is_over = true;
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.lease.is_in_use.store(true, Ordering::Relaxed);
        }
    }
}

impl Stages {
    /// Makes none yet. None where the system does not say which host this is.
    pub(crate) fn new() -> Option<Arc<Stages>> {
        Some(Arc::new(Stages {
            host: this_host()?,
            free: Mutex::default(),
            room: Arc::new(Semaphore::new(MOST_STAGES)),
            rests: Mutex::default(),
        }))
    }

    /// Takes a stage of so many bytes of a GPU's: one that is free, or a new one if there may be more.
    async fn take(&self, gpu: &Arc<Gpu>, bytes: u64) -> Option<LentStage> {
        let fits = |lent: &LentStage| Arc::ptr_eq(&lent.gpu, gpu) && lent.bytes() >= bytes;
        {
            let mut free = self.free();
            if let Some(at) = free.iter().position(fits) {
                return Some(free.swap_remove(at));
            }
            // Others that are free give way; they are let go of in their own time.
            if self.room.available_permits() == 0 && !free.is_empty() {
                free.remove(0);
            }
        }
        let room = self.room.clone().try_acquire_owned().ok()?;
        let (of, size) = (gpu.clone(), usize::try_from(bytes).ok()?);
        // It counts also where nobody waits for it any more.
        let made = spawn_blocking(move || Stage::new(&of, size).map(|stage| (stage, room))).await.ok()?;
        let (stage, room) = made.map_err(|error| tracing::debug!(%error, "no stage")).ok()?;
        let (gpu, runtime) = (gpu.clone(), Handle::current());
        Some(LentStage { stage: Some(stage), gpu, holders: Mutex::default(), runtime, room: Some(room) })
    }

    fn rest(&self, device: DeviceId, generation: Generation, limit: Duration) {
        self.rests().insert(device, (generation, Instant::now() + limit));
    }

    fn rests_with(&self, device: DeviceId, generation: Generation) -> bool {
        let is_of = |(of, until): &(Generation, Instant)| *of == generation && Instant::now() < *until;
        self.rests().get(&device).is_some_and(is_of)
    }

    /// Forgets those that are not in the map.
    fn keep(&self, map: &ClusterMap) {
        self.rests().retain(|device, _| map.owner(*device).is_some());
    }

    fn free(&self) -> MutexGuard<'_, Vec<LentStage>> {
        // Nothing is left half-done under this lock.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rests(&self) -> MutexGuard<'_, HashMap<DeviceId, (Generation, Instant)>> {
        // As above.
        self.rests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NamespaceClient {
    /// Takes a stage of a GPU's memory for the blocks `range` of `prefix`, lent to those devices on this host that may have some of them. None
    /// where there is no such device, or none takes it: the blocks go by the host's memory.
    pub async fn stage(&self, gpu: &Arc<Gpu>, prefix: &Prefix, range: Range<usize>) -> Option<StageLease> {
        let shared = self.shared();
        let stages = shared.stages.as_ref().filter(|_| !self.has_any_length())?;
        let map = shared.map();
        let devices = self.devices_of(&map, prefix, range);
        let generation = |device: &DeviceId| map.owner(*device).map(|owner| (*device, owner.generation));
        let able: Vec<(DeviceId, Generation)> = devices
            .iter()
            .filter_map(generation)
            .filter(|(device, generation)| !stages.rests_with(*device, *generation))
            .collect();
        if able.is_empty() {
            return None;
        }
        stages.keep(&map);
        let bytes = STAGE_BYTES.max(self.block_bytes);
        if bytes > MAX_STAGE_BYTES {
            return None;
        }
        let limit = self.limit() / PART_OF_LIMIT;
        let Ok(taken) = timeout(limit, stages.take(gpu, bytes)).await else {
            tracing::debug!("a GPU was not done in time with a stage");
            count(&shared.counters.stage_fallbacks, 1);
            able.iter().for_each(|(device, generation)| stages.rest(*device, *generation, REST));
            return None;
        };
        let lent = taken?;
        let loan = lent.stage.as_ref().map(Stage::loan)?;
        let loan = StageLoan { handle: loan.handle, offset: loan.offset, bytes: loan.bytes };
        let deadline = Instant::now() + OPEN_LIMIT.min(limit);
        let lend = |to| shared.lend((stages, &map), to, (&lent, &loan), deadline);
        let is_lent = run_all(able.into_iter().map(lend).collect()).await.contains(&true);
        let lease =
            StageLease { stages: stages.clone(), lent: Some(lent), is_in_use: AtomicBool::new(false) };
        is_lent.then_some(lease)
    }

    /// Returns the devices that may have blocks of a range.
    fn devices_of(&self, map: &ClusterMap, prefix: &Prefix, range: Range<usize>) -> BTreeSet<DeviceId> {
        let segment_blocks = map.settings.segment_blocks as usize;
        let mut devices = BTreeSet::new();
        let mut last = None;
        for at in range.filter(|at| *at < prefix.len()) {
            let home = prefix.home(at, segment_blocks);
            if last.replace(home) != Some(home) {
                let (_, segment) = segment_at(map, prefix, at, &[]);
                devices.extend(segment.left());
            }
        }
        devices
    }
}

impl Shared {
    /// Lends a stage to a device, if its node takes it or has it already.
    async fn lend(
        self: &Arc<Self>,
        (stages, map): (&Stages, &ClusterMap),
        (device, generation): (DeviceId, Generation),
        (lent, loan): (&LentStage, &StageLoan),
        deadline: Instant,
    ) -> bool {
        {
            let mut holders = lent.holders();
            if holders.lent.get(&device).is_some_and(|lent| lent.generation == generation) {
                return true;
            }
            // Of an earlier start, which may not have ended.
            let old = holders.lent.remove(&device).map(|old| old.visit);
            holders.unsure.extend(old);
        }
        let request = DataRequest::Lend(LendRequest { epoch: map.epoch, device, host: stages.host });
        let offer = match self.call_from(Level::DAYS, map, device, &request, None, deadline).await {
            Ok(Some(DataReply::Shared { answer: ShareAnswer::Offered(offer), .. })) => offer,
            Ok(Some(DataReply::Shared {
                answer: ShareAnswer::Not(NotShared::Elsewhere | NotShared::Nothing),
                ..
            }))
            | Ok(None) => {
                stages.rest(device, generation, LONG_REST);
                return false;
            }
            Ok(Some(_)) | Err(_) => {
                count(&self.counters.stage_fallbacks, 1);
                stages.rest(device, generation, REST);
                return false;
            }
        };
        let left = || deadline.saturating_duration_since(Instant::now());
        let taken = match Visit::lend(&offer, loan, left()).await {
            Ok(visit) => Shown { visit: Some(visit), lent }.taken(left()).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(visit) => {
                lent.holders().lent.insert(device, Lent { generation, pass: offer.pass, visit });
                true
            }
            Err(error) => {
                tracing::debug!(%device, %error, "a node takes no stage");
                count(&self.counters.stage_fallbacks, 1);
                stages.rest(device, generation, REST);
                false
            }
        }
    }
}
