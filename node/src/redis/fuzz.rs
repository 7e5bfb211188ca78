//! What callers of the Redis port send. For `kvhive-fuzz` alone.

use super::parse::{Bounds, MAX_ARGS, Parser, Request, STRANGERS};
use super::session::{Session, Step};
use bytes::{Bytes, BytesMut};
use kvhive_runtime::http::{Access, Role};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// The largest value.
const VALUE_BYTES: usize = 4096;
/// The password that gives everything.
const PASSWORD: &[u8] = b"all";

/// Requests as a caller sends them, after a byte that says who calls and how its bytes arrive. All of it in one piece and byte by byte
/// must be the same requests. Returns the requests, as a client writes them.
pub fn redis(bytes: &[u8]) -> Option<Vec<u8>> {
    let (how, bytes) = bytes.split_first()?;
    let bounds = match how & 1 {
        0 => STRANGERS,
        _ => Bounds { args: MAX_ARGS, arg_bytes: VALUE_BYTES, bytes: 4 * VALUE_BYTES },
    };
    let piece = usize::from(how >> 1).max(1);
    let (whole, ended) = requests(bounds, [bytes].into_iter());
    let in_pieces = requests(bounds, bytes.chunks(piece));
    assert!(in_pieces.0 == whole && in_pieces.1 == ended, "how bytes arrive is of no matter");
    let access = Access::default().with(Role::Admin, PASSWORD).ok()?;
    let mut session = Session::new(1, Arc::new(access), VALUE_BYTES);
    let mut out = vec![*how];
    for request in &whole {
        let was_known = session.is_known();
        let step = session.step(request, UNIX_EPOCH + Duration::from_secs(1), |tenant| tenant == "default");
        let is_served = matches!(step, Step::Do(_) | Step::Tell(_));
        assert!(was_known || !is_served, "a stranger is served nothing");
        if let Step::Say(reply) | Step::End(reply) = step {
            let mut answer = Vec::new();
            reply.encode(session.speaks_resp3(), &mut answer);
            assert!(answer.ends_with(b"\r\n"));
        }
        if request.too_long.is_none() {
            write(&request.args, &mut out);
        }
    }
    (!whole.is_empty()).then_some(out)
}

/// Reads what comes in these pieces, as far as it makes sense; says whether it then does not.
fn requests<'a>(bounds: Bounds, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Request>, bool) {
    let mut parser = Parser::new(bounds);
    let (mut buffer, mut requests) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(_) => return (requests, true),
            }
            assert!(parser.wants() <= bounds.bytes, "no more is awaited than is allowed");
        }
    }
    (requests, false)
}

fn write(args: &[Bytes], out: &mut Vec<u8>) {
    out.extend(format!("*{}\r\n", args.len()).bytes());
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}
