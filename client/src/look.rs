//! Whether a node's memory can be looked at, and how its blocks are read then: out of windows instead of from the connection.

use crate::client::Shared;
use crate::windows::{Fallback, Opened, Sight};
use kvhive_protocol::data::{DataReply, DataRequest, Fetched};
use kvhive_protocol::share::{Looked, ShareRequest, SharedAt};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, Level, TraceContext};
use kvhive_wire::{Connection, Fault};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A fetch waits this long for windows to be opened; then its blocks come over the connection.
const OPEN_LIMIT: Duration = Duration::from_millis(250);

impl Shared {
    /// Returns windows into the memory of a device's node, opened if they may be.
    pub(crate) async fn windows_of(
        self: &Arc<Self>,
        map: &ClusterMap,
        device: DeviceId,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Option<Arc<Opened>> {
        let windows = self.windows.as_ref()?;
        let attempt = match windows.sight(&map.owner(device)?.data_address) {
            Sight::Open(opened) => return Some(opened),
            Sight::MayOpen(attempt) => attempt,
            Sight::Shut => return None,
        };
        let deadline = deadline.min(Instant::now() + OPEN_LIMIT);
        let request = ShareRequest { epoch: map.epoch, device, host: windows.host() };
        match self.call_from(Level::LINKS, map, device, &DataRequest::Share(request), trace, deadline).await {
            Ok(Some(DataReply::Shared { answer, .. })) => attempt.go(answer, deadline).await,
            Ok(Some(_)) | Err(_) => None,
            Ok(None) => {
                attempt.is_unknown();
                None
            }
        }
    }

    /// Says that what was looked at in a device's memory is not what was to be there: for a while it is not looked at.
    pub(crate) fn is_torn(&self, map: &ClusterMap, device: DeviceId) {
        if let Some((windows, owner)) = self.windows.as_ref().zip(map.owner(device)) {
            windows.rest(&owner.data_address, Fallback::Torn);
        }
    }
}

/// Where the bytes of one block are.
#[derive(Clone, Copy)]
pub(crate) enum Bytes<'a> {
    /// They come next over the connection.
    Sent,
    /// They are to be seen.
    Seen(&'a Opened, SharedAt),
}

impl Bytes<'_> {
    /// Takes as many as there is room for, and returns their digest. None where they are to be seen and there is no such place.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn read(
        self,
        connection: &mut Connection,
        into: &mut [u8],
    ) -> Result<Option<u64>, Fault> {
        match self {
            Bytes::Sent => connection.read_payload(into).await.map(Some),
            Bytes::Seen(opened, at) => Ok(opened.copy(at, into)),
        }
    }

    /// Passes over so many.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn skip(self, connection: &mut Connection, bytes: u64) -> Result<(), Fault> {
        match self {
            Bytes::Sent => connection.skip_payload(bytes).await,
            Bytes::Seen(..) => Ok(()),
        }
    }

    /// Says whether they are looked at where they are.
    pub(crate) fn is_seen(self) -> bool {
        matches!(self, Bytes::Seen(..))
    }
}

/// One block of an answer: its header, and where its bytes are; none for a miss.
pub(crate) type Found = Option<(BlockHeader, Option<SharedAt>)>;

/// Reads the answer to a fetch or a look: what was found, and what the node holds for this client.
pub(crate) fn found(reply: DataReply) -> Option<(Vec<Found>, u64)> {
    match reply {
        DataReply::Fetched { blocks, .. } => {
            let found = blocks.into_iter().map(|block| match block {
                Fetched::Hit(header) => Some((header, None)),
                Fetched::Miss => None,
            });
            Some((found.collect(), 0))
        }
        DataReply::Looked { blocks, grant, .. } => {
            let found = blocks.into_iter().map(|block| match block {
                Looked::At(header, at) => Some((header, Some(at))),
                Looked::Sent(header) => Some((header, None)),
                Looked::Miss => None,
            });
            Some((found.collect(), grant))
        }
        _ => None,
    }
}
