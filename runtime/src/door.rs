//! A listener for HTTP, or HTTPS, that bounds what strangers can hold: so many connections, each with so long for TLS's
//! handshake and the head of a request, for an answer, and between two. HTTP itself is left to the server behind it, which has
//! none of these.

use crate::places::{Place, Places};
use kvhive_tls::{Callers, Stream, Tls};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tracing::{debug, warn};

/// Wait after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What one is told who speaks HTTP where HTTPS is spoken.
const TLS_REQUIRED: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\r\n",
    r#"{"type":"urn:kvhive:problem:tls_required","title":"Bad Request","status":400,"#,
    r#""detail":"this cluster speaks TLS: ask by https://","code":"tls_required"}"#
);

/// What a connection may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoorLimits {
    /// Connections at a time. One more takes the place of the one that has waited longest for its caller; while all are
    /// being answered it is closed.
    pub connections: usize,
    /// From a connection's begin, TLS's handshake included, or a request's first byte, to the end of the request's head.
    pub head: Duration,
    /// From there to the first byte of the answer: longer than any takes.
    pub answer: Duration,
    /// From one piece of an answer to the next, and until the next request.
    pub idle: Duration,
}

/// A TCP listener with bounds.
pub struct BoundedListener {
    listener: TcpListener,
    places: Places,
    limits: DoorLimits,
    tls: Option<Tls>,
    /// Those whose TLS handshake is under way; each has a place.
    handshakes: JoinSet<Option<(BoundedStream, SocketAddr)>>,
}

impl BoundedListener {
    /// Bounds what is accepted from `listener`; with `tls` it is HTTPS that is spoken.
    pub fn new(listener: TcpListener, limits: DoorLimits, tls: Option<Tls>) -> BoundedListener {
        let places = Places::new(limits.connections);
        BoundedListener { listener, places, limits, tls, handshakes: JoinSet::new() }
    }
}

/// Returns the next connection that finds a place.
async fn next(listener: &TcpListener, places: &Places) -> (TcpStream, SocketAddr, Place) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match places.enter() {
            Some(place) => return (stream, address, place),
            None => debug!(%address, "connection closed: there are too many"),
        }
    }
}

