//! TLS for every channel of a cluster: certificate, key and authorities from files, read anew when they change; handshakes
//! of both ends; one stream type, plain or not, so that whoever reads and writes need not care.
//!
//! TLS 1.3 alone, with `ring`. Between processes both ends show a certificate; whoever dials checks that the other's is valid
//! for the host it dialled. What is said inside, and who may say it, is not this crate's.

mod authorities;
mod fault;
mod files;
#[cfg(feature = "mint")]
mod folder;
mod keys;
#[cfg(feature = "mint")]
mod mint;
#[cfg(feature = "mint")]
mod rotate;
mod stream;
mod tls;

pub use authorities::authorities;
pub use fault::TlsFault;
pub use files::TlsError;
#[cfg(feature = "mint")]
pub use folder::{Folder, FolderError};
#[cfg(feature = "mint")]
pub use mint::{Authority, Issued, MintError};
#[cfg(feature = "mint")]
pub use rotate::{Rotation, Stage};
pub use rustls::pki_types::CertificateDer;
pub use stream::Stream;
pub use tls::{Callers, Refusal, Tls, TlsFigures, TlsFiles};

use std::sync::Arc;

/// Returns the cryptography that everything here uses.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
