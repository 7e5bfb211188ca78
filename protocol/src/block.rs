//! The header that every block travels and rests with, and the digest that binds its bytes. Made by the writer, verified
//! by the reader after the last copy; any mismatch is a miss (`DESIGN.md`, "What always holds" 1).

use crate::{BlockKey, Era, LayoutFingerprint, TenantId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of an encoded block header.
pub const HEADER_BYTES: usize = 104;
/// The digest's piece: pieces are hashed apart, so a GPU can hash them side by side and a reader while they are hot.
pub const PIECE_BYTES: usize = 16 * 1024;

const MAGIC: [u8; 4] = *b"KVB1";
const FORMAT: u16 = 2;

/// How a block's bytes are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[repr(u8)]
pub enum Codec {
    /// As the engine gave them.
    #[default]
    Raw = 0,
    /// Compressed; every bit comes back.
    Lossless = 1,
    /// OCP FP8 E4M3 with scales.
    Fp8 = 2,
    /// Eight bits an element, with scales.
    Int8 = 3,
    /// Four bits an element, with scales.
    Int4 = 4,
}

impl Codec {
    /// All of them, by id.
    pub const ALL: [Codec; 5] = [Codec::Raw, Codec::Lossless, Codec::Fp8, Codec::Int8, Codec::Int4];

    /// Returns the codec's name in metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Lossless => "lossless",
            Codec::Fp8 => "fp8",
            Codec::Int8 => "int8",
            Codec::Int4 => "int4",
        }
    }

    /// Says whether every bit comes back.
    pub const fn is_exact(self) -> bool {
        matches!(self, Codec::Raw | Codec::Lossless)
    }

    /// Finds a codec by its id in a header; none for an id that this build does not know.
    pub fn from_id(id: u16) -> Option<Codec> {
        Codec::ALL.get(usize::from(id)).copied()
    }
}

/// What binds a block's bytes to its key, layout, tenant and era.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// The block's name.
    pub key: BlockKey,
    /// What its bytes mean.
    pub fingerprint: LayoutFingerprint,
    /// Whose it is.
    pub tenant: TenantId,
    /// The tenant's era when it was stored.
    pub era: Era,
    /// Its position in its prefix, from 0.
    pub depth: u32,
    /// How its bytes are stored.
    pub codec: Codec,
    /// Stored bytes.
    pub payload_bytes: u64,
    /// [`digest`] of the stored bytes.
    pub digest: u64,
}

/// Why a header or the bytes under it were refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HeaderError {
    /// Not a block header, or one of a format this build does not know.
    #[error("not a block header of format {FORMAT}")]
    Format,
    /// The header's own checksum does not hold.
    #[error("block header is damaged")]
    Damaged,
    /// The header names another block.
    #[error("block header names another key")]
    Key,
    /// The block has another layout.
    #[error("block has another layout")]
    Layout,
    /// The block belongs to another tenant.
    #[error("block belongs to another tenant")]
    Tenant,
    /// The block is of an era that a clear has ended.
    #[error("block is of an older era")]
    Era,
    /// The bytes are not as many as the header says.
    #[error("block has another length than its header says")]
    Length,
    /// The bytes do not match the header's digest.
    #[error("block bytes do not match their digest")]
    Digest,
    /// The bytes are those that were stored, but do not decode to a block of its layout, or the reader did not ask for such.
    #[error("block is stored as {}, and cannot be read as that", .0.name())]
    Codec(Codec),
}

