//! As much of ZeroMQ's protocol (ZMTP 3.0, no security) as listening to an engine takes, a subscriber and an asker for replays, and
//! as being listened to takes: a publisher, and who repeats what it published.
//! Our own, because a frame says how long it is before it comes: what is announced is never set aside, and no message is
//! larger than the bound.

use std::io;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The largest message, in bytes of all its parts.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// The most parts of a message.
const MAX_PARTS: usize = 8;
/// The largest command.
const MAX_COMMAND_BYTES: usize = 4096;
/// Bytes that a part takes beforehand; more as they come.
const FIRST_BYTES: usize = 64 << 10;
const GREETING_BYTES: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum ZmtpError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It does not speak ZMTP 3 without security.
    #[error("{0}")]
    Protocol(String),
}

fn wrong(what: impl Into<String>) -> ZmtpError {
    ZmtpError::Protocol(what.into())
}

/// What we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Hears what is published.
    Sub,
    /// Asks, and hears many answers.
    Dealer,
    /// Publishes.
    Pub,
    /// Is asked.
    Router,
}

impl Kind {
    fn name(self) -> &'static [u8] {
        match self {
            Kind::Sub => b"SUB",
            Kind::Dealer => b"DEALER",
            Kind::Pub => b"PUB",
            Kind::Router => b"ROUTER",
        }
    }

    /// Says whether this is who we may talk to.
    fn suits(self, peer: &[u8]) -> bool {
        match self {
            Kind::Sub => matches!(peer, b"PUB" | b"XPUB"),
            Kind::Dealer => matches!(peer, b"ROUTER" | b"REP" | b"DEALER"),
            Kind::Pub => matches!(peer, b"SUB" | b"XSUB"),
            Kind::Router => matches!(peer, b"DEALER" | b"REQ" | b"ROUTER"),
        }
    }
}

/// One connection, its handshake done.
pub(crate) struct Connection<S = TcpStream> {
    stream: BufReader<S>,
}

impl Connection {
    /// Dials `address` and shakes hands.
    ///
    /// # Errors
    /// When it cannot be reached within `limit`, or is something else.
    pub(crate) async fn dial(address: &str, kind: Kind, limit: Duration) -> Result<Connection, ZmtpError> {
        let dialled = async {
            let stream = TcpStream::connect(address).await?;
            let mut connection = Connection::over(stream)?;
            // A publisher may be silent for long: only this tells one whose host is gone.
            let alive = socket2::TcpKeepalive::new()
                .with_time(Duration::from_secs(10))
                .with_interval(Duration::from_secs(5))
                .with_retries(3);
            socket2::SockRef::from(connection.stream.get_ref()).set_tcp_keepalive(&alive)?;
            connection.greet(kind).await?;
            Ok(connection)
        };
        tokio::time::timeout(limit, dialled).await.unwrap_or(Err(ZmtpError::Late(limit)))
    }

    /// Shakes hands over a stream that was accepted.
    ///
    /// # Errors
    /// When that takes longer than `limit`, or it is something else.
    pub(crate) async fn accept(
        stream: TcpStream,
        kind: Kind,
        limit: Duration,
    ) -> Result<Connection, ZmtpError> {
        let mut connection = Connection::over(stream)?;
        let greeted = tokio::time::timeout(limit, connection.greet(kind)).await;
        greeted.unwrap_or(Err(ZmtpError::Late(limit)))?;
        Ok(connection)
    }

    fn over(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::with_capacity(FIRST_BYTES, stream) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn greet(&mut self, kind: Kind) -> Result<(), ZmtpError> {
        let mut ours = [0; GREETING_BYTES];
        ours[0] = 0xff;
        ours[9] = 0x7f;
        ours[10] = 3;
        ours[12..16].copy_from_slice(b"NULL");
        self.stream.write_all(&ours).await?;
        let mut theirs = [0; GREETING_BYTES];
        self.stream.read_exact(&mut theirs).await?;
        if theirs[0] != 0xff || theirs[9] != 0x7f {
            return Err(wrong("what answers is no ZeroMQ socket"));
        }
        if theirs[10] < 3 {
            return Err(wrong(format!("it speaks ZMTP {}, needed is 3", theirs[10])));
        }
        if &theirs[12..17] != b"NULL\0" {
            return Err(wrong("it asks for a security mechanism: only NULL is spoken"));
        }
        let mut ready = b"\x05READY".to_vec();
        property(&mut ready, b"Socket-Type", kind.name());
        property(&mut ready, b"Identity", b"");
        self.write(COMMAND, &ready).await?;
        let (flags, body) = self.frame(MAX_COMMAND_BYTES).await?;
        let peer = body.strip_prefix(b"\x05READY").filter(|_| flags & COMMAND != 0);
        let peer = peer.and_then(socket_type).ok_or_else(|| wrong("it did not say what socket it is"))?;
        if !kind.suits(&peer) {
            return Err(wrong(format!("it is a socket of type {:?}", String::from_utf8_lossy(&peer))));
        }
        Ok(())
    }

    /// Asks for everything published whose topic begins so.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn subscribe(&mut self, topic: &[u8]) -> Result<(), ZmtpError> {
        let mut message = vec![1];
        message.extend_from_slice(topic);
        self.write(0, &message).await
    }

