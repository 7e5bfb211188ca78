//! A record: what one block is on disk. One page says which block it is, whose, where it stands and what its bytes must be;
//! then come its bytes. Every byte of the page is under the page's checksum, every byte of the block under the block's.
//!
//! ```text
//!     0  magic "KVRECORD"        32  mark of the tenant's secret    88  block header, with the bytes' digest
//!     8  version                 48  key of the block before it    192  zeros, or what is sealed
//!    12  number of the record    80  slot                         4064  BLAKE3 of all before it
//!    16  bytes of a frame        82  zeros                        4096  the block's bytes
//!    24  when it was written, as a count of writes
//! ```
//!
//! Version 1 is plain. In version 2 the block's bytes are encrypted, and bound to all that the page says; the digest, which would tell
//! whether they are those that somebody guesses, is zero in the block header and stands encrypted behind it:
//!
//! ```text
//!   192  salt of the record's key    216  digest, and the tag of the bytes, encrypted    240  tag of these    256  zeros
//! ```

use super::key_folder::KeyName;
use super::seal::{DataKey, OnceKey, Part, SALT_BYTES, TAG_BYTES, TagBytes, salt};
use kvhive_protocol::block::HEADER_BYTES;
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{BlockHeader, BlockKey, Slot};
use std::io;
use thiserror::Error;

/// Bytes of a record's page, and what begins and ends of all transfers are multiples of.
pub(crate) const PAGE: usize = 4096;

const MAGIC: [u8; 8] = *b"KVRECORD";
/// Of records whose bytes are as they are.
const PLAIN: u32 = 1;
/// Of those whose bytes are encrypted.
const SEALED: u32 = 2;
const BLOCK_AT: usize = 88;
const SALT_AT: usize = BLOCK_AT + HEADER_BYTES;
const HIDDEN_AT: usize = SALT_AT + SALT_BYTES;
const HIDDEN_BYTES: usize = 8 + TAG_BYTES;
const TAG_AT: usize = HIDDEN_AT + HIDDEN_BYTES;
const END_AT: usize = TAG_AT + TAG_BYTES;
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
    /// It is whole, and not what this node wrote there.
    #[error("the record was changed, or is not one of this node's")]
    Forged,
    /// The key that it was written under is not here: for the most part it has been destroyed.
    #[error("the key of tenant {} in era {} is not here", .0.tenant, .0.era.0)]
    NoKey(KeyName),
}

/// A page as it was read.
pub(crate) enum Page {
    /// Of a record whose bytes are as they are.
    Plain(RecordHeader),
    /// Of one that a key opens.
    Sealed(Box<SealedPage>),
}

/// A page that says whose key opens it.
pub(crate) struct SealedPage {
    /// Without the digest.
    header: RecordHeader,
    /// What all is bound to.
    bound: [u8; HIDDEN_AT],
    hidden: [u8; HIDDEN_BYTES],
    tag: TagBytes,
}

/// What opens the bytes of a record whose page was opened.
pub(crate) struct SealedBytes {
    key: OnceKey,
    bound: [u8; HIDDEN_AT],
    tag: TagBytes,
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
    /// Writes the page of a record whose bytes are as they are.
    pub(crate) fn encode(&self, page: &mut [u8]) {
        self.lay_out(PLAIN, page);
        sign(page);
    }

    /// Encrypts a block's bytes where they are, and writes the page that opens them.
    pub(crate) fn seal(&self, key: &DataKey, page: &mut [u8], bytes: &mut [u8]) -> io::Result<()> {
        let mut shown = *self;
        shown.block.header.digest = 0;
        shown.lay_out(SEALED, page);
        let salt = salt()?;
        page[SALT_AT..HIDDEN_AT].copy_from_slice(&salt);
        let key = key.once(&salt);
        let of_bytes = key.seal(Part::Bytes, &page[..HIDDEN_AT], bytes)?;
        let mut hidden = [0; HIDDEN_BYTES];
        hidden[..8].copy_from_slice(&self.block.header.digest.to_le_bytes());
        hidden[8..].copy_from_slice(&of_bytes);
        let tag = key.seal(Part::Page, &page[..HIDDEN_AT], &mut hidden)?;
        page[HIDDEN_AT..TAG_AT].copy_from_slice(&hidden);
        page[TAG_AT..END_AT].copy_from_slice(&tag);
        sign(page);
        Ok(())
    }

