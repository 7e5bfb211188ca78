//! One request to one node: how large its answer may be, what a failure means and what a repeat needs. Which blocks are
//! asked of whom is `route`'s, how it travels is `line`'s.

use crate::client::Shared;
use crate::stats::count;
use kvhive_protocol::data::DataRequest;
use kvhive_protocol::frame::{FrameLimits, MAX_PAYLOAD_BYTES};
use kvhive_protocol::names::{MAX_BYTES_LISTED, MAX_NAME_BYTES, MAX_NAMES_LISTED, NamesAsk};
use kvhive_protocol::recall::{MAX_MISSED, MAX_RECALLED};
use kvhive_protocol::share::LookRequest;
use kvhive_protocol::strategy::MAX_REPORTS;
use kvhive_protocol::trace::{MAX_LISTED, MAX_SPANS, TraceAsk};
use kvhive_protocol::watch::{MAX_BLOCKS_PER_PAGE, MAX_EVENTS_PER_ANSWER};
use kvhive_protocol::{ClusterMap, Epoch, WireError};
use kvhive_wire::Fault;

/// Message bytes that every answer may have: a refusal with its explanation fits.
const ANSWER_BYTES: usize = 4096;
/// Message bytes of one block's answer to a fetch: its header, encoded, what tells a hit from a miss, and where it is to be seen.
const FETCHED_BYTES: usize = 128;
/// Message bytes of one block's answer to a store, or of one run's to a match.
const VERDICT_BYTES: usize = 16;

/// Message bytes of one report of a strategy: names, figures, and an estimate for each way to rank.
const REPORT_BYTES: usize = 512;
/// Message bytes of what is known of one block: of one that is here or has gone, whichever takes more.
const EXPLAINED_BYTES: usize = 64;
/// Message bytes of one block that was missing: its key, and what was known of it.
const RECALLED_BYTES: usize = EXPLAINED_BYTES + 32;
/// Message bytes of one event, or of one block of a page: its key, and numbers.
const WATCHED_BYTES: usize = 80;
/// Message bytes of what became of one name, or of one that is listed without itself.
const NAMED_BYTES: usize = 48;
/// Message bytes of one span, its texts as long as they usually are.
const SPAN_BYTES: usize = 1024;

/// What the repeat of a failed request needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// A map of at least this epoch.
    Refresh(Epoch),
    /// Time.
    Wait,
    /// Another replica, or a newer map and time.
    Elsewhere,
    /// Another replica, if at all: this member would answer no better later.
    GiveUp,
    /// Another replica, if at all: there is more to do than can be done in time, and asking anybody else would be more still.
    Spare,
}

impl Verdict {
    /// Says whether asking the same member once more would do no good.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Verdict::GiveUp | Verdict::Spare)
    }
}

impl Shared {
    /// Counts why a request that was made by `map` is repeated, and says what the repeat needs.
    pub(crate) fn judge(&self, map: &ClusterMap, fault: &Fault) -> Verdict {
        match fault {
            Fault::Refused(WireError::StaleEpoch { epoch }) => {
                count(&self.counters.stale_epochs, 1);
                // Whichever map is older, its owner refreshes. A member learns at its next heartbeat.
                if *epoch > map.epoch { Verdict::Refresh(*epoch) } else { Verdict::Wait }
            }
            Fault::Refused(WireError::WrongDevice { .. }) => {
                count(&self.counters.stale_epochs, 1);
                Verdict::Refresh(map.epoch.next())
            }
            Fault::Refused(WireError::Busy { .. }) => {
                count(&self.counters.busy, 1);
                if self.waits().repeat() { Verdict::Wait } else { Verdict::Spare }
            }
            Fault::Overloaded | Fault::Refused(WireError::Deadline) => {
                count(&self.counters.shed, 1);
                Verdict::Spare
            }
            Fault::Refused(WireError::NoLease) | Fault::Io(_) | Fault::Closed | Fault::Timeout(_) => {
                count(&self.counters.failovers, 1);
                Verdict::Elsewhere
            }
            _ => Verdict::GiveUp,
        }
    }
}

