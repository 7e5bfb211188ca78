//! Blocks that are to be given to others: their bytes at hand, or on a GPU until it is known by which way they go.

use crate::data::bring::ROOM_LIMIT;
use crate::data::plane::kib;
use crate::disk::Room;
use crate::far::FarGuard;
use crate::frames::GpuFrame;
use crate::guards::ReadGuard;
use kvhive_gpu::worker::Extent;
use kvhive_protocol::BlockHeader;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

/// The bytes of one block.
#[derive(Clone)]
pub(crate) enum Content {
    Here(Arc<ReadGuard>),
    OnGpu(Arc<OnGpu>),
}

/// A block on a GPU, held there; its bytes are brought once, if anybody wants them.
pub(crate) struct OnGpu {
    header: BlockHeader,
    extent: Extent,
    /// Stays as it is while this is held, whatever becomes of the block: something may read it.
    frame: GpuFrame,
    far: Mutex<Option<FarGuard>>,
    /// Room that is waited for, one permit a KiB, and how many there are.
    room: Option<(Arc<Semaphore>, u32)>,
    brought: OnceCell<Option<Arc<ReadGuard>>>,
}

impl OnGpu {
    /// Takes a block that is held and lies in `frame`. Before its bytes are brought, room is waited for.
    pub(crate) fn new(far: FarGuard, frame: GpuFrame, room: Option<(Arc<Semaphore>, u32)>) -> OnGpu {
        let (header, extent, far) = (*far.header(), frame.extent(), Mutex::new(Some(far)));
        OnGpu { header, extent, frame, far, room, brought: OnceCell::new() }
    }

    pub(crate) fn header(&self) -> &BlockHeader {
        &self.header
    }

    /// Takes what holds the block, for whoever brings it otherwise; its frame stays as it is for as long as somebody has this.
    pub(crate) fn take_far(&self) -> Option<FarGuard> {
        self.far.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns where it is in its GPU's slab.
    pub(crate) fn extent(&self) -> Extent {
        self.extent
    }

    /// Returns its frame, which stays as it is for as long as somebody has this.
    pub(crate) fn frame(&self) -> GpuFrame {
        self.frame.clone()
    }

    async fn bring(&self) -> Option<Arc<ReadGuard>> {
        let brought = self.brought.get_or_init(|| async {
            let far = self.take_far()?;
            let room = match &self.room {
                None => None,
                Some((room, most)) => {
                    let permits = kib(self.header.payload_bytes).min(*most);
                    let room =
                        timeout(ROOM_LIMIT, room.clone().acquire_many_owned(permits)).await.ok()?.ok()?;
                    Some(Room::alone(room))
                }
            };
            far.read(room).await.ok().map(Arc::new)
        });
        brought.await.clone()
    }
}

impl Content {
    pub(crate) fn header(&self) -> &BlockHeader {
        match self {
            Content::Here(guard) => guard.header(),
            Content::OnGpu(block) => &block.header,
        }
    }

    /// Returns the block on its GPU, if it is there.
    pub(crate) fn on_gpu(&self) -> Option<&Arc<OnGpu>> {
        match self {
            Content::Here(_) => None,
            Content::OnGpu(block) => Some(block),
        }
    }

    /// Has its bytes at hand; none where its GPU does not give them in time, or there is no room for them.
    pub(crate) async fn bytes(&self) -> Option<Arc<ReadGuard>> {
        match self {
            Content::Here(guard) => Some(guard.clone()),
            Content::OnGpu(block) => block.bring().await,
        }
    }
}
