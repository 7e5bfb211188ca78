//! Between two devices of one node: the store is done here, by copies from frame to frame.

use super::{NotCarried, Parcel, Transport};
use crate::data::DataPlane;
use futures_util::future::BoxFuture;
use kvhive_protocol::WireError;
use kvhive_protocol::data::{DataReply, DataRequest};
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
    fn carry<'a>(&'a self, parcel: &'a Parcel<'a>) -> BoxFuture<'a, Result<DataReply, NotCarried>> {
        Box::pin(async move {
            let plane = self.plane.get().and_then(Weak::upgrade).ok_or(Fault::Closed)?;
            let Parcel { source, trace, request, on_gpu, payload, deadline, .. } = *parcel;
            let limit = deadline.saturating_duration_since(Instant::now());
            if let DataRequest::Store(store) = request
                && !on_gpu.is_empty()
            {
                let frames = on_gpu.iter().map(|block| block.frame()).collect();
                let taken = plane.take_here(source.member, (trace, store.clone()), frames);
                // A GPU that is late is no reason to leave the process.
                let late = || WireError::NotCarried { why: "it took too long".to_owned() };
                let taken = timeout_at(deadline, taken).await.unwrap_or_else(|_| Err(late()));
                return Ok(taken.map_err(Fault::Refused)?);
            }
            let stored = plane.store_here(source.member, (trace, request), payload);
            Ok(timeout_at(deadline, stored).await.unwrap_or(Err(Fault::Timeout(limit)))?)
        })
    }
}
