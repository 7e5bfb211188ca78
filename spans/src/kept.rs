//! The newest traces of a process, bounded: by how many there are, and by their spans together.

use kvhive_protocol::trace::{MAX_LISTED, MAX_SPANS, Span, TraceId, TraceSummary};
use std::collections::{HashMap, VecDeque};

/// Spans of all traces together, for each trace that may be kept.
const SPANS_EACH: usize = 32;

/// What is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    traces: HashMap<TraceId, Vec<Span>>,
    /// Oldest first, by when their first span ended.
    order: VecDeque<TraceId>,
    most: usize,
    spans: usize,
}

impl Kept {
    /// Keeps `most` traces.
    pub(crate) fn new(most: usize) -> Kept {
        Kept { traces: HashMap::new(), order: VecDeque::new(), most, spans: 0 }
    }

    /// Keeps a span; says whether there was room for it in its trace. The oldest traces leave for it.
    pub(crate) fn keep(&mut self, span: Span) -> bool {
        if self.most == 0 {
            return true;
        }
        let trace = span.trace;
        if !self.traces.contains_key(&trace) {
            self.order.push_back(trace);
        }
        let spans = self.traces.entry(trace).or_default();
        if spans.len() >= MAX_SPANS {
            return false;
        }
        spans.push(span);
        self.spans += 1;
        while self.traces.len() > 1
            && (self.traces.len() > self.most || self.spans > self.most.saturating_mul(SPANS_EACH))
        {
            let Some(oldest) = self.order.pop_front() else { break };
            self.spans -= self.traces.remove(&oldest).map_or(0, |spans| spans.len());
        }
        true
    }

    /// Returns the spans of a trace in the order in which they began.
    pub(crate) fn spans(&self, trace: TraceId) -> Vec<Span> {
        let mut spans = self.traces.get(&trace).cloned().unwrap_or_default();
        spans.sort_by_key(|span| span.began_ns);
        spans
    }

    /// Returns the newest traces, newest first.
    pub(crate) fn newest(&self, limit: usize) -> Vec<TraceSummary> {
        let newest = self.order.iter().rev().take(limit.min(MAX_LISTED));
        newest.filter_map(|trace| summary(*trace, self.traces.get(trace)?)).collect()
    }
}

fn summary(trace: TraceId, spans: &[Span]) -> Option<TraceSummary> {
    let first = spans.iter().min_by_key(|span| (span.began_ns, std::cmp::Reverse(span.took_ns)))?;
    let end = spans.iter().map(|span| span.began_ns.saturating_add(span.took_ns)).max()?;
    Some(TraceSummary {
        trace,
        name: first.name.clone(),
        began_ns: first.began_ns,
        took_ns: end - first.began_ns,
        spans: spans.len() as u32,
        failed: spans.iter().any(|span| span.failed.is_some()),
    })
}
