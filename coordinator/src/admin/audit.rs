//! The audit log: who asked for which change, and what came of it. A line of JSON each in the coordinator's own folder, and the
//! same as an event of the log. Secrets and bodies are in neither.

use super::asked;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use kvhive_runtime::http::Role;
use kvhive_steps::step;
use serde::Serialize;
use std::convert::Infallible;
use std::fmt;
use std::fs::{File, OpenOptions, rename};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Instant, SystemTime};

/// The file, in the coordinator's folder. The one before it has `.1` behind its name.
const FILE: &str = "audit.jsonl";
/// A file of so many bytes is put aside; the one before it is deleted.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Lines that wait to be written. What comes beyond is in the log's events alone.
const QUEUE: usize = 1024;
/// Characters of a path that are kept.
const MAX_PATH: usize = 256;

/// One change that was asked for.
#[derive(Serialize, Debug)]
struct Entry {
    time: String,
    from: String,
    role: String,
    method: String,
    path: String,
    /// The name that the asker gave the change.
    change: Option<String>,
    /// The HTTP status that it was answered with.
    status: u16,
    took_ms: u64,
}

/// Writes what is asked for; its thread ends with it.
pub(crate) struct Audit {
    lines: SyncSender<Vec<u8>>,
}

impl Audit {
    /// Begins to write in `folder`.
    ///
    /// # Errors
    /// When the file cannot be opened or no thread be had.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Audit> {
        let mut book = Book::open(folder)?;
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || book.keep(&queue))?;
        Ok(Audit { lines })
    }

    /// Middleware: notes every request that changes something, with its outcome.
    pub(super) async fn note(State(audit): State<Arc<Audit>>, request: Request, next: Next) -> Response {
        if request.method().is_safe() || is_question(request.uri().path()) {
            return next.run(request).await;
        }
        let begun = Instant::now();
        let role = request.extensions().get::<Role>().map(Role::to_string);
        let from = request.extensions().get::<ConnectInfo<From>>().map(|from| from.0.0.to_string());
        let mut entry = Entry {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            from: from.unwrap_or_default(),
            role: role.unwrap_or_default(),
            method: request.method().to_string(),
            path: request.uri().path().chars().take(MAX_PATH).collect(),
            change: asked::named(request.headers()),
            status: 0,
            took_ms: 0,
        };
        let response = next.run(request).await;
        if response.extensions().get::<Looked>().is_some() {
            return response;
        }
        entry.status = response.status().as_u16();
        entry.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        audit.write(&entry);
        response
    }

    fn write(&self, entry: &Entry) {
        tracing::info!(
            from = entry.from,
            role = entry.role,
            method = entry.method,
            path = entry.path,
            change = entry.change,
            status = entry.status,
            took_ms = entry.took_ms,
            "a change was asked for"
        );
        let mut line = serde_json::to_vec(entry).expect("plain fields always encode");
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            tracing::error!("the audit file cannot keep up: the change is in this log alone");
        }
    }
}

