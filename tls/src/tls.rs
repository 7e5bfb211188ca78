//! One process's TLS: handshakes of both ends, and files that are read anew when they change.

use crate::fault::TlsFault;
use crate::files::{Stamp, TlsError};
use crate::keys::Keys;
use crate::stream::Stream;
use rustls::pki_types::ServerName;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::{info, warn};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The first byte of every TLS connection: a record of the handshake.
const HANDSHAKE_RECORD: u8 = 0x16;
/// How long, and for how many bytes, one that is turned away is listened to, so that it reads why before the connection is reset.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 << 10;

/// Where one process's certificates are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Its certificate, with whatever stands between it and the authority.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authorities that sign for the cluster.
    pub authorities: PathBuf,
    /// The host that others dial, if they do: the certificate must be valid for it.
    pub host: Option<String>,
}

/// Whom a listener lets in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Callers {
    /// Who shows a certificate of the cluster's authorities.
    Members,
    /// Anyone: who they are is asked inside.
    Anyone,
}

/// Why somebody was turned away.
#[derive(Debug)]
pub struct Refusal {
    /// Why.
    pub fault: TlsFault,
    /// The stream of one that does not speak TLS, to be told so in its own language.
    pub plain: Option<TcpStream>,
}

/// What happened so far, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TlsFigures {
    /// When the certificate that is in use expires, in seconds since 1970.
    pub expires: u64,
    /// Whether the files as they are now could not be used, so that those before them still are.
    pub files_refused: bool,
    /// New files that were taken.
    pub reloads: u64,
    /// New files that could not be used.
    pub failed_reloads: u64,
    /// Connections turned away that did not speak TLS.
    pub refused_plain: u64,
    /// Connections turned away that showed no certificate.
    pub refused_without_certificate: u64,
    /// Connections turned away that showed one of no authority of the cluster, or an expired one.
    pub refused_untrusted: u64,
    /// Connections whose handshake failed otherwise.
    pub refused_other: u64,
}

