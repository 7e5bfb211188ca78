//! Copies from nodes of this host: stores whose bytes lie in the other node's memory, which this one looks at.

use crate::data::payload::Payload;
use crate::data::plane::DataPlane;
use crate::view::Serving;
use kvhive_client::{Opened, Sight};
use kvhive_protocol::data::{DataReply, DataRequest, StoreBlock};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::share::{CarryRequest, ShareRequest, SharedAt};
use kvhive_protocol::{DeviceId, MemberId, WireError};
use kvhive_spans::Span;
use kvhive_wire::{Connection, Fault, Peer};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The other node's door opens within this, or its blocks come over the connection.
const OPEN_LIMIT: Duration = Duration::from_millis(500);

impl DataPlane {
    /// Serves a store whose bytes are to be seen where its asker has them. The outer error ends the connection, the inner one refuses the
    /// request.
    pub(super) async fn carried(
        &self,
        connection: &mut Connection,
        (peer, until): (Peer, Instant),
        span: &Span,
        request: CarryRequest,
    ) -> Result<Result<DataReply, WireError>, Fault> {
        let CarryRequest { source, start, places, store } = request;
        if peer.role != Role::Node {
            let what = "store copies".to_owned();
            return Ok(Err(WireError::Forbidden { role: peer.role.to_string(), what }));
        }
        if places.len() != store.blocks.len() || !store.copy {
            return Ok(Err(WireError::malformed(format_args!("a place is told for each block of a copy"))));
        }
        let serving = match self.view.serves(peer.role) {
            Ok(serving) => serving,
            Err(error) => return Ok(Err(error)),
        };
        let Some(opened) = self.windows_of(&serving, source, start).await else {
            return Ok(Ok(DataReply::Unseen { epoch: serving.map.epoch }));
        };
        let mut payload = Seen::new(connection, &opened, &places, &store.blocks);
        let stored = self.store(&mut payload, (peer, until), span, store).await;
        if let Some(windows) = &self.windows {
            windows.copied(payload.copied);
        }
        stored
    }

    /// Returns windows into the memory of another node's start, opened if they may be.
    async fn windows_of(&self, serving: &Serving, source: MemberId, start: u64) -> Option<Arc<Opened>> {
        // Those of the start before are shut as soon as its end is heard of.
        self.sight_of(serving, source).await.filter(|opened| opened.start() == start)
    }

    /// Returns windows into the memory of another node, opened if they may be.
    pub(super) async fn sight_of(&self, serving: &Serving, source: MemberId) -> Option<Arc<Opened>> {
        let windows = self.windows.as_ref()?;
        match windows.sight(&serving.map.members.get(&source)?.data_address) {
            Sight::Open(opened) => Some(opened),
            Sight::Shut => None,
            Sight::MayOpen(attempt) => {
                let device = DeviceId::new(source, 0);
                let request = ShareRequest { epoch: serving.map.epoch, device, host: windows.host() };
                let request = DataRequest::Share(request);
                let asked = self.replicator.links.ask((serving, None), device, &request);
                let Ok(DataReply::Shared { answer, .. }) = asked.await else { return None };
                attempt.go(answer, Instant::now() + OPEN_LIMIT).await
            }
        }
    }
}

/// Blocks' bytes, some to be seen and the others sent. Each is read or skipped as a whole.
struct Seen<'a> {
    connection: &'a mut Connection,
    opened: &'a Opened,
    /// Where the next blocks are.
    places: std::slice::Iter<'a, Option<SharedAt>>,
    /// Bytes of those that are to be seen and were neither read nor skipped.
    left: u64,
    copied: u64,
}

impl<'a> Seen<'a> {
    fn new(
        connection: &'a mut Connection,
        opened: &'a Opened,
        places: &'a [Option<SharedAt>],
        blocks: &[StoreBlock],
    ) -> Seen<'a> {
        let seen = blocks.iter().zip(places).filter(|(_, place)| place.is_some());
        let left = seen.map(|(block, _)| block.header.payload_bytes).fold(0, u64::saturating_add);
        Seen { connection, opened, places: places.iter(), left, copied: 0 }
    }

    /// Returns where the next block is, if it is to be seen.
    fn next(&mut self, bytes: u64) -> Option<SharedAt> {
        let place = *self.places.next()?;
        if place.is_some() {
            self.left = self.left.saturating_sub(bytes);
        }
        place
    }
}

impl Payload for Seen<'_> {
    fn left(&self) -> u64 {
        self.left.saturating_add(self.connection.payload_left())
    }

    async fn read(&mut self, into: &mut [u8]) -> Result<u64, Fault> {
        let Some(at) = self.next(into.len() as u64) else { return self.connection.read_payload(into).await };
        let digest = self.opened.copy(at, into).ok_or_else(|| {
            Fault::Protocol(WireError::malformed(format_args!("a block lies where nothing is")))
        })?;
        self.copied += into.len() as u64;
        Ok(digest)
    }

    async fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        match self.next(bytes) {
            Some(_) => Ok(()),
            None => self.connection.skip_payload(bytes).await,
        }
    }
}
