//! Between nodes of one host: the target is told where the blocks lie in this node's memory, and copies them out of it itself. They are held
//! until it has answered; what it copies later than that is not what their digests say.

use super::tcp::Tcp;
use super::{NotCarried, Parcel, Transport, lock};
use crate::data::DataPlane;
use crate::share::Sharing;
use futures_util::future::BoxFuture;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::share::{
    CarryRequest, LEAST_SHARED_BYTES, NotShared, ShareAnswer, ShareRequest, SharedAt,
};
use kvhive_protocol::{ClusterMap, Generation, Level, MemberId, WireError};
use kvhive_wire::Fault;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A member that does not say within this where it is may be anywhere.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// The way to nodes that can look at this one's memory.
pub(super) struct SharedMemory {
    tcp: Arc<Tcp>,
    /// None before the node serves.
    plane: OnceLock<Weak<DataPlane>>,
    /// Which members are on this host, by what they said when they were asked first since they started.
    near: Mutex<BTreeMap<MemberId, (Generation, bool)>>,
}

impl SharedMemory {
    pub(super) fn new(tcp: Arc<Tcp>) -> SharedMemory {
        SharedMemory { tcp, plane: OnceLock::new(), near: Mutex::default() }
    }

    pub(super) fn serve(&self, plane: Weak<DataPlane>) {
        // A node has one plane, and is told once.
        let _ = self.plane.set(plane);
    }

    /// Forgets members that are not in the map.
    pub(super) fn keep(&self, map: &ClusterMap) {
        lock(&self.near).retain(|member, _| map.members.contains_key(member));
        if let Some(plane) = self.plane.get().and_then(Weak::upgrade)
            && let Some(windows) = &plane.windows
        {
            windows.retain(|address| map.members.values().any(|member| member.data_address == address));
        }
    }

    /// Says whether a batch has something that its target could look at.
    pub(super) async fn reaches(&self, parcel: &Parcel<'_>) -> bool {
        let map = &parcel.serving.map;
        let is_worth_it = places(parcel).any(|place| place.is_some());
        if parcel.source.member == parcel.target.member || !is_worth_it || map.level < Level::LINKS {
            return false;
        }
        let Some((owner, sharing)) = map.owner(parcel.target).zip(self.sharing()) else { return false };
        let member = parcel.target.member;
        if let Some((generation, near)) = lock(&self.near).get(&member).copied()
            && generation == owner.generation
        {
            return near;
        }
        let request = ShareRequest { epoch: map.epoch, device: parcel.target, host: sharing.host() };
        let request = DataRequest::Share(request);
        let deadline = Instant::now() + ASK_LIMIT;
        let asked = self.tcp.exchange(map, parcel.target, (None, &request), &[], deadline).await;
        // Whether it would let itself be looked at does not matter.
        let Ok(DataReply::Shared { answer, .. }) = asked else { return false };
        // One that shares nothing does not say where it is.
        let near = !matches!(answer, ShareAnswer::Not(NotShared::Elsewhere | NotShared::Nothing));
        lock(&self.near).insert(member, (owner.generation, near));
        near
    }

    fn sharing(&self) -> Option<Arc<Sharing>> {
        self.plane.get().and_then(Weak::upgrade)?.sharing.clone()
    }
}

/// Walks over where a batch's blocks can be seen; of those that are worth it.
fn places<'a>(parcel: &'a Parcel<'a>) -> impl Iterator<Item = Option<SharedAt>> + 'a {
    parcel.places.iter().zip(parcel.payload).map(|(place, bytes)| {
        let place = place.filter(|_| bytes.len() as u64 >= LEAST_SHARED_BYTES)?;
        Some(SharedAt { slab: place.slab, at: place.at })
    })
}

impl Transport for SharedMemory {
    fn carry<'a>(&'a self, parcel: &'a Parcel<'a>) -> BoxFuture<'a, Result<DataReply, NotCarried>> {
        Box::pin(async move {
            let (DataRequest::Store(store), Some(sharing)) = (parcel.request, self.sharing()) else {
                return Err(unseen().into());
            };
            let places: Vec<_> = places(parcel).collect();
            let sent = parcel.payload.iter().zip(&places).filter(|(_, place)| place.is_none());
            let sent: Vec<&[u8]> = sent.map(|(bytes, _)| *bytes).collect();
            let (source, start) = (parcel.source.member, sharing.start());
            let request =
                DataRequest::Carry(Box::new(CarryRequest { source, start, places, store: store.clone() }));
            let asked = (parcel.trace, &request);
            let map = &parcel.serving.map;
            match self.tcp.exchange(map, parcel.target, asked, &sent, parcel.deadline).await? {
                DataReply::Unseen { .. } => Err(unseen().into()),
                answer => Ok(answer),
            }
        })
    }
}

fn unseen() -> Fault {
    Fault::Protocol(WireError::malformed(format_args!("the target does not see this node's memory")))
}
