//! Blocks that come and go over stages which clients of this host lend to a GPU: a store whose digests are taken here, and a fetch that sends
//! nothing. Where something of it does not work, the asker goes by the connection.

use crate::actors::core::{DeviceMessage, Reserved};
use crate::data::check;
use crate::data::counters::{add, count};
use crate::data::decode::DECODING_WAIT;
use crate::data::plane::DataPlane;
use crate::data::store::{INFLIGHT_WAIT, Taken, landed};
use crate::far::Unsound;
use crate::ferrying::{Put, Putting, Taking, Took};
use crate::guards::{Lent, UnderWay};
use crate::share::Staged;
use kvhive_client::codec;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, DataReply, Fetched, MAX_BLOCKS_PER_TRANSFER, Refusal};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::share::Pass;
use kvhive_protocol::stage::{StagedFetch, StagedStore};
use kvhive_protocol::{BlockHeader, DeviceId, Layout, WireError};
use kvhive_spans::Span;
use kvhive_wire::Peer;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

impl DataPlane {
    /// Serves a store over a stage: takes a frame for each block, has the GPU fill it and take its digest, and goes on as a store does.
    pub(super) async fn gather(
        &self,
        (peer, until): (Peer, Instant),
        span: &Span,
        request: StagedStore,
    ) -> Result<DataReply, WireError> {
        let StagedStore { stage, at, store } = request;
        let layout = store.layout.filter(|_| !store.copy && !store.moved);
        let layout = layout.ok_or_else(|| {
            WireError::malformed(format_args!("only blocks of a layout are taken from a stage"))
        })?;
        let device = store.device;
        let exact = |header: &BlockHeader| codec::stored_bytes(header.codec, &layout).is_some();
        if let Some(block) = store.blocks.iter().find(|block| !exact(&block.header)) {
            let codec = block.header.codec.name();
            return Err(WireError::malformed(format_args!("no GPU makes blocks that are stored as {codec}")));
        }
        count(&self.counters.stores);
        let announced = store.blocks.iter().map(|block| block.header.payload_bytes);
        let bytes = announced.fold(0, u64::saturating_add);
        let mut task = self.check_store(store, bytes, peer)?.traced(span.context());
        let staged = self.staged(device, &stage, &at, task.len(), &layout)?;
        // Frames in the host's memory are encoded by way of as much of it as their blocks have raw.
        let raw = check::layout_bytes(&layout)?;
        let most = bytes.max(raw.saturating_mul(at.len() as u64));
        let turn = self.device_turn(device, task.tenant(), most, until).await;
        let turn = turn.ok_or_else(|| self.late(task.tenant()))?;
        let room = self.inflight.clone().acquire_many_owned(self.permits(most));
        let Ok(Ok(room)) = timeout(INFLIGHT_WAIT, room).await else {
            return Err(WireError::busy("as many payload bytes as allowed are under way"));
        };
        let reserved = self.reserve(span, &task, None).await?;
        let here = self.device(device);
        if let Some(here) = here {
            here.work.stored();
        }
        let (mut taking, mut under_way) = (Taking::new(staged, layout), UnderWay::default());
        let mut receiving = span.part("gather and digest");
        receiving.note("kvhive.bytes", bytes);
        let mut taken: Vec<Option<Taken>> = Vec::with_capacity(reserved.len());
        for (number, (one, at)) in reserved.into_iter().zip(&at).enumerate() {
            taken.push(match one {
                Reserved::Write(guard) => {
                    under_way.add(&guard);
                    taking.add(number, guard, *at);
                    None
                }
                Reserved::Present(lent) => Some(self.look_at(lent, &mut taking, number).await),
                Reserved::Refused(refusal) => Some(Taken::Refused(refusal)),
            });
        }
        let limit = taking.limit();
        let room = Arc::new(room);
        let held = room.clone();
        let take = move || {
            let took = taking.run();
            drop(held);
            took
        };
        let took = timeout(limit, spawn_blocking(take)).await;
        if took.is_ok() {
            under_way.end();
        } else {
            drop(under_way);
        }
        let Took { written, present } = self.heeded(took)?;
        let mut fresh = 0;
        for (number, guard, digest) in written {
            let bytes = guard.header_bytes();
            task.learn_digest(number, digest);
            taken[number] = guard.verify_as(digest).map(Taken::Landing);
            fresh += bytes;
            if let Some(here) = here {
                here.traffic.stored(bytes);
            }
        }
        for (number, lent, is_sound) in present {
            taken[number] = Some(match is_sound {
                true => Taken::Present(Some(Lent::Far(lent))),
                false => {
                    count(&self.counters.corrupt_blocks);
                    Taken::Refused(Refusal::NoRoom)
                }
            });
        }
        add(&self.counters.stored_bytes, fresh);
        add(&self.counters.gathered_bytes, fresh);
        let taken = taken.into_iter().map(|one| one.unwrap_or(Taken::Refused(Refusal::NoRoom))).collect();
        let taken = landed(taken).await;
        drop((room, turn));
        drop(receiving);
        self.settle(span, task, taken).await
    }

