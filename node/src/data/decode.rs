//! Blocks for askers who want them raw: checked, decoded into memory of their own, under a header of their own, where that
//! may take its time.

use crate::book::Guest;
use crate::data::check;
use crate::data::counters::count;
use crate::data::plane::DataPlane;
use crate::guards::ReadGuard;
use kvhive_client::codec;
use kvhive_gpu::SharedPlace;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::share::LEAST_SHARED_BYTES;
use kvhive_protocol::{BlockHeader, Layout, WireError};
use kvhive_spans::Span;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// A fetch waits this long for room among the blocks being decoded; then it is told to come back.
pub(super) const DECODING_WAIT: Duration = Duration::from_millis(100);

/// A block that is held to be sent.
pub(super) enum Held {
    /// In its frame.
    Frame(ReadGuard),
    /// Decoded.
    Raw(BlockHeader, Vec<u8>),
    /// Another's, that was fetched from there.
    Guest(Arc<Guest>),
}

impl Held {
    pub(super) fn header(&self) -> &BlockHeader {
        match self {
            Held::Frame(guard) => guard.header(),
            Held::Raw(header, _) => header,
            Held::Guest(guest) => &guest.header,
        }
    }

    /// Returns where other processes see its bytes, if they can.
    pub(super) fn shared_place(&self) -> Option<SharedPlace> {
        match self {
            Held::Frame(guard) => guard.shared_place(),
            Held::Raw(..) | Held::Guest(_) => None,
        }
    }

    /// Says whether one who sees this node's memory is told where it is, rather than sent it.
    pub(super) fn is_worth_a_look(&self) -> bool {
        matches!(self, Held::Frame(guard) if is_worth_a_look(guard))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Held::Frame(guard) => guard.bytes(),
            Held::Raw(_, bytes) => bytes,
            Held::Guest(guest) => &guest.bytes,
        }
    }
}

/// Says whether one who sees this node's memory is told where a block is, if it wants it as it is.
pub(super) fn is_worth_a_look(guard: &ReadGuard) -> bool {
    guard.header().payload_bytes >= LEAST_SHARED_BYTES && guard.shared_place().is_some()
}

/// Why a block was not decoded.
enum Trouble {
    Damaged,
    Codec,
}

impl DataPlane {
    /// Decodes what is not raw; what cannot be is a miss. The permit is kept until the bytes are sent.
    pub(super) async fn decoded(
        &self,
        span: &Span,
        found: Vec<Option<ReadGuard>>,
        layout: Layout,
    ) -> Result<(Vec<Option<Held>>, Option<OwnedSemaphorePermit>), WireError> {
        let bytes = check::layout_bytes(&layout)?;
        let mut room = self.most_decoded().max(bytes);
        let mut held = Vec::with_capacity(found.len());
        let mut encoded = Vec::new();
        for (at, guard) in found.into_iter().enumerate() {
            held.push(match guard {
                Some(guard) if guard.header().codec == Codec::Raw => Some(Held::Frame(guard)),
                Some(guard) if !self.view.layouts.learn(&layout, guard.header().fingerprint) => {
                    count(&self.counters.undecoded_blocks);
                    None
                }
                // What does not fit into one answer is a miss, as elsewhere.
                Some(guard) if room >= bytes => {
                    room -= bytes;
                    encoded.push((at, guard));
                    None
                }
                _ => None,
            });
        }
        if encoded.is_empty() {
            return Ok((held, None));
        }
        let mut decoding = span.part("decode");
        decoding.note("kvhive.blocks", encoded.len());
        let permits = self.permits(bytes.saturating_mul(encoded.len() as u64));
        let permit = timeout(DECODING_WAIT, self.decoding.clone().acquire_many_owned(permits)).await;
        let Ok(Ok(permit)) = permit else {
            return Err(WireError::busy("as many blocks as allowed are being decoded"));
        };
        let decoded = tokio::task::spawn_blocking(move || {
            let decode = |(at, guard): (usize, ReadGuard)| {
                let decoded = decode(&guard, &layout, bytes);
                if decoded.is_err() {
                    // As it is, nobody ever gets it, and none could be stored in its place.
                    guard.report_lost();
                }
                (at, decoded)
            };
            encoded.into_iter().map(decode).collect::<Vec<_>>()
        });
        for (at, decoded) in decoded.await.unwrap_or_default() {
            match decoded {
                Ok(block) => {
                    count(&self.counters.decoded_blocks);
                    held[at] = Some(block);
                }
                Err(Trouble::Damaged) => count(&self.counters.corrupt_blocks),
                Err(Trouble::Codec) => count(&self.counters.undecoded_blocks),
            }
        }
        Ok((held, Some(permit)))
    }
}

fn decode(guard: &ReadGuard, layout: &Layout, bytes: u64) -> Result<Held, Trouble> {
    let header = guard.header();
    // The new header vouches for the raw bytes: they must come from those that were stored.
    header.check_bytes(guard.bytes()).map_err(|_| Trouble::Damaged)?;
    let mut raw = vec![0; bytes as usize];
    codec::decode(header.codec, layout, guard.bytes(), &mut raw).map_err(|_| Trouble::Codec)?;
    let header = BlockHeader { codec: Codec::Raw, payload_bytes: bytes, digest: digest(&raw), ..*header };
    Ok(Held::Raw(header, raw))
}
