//! A span under way, or none.

use crate::tracer::Inner;
use kvhive_protocol::trace::{self, Fact, MAX_FACTS, SpanKind, TraceContext};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A part of a traced request that is under way; it is recorded when it is dropped. Of a request that is not traced it is none.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Active>>);

#[derive(Debug)]
struct Active {
    tracer: Arc<Inner>,
    record: trace::Span,
    begun: Instant,
}

impl Span {
    /// No span: of a request that is not traced.
    pub const NONE: Span = Span(None);

    pub(crate) fn begin(
        tracer: &Arc<Inner>,
        parent: Option<TraceContext>,
        kind: SpanKind,
        name: &'static str,
    ) -> Span {
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Span::begun_at(tracer, parent, kind, name, (began, Instant::now()))
    }

    fn begun_at(
        tracer: &Arc<Inner>,
        parent: Option<TraceContext>,
        kind: SpanKind,
        name: &'static str,
        (began, begun): (Duration, Instant),
    ) -> Span {
        let record = trace::Span {
            trace: parent.map_or_else(|| tracer.fresh_trace(), |parent| parent.trace),
            id: tracer.fresh_span(),
            parent: parent.map(|parent| parent.span),
            kind,
            name: Cow::Borrowed(name),
            began_ns: nanos(began),
            took_ns: 0,
            facts: Vec::new(),
            failed: None,
        };
        Span(Some(Box::new(Active { tracer: tracer.clone(), record, begun })))
    }

    /// Says whether there is one.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Returns what whoever is asked for a part of this is told; none of none.
    pub fn context(&self) -> Option<TraceContext> {
        let record = &self.0.as_ref()?.record;
        Some(TraceContext { trace: record.trace, span: record.id })
    }

    /// Begins a part of it that is done here.
    pub fn part(&self, name: &'static str) -> Span {
        self.child(SpanKind::Inner, name)
    }

    /// Begins a part of it that somebody else is asked for.
    pub fn asking(&self, name: &'static str) -> Span {
        self.child(SpanKind::Asked, name)
    }

    fn child(&self, kind: SpanKind, name: &'static str) -> Span {
        match &self.0 {
            Some(active) => Span::begin(&active.tracer, self.context(), kind, name),
            None => Span::NONE,
        }
    }

    /// Records a part of it that lasted from `from` to `to`.
    pub fn past(&self, name: &'static str, from: Instant, to: Instant) {
        let Some(active) = &self.0 else { return };
        let began =
            Duration::from_nanos(active.record.began_ns) + from.saturating_duration_since(active.begun);
        let part = Span::begun_at(&active.tracer, self.context(), SpanKind::Inner, name, (began, from));
        part.end_at(to);
    }

    /// Notes a fact.
    pub fn note(&mut self, name: &'static str, fact: impl Into<Fact>) {
        let Some(active) = &mut self.0 else { return };
        if active.record.facts.len() < MAX_FACTS {
            active.record.facts.push((Cow::Borrowed(name), fact.into()));
        }
    }

    /// Says that it failed, and why.
    pub fn fail(&mut self, why: impl std::fmt::Display) {
        let Some(active) = &mut self.0 else { return };
        active.record.failed = Some(trace::cut(&why.to_string()));
    }

    fn end_at(mut self, end: Instant) {
        if let Some(active) = self.0.take() {
            active.end_at(end);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(active) = self.0.take() {
            active.end_at(Instant::now());
        }
    }
}

impl Active {
    fn end_at(self, end: Instant) {
        let Active { tracer, mut record, begun } = self;
        record.took_ns = nanos(end.saturating_duration_since(begun));
        tracer.record(record);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