    /// Looks at a block that is here already, as a store does; one on the GPU is looked at there, with what is taken.
    async fn look_at(&self, lent: Option<Lent>, taking: &mut Taking, number: usize) -> Taken {
        let checked = match lent {
            Some(Lent::Far(far)) if far.gpu_frame().is_some() => {
                taking.look_at(number, far);
                return Taken::Refused(Refusal::NoRoom);
            }
            Some(Lent::Far(far)) => far.check().await.map(|()| Some(Lent::Far(far))),
            Some(Lent::Guard(guard)) => guard.check().map(|()| Some(Lent::Guard(guard))),
            None => Ok(None),
        };
        checked.map_or_else(
            |why| {
                if why == Unsound::Damaged {
                    count(&self.counters.corrupt_blocks);
                }
                Taken::Refused(Refusal::NoRoom)
            },
            Taken::Present,
        )
    }

    /// Serves a fetch over a stage: has the GPU put there what is found, if it is what its header says. What cannot go so is a miss.
    pub(super) async fn scatter(
        &self,
        span: &mut Span,
        (role, until): (Role, Instant),
        request: StagedFetch,
    ) -> Result<DataReply, WireError> {
        let begun = Instant::now();
        let StagedFetch { stage, at, fetch } = request;
        let Accept::Raw(layout) = fetch.accept else {
            return Err(WireError::malformed(format_args!("only raw blocks are put on a stage")));
        };
        count(&self.counters.fetches);
        check::sizes(&fetch.runs, fetch.keys.len(), MAX_BLOCKS_PER_TRANSFER)?;
        let serving = self.view.serves(role)?;
        check::admits(&serving, fetch.epoch, fetch.device, fetch.tenant, &fetch.runs)?;
        let (device, tenant, keys, runs) = (fetch.device, fetch.tenant, fetch.keys, fetch.runs);
        let staged = self.staged(device, &stage, &at, keys.len(), &layout)?;
        let mut blocks = self.ask(span, device, |reply| DeviceMessage::Read { tenant, keys, reply }).await?;
        let (mut putting, mut is_any_near) = (Putting::new(staged, layout), false);
        for ((number, place), at) in blocks.iter_mut().enumerate().zip(&at) {
            match place.take_if(|lent| !self.fits(lent.header(), &layout)) {
                Some(Lent::Far(far)) => far.give_up(),
                Some(Lent::Guard(_)) | None => {}
            }
            // Who decodes losslessly is the processor.
            let is_near = |lent: &mut Lent| match lent {
                Lent::Far(far) => far.gpu_frame().is_some() && far.header().codec != Codec::Lossless,
                Lent::Guard(_) => false,
            };
            if let Some(Lent::Far(far)) = place.take_if(is_near) {
                putting.add_far(number, far, *at);
                is_any_near = true;
            }
        }
        let brought = self.bring(span, device, (tenant, until), blocks).await;
        if brought.is_late() && !is_any_near {
            return Err(self.late(tenant));
        }
        let mut decoded: u64 = 0;
        for ((number, one), at) in brought.blocks.into_iter().enumerate().zip(&at) {
            if let Some(Ok(guard)) = one {
                decoded += u64::from(guard.header().codec != Codec::Raw);
                putting.add_near(number, guard, *at);
            }
        }
        let raw = check::layout_bytes(&layout)?;
        let wanted = raw.saturating_mul(at.len() as u64);
        // Before there is room for what is decoded, which others want who have their turn.
        let turn = self.device_turn(device, tenant, wanted, until).await;
        let _turn = turn.ok_or_else(|| self.late(tenant))?;
        let permits = self.permits(raw.saturating_mul(decoded));
        let permit = timeout(DECODING_WAIT, self.decoding.clone().acquire_many_owned(permits)).await;
        let Ok(Ok(permit)) = permit else {
            return Err(WireError::busy("as many blocks as allowed are being decoded"));
        };
        let (mut scattering, limit) = (span.part("scatter"), putting.limit());
        let put = move || {
            let put = putting.run();
            drop(permit);
            put
        };
        let put = timeout(limit, spawn_blocking(put)).await;
        let Put { there, damaged } = self.heeded(put)?;
        add(&self.counters.corrupt_blocks, damaged);
        let mut found = vec![Fetched::Miss; at.len()];
        let mut bytes = 0;
        let serving = self.view.serves(role)?;
        for (number, header) in there {
            let era = serving.map.tenants.get(&header.tenant).map(|tenant| tenant.era);
            if era != Some(header.era) {
                return Err(WireError::StaleEpoch { epoch: serving.map.epoch });
            }
            bytes += header.payload_bytes;
            found[number] = Fetched::Hit(header);
        }
        scattering.note("kvhive.bytes", bytes);
        drop(scattering);
        if let Some(device) = self.device(device) {
            device.work.asked(runs.iter().map(|run| run.slot));
            for (one, slot) in found.iter().zip(check::slots(&runs)) {
                if let Fetched::Hit(header) = one {
                    device.work.gave(slot, header.payload_bytes);
                }
            }
            device.traffic.fetched(bytes, begun.elapsed());
        }
        add(&self.counters.fetched_bytes, bytes);
        add(&self.counters.scattered_bytes, bytes);
        Ok(DataReply::Fetched { epoch: serving.map.epoch, blocks: found })
    }

