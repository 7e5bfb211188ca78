//! Traced requests: gathered from every node and coordinator, each of which keeps its own part, and put together as a tree.

use super::answers::Trouble;
use super::page::number;
use super::routes::{Admin, Answer, PEER_LIMIT, Shared};
use crate::control_plane::ask_peer;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use kvhive_protocol::TraceContext;
use kvhive_protocol::control::{ControlReply, ControlRequest};
use kvhive_protocol::trace::{Fact, MAX_LISTED, Span, SpanId, SpanKind, TraceAnswer, TraceAsk, TraceId};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::{IntoParams, ToSchema};

/// The longest id of a request that a trace is asked for by.
const MAX_ID_BYTES: usize = 256;
/// Traces listed unless the asker says.
const USUAL: u32 = 20;

/// Whose part a request's answer is, if it is traced.
#[derive(Clone, Copy)]
pub(super) struct Traced(pub(super) Option<TraceContext>);

/// `/v1/traces/{id}`: one request, as far as processes have kept their parts of it.
#[derive(Serialize, ToSchema)]
pub(super) struct OneTrace {
    /// 32 hexadecimal digits.
    trace: String,
    /// When its first span began, in milliseconds since 1970 by that one's clock.
    began_ms: u64,
    /// From then to the end of the last span.
    took_us: u64,
    /// Its spans, each before its parts, and these in the order in which they began.
    spans: Vec<OneSpan>,
    /// Who did not answer: parts may be missing.
    silent: Vec<Silent>,
    /// Who keeps no traces.
    off: Vec<String>,
}

/// One span.
#[derive(Serialize, ToSchema)]
pub(super) struct OneSpan {
    /// 16 hexadecimal digits.
    span: String,
    /// The span that it is a part of, whether or not that is known here.
    parent: Option<String>,
    /// How many spans that are known here it is within.
    depth: u32,
    /// Who recorded it.
    process: String,
    name: String,
    /// `served`, `asked` or `inner`.
    kind: &'static str,
    /// When it began, after the trace did. Between two hosts their clocks' difference is in it.
    after_us: i64,
    took_us: u64,
    /// What it says of itself: numbers and texts.
    facts: BTreeMap<String, OneFact>,
    /// Why it failed.
    failed: Option<String>,
}

/// A number or a text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum OneFact {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

/// Somebody who did not answer.
#[derive(Serialize, ToSchema)]
pub(super) struct Silent {
    process: String,
    why: String,
}

/// `/v1/traces`: the newest.
#[derive(Serialize, ToSchema)]
pub(super) struct TraceList {
    /// Newest first.
    traces: Vec<OneSummary>,
    /// Who did not answer.
    silent: Vec<Silent>,
    /// Who keeps no traces.
    off: Vec<String>,
}

/// One trace in short.
#[derive(Serialize, ToSchema)]
pub(super) struct OneSummary {
    trace: String,
    /// The name of its outermost span.
    name: String,
    began_ms: u64,
    took_us: u64,
    spans: u64,
    /// Who has a part of it.
    processes: Vec<String>,
    failed: bool,
}

/// How many are listed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct HowMany {
    /// Traces listed, the newest; 20 unless said.
    #[serde(default, deserialize_with = "number::<_, u32, 1, 256>")]
    #[param(minimum = 1, maximum = 256)]
    limit: Option<u32>,
}

const _: () = assert!(MAX_LISTED == 256, "as many as may be asked for");

/// What everybody says.
#[derive(Default)]
struct Gathered {
    answers: Vec<(String, TraceAnswer)>,
    silent: Vec<Silent>,
    off: Vec<String>,
}

impl Gathered {
    fn take(&mut self, process: String, answer: Result<TraceAnswer, String>) {
        match answer {
            Ok(TraceAnswer::Off) => self.off.push(process),
            Ok(answer) => self.answers.push((process, answer)),
            Err(why) => self.silent.push(Silent { process, why }),
        }
    }
}

impl Admin {
    async fn gather(&self, ask: TraceAsk) -> Gathered {
        let peers = self.sources.peers.borrow().clone();
        let of_peers = peers.iter().map(|peer| async move {
            if peer.peer == self.sources.us {
                return (peer.name.clone(), Ok(self.sources.tracer.answer(ask)));
            }
            let request = ControlRequest::Trace(ask);
            let asked = ask_peer(&peer.raft_address, &self.sources.identity, &request, PEER_LIMIT).await;
            let answer = match asked {
                Ok(ControlReply::Traced(answer)) => Ok(answer),
                Ok(_) => Err("it answered otherwise".to_owned()),
                Err(fault) => Err(fault.to_string()),
            };
            (peer.name.clone(), answer)
        });
        let of_peers = futures_util::future::join_all(of_peers);
        let (of_peers, of_nodes) = tokio::join!(of_peers, self.sources.control.engines().traces(ask));
        let mut gathered = Gathered::default();
        of_peers.into_iter().for_each(|(process, answer)| gathered.take(process, answer));
        match of_nodes {
            Ok(nodes) => nodes.into_iter().for_each(|one| gathered.take(one.node, one.answer)),
            Err(why) => gathered.silent.push(Silent { process: "nodes".to_owned(), why }),
        }
        gathered
    }
}