    /// Sends a message, behind the empty part that separates it from a path.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn ask(&mut self, body: &[u8]) -> Result<(), ZmtpError> {
        self.write(MORE, b"").await?;
        self.write(0, body).await
    }

    /// Sends a message of these parts.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) async fn send(&mut self, parts: &[&[u8]]) -> Result<(), ZmtpError> {
        let Some((last, first)) = parts.split_last() else { return Ok(()) };
        let mut message = Vec::with_capacity(parts.iter().map(|part| part.len() + 9).sum());
        first.iter().for_each(|part| frame(MORE, part, &mut message));
        frame(0, last, &mut message);
        self.stream.write_all(&message).await?;
        Ok(self.stream.flush().await?)
    }

    /// Waits until there is something to receive. May be given up.
    ///
    /// # Errors
    /// When the socket fails, or was closed.
    pub(crate) async fn readable(&mut self) -> Result<(), ZmtpError> {
        match self.stream.fill_buf().await?.is_empty() {
            true => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            false => Ok(()),
        }
    }

    /// Receives the next message's parts.
    ///
    /// # Errors
    /// When it is too large, the peer talks nonsense, or the socket fails.
    pub(crate) async fn receive(&mut self) -> Result<Vec<Vec<u8>>, ZmtpError> {
        loop {
            if let Some(message) = self.receive_or_heed().await? {
                return Ok(message);
            }
        }
    }

    /// Receives the next message's parts, or does what a command between messages asks for.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub(crate) async fn receive_or_heed(&mut self) -> Result<Option<Vec<Vec<u8>>>, ZmtpError> {
        let mut parts = Vec::new();
        let mut left = MAX_MESSAGE_BYTES;
        loop {
            let (flags, body) = self.frame(left).await?;
            if flags & COMMAND != 0 {
                // A heartbeat is answered; what else there is concerns others.
                if let Some(ping) = body.strip_prefix(b"\x04PING").filter(|ping| ping.len() >= 2) {
                    let mut pong = b"\x04PONG".to_vec();
                    pong.extend_from_slice(&ping[2..ping.len().min(18)]);
                    self.write(COMMAND, &pong).await?;
                }
                if parts.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            left -= body.len();
            parts.push(body);
            if flags & MORE == 0 {
                return Ok(Some(parts));
            }
            if parts.len() >= MAX_PARTS {
                return Err(wrong(format!("a message has more than {MAX_PARTS} parts")));
            }
        }
    }

    async fn frame(&mut self, most: usize) -> Result<(u8, Vec<u8>), ZmtpError> {
        let flags = self.stream.read_u8().await?;
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(wrong(format!("a frame has unknown flags {flags:#04x}")));
        }
        let length = if flags & LONG != 0 {
            self.stream.read_u64().await?
        } else {
            self.stream.read_u8().await?.into()
        };
        let most = if flags & COMMAND != 0 { most.min(MAX_COMMAND_BYTES) } else { most };
        let length = usize::try_from(length).ok().filter(|length| *length <= most);
        let length =
            length.ok_or_else(|| wrong(format!("a frame is larger than the {most} bytes left to it")))?;
        let mut body = Vec::with_capacity(length.min(FIRST_BYTES));
        let read = (&mut self.stream).take(length as u64).read_to_end(&mut body).await?;
        if read < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok((flags, body))
    }

    async fn write(&mut self, flags: u8, body: &[u8]) -> Result<(), ZmtpError> {
        let mut message = Vec::with_capacity(body.len() + 9);
        frame(flags, body, &mut message);
        self.stream.write_all(&message).await?;
        Ok(self.stream.flush().await?)
    }
}

/// Hears all that a publisher says whose bytes are these, its greeting among them; returns how many bytes of messages there are.
/// For `kvhive-fuzz` alone.
pub fn fuzz_publisher(bytes: &[u8]) -> usize {
    let stream = BufReader::with_capacity(FIRST_BYTES, tokio::io::join(bytes, tokio::io::sink()));
    let heard = async {
        let (mut connection, mut heard) = (Connection { stream }, 0);
        connection.greet(Kind::Sub).await?;
        loop {
            heard += match connection.receive().await {
                Ok(parts) => parts.iter().map(Vec::len).sum::<usize>(),
                Err(_) => return Ok::<usize, ZmtpError>(heard),
            };
        }
    };
    // Nothing is waited for: what reads bytes and forgets what is written is always ready.
    futures_util::FutureExt::now_or_never(heard).expect("it is ready").unwrap_or(0)
}

fn frame(flags: u8, body: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(body.len()) {
        Ok(length) => out.extend_from_slice(&[flags, length]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

fn property(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value);
}

/// Finds the socket's type among a READY command's properties.
fn socket_type(mut rest: &[u8]) -> Option<Vec<u8>> {
    while let Some((name_length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(*name_length))?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let (value, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value.to_vec());
        }
        rest = after;
    }
    None
}

#[cfg(test)]
#[path = "zmtp_test.rs"]
mod tests;
