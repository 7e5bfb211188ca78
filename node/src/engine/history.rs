//! What an engine remembers of what it served, to replay it.

use super::behind::Bytes;
use kvhive_protocol::BlockKey;
use std::collections::VecDeque;

/// Requests that are remembered, and their blocks at most.
const MOST: usize = 4096;
const MOST_BLOCKS: usize = 1 << 18;
/// Blocks kept to measure codecs on.
const SAMPLES: usize = 4;

/// What one request was and took. Seconds are of one block; none where no block was.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Served {
    pub(super) keys: Vec<BlockKey>,
    /// Blocks of these that could be found: the last token is computed in any case.
    pub(super) most: usize,
    pub(super) compute_seconds: Option<f64>,
    /// Of a block that was fetched.
    pub(super) fetch_seconds: Option<f64>,
    /// Of a new block, as far as the request waited for it to be stored.
    pub(super) store_seconds: Option<f64>,
    /// What the answer and all else took.
    pub(super) rest_seconds: f64,
}

/// The last requests, some blocks of them, and what names the blocks of the last one.
pub(super) struct History<P> {
    served: VecDeque<Served>,
    blocks: usize,
    samples: VecDeque<Bytes>,
    last: Option<P>,
}

impl<P> Default for History<P> {
    fn default() -> Self {
        History { served: VecDeque::new(), blocks: 0, samples: VecDeque::new(), last: None }
    }
}

impl<P: Clone> History<P> {
    /// Remembers a request and what it computed, and forgets the oldest beyond so many blocks.
    pub(super) fn add<'b>(
        &mut self,
        served: Served,
        computed: impl Iterator<Item = &'b Bytes>,
        named: Option<P>,
    ) {
        self.blocks += served.keys.len();
        self.served.push_back(served);
        while self.served.len() > MOST || self.blocks > MOST_BLOCKS {
            let Some(oldest) = self.served.pop_front() else { break };
            self.blocks -= oldest.keys.len();
        }
        for block in computed {
            if self.samples.len() == SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back(block.clone());
        }
        self.last = named;
    }

    /// Returns the last requests.
    pub(super) fn served(&self) -> Vec<Served> {
        self.served.iter().cloned().collect()
    }

    /// Returns some blocks of them.
    pub(super) fn samples(&self) -> Vec<Bytes> {
        self.samples.iter().cloned().collect()
    }

    /// Returns what names the blocks of the last request.
    pub(super) fn last(&self) -> Option<P> {
        self.last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_beyond_so_many_requests_and_blocks() {
        let served = |blocks: usize| Served {
            keys: vec![BlockKey::from_bytes([1; 32]); blocks],
            most: blocks,
            compute_seconds: None,
            fetch_seconds: None,
            store_seconds: None,
            rest_seconds: 0.0,
        };
        let blocks: Vec<Bytes> = (0..6u8).map(|at| vec![at].into()).collect();
        let mut history = History::default();
        for at in 0..MOST + 2 {
            history.add(served(1), blocks.iter(), Some(at));
        }
        assert_eq!((history.served().len(), history.blocks, history.last()), (MOST, MOST, Some(MOST + 1)));
        assert_eq!(history.samples(), blocks[2..]);
        history.add(served(MOST_BLOCKS - 1), [].iter(), None);
        assert_eq!((history.served().len(), history.blocks), (2, MOST_BLOCKS));
        history.add(served(MOST_BLOCKS + 1), [].iter(), None);
        assert_eq!((history.served().len(), history.blocks), (0, 0));
    }
}