/// The newest traces of every process, newest first.
#[utoipa::path(get, path = "/v1/traces", params(HowMany), responses((status = 200, body = TraceList)))]
pub(super) async fn traces(
    State(admin): Shared,
    query: Result<Query<HowMany>, QueryRejection>,
) -> Answer<TraceList> {
    let Query(HowMany { limit }) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let limit = limit.unwrap_or(USUAL);
    let Gathered { answers, silent, off } = admin.gather(TraceAsk::Newest(limit)).await;
    let mut traces = listed(&answers);
    traces.truncate(limit as usize);
    Ok(Json(TraceList { traces, silent, off }))
}

/// One request by its trace's id (32 hexadecimal digits), or by the request's own id as the engine that traced it has it.
#[utoipa::path(get, path = "/v1/traces/{id}", params(("id" = String, Path, description = "The trace's id, or the request's")), responses((status = 200, body = OneTrace), (status = 404, body = Problem)))]
pub(super) async fn trace(State(admin): Shared, id: Result<Path<String>, PathRejection>) -> Answer<OneTrace> {
    let Path(id) = id.map_err(|error| Trouble::bad_request(error.body_text()))?;
    if id.len() > MAX_ID_BYTES {
        return Err(Trouble::bad_request(format!("an id has at most {MAX_ID_BYTES} bytes")));
    }
    let trace = TraceId::of_request(&id);
    let Gathered { answers, silent, off } = admin.gather(TraceAsk::One(trace)).await;
    let spans: Vec<(&str, &Span)> = answers
        .iter()
        .filter_map(|(process, answer)| match answer {
            TraceAnswer::Spans(spans) => Some((process, spans)),
            _ => None,
        })
        .flat_map(|(process, spans)| spans.iter().map(move |span| (process.as_str(), span)))
        .collect();
    let Some(began_ns) = spans.iter().map(|(_, span)| span.began_ns).min() else {
        let hint = match answers.is_empty() {
            true => "no process traces: see [traces] in the cluster file".to_owned(),
            false => format!("{} processes keep traces, and none has it (any more)", answers.len()),
        };
        return Err(Trouble::not_found(format!("nothing is kept of trace {trace}: {hint}")));
    };
    let ended_ns = spans.iter().map(|(_, span)| span.began_ns.saturating_add(span.took_ns)).max();
    let shown = |(depth, process, span): (u32, &str, &Span)| OneSpan {
        span: span.id.to_string(),
        parent: span.parent.map(|parent| parent.to_string()),
        depth,
        process: process.to_owned(),
        name: span.name.clone().into_owned(),
        kind: match span.kind {
            SpanKind::Inner => "inner",
            SpanKind::Served => "served",
            SpanKind::Asked => "asked",
        },
        after_us: i64::try_from((span.began_ns - began_ns) / 1000).unwrap_or(i64::MAX),
        took_us: span.took_ns / 1000,
        facts: span.facts.iter().map(|(name, fact)| (name.clone().into_owned(), one_fact(fact))).collect(),
        failed: span.failed.clone(),
    };
    Ok(Json(OneTrace {
        trace: trace.to_string(),
        began_ms: began_ns / 1_000_000,
        took_us: (ended_ns.unwrap_or(began_ns) - began_ns) / 1000,
        spans: tree(&spans).into_iter().map(shown).collect(),
        silent,
        off,
    }))
}

fn one_fact(fact: &Fact) -> OneFact {
    match fact {
        Fact::Number(number) => OneFact::Number(*number),
        Fact::Text(text) => OneFact::Text(text.clone()),
    }
}

/// Puts spans in order: each before its parts, these by when they began. A span whose parent is not known stands on its own.
fn tree<'a>(spans: &[(&'a str, &'a Span)]) -> Vec<(u32, &'a str, &'a Span)> {
    let known: BTreeSet<SpanId> = spans.iter().map(|(_, span)| span.id).collect();
    let mut parts: BTreeMap<Option<SpanId>, Vec<(&str, &Span)>> = BTreeMap::new();
    for (process, span) in spans {
        let parent = span.parent.filter(|parent| known.contains(parent) && *parent != span.id);
        parts.entry(parent).or_default().push((process, span));
    }
    // Last first, as they are taken from the end.
    let last_first = |parts: &mut Vec<(&str, &Span)>| {
        parts.sort_by_key(|(_, span)| std::cmp::Reverse((span.began_ns, span.id)));
    };
    let mut open: Vec<(u32, &str, &Span)> = Vec::new();
    let mut begin = |parent: Option<SpanId>, depth: u32, open: &mut Vec<(u32, &'a str, &'a Span)>| {
        let Some(mut found) = parts.remove(&parent) else { return };
        last_first(&mut found);
        open.extend(found.into_iter().map(|(process, span)| (depth, process, span)));
    };
    begin(None, 0, &mut open);
    let mut ordered = Vec::with_capacity(spans.len());
    while let Some((depth, process, span)) = open.pop() {
        ordered.push((depth, process, span));
        begin(Some(span.id), depth + 1, &mut open);
    }
    ordered
}