/// Returns how large an answer to `request` may be. What is larger is refused by its frame's header, before it is read.
pub(crate) fn answer_limits(request: &DataRequest, block_bytes: u64) -> FrameLimits {
    let (message, payload) = match request {
        DataRequest::Match(request) => (request.runs.len().saturating_mul(VERDICT_BYTES), 0),
        DataRequest::Fetch(request) | DataRequest::Look(LookRequest { fetch: request, .. }) => {
            let blocks = request.keys.len();
            (blocks.saturating_mul(FETCHED_BYTES), block_bytes.saturating_mul(blocks as u64))
        }
        DataRequest::Guest(request) => {
            let blocks = request.fetch.keys.len();
            (blocks.saturating_mul(FETCHED_BYTES), block_bytes.saturating_mul(blocks as u64))
        }
        DataRequest::Pull(request) => {
            let blocks = request.fetch.keys.len();
            (blocks.saturating_mul(FETCHED_BYTES), block_bytes.saturating_mul(blocks as u64))
        }
        DataRequest::Store(request) => (request.blocks.len().saturating_mul(VERDICT_BYTES), 0),
        DataRequest::Carry(request) => (request.store.blocks.len().saturating_mul(VERDICT_BYTES), 0),
        DataRequest::Gather(request) => (request.store.blocks.len().saturating_mul(VERDICT_BYTES), 0),
        DataRequest::Scatter(request) => (request.fetch.keys.len().saturating_mul(FETCHED_BYTES), 0),
        DataRequest::Receive(request) | DataRequest::Packed(request) => {
            (request.store.blocks.len().saturating_mul(VERDICT_BYTES), 0)
        }
        DataRequest::Release(_)
        | DataRequest::Pair(_)
        | DataRequest::Share(_)
        | DataRequest::Done(_)
        | DataRequest::Lend(_) => (0, 0),
        DataRequest::Survey(request) => (request.runs.len().saturating_mul(VERDICT_BYTES), 0),
        DataRequest::Explain(request) => (request.keys.len().saturating_mul(EXPLAINED_BYTES), 0),
        DataRequest::Trace(request) => {
            let most = match request.ask {
                TraceAsk::One(_) => MAX_SPANS,
                TraceAsk::Newest(limit) => MAX_LISTED.min(limit as usize),
            };
            (most.saturating_mul(SPAN_BYTES), 0)
        }
        DataRequest::Recall(_) => {
            let part = MAX_MISSED.saturating_mul(RECALLED_BYTES).saturating_add(SPAN_BYTES);
            (MAX_RECALLED.saturating_mul(part), 0)
        }
        DataRequest::Names(request) => match &request.ask {
            NamesAsk::Do(ops) => (ops.len().saturating_mul(NAMED_BYTES), 0),
            NamesAsk::List { limit, .. } => {
                let most = MAX_NAMES_LISTED.min(*limit as usize).saturating_mul(MAX_NAME_BYTES + NAMED_BYTES);
                // One name more than the bytes that end a list.
                (most.min(MAX_BYTES_LISTED + (MAX_NAMES_LISTED + 1) * NAMED_BYTES + MAX_NAME_BYTES), 0)
            }
            NamesAsk::Count => (0, 0),
        },
        DataRequest::Strategies(_) => (MAX_REPORTS.saturating_mul(REPORT_BYTES), 0),
        DataRequest::Watch(_) => {
            (MAX_EVENTS_PER_ANSWER.max(MAX_BLOCKS_PER_PAGE).saturating_mul(WATCHED_BYTES), 0)
        }
    };
    let open = FrameLimits::OPEN;
    let message = u32::try_from(message.saturating_add(ANSWER_BYTES)).unwrap_or(u32::MAX);
    let payload = u32::try_from(payload).unwrap_or(u32::MAX);
    FrameLimits {
        message_bytes: message.min(open.message_bytes),
        payload_bytes: payload.min(MAX_PAYLOAD_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::data::{About, StoreBlock, StoreRequest};
    use kvhive_protocol::data::{
        Accept, Ack, DataReply, FetchRequest, Fetched, MatchRequest, Refusal, Run, Stored,
    };
    use kvhive_protocol::names::{
        ListedName, Meaning, NameAnswer, NameOp, NameVerb, NamesAnswer, NamesRequest, Target,
    };
    use kvhive_protocol::{
        BlockHeader, BlockKey, DeviceId, Era, KeyList, LayoutFingerprint, MemberId, Slot, TenantId, codec,
    };

    const BLOCKS: usize = 512;
    const BLOCK_BYTES: u64 = 1 << 16;

    fn header() -> BlockHeader {
        BlockHeader {
            key: BlockKey::from_bytes([255; 32]),
            fingerprint: LayoutFingerprint([255; 16]),
            tenant: TenantId(u32::MAX),
            era: Era(u64::MAX),
            depth: u32::MAX,
            codec: Codec::Raw,
            payload_bytes: BLOCK_BYTES,
            digest: u64::MAX,
        }
    }

    /// Each kind of request for many blocks, and its largest honest answer.
    fn largest() -> [(DataRequest, DataReply); 5] {
        let (epoch, device, tenant) = (Epoch(u64::MAX), DeviceId::new(MemberId(1), 0), TenantId(1));
        let runs = vec![Run { slot: Slot(1), keys: 1 }; BLOCKS];
        let keys: KeyList = std::iter::repeat_n(header().key, BLOCKS).collect();
        let block = StoreBlock { header: header(), parent: BlockKey::NONE };
        let names = |ask| DataRequest::Names(NamesRequest { epoch, device, tenant, ask });
        let named = |answer| DataReply::Named { epoch, answer };
        let look = NameOp { key: header().key, verb: NameVerb::Look };
        let target = Target { nonce: u64::MAX, bytes: u64::MAX };
        let meant = NameAnswer { done: true, before: Some(Meaning { target, left_ms: Some(u64::MAX) }) };
        let listed = ListedName { position: u64::MAX, name: vec![255; MAX_NAME_BYTES] };
        [
            (
                DataRequest::Match(MatchRequest {
                    epoch,
                    device,
                    tenant,
                    hold_ms: 0,
                    runs: runs.clone(),
                    keys: keys.clone(),
                }),
                DataReply::Matched { epoch, covered: vec![u32::MAX; BLOCKS] },
            ),
            (
                DataRequest::Fetch(FetchRequest {
                    epoch,
                    device,
                    tenant,
                    runs: runs.clone(),
                    keys,
                    accept: Accept::Stored,
                }),
                DataReply::Fetched { epoch, blocks: vec![Fetched::Hit(header()); BLOCKS] },
            ),
            (
                DataRequest::Store(StoreRequest {
                    epoch,
                    device,
                    tenant,
                    ack: Ack::All,
                    copy: false,
                    moved: false,
                    layout: None,
                    about: About::default(),
                    runs,
                    blocks: vec![block; BLOCKS],
                }),
                DataReply::Stored { epoch, blocks: vec![Stored::Refused(Refusal::WrongEra); BLOCKS] },
            ),
            (names(NamesAsk::Do(vec![look; 256])), named(NamesAnswer::Done(vec![meant; 256]))),
            (
                names(NamesAsk::List { from: 0, limit: 3 }),
                named(NamesAnswer::Listed { names: vec![listed; 3], next: Some(u64::MAX) }),
            ),
        ]
    }

    #[test]
    fn the_largest_honest_answer_passes_and_not_much_more() {
        for (request, reply) in largest() {
            let bytes = codec::encode(&reply).expect("within the codec's limit").len();
            let limits = answer_limits(&request, BLOCK_BYTES);
            assert!(bytes <= limits.message_bytes as usize, "{bytes} of {limits:?}");
            assert!(limits.message_bytes as usize <= 4 * bytes + ANSWER_BYTES, "{bytes} of {limits:?}");
            let payload = match request {
                DataRequest::Fetch(_) => BLOCKS as u32 * BLOCK_BYTES as u32,
                _ => 0,
            };
            assert_eq!(limits.payload_bytes, payload);
        }
    }

    #[test]
    fn the_longest_refusal_passes() {
        let long = "x".repeat(10_000);
        let error = WireError::malformed(format_args!("{long}"));
        assert!(codec::encode(&error).expect("within the codec's limit").len() <= ANSWER_BYTES);
    }
}
