//! PEM files, bounded and checked; and how it is noticed that they have changed.

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The largest file that is read; a chain with its authorities takes a few KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why certificates cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the TLS {what} from {}: {source}", path.display())]
    Unreadable {
        /// `certificate`, `key` or `authorities`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no TLS {what} that can be used ({why}); allowed is PEM text, as `kvhive tls init` writes it", path.display())]
    Malformed {
        /// `certificate`, `key` or `authorities`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key are of two pairs.
    #[error("the key in {} is not that of the certificate in {}; give both of one pair", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The others would refuse the certificate.
    #[error(
        "the others would refuse the certificate in {} ({why}): it must be in force, signed by an authority in {}, and usable by \
         servers and clients alike",
        certificate.display(), authorities.display()
    )]
    Refused {
        /// The certificate's file.
        certificate: PathBuf,
        /// The authorities' file.
        authorities: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Who dials this process would refuse the certificate.
    #[error(
        "the certificate in {} is not valid for {host:?}, by which others reach this process ({why}); make one for that name or address, \
         as by `kvhive tls issue --host {host}`",
        certificate.display()
    )]
    WrongHost {
        /// The certificate's file.
        certificate: PathBuf,
        /// The host that is dialled.
        host: String,
        /// What is wrong.
        why: String,
    },
}

pub(crate) fn certificates(
    path: &Path,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&read(path, what)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(malformed(path, what, "there is no CERTIFICATE in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(malformed(path, what, &error.to_string())),
    }
}

/// Reads the one certificate of a text that stands in a file.
#[cfg(feature = "mint")]
pub(crate) fn parse_one(text: &[u8], path: &Path) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(text).map_err(|error| malformed(path, "authorities", &error.to_string()))
}

pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path, "key")?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => malformed(path, "key", "there is no PRIVATE KEY in it"),
        // Its text is of the format alone, never of what stands in the file.
        other => malformed(path, "key", &other.to_string()),
    })
}

pub(crate) fn malformed(path: &Path, what: &'static str, why: &str) -> TlsError {
    TlsError::Malformed { what, path: path.to_owned(), why: why.to_owned() }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { what, path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(malformed(path, what, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// What tells one content of a file from another without reading it; none where there is no file. Links are followed, so that a
/// link that is turned to another file is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    pub(crate) fn of(path: &Path) -> Stamp {
        let stamp = |meta: std::fs::Metadata| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
        Stamp(std::fs::metadata(path).ok().map(stamp))
    }
}
