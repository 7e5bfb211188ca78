//! The numbered stream: what is published now, what was published lately, and how whoever missed more is made exact again.

use super::encode;
use super::ledger::{Ledger, Told};
use super::names::Names;
use kvhive_client::BlockChange;
use kvhive_protocol::{BlockKey, TenantId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;
use tokio::sync::broadcast;

/// Batches that are kept to be repeated.
const KEPT: usize = 10_000;
/// Their bytes together.
const KEPT_BYTES: usize = 64 << 20;
/// Changes of one batch.
const CHANGES: usize = 4096;
/// Batches that a reader may be behind; one that is further behind misses some, and asks for them.
const BEHIND: usize = 1024;

/// A batch that was published.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) payload: Arc<[u8]>,
}

/// The stream. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) topic: Arc<str>,
    state: Arc<Mutex<State>>,
    sender: broadcast::Sender<Batch>,
}

struct State {
    ledger: Ledger,
    kept: VecDeque<Batch>,
    kept_bytes: usize,
    next: u64,
}

impl Stream {
    /// Begins a stream: its first batch says that nothing is there, whatever a stream before it has told.
    pub(super) fn new(topic: &str) -> Stream {
        let (sender, _) = broadcast::channel(BEHIND);
        let state = State { ledger: Ledger::default(), kept: VecDeque::new(), kept_bytes: 0, next: 0 };
        let stream = Stream { topic: topic.into(), state: Arc::new(Mutex::new(state)), sender };
        stream.publish(&mut stream.state(), true, &[]);
        stream
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Hears what is published from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.sender.subscribe()
    }

    /// Publishes what has changed on devices.
    pub(super) fn take(&self, changes: &[BlockChange], names: &Names) {
        for some in changes.chunks(CHANGES) {
            let mut told = Vec::new();
            let mut state = self.state();
            for change in some {
                let BlockChange { tenant, key, depth, before, after } = *change;
                let named = || names.of(tenant, &key, depth);
                state.ledger.change((tenant, key), before, after, named, &mut told);
            }
            if !told.is_empty() {
                self.publish(&mut state, false, &told);
            }
        }
    }

    /// Publishes what blocks that have got a name are called from now on.
    pub(super) fn name(&self, fresh: &[(TenantId, BlockKey)], names: &Names) {
        for some in fresh.chunks(CHANGES) {
            let (mut stored, mut removed) = (Vec::new(), Vec::new());
            let mut state = self.state();
            for (tenant, key) in some {
                // Its depth is in its name.
                state.ledger.name((*tenant, *key), names.of(*tenant, key, 0), &mut stored, &mut removed);
            }
            // There before it is gone, and parents before their children.
            stored.append(&mut removed);
            if !stored.is_empty() {
                self.publish(&mut state, false, &stored);
            }
        }
    }

    fn publish(&self, state: &mut State, anew: bool, told: &[Told]) {
        let batch = Batch { number: state.next, payload: encode::batch(now_us(), anew, told).into() };
        state.next += 1;
        state.kept_bytes += batch.payload.len();
        state.kept.push_back(batch.clone());
        while state.kept.len() > 1 && (state.kept.len() > KEPT || state.kept_bytes > KEPT_BYTES) {
            let oldest = state.kept.pop_front();
            state.kept_bytes -= oldest.map_or(0, |oldest| oldest.payload.len());
        }
        // Nobody may be listening.
        let _ = self.sender.send(batch);
    }

