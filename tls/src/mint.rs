//! An authority of one's own, for trials, small clusters and tests: makes certificates, and knows nothing of files.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use std::time::Duration;
use thiserror::Error;
use time::OffsetDateTime;

/// How far the other hosts' clocks may be behind.
pub(crate) const SLACK: Duration = Duration::from_secs(3600);

/// Why a certificate could not be made.
#[derive(Debug, Error)]
pub enum MintError {
    /// A name is neither a DNS name nor an IP address, or a key is no key.
    #[error("no certificate can be made: {0}")]
    Rcgen(#[from] rcgen::Error),
    /// It would hold longer than dates go.
    #[error("no certificate can hold for {0:?}")]
    TooLong(Duration),
}

/// An authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM form.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key: a secret.
    pub key: String,
}

impl Authority {
    /// Makes one of this name that holds for `period`.
    ///
    /// # Errors
    /// When there is no randomness, or the period is too long.
    pub fn new(name: &str, period: Duration) -> Result<Authority, MintError> {
        let key = KeyPair::generate()?;
        let mut params = params(name, period)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads one that was made before.
    ///
    /// # Errors
    /// When certificate or key are none.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, MintError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Authority { certificate: certificate.to_owned(), issuer })
    }

    /// Returns its certificate, in PEM form: what others trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Returns its key, in PEM form: whoever has it can be any member.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a certificate that is valid for `hosts`, DNS names and IP addresses, and for who dials; for who dials alone if there
    /// are none.
    ///
    /// # Errors
    /// When a host is neither, or the period is too long.
    pub fn issue(&self, name: &str, hosts: &[String], period: Duration) -> Result<Issued, MintError> {
        let key = KeyPair::generate()?;
        let mut params = params(name, period)?;
        params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

fn params(name: &str, period: Duration) -> Result<CertificateParams, MintError> {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - SLACK;
    let period = time::Duration::try_from(period).map_err(|_| MintError::TooLong(period));
    let until =
        period.and_then(|period| now.checked_add(period).ok_or(MintError::TooLong(period.unsigned_abs())));
    params.not_after = until?;
    Ok(params)
}