/// TLS of one process. Cheap to clone; clones share all.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    files: TlsFiles,
    keys: RwLock<Arc<Keys>>,
    /// Of the files that were tried last, whether or not they could be used.
    tried: Mutex<[Stamp; 3]>,
    is_watched: AtomicBool,
    files_refused: AtomicBool,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    plain: AtomicU64,
    without_certificate: AtomicU64,
    untrusted: AtomicU64,
    other: AtomicU64,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl TlsFiles {
    fn stamps(&self) -> [Stamp; 3] {
        [&self.certificate, &self.key, &self.authorities].map(|path| Stamp::of(path))
    }
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When one cannot be read, or what they hold would be refused by the other processes.
    pub fn load(files: TlsFiles) -> Result<Tls, TlsError> {
        // Before they are read: what is written meanwhile is read again.
        let stamps = files.stamps();
        let keys = Keys::load(&files)?;
        let shared = Shared {
            files,
            keys: RwLock::new(Arc::new(keys)),
            tried: Mutex::new(stamps),
            is_watched: AtomicBool::new(false),
            files_refused: AtomicBool::new(false),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
            plain: AtomicU64::new(0),
            without_certificate: AtomicU64::new(0),
            untrusted: AtomicU64::new(0),
            other: AtomicU64::new(0),
        };
        Ok(Tls { shared: Arc::new(shared) })
    }

    /// Reads the files again if they have changed since they were tried last, or in any case. What cannot be used changes
    /// nothing. Connections that stand go on with what they began with. Blocks on the file system.
    ///
    /// # Errors
    /// Why the new files cannot be used; it is logged and counted.
    pub fn refresh(&self, in_any_case: bool) -> Result<(), TlsError> {
        let shared = &self.shared;
        {
            let mut tried = lock(&shared.tried);
            let stamps = shared.files.stamps();
            if *tried == stamps && !in_any_case {
                return Ok(());
            }
            *tried = stamps;
        }
        let loaded = Keys::load(&shared.files);
        shared.files_refused.store(loaded.is_err(), Ordering::Relaxed);
        match loaded {
            Ok(keys) => {
                info!(expires = keys.expires, "new TLS certificates are in use");
                *shared.keys.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(keys);
                shared.reloads.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                warn!(%error, "new TLS certificates cannot be used; going on with the old ones");
                shared.failed_reloads.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Looks at the files every few seconds, until the last clone but this one is gone. Ends at once where another already looks.
    pub async fn keep_fresh(self) {
        let shared = Arc::downgrade(&self.shared);
        let Some(_looking) = Looking::begin(self) else { return };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(shared) = shared.upgrade() else { return };
            // What failed is in the log, and a panic too.
            let _ = tokio::task::spawn_blocking(move || Tls { shared }.refresh(false)).await;
        }
    }

    /// Returns what happened so far.
    pub fn figures(&self) -> TlsFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        TlsFigures {
            expires: self.keys().expires,
            files_refused: shared.files_refused.load(Ordering::Relaxed),
            reloads: read(&shared.reloads),
            failed_reloads: read(&shared.failed_reloads),
            refused_plain: read(&shared.plain),
            refused_without_certificate: read(&shared.without_certificate),
            refused_untrusted: read(&shared.untrusted),
            refused_other: read(&shared.other),
        }
    }

    /// Shakes hands as the end that dialled `address` (`host:port`). That the other end takes the certificate shown here
    /// is only known when it has answered something.
    ///
    /// # Errors
    /// When the other end's certificate is not of the cluster's authorities or not valid for that host, and as
    /// [`TlsFault`] says.
    pub async fn connect(&self, stream: TcpStream, address: &str) -> Result<Stream, TlsFault> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| TlsFault::Other(format!("{host:?} is no host: {error}")))?;
        let connector = TlsConnector::from(self.keys().client.clone());
        let stream = connector.connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// Shakes hands as the end that was dialled. Bound it in time: it waits for the caller.
    ///
    /// # Errors
    /// Why the caller was turned away; it was told, unless it does not speak TLS.
    pub async fn accept(&self, stream: TcpStream, callers: Callers) -> Result<Stream, Refusal> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == HANDSHAKE_RECORD => {}
            Ok(0) => {
                let fault = TlsFault::Io(std::io::ErrorKind::UnexpectedEof.into());
                return Err(self.turned_away(fault, None));
            }
            Ok(_) => return Err(self.turned_away(TlsFault::NotTls, Some(stream))),
            Err(error) => return Err(self.turned_away(TlsFault::Io(error), None)),
        }
        let keys = self.keys();
        let config = match callers {
            Callers::Members => keys.mutual.clone(),
            Callers::Anyone => keys.open.clone(),
        };
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => Ok(Stream::Tls(Box::new(TlsStream::Server(stream)))),
            Err((error, stream)) => {
                let refusal = self.turned_away(error.into(), None);
                linger(stream).await;
                Err(refusal)
            }
        }
    }

    fn turned_away(&self, fault: TlsFault, plain: Option<TcpStream>) -> Refusal {
        let counter = match &fault {
            TlsFault::NotTls => Some(&self.shared.plain),
            TlsFault::NoCertificate => Some(&self.shared.without_certificate),
            TlsFault::Untrusted(_) => Some(&self.shared.untrusted),
            // Who looks whether the port is open has not been refused.
            TlsFault::Io(_) => None,
            TlsFault::Refused(_) | TlsFault::Other(_) => Some(&self.shared.other),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Refusal { fault, plain }
    }

    fn keys(&self) -> Arc<Keys> {
        self.shared.keys.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }
}

/// That somebody looks at the files; ends with its runtime, too, so that another may begin.
struct Looking(Weak<Shared>);

impl Looking {
    fn begin(tls: Tls) -> Option<Looking> {
        let is_first = !tls.shared.is_watched.swap(true, Ordering::Relaxed);
        is_first.then(|| Looking(Arc::downgrade(&tls.shared)))
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.is_watched.store(false, Ordering::Relaxed);
        }
    }
}

/// Closes a stream once the other end has had time to read what was said last: closed with bytes unread, it would be reset.
pub(crate) async fn linger(mut stream: TcpStream) {
    let emptied = async {
        stream.shutdown().await?;
        let mut waste = [0; 1024];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match stream.read(&mut waste).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // It is let go either way.
    let _ = tokio::time::timeout(LINGER, emptied).await;
}

impl Refusal {
    /// Sends `answer` to one that does not speak TLS, and lets it go.
    pub async fn say(self, answer: &[u8]) -> TlsFault {
        if let Some(mut stream) = self.plain
            && stream.write_all(answer).await.is_ok()
        {
            linger(stream).await;
        }
        self.fault
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half-done under this lock.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