    /// Returns what makes a reader exact that has all before `from`: the batches since, where they are kept. Where they are not, all that is
    /// there now under numbers of those that are missing, and then those that are kept: what these say of a block is what is so of it.
    pub(super) fn replay(&self, from: u64) -> Vec<Batch> {
        let state = self.state();
        let oldest = state.kept.front().map_or(state.next, |oldest| oldest.number);
        let mut batches = Vec::new();
        if from < oldest {
            let told = state.ledger.snapshot();
            let numbers = oldest - from;
            let each = (told.len() as u64).div_ceil(numbers).max(CHANGES as u64) as usize;
            let mut pieces: Vec<&[Told]> = told.chunks(each).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            let first = oldest - pieces.len() as u64;
            for (at, piece) in pieces.into_iter().enumerate() {
                let payload = encode::batch(now_us(), at == 0, piece).into();
                batches.push(Batch { number: first + at as u64, payload });
            }
        }
        batches.extend(state.kept.iter().filter(|batch| batch.number >= from).cloned());
        batches
    }

    /// Returns how many blocks are told of, and the number of the next batch.
    pub(super) fn figures(&self) -> (u64, u64) {
        let state = self.state();
        (state.ledger.len() as u64, state.next)
    }

    #[cfg(test)]
    fn forget_all_but(&self, last: usize) {
        let mut state = self.state();
        while state.kept.len() > last {
            state.kept.pop_front();
        }
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::format;
    use kvhive_control::routing::{CacheEvent, EngineHash};
    use kvhive_protocol::watch::BlockTier;
    use std::collections::BTreeSet;

    fn change(number: u8, before: Option<BlockTier>, after: Option<BlockTier>) -> BlockChange {
        BlockChange { tenant: TenantId(1), key: BlockKey::from_bytes([number; 32]), depth: 0, before, after }
    }

    fn stored(number: u8) -> BlockChange {
        change(number, None, Some(BlockTier::Host))
    }

    fn gone(number: u8) -> BlockChange {
        change(number, Some(BlockTier::Host), None)
    }

    /// What a reader knows that has read these batches.
    fn known(batches: &[Batch]) -> BTreeSet<EngineHash> {
        let mut known = BTreeSet::new();
        for batch in batches {
            let (batch, _) = format::batch(batch.number, &batch.payload, 4).expect("it is a batch");
            for event in batch.events {
                match event {
                    CacheEvent::Stored { blocks, .. } => known.extend(blocks.iter().map(|block| block.hash)),
                    CacheEvent::Removed { hashes, .. } => known.retain(|hash| !hashes.contains(hash)),
                    CacheEvent::Cleared => known.clear(),
                }
            }
        }
        known
    }

    fn hashes(numbers: &[u8]) -> BTreeSet<EngineHash> {
        numbers.iter().map(|number| EngineHash::of(&[*number; 8])).collect()
    }

    fn numbers(batches: &[Batch]) -> Vec<u64> {
        batches.iter().map(|batch| batch.number).collect()
    }

    #[test]
    fn a_stream_begins_with_nothing_and_is_numbered_without_a_gap() {
        let stream = Stream::new("topic");
        let names = Names::default();
        stream.take(&[stored(1), stored(2)], &names);
        stream.take(&[], &names);
        stream.take(&[gone(1)], &names);
        let all = stream.replay(0);
        assert_eq!(numbers(&all), [0, 1, 2]);
        assert_eq!(known(&all), hashes(&[2]));
        assert_eq!(numbers(&stream.replay(2)), [2]);
        assert_eq!(numbers(&stream.replay(3)), [0; 0]);
        assert_eq!(stream.figures(), (1, 3));
    }

    #[test]
    fn who_has_missed_more_than_is_kept_is_told_all_that_is_there() {
        let stream = Stream::new("topic");
        let names = Names::default();
        stream.take(&[stored(1), stored(2)], &names);
        stream.take(&[stored(3)], &names);
        stream.take(&[gone(2), stored(4)], &names);
        stream.take(&[gone(4)], &names);
        stream.forget_all_but(2);
        let replayed = stream.replay(1);
        assert_eq!(numbers(&replayed), [2, 3, 4], "as if it were what was missed");
        assert_eq!(known(&replayed), hashes(&[1, 3]));
        // Whatever it knew before.
        assert_eq!(known(&stream.replay(0)), hashes(&[1, 3]));
    }
}
