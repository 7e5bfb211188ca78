//! The admin API's listener: so many connections and no more, and none that lasts without being answered. HTTP itself is
//! left to the server behind it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tracing::{debug, warn};

/// Connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// A connection on which nothing was answered for this long is closed, whether its caller sends slowly, reads slowly or
/// has nothing to say. Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Wait after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that bounds what strangers can hold.
pub(super) struct BoundedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
    patience: Duration,
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener) -> BoundedListener {
        BoundedListener::with(listener, MAX_CONNECTIONS, PATIENCE)
    }

    fn with(listener: TcpListener, connections: usize, patience: Duration) -> BoundedListener {
        BoundedListener { listener, places: Arc::new(Semaphore::new(connections)), patience }
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "an admin connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                debug!(%address, "admin connection closed: there are too many");
                continue;
            };
            let deadline = Box::pin(tokio::time::sleep(self.patience));
            return (BoundedStream { stream, deadline, patience: self.patience, _place: place }, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends by its deadline unless something is answered.
pub(super) struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    patience: Duration,
    _place: OwnedSemaphorePermit,
}

impl BoundedStream {
    /// Fails once the deadline has passed. Reading does not move it: a caller that sends a byte now and then gains nothing.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn wrote(&mut self, written: io::Result<usize>) -> io::Result<usize> {
        if matches!(written, Ok(1..)) {
            let next = Instant::now() + self.patience;
            self.deadline.as_mut().reset(next);
        }
        written
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes));
        Poll::Ready(this.wrote(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(cx)?;
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices));
        Poll::Ready(this.wrote(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LONG: Duration = Duration::from_secs(60);

    async fn door(connections: usize, patience: Duration) -> (BoundedListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        (BoundedListener::with(listener, connections, patience), address)
    }

    #[tokio::test]
    async fn a_connection_too_many_is_closed_and_a_place_given_back_is_given_out() {
        let (mut door, address) = door(1, LONG).await;
        let _first = TcpStream::connect(address).await.expect("it listens");
        let (held, _) = door.accept().await;
        let mut second = TcpStream::connect(address).await.expect("it listens");
        let next = tokio::spawn(async move { door.accept().await });
        assert_eq!(second.read(&mut [0; 8]).await.expect("it was closed in order"), 0);
        drop(held);
        let mut third = TcpStream::connect(address).await.expect("it listens");
        let (mut served, _) = next.await.expect("it accepts");
        served.write_all(b"hello").await.expect("the caller is there");
        let mut heard = [0; 5];
        third.read_exact(&mut heard).await.expect("it was accepted");
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn a_caller_that_drips_is_cut_off_and_one_that_is_answered_is_not() {
        let (mut door, address) = door(2, Duration::from_millis(400)).await;
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        let (mut served, _) = door.accept().await;
        let dripping = tokio::spawn(async move {
            while caller.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut bytes = [0; 1];
        // Answered four times within what would be two deadlines.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            served.read_exact(&mut bytes).await.expect("the deadline has moved");
            served.write_all(b"y").await.expect("the caller is there");
        }
        let ended = loop {
            if let Err(error) = served.read_exact(&mut bytes).await {
                break error;
            }
        };
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(served);
        dripping.await.expect("the caller notices");
    }
}
