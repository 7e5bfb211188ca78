//! What a traced request says of itself: whose it is, where it goes, what came of it. What is not traced is not looked at.

use crate::data::plane::DataPlane;
use kvhive_protocol::data::{DataReply, DataRequest, Fetched, Run, Stored};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::share::LookRequest;
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{DeviceId, TenantId, TraceContext};
use kvhive_spans::Span;
use kvhive_wire::Peer;

/// Begins the span of a request, if it is traced by whoever asks or is a client's and sampled here.
pub(super) fn begin(
    plane: &DataPlane,
    peer: Peer,
    from: Option<TraceContext>,
    request: &DataRequest,
) -> Span {
    if !plane.tracer.is_on() {
        return Span::NONE;
    }
    let Some(about) = About::of(request) else {
        // What is asked about the cache is traced where somebody wants it so, and never sampled.
        return plane.tracer.serve(from, request.name());
    };
    let mut span = match from {
        Some(_) => plane.tracer.serve(from, request.name()),
        // What a node asks of another is a part of what it was asked itself.
        None if peer.role == Role::Client => plane.tracer.draw(SpanKind::Served, request.name()),
        None => Span::NONE,
    };
    if span.is_on() {
        about.tell(plane, peer, &mut span);
    }
    span
}

/// What a request for blocks is about.
struct About<'a> {
    device: DeviceId,
    tenant: TenantId,
    runs: &'a [Run],
    blocks: usize,
}

impl About<'_> {
    fn of(request: &DataRequest) -> Option<About<'_>> {
        let (device, tenant, runs, blocks) = match request {
            DataRequest::Match(ask) => (ask.device, ask.tenant, &ask.runs, ask.keys.len()),
            DataRequest::Fetch(ask) | DataRequest::Look(LookRequest { fetch: ask, .. }) => {
                (ask.device, ask.tenant, &ask.runs, ask.keys.len())
            }
            DataRequest::Carry(ask) => {
                (ask.store.device, ask.store.tenant, &ask.store.runs, ask.store.blocks.len())
            }
            DataRequest::Store(ask) => (ask.device, ask.tenant, &ask.runs, ask.blocks.len()),
            DataRequest::Receive(ask) | DataRequest::Packed(ask) => {
                (ask.store.device, ask.store.tenant, &ask.store.runs, ask.store.blocks.len())
            }
            DataRequest::Gather(ask) => {
                (ask.store.device, ask.store.tenant, &ask.store.runs, ask.store.blocks.len())
            }
            DataRequest::Scatter(ask) => {
                (ask.fetch.device, ask.fetch.tenant, &ask.fetch.runs, ask.fetch.keys.len())
            }
            DataRequest::Guest(ask) => {
                (ask.fetch.device, ask.fetch.tenant, &ask.fetch.runs, ask.fetch.keys.len())
            }
            DataRequest::Pull(ask) => {
                (ask.fetch.device, ask.fetch.tenant, &ask.fetch.runs, ask.fetch.keys.len())
            }
            DataRequest::Release(ask) => (ask.device, ask.tenant, &ask.runs, ask.keys.len()),
            DataRequest::Survey(ask) => (ask.device, ask.tenant, &ask.runs, ask.keys.len()),
            _ => return None,
        };
        Some(About { device, tenant, runs, blocks })
    }

    fn tell(&self, plane: &DataPlane, peer: Peer, span: &mut Span) {
        let map = plane.view.serving().map(|serving| serving.map);
        let tenant = map.as_ref().and_then(|map| map.tenants.get(&self.tenant));
        match tenant {
            Some(tenant) => span.note("kvhive.tenant", tenant.name.as_str()),
            None => span.note("kvhive.tenant", self.tenant.to_string()),
        }
        span.note("kvhive.device", self.device);
        if let Some(run) = self.runs.first() {
            span.note("kvhive.slot", u64::from(run.slot.0));
        }
        span.note("kvhive.runs", self.runs.len());
        span.note("kvhive.blocks", self.blocks);
        span.note("kvhive.asker", peer.role.to_string());
    }
}

/// Notes what a request was answered.
pub(super) fn answered(span: &mut Span, reply: &DataReply) {
    if !span.is_on() {
        return;
    }
    match reply {
        DataReply::Matched { covered, .. } => {
            span.note("kvhive.covered", covered.iter().map(|covered| u64::from(*covered)).sum::<u64>());
        }
        DataReply::Fetched { blocks, .. } => {
            let hits = blocks.iter().filter_map(|block| match block {
                Fetched::Hit(header) => Some(header.payload_bytes),
                Fetched::Miss => None,
            });
            span.note("kvhive.hits", hits.clone().count());
            span.note("kvhive.bytes", hits.sum::<u64>());
        }
        DataReply::Stored { blocks, .. } => {
            let kept = blocks.iter().filter(|block| matches!(block, Stored::Kept { .. }));
            let fresh = kept.clone().filter(|block| matches!(block, Stored::Kept { already: false, .. }));
            span.note("kvhive.kept", kept.count());
            span.note("kvhive.new", fresh.count());
            if let Some(Stored::Refused(why)) =
                blocks.iter().find(|block| matches!(block, Stored::Refused(_)))
            {
                span.note("kvhive.refused", format!("{why:?}"));
            }
        }
        DataReply::Released { blocks, .. } => span.note("kvhive.here", u64::from(*blocks)),
        DataReply::Surveyed { runs, .. } => {
            span.note("kvhive.covered", runs.iter().map(|run| u64::from(run.covered)).sum::<u64>());
        }
        _ => {}
    }
}
