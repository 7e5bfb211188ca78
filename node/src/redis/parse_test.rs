//! What is a request and what is not, in whatever pieces it comes.

use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { args: 4, arg_bytes: 20, bytes: 50 };

/// Gives a parser `pieces` one after the other; returns the requests, and what ended it.
fn all(pieces: &[&[u8]]) -> (Vec<Request>, Option<Wrong>) {
    let (mut parser, mut buf, mut requests) = (Parser::new(BOUNDS), BytesMut::new(), Vec::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match parser.next(&mut buf) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(wrong) => return (requests, Some(wrong)),
            }
        }
    }
    (requests, None)
}

fn request(args: &[&[u8]]) -> Request {
    Request { args: args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect(), too_long: None }
}

fn encoded(args: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend(arg);
        out.extend(b"\r\n");
    }
    out
}

#[test]
fn requests_follow_each_other_however_they_are_written() {
    let (requests, wrong) = all(&[b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\nPING\r\n\r\n*0\r\n*-1\r\n  get  'a b' \"\\x41\\n\\\"\"\n*1\r\n$0\r\n\r\n"]);
    assert_eq!(wrong, None);
    let expected = [
        request(&[b"GET", b"a\r\nb"]),
        request(&[b"PING"]),
        request(&[b"get", b"a b", b"A\n\""]),
        request(&[b""]),
    ];
    assert_eq!(requests, expected);
}

#[test]
fn what_is_no_request_is_told_by_name() {
    for (bytes, wrong) in [
        (&b"*x\r\n"[..], Wrong::Length("multibulk")),
        (b"*99999999999999999999\r\n", Wrong::Length("multibulk")),
        (b"*000000000000000000000000000000000", Wrong::Length("multibulk")),
        (b"*5\r\n", Wrong::Args(4)),
        (b"a b c d e\r\n", Wrong::Args(4)),
        (b"*1\r\n:1\r\n", Wrong::NoBulk(b':')),
        (b"*1\r\n$-1\r\n", Wrong::Length("bulk")),
        (b"*1\r\n$+1\r\n", Wrong::Length("bulk")),
        (b"*1\r\n$2\r\nabc\r\n", Wrong::NoEnd),
        (b"get 'a\r\n", Wrong::Quotes),
        (b"get 'a'b\r\n", Wrong::Quotes),
        (b"*4\r\n$20\r\nxxxxxxxxxxxxxxxxxxxx\r\n$20\r\nxxxxxxxxxxxxxxxxxxxx\r\n$20\r\n", Wrong::Bytes(50)),
    ] {
        assert_eq!(all(&[bytes]).1, Some(wrong), "{}", bytes.escape_ascii());
    }
    assert_eq!(all(&[&[b'x'; MAX_INLINE_BYTES]]).1, Some(Wrong::Inline));
}

#[test]
fn an_argument_that_is_too_long_is_passed_over_and_the_next_request_stands() {
    let (requests, wrong) = all(&[b"*2\r\n$3\r\nSET\r\n$30\r\n", &[b'x'; 29], b"x\r\n*1\r\n$4\r\nPING\r\n"]);
    assert_eq!(wrong, None);
    assert_eq!(requests, [Request { too_long: Some(30), ..request(&[b"SET", b""]) }, request(&[b"PING"])]);
}

#[test]
fn what_is_announced_is_wanted_before_it_is_here() {
    let (mut parser, mut buf) = (Parser::new(BOUNDS), BytesMut::from(&b"*2\r\n$3\r\nGET\r\n$20\r\nab"[..]));
    assert_eq!(parser.next(&mut buf), Ok(None));
    assert_eq!((parser.wants(), parser.lacks(buf.len()), parser.is_idle()), (23, 20, false));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        requests in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 1..5), 1..6),
        cuts in prop::collection::vec(1usize..9, 0..60),
    ) {
        let bytes: Vec<u8> = requests.iter().flat_map(|args| encoded(args)).collect();
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, left) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        pieces.push(rest);
        let (got, wrong) = all(&pieces);
        prop_assert_eq!(wrong, None);
        let got: Vec<Vec<Vec<u8>>> = got.into_iter().map(|one| one.args.iter().map(|arg| arg.to_vec()).collect()).collect();
        prop_assert_eq!(got, requests);
    }

    #[test]
    fn no_bytes_whatever_are_too_much_for_it(bytes in prop::collection::vec(prop::sample::select(&b"*$-0129\r\n'\"\\ax "[..]), 0..200)) {
        let (requests, _) = all(&[&bytes]);
        for request in requests {
            prop_assert!((1..=BOUNDS.args).contains(&request.args.len()));
        }
    }
}
