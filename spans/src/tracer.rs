//! Who begins spans: a process's tracer, or none.

#[cfg(feature = "export")]
use crate::export::Exporter;
use crate::kept::Kept;
use crate::span::Span;
use kvhive_protocol::trace::{self, Parent, SpanId, SpanKind, TraceAnswer, TraceAsk, TraceContext, TraceId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use thiserror::Error;

/// How a process traces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TracerConfig {
    /// What the process is: `kvhive-node`, for one.
    pub service: String,
    /// Its name in the cluster.
    pub process: String,
    /// The collector's base URL, `http://host:port`, to which `/v1/traces` is added; none exports nothing.
    pub endpoint: Option<String>,
    /// How many of a million requests are traced that come without a trace context.
    pub sample_ppm: u32,
    /// Traces kept in memory.
    pub keep: usize,
}

/// Why a tracer cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TracerError {
    /// The system gives no random bytes.
    #[error("no random bytes for names of traces: {0}")]
    Random(String),
    /// The exporter cannot be set up.
    #[error("traces cannot be exported to {endpoint}: {why}")]
    Export {
        /// Where to.
        endpoint: String,
        /// Why not.
        why: String,
    },
}

/// What a tracer has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpanFigures {
    /// Spans recorded.
    pub recorded: u64,
    /// Spans that were more than are kept of one trace.
    pub left_out: u64,
    /// Messages to the collector that it did not take, repeats among them.
    pub failed_exports: u64,
}

impl SpanFigures {
    /// Returns them by their names in `/metrics`.
    pub fn named(self) -> [(&'static str, u64); 3] {
        [
            ("kvhive_trace_spans_total", self.recorded),
            ("kvhive_trace_spans_left_out_total", self.left_out),
            ("kvhive_trace_exports_failed_total", self.failed_exports),
        ]
    }
}

/// Begins spans. The default is off: it begins none. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
pub(crate) struct Inner {
    seed: u64,
    drawn: AtomicU64,
    sample_ppm: u32,
    kept: Mutex<Kept>,
    recorded: AtomicU64,
    left_out: AtomicU64,
    #[cfg(feature = "export")]
    exporter: Option<Exporter>,
}

impl Tracer {
    /// Begins no spans.
    pub const OFF: Tracer = Tracer(None);

