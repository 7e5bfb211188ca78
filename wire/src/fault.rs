//! What can go wrong on a connection.

use kvhive_protocol::WireError;
use kvhive_tls::TlsFault;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Why a connection did not do what it should. After any of these but [`Fault::Refused`] it is of no more use.
#[derive(Debug, Error)]
pub enum Fault {
    /// The other end closed the connection between two frames.
    #[error("the other end closed the connection")]
    Closed,
    /// The socket failed.
    #[error("socket: {0}")]
    Io(io::Error),
    /// The two ends did not agree on TLS, or on who they are.
    #[error("{0}")]
    Tls(TlsFault),
    /// The other end sent what is no frame, or the wrong one.
    #[error("the other end broke the protocol: {0}")]
    Protocol(WireError),
    /// The other end answered the request, or the greeting, with an error.
    #[error("{0}")]
    Refused(WireError),
    /// The other end could not prove that it knows the token.
    #[error("the listening end does not know this cluster's token")]
    Impostor,
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It was not asked: all connections to it are taken, and none would be free in time.
    #[error("more is asked of it than it serves in time")]
    Overloaded,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        TlsFault::from(error).into()
    }
}

impl From<TlsFault> for Fault {
    fn from(fault: TlsFault) -> Fault {
        match fault {
            TlsFault::Io(error) => Fault::Io(error),
            fault => Fault::Tls(fault),
        }
    }
}

impl Fault {
    /// Returns the error that the other end answered with, if it did answer.
    pub fn refusal(&self) -> Option<&WireError> {
        match self {
            Fault::Refused(error) => Some(error),
            _ => None,
        }
    }
}
