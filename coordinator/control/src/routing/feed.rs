//! One engine's events in order: numbered batches arrive, some may be lost, repeated or late, the engine may start anew under the
//! same numbers. A gap is filled from what the engine repeats; where it cannot be, what is known is given up: blocks that are
//! gone must never be promised.

use super::index::Index;
use super::names::CacheEvent;
use std::collections::VecDeque;

/// The most batches that wait for a gap before them to be filled.
pub const MAX_HELD_BATCHES: usize = 4096;
/// The most blocks that those may name.
pub const MAX_HELD_BLOCKS: usize = 262_144;
/// Replays of everything in a row that reach their end and do not go back to the first batch: after as many the engine does not have it
/// any more.
const SHORT_REPLAYS: u32 = 3;

/// Events that an engine published together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Its number: from 0, one more each time, since the engine started.
    pub sequence: u64,
    /// When, by the engine's clock, in microseconds: tells a repeated batch from one of a new start.
    pub at_us: u64,
    /// What happened, in order.
    pub events: Vec<CacheEvent>,
}

/// What a feed is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FeedEvent {
    /// A connection to the publisher stands. What was published while there was none is lost.
    Connected,
    /// It stands no longer.
    Lost,
    /// A batch was published.
    Heard(Batch),
    /// A batch was repeated, as the last [`FeedEffect::Replay`] asked.
    Replayed(Batch),
    /// All were repeated that the engine still has.
    ReplayEnded,
    /// Nothing was repeated, or not all.
    ReplayFailed,
    /// Nothing was heard for a while.
    Quiet,
    /// Something is missing that the engine may repeat: it is a while since that was tried.
    Again,
}

/// What a feed wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeedEffect {
    /// Have the batches repeated from this number on. Ends whatever is being repeated.
    Replay {
        /// The number.
        from: u64,
    },
}

/// What a feed has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FeedCounters {
    /// Batches taken in.
    pub batches: u64,
    /// Gaps noticed.
    pub gaps: u64,
    /// Times that what was known was given up.
    pub given_up: u64,
    /// Starts of the engine that were noticed.
    pub restarts: u64,
}

/// What is being repeated, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Replay {
    /// None.
    Idle,
    /// To fill a gap, from this number on.
    Gap { from: u64 },
    /// In case that something was missed.
    Probe,
    /// From the last batch known: it tells whether the engine is still the same start.
    Check,
    /// Everything: nothing is known.
    All,
    /// Everything, once more: what is known stays until the first batch comes.
    Anew,
}

/// One engine's events, and what its cache holds by them.
#[derive(Clone)]
pub struct Feed {
    index: Index,
    can_replay: bool,
    is_connected: bool,
    is_exact: bool,
    /// The number that comes next; none while nothing is known.
    next: Option<u64>,
    newest_us: u64,
    replay: Replay,
    /// The number from which the replay that has just ended has brought nothing.
    in_vain: Option<u64>,
    /// Replays of everything that have ended and left something out.
    short: u32,
    held: VecDeque<Batch>,
    held_blocks: usize,
    counters: FeedCounters,
}

impl Feed {
    /// Makes the feed of an engine of which nothing is known yet.
    pub fn new(room: usize, can_replay: bool) -> Feed {
        Feed {
            index: Index::new(room),
            can_replay,
            is_connected: false,
            is_exact: false,
            next: None,
            newest_us: 0,
            replay: Replay::Idle,
            in_vain: None,
            short: 0,
            held: VecDeque::new(),
            held_blocks: 0,
            counters: FeedCounters::default(),
        }
    }

    /// Returns what the engine's cache holds.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Sets how many of its blocks may be known from now on.
    pub fn set_room(&mut self, room: usize) {
        self.index.set_room(room);
    }

    /// Says whether events arrive.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Says whether nothing is missing of what the engine holds.
    pub fn is_exact(&self) -> bool {
        self.is_exact && self.replay == Replay::Idle && self.index.dropped() == 0
    }

