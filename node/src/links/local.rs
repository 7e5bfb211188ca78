//! Between two devices of one node: the store is done here, by copies from frame to frame.

use super::{Parcel, Transport};
use crate::data::DataPlane;
use futures_util::future::BoxFuture;
use kvhive_protocol::data::DataReply;
use kvhive_wire::Fault;
use std::sync::{OnceLock, Weak};
use tokio::time::{Instant, timeout_at};

/// The way from a node to itself.
#[derive(Default)]
pub(super) struct InProcess {
    /// None before the node serves.
    pub(super) plane: OnceLock<Weak<DataPlane>>,
}

impl Transport for InProcess {
    fn carry<'a>(
        &'a self,
        parcel: &'a Parcel<'a>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<DataReply, Fault>> {
        Box::pin(async move {
            let Some(plane) = self.plane.get().and_then(Weak::upgrade) else { return Err(Fault::Closed) };
            let Parcel { source, trace, request, payload, .. } = *parcel;
            let limit = deadline.saturating_duration_since(Instant::now());
            let stored = plane.store_here(source.member, (trace, request), payload);
            timeout_at(deadline, stored).await.unwrap_or(Err(Fault::Timeout(limit)))
        })
    }
}
