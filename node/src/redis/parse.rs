//! Requests out of bytes: RESP arrays of bulk strings, and lines typed by hand. It keeps where it is, so that no byte is looked at
//! twice, and takes nothing on trust: every length is compared with its bound before anything is made of it.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// The longest line that tells a length.
const MAX_HEADER_BYTES: usize = 32;
/// The longest line that is a request by itself.
const MAX_INLINE_BYTES: usize = 16 * 1024;

/// What one request may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    /// Arguments, the command's name among them.
    pub(super) args: usize,
    /// Bytes of one argument: a longer one is passed over and named in the answer.
    pub(super) arg_bytes: usize,
    /// Bytes of all arguments.
    pub(super) bytes: usize,
}

/// Bounds of those who have not shown who they are.
pub(super) const STRANGERS: Bounds = Bounds { args: 10, arg_bytes: 4096, bytes: 16 * 1024 };
/// Arguments of one request of those who have.
pub(super) const MAX_ARGS: usize = 8192;

/// A whole request: at least one argument.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    /// The command and its arguments; one that was too long is empty.
    pub(super) args: Vec<Bytes>,
    /// The length of the longest argument, if it was too long.
    pub(super) too_long: Option<usize>,
}

/// What is no request: nothing that follows can be told apart, so the connection ends.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(super) enum Wrong {
    /// A length is no number, or makes no sense.
    #[error("Protocol error: invalid {0} length")]
    Length(&'static str),
    /// Something else stands where an argument should.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0).escape_default())]
    NoBulk(u8),
    /// An argument does not end where it said.
    #[error("Protocol error: an argument does not end where its length says")]
    NoEnd,
    /// A line does not end.
    #[error("Protocol error: too big inline request")]
    Inline,
    /// A quote of a line is not closed.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    /// All arguments together are too much.
    #[error("Protocol error: a request of more than {0} bytes")]
    Bytes(usize),
    /// They are too many.
    #[error("Protocol error: a request of more than {0} arguments")]
    Args(usize),
}

/// Where the parser is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before a request.
    Begin,
    /// Before an argument's length.
    Header,
    /// Before the bytes of an argument.
    Bulk(usize),
    /// Within an argument that is passed over: so many bytes are left, its line end among them.
    Skip(usize),
}

/// Makes requests of bytes.
pub(super) struct Parser {
    bounds: Bounds,
    state: State,
    args: Vec<Bytes>,
    /// Arguments that are to come.
    left: usize,
    /// Bytes of those that are here.
    bytes: usize,
    too_long: Option<usize>,
}

impl Parser {
    pub(super) fn new(bounds: Bounds) -> Parser {
        Parser { bounds, state: State::Begin, args: Vec::new(), left: 0, bytes: 0, too_long: None }
    }

