//! The request at hand, and what is remembered of earlier ones.

use super::ages::Tick;
use super::class::{self, Past};
use super::score::{Before, Facts};
use crate::policy::Request;
use kvhive_protocol::Moment;

/// A block that the request at hand used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    pub(super) print: u64,
    /// Its record, [`super::ranking::NONE`] if it is not resident.
    pub(super) at: u32,
    pub(super) past: Past,
    /// Whether it was neither resident nor remembered.
    pub(super) is_new: bool,
    /// Whether it was resident before the request.
    pub(super) is_hit: bool,
}

/// Blocks that may come beyond those that the request named before they are judged; at least so many may come in all.
const SPARE: usize = 16;

/// The request at hand.
#[derive(Default)]
pub(super) struct Current {
    pub(super) request: Request,
    pub(super) span: u8,
    /// Its blocks so far. They are judged together at its end, and until then none of them can leave.
    pub(super) touched: Vec<Touched>,
    /// Blocks from the start that were resident or remembered.
    known: u32,
    has_unknown: bool,
    /// The last of the known blocks, as it was before this request.
    frontier: Option<Past>,
    /// The octile judged by an outlook, kept while the outlook stays.
    judged: Option<(Outlook, usize)>,
}

/// How far the known prefix of the request at hand will reach, and the last block of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Outlook {
    known: u32,
    frontier: Option<Past>,
}

impl Current {
    pub(super) fn begin(&mut self, request: &Request) {
        debug_assert!(self.touched.is_empty(), "the blocks of the request before are judged");
        self.request = *request;
        self.span = class::span(request.blocks);
        self.known = 0;
        self.has_unknown = false;
        self.frontier = None;
        self.judged = None;
    }

    /// Takes what has been said since the request began. Its blocks are judged at its end, by all that is known then.
    pub(super) fn about(&mut self, request: &Request) {
        let Request { input_tokens, output_tokens, hint, .. } = *request;
        self.request = Request { input_tokens, output_tokens, hint, ..self.request };
        self.judged = None;
    }

    pub(super) fn is_full(&self) -> bool {
        self.touched.len() >= self.request.blocks as usize + SPARE
    }

    pub(super) fn known_block(&mut self, past: Past) {
        if !self.has_unknown {
            self.known += 1;
            self.frontier = Some(past);
        }
    }

    pub(super) fn unknown_block(&mut self) {
        self.has_unknown = true;
    }

    /// Returns the outlook from the blocks seen, and from `next` if it is remembered: the request that used it last is taken
    /// to be continued.
    pub(super) fn outlook(&self, next: Option<Past>, history: &History) -> Outlook {
        match next {
            Some(next) if !self.has_unknown => {
                let reached = history.get(next.last).map_or(0, |entry| entry.blocks).min(self.request.blocks);
                Outlook { known: reached.max(self.known + 1), frontier: Some(next) }
            }
            _ => Outlook { known: self.known, frontier: self.frontier },
        }
    }

    /// Returns what was judged by this outlook.
    pub(super) fn judged(&self, outlook: &Outlook) -> Option<usize> {
        self.judged.filter(|(known, _)| known == outlook).map(|(_, octile)| octile)
    }

    pub(super) fn set_judged(&mut self, outlook: Outlook, octile: usize) {
        self.judged = Some((outlook, octile));
    }

    /// Returns what is known of the request under this outlook.
    pub(super) fn facts(&self, outlook: &Outlook, history: &History) -> Facts {
        let continued = outlook.frontier.filter(|last| !last.is_fork() && last.uses <= MAX_TURNS);
        let entry = continued.and_then(|last| history.get(last.last));
        Facts {
            blocks: self.request.blocks,
            known: outlook.known,
            input_tokens: self.request.input_tokens,
            output_tokens: self.request.output_tokens,
            turn: continued.map_or(1, |last| last.turn.saturating_add(1)),
            hint: self.request.hint,
            before: entry.map(|entry| Before {
                input_tokens: entry.input_tokens,
                output_tokens: entry.output_tokens,
                gap_s: self.request.now.since(entry.at).as_secs_f32(),
                earlier_gap_s: entry.gap_s,
            }),
        }
    }
}

/// Uses of a block beyond which it is a shared prefix rather than a conversation.
const MAX_TURNS: u8 = 200;

/// What is remembered of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    tick: Tick,
    at: Moment,
    blocks: u32,
    input_tokens: u32,
    output_tokens: u32,
    /// Seconds to it from the one before it in its conversation, if known.
    gap_s: Option<f32>,
}

/// Requests that are remembered.
const REQUESTS: usize = 8192;

/// The latest requests.
pub(super) struct History {
    ring: Vec<Entry>,
}

impl History {
    pub(super) fn new() -> History {
        History { ring: Vec::new() }
    }

    fn get(&self, tick: Tick) -> Option<&Entry> {
        self.ring.get(tick as usize % REQUESTS).filter(|entry| entry.tick == tick)
    }

    /// Remembers a request; ticks follow each other.
    pub(super) fn put(&mut self, tick: Tick, request: &Request, facts: &Facts) {
        let entry = Entry {
            tick,
            at: request.now,
            blocks: request.blocks,
            input_tokens: request.input_tokens,
            output_tokens: request.output_tokens,
            gap_s: facts.before.map(|before| before.gap_s),
        };
        let place = tick as usize % REQUESTS;
        if place >= self.ring.len() {
            self.ring.resize(place + 1, entry);
        }
        self.ring[place] = entry;
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.ring.capacity() * size_of::<Entry>()
    }
}
