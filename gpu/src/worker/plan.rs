//! How the bytes of a transfer are cut into what is sent at once. Both ends cut alike, as they know the same lengths; where the bytes lie is
//! each end's own business.

use super::message::Extent;

/// What is smaller is gathered with what comes before and after it.
pub const LEAST_BYTES: u64 = 512 << 10;
/// What is larger is cut.
pub const MOST_BYTES: u64 = 8 << 20;
/// Bytes that are gathered in one round: the memory that both ends have for it.
pub(super) const STAGED_BYTES: u64 = 4 * MOST_BYTES;
/// Pieces of one round: NCCL has a limit to what it takes as one group.
const ROUND_PIECES: usize = 64;
/// Where large extents are cut, so that pieces begin as their memory does.
const UNIT_BYTES: u64 = 4096;

/// Bytes that go as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Where they are.
    pub(super) place: Place,
    /// How many.
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the slab, from this byte on.
    Slab(u64),
    /// In the memory where small ones are gathered.
    Staged(u64),
}

/// Bytes that are copied between the slab and where they are gathered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Copy {
    pub(super) slab: u64,
    pub(super) staged: u64,
    pub(super) bytes: u64,
}

/// What goes as one group.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Round {
    pub(super) pieces: Vec<Piece>,
    pub(super) copies: Vec<Copy>,
    /// Bytes of gathered pieces, whether they had to be copied or not: the other end may have to.
    gathered: u64,
}

/// Cuts extents into rounds. Sizes follow from the lengths and their order alone.
pub(super) fn plan(extents: &[Extent]) -> Vec<Round> {
    let mut rounds = vec![Round::default()];
    let mut small: Vec<Extent> = Vec::new();
    for extent in extents {
        let gathered: u64 = small.iter().map(|extent| extent.bytes).sum();
        if extent.bytes >= LEAST_BYTES {
            gather(&mut rounds, &mut small);
            for piece in cut(extent) {
                room(&mut rounds, 0).pieces.push(piece);
            }
        } else {
            if gathered + extent.bytes > MOST_BYTES {
                gather(&mut rounds, &mut small);
            }
            small.push(*extent);
        }
    }
    gather(&mut rounds, &mut small);
    rounds
}

/// Returns the round that has room for one more piece.
fn room(rounds: &mut Vec<Round>, gathered: u64) -> &mut Round {
    let is_full = rounds
        .last()
        .is_none_or(|last| last.pieces.len() == ROUND_PIECES || last.gathered + gathered > STAGED_BYTES);
    if is_full {
        rounds.push(Round::default());
    }
    rounds.last_mut().expect("there is one at least")
}

/// Makes one piece of small extents: where they lie where they follow each other, else where they are gathered.
fn gather(rounds: &mut Vec<Round>, small: &mut Vec<Extent>) {
    let Some(first) = small.first().copied() else { return };
    let bytes = small.iter().map(|extent| extent.bytes).sum();
    let round = room(rounds, bytes);
    let is_whole = small.windows(2).all(|two| two[0].at + two[0].bytes == two[1].at);
    let place = if is_whole {
        small.clear();
        Place::Slab(first.at)
    } else {
        let mut staged = round.gathered;
        for Extent { at, bytes } in small.drain(..) {
            round.copies.push(Copy { slab: at, staged, bytes });
            staged += bytes;
        }
        Place::Staged(round.gathered)
    };
    round.gathered += bytes;
    round.pieces.push(Piece { place, bytes });
}

