//! A plain HTTP/1.1 exchange, byte by byte, so that tests can also send what no client library would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any answer takes; a server that never answers fails the test instead of hanging it.
const LIMIT: Duration = Duration::from_secs(20);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Header lines as sent, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns status and error code, after checking that the error has the documented form and says something.
    pub(crate) fn refusal(&self) -> (u16, String) {
        let json = self.json();
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let fields = json.as_object().unwrap_or_else(|| panic!("no problem document: {self:?}"));
        assert_eq!(
            fields.keys().map(String::as_str).collect::<Vec<_>>(),
            ["code", "detail", "status", "title", "type"],
            "{self:?}"
        );
        let code = json["code"].as_str().unwrap_or_default();
        assert_eq!(json["type"], format!("urn:kvhive:problem:{code}"), "{self:?}");
        assert_eq!(json["status"], self.status, "{self:?}");
        assert!(!json["detail"].as_str().unwrap_or_default().is_empty(), "{self:?}");
        (self.status, code.to_owned())
    }
}

/// Sends a request with `body` and returns the whole answer.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut all = headers.to_vec();
    let length = body.len().to_string();
    if !body.is_empty() {
        all.push(("content-length", &length));
    }
    announce(address, method, path, &all, body)
}

/// Sends exactly these headers and these bytes after them, however they fit together.
pub(crate) fn announce(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = connect(address);
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request).expect("the request is sent");
    answer(stream)
}

/// Opens a connection and sends nothing.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, LIMIT).expect("the admin API accepts");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket takes a timeout");
    stream.set_write_timeout(Some(LIMIT)).expect("a socket takes a timeout");
    stream
}

fn answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A server that refuses an unread body may reset the connection after its answer.
    if let Err(error) = stream.read_to_end(&mut bytes)
        && bytes.is_empty()
    {
        panic!("no answer: {error}");
    }
    // A backup is bytes; nobody here looks into those.
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status: status.expect("an answer has a status"), headers, body: body.to_owned() }
}
