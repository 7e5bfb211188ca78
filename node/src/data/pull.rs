//! Pull: blocks for another node's guests. Those on a GPU go to a GPU of that node, where a pair of both is the way for them; what that does not
//! carry is looked at or sent as for any fetch, in the same answer.

use crate::actors::core::DeviceMessage;
use crate::data::check;
use crate::data::content::OnGpu;
use crate::data::counters::{add, count};
use crate::data::fetch::Found;
use crate::data::plane::DataPlane;
use crate::data::receive::as_guest;
use crate::data::turns::Turn;
use crate::guards::Lent;
use crate::links::{Instead, Parcel};
use crate::passing::Passing;
use crate::view::Serving;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{
    About, Accept, Ack, DataReply, DataRequest, FetchRequest, MAX_BLOCKS_PER_TRANSFER, PullRequest, Run,
    StoreRequest, Stored,
};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{DeviceId, MemberId, Slot, WireError};
use kvhive_spans::Span;
use kvhive_wire::Peer;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What has not gone from GPU to GPU within this, and within half of the time that is left to the asker, is sent in the rest.
pub(super) const PUSH_LIMIT: Duration = Duration::from_secs(1);
/// With less than this nothing begins to go so: the slots of both GPUs may be waited for as long.
const LEAST_PUSH: Duration = Duration::from_millis(200);

/// Blocks on a GPU that a pull is for: where each is in it, and its slot.
struct Push {
    blocks: Vec<(usize, Slot, Arc<OnGpu>)>,
    bytes: u64,
}

impl DataPlane {
    /// Finds the blocks of a pull and holds them, but for those that have gone from GPU to GPU.
    pub(super) async fn pull(
        &self,
        span: &mut Span,
        (peer, until): (Peer, Instant),
        request: PullRequest,
    ) -> Result<Found, WireError> {
        if peer.role != Role::Node {
            let what = "have blocks sent to a GPU".to_owned();
            return Err(WireError::Forbidden { role: peer.role.to_string(), what });
        }
        let PullRequest { fetch, start, to } = request;
        let links = &self.replicator.links;
        let to = to.filter(|to| peer.is_of(to.member));
        let Some(to) = to.filter(|to| links.is_pair(fetch.device, *to)) else {
            let found = self.fetch(span, (peer.role, until), fetch, start).await?;
            // One without such a GPU is told of by its first device.
            let first = u32::try_from(peer.sender).ok().map(|member| DeviceId::new(MemberId(member), 0));
            return Ok(found.given_to(to.or(first)));
        };
        let begun = Instant::now();
        count(&self.counters.fetches);
        check::sizes(&fetch.runs, fetch.keys.len(), MAX_BLOCKS_PER_TRANSFER)?;
        let serving = self.view.serves(peer.role)?;
        check::admits(&serving, fetch.epoch, fetch.device, fetch.tenant, &fetch.runs)?;
        let mut turn = Some(self.turn(span, fetch.tenant, None, until).await?);
        let (tenant, keys) = (fetch.tenant, fetch.keys.clone());
        let read = |reply| DeviceMessage::Read { tenant, keys, reply };
        let mut lent = self.ask(span, fetch.device, read).await?;
        let most = self.passing(fetch.device).map_or(usize::MAX, Passing::all);
        let by = pushed_by(Instant::now(), until);
        let push = by.and_then(|by| Some((by, Push::out_of(&mut lent, &fetch, most)?)));
        let has_waited = push.is_some();
        if let Some((by, push)) = push {
            self.push(span, (&serving, to, by), (&fetch, &mut turn), push, &mut lent).await;
        }
        let found = self.found(span, (begun, until), fetch, (start, turn), lent).await?;
        Ok(found.given_to(Some(to)).after_others(has_waited))
    }

