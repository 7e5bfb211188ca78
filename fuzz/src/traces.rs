//! Traces that are replayed: a stranger's file, plain or packed.

use crate::trace_format;
use std::io::Write;
use std::path::Path;

/// Requests that are looked at: packed, a file has many more than bytes.
const MOST: usize = 256;

/// A file. Requests that are read are those that are read again of what is written of them.
pub(crate) fn trace(bytes: &[u8]) -> bool {
    let read = |bytes: &[u8]| -> Vec<trace_format::Request> {
        let requests = trace_format::read(Path::new("trace"), bytes);
        requests.map(|all| all.map_while(Result::ok).take(MOST).collect()).unwrap_or_default()
    };
    let requests = read(bytes);
    let mut text = Vec::new();
    for request in &requests {
        serde_json::to_writer(&mut text, request).expect("a request is plain data");
        text.write_all(b"\n").expect("memory takes it");
    }
    assert!(read(&text) == requests, "what was read is what is written of it");
    !requests.is_empty()
}
