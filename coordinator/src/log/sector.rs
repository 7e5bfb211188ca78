//! Sectors: the unit that a disk writes whole or not at all. Each is sealed by itself, so that a write that a crash cut
//! short (sectors that were never sealed) is told from damage to what was written (sealed sectors that do not add up).
//!
//! ```text
//! 0     492       500   504  508   512
//! data  sequence  part  crc  "Seal"
//! ```
//! The seal stands at the very end: whatever tail of a sector is missing, the seal is.

use std::ops::Range;

/// Bytes in a sector; disks promise to write no less at a time.
pub(super) const SECTOR_BYTES: usize = 512;
/// Bytes of a record in each of its sectors.
pub(super) const DATA_BYTES: usize = 492;

const SEQUENCE: Range<usize> = DATA_BYTES..DATA_BYTES + 8;
const PART: Range<usize> = DATA_BYTES + 8..DATA_BYTES + 12;
const SUM: Range<usize> = DATA_BYTES + 12..DATA_BYTES + 16;
const SEAL: Range<usize> = DATA_BYTES + 16..DATA_BYTES + 20;
/// No flip of one bit makes its last byte zero.
const SEALED: [u8; 4] = *b"Seal";

/// The random number of a log, made once. It keeps bytes of another log from passing for this one's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogId(pub(super) [u8; 16]);

/// A record's number, without gaps over the log's whole life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Sequence(pub(super) u64);

impl Sequence {
    pub(super) fn next(self) -> Sequence {
        Sequence(self.0 + 1)
    }
}

/// A place for a sector: part of its checksum, so that a misplaced sector does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) log: LogId,
    pub(super) segment: u64,
    pub(super) sector: u64,
}

/// What a sealed sector says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seal {
    /// The record that it is part of.
    pub(super) sequence: Sequence,
    /// Its number among the sectors of the record, from 0.
    pub(super) part: u32,
}

/// What a sector turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// As it was sealed.
    Sealed(Seal),
    /// Never sealed: not written, or its write was cut short.
    Unsealed,
    /// Sealed once, and changed since.
    Damaged,
}

/// Returns how many sectors `bytes` bytes of a record take.
pub(super) fn sectors_for(bytes: u64) -> u64 {
    bytes.div_ceil(DATA_BYTES as u64)
}

/// Returns `record`, cut into sectors and sealed for the places from `place` on.
pub(super) fn seal(record: &[u8], place: Place, sequence: Sequence) -> Vec<u8> {
    let mut out = Vec::with_capacity(sectors_for(record.len() as u64) as usize * SECTOR_BYTES);
    for (part, piece) in record.chunks(DATA_BYTES).enumerate() {
        let mut sector = [0; SECTOR_BYTES];
        sector[..piece.len()].copy_from_slice(piece);
        sector[SEQUENCE].copy_from_slice(&sequence.0.to_le_bytes());
        sector[PART].copy_from_slice(&(part as u32).to_le_bytes());
        let sum = sum(&sector, Place { sector: place.sector + part as u64, ..place });
        sector[SUM].copy_from_slice(&sum.to_le_bytes());
        sector[SEAL].copy_from_slice(&SEALED);
        out.extend_from_slice(&sector);
    }
    out
}

/// Says what the sector at `place` is.
pub(super) fn inspect(sector: &[u8], place: Place) -> Found {
    debug_assert_eq!(sector.len(), SECTOR_BYTES);
    if sector[SECTOR_BYTES - 1] == 0 {
        return Found::Unsealed;
    }
    if sector[SEAL] != SEALED || read_u32(&sector[SUM]) != sum(sector, place) {
        return Found::Damaged;
    }
    let sequence = Sequence(read_u64(&sector[SEQUENCE]));
    Found::Sealed(Seal { sequence, part: read_u32(&sector[PART]) })
}

/// Reads the number at the front of `bytes`, which has at least four.
pub(super) fn read_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes were cut off"))
}

/// Reads the number at the front of `bytes`, which has at least eight.
pub(super) fn read_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes were cut off"))
}

/// Seals a sector that is there, whatever it says. For `kvhive-fuzz` alone.
pub(super) fn make_good(sector: &mut [u8], place: Place) {
    sector[SEAL].copy_from_slice(&SEALED);
    let sum = sum(sector, place);
    sector[SUM].copy_from_slice(&sum.to_le_bytes());
}

fn sum(sector: &[u8], place: Place) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.log.0);
    hasher.update(&place.segment.to_le_bytes());
    hasher.update(&place.sector.to_le_bytes());
    hasher.update(&sector[..SUM.start]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { log: LogId([7; 16]), segment: 3, sector: 9 };

    #[test]
    fn a_sector_is_what_was_sealed_there_and_nowhere_else() {
        let bytes = seal(&[1; DATA_BYTES + 1], PLACE, Sequence(5));
        let second = Place { sector: PLACE.sector + 1, ..PLACE };
        assert_eq!(bytes.len(), 2 * SECTOR_BYTES);
        let expected = Found::Sealed(Seal { sequence: Sequence(5), part: 1 });
        assert_eq!(inspect(&bytes[SECTOR_BYTES..], second), expected);
        let elsewhere = [
            Place { segment: 4, ..second },
            Place { sector: 11, ..second },
            Place { log: LogId([8; 16]), ..second },
        ];
        for place in elsewhere {
            assert_eq!(inspect(&bytes[SECTOR_BYTES..], place), Found::Damaged);
        }
    }

    #[test]
    fn a_sector_cut_short_anywhere_is_unsealed_and_any_flipped_bit_is_damage() {
        let whole = seal(b"something", PLACE, Sequence(5));
        for at in 0..SECTOR_BYTES {
            let mut cut = whole.clone();
            cut[at..].fill(0);
            assert_eq!(inspect(&cut, PLACE), Found::Unsealed, "cut at {at}");
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(inspect(&flipped, PLACE), Found::Damaged, "bit {bit} of byte {at}");
            }
        }
    }
}
