//! A collector of traces, as small as OTLP over HTTP allows: takes spans, remembers them, and says what came.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// One span, and who sent it.
#[derive(Clone, Debug)]
pub struct Collected {
    /// `service.name` and `service.instance.id` of the sender.
    pub sender: (String, String),
    /// The span.
    pub span: Span,
}

impl Collected {
    /// Returns what the span says of itself under a name, in words.
    pub fn fact(&self, name: &str) -> Option<String> {
        fact(&self.span.attributes, name)
    }

    /// Returns its trace, in hexadecimal.
    pub fn trace(&self) -> String {
        self.span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn fact(facts: &[KeyValue], name: &str) -> Option<String> {
    let found = facts.iter().find(|fact| fact.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

/// A running collector. Dropped, it ends.
pub struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Collected>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// When there is none.
    pub fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (spans, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (taken, ended) = (spans.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), taken) = (stream, taken.clone()) else { continue };
                // Ends when its sender closes.
                std::thread::spawn(move || converse(stream, &taken));
            }
        });
        Collector { url, spans, ends, thread: Some(thread) }
    }

    /// Returns its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns what has come.
    pub fn spans(&self) -> Vec<Collected> {
        self.spans.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Wakes the thread, which sees that it is to end.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers requests until the other end closes. Whatever is no export of spans is answered 400, and nothing is taken of it.
fn converse(stream: TcpStream, taken: &Mutex<Vec<Collected>>) {
    let Ok(mut answers) = stream.try_clone() else { return };
    let mut requests = BufReader::new(stream);
    while let Some((head, body)) = request(&mut requests) {
        let is_one = head.starts_with("POST /v1/traces HTTP/1.1\r\n")
            && head.to_ascii_lowercase().contains("content-type: application/x-protobuf");
        let status = match ExportTraceServiceRequest::decode(&body[..]) {
            Ok(export) if is_one => {
                taken.lock().unwrap_or_else(|poison| poison.into_inner()).extend(spans_of(export));
                "200 OK"
            }
            _ => "400 Bad Request",
        };
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n");
        if answers.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn request(from: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if &head[before..] == "\r\n" {
            break;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    from.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn spans_of(export: ExportTraceServiceRequest) -> Vec<Collected> {
    let mut all = Vec::new();
    for resource in export.resource_spans {
        let facts = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let said = |name| fact(&facts, name).unwrap_or_default();
        let sender = (said("service.name"), said("service.instance.id"));
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            all.push(Collected { sender: sender.clone(), span });
        }
    }
    all
}
