//! The authorities of a cluster by themselves, for who shows no certificate of its own.

use crate::files::{self, TlsError};
use rustls::pki_types::CertificateDer;
use std::path::Path;

/// Reads the authorities in `path`, at least one.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    files::certificates(path, "authorities")
}
