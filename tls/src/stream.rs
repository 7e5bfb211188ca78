//! A TCP stream, with TLS over it or without.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// What the exporter of a channel is asked under (RFC 5705).
const BINDING_LABEL: &[u8] = b"EXPORTER-kvhive-token";

/// A connected stream.
// The plain one is the data path of most clusters: it is not put behind a pointer for the other's size.
pub enum Stream {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Returns the stream as one that the runtime serves in which this is called. Over TLS it stays where it was made.
    ///
    /// # Errors
    /// When the system does not take it.
    pub fn moved(self) -> io::Result<Stream> {
        match self {
            Stream::Plain(stream) => Ok(Stream::Plain(TcpStream::from_std(stream.into_std()?)?)),
            Stream::Tls(stream) => Ok(Stream::Tls(stream)),
        }
    }

    /// Returns 32 bytes that both ends of this TLS channel know and nobody else; none without TLS.
    ///
    /// # Errors
    /// When TLS gives none, which a finished handshake does not.
    pub fn binding(&self) -> io::Result<Option<[u8; 32]>> {
        let Stream::Tls(stream) = self else { return Ok(None) };
        let bytes = match &**stream {
            TlsStream::Client(stream) => {
                stream.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, None)
            }
            TlsStream::Server(stream) => {
                stream.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, None)
            }
        };
        bytes.map(Some).map_err(io::Error::other)
    }

    /// Has small writes sent at once.
    ///
    /// # Errors
    /// When the system does not take it.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.set_nodelay(true),
            Stream::Tls(stream) => stream.get_ref().0.set_nodelay(true),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Tls(stream) => match Pin::new(stream).poll_read(cx, into) {
                // A process that ends does not say so first. Frames and requests tell their lengths, so none is taken for whole
                // that was cut.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                other => other,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
