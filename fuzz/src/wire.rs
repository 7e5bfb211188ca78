//! What is said over the wire: frames whose lengths and checksum are made good, the commands in the log, what an engine's processes
//! and a GPU's worker are told, and blocks as they are stored.

use crate::{same_again, summed};
use kvhive_engines::{Order, Report};
use kvhive_gpu::codec::{self as blocks, Codec, Element, Order as Axes, Shape};
use kvhive_protocol::block::HEADER_BYTES;
use kvhive_protocol::control::{ControlReply, ControlRequest, Proposal};
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameLimits, Kind, encode_frame};
use kvhive_protocol::handshake::{Challenge, Hello, Proof, Welcome};
use kvhive_protocol::stage::{STAGE_LOAN_BYTES, StageLoan};
use kvhive_protocol::{BlockHeader, TraceContext, WireError, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3Default;

/// A frame: its header, and the message that its kind says.
pub(crate) fn frame(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let (head, message) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let head = made_good(*head, message);
        let header = FrameHeader::decode(&head, FrameLimits::OPEN).ok()?;
        match header.kind {
            Kind::Hello => again::<Hello>(&header, &head, message),
            Kind::Challenge => again::<Challenge>(&header, &head, message),
            Kind::Proof => again::<Proof>(&header, &head, message),
            Kind::Welcome => again::<Welcome>(&header, &head, message),
            Kind::Refused => again::<WireError>(&header, &head, message),
            Kind::DataRequest => again::<DataRequest>(&header, &head, message),
            Kind::DataReply => again::<DataReply>(&header, &head, message),
            Kind::TracedRequest => again::<(TraceContext, DataRequest)>(&header, &head, message),
            Kind::ControlRequest => again::<ControlRequest>(&header, &head, message),
            Kind::ControlReply => again::<ControlReply>(&header, &head, message),
            Kind::Raft => header.verify(&head, message).ok().map(|()| bytes.to_vec()),
        }
    })
}

/// Gives a header what is checked before the message is looked at.
fn made_good(mut head: [u8; FRAME_HEADER_BYTES], message: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let mut any = Vec::new();
    // The magic and the version are those of any frame.
    if encode_frame(Kind::Raft, 0, &(), 0, &mut any).is_ok() {
        head[..6].copy_from_slice(&any[..6]);
    }
    head[16..20].copy_from_slice(&(message.len() as u32).to_le_bytes());
    let mut sum = Xxh3Default::new();
    sum.update(&head[..24]);
    sum.update(message);
    head[24..].copy_from_slice(&sum.digest().to_le_bytes());
    head
}

fn again<T: Serialize + DeserializeOwned>(
    header: &FrameHeader,
    head: &[u8; FRAME_HEADER_BYTES],
    message: &[u8],
) -> Option<Vec<u8>> {
    let read: T = header.message(head, message).ok()?;
    let mut out = Vec::new();
    encode_frame(header.kind, header.request, &read, header.payload_bytes.into(), &mut out)
        .expect("what was read is within the limits");
    Some(out)
}

/// All that an end which listens reads of one that has proved nothing: no length that a stranger announces is set aside.
pub(crate) fn greeting(bytes: &[u8]) -> bool {
    let Some((head, message)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return false };
    let head = made_good(*head, message);
    let Ok(header) = FrameHeader::decode(&head, FrameLimits::GREETING) else { return false };
    match header.kind {
        Kind::Hello => header.message::<Hello>(&head, message).is_ok(),
        Kind::Proof => header.message::<Proof>(&head, message).is_ok(),
        // Any other kind ends the connection.
        _ => false,
    }
}

/// Structs of a fixed length: a block's header, a stage that is lent.
pub(crate) fn fixed(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let (which, bytes) = bytes.split_first()?;
        let again = match which % 2 {
            0 => {
                let mut header = *bytes.first_chunk::<HEADER_BYTES>()?;
                summed(&mut header)?;
                BlockHeader::decode(&header).ok()?.encode().to_vec()
            }
            _ => StageLoan::of_bytes(bytes.first_chunk::<STAGE_LOAN_BYTES>()?)?.to_bytes().to_vec(),
        };
        Some([&[*which], again.as_slice()].concat())
    })
}

/// A change as the coordinators' log has it, and what is checked of it before it is agreed on.
pub(crate) fn proposal(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let read: Proposal = codec::decode(bytes).ok()?;
        // Whatever it says of it: it says something.
        let _ = kvhive_control::check_command(&read.command);
        codec::encode(&read).ok()
    })
}

/// What an engine's scheduler and its workers tell each other.
pub(crate) fn orders(bytes: &[u8]) -> bool {
    same_again(bytes, |bytes| {
        let (which, bytes) = bytes.split_first()?;
        let again = match which % 2 {
            0 => kvhive_engines::encode(&kvhive_engines::decode::<Order>(bytes).ok()?),
            _ => kvhive_engines::encode(&kvhive_engines::decode::<Report>(bytes).ok()?),
        };
        Some([&[*which], again.ok()?.as_slice()].concat())
    })
}

/// What a node and a GPU's worker tell each other.
pub(crate) fn gpu_worker(bytes: &[u8]) -> bool {
    same_again(bytes, kvhive_gpu::worker::fuzz_messages)
}

/// A block's stored bytes, of any codec and small shape: what can be decoded can be encoded and decoded to the same where the codec is
/// exact, and is decoded to the same every time.
pub(crate) fn block_codec(bytes: &[u8]) -> bool {
    let Some((about, stored)) = bytes.split_first_chunk::<6>() else { return false };
    let [codec, kind, layers, heads, dim, tokens] = about.map(u32::from);
    let codec = Codec::ALL[codec as usize % Codec::ALL.len()];
    let shape = match kind % 8 {
        0 => Shape::Opaque { bytes: u64::from(tokens) * 16 },
        kind => Shape::Tensor {
            layers: layers % 3,
            kv_heads: heads % 3,
            head_dim: dim % 65,
            tokens: tokens % 17,
            element: [Element::F16, Element::Bf16, Element::F32][kind as usize % 3],
            order: [Axes::LayersFirst, Axes::KvFirst, Axes::Packed][layers as usize / 3 % 3],
        },
    };
    let Some(raw_bytes) = shape.raw_bytes() else { return false };
    let mut raw = vec![0; raw_bytes as usize];
    if blocks::decode(codec, &shape, stored, &mut raw).is_err() {
        return false;
    }
    let mut second = vec![0xFF; raw_bytes as usize];
    blocks::decode(codec, &shape, stored, &mut second).expect("it was decoded before");
    assert!(raw == second, "every byte is written, and the same each time");
    if codec.is_exact() {
        let mut encoded = Vec::new();
        blocks::encode(codec, &shape, &raw, &mut encoded).expect("it is a block of this shape");
        blocks::decode(codec, &shape, &encoded, &mut second).expect("it was encoded");
        assert!(raw == second, "an exact codec gives back what it was given");
    }
    true
}