    /// Says whether a block is one of a layout, as long as it should be.
    fn fits(&self, header: &BlockHeader, layout: &Layout) -> bool {
        let is_long_enough = match codec::stored_bytes(header.codec, layout) {
            Some(exact) => header.payload_bytes == exact,
            None => true,
        };
        is_long_enough && self.view.layouts.is_of(layout, header.fingerprint)
    }

    /// Finds a stage for so many blocks of a layout, all of which have their places on it.
    fn staged(
        &self,
        device: DeviceId,
        stage: &Pass,
        at: &[u64],
        blocks: usize,
        layout: &Layout,
    ) -> Result<Staged, WireError> {
        let bytes = check::layout_bytes(layout)?;
        let staged = self.sharing.as_ref().and_then(|sharing| sharing.stage(device.index, stage));
        let staged = staged.ok_or_else(|| not_carried("no such stage is lent"))?;
        // Each has its own.
        let mut seen = BTreeSet::new();
        let is_there =
            |at: &u64| at.is_multiple_of(bytes) && staged.ferry().has(*at, bytes) && seen.insert(*at);
        if at.len() != blocks || !at.iter().all(is_there) {
            return Err(WireError::malformed(format_args!(
                "{blocks} blocks have not all a place on the stage"
            )));
        }
        Ok(staged)
    }

    /// Takes in what a GPU did in time, or did not.
    fn heeded<T, L, J: ToString>(
        &self,
        ended: Result<Result<Result<T, String>, J>, L>,
    ) -> Result<T, WireError> {
        let ended = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the GPU was not done in time".to_owned()),
        };
        ended.map_err(|why| {
            count(&self.counters.stage_failures);
            not_carried(why)
        })
    }
}

fn not_carried(why: impl ToString) -> WireError {
    WireError::NotCarried { why: why.to_string() }
}