/// Cuts a large extent into pieces that are as large as each other, or nearly.
fn cut(extent: &Extent) -> impl Iterator<Item = Piece> + use<> {
    let Extent { at, bytes } = *extent;
    let even = bytes.div_ceil(bytes.div_ceil(MOST_BYTES).max(1)).next_multiple_of(UNIT_BYTES);
    (0..bytes)
        .step_by(even as usize)
        .map(move |from| Piece { place: Place::Slab(at + from), bytes: even.min(bytes - from) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn extents(of: &[(u64, u64)]) -> Vec<Extent> {
        of.iter().map(|(at, bytes)| Extent { at: *at, bytes: *bytes }).collect()
    }

    fn sizes(rounds: &[Round]) -> Vec<Vec<u64>> {
        rounds.iter().map(|round| round.pieces.iter().map(|piece| piece.bytes).collect()).collect()
    }

    #[test]
    fn small_ones_are_gathered_and_large_ones_are_cut() {
        let rounds = plan(&extents(&[(0, 4096), (8192, 4096), (MIB, 9 * MIB), (32 * MIB, 16)]));
        assert_eq!(sizes(&rounds), [[8192, 9 * MIB / 2, 9 * MIB / 2, 16]]);
        let copies =
            [Copy { slab: 0, staged: 0, bytes: 4096 }, Copy { slab: 8192, staged: 4096, bytes: 4096 }];
        assert_eq!(rounds[0].copies, copies);
    }

    #[test]
    fn what_is_adjacent_is_one_piece_where_it_lies() {
        let rounds = plan(&extents(&[(100, 50), (150, 7), (157, 1)]));
        assert_eq!(rounds[0].pieces, [Piece { place: Place::Slab(100), bytes: 58 }]);
        assert_eq!(rounds[0].copies, []);
    }

    #[test]
    fn more_than_there_is_room_for_goes_in_rounds() {
        let many: Vec<Extent> = (0..200).map(|at| Extent { at: at * MIB, bytes: 300 << 10 }).collect();
        let rounds = plan(&many);
        assert_eq!(rounds.len(), 2);
        assert!(rounds.iter().all(|round| round.gathered <= STAGED_BYTES));
        assert_eq!(plan(&extents(&[(0, 1000 * MIB)])).len(), 2);
    }

    proptest! {
        #[test]
        fn every_byte_goes_once_in_order_and_both_ends_cut_alike(
            lengths in prop::collection::vec((1u64..64).prop_flat_map(|scale| 1u64..=scale * 200_000), 1..120),
            gaps in prop::collection::vec(0u64..3, 120),
        ) {
            let place = |gaps: &[u64]| {
                let mut at = 0;
                let mut placed = Vec::new();
                for (bytes, gap) in lengths.iter().zip(gaps) {
                    at += gap * 4096;
                    placed.push(Extent { at, bytes: *bytes });
                    at += bytes;
                }
                placed
            };
            let here = place(&gaps);
            let rounds = plan(&here);
            // The other end has all of it in one place.
            prop_assert_eq!(sizes(&rounds), sizes(&plan(&place(&[0; 120]))));
            // What is sent, byte by byte, is what was asked: stretches are followed to where they come from.
            let mut sent: Vec<(u64, u64)> = Vec::new();
            for round in &rounds {
                prop_assert!(round.pieces.len() <= ROUND_PIECES && round.gathered <= STAGED_BYTES);
                for piece in &round.pieces {
                    prop_assert!(piece.bytes <= MOST_BYTES);
                    match piece.place {
                        Place::Slab(at) => sent.push((at, piece.bytes)),
                        Place::Staged(at) => {
                            let within = at..at + piece.bytes;
                            let copies = round.copies.iter().filter(|copy| within.contains(&copy.staged));
                            sent.extend(copies.map(|copy| (copy.slab, copy.bytes)));
                        }
                    }
                }
            }
            let join = |parts: &mut dyn Iterator<Item = (u64, u64)>| {
                let mut joined: Vec<(u64, u64)> = Vec::new();
                for (at, bytes) in parts {
                    match joined.last_mut() {
                        Some(last) if last.0 + last.1 == at => last.1 += bytes,
                        _ => joined.push((at, bytes)),
                    }
                }
                joined
            };
            let asked = join(&mut here.iter().map(|extent| (extent.at, extent.bytes)));
            prop_assert_eq!(join(&mut sent.into_iter()), asked);
        }
    }
}