    /// Has blocks go from GPU to GPU, and puts back into `lent` those that did not.
    async fn push(
        &self,
        span: &Span,
        (serving, to, by): (&Serving, DeviceId, Instant),
        (fetch, turn): (&FetchRequest, &mut Option<Turn>),
        push: Push,
        lent: &mut [Option<Lent>],
    ) {
        let Push { blocks, bytes } = push;
        let store = StoreRequest {
            epoch: serving.map.epoch,
            device: to,
            tenant: fetch.tenant,
            ack: Ack::Primary,
            copy: true,
            moved: false,
            layout: None,
            about: About::default(),
            runs: blocks.iter().map(|(_, slot, _)| Run { slot: *slot, keys: 1 }).collect(),
            blocks: blocks.iter().map(|(_, _, block)| as_guest(*block.header())).collect(),
        };
        let request = DataRequest::Store(store);
        let on_gpu: Vec<Arc<OnGpu>> = blocks.iter().map(|(_, _, block)| block.clone()).collect();
        let source = fetch.device;
        let parcel = Parcel {
            serving,
            trace: span.context(),
            source,
            target: to,
            request: &request,
            on_gpu: &on_gpu,
            payload: &[],
            places: &[],
            deadline: by,
        };
        let mut taken = vec![false; blocks.len()];
        match self.replicator.links.carry_on_gpu(&parcel).await {
            Ok(DataReply::Stored { blocks: said, .. }) if said.len() == taken.len() => {
                if let Some(turn) = turn.take() {
                    turn.measured(bytes);
                }
                taken = said.iter().map(|one| matches!(one, Stored::Kept { .. })).collect();
            }
            // It has waited for another node: what is sent has a turn of its own.
            Ok(_) | Err(Instead(Some(_))) => *turn = None,
            Err(Instead(None)) => {}
        }
        let device = self.device(source);
        for ((at, slot, block), taken) in blocks.into_iter().zip(taken) {
            if !taken {
                lent[at] = block.take_far().map(Lent::Far);
                continue;
            }
            let bytes = block.header().payload_bytes;
            add(&self.counters.fetched_bytes, bytes);
            if let Some(device) = device {
                device.work.gave(slot, bytes);
                device.traffic.gave(bytes);
            }
        }
    }
}

/// Says by when blocks are to have gone from GPU to GPU; none where that leaves too little for it, or for what is sent after it.
fn pushed_by(now: Instant, until: Instant) -> Option<Instant> {
    let half = until.saturating_duration_since(now) / 2;
    (half >= LEAST_PUSH).then(|| now + half.min(PUSH_LIMIT))
}

impl Push {
    /// Takes those out of what was lent that lie on a GPU and that the asker can read as they are, so many at most; none where there are none.
    fn out_of(lent: &mut [Option<Lent>], fetch: &FetchRequest, most: usize) -> Option<Push> {
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        for ((at, place), slot) in lent.iter_mut().enumerate().zip(check::slots(&fetch.runs)) {
            if blocks.len() >= most {
                break;
            }
            let is_read = fetch.accept == Accept::Stored || header_of(place) == Some(Codec::Raw);
            let frame = match place {
                Some(Lent::Far(far)) if is_read && far.is_answered() => far.gpu_frame(),
                _ => None,
            };
            let Some(frame) = frame else { continue };
            let Some(Lent::Far(far)) = place.take() else { continue };
            bytes += far.bytes();
            blocks.push((at, slot, Arc::new(OnGpu::new(far, frame, None))));
        }
        (!blocks.is_empty()).then_some(Push { blocks, bytes })
    }
}

fn header_of(lent: &Option<Lent>) -> Option<Codec> {
    lent.as_ref().map(|lent| lent.header().codec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_time_is_left_for_the_other_way_however_late_it_begins() {
        let now = Instant::now();
        let given = |left: u64| {
            let by = pushed_by(now, now + Duration::from_millis(left))?;
            Some(by.duration_since(now).as_millis())
        };
        assert_eq!(given(2000), Some(1000));
        assert_eq!(given(5000), Some(1000));
        assert_eq!(given(900), Some(450), "its turn took more than a second");
        assert_eq!((given(400), given(399), given(0)), (Some(200), None, None));
        assert_eq!(pushed_by(now + Duration::from_secs(1), now), None, "it is over");
    }
}