    /// Says whether something is missing that the engine may repeat, and nothing is being repeated: it is to be told [`FeedEvent::Again`]
    /// after a while.
    pub fn is_wanting(&self) -> bool {
        let may_help = self.can_replay && self.short < SHORT_REPLAYS;
        self.is_connected && may_help && !self.is_exact && self.replay == Replay::Idle
    }

    /// Returns the number of the newest batch taken in.
    pub fn newest(&self) -> Option<u64> {
        self.next?.checked_sub(1)
    }

    /// Returns what it has counted.
    pub fn counters(&self) -> FeedCounters {
        self.counters
    }

    /// Takes in what happened. What is to be done is added to `effects`; of several the last counts.
    pub fn step(&mut self, event: FeedEvent, effects: &mut Vec<FeedEffect>) {
        match event {
            FeedEvent::Connected => self.connected(effects),
            FeedEvent::Lost => {
                self.is_connected = false;
                self.replay = Replay::Idle;
                self.drop_held();
            }
            FeedEvent::Heard(batch) => {
                if self.replay == Replay::Idle {
                    self.take(batch, effects);
                } else {
                    self.hold(batch);
                }
            }
            FeedEvent::Replayed(batch) => self.replayed(batch, effects),
            FeedEvent::ReplayEnded => self.ended(effects),
            FeedEvent::ReplayFailed => self.failed(effects),
            FeedEvent::Quiet => {
                // The last batches before a silence may be lost: nothing after them would tell.
                if let (Some(next), true, Replay::Idle) = (self.next, self.is_connected, self.replay)
                    && self.can_replay
                {
                    self.ask(Replay::Probe, next, effects);
                }
            }
            FeedEvent::Again => {
                if self.is_wanting() {
                    self.ask(Replay::Anew, 0, effects);
                }
            }
        }
    }

    fn connected(&mut self, effects: &mut Vec<FeedEffect>) {
        self.is_connected = true;
        (self.in_vain, self.short) = (None, 0);
        self.drop_held();
        self.replay = Replay::Idle;
        match self.newest() {
            Some(newest) if self.can_replay => self.ask(Replay::Check, newest, effects),
            _ => self.begin(effects),
        }
    }

    /// Forgets everything, and learns it anew if the engine repeats it.
    fn begin(&mut self, effects: &mut Vec<FeedEffect>) {
        self.forget();
        if self.can_replay {
            self.ask(Replay::All, 0, effects);
        }
    }

    fn forget(&mut self) {
        self.counters.given_up += u64::from(!self.index.is_empty());
        self.index.clear();
        self.is_exact = false;
        self.next = None;
        self.newest_us = 0;
        self.in_vain = None;
    }

    fn ask(&mut self, replay: Replay, from: u64, effects: &mut Vec<FeedEffect>) {
        self.replay = replay;
        effects.push(FeedEffect::Replay { from });
    }

    fn hold(&mut self, batch: Batch) {
        self.held_blocks += blocks_of(&batch);
        self.held.push_back(batch);
        if self.held.len() > MAX_HELD_BATCHES || self.held_blocks > MAX_HELD_BLOCKS {
            // More than a replay is waited for with: what it would fill is given up.
            self.replay = Replay::Idle;
            self.forget();
            let last = self.held.pop_back();
            self.drop_held();
            if let Some(last) = last {
                self.apply(last);
            }
        }
    }

    fn drop_held(&mut self) {
        self.held.clear();
        self.held_blocks = 0;
    }

    /// Takes in a batch that was published while nothing is being repeated.
    fn take(&mut self, batch: Batch, effects: &mut Vec<FeedEffect>) {
        let Some(next) = self.next else {
            self.is_exact = batch.sequence == 0;
            return self.apply(batch);
        };
        if batch.sequence == next {
            return self.apply(batch);
        }
        if batch.sequence < next {
            // An old number with a new time: the engine counts anew.
            if batch.at_us > self.newest_us {
                self.restarted(effects);
                if self.replay == Replay::Idle {
                    self.take(batch, effects);
                } else {
                    self.hold(batch);
                }
            }
            return;
        }
        self.counters.gaps += u64::from(self.in_vain != Some(next));
        if self.can_replay && self.in_vain != Some(next) {
            self.hold(batch);
            self.ask(Replay::Gap { from: next }, next, effects);
        } else {
            self.forget();
            self.apply(batch);
        }
    }

