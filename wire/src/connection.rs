//! One connection: receive a frame, read or skip its payload, send a frame.

use crate::fault::Fault;
use kvhive_protocol::Level;
use kvhive_protocol::block::BlockDigest;
use kvhive_protocol::error::WireError;
use kvhive_protocol::frame::{self, FRAME_HEADER_BYTES, FrameHeader, FrameLimits, Kind};
use kvhive_tls::Stream;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Receive buffer: a small frame with its payload arrives by one system call, a large payload is copied twice only for
/// this many bytes.
const BUFFER_BYTES: usize = 16 * 1024;
/// Payload read by one system call at most, so that it is hashed while the CPU's cache still holds it.
const READ_BYTES: usize = 256 * 1024;
/// Buffers are given back to this size after a large message.
const KEEP_BYTES: usize = 256 * 1024;
/// Slices of one vectored write (the kernel's own limit is 1024).
const WRITE_SLICES: usize = 64;

/// A connection that speaks frames, over TCP or over TLS.
pub struct Connection {
    stream: Stream,
    /// Received bytes that were not taken yet are `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limits: FrameLimits,
    /// The frame received last: its raw header, and its message within `buffer`.
    header: [u8; FRAME_HEADER_BYTES],
    frame: Option<FrameHeader>,
    message: (usize, usize),
    /// Payload bytes of that frame that were neither read nor skipped.
    payload_left: u64,
    out: Vec<u8>,
    broken: bool,
    level: Level,
}

impl Connection {
    /// Wraps a connected socket; only greetings may pass until [`Connection::open`].
    pub(crate) fn new(stream: Stream) -> io::Result<Self> {
        stream.set_nodelay()?;
        Ok(Connection {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            limits: FrameLimits::GREETING,
            header: [0; FRAME_HEADER_BYTES],
            frame: None,
            message: (0, 0),
            payload_left: 0,
            out: Vec::with_capacity(1024),
            broken: false,
            level: Level::OLDEST,
        })
    }

    /// Returns the connection as one that the runtime serves in which this is called, where its stream can be moved.
    ///
    /// # Errors
    /// When the system does not take it.
    pub fn moved(self) -> io::Result<Connection> {
        Ok(Connection { stream: self.stream.moved()?, ..self })
    }

    /// Returns what both ends of its TLS channel know and nobody else; none without TLS.
    pub(crate) fn binding(&self) -> io::Result<Option<[u8; 32]>> {
        self.stream.binding()
    }

    /// Lets frames of the protocol's full size pass: the handshake is through, and both ends speak this level.
    pub(crate) fn open(&mut self, level: Level) {
        self.limits = FrameLimits::OPEN;
        self.level = level;
    }

    /// Returns the level that both ends speak.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Lowers the limits on received frames, for an end that knows what it expects.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Says whether the next frame can be sent or received: nothing failed or was abandoned half-way, no payload is
    /// left over, and no byte has arrived that nobody asked for.
    pub fn is_idle(&self) -> bool {
        !self.broken && self.payload_left == 0 && self.start == self.end
    }

    /// Receives the next frame's header and message. Its payload, if any, must be read or skipped before the next call.
    ///
    /// # Errors
    /// [`Fault::Closed`] when the other end closed between two frames; otherwise the connection is broken.
    pub async fn receive(&mut self) -> Result<FrameHeader, Fault> {
        if self.broken || self.payload_left > 0 {
            self.broken = true;
            return Err(Fault::Protocol(WireError::malformed(format_args!(
                "payload was left on the connection"
            ))));
        }
        self.broken = true;
        self.frame = None;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        // Also when the next message is here already: a peer that never lets the buffer run empty keeps no large one either.
        if self.buffer.len() > KEEP_BYTES && self.end - self.start <= BUFFER_BYTES {
            let mut small = vec![0; BUFFER_BYTES];
            small[..self.end - self.start].copy_from_slice(&self.buffer[self.start..self.end]);
            (self.start, self.end) = (0, self.end - self.start);
            self.buffer = small;
        }
        if !self.fill(FRAME_HEADER_BYTES).await? {
            return Err(Fault::Closed);
        }
        self.header.copy_from_slice(&self.buffer[self.start..self.start + FRAME_HEADER_BYTES]);
        let frame = FrameHeader::decode(&self.header, self.limits).map_err(Fault::Protocol)?;
        let whole = FRAME_HEADER_BYTES + frame.message_bytes as usize;
        if !self.fill(whole).await? {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.message = (self.start + FRAME_HEADER_BYTES, self.start + whole);
        frame.verify(&self.header, &self.buffer[self.message.0..self.message.1]).map_err(Fault::Protocol)?;
        self.start += whole;
        self.payload_left = u64::from(frame.payload_bytes);
        self.frame = Some(frame);
        self.broken = false;
        Ok(frame)
    }

    /// Decodes the message of the frame received last.
    ///
    /// # Errors
    /// [`Fault::Protocol`] when it is not a `T`; the connection is then broken.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let (from, to) = self.message;
        kvhive_protocol::codec::decode(&self.buffer[from..to]).map_err(|error| {
            self.broken = true;
            Fault::Protocol(error)
        })
    }