/// Puts together what processes say of the same traces, newest first.
fn listed(answers: &[(String, TraceAnswer)]) -> Vec<OneSummary> {
    let mut traces: BTreeMap<TraceId, (u64, u64, OneSummary)> = BTreeMap::new();
    for (process, answer) in answers {
        let TraceAnswer::Newest(summaries) = answer else { continue };
        for one in summaries {
            let ended = one.began_ns.saturating_add(one.took_ns);
            let (began, end, whole) = traces.entry(one.trace).or_insert_with(|| {
                let summary = OneSummary {
                    trace: one.trace.to_string(),
                    name: one.name.clone().into_owned(),
                    began_ms: 0,
                    took_us: 0,
                    spans: 0,
                    processes: Vec::new(),
                    failed: false,
                };
                (one.began_ns, ended, summary)
            });
            if one.began_ns < *began {
                *began = one.began_ns;
                whole.name = one.name.clone().into_owned();
            }
            *end = ended.max(*end);
            whole.spans += u64::from(one.spans);
            whole.processes.push(process.clone());
            whole.failed |= one.failed;
        }
    }
    let mut traces: Vec<(u64, u64, OneSummary)> = traces.into_values().collect();
    traces.sort_by_key(|(began, ..)| std::cmp::Reverse(*began));
    let whole = |(began, end, whole): (u64, u64, OneSummary)| OneSummary {
        began_ms: began / 1_000_000,
        took_us: (end - began) / 1000,
        ..whole
    };
    traces.into_iter().map(whole).collect()
}

/// Middleware: a request that comes with a sampled `traceparent`, and a route as often as is sampled, leaves a span, and what it asks
/// of nodes is a part of it.
pub(super) async fn follow(State(admin): Shared, mut request: Request, next: Next) -> Response {
    let tracer = &admin.sources.tracer;
    let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let is_use = request.uri().path() == "/v1/route";
    let mut span = match parent {
        None if !is_use => kvhive_spans::Span::NONE,
        parent => tracer.serve_parent(parent, "admin request"),
    };
    if !span.is_on() {
        return next.run(request).await;
    }
    span.note("http.request.method", request.method().as_str());
    span.note("url.path", request.uri().path());
    request.extensions_mut().insert(Traced(span.context()));
    let response = next.run(request).await;
    span.note("http.response.status_code", u64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.fail(response.status());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u8, parent: u8, began_ns: u64) -> Span {
        Span {
            trace: TraceId::of_request("a"),
            id: SpanId::new([id; 8]).expect("not zero"),
            parent: SpanId::new([parent; 8]),
            kind: SpanKind::Inner,
            name: format!("{id}").into(),
            began_ns,
            took_ns: 5,
            facts: Vec::new(),
            failed: None,
        }
    }

    fn order(spans: &[Span]) -> Vec<(u32, &str)> {
        let spans: Vec<(&str, &Span)> = spans.iter().map(|span| ("node-0", span)).collect();
        tree(&spans).into_iter().map(|(depth, _, span)| (depth, &*span.name)).collect()
    }

    #[test]
    fn each_span_stands_before_its_parts_in_the_order_in_which_they_began() {
        let spans = [span(4, 2, 30), span(3, 1, 40), span(2, 1, 20), span(1, 99, 10), span(5, 4, 31)];
        assert_eq!(order(&spans), [(0, "1"), (1, "2"), (2, "4"), (3, "5"), (1, "3")]);
    }

    #[test]
    fn a_span_whose_parent_is_gone_stands_on_its_own_and_none_is_told_twice() {
        let spans = [span(2, 77, 20), span(1, 1, 10)];
        assert_eq!(order(&spans), [(0, "1"), (0, "2")]);
    }

    #[test]
    fn what_processes_say_of_a_trace_is_one_line() {
        let summary = |began_ns, took_ns, name: &'static str| kvhive_protocol::trace::TraceSummary {
            trace: TraceId::of_request("a"),
            name: name.into(),
            began_ns,
            took_ns,
            spans: 2,
            failed: name == "copy",
        };
        let answers = [
            ("node-1".to_owned(), TraceAnswer::Newest(vec![summary(2_000, 3_000, "copy")])),
            ("node-0".to_owned(), TraceAnswer::Newest(vec![summary(1_000, 2_000, "store")])),
        ];
        let list = listed(&answers);
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].name.as_str(), list[0].took_us, list[0].spans), ("store", 4, 4));
        assert!(list[0].failed && list[0].processes == ["node-1", "node-0"]);
    }
}