    fn restarted(&mut self, effects: &mut Vec<FeedEffect>) {
        self.counters.restarts += 1;
        self.short = 0;
        self.begin(effects);
    }

    fn replayed(&mut self, batch: Batch, effects: &mut Vec<FeedEffect>) {
        match self.replay {
            Replay::Idle => {}
            Replay::Check => {
                let is_known = Some(batch.sequence) == self.newest() && batch.at_us == self.newest_us;
                if is_known {
                    self.replay = Replay::Probe;
                } else {
                    self.restarted(effects);
                }
            }
            Replay::Anew => {
                self.forget();
                self.replay = Replay::All;
                self.replayed(batch, effects);
            }
            Replay::Gap { .. } | Replay::Probe | Replay::All => match self.next {
                Some(next) if batch.sequence < next => {}
                Some(next) if batch.sequence == next => self.apply(batch),
                Some(_) => {
                    // It does not have those between any more.
                    self.forget();
                    self.apply(batch);
                }
                None => {
                    self.is_exact = batch.sequence == 0;
                    self.apply(batch);
                }
            },
        }
    }

    fn ended(&mut self, effects: &mut Vec<FeedEffect>) {
        let is_all = matches!(self.replay, Replay::All | Replay::Anew);
        match std::mem::replace(&mut self.replay, Replay::Idle) {
            Replay::Idle => {}
            // Not even the last batch that is known: it is another start, or one that repeats nothing.
            Replay::Check => return self.restarted(effects),
            // What it was asked for came, and more may be missing by now; else it has no more.
            Replay::Gap { from } => self.in_vain = self.next.filter(|next| *next == from),
            Replay::Probe => {}
            Replay::All | Replay::Anew if self.next.is_none() => {
                if self.held.is_empty() {
                    // It has published nothing yet: who repeats at all repeats the last batch.
                    (self.next, self.is_exact) = (Some(0), true);
                } else if self.in_vain != Some(0) && self.held.iter().all(|batch| batch.sequence > 0) {
                    // It began to publish after it had been asked.
                    self.in_vain = Some(0);
                    return self.ask(Replay::All, 0, effects);
                }
            }
            Replay::All | Replay::Anew => {}
        }
        self.take_held(effects);
        self.short = if self.is_exact { 0 } else { self.short.saturating_add(u32::from(is_all)) };
    }

    fn failed(&mut self, effects: &mut Vec<FeedEffect>) {
        match std::mem::replace(&mut self.replay, Replay::Idle) {
            Replay::Idle => return,
            Replay::Gap { .. } => self.in_vain = self.next,
            // Nobody says whether it is still the same start.
            Replay::Check => self.forget(),
            Replay::Probe | Replay::All | Replay::Anew => {}
        }
        self.take_held(effects);
    }

    /// Takes in what waited, in the order in which it was published, as long as nothing is missing.
    fn take_held(&mut self, effects: &mut Vec<FeedEffect>) {
        let mut held: Vec<Batch> = std::mem::take(&mut self.held).into();
        self.held_blocks = 0;
        held.sort_by_key(|batch| (batch.at_us, batch.sequence));
        for batch in held {
            if self.replay == Replay::Idle {
                self.take(batch, effects);
            } else {
                self.hold(batch);
            }
        }
        // A gap that comes later is another one.
        self.in_vain = None;
    }

    fn apply(&mut self, batch: Batch) {
        self.counters.batches += 1;
        for event in &batch.events {
            self.index.apply(event);
            // Who knows that there is nothing knows everything.
            self.is_exact |= *event == CacheEvent::Cleared;
        }
        self.next = batch.sequence.checked_add(1);
        self.newest_us = batch.at_us;
        self.in_vain = None;
    }
}

fn blocks_of(batch: &Batch) -> usize {
    batch.events.iter().map(|event| event.blocks() + 1).sum()
}

#[cfg(test)]
#[path = "feed_test.rs"]
mod tests;
