//! Fetch: guards from the actor, headers in the message, bytes straight from their frames.

use crate::actors::core::DeviceMessage;
use crate::data::check;
use crate::data::counters::{add, count};
use crate::data::decode::{Held, is_worth_a_look};
use crate::data::grants::Grants;
use crate::data::plane::DataPlane;
use crate::data::turns::Turn;
use crate::guards::{Lent, ReadGuard};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, DataReply, FetchRequest, Fetched, MAX_BLOCKS_PER_TRANSFER};
use kvhive_protocol::frame::{Kind, MAX_PAYLOAD_BYTES};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::links::TransportKind;
use kvhive_protocol::share::{Looked, SharedAt};
use kvhive_protocol::{DeviceId, Epoch, WireError};
use kvhive_spans::Span;
use kvhive_wire::{Connection, Fault};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Blocks that are held for a fetch, by the position of their key.
pub(super) struct Found {
    /// Whose they are; none of guests.
    device: Option<DeviceId>,
    begun: Instant,
    blocks: Vec<Option<Held>>,
    /// For what was decoded; back when it is sent.
    _room: Option<OwnedSemaphorePermit>,
    /// Back when it is sent, too; none where nothing is.
    _turn: Option<Turn>,
    /// The device of another node that it is for, if it is for one's.
    to: Option<DeviceId>,
    /// It has waited for another node: how long it takes says nothing of a device of this one.
    has_waited: bool,
}

impl Found {
    /// Blocks that are no device's.
    pub(super) fn guests(begun: Instant, blocks: Vec<Option<Held>>, turn: Option<Turn>) -> Found {
        Found { device: None, begun, blocks, _room: None, _turn: turn, to: None, has_waited: false }
    }

    /// Is for a device of another node.
    pub(super) fn given_to(self, to: Option<DeviceId>) -> Found {
        Found { to, ..self }
    }

    /// Has waited for another node, or has not.
    pub(super) fn after_others(self, has_waited: bool) -> Found {
        Found { has_waited, ..self }
    }

    /// Counts that so much of it has been given, of what is read of its device.
    fn count(&self, plane: &DataPlane, bytes: u64) {
        let Some(device) = self.device.and_then(|device| plane.device(device)) else { return };
        match self.has_waited {
            true => device.traffic.gave(bytes),
            false => device.traffic.fetched(bytes, self.begun.elapsed()),
        }
    }
}

impl DataPlane {
    /// Finds the blocks of a fetch and holds them, when it is its tenant's turn. One who looks is sent nothing where it sees all; `looks` names
    /// what it sees, if anything more can be held for it.
    pub(super) async fn fetch(
        &self,
        span: &mut Span,
        (role, until): (Role, Instant),
        request: FetchRequest,
        looks: Option<u64>,
    ) -> Result<Found, WireError> {
        let begun = Instant::now();
        count(&self.counters.fetches);
        check::sizes(&request.runs, request.keys.len(), MAX_BLOCKS_PER_TRANSFER)?;
        let serving = self.view.serves(role)?;
        check::admits(&serving, request.epoch, request.device, request.tenant, &request.runs)?;
        let (device, tenant, keys) = (request.device, request.tenant, request.keys.clone());
        let turn = match looks.is_some_and(|start| self.is_seen(start)) {
            true => None,
            false => Some(self.turn(span, tenant, None, until).await?),
        };
        let blocks = self.ask(span, device, |reply| DeviceMessage::Read { tenant, keys, reply }).await?;
        self.found(span, (begun, until), request, (looks, turn), blocks).await
    }

    /// Has blocks at hand that were lent for a fetch, when it is its tenant's turn.
    pub(super) async fn found(
        &self,
        span: &mut Span,
        (begun, until): (Instant, Instant),
        request: FetchRequest,
        (looks, mut turn): (Option<u64>, Option<Turn>),
        blocks: Vec<Option<Lent>>,
    ) -> Result<Found, WireError> {
        let FetchRequest { device, tenant, accept, runs, .. } = request;
        let sees = looks.is_some_and(|start| self.is_seen(start));
        if span.is_on() {
            let on_disk = |lent: &&Lent| matches!(lent, Lent::Far(far) if far.is_on_disk());
            span.note("kvhive.on_disk", blocks.iter().flatten().filter(on_disk).count());
        }
        if blocks.iter().flatten().any(|lent| matches!(lent, Lent::Far(_))) {
            // Others need not wait for a disk that nobody else wants.
            turn = None;
        }
        let brought = self.bring(span, device, (tenant, until), blocks).await;
        if brought.is_late() {
            // Not a miss: who asks is not to ask others, who have as much to do.
            return Err(self.late(tenant));
        }
        let blocks: Vec<Option<ReadGuard>> = brought.blocks.into_iter().map(|one| one?.ok()).collect();
        let is_sent = |guard: &ReadGuard| {
            let is_decoded = matches!(accept, Accept::Raw(_)) && guard.header().codec != Codec::Raw;
            is_decoded || !(sees && is_worth_a_look(guard))
        };
        if turn.is_none() && blocks.iter().flatten().any(is_sent) {
            // Before there is room for what is decoded, which others want who have their turn.
            turn = Some(self.turn(span, tenant, None, until).await?);
        }
        let (mut blocks, room_taken) = match accept {
            Accept::Stored => (blocks.into_iter().map(|guard| guard.map(Held::Frame)).collect(), None),
            Accept::Raw(layout) => self.decoded(span, blocks, layout).await?,
        };
        // What does not fit into one frame is a miss; an asker that knows its blocks' size never asks for that much.
        let mut room = u64::from(MAX_PAYLOAD_BYTES);
        for block in &mut blocks {
            let bytes = block.as_ref().map_or(0, |held: &Held| held.bytes().len() as u64);
            match room.checked_sub(bytes) {
                Some(left) => room = left,
                None => *block = None,
            }
        }
        let is_sent = |held: &&Held| !(sees && held.is_worth_a_look());
        let bytes = blocks.iter().flatten().filter(is_sent).map(|held| held.bytes().len() as u64).sum();
        if let Some(turn) = &turn {
            turn.measured(bytes);
        }
        if let Some(device) = self.device(device) {
            device.work.asked(runs.iter().map(|run| run.slot));
            for (held, slot) in blocks.iter().zip(check::slots(&runs)) {
                let Some(held) = held else { continue };
                device.work.gave(slot, held.bytes().len() as u64);
            }
        }
        Ok(Found {
            device: Some(device),
            begun,
            blocks,
            _room: room_taken,
            _turn: turn,
            to: None,
            has_waited: false,
        })
    }