    fn lay_out(&self, version: u32, page: &mut [u8]) {
        page.fill(0);
        page[0..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&version.to_le_bytes());
        page[12..16].copy_from_slice(&self.number.to_le_bytes());
        page[16..24].copy_from_slice(&self.frame_bytes.to_le_bytes());
        page[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        page[32..48].copy_from_slice(&self.mark);
        page[48..80].copy_from_slice(self.block.parent.as_bytes());
        page[80..82].copy_from_slice(&self.slot.0.to_le_bytes());
        page[BLOCK_AT..BLOCK_AT + HEADER_BYTES].copy_from_slice(&self.block.header.encode());
    }

    /// Says whose key it is written under.
    pub(crate) fn key_name(&self) -> KeyName {
        let BlockHeader { tenant, era, .. } = self.block.header;
        KeyName { tenant, era, mark: self.mark }
    }

    /// Reads a page, and checks all that it can be checked for by itself.
    pub(crate) fn decode(page: &[u8]) -> Result<Page, PageError> {
        let page: &[u8; PAGE] = page.try_into().map_err(|_| PageError::Damaged)?;
        if page.iter().all(|byte| *byte == 0) {
            return Err(PageError::Empty);
        }
        let version = u32::from_le_bytes(field(page, 8));
        if page[0..8] != MAGIC || ![PLAIN, SEALED].contains(&version) {
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
        let ends = if version == SEALED { END_AT } else { SALT_AT };
        if page[82..BLOCK_AT].iter().chain(&page[ends..SUM_AT]).any(|byte| *byte != 0) {
            return Err(PageError::Damaged);
        }
        if version == PLAIN {
            return Ok(Page::Plain(header));
        }
        let (bound, hidden, tag) = (field(page, 0), field(page, HIDDEN_AT), field(page, TAG_AT));
        Ok(Page::Sealed(Box::new(SealedPage { header, bound, hidden, tag })))
    }
}

impl SealedPage {
    /// Says whose key opens it.
    pub(crate) fn key_name(&self) -> KeyName {
        self.header.key_name()
    }

    /// Returns what the page says, and what opens its block's bytes; none when the key or the page is another.
    pub(crate) fn open(mut self, key: &DataKey) -> Option<(RecordHeader, SealedBytes)> {
        let key = key.once(&field_of(&self.bound, SALT_AT));
        if !key.open(Part::Page, &self.bound, &mut self.hidden, &self.tag) {
            return None;
        }
        self.header.block.header.digest = u64::from_le_bytes(field_of(&self.hidden, 0));
        let tag = field_of(&self.hidden, 8);
        Some((self.header, SealedBytes { key, bound: self.bound, tag }))
    }
}

impl SealedBytes {
    /// Decrypts a block's bytes where they are. False when they are not those that the page was written for.
    #[must_use]
    pub(crate) fn open(&self, bytes: &mut [u8]) -> bool {
        self.key.open(Part::Bytes, &self.bound, bytes, &self.tag)
    }
}

fn sign(page: &mut [u8]) {
    let sum = blake3::hash(&page[..SUM_AT]);
    page[SUM_AT..PAGE].copy_from_slice(sum.as_bytes());
}

/// Reads a page that begins so, its checksum made good first, and writes it again. For `kvhive-fuzz` alone.
pub fn fuzz_record(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut page = vec![0; PAGE];
    page.get_mut(..bytes.len().min(SUM_AT))?.copy_from_slice(&bytes[..bytes.len().min(SUM_AT)]);
    sign(&mut page);
    let written = match RecordHeader::decode(&page).ok()? {
        Page::Plain(header) => {
            header.encode(&mut page);
            page
        }
        Page::Sealed(sealed) => {
            sealed.header.lay_out(SEALED, &mut page);
            page[SALT_AT..HIDDEN_AT].copy_from_slice(&sealed.bound[SALT_AT..]);
            page[HIDDEN_AT..TAG_AT].copy_from_slice(&sealed.hidden);
            page[TAG_AT..END_AT].copy_from_slice(&sealed.tag);
            sign(&mut page);
            page
        }
    };
    Some(written)
}

fn field<const N: usize>(page: &[u8; PAGE], at: usize) -> [u8; N] {
    field_of(page, at)
}

pub(super) fn field_of<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
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

    fn plain(page: &[u8]) -> Result<RecordHeader, PageError> {
        match RecordHeader::decode(page)? {
            Page::Plain(header) => Ok(header),
            Page::Sealed(_) => Err(PageError::Forged),
        }
    }

    /// Reads a sealed record as the tier does.
    fn opened(key: &DataKey, page: &[u8], bytes: &[u8]) -> Result<(RecordHeader, Vec<u8>), PageError> {
        let Page::Sealed(page) = RecordHeader::decode(page)? else { return Err(PageError::Forged) };
        let (header, sealed) = page.open(key).ok_or(PageError::Forged)?;
        let mut bytes = bytes.to_vec();
        if sealed.open(&mut bytes) { Ok((header, bytes)) } else { Err(PageError::Damaged) }
    }

    fn sealed(key: &DataKey, header: &RecordHeader) -> (Vec<u8>, Vec<u8>) {
        let (mut page, mut bytes) = (vec![0xFF; PAGE], b"what an engine computed".repeat(100));
        header.seal(key, &mut page, &mut bytes).expect("random");
        (page, bytes)
    }

    #[test]
    fn a_page_says_what_was_written() {
        let mut page = vec![0xFF; PAGE];
        header().encode(&mut page);
        assert_eq!(plain(&page), Ok(header()));
        assert_eq!(plain(&[0; PAGE]), Err(PageError::Empty));
        assert_ne!(tenant_mark(&[1; 32]), tenant_mark(&[2; 32]));
    }

    #[test]
    fn a_page_with_any_bit_flipped_is_none() {
        let mut page = vec![0; PAGE];
        header().encode(&mut page);
        for at in 0..PAGE * 8 {
            page[at / 8] ^= 1 << (at % 8);
            assert_eq!(plain(&page), Err(PageError::Damaged), "bit {at}");
            page[at / 8] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn a_sealed_record_shows_neither_its_bytes_nor_their_digest() {
        let key = DataKey::random().expect("random");
        let mut header = header();
        header.block.header.digest = 0x1122_3344_5566_7788;
        let (page, bytes) = sealed(&key, &header);
        let whole = b"what an engine computed".repeat(100);
        assert_eq!(opened(&key, &page, &bytes), Ok((header, whole)));
        let has = |within: &[u8], what: &[u8]| within.windows(what.len()).any(|part| part == what);
        assert!(!has(&bytes, b"engine") && !has(&page, &header.block.header.digest.to_le_bytes()));
        let again = sealed(&key, &header);
        assert!(again.0[SALT_AT..] != page[SALT_AT..] && again.1 != bytes, "the same is never sealed alike");
    }

    #[test]
    fn a_sealed_record_with_any_byte_changed_is_refused_also_when_its_checksums_are_made_to_hold() {
        let key = DataKey::random().expect("random");
        let (page, bytes) = sealed(&key, &header());
        for at in 0..SUM_AT {
            let mut page = page.clone();
            page[at] ^= 0x21;
            assert_eq!(opened(&key, &page, &bytes), Err(PageError::Damaged), "byte {at}");
            // Who may write to the disk can make both checksums hold, the page's and its block header's.
            let sum_at = SALT_AT - 8;
            if (BLOCK_AT..sum_at).contains(&at) {
                let sum = xxhash_rust::xxh3::xxh3_64(&page[BLOCK_AT..sum_at]);
                page[sum_at..SALT_AT].copy_from_slice(&sum.to_le_bytes());
            }
            sign(&mut page);
            assert!(opened(&key, &page, &bytes).is_err(), "byte {at}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(opened(&key, &page, &bytes), Err(PageError::Damaged), "byte {at}");
        }
    }

    #[test]
    fn records_of_two_tenants_places_and_writes_do_not_open_for_each_other() {
        let (one, other) = (DataKey::random().expect("random"), DataKey::random().expect("random"));
        let ((page, bytes), (second_page, second_bytes)) = (sealed(&one, &header()), sealed(&one, &header()));
        assert_eq!(opened(&other, &page, &bytes), Err(PageError::Forged));
        assert_eq!(opened(&one, &page, &second_bytes), Err(PageError::Damaged));
        assert_eq!(opened(&one, &second_page, &bytes), Err(PageError::Damaged));
        // A record that says that it is another's, with what another's page has to open it.
        let mut moved = header();
        moved.number += 1;
        let (mut moved_page, _) = sealed(&one, &moved);
        moved_page[SALT_AT..END_AT].copy_from_slice(&page[SALT_AT..END_AT]);
        sign(&mut moved_page);
        assert_eq!(opened(&one, &moved_page, &bytes), Err(PageError::Forged));
    }

    #[test]
    fn a_record_is_whole_pages() {
        assert_eq!([0, 1, 4096, 4097].map(record_bytes), [4096, 8192, 8192, 12288]);
    }
}
