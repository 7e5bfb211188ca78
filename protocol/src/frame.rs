//! Frames: a fixed header, an encoded message, raw payload bytes. The header is checked before anything it announces is
//! allocated; its checksum covers itself and the message. Payload bytes are covered by their blocks' own digests.
//!
//! ```text
//! offset  0      4         6      8         16               20               24         32
//!         magic  version   kind   request   message bytes    payload bytes    checksum   message … payload …
//! ```

use crate::codec::{self, MAX_MESSAGE_BYTES};
use crate::error::WireError;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::Xxh3Default;

/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// The version of frames' headers and of greetings. Builds that differ in it cannot even say so to each other: what may differ
/// between neighbours is their [`crate::Level`], which greetings agree on.
pub const VERSION: u16 = 2;
/// The largest payload of one frame, in bytes.
pub const MAX_PAYLOAD_BYTES: u32 = 256 << 20;
/// The largest message before the peer has proved who it is, in bytes.
pub const MAX_GREETING_BYTES: u32 = 1024;

const MAGIC: [u8; 4] = *b"KVHF";

/// Which message a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Kind {
    /// [`crate::handshake::Hello`], the connecting end's first frame.
    Hello = 1,
    /// [`crate::handshake::Challenge`], the answer to it.
    Challenge = 2,
    /// [`crate::handshake::Proof`], the connecting end's second frame.
    Proof = 3,
    /// [`crate::handshake::Welcome`]: the connection stands.
    Welcome = 4,
    /// [`WireError`]: the request, or the connection, is refused.
    Refused = 5,
    /// [`crate::data::DataRequest`].
    DataRequest = 16,
    /// [`crate::data::DataReply`].
    DataReply = 17,
    /// A [`crate::trace::TraceContext`] and the [`crate::data::DataRequest`] that is traced: one that is not carries nothing more.
    TracedRequest = 18,
    /// [`crate::control::ControlRequest`].
    ControlRequest = 32,
    /// [`crate::control::ControlReply`].
    ControlReply = 33,
    /// Raft messages from coordinator to coordinator, as consensus encoded them: the payload is the messages, each
    /// preceded by its length; the message part is empty.
    Raft = 48,
}

impl Kind {
    fn from_wire(value: u16) -> Option<Kind> {
        [
            Kind::Hello,
            Kind::Challenge,
            Kind::Proof,
            Kind::Welcome,
            Kind::Refused,
            Kind::DataRequest,
            Kind::DataReply,
            Kind::TracedRequest,
            Kind::ControlRequest,
            Kind::ControlReply,
            Kind::Raft,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == value)
    }
}

/// What the receiver of a frame allows before it has read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// The largest message, in bytes.
    pub message_bytes: u32,
    /// The largest payload, in bytes.
    pub payload_bytes: u32,
}

impl FrameLimits {
    /// Before the handshake is through: a greeting, no payload.
    pub const GREETING: FrameLimits = FrameLimits { message_bytes: MAX_GREETING_BYTES, payload_bytes: 0 };
    /// After it: the protocol's own limits.
    pub const OPEN: FrameLimits =
        FrameLimits { message_bytes: MAX_MESSAGE_BYTES as u32, payload_bytes: MAX_PAYLOAD_BYTES };
}

/// A frame's header, already checked against the receiver's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Which message follows.
    pub kind: Kind,
    /// The asker's number for the request; an answer repeats it.
    pub request: u64,
    /// Bytes of the encoded message.
    pub message_bytes: u32,
    /// Bytes of the raw payload after it.
    pub payload_bytes: u32,
    checksum: u64,
}

impl FrameHeader {
    /// Decodes and checks the fixed part of a frame.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for a wrong magic, version or kind, [`WireError::TooLarge`] for lengths over `limits`.
    /// Nothing is allocated either way.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], limits: FrameLimits) -> Result<FrameHeader, WireError> {
        fn field<const N: usize>(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&bytes[at..at + N]);
            out
        }
        if bytes[0..4] != MAGIC {
            return Err(WireError::malformed(format_args!("not a kvhive frame")));
        }
        let version = u16::from_le_bytes(field(bytes, 4));
        if version != VERSION {
            return Err(WireError::malformed(format_args!(
                "frame of version {version}, this build speaks {VERSION}"
            )));
        }
        let kind = u16::from_le_bytes(field(bytes, 6));
        let kind = Kind::from_wire(kind)
            .ok_or_else(|| WireError::malformed(format_args!("frame of unknown kind {kind}")))?;
        let message_bytes = u32::from_le_bytes(field(bytes, 16));
        let payload_bytes = u32::from_le_bytes(field(bytes, 20));
        for (value, limit) in [(message_bytes, limits.message_bytes), (payload_bytes, limits.payload_bytes)] {
            if value > limit {
                return Err(WireError::TooLarge { bytes: u64::from(value), limit: u64::from(limit) });
            }
        }
        Ok(FrameHeader {
            kind,
            request: u64::from_le_bytes(field(bytes, 8)),
            message_bytes,
            payload_bytes,
            checksum: u64::from_le_bytes(field(bytes, 24)),
        })
    }

    /// Decodes the frame's message after checking the checksum over `header` (the raw header bytes) and `message`.
    ///
    /// # Errors
    /// [`WireError::Malformed`] when a byte is wrong or the message is not a `T`.
    pub fn message<T: DeserializeOwned>(
        &self,
        header: &[u8; FRAME_HEADER_BYTES],
        message: &[u8],
    ) -> Result<T, WireError> {
        self.verify(header, message)?;
        codec::decode(message)
    }

    /// Checks the checksum over `header` (the raw header bytes) and `message`.
    ///
    /// # Errors
    /// [`WireError::Malformed`] when a byte is wrong.
    pub fn verify(&self, header: &[u8; FRAME_HEADER_BYTES], message: &[u8]) -> Result<(), WireError> {
        if message.len() != self.message_bytes as usize || checksum(&header[..24], message) != self.checksum {
            return Err(WireError::malformed(format_args!("frame checksum does not match")));
        }
        Ok(())
    }
}

fn checksum(head: &[u8], message: &[u8]) -> u64 {
    let mut sum = Xxh3Default::new();
    sum.update(head);
    sum.update(message);
    sum.digest()
}

/// Appends a frame's header and message to `out`; `payload_bytes` of raw payload are to follow it on the wire.
///
/// # Errors
/// [`WireError::TooLarge`] when message or payload pass the protocol's limits; `out` is then as it was.
pub fn encode_frame<T: Serialize>(
    kind: Kind,
    request: u64,
    message: &T,
    payload_bytes: u64,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let payload = u32::try_from(payload_bytes)
        .ok()
        .filter(|bytes| *bytes <= MAX_PAYLOAD_BYTES)
        .ok_or(WireError::TooLarge { bytes: payload_bytes, limit: u64::from(MAX_PAYLOAD_BYTES) })?;
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    if let Err(error) = codec::encode_into(message, out) {
        out.truncate(start);
        return Err(error);
    }
    seal_frame(kind, request, payload, &mut out[start..]);
    Ok(())
}

fn seal_frame(kind: Kind, request: u64, payload_bytes: u32, frame: &mut [u8]) {
    let (header, message) = frame.split_at_mut(FRAME_HEADER_BYTES);
    header[0..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    header[8..16].copy_from_slice(&request.to_le_bytes());
    header[16..20].copy_from_slice(&(message.len() as u32).to_le_bytes());
    header[20..24].copy_from_slice(&payload_bytes.to_le_bytes());
    let sum = checksum(&header[..24], message);
    header[24..32].copy_from_slice(&sum.to_le_bytes());
}