    /// Makes a process's tracer.
    ///
    /// # Errors
    /// When there are no random bytes, or its exporter cannot be set up.
    pub fn new(config: &TracerConfig) -> Result<Tracer, TracerError> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| TracerError::Random(error.to_string()))?;
        #[cfg(not(feature = "export"))]
        if let Some(endpoint) = config.endpoint.clone() {
            return Err(TracerError::Export { endpoint, why: "built without the feature `export`".into() });
        }
        Ok(Tracer(Some(Arc::new(Inner {
            seed: u64::from_le_bytes(seed),
            drawn: AtomicU64::new(0),
            sample_ppm: config.sample_ppm,
            kept: Mutex::new(Kept::new(config.keep)),
            recorded: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            #[cfg(feature = "export")]
            exporter: Exporter::new(config)?,
        }))))
    }

    /// Says whether it begins spans at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span for a request that `from` asked for; none where nobody traces it.
    pub fn serve(&self, from: Option<TraceContext>, name: &'static str) -> Span {
        self.under(from, SpanKind::Served, name)
    }

    /// Begins a span for a request that a `traceparent` header came with, if one did: without one, as many as are sampled.
    pub fn serve_parent(&self, parent: Option<&str>, name: &'static str) -> Span {
        match parent.and_then(|parent| parent.parse().ok()) {
            Some(Parent::Sampled(context)) => self.serve(Some(context), name),
            Some(Parent::Unsampled) => Span::NONE,
            None => self.draw(SpanKind::Served, name),
        }
    }

    /// Begins a span within what `of` names; none of none.
    pub fn under(&self, of: Option<TraceContext>, kind: SpanKind, name: &'static str) -> Span {
        match (&self.0, of) {
            (Some(inner), Some(of)) => Span::begin(inner, Some(of), kind, name),
            _ => Span::NONE,
        }
    }

    /// Begins a trace of its own, as often as is sampled.
    pub fn draw(&self, kind: SpanKind, name: &'static str) -> Span {
        match &self.0 {
            Some(inner) if inner.is_sampled() => Span::begin(inner, None, kind, name),
            _ => Span::NONE,
        }
    }

    /// Answers a question about the traces that are kept.
    pub fn answer(&self, ask: TraceAsk) -> TraceAnswer {
        let Some(inner) = &self.0 else { return TraceAnswer::Off };
        let kept = inner.kept.lock().unwrap_or_else(|poison| poison.into_inner());
        match ask {
            TraceAsk::One(trace) => TraceAnswer::Spans(kept.spans(trace)),
            TraceAsk::Newest(limit) => TraceAnswer::Newest(kept.newest(limit as usize)),
        }
    }

    /// Returns what it has done.
    pub fn figures(&self) -> SpanFigures {
        let Some(inner) = &self.0 else { return SpanFigures::default() };
        SpanFigures {
            recorded: inner.recorded.load(Ordering::Relaxed),
            left_out: inner.left_out.load(Ordering::Relaxed),
            #[cfg(feature = "export")]
            failed_exports: inner.exporter.as_ref().map_or(0, Exporter::failures),
            #[cfg(not(feature = "export"))]
            failed_exports: 0,
        }
    }

    /// Sends what is not exported yet, and exports nothing more. Waits for the collector, but not for long.
    pub fn close(&self) {
        #[cfg(feature = "export")]
        if let Some(exporter) = self.0.as_ref().and_then(|inner| inner.exporter.as_ref()) {
            exporter.close();
        }
    }
}