/// Shakes hands within the time for a request's head, of which the rest is left, unless the place is needed.
async fn shake_hands(
    tls: Tls,
    stream: TcpStream,
    mut place: Place,
    limits: DoorLimits,
) -> Option<BoundedStream> {
    let mut deadline = Box::pin(tokio::time::sleep(limits.head));
    let shaken = async {
        match tls.accept(stream, Callers::Anyone).await {
            Ok(stream) => Some(stream),
            Err(refusal) => {
                let fault = refusal.say(TLS_REQUIRED.as_bytes()).await;
                debug!(%fault, "handshake failed");
                None
            }
        }
    };
    let stream = tokio::select! {
        stream = shaken => stream?,
        () = place.turned_out() => return None,
        () = &mut deadline => return None,
    };
    Some(BoundedStream { stream, place, deadline, limits, head: Head::Begun(0) })
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            // A handshake takes its caller's time and nobody else's.
            let is_one_under_way = !self.handshakes.is_empty();
            tokio::select! {
                (stream, address, place) = next(&self.listener, &self.places) => match &self.tls {
                    None => {
                        let deadline = Box::pin(tokio::time::sleep(self.limits.head));
                        let (stream, limits) = (Stream::Plain(stream), self.limits);
                        return (BoundedStream { stream, place, deadline, limits, head: Head::Begun(0) }, address);
                    }
                    Some(tls) => {
                        let shaken = shake_hands(tls.clone(), stream, place, self.limits);
                        self.handshakes.spawn(async move { Some((shaken.await?, address)) });
                    }
                },
                Some(ended) = self.handshakes.join_next(), if is_one_under_way => {
                    if let Ok(Some(ready)) = ended {
                        return ready;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends by its deadline, or when its place is needed while it waits for its caller.
pub struct BoundedStream {
    stream: Stream,
    place: Place,
    deadline: Pin<Box<Sleep>>,
    limits: DoorLimits,
    head: Head,
}

/// How far the head of a request has come.
#[derive(Clone, Copy)]
enum Head {
    /// Nothing of it is here.
    Awaited,
    /// Part of it is here, with so many of the line ends that end it.
    Begun(u8),
    /// All of it is here.
    Whole,
}

impl BoundedStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.place.poll_turned_out(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn expect_within(&mut self, limit: Duration) {
        self.deadline.as_mut().reset(Instant::now() + limit);
    }

    /// A caller that sends a byte now and then gains nothing: only the end of a head moves the deadline.
    fn heard(&mut self, bytes: &[u8]) {
        let mut ends = match self.head {
            Head::Awaited if bytes.is_empty() => return,
            Head::Awaited => {
                self.expect_within(self.limits.head);
                0
            }
            Head::Begun(ends) => ends,
            Head::Whole => return,
        };
        for byte in bytes {
            ends = match byte {
                b'\n' => ends + 1,
                b'\r' => ends,
                _ => 0,
            };
            if ends == 2 {
                self.head = Head::Whole;
                self.place.serve();
                return self.expect_within(self.limits.answer);
            }
        }
        self.head = Head::Begun(ends);
    }

    fn wrote(&mut self, written: io::Result<usize>) -> io::Result<usize> {
        if matches!(written, Ok(1..)) {
            self.head = Head::Awaited;
            self.place.wait();
            self.expect_within(self.limits.idle);
        }
        written
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
        this.heard(&into.filled()[before..]);
        Poll::Ready(Ok(()))
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
        // TLS takes more than the socket does, and waits for it here.
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(cx)?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LONG: Duration = Duration::from_secs(600);
    const LIMITS: DoorLimits = DoorLimits { connections: 2, head: LONG, answer: LONG, idle: LONG };

    async fn door(limits: DoorLimits) -> (BoundedListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        (BoundedListener::new(listener, limits, None), address)
    }

    #[tokio::test]
    async fn idle_connections_keep_nobody_out_and_answers_under_way_are_finished() {
        let (mut door, address) = door(LIMITS).await;
        let mut asking = TcpStream::connect(address).await.expect("it listens");
        let (mut served, _) = door.accept().await;
        asking.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it is open");
        served.read_exact(&mut [0; 18]).await.expect("it was sent");
        let _idle = TcpStream::connect(address).await.expect("it listens");
        let (mut idling, _) = door.accept().await;
        let mut newcomer = TcpStream::connect(address).await.expect("it listens");
        let (mut next, _) = door.accept().await;
        let turned_out = idling.read(&mut [0; 8]).await.expect_err("its place was needed");
        assert_eq!(turned_out.kind(), io::ErrorKind::ConnectionAborted);
        for (from, to) in [(&mut served, &mut asking), (&mut next, &mut newcomer)] {
            from.write_all(b"hello").await.expect("both are there");
            to.read_exact(&mut [0; 5]).await.expect("it was answered");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_of_a_request_is_given_little_time_however_it_drips() {
        let head = Duration::from_secs(5);
        let (mut door, address) = door(DoorLimits { head, ..LIMITS }).await;
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        let (mut served, _) = door.accept().await;
        let begun = Instant::now();
        let dripping = tokio::spawn(async move {
            while caller.write_all(b"x: y\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let ended = loop {
            if let Err(error) = served.read_exact(&mut [0; 1]).await {
                break error;
            }
        };
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < head * 2, "by the paused clock");
        drop(served);
        dripping.await.expect("the caller notices");
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_request_is_given_as_long_as_its_answer_takes() {
        let limits = DoorLimits { head: Duration::from_secs(5), idle: Duration::from_secs(60), ..LIMITS };
        let (mut door, address) = door(limits).await;
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        let (mut served, _) = door.accept().await;
        for _ in 0..3 {
            caller.write_all(b"POST / HTTP/1.1\r\nx: y\r\n\r\n").await.expect("it is open");
            served.read_exact(&mut [0; 25]).await.expect("it was sent");
            tokio::time::sleep(Duration::from_secs(300)).await;
            served.write_all(b"done").await.expect("its time has not passed");
            caller.read_exact(&mut [0; 4]).await.expect("it was answered");
            tokio::time::sleep(Duration::from_secs(50)).await;
        }
        let ended = served.read(&mut [0; 8]).await.expect_err("nothing comes any more");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }

    fn tls(temp: &std::path::Path) -> (Tls, Tls) {
        let day = Duration::from_secs(86_400);
        let folder = kvhive_tls::Folder::create(&temp.join("tls"), "a test's", day).expect("it is new");
        let pair = |name: &str, hosts: &[String]| {
            Tls::load(folder.issue(name, hosts, day).expect("it is new")).expect("it holds")
        };
        (pair("server", &["127.0.0.1".to_owned()]), pair("client", &[]))
    }

    #[tokio::test]
    async fn https_is_spoken_and_who_speaks_http_is_told_so() {
        let temp = tempfile::tempdir().expect("a folder");
        let (server, client) = tls(temp.path());
        let (door, address) = door(LIMITS).await;
        let mut door = BoundedListener { tls: Some(server.clone()), ..door };
        // Neither one that says nothing nor one in the wrong language keeps the third out.
        let _silent = TcpStream::connect(address).await.expect("it listens");
        let plain = async {
            let mut plain = TcpStream::connect(address).await.expect("it listens");
            plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it is open");
            let mut told = String::new();
            plain.read_to_string(&mut told).await.expect("it is answered");
            let stream = TcpStream::connect(address).await.expect("it listens");
            let mut stream = client.connect(stream, &address.to_string()).await.expect("it is trusted");
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it is open");
            stream.flush().await.expect("it is open");
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.expect("it is answered");
            (told, answer)
        };
        let serving = async {
            let (mut served, _) = door.accept().await;
            served.read_exact(&mut [0; 18]).await.expect("it was sent");
            served.write_all(b"hello").await.expect("it is there");
            served.flush().await.expect("it is there");
        };
        let ((told, answer), ()) = tokio::join!(plain, serving);
        assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
        let problem: serde_json::Value =
            serde_json::from_str(told.split_once("\r\n\r\n").expect("a head").1).expect("JSON");
        assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some("tls_required"), Some(400)));
        assert_eq!(&answer, b"hello");
        assert_eq!(server.figures().refused_plain, 1);
    }

    #[tokio::test]
    async fn a_tls_handshake_is_given_the_time_of_a_head_and_a_place_like_any_other() {
        let temp = tempfile::tempdir().expect("a folder");
        let (server, _) = tls(temp.path());
        let limits = DoorLimits { connections: 1, head: Duration::from_millis(200), ..LIMITS };
        let (door, address) = door(limits).await;
        let mut door = BoundedListener { tls: Some(server), ..door };
        let accepting = tokio::spawn(async move { drop(door.accept().await) });
        for begun in [&b""[..], &[0x16, 3, 1, 2, 0, 1]] {
            let mut caller = TcpStream::connect(address).await.expect("it listens");
            caller.write_all(begun).await.expect("it is open");
            // Ended: by its time.
            let ended = caller.read(&mut [0; 1]).await;
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        }
        let mut first = TcpStream::connect(address).await.expect("it listens");
        let _second = TcpStream::connect(address).await.expect("it listens");
        // Ended: its place was needed.
        let ended = first.read(&mut [0; 1]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        accepting.abort();
    }
}