    /// Receives the answer to request `request`, which must be of kind `kind`.
    ///
    /// # Errors
    /// [`Fault::Refused`] when the other end answered with an error: the connection stands.
    pub async fn receive_answer<T: DeserializeOwned>(
        &mut self,
        kind: Kind,
        request: u64,
    ) -> Result<T, Fault> {
        let frame = self.receive().await?;
        if frame.request != request {
            self.broken = true;
            return Err(Fault::Protocol(WireError::malformed(format_args!(
                "answer to request {} instead of {request}",
                frame.request
            ))));
        }
        if frame.kind == Kind::Refused {
            return Err(Fault::Refused(self.message()?));
        }
        self.expect(frame, kind)?;
        self.message()
    }

    /// Checks that `frame` is of kind `kind`.
    ///
    /// # Errors
    /// [`Fault::Protocol`]; the connection is then broken.
    pub fn expect(&mut self, frame: FrameHeader, kind: Kind) -> Result<(), Fault> {
        if frame.kind == kind {
            return Ok(());
        }
        self.broken = true;
        Err(Fault::Protocol(WireError::malformed(format_args!(
            "frame of kind {:?} instead of {kind:?}",
            frame.kind
        ))))
    }

    /// Returns the payload bytes of the last frame that were neither read nor skipped.
    pub fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Fills `into` with the next payload bytes and returns their digest ([`kvhive_protocol::block::digest`]).
    ///
    /// # Errors
    /// When the payload is shorter or the socket fails: the connection is broken and `into` undefined.
    pub async fn read_payload(&mut self, into: &mut [u8]) -> Result<u64, Fault> {
        self.take_payload(into.len() as u64)?;
        self.broken = true;
        let mut digest = BlockDigest::default();
        let mut filled = self.take_buffered(into);
        while filled < into.len() {
            let until = into.len().min(filled + READ_BYTES);
            match self.stream.read(&mut into[filled..until]).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => filled += count,
            }
            digest.advance(&into[..filled]);
        }
        self.broken = false;
        Ok(digest.finish(into))
    }

    /// Reads `bytes` payload bytes and forgets them.
    ///
    /// # Errors
    /// As [`Connection::read_payload`].
    pub async fn skip_payload(&mut self, bytes: u64) -> Result<(), Fault> {
        self.take_payload(bytes)?;
        self.broken = true;
        let mut left = bytes;
        let buffered = left.min((self.end - self.start) as u64);
        self.start += buffered as usize;
        left -= buffered;
        if left > 0 {
            let mut waste = vec![0; READ_BYTES.min(left as usize)];
            while left > 0 {
                let until = waste.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                match self.stream.read(&mut waste[..until]).await? {
                    0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                    count => left -= count as u64,
                }
            }
        }
        self.broken = false;
        Ok(())
    }

    /// Sends a frame; the payload is `payload`'s slices, end to end, written from where they lie.
    ///
    /// # Errors
    /// [`Fault::Protocol`] when it passes a limit (nothing was sent, the connection stands); [`Fault::Io`] when the
    /// socket fails.
    pub async fn send<T: Serialize>(
        &mut self,
        kind: Kind,
        request: u64,
        message: &T,
        payload: &[&[u8]],
    ) -> Result<(), Fault> {
        let bytes: u64 = payload.iter().map(|slice| slice.len() as u64).sum();
        self.out.clear();
        frame::encode_frame(kind, request, message, bytes, &mut self.out).map_err(Fault::Protocol)?;
        let was_broken = std::mem::replace(&mut self.broken, true);
        if bytes == 0 {
            self.stream.write_all(&self.out).await?;
        } else {
            let mut head: &[u8] = &self.out;
            for some in payload.chunks(WRITE_SLICES - 1) {
                let mut slices = Vec::with_capacity(some.len() + 1);
                slices.push(IoSlice::new(std::mem::take(&mut head)));
                slices.extend(some.iter().map(|slice| IoSlice::new(slice)));
                write_all_vectored(&mut self.stream, &mut slices).await?;
            }
        }
        // TLS may hold back what the socket did not take at once; TCP holds nothing back here.
        self.stream.flush().await?;
        self.broken = was_broken;
        if self.out.capacity() > KEEP_BYTES {
            self.out = Vec::with_capacity(1024);
        }
        Ok(())
    }

    /// Answers request `request` with an error.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn refuse(&mut self, request: u64, error: &WireError) -> Result<(), Fault> {
        self.send(Kind::Refused, request, error, &[]).await
    }

    /// Closes the sending side, so that the other end sees the end of the stream.
    pub async fn close(mut self) {
        // The peer may be gone already, which is what closing is for.
        let _ = self.stream.shutdown().await;
    }

    fn take_payload(&mut self, bytes: u64) -> Result<(), Fault> {
        if self.broken || bytes > self.payload_left {
            self.broken = true;
            return Err(Fault::Protocol(WireError::malformed(format_args!(
                "{} payload bytes where {bytes} were announced",
                self.payload_left
            ))));
        }
        self.payload_left -= bytes;
        Ok(())
    }

    fn take_buffered(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.end - self.start);
        into[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        count
    }

    /// Buffers at least `bytes` bytes; false when the stream ended before the first of them. The buffer grows with what
    /// has come, not with what was announced.
    async fn fill(&mut self, bytes: usize) -> Result<bool, Fault> {
        if self.buffer.len() - self.start < bytes {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < bytes {
            if self.end == self.buffer.len() {
                let grown = self.buffer.len().saturating_mul(4).min(self.start + bytes);
                self.buffer.resize(grown, 0);
            }
            match self.stream.read(&mut self.buffer[self.end..]).await? {
                0 if self.start == self.end => return Ok(false),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => self.end += count,
            }
        }
        Ok(true)
    }
}

