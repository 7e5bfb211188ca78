//! Requests that came with a trace context, and what of them was missing and why: remembered for a while, whether or not anything is traced
//! here. Whoever asks without a context is not looked at, and costs nothing.

use crate::actors::core::DeviceMessage;
use crate::data::check;
use crate::data::plane::DataPlane;
use kvhive_protocol::data::{DataReply, DataRequest, Fetched, Run};
use kvhive_protocol::recall::{MAX_MISSED, MAX_RECALLED, Recalled};
use kvhive_protocol::share::LookRequest;
use kvhive_protocol::{BlockKey, DeviceId, KeyList, Moment, Slot, TenantId, TraceId};
use kvhive_spans::Span;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Parts of requests that a node remembers: those that came last.
const MAX_PARTS: usize = 4096;
/// Blocks that were missing from all of them together; a few MiB.
const MAX_BLOCKS: usize = 32_768;

/// What a node remembers of requests.
#[derive(Default)]
pub(crate) struct Recall(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    parts: VecDeque<(TraceId, Moment, Recalled)>,
    blocks: usize,
}

impl Recall {
    /// Returns what is remembered of a request, oldest first.
    pub(super) fn of(&self, now: Moment, trace: TraceId) -> Vec<Recalled> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = kept.parts.iter().filter(|(of, _, _)| *of == trace);
        let told = of_it.map(|(_, at, part)| {
            let ago_ms = u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX);
            Recalled { ago_ms, ..part.clone() }
        });
        told.take(MAX_RECALLED).collect()
    }

    fn keep(&self, trace: TraceId, now: Moment, part: Recalled) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.blocks += part.missed.len();
        kept.parts.push_back((trace, now, part));
        while kept.parts.len() > MAX_PARTS || kept.blocks > MAX_BLOCKS {
            let Some((_, _, oldest)) = kept.parts.pop_front() else { break };
            kept.blocks -= oldest.missed.len();
        }
    }
}

/// A request under way that is to be remembered.
pub(super) struct Noted {
    trace: TraceId,
    device: DeviceId,
    tenant: TenantId,
    fetches: bool,
    runs: Vec<Run>,
    keys: KeyList,
    /// What was answered: which keys were there.
    hits: Option<Vec<bool>>,
}

impl Noted {
    /// Notes a request for blocks that has a trace.
    pub(super) fn of(trace: Option<TraceId>, request: &DataRequest) -> Option<Noted> {
        let trace = trace?;
        let (device, tenant, fetches, runs, keys) = match request {
            DataRequest::Match(ask) => (ask.device, ask.tenant, false, &ask.runs, &ask.keys),
            DataRequest::Fetch(ask) | DataRequest::Look(LookRequest { fetch: ask, .. }) => {
                (ask.device, ask.tenant, true, &ask.runs, &ask.keys)
            }
            _ => return None,
        };
        let (runs, keys) = (runs.clone(), keys.clone());
        Some(Noted { trace, device, tenant, fetches, runs, keys, hits: None })
    }

    /// Notes what it was answered.
    pub(super) fn answered(&mut self, reply: &DataReply) {
        self.hits = match reply {
            DataReply::Matched { covered, .. } => Some(within(&self.runs, covered)),
            DataReply::Fetched { blocks, .. } => {
                Some(blocks.iter().map(|block| matches!(block, Fetched::Hit(_))).collect())
            }
            _ => None,
        };
    }

    /// Asks what is known of those that were missing, and remembers it. One that was refused is not remembered: it is asked again
    /// elsewhere, or its asker was told.
    pub(super) async fn remember(self, plane: &DataPlane) {
        let Some(hits) = &self.hits else { return };
        let (missing, runs) = missing(&self.runs, &self.keys, hits);
        let keys: KeyList = missing.iter().collect();
        let (device, tenant) = (self.device, self.tenant);
        let known = match missing.is_empty() {
            true => Ok(Vec::new()),
            false => {
                let ask = |reply| DeviceMessage::Explain { tenant, runs, keys, reply };
                plane.ask(&Span::NONE, device, ask).await
            }
        };
        let Ok(known) = known else { return };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let part = Recalled {
            device,
            tenant,
            fetches: self.fetches,
            ago_ms: 0,
            blocks: count(hits.len()),
            hits: count(hits.iter().filter(|hit| **hit).count()),
            missed: missing.into_iter().zip(known).collect(),
        };
        plane.recall.keep(self.trace, plane.view.now(), part);
    }
}

/// Says of each key whether its run is covered so far.
fn within(runs: &[Run], covered: &[u32]) -> Vec<bool> {
    runs.iter().zip(covered).flat_map(|(run, covered)| (0..run.keys).map(move |at| at < *covered)).collect()
}

/// Returns the first keys that were missing, and the runs that they make.
fn missing(runs: &[Run], keys: &KeyList, hits: &[bool]) -> (Vec<BlockKey>, Vec<Run>) {
    let (mut missing, mut of) = (Vec::new(), Vec::<Run>::new());
    let slots: Vec<Slot> = check::slots(runs).collect();
    let all = keys.iter().zip(slots).zip(hits);
    for ((key, slot), _) in all.filter(|(_, hit)| !**hit).take(MAX_MISSED) {
        missing.push(key);
        match of.last_mut().filter(|run| run.slot == slot) {
            Some(run) => run.keys += 1,
            None => of.push(Run { slot, keys: 1 }),
        }
    }
    (missing, of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::MemberId;
    use kvhive_protocol::explain::Explained;

    fn key(number: u8) -> BlockKey {
        BlockKey::from_bytes([number; 32])
    }

    fn trace(number: usize) -> TraceId {
        TraceId::of_request(&number.to_string())
    }

    fn part(missed: usize) -> Recalled {
        Recalled {
            device: DeviceId::new(MemberId(1), 0),
            tenant: TenantId(1),
            fetches: false,
            ago_ms: 0,
            blocks: missed as u32,
            hits: 0,
            missed: vec![(key(1), Explained::Coming); missed],
        }
    }

    #[test]
    fn what_is_missing_of_a_match_is_what_comes_after_the_first_hole_of_each_segment() {
        let runs = [Run { slot: Slot(1), keys: 3 }, Run { slot: Slot(2), keys: 2 }];
        let keys: KeyList = (0..5).map(key).collect::<Vec<_>>().iter().collect();
        let hits = within(&runs, &[1, 2]);
        assert_eq!(hits, [true, false, false, true, true]);
        let (missing, of) = missing(&runs, &keys, &hits);
        assert_eq!((missing, of), (vec![key(1), key(2)], vec![Run { slot: Slot(1), keys: 2 }]));
    }

    #[test]
    fn what_came_last_is_remembered_in_so_many_parts_and_so_many_blocks() {
        let recall = Recall::default();
        let at = Moment::ZERO;
        for number in 0..=MAX_PARTS {
            recall.keep(trace(number), at, part(0));
        }
        assert!(recall.of(at, trace(0)).is_empty() && recall.of(at, trace(1)).len() == 1);
        for number in 0..=MAX_BLOCKS / MAX_MISSED {
            recall.keep(trace(number), at, part(MAX_MISSED));
        }
        let kept = recall.0.lock().expect("nobody panicked");
        assert_eq!((kept.parts.len(), kept.blocks), (MAX_BLOCKS / MAX_MISSED, MAX_BLOCKS));
        drop(kept);
        for _ in 0..2 * MAX_RECALLED {
            recall.keep(trace(7), at, part(0));
        }
        assert_eq!(recall.of(at, trace(7)).len(), MAX_RECALLED, "an answer is bounded too");
    }
}
