//! What files are made into: checked once, then used by every handshake until the next.

use crate::fault::said;
use crate::files::{self, TlsError};
use crate::provider;
use crate::tls::TlsFiles;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig, version};
use std::sync::Arc;

/// The setups of both ends, and until when they hold.
pub(crate) struct Keys {
    /// For those who need show nothing.
    pub(crate) open: Arc<ServerConfig>,
    /// For those who must show a certificate.
    pub(crate) mutual: Arc<ServerConfig>,
    /// For who dials.
    pub(crate) client: Arc<ClientConfig>,
    /// When the certificate expires, in seconds since 1970.
    pub(crate) expires: u64,
}

impl Keys {
    /// Reads and checks: a process does not begin with what its peers would refuse.
    pub(crate) fn load(paths: &TlsFiles) -> Result<Keys, TlsError> {
        let chain = files::certificates(&paths.certificate, "certificate")?;
        let key = files::key(&paths.key)?;
        let mut roots = RootCertStore::empty();
        for authority in files::certificates(&paths.authorities, "authorities")? {
            let added = roots.add(authority);
            added.map_err(|error| files::malformed(&paths.authorities, "authorities", &error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let expires = expiry(&chain[0])
            .ok_or_else(|| files::malformed(&paths.certificate, "certificate", "it has no X.509 form"))?;
        let pair = CertifiedKey::from_der(chain.clone(), key, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch { certificate: paths.certificate.clone(), key: paths.key.clone() }
            }
            other => files::malformed(&paths.key, "key", &other.to_string()),
        })?;
        let pair = Arc::new(rustls::sign::SingleCertAndKey::from(pair));

        let refused = |why: String| TlsError::Refused {
            certificate: paths.certificate.clone(),
            authorities: paths.authorities.clone(),
            why,
        };
        let members = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
        let members = members.map_err(|error| refused(error.to_string()))?;
        let now = UnixTime::now();
        let shown = members.verify_client_cert(&chain[0], &chain[1..], now);
        shown.map_err(|error| refused(said(&error)))?;
        if let Some(host) = &paths.host {
            check_host(paths, host, &chain, &roots, now)?;
        }

        let server = || {
            ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&version::TLS13])
                .expect("ring speaks TLS 1.3")
        };
        let mut open = server().with_no_client_auth().with_cert_resolver(pair.clone());
        let mut mutual = server().with_client_cert_verifier(members).with_cert_resolver(pair.clone());
        for config in [&mut open, &mut mutual] {
            // Nobody resumes: every connection's certificates are checked, also after they were changed.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .expect("ring speaks TLS 1.3")
            .with_root_certificates(roots)
            .with_client_cert_resolver(pair);
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Keys { open: Arc::new(open), mutual: Arc::new(mutual), client: Arc::new(client), expires })
    }
}

/// Checks as those will who dial `host`.
fn check_host(
    paths: &TlsFiles,
    host: &str,
    chain: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    now: UnixTime,
) -> Result<(), TlsError> {
    let wrong = |why: String| TlsError::WrongHost {
        certificate: paths.certificate.clone(),
        host: host.to_owned(),
        why,
    };
    let name = ServerName::try_from(host).map_err(|error| wrong(error.to_string()))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build();
    let verifier = verifier.map_err(|error| wrong(error.to_string()))?;
    let shown = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now);
    shown.map(|_| ()).map_err(|error| wrong(said(&error)))
}

/// Returns when a certificate expires, in seconds since 1970.
fn expiry(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}
