//! Frames over TCP or TLS, for every plane: the handshake of both ends, buffered receiving with payloads read straight into the
//! caller's memory, vectored sending with payloads written straight from it.
//!
//! One [`Connection`] carries one request at a time. A future dropped half-way leaves it unusable, and it knows.

mod connection;
mod door;
mod fault;
mod greeting;

pub use connection::Connection;
pub use door::{Door, Guest, Handed, Visit, this_host};
pub use fault::Fault;
pub use greeting::{Identity, Listening, Peer};
pub use kvhive_tls::{Callers, Stream, Tls, TlsError, TlsFault, TlsFigures, TlsFiles};