async fn write_all_vectored(stream: &mut Stream, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match stream.write_vectored(slices).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => IoSlice::advance_slices(&mut slices, count),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Connection, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let near = TcpStream::connect(address).await.expect("it listens");
        let (far, _) = listener.accept().await.expect("it was dialled");
        let mut ends = [near, far].map(|end| Connection::new(Stream::Plain(end)).expect("it is connected"));
        ends.iter_mut().for_each(|end| end.open(Level::NEWEST));
        let [near, far] = ends;
        (near, far)
    }

    #[tokio::test]
    async fn a_peer_that_sends_without_a_pause_keeps_no_large_buffer() {
        let (mut near, mut far) = pair().await;
        let sending = tokio::spawn(async move {
            near.send(Kind::DataRequest, 1, &vec![7_u8; 1 << 20], &[]).await.expect("it is read");
            // All of them lie there before the first is read.
            for at in 2..2000 {
                near.send(Kind::DataRequest, at, &"small", &[]).await.expect("it is read");
            }
            near
        });
        far.receive().await.expect("it was sent");
        let large = far.buffer.len();
        assert!(large > 1 << 20, "{large} bytes");
        for at in 2..2000 {
            assert_eq!(far.receive().await.expect("it was sent").request, at);
            if at == 1999 {
                assert_eq!(far.buffer.len(), BUFFER_BYTES);
            }
        }
        drop(sending.await.expect("it ended"));
    }
}
