//! Trace files: one JSON object a line with `timestamp` (ms) and `hash_ids` (block ids from token 0) or `hash_runs`
//! (`[first, count]` pairs). Plain, gzip and zstd files are told apart by their first bytes. Every line is bounded
//! before it is parsed: a trace is a stranger's file.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The longest line, in bytes.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// The most blocks of one request: 16 Mi tokens at 16 tokens a block.
const MAX_BLOCKS: u64 = 1 << 20;

/// One request of a trace.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Request {
    /// Milliseconds since the trace began.
    pub(crate) timestamp: f64,
    /// Tokens of the prompt; zero when the trace does not say.
    pub(crate) input_length: u64,
    /// Tokens of the answer; zero when the trace does not say.
    pub(crate) output_length: u64,
    /// Block ids from token 0. Equal ids mean equal content and equal whole prefix.
    pub(crate) hash_ids: Vec<u64>,
    /// Which conversation it belongs to, where the trace says; for reading, never for a cache's decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chat_id: Option<i64>,
}

impl Request {
    /// Returns the tokens that `blocks` leading blocks save, at `block_tokens` tokens a block.
    pub(crate) fn tokens_in(&self, blocks: usize, block_tokens: u32) -> u64 {
        let tokens = blocks as u64 * u64::from(block_tokens);
        if self.input_length == 0 { tokens } else { tokens.min(self.input_length) }
    }

    /// Returns the prompt's tokens, counted from its blocks when the trace does not say.
    pub(crate) fn tokens(&self, block_tokens: u32) -> u64 {
        if self.input_length == 0 {
            self.tokens_in(self.hash_ids.len(), block_tokens)
        } else {
            self.input_length
        }
    }
}

/// Why a trace could not be read.
#[derive(Debug, Error)]
pub(crate) enum TraceError {
    /// The file cannot be opened or read.
    #[error("cannot read the trace {path}: {why}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// A line is no request.
    #[error("{path}:{line}: {reason}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it and what was expected.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    #[serde(default)]
    hash_ids: Option<Vec<u64>>,
    #[serde(default)]
    hash_runs: Option<Vec<(u64, u64)>>,
    #[serde(default)]
    input_length: u64,
    #[serde(default)]
    output_length: u64,
    #[serde(default)]
    chat_id: Option<i64>,
}

/// Opens a trace and walks over its requests in the file's order.
///
/// # Errors
/// When the file cannot be opened; each item is an error when its line is no request.
pub(crate) fn open(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Request, TraceError>> + use<>, TraceError> {
    let file = File::open(path).map_err(|why| TraceError::File { path: path.to_owned(), why })?;
    read(path, file)
}

/// Walks over the requests of what `file` gives; `path` is what errors call it.
///
/// # Errors
/// As [`open`].
pub(crate) fn read<'a, R: Read + 'a>(
    path: &Path,
    mut file: R,
) -> Result<impl Iterator<Item = Result<Request, TraceError>> + use<'a, R>, TraceError> {
    let fail = |why| TraceError::File { path: path.to_owned(), why };
    let mut magic = Vec::with_capacity(4);
    file.by_ref().take(4).read_to_end(&mut magic).map_err(fail)?;
    let whole = io::Cursor::new(magic.clone()).chain(file);
    let reader: Box<dyn BufRead + 'a> = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(BufReader::new(zstd::stream::read::Decoder::new(whole).map_err(fail)?))
        }
        _ => Box::new(BufReader::new(whole)),
    };
    Ok(Requests { reader, path: path.to_owned(), line: 0, text: Vec::new(), failed: false })
}

struct Requests<'a> {
    reader: Box<dyn BufRead + 'a>,
    path: PathBuf,
    line: u64,
    text: Vec<u8>,
    failed: bool,
}