    /// Checks once more that the blocks found may leave: the lease holds, and no clear has ended the era of one of them
    /// since the actor gave it out.
    pub(super) fn answer(&self, role: Role, found: &Found) -> Result<DataReply, WireError> {
        let serving = self.view.serves(role)?;
        let mut blocks = Vec::with_capacity(found.blocks.len());
        for held in &found.blocks {
            let Some(held) = held else {
                blocks.push(Fetched::Miss);
                continue;
            };
            let header = *held.header();
            let era = serving.map.tenants.get(&header.tenant).map(|tenant| tenant.era);
            if era != Some(header.era) {
                // The same answer as for any other epoch that has moved on: refresh and ask once more.
                return Err(WireError::StaleEpoch { epoch: serving.map.epoch });
            }
            blocks.push(Fetched::Hit(header));
        }
        Ok(DataReply::Fetched { epoch: serving.map.epoch, blocks })
    }

    /// Sends the reply made by [`DataPlane::answer`] with the blocks' bytes. One who looks is told where those are that it can see, and
    /// they are held for it.
    pub(super) async fn send_found(
        &self,
        connection: &mut Connection,
        number: u64,
        span: &Span,
        (reply, found): (DataReply, Found),
        looks: Option<(u64, &mut Grants<Vec<Held>>)>,
    ) -> Result<(), Fault> {
        let Some((start, grants)) = looks else {
            return self.send_bytes(connection, number, span, (&reply, &found)).await;
        };
        let grant = grants.next().filter(|_| self.is_seen(start));
        let (reply, seen, found) = show(found, reply.epoch(), grant);
        if !seen.is_empty() {
            let bytes = seen.iter().map(|held| held.bytes().len() as u64).sum();
            // Held from before the asker hears of them.
            grants.hold(Instant::now(), seen);
            add(&self.counters.fetched_bytes, bytes);
            add(&self.counters.shown_bytes, bytes);
            if let Some(ends) = found.device.zip(found.to) {
                self.replicator.links.were_fetched(ends, TransportKind::SharedMemory, bytes);
            }
            found.count(self, bytes);
        }
        self.send_bytes(connection, number, span, (&reply, &found)).await
    }

    /// Says whether one who sees the memory of this start sees this node's.
    fn is_seen(&self, start: u64) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.start() == start)
    }

    async fn send_bytes(
        &self,
        connection: &mut Connection,
        number: u64,
        span: &Span,
        (reply, found): (&DataReply, &Found),
    ) -> Result<(), Fault> {
        let payload: Vec<&[u8]> = found.blocks.iter().flatten().map(Held::bytes).collect();
        let bytes: u64 = payload.iter().map(|block| block.len() as u64).sum();
        let mut sending = span.part("send");
        sending.note("kvhive.bytes", bytes);
        self.paced(bytes, connection.send(Kind::DataReply, number, reply, &payload)).await?;
        add(&self.counters.fetched_bytes, bytes);
        if let Some(ends) = found.device.zip(found.to).filter(|_| bytes > 0) {
            self.replicator.links.were_fetched(ends, TransportKind::Tcp, bytes);
        }
        if bytes > 0 || !matches!(reply, DataReply::Looked { .. }) {
            found.count(self, bytes);
        }
        Ok(())
    }
}

/// Parts what was found into what an asker sees where it is, which is to be held for it, and what it is sent; without a name for what is
/// held it sees nothing.
fn show(mut found: Found, epoch: Epoch, grant: Option<u64>) -> (DataReply, Vec<Held>, Found) {
    let mut seen = Vec::new();
    let mut blocks = Vec::with_capacity(found.blocks.len());
    for place in &mut found.blocks {
        let Some(held) = place.take() else {
            blocks.push(Looked::Miss);
            continue;
        };
        let header = *held.header();
        match held.shared_place().filter(|_| grant.is_some() && held.is_worth_a_look()) {
            Some(at) => {
                blocks.push(Looked::At(header, SharedAt { slab: at.slab, at: at.at }));
                seen.push(held);
            }
            None => {
                blocks.push(Looked::Sent(header));
                *place = Some(held);
            }
        }
    }
    let grant = grant.filter(|_| !seen.is_empty()).unwrap_or(0);
    (DataReply::Looked { epoch, grant, blocks }, seen, found)
}