impl Inner {
    fn random(&self) -> u64 {
        // SplitMix64: names need be unlike each other, not secret.
        let at = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut word = self.seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn is_sampled(&self) -> bool {
        self.sample_ppm > 0 && self.random() % 1_000_000 < u64::from(self.sample_ppm)
    }

    pub(crate) fn fresh_span(&self) -> SpanId {
        loop {
            if let Some(id) = SpanId::new(self.random().to_le_bytes()) {
                return id;
            }
        }
    }

    pub(crate) fn fresh_trace(&self) -> TraceId {
        loop {
            let (one, other) = (u128::from(self.random()), u128::from(self.random()));
            if let Some(id) = TraceId::new((one << 64 | other).to_le_bytes()) {
                return id;
            }
        }
    }

    pub(crate) fn record(&self, span: trace::Span) {
        self.recorded.fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "export")]
        if let Some(exporter) = &self.exporter {
            exporter.send(&span);
        }
        let kept = self.kept.lock().unwrap_or_else(|poison| poison.into_inner()).keep(span);
        self.left_out.fetch_add(u64::from(!kept), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(sample_ppm: u32, keep: usize) -> Tracer {
        let config =
            TracerConfig { service: "test".into(), process: "one".into(), endpoint: None, sample_ppm, keep };
        Tracer::new(&config).expect("nothing is exported")
    }

    fn parent(name: &str) -> TraceContext {
        TraceContext { trace: TraceId::of_request(name), span: SpanId::new([7; 8]).expect("not zero") }
    }

    fn spans(tracer: &Tracer, trace: TraceId) -> Vec<trace::Span> {
        match tracer.answer(TraceAsk::One(trace)) {
            TraceAnswer::Spans(spans) => spans,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_name_what_they_are_part_of_and_say_what_they_were_told() {
        let (tracer, parent) = (tracer(0, 8), parent("a"));
        let mut whole = tracer.serve(Some(parent), "fetch");
        whole.note("kvhive.blocks", 3u64);
        let mut part = whole.part("read");
        part.fail("busy");
        drop(part);
        drop(whole);
        let spans = spans(&tracer, parent.trace);
        let told: Vec<_> =
            spans.iter().map(|span| (&*span.name, span.kind, span.failed.as_deref())).collect();
        assert_eq!(told, [("fetch", SpanKind::Served, None), ("read", SpanKind::Inner, Some("busy"))]);
        assert_eq!([spans[0].parent, spans[1].parent], [Some(parent.span), Some(spans[0].id)]);
        assert_eq!(spans[0].facts, [("kvhive.blocks".into(), 3u64.into())]);
        assert!(spans[0].took_ns >= spans[1].took_ns);
    }

    #[test]
    fn what_is_not_traced_carries_a_pointer_that_is_none() {
        assert_eq!(size_of::<Span>(), size_of::<usize>());
    }

    #[test]
    fn without_a_tracer_or_a_trace_nothing_is_recorded() {
        assert!(!Tracer::OFF.serve(Some(parent("a")), "fetch").is_on());
        assert_eq!(Tracer::OFF.answer(TraceAsk::Newest(1)), TraceAnswer::Off);
        let tracer = tracer(0, 8);
        for span in [tracer.serve(None, "fetch"), tracer.draw(SpanKind::Served, "fetch")] {
            assert!(!span.is_on() && !span.part("read").is_on() && span.context().is_none());
        }
        let unsampled = format!("{}0", parent("a").to_string().trim_end_matches('1'));
        assert!(!tracer.serve_parent(Some(&unsampled), "route").is_on());
        assert_eq!(tracer.figures(), SpanFigures::default());
    }

    #[cfg(feature = "export")]
    #[test]
    fn a_collector_that_is_away_costs_spans_and_is_counted() {
        let away = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = away.local_addr().expect("it is bound");
        drop(away);
        let config = TracerConfig {
            service: "test".into(),
            process: "one".into(),
            endpoint: Some(format!("http://{address}")),
            sample_ppm: 0,
            keep: 1,
        };
        let tracer = Tracer::new(&config).expect("it is set up without a look");
        drop(tracer.serve(Some(parent("a")), "fetch"));
        tracer.close();
        let SpanFigures { recorded, left_out, failed_exports } = tracer.figures();
        assert!((recorded, left_out) == (1, 0) && failed_exports > 0, "{failed_exports} failures");
    }

    #[test]
    fn as_many_are_sampled_as_configured_and_a_parent_wins() {
        let tracer = tracer(250_000, 1);
        let drawn = (0..10_000).filter(|_| tracer.serve_parent(None, "route").is_on()).count();
        assert!((2_200..2_800).contains(&drawn), "{drawn} of 10000");
        let sampled = parent("a").to_string();
        assert!((0..100).all(|_| tracer.serve_parent(Some(&sampled), "route").is_on()));
        assert!(
            (0..100).all(|_| !tracer.serve_parent(Some(&sampled.replace("-01", "-00")), "route").is_on())
        );
    }

    #[test]
    fn the_newest_traces_are_kept_and_no_more_than_may_be() {
        let tracer = tracer(0, 3);
        let traces: Vec<TraceContext> = (0..5).map(|at| parent(&format!("request {at}"))).collect();
        for trace in &traces {
            drop(tracer.serve(Some(*trace), "fetch"));
        }
        let TraceAnswer::Newest(newest) = tracer.answer(TraceAsk::Newest(10)) else {
            panic!("they are kept")
        };
        let newest: Vec<TraceId> = newest.iter().map(|one| one.trace).collect();
        assert_eq!(newest, [traces[4].trace, traces[3].trace, traces[2].trace]);
        assert_eq!(spans(&tracer, traces[0].trace), []);
        // One that has many spans leaves no room for others, and has a bound of its own.
        for _ in 0..2 * trace::MAX_SPANS {
            drop(tracer.serve(Some(traces[4]), "fetch"));
        }
        assert_eq!(spans(&tracer, traces[4].trace).len(), trace::MAX_SPANS);
        assert_eq!(spans(&tracer, traces[3].trace), []);
        assert_eq!(tracer.figures().left_out, trace::MAX_SPANS as u64 + 1);
    }
}