impl BlockHeader {
    /// Encodes the header, its own checksum last.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&FORMAT.to_le_bytes());
        out[6..8].copy_from_slice(&u16::from(self.codec as u8).to_le_bytes());
        out[8..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[16..48].copy_from_slice(self.key.as_bytes());
        out[48..64].copy_from_slice(&self.fingerprint.0);
        out[64..68].copy_from_slice(&self.tenant.0.to_le_bytes());
        out[68..72].copy_from_slice(&self.depth.to_le_bytes());
        out[72..80].copy_from_slice(&self.era.0.to_le_bytes());
        out[80..88].copy_from_slice(&self.digest.to_le_bytes());
        // 88..96 stay zero: room for a publication id without a new format.
        let sum = xxh3_64(&out[..96]);
        out[96..104].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes a header and checks its own checksum.
    ///
    /// # Errors
    /// [`HeaderError::Format`] or [`HeaderError::Damaged`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&bytes[at..at + N]);
            out
        }
        if bytes[0..4] != MAGIC || u16::from_le_bytes(field(bytes, 4)) != FORMAT {
            return Err(HeaderError::Format);
        }
        if u64::from_le_bytes(field(bytes, 96)) != xxh3_64(&bytes[..96]) {
            return Err(HeaderError::Damaged);
        }
        let codec = Codec::from_id(u16::from_le_bytes(field(bytes, 6))).ok_or(HeaderError::Format)?;
        Ok(BlockHeader {
            key: BlockKey::from_bytes(field(bytes, 16)),
            fingerprint: LayoutFingerprint(field(bytes, 48)),
            tenant: TenantId(u32::from_le_bytes(field(bytes, 64))),
            era: Era(u64::from_le_bytes(field(bytes, 72))),
            depth: u32::from_le_bytes(field(bytes, 68)),
            codec,
            payload_bytes: u64::from_le_bytes(field(bytes, 8)),
            digest: u64::from_le_bytes(field(bytes, 80)),
        })
    }

    /// Checks that this header is the one of `key` in `fingerprint` and `tenant`, no older than `era`.
    ///
    /// # Errors
    /// The first thing that does not match.
    pub fn check(
        &self,
        key: &BlockKey,
        fingerprint: LayoutFingerprint,
        tenant: TenantId,
        era: Era,
    ) -> Result<(), HeaderError> {
        if self.key != *key {
            return Err(HeaderError::Key);
        }
        if self.fingerprint != fingerprint {
            return Err(HeaderError::Layout);
        }
        if self.tenant != tenant {
            return Err(HeaderError::Tenant);
        }
        if self.era < era {
            return Err(HeaderError::Era);
        }
        Ok(())
    }

    /// Checks `bytes` against the header's length and digest.
    ///
    /// # Errors
    /// [`HeaderError::Length`] or [`HeaderError::Digest`].
    pub fn check_bytes(&self, bytes: &[u8]) -> Result<(), HeaderError> {
        if bytes.len() as u64 != self.payload_bytes {
            return Err(HeaderError::Length);
        }
        if digest(bytes) != self.digest {
            return Err(HeaderError::Digest);
        }
        Ok(())
    }
}

impl Serialize for BlockHeader {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encode())
    }
}

impl<'de> Deserialize<'de> for BlockHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteArray::<HEADER_BYTES>::deserialize(deserializer)?;
        BlockHeader::decode(&bytes).map_err(serde::de::Error::custom)
    }
}

/// Returns the 64-bit digest of a block's bytes: XXH3 of each 16 KiB piece, then XXH3 of those digests seeded by the
/// length. Detects damage, not malice; who may write is decided by authentication.
pub fn digest(bytes: &[u8]) -> u64 {
    BlockDigest::default().finish(bytes)
}

/// Returns the [`digest`] of a block of so many bytes from the digests of its pieces, XXH3 of each: who has hashed them elsewhere, a GPU say.
pub fn digest_of_pieces(pieces: &[u64], bytes: u64) -> u64 {
    let mut sums = xxhash_rust::xxh3::Xxh3Default::new();
    for piece in pieces {
        sums.update(&piece.to_le_bytes());
    }
    digest_of_sums(&sums, bytes)
}

fn digest_of_sums(sums: &xxhash_rust::xxh3::Xxh3Default, bytes: u64) -> u64 {
    xxh3_64_with_seed(&sums.digest().to_le_bytes(), bytes)
}

/// The same digest taken while a block arrives, so that each piece is hashed while it is still in the CPU's cache.
#[derive(Default)]
pub struct BlockDigest {
    sums: xxhash_rust::xxh3::Xxh3Default,
    hashed: usize,
}

impl BlockDigest {
    /// Hashes the whole pieces of `so_far` (the block's first bytes, all that have arrived) that were not hashed yet.
    pub fn advance(&mut self, so_far: &[u8]) {
        let Some(fresh) = so_far.get(self.hashed..) else { return };
        for piece in fresh.chunks_exact(PIECE_BYTES) {
            self.sums.update(&piece_digest(piece).to_le_bytes());
            self.hashed += PIECE_BYTES;
        }
    }

    /// Returns the digest of `block`, whose first bytes were given to [`BlockDigest::advance`] before.
    pub fn finish(mut self, block: &[u8]) -> u64 {
        self.advance(block);
        if let Some(tail) = block.get(self.hashed..).filter(|tail| !tail.is_empty()) {
            self.sums.update(&piece_digest(tail).to_le_bytes());
        }
        digest_of_sums(&self.sums, block.len() as u64)
    }
}

/// Returns XXH3 of one piece. `twox-hash` takes AVX2 where the CPU has it, half as fast again as what can be compiled in.
fn piece_digest(piece: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(piece)
}
