//! Blocks that name themselves: every line of 64 bytes says of which block it is and where in it, and the rest of it follows from
//! that and the seed. A wrong byte so tells whether it is another block's, of another time, or nobody's.

use crate::random::mix;
use std::fmt;

/// Bytes of a line.
pub const LINE_BYTES: usize = 64;
/// Bytes of a line that say whose it is.
const NAME_BYTES: usize = 16;

/// Which block it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Label {
    /// Which tenant, as the run counts them.
    pub tenant: u16,
    /// Which block of its prefix.
    pub at: u16,
    /// How many clears of the tenant had been acknowledged when it was stored.
    pub clears: u32,
    /// Which prefix of the tenant.
    pub name: u32,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {} of prefix {} of tenant {} after {} clears",
            self.at, self.name, self.tenant, self.clears
        )
    }
}

/// What is wrong with a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The first line that is.
    pub line: usize,
    /// Whose that line is: of which block, and which line of it. None where it is nobody's.
    pub found: Option<(Label, u32)>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            Some((label, line)) => write!(f, "line {} is line {line} of {label}", self.line),
            None => write!(f, "line {} is nobody's", self.line),
        }
    }
}

/// Writes the block of a label.
pub fn fill(seed: u64, label: Label, block: &mut [u8]) {
    for (number, line) in block.chunks_mut(LINE_BYTES).enumerate() {
        line.copy_from_slice(&made(seed, label, number as u32)[..line.len()]);
    }
}

/// Reads whose block it is: all of it, or what is wrong with it.
///
/// # Errors
/// Where not every line is of one block, in its place.
pub fn read(seed: u64, block: &[u8]) -> Result<Label, Wrong> {
    let first = block.get(..LINE_BYTES).and_then(|line| named(seed, line));
    let Some((label, 0)) = first else { return Err(Wrong { line: 0, found: first }) };
    for (number, line) in block.chunks(LINE_BYTES).enumerate() {
        if made(seed, label, number as u32)[..line.len()] != *line {
            return Err(Wrong { line: number, found: named(seed, line) });
        }
    }
    Ok(label)
}

/// Makes one line.
fn made(seed: u64, label: Label, number: u32) -> [u8; LINE_BYTES] {
    let mut line = [0; LINE_BYTES];
    line[0..2].copy_from_slice(&label.tenant.to_le_bytes());
    line[2..4].copy_from_slice(&label.at.to_le_bytes());
    line[4..8].copy_from_slice(&label.clears.to_le_bytes());
    line[8..12].copy_from_slice(&label.name.to_le_bytes());
    line[12..16].copy_from_slice(&number.to_le_bytes());
    let (low, high) = halves(&line);
    let mut word = mix(seed ^ mix(low ^ mix(high)));
    for piece in line[NAME_BYTES..].chunks_mut(8) {
        word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
        piece.copy_from_slice(&mix(word).to_le_bytes());
    }
    line
}

/// Says whose a line is, if it is whole.
fn named(seed: u64, line: &[u8]) -> Option<(Label, u32)> {
    let line: &[u8; LINE_BYTES] = line.try_into().ok()?;
    let (low, high) = halves(line);
    let label =
        Label { tenant: low as u16, at: (low >> 16) as u16, clears: (low >> 32) as u32, name: high as u32 };
    let number = (high >> 32) as u32;
    (made(seed, label, number) == *line).then_some((label, number))
}

fn halves(line: &[u8; LINE_BYTES]) -> (u64, u64) {
    let (mut low, mut high) = ([0; 8], [0; 8]);
    low.copy_from_slice(&line[..8]);
    high.copy_from_slice(&line[8..NAME_BYTES]);
    (u64::from_le_bytes(low), u64::from_le_bytes(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { tenant: 3, at: 2, clears: 7, name: 900 };

    fn block(label: Label) -> Vec<u8> {
        let mut block = vec![0; 4096 + 24];
        fill(5, label, &mut block);
        block
    }

    #[test]
    fn a_whole_block_says_whose_it_is() {
        assert_eq!(read(5, &block(LABEL)), Ok(LABEL));
        assert_eq!(read(6, &block(LABEL)), Err(Wrong { line: 0, found: None }), "another run's");
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let whole = block(LABEL);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let wrong = read(5, &flipped).expect_err("a bit is wrong");
            assert_eq!((wrong.line, wrong.found), (bit / 8 / LINE_BYTES, None), "bit {bit}");
        }
    }

    #[test]
    fn a_line_of_another_block_tells_which() {
        let other = Label { name: 901, ..LABEL };
        let mut mixed = block(LABEL);
        mixed[128..192].copy_from_slice(&block(other)[256..320]);
        let wrong = read(5, &mixed).expect_err("a line is another's");
        assert_eq!(wrong, Wrong { line: 2, found: Some((other, 4)) });
        assert!(wrong.to_string().contains("line 2 is line 4 of block 2 of prefix 901"));
        // Lines of its own in another order are no block either.
        let mut turned = block(LABEL);
        turned.copy_within(64..128, 0);
        assert_eq!(read(5, &turned), Err(Wrong { line: 0, found: Some((LABEL, 1)) }));
    }
}
