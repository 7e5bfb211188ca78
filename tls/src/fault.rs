//! Why a TLS handshake or stream did not hold, told apart by what a caller may do about it. Names no file and no key.

use rustls::{AlertDescription, CertificateError, Error as Rustls};
use std::io;
use thiserror::Error;

/// Why two ends did not agree on TLS.
#[derive(Debug, Error)]
pub enum TlsFault {
    /// The other end speaks something else: give it TLS, or leave TLS here.
    #[error("the other end does not speak TLS")]
    NotTls,
    /// The connecting end showed no certificate where one is asked for.
    #[error("a certificate of the cluster's authority must be shown, and none was")]
    NoCertificate,
    /// The other end's certificate does not hold.
    #[error("the other end's certificate is refused: {0}")]
    Untrusted(String),
    /// The other end does not take the certificate that was shown.
    #[error("the other end refuses this end's certificate: {0}")]
    Refused(String),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(io::Error),
    /// Anything else.
    #[error("TLS: {0}")]
    Other(String),
}

impl TlsFault {
    /// Returns what TLS says, if `error` is of TLS and not of the socket.
    pub fn within(error: &io::Error) -> Option<TlsFault> {
        error.get_ref()?.downcast_ref::<Rustls>().map(TlsFault::of)
    }

    fn of(error: &Rustls) -> TlsFault {
        match error {
            Rustls::InvalidMessage(_) => TlsFault::NotTls,
            Rustls::NoCertificatesPresented => TlsFault::NoCertificate,
            Rustls::InvalidCertificate(why) => TlsFault::Untrusted(in_words(why)),
            Rustls::AlertReceived(AlertDescription::CertificateRequired) => TlsFault::NoCertificate,
            Rustls::AlertReceived(
                alert @ (AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError),
            ) => TlsFault::Refused(format!("{alert:?}")),
            other => TlsFault::Other(other.to_string()),
        }
    }
}

/// Says what is wrong with a certificate, or else.
pub(crate) fn said(error: &Rustls) -> String {
    match error {
        Rustls::InvalidCertificate(why) => in_words(why),
        other => other.to_string(),
    }
}

fn in_words(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => "no authority that is trusted here has signed it".to_owned(),
        CertificateError::Expired => "it has expired".to_owned(),
        CertificateError::InvalidPurpose => "it is not for this use".to_owned(),
        other => other.to_string(),
    }
}

impl From<io::Error> for TlsFault {
    fn from(error: io::Error) -> TlsFault {
        TlsFault::within(&error).unwrap_or(TlsFault::Io(error))
    }
}