    /// Has requests that begin from now on bound otherwise.
    pub(super) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Says whether it is between two requests.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Begin
    }

    /// Returns the bytes that the request under way takes, those among them that were announced and are not here.
    pub(super) fn wants(&self) -> usize {
        match self.state {
            State::Bulk(len) => self.bytes + len,
            _ => self.bytes,
        }
    }

    /// Returns how many bytes the argument under way needs before it is whole.
    pub(super) fn lacks(&self, here: usize) -> usize {
        match self.state {
            State::Bulk(len) => (len + 2).saturating_sub(here),
            _ => 0,
        }
    }

    /// Takes the next request out of `buf`; none if it is not whole.
    pub(super) fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Request>, Wrong> {
        loop {
            match self.state {
                State::Begin => {
                    let Some(first) = buf.first() else { return Ok(None) };
                    if *first != b'*' {
                        let Some(line) = line(buf, MAX_INLINE_BYTES).ok_or(Wrong::Inline)? else {
                            return Ok(None);
                        };
                        let args = words(&line)?;
                        if args.len() > self.bounds.args {
                            return Err(Wrong::Args(self.bounds.args));
                        }
                        // An empty line is no request.
                        if args.is_empty() {
                            continue;
                        }
                        return Ok(Some(Request { args, too_long: None }));
                    }
                    let wrong = Wrong::Length("multibulk");
                    let Some(line) = line(buf, MAX_HEADER_BYTES).ok_or(wrong.clone())? else {
                        return Ok(None);
                    };
                    let args = number(&line[1..]).ok_or(wrong)?;
                    // An array of none, or the null array, is no request either.
                    let Ok(args @ 1..) = usize::try_from(args) else { continue };
                    if args > self.bounds.args {
                        return Err(Wrong::Args(self.bounds.args));
                    }
                    self.left = args;
                    self.state = State::Header;
                }
                State::Header => {
                    match buf.first() {
                        None => return Ok(None),
                        Some(b'$') => {}
                        Some(other) => return Err(Wrong::NoBulk(*other)),
                    }
                    let wrong = Wrong::Length("bulk");
                    let Some(line) = line(buf, MAX_HEADER_BYTES).ok_or(wrong.clone())? else {
                        return Ok(None);
                    };
                    let len =
                        number(&line[1..]).and_then(|len| usize::try_from(len).ok()).ok_or(wrong.clone())?;
                    if len > self.bounds.arg_bytes {
                        self.too_long = self.too_long.max(Some(len));
                        self.state = State::Skip(len.checked_add(2).ok_or(wrong)?);
                        continue;
                    }
                    if self.bytes + len > self.bounds.bytes {
                        return Err(Wrong::Bytes(self.bounds.bytes));
                    }
                    self.state = State::Bulk(len);
                }
                State::Bulk(len) => {
                    if buf.len() < len + 2 {
                        return Ok(None);
                    }
                    let arg = buf.split_to(len).freeze();
                    if buf[..2] != *b"\r\n" {
                        return Err(Wrong::NoEnd);
                    }
                    buf.advance(2);
                    self.bytes += len;
                    if let Some(request) = self.took(arg) {
                        return Ok(Some(request));
                    }
                }
                State::Skip(left) => {
                    let here = left.min(buf.len());
                    buf.advance(here);
                    if here < left {
                        self.state = State::Skip(left - here);
                        return Ok(None);
                    }
                    if let Some(request) = self.took(Bytes::new()) {
                        return Ok(Some(request));
                    }
                }
            }
        }
    }

    /// Takes an argument in; returns the request if it is whole then.
    fn took(&mut self, arg: Bytes) -> Option<Request> {
        self.args.push(arg);
        self.left -= 1;
        self.state = State::Header;
        (self.left == 0).then(|| {
            self.state = State::Begin;
            self.bytes = 0;
            Request { args: std::mem::take(&mut self.args), too_long: self.too_long.take() }
        })
    }
}

/// Takes a line out of `buf`, without its end: the inner none if it is not whole, the outer one if it is too long.
fn line(buf: &mut BytesMut, most: usize) -> Option<Option<Bytes>> {
    let Some(end) = buf.iter().take(most).position(|byte| *byte == b'\n') else {
        return (buf.len() < most).then_some(None);
    };
    let mut line = buf.split_to(end + 1);
    line.truncate(end);
    if line.last() == Some(&b'\r') {
        line.truncate(end - 1);
    }
    Some(Some(line.freeze()))
}

/// Reads a whole number as RESP writes them.
pub(super) fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_one = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_one)?.parse().ok()
}

/// Parts a line into words, as a shell would: within double quotes a backslash escapes, within single ones only a quote.
fn words(line: &[u8]) -> Result<Vec<Bytes>, Wrong> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let Some(first) = rest.first().copied() {
        let mut word = Vec::new();
        if first == b'"' || first == b'\'' {
            rest = quoted(first, &rest[1..], &mut word)?;
            if rest.first().is_some_and(|next| !next.is_ascii_whitespace()) {
                return Err(Wrong::Quotes);
            }
        } else {
            let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
            word.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
        }
        words.push(Bytes::from(word));
        rest = rest.trim_ascii_start();
    }
    Ok(words)
}

/// Reads to the closing quote; returns what follows it.
fn quoted<'a>(quote: u8, mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], Wrong> {
    loop {
        let (byte, taken) = match rest {
            [first, ..] if *first == quote => return Ok(&rest[1..]),
            [b'\\', b'\'', ..] if quote == b'\'' => (b'\'', 2),
            [b'\\', b'x', high, low, ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
                (digit(*high) << 4 | digit(*low), 4)
            }
            [b'\\', next, ..] if quote == b'"' => {
                let escaped = match next {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                };
                (escaped, 2)
            }
            [byte, ..] => (*byte, 1),
            [] => return Err(Wrong::Quotes),
        };
        word.push(byte);
        rest = &rest[taken..];
    }
}

#[cfg(test)]
#[path = "parse_test.rs"]
mod tests;
