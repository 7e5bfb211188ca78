//! Replies as bytes, in RESP2 or RESP3.

use bytes::Bytes;

/// A reply.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Reply {
    /// A word that says that it was done.
    Word(&'static str),
    /// Why it was not: a code in capitals, and the reason.
    Error(String),
    Integer(i64),
    Bulk(Bytes),
    /// Nothing.
    Nil,
    Array(Vec<Reply>),
    /// Pairs; in RESP2 an array of twice as many.
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    pub(super) const OK: Reply = Reply::Word("OK");

    /// Makes an error of a request that cannot be done as it is.
    pub(super) fn wrong(reason: impl std::fmt::Display) -> Reply {
        Reply::Error(format!("ERR {reason}"))
    }

    pub(super) fn text(text: impl Into<String>) -> Reply {
        Reply::Bulk(Bytes::from(text.into()))
    }

    pub(super) fn count(number: usize) -> Reply {
        Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// Writes it.
    pub(super) fn encode(&self, resp3: bool, out: &mut Vec<u8>) {
        match self {
            Reply::Word(word) => line(out, b'+', word.as_bytes()),
            // What a caller has sent may be in it, line ends and all.
            Reply::Error(error) => {
                let text: Vec<u8> =
                    error.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }).collect();
                line(out, b'-', &text);
            }
            Reply::Integer(number) => line(out, b':', number.to_string().as_bytes()),
            Reply::Bulk(bytes) => {
                line(out, b'$', bytes.len().to_string().as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::Nil if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
            Reply::Array(all) => {
                line(out, b'*', all.len().to_string().as_bytes());
                all.iter().for_each(|one| one.encode(resp3, out));
            }
            Reply::Map(pairs) => {
                let (kind, len) = if resp3 { (b'%', pairs.len()) } else { (b'*', 2 * pairs.len()) };
                line(out, kind, len.to_string().as_bytes());
                for (key, value) in pairs {
                    key.encode(resp3, out);
                    value.encode(resp3, out);
                }
            }
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_as_either_version_has_it() {
        let all = Reply::Array(vec![
            Reply::OK,
            Reply::wrong("no\r\nsuch"),
            Reply::Integer(-7),
            Reply::Bulk(Bytes::from_static(b"a\r\n")),
            Reply::Nil,
            Reply::Map(vec![(Reply::text("k"), Reply::count(1))]),
        ]);
        for (resp3, expected) in [
            (false, "*6\r\n+OK\r\n-ERR no  such\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n$1\r\nk\r\n:1\r\n"),
            (true, "*6\r\n+OK\r\n-ERR no  such\r\n:-7\r\n$3\r\na\r\n\r\n_\r\n%1\r\n$1\r\nk\r\n:1\r\n"),
        ] {
            let mut out = Vec::new();
            all.encode(resp3, &mut out);
            assert_eq!(String::from_utf8(out).expect("it is text"), expected);
        }
    }
}
