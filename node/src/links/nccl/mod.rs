//! By NCCL, between two GPUs: the thin hand around [`Pairs`](kvhive_links::Pairs). The bytes go from frame to frame by a process of each
//! GPU that may hang or die; who says what to whom goes over the data plane.

mod calls;
mod figures;
mod hand;
mod state;

use super::tcp::Tcp;
use super::{NCCL_LIMIT, Parcel, Transport, is_of_the_way};
use crate::config::NcclConfig;
use crate::data::OnGpu;
use crate::guards::WriteGuard;
use crate::view::{Serving, View};
use futures_util::future::BoxFuture;
use hand::Hand;
use kvhive_client::Pool;
use kvhive_gpu::worker::Packing;
use kvhive_links::pairs::Why;
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::{DataReply, DataRequest, StoreRequest};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{PairMessage, PairsReport, TransferId};
use kvhive_wire::Fault;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// One GPU of this node, as its pairs need it.
pub(crate) struct OwnGpu {
    /// Its number, as its driver counts.
    pub(crate) ordinal: u32,
    /// The size of its slab.
    pub(crate) slab_bytes: u64,
    /// A handle on its slab; none where the GPU has no such thing.
    pub(crate) slab: Option<OwnedFd>,
}

/// Why a batch did not go by NCCL.
#[derive(Debug, Error)]
pub(crate) enum NotCarried {
    /// The pair did not take it, or not in time.
    #[error("{0}")]
    Pair(Why),
    /// The target's node did not say that it has it.
    #[error("{0}")]
    Answer(#[from] Fault),
}

impl NotCarried {
    /// Says whether anybody was asked to take it: not where there was no communicator yet.
    pub(crate) fn has_begun(&self) -> bool {
        match self {
            NotCarried::Pair(why) => why.is_failure() || *why == Why::Refused || *why == Why::NotGranted,
            NotCarried::Answer(_) => true,
        }
    }

    /// Says whether the pair has failed; not where it was not there, or both ends were busy.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            NotCarried::Pair(why) => why.is_failure(),
            NotCarried::Answer(fault) => is_of_the_way(fault),
        }
    }
}

/// A GPU does without NCCL as long as this node lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("this node does without NCCL")]
pub(crate) struct Without;

/// The pairs of this node's GPUs, by the index of their device; none where a device has no GPU.
pub(super) struct Nccl {
    hands: Vec<Option<Arc<Hand>>>,
    words: Arc<Tcp>,
}

impl Nccl {
    pub(super) fn new(
        config: &NcclConfig,
        gpus: Vec<Option<OwnGpu>>,
        (view, tcp, io): (&Arc<View>, &Arc<Tcp>, &Handle),
        words: Pool,
    ) -> Nccl {
        let words = Arc::new(Tcp::new(words));
        let hand = |(index, gpu): (u16, Option<OwnGpu>)| {
            let ways = [tcp.clone(), words.clone()];
            Some(Hand::start(config.clone(), gpu?, index, (view.clone(), ways, io.clone())))
        };
        Nccl { hands: (0..).zip(gpus).map(hand).collect(), words }
    }

    fn hand(&self, device: DeviceId) -> Option<&Arc<Hand>> {
        self.hands.get(usize::from(device.index))?.as_ref()
    }

    /// Has all pairs go by a map.
    pub(super) fn adopt(&self, serving: &Serving) {
        self.words.speak_as(serving.member);
        self.hands.iter().flatten().for_each(|hand| hand.adopt(serving));
    }

    /// Returns how far the pair of two devices is; none where one of them has no GPU.
    pub(super) fn state(&self, source: DeviceId, target: DeviceId) -> Option<PairState> {
        self.hand(source)?.state(target)
    }

    /// Returns how far the communicator is by which a device sends to all targets at once; none where one of them has no GPU.
    pub(super) fn state_to_all(&self, source: DeviceId, targets: &[DeviceId]) -> Option<PairState> {
        self.hand(source)?.state_to_all(targets)
    }

    /// Has blocks that are on a GPU get to those of all parcels at once, by `deadline`; returns what becomes of them at each. Those that were not
    /// carried are to go another way. The target may have them all the same.
    pub(super) async fn carry_to_all(
        &self,
        parcels: &[Parcel<'_>],
        blocks: Vec<Arc<OnGpu>>,
        deadline: Instant,
    ) -> Vec<Result<DataReply, NotCarried>> {
        match parcels.first().and_then(|parcel| self.hand(parcel.source)) {
            Some(hand) => hand.carry(parcels, blocks, deadline).await,
            None => parcels.iter().map(|_| Err(NotCarried::Pair(Why::Without))).collect(),
        }
    }

    /// Hears what the GPU of another node says to one of this node's.
    ///
    /// # Errors
    /// When that one does without NCCL.
    pub(super) fn hear(&self, message: PairMessage) -> Result<(), Without> {
        self.hand(message.to).ok_or(Without)?.hear(message)
    }

    /// Waits until what another GPU sends is in the frames of `guards`, which are of this node's `device`, within `limit`.
    ///
    /// # Errors
    /// When it does not come: the frames are let go of when nothing touches them any more.
    pub(super) async fn expect(
        &self,
        device: DeviceId,
        packed: (TransferId, Packing),
        guards: Vec<WriteGuard>,
        limit: Duration,
    ) -> Result<Vec<WriteGuard>, Why> {
        let hand = self.hand(device).ok_or(Why::NoWorker)?;
        hand.expect(packed, guards, limit).await
    }

    /// Records what became of all pairs, and how far they are.
    pub(super) fn record(&self) {
        for (hand, device) in self.hands.iter().zip(0u16..) {
            if let Some(hand) = hand {
                hand.figures.record(&device.to_string(), hand.report().as_ref());
            }
        }
    }

    /// Tells of all pairs.
    pub(super) fn report(&self) -> Vec<PairsReport> {
        self.hands.iter().flatten().filter_map(|hand| hand.report()).collect()
    }
}

impl Transport for Nccl {
    fn carry<'a>(&'a self, parcel: &'a Parcel<'a>) -> BoxFuture<'a, Result<DataReply, NotCarried>> {
        Box::pin(async move {
            let deadline = parcel.deadline.min(Instant::now() + NCCL_LIMIT);
            let blocks = parcel.on_gpu.to_vec();
            let mut answers = self.carry_to_all(std::slice::from_ref(parcel), blocks, deadline).await;
            answers.pop().unwrap_or(Err(NotCarried::Pair(Why::NoWorker)))
        })
    }
}

/// What is sent to the target's node of a batch that goes by NCCL.
fn announced(parcel: &Parcel<'_>) -> Option<StoreRequest> {
    match parcel.request {
        DataRequest::Store(store) => Some(store.clone()),
        _ => None,
    }
}
