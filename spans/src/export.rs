//! To a collector: OTLP over HTTP, by OpenTelemetry's own batches and exporter. A thread of its own sends; what it cannot send in time
//! is dropped, and no request ever waits for it.

use crate::tracer::{TracerConfig, TracerError};
use bytes::Bytes;
use http::{Request, Response};
use kvhive_protocol::trace::{self, Fact, SpanKind};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Spans that wait to be sent; more are dropped.
const QUEUE: usize = 8192;
/// Spans of one message.
const BATCH: usize = 512;
/// The longest that a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// A collector that has not answered within this has failed.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest that a process waits at its end.
const CLOSING: Duration = Duration::from_secs(2);
/// Bytes of a collector's answer that are read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// The way to a collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    batches: BatchSpanProcessor,
    scope: InstrumentationScope,
    failures: Arc<AtomicU64>,
}

impl Exporter {
    /// Sets up the way to the collector of `config`, if it names one.
    pub(crate) fn new(config: &TracerConfig) -> Result<Option<Exporter>, TracerError> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let failures = Arc::new(AtomicU64::new(0));
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Sender::new(failures.clone(), url.clone()))
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(LIMIT)
            .build()
            .map_err(|error| TracerError::Export { endpoint: endpoint.clone(), why: error.to_string() })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let mut batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        batches.set_resource(
            &Resource::builder_empty()
                .with_service_name(config.service.clone())
                .with_attribute(KeyValue::new("service.instance.id", config.process.clone()))
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                .build(),
        );
        let scope = InstrumentationScope::builder("kvhive").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Some(Exporter { batches, scope, failures }))
    }

    /// Has a span sent.
    pub(crate) fn send(&self, span: &trace::Span) {
        self.batches.on_end(self.data(span));
    }

    fn data(&self, span: &trace::Span) -> SpanData {
        let start = SystemTime::UNIX_EPOCH + Duration::from_nanos(span.began_ns);
        let fact = |(name, fact): &(std::borrow::Cow<'static, str>, Fact)| {
            let value = match fact {
                Fact::Number(number) => Value::I64(i64::try_from(*number).unwrap_or(i64::MAX)),
                Fact::Text(text) => Value::String(text.clone().into()),
            };
            KeyValue::new(name.clone().into_owned(), value)
        };
        SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(span.trace.bytes()),
                SpanId::from_bytes(span.id.bytes()),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.bytes())),
            parent_span_is_remote: span.kind == SpanKind::Served && span.parent.is_some(),
            span_kind: match span.kind {
                SpanKind::Inner => OtelKind::Internal,
                SpanKind::Served => OtelKind::Server,
                SpanKind::Asked => OtelKind::Client,
            },
            name: span.name.clone(),
            start_time: start,
            end_time: start + Duration::from_nanos(span.took_ns),
            attributes: span.facts.iter().map(fact).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.failed.as_ref().map_or(Status::Unset, |why| Status::error(why.clone())),
            instrumentation_scope: self.scope.clone(),
        }
    }

    /// Returns how many batches were not taken.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Sends what waits and ends.
    pub(crate) fn close(&self) {
        if let Err(error) = self.batches.shutdown_with_timeout(CLOSING) {
            tracing::warn!(%error, "the last spans may not have reached their collector");
        }
    }
}

/// Sends messages, on the thread that the batches have to themselves: it may wait.
#[derive(Debug)]
struct Sender {
    agent: ureq::Agent,
    failures: Arc<AtomicU64>,
    url: String,
    /// It was said that the collector takes nothing, and it has taken nothing since.
    is_out: std::sync::atomic::AtomicBool,
}

impl Sender {
    fn new(failures: Arc<AtomicU64>, url: String) -> Sender {
        let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false);
        Sender { agent: config.build().into(), failures, url, is_out: false.into() }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (parts, body) = request.into_parts();
        let answer = self.agent.run(Request::from_parts(parts, &body[..]))?;
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(MAX_ANSWER_BYTES).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.send(request);
        let trouble = match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_out = self.is_out.swap(trouble.is_some(), Ordering::Relaxed);
        if let Some(why) = trouble {
            self.failures.fetch_add(1, Ordering::Relaxed);
            if !was_out {
                tracing::warn!(url = %self.url, why, "the collector of traces takes nothing: spans are dropped until it does");
            }
        } else if was_out {
            tracing::info!(url = %self.url, "the collector of traces takes spans again");
        }
        sent.map_err(Into::into)
    }
}
