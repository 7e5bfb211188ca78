//! A record: what one block is on disk. One page says which block it is, whose, where it stands and what its bytes must be;
//! then come its bytes. Every byte of the page is under the page's checksum, every byte of the block under the block's.
//!
//! ```text
//!     0  magic "KVRECORD"        32  mark of the tenant's secret    88  block header, with the bytes' digest
//!     8  version                 48  key of the block before it    192  zeros
//!    12  number of the record    80  slot                         4064  BLAKE3 of all before it
//!    16  bytes of a frame        82  zeros                        4096  the block's bytes
//!    24  when it was written, as a count of writes
//! ```

use kvhive_protocol::block::HEADER_BYTES;
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{BlockHeader, BlockKey, Slot};
use thiserror::Error;

/// Bytes of a record's page, and what begins and ends of all transfers are multiples of.
pub(crate) const PAGE: usize = 4096;

const MAGIC: [u8; 8] = *b"KVRECORD";
const VERSION: u32 = 1;
const BLOCK_AT: usize = 88;
const SUM_AT: usize = PAGE - blake3::OUT_LEN;

/// Tells whether two tenants have the same secret without telling it.
pub(crate) type TenantMark = [u8; 16];

/// What a record's page says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    /// The record's own number in its file: one that was moved or copied is none.
    pub(crate) number: u32,
    /// Bytes of its file's frames.
    pub(crate) frame_bytes: u64,
    /// Of two records of one block the one with the larger count was written later.
    pub(crate) sequence: u64,
    /// Of the secret that the block's key was made with.
    pub(crate) mark: TenantMark,
    /// The block, and the one before it in its prefix if that was here.
    pub(crate) block: StoreBlock,
    /// Where the block is placed.
    pub(crate) slot: Slot,
}

/// Why a page is not one of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum PageError {
    /// Nothing was ever written there.
    #[error("no record was written there")]
    Empty,
    /// It is something else, of another version, or damaged.
    #[error("the record is damaged")]
    Damaged,
}

/// Returns the mark of a tenant's secret.
pub(crate) fn tenant_mark(secret: &[u8]) -> TenantMark {
    let key = blake3::derive_key("kvhive 2026-11 disk record tenant mark v1", secret);
    let mut mark = [0; 16];
    mark.copy_from_slice(&key[..16]);
    mark
}

/// Returns the bytes of whole pages that hold `bytes`.
pub(crate) fn whole_pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE as u64)
}

/// Returns the bytes of a record whose block has up to `frame_bytes`.
pub(crate) fn record_bytes(frame_bytes: u64) -> u64 {
    PAGE as u64 + whole_pages(frame_bytes)
}

impl RecordHeader {
    /// Writes the page.
    pub(crate) fn encode(&self, page: &mut [u8]) {
        page.fill(0);
        page[0..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&self.number.to_le_bytes());
        page[16..24].copy_from_slice(&self.frame_bytes.to_le_bytes());
        page[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        page[32..48].copy_from_slice(&self.mark);
        page[48..80].copy_from_slice(self.block.parent.as_bytes());
        page[80..82].copy_from_slice(&self.slot.0.to_le_bytes());
        page[BLOCK_AT..BLOCK_AT + HEADER_BYTES].copy_from_slice(&self.block.header.encode());
        let sum = blake3::hash(&page[..SUM_AT]);
        page[SUM_AT..PAGE].copy_from_slice(sum.as_bytes());
    }

    /// Reads a page, and checks all that it can be checked for by itself.
    pub(crate) fn decode(page: &[u8]) -> Result<RecordHeader, PageError> {
        let page: &[u8; PAGE] = page.try_into().map_err(|_| PageError::Damaged)?;
        if page.iter().all(|byte| *byte == 0) {
            return Err(PageError::Empty);
        }
        if page[0..8] != MAGIC || field(page, 8) != VERSION.to_le_bytes() {
            return Err(PageError::Damaged);
        }
        if blake3::hash(&page[..SUM_AT]).as_bytes()[..] != page[SUM_AT..] {
            return Err(PageError::Damaged);
        }
        let header = BlockHeader::decode(&field(page, BLOCK_AT)).map_err(|_| PageError::Damaged)?;
        let header = RecordHeader {
            number: u32::from_le_bytes(field(page, 12)),
            frame_bytes: u64::from_le_bytes(field(page, 16)),
            sequence: u64::from_le_bytes(field(page, 24)),
            mark: field(page, 32),
            block: StoreBlock { header, parent: BlockKey::from_bytes(field(page, 48)) },
            slot: Slot(u16::from_le_bytes(field(page, 80))),
        };
        if header.block.header.payload_bytes > header.frame_bytes {
            return Err(PageError::Damaged);
        }
        Ok(header)
    }
}

/// Reads a page that begins so, its checksum made good first, and writes it again. For `kvhive-fuzz` alone.
pub fn fuzz_record(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut page = vec![0; PAGE];
    page.get_mut(..bytes.len().min(SUM_AT))?.copy_from_slice(&bytes[..bytes.len().min(SUM_AT)]);
    let sum = blake3::hash(&page[..SUM_AT]);
    page[SUM_AT..].copy_from_slice(sum.as_bytes());
    let header = RecordHeader::decode(&page).ok()?;
    header.encode(&mut page);
    Some(page)
}

fn field<const N: usize>(page: &[u8; PAGE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&page[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::{Era, LayoutFingerprint, TenantId};

    fn header() -> RecordHeader {
        let header = BlockHeader {
            key: BlockKey::from_bytes([7; 32]),
            fingerprint: LayoutFingerprint([3; 16]),
            tenant: TenantId(5),
            era: Era(2),
            depth: 9,
            codec: Codec::Int8,
            payload_bytes: 4000,
            digest: 11,
        };
        RecordHeader {
            number: 17,
            frame_bytes: 4096,
            sequence: 1 << 40,
            mark: tenant_mark(&[1; 32]),
            block: StoreBlock { header, parent: BlockKey::from_bytes([6; 32]) },
            slot: Slot(4095),
        }
    }

    #[test]
    fn a_page_says_what_was_written() {
        let mut page = vec![0xFF; PAGE];
        header().encode(&mut page);
        assert_eq!(RecordHeader::decode(&page), Ok(header()));
        assert_eq!(RecordHeader::decode(&[0; PAGE]), Err(PageError::Empty));
        assert_ne!(tenant_mark(&[1; 32]), tenant_mark(&[2; 32]));
    }

    #[test]
    fn a_page_with_any_bit_flipped_is_none() {
        let mut page = vec![0; PAGE];
        header().encode(&mut page);
        for at in 0..PAGE * 8 {
            page[at / 8] ^= 1 << (at % 8);
            assert_eq!(RecordHeader::decode(&page), Err(PageError::Damaged), "bit {at}");
            page[at / 8] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn a_record_is_whole_pages() {
        assert_eq!([0, 1, 4096, 4097].map(record_bytes), [4096, 8192, 8192, 12288]);
    }
}