impl Iterator for Requests<'_> {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            self.text.clear();
            self.line += 1;
            match self.reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.text) {
                Ok(0) => return None,
                Ok(count) if count as u64 > MAX_LINE_BYTES => {
                    self.failed = true;
                    return Some(Err(self.refuse(format!("line is longer than {MAX_LINE_BYTES} bytes"))));
                }
                Ok(_) if self.text.trim_ascii().is_empty() => {}
                Ok(_) => {
                    return Some(parse(&self.text).map_err(|reason| {
                        self.failed = true;
                        self.refuse(reason)
                    }));
                }
                Err(source) => {
                    self.failed = true;
                    return Some(Err(TraceError::File { path: self.path.clone(), why: source }));
                }
            }
        }
        None
    }
}

impl Requests<'_> {
    fn refuse(&self, reason: String) -> TraceError {
        TraceError::Line { path: self.path.clone(), line: self.line, reason }
    }
}

fn parse(text: &[u8]) -> Result<Request, String> {
    let line: Line = serde_json::from_slice(text).map_err(|error| format!("not a request: {error}"))?;
    if !line.timestamp.is_finite() || line.timestamp < 0.0 {
        return Err(format!("timestamp is {}, expected milliseconds from 0", line.timestamp));
    }
    let hash_ids = match (line.hash_ids, line.hash_runs) {
        (Some(ids), None) => ids,
        (None, Some(runs)) => expand(&runs)?,
        _ => return Err("expected either hash_ids or hash_runs".to_owned()),
    };
    if hash_ids.len() as u64 > MAX_BLOCKS {
        return Err(format!("{} blocks, at most {MAX_BLOCKS} are allowed", hash_ids.len()));
    }
    Ok(Request {
        timestamp: line.timestamp,
        input_length: line.input_length,
        output_length: line.output_length,
        hash_ids,
        chat_id: line.chat_id,
    })
}

fn expand(runs: &[(u64, u64)]) -> Result<Vec<u64>, String> {
    let mut total = 0u64;
    for (first, count) in runs {
        total = total.saturating_add(*count);
        if total > MAX_BLOCKS || first.checked_add(*count).is_none() {
            return Err(format!("hash_runs name more than {MAX_BLOCKS} blocks"));
        }
    }
    Ok(runs.iter().flat_map(|(first, count)| *first..first + count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> Vec<Result<Request, String>> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(bytes).expect("room for a trace");
        open(file.path()).expect("it opens").map(|item| item.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn runs_and_ids_say_the_same() {
        let text =
            b"{\"timestamp\":0,\"hash_ids\":[3,4,5,9]}\n\n{\"timestamp\":1,\"hash_runs\":[[3,3],[9,1]]}\n";
        let requests = read(text);
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].as_ref().expect("ids").hash_ids, requests[1].as_ref().expect("runs").hash_ids);
    }

    #[test]
    fn compressed_files_are_told_by_their_bytes() {
        let text = b"{\"timestamp\":5,\"hash_ids\":[1],\"input_length\":700}\n";
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(text).expect("memory");
        let zstd = zstd::encode_all(&text[..], 1).expect("memory");
        assert_eq!(read(&gz.finish().expect("memory")), read(text));
        assert_eq!(read(&zstd), read(text));
    }

    #[test]
    fn a_bad_line_is_named_and_ends_the_trace() {
        let errors = read(
            b"{\"timestamp\":0,\"hash_ids\":[1]}\n{\"timestamp\":0}\n{\"timestamp\":0,\"hash_ids\":[1]}\n",
        );
        assert_eq!(errors.len(), 2);
        let error = errors[1].as_ref().expect_err("no blocks");
        assert!(error.ends_with(":2: expected either hash_ids or hash_runs"), "{error}");
    }

    #[test]
    fn a_run_of_a_trillion_blocks_is_refused_before_it_is_expanded() {
        let errors = read(b"{\"timestamp\":0,\"hash_runs\":[[0,1000000000000]]}\n");
        assert!(errors[0].as_ref().expect_err("too many").contains("more than 1048576 blocks"));
    }
}