/// Says whether a request changes nothing that lasts, though it is a POST: there may be thousands of them in a second.
fn is_question(path: &str) -> bool {
    path == "/v1/route" || path.starts_with("/v1/engines/") && path.ends_with("/load")
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct From(SocketAddr);

/// Says with an answer that nothing was to be changed.
#[derive(Clone, Copy)]
pub(super) struct Looked;

/// Who asks, as far as it is known: the role of the token, and from where.
pub(super) struct Asker(String);

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Asker, Infallible> {
        let role = parts.extensions.get::<Role>().map_or_else(|| "somebody".to_owned(), Role::to_string);
        let from = parts.extensions.get::<ConnectInfo<From>>().map(|from| from.0.0.ip());
        Ok(Asker(from.map_or_else(|| role.clone(), |from| format!("{role} at {from}"))))
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, kvhive_runtime::BoundedListener>>
    for From
{
    fn connect_info(stream: axum::serve::IncomingStream<'_, kvhive_runtime::BoundedListener>) -> From {
        From(*stream.remote_addr())
    }
}

/// The file that lines are added to.
struct Book {
    folder: PathBuf,
    file: File,
    bytes: u64,
}

impl Book {
    fn open(folder: PathBuf) -> io::Result<Book> {
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(folder.join(FILE))?;
        let mut bytes = file.metadata()?.len();
        let mut last = [b'\n'];
        if let Some(at) = bytes.checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        // A process that ended has left a part of a line: the next one is not joined to it.
        if last != *b"\n" {
            step("audit: end line")?;
            match file.write_all(b"\n") {
                Ok(()) => bytes += 1,
                // A full disk keeps no coordinator from its work.
                Err(error) => {
                    tracing::error!(%error, folder = %folder.display(), "the audit file's last line cannot be ended")
                }
            }
        }
        Ok(Book { folder, file, bytes })
    }

    /// Adds what comes until nobody can send more.
    fn keep(&mut self, queue: &Receiver<Vec<u8>>) {
        let mut lacking = 0u64;
        for line in queue {
            match self.add(&line) {
                Ok(()) if lacking > 0 => {
                    tracing::warn!(lacking, folder = %self.folder.display(), "the audit file can be written again; changes before are in this log alone");
                    lacking = 0;
                }
                Ok(()) => {}
                Err(error) => {
                    // Said once, and not for each change while it lasts.
                    if lacking == 0 {
                        tracing::error!(%error, folder = %self.folder.display(), "the audit file cannot be written: changes are in this log alone");
                    }
                    lacking += 1;
                    self.cut();
                }
            }
        }
    }

    /// Takes away what a failed write has left of a line: the next one would be joined to it.
    fn cut(&self) {
        if let Err(error) = self.file.set_len(self.bytes) {
            tracing::debug!(%error, "the audit file may end with a part of a line");
        }
    }

    fn add(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes + line.len() as u64 > MAX_FILE_BYTES {
            let path = self.folder.join(FILE);
            step("audit: put aside")?;
            match rename(&path, self.folder.join(format!("{FILE}.1"))) {
                // It was, and the next one could not be made.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            step("audit: begin anew")?;
            *self = Book::open(self.folder.clone())?;
        }
        step("audit: write line")?;
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_steps::at_each;

    #[test]
    fn a_full_file_is_put_aside_and_the_one_before_it_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut book = Book::open(folder.path().to_owned()).expect("it is writable");
        let mut line = vec![b'x'; (MAX_FILE_BYTES / 2) as usize];
        *line.last_mut().expect("it has bytes") = b'\n';
        for _ in 0..5 {
            book.add(&line).expect("there is room");
        }
        let bytes = |name: &str| std::fs::metadata(folder.path().join(name)).expect("it is there").len();
        assert_eq!((bytes(FILE), bytes("audit.jsonl.1")), (MAX_FILE_BYTES / 2, MAX_FILE_BYTES));
        // Another start goes on with it.
        let again = Book::open(folder.path().to_owned()).expect("it is writable");
        assert_eq!(again.bytes, MAX_FILE_BYTES / 2);
    }

    #[test]
    fn a_file_whose_putting_aside_ends_anywhere_goes_on_in_this_process_and_in_the_next() {
        for goes_on in [false, true] {
            at_each(&["audit: put aside", "audit: begin anew", "audit: write line"], |ends| {
                let folder = tempfile::tempdir().expect("a folder");
                let mut book = Book::open(folder.path().to_owned()).expect("it is writable");
                book.add(&vec![b'x'; MAX_FILE_BYTES as usize]).expect("there is room");
                let added = ends.run(|| book.add(b"one\n"));
                assert_eq!(added.is_ok(), ends.before().is_none());
                let mut book = match goes_on {
                    true => book,
                    false => Book::open(folder.path().to_owned()).expect("it is writable"),
                };
                book.cut();
                book.add(b"two\n").expect("there is room");
                let text = std::fs::read(folder.path().join(FILE)).expect("it is there");
                let lines = if added.is_ok() { &b"one\ntwo\n"[..] } else { b"two\n" };
                assert_eq!(text, lines, "{ends:?}");
                let before = std::fs::metadata(folder.path().join("audit.jsonl.1")).expect("it is there");
                assert!(before.len() >= MAX_FILE_BYTES, "{ends:?}");
            });
        }
    }

    #[test]
    fn a_part_of_a_line_is_ended_after_a_start_that_ends_anywhere() {
        at_each(&["audit: end line"], |ends| {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(FILE), b"one\ntw").expect("there is room");
            let opened = ends.run(|| Book::open(folder.path().to_owned()).map(drop));
            assert_eq!(opened.is_ok(), ends.before().is_none());
            let mut book = Book::open(folder.path().to_owned()).expect("it is writable");
            book.add(b"three\n").expect("there is room");
            let text = std::fs::read_to_string(folder.path().join(FILE)).expect("it is there");
            assert_eq!((text.as_str(), book.bytes), ("one\ntw\nthree\n", 13));
        });
    }

    #[test]
    fn what_a_failed_write_left_of_a_line_is_not_joined_to_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut book = Book::open(folder.path().to_owned()).expect("it is writable");
        book.add(b"one\n").expect("there is room");
        // As a disk leaves it that became full in the middle.
        book.file.write_all(b"tw").expect("there is room");
        book.cut();
        book.add(b"three\n").expect("there is room");
        let text = std::fs::read_to_string(folder.path().join(FILE)).expect("it is there");
        assert_eq!(text, "one\nthree\n");
    }
}
