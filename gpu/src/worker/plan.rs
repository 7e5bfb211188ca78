//! How the bytes of a transfer are cut into what is sent at once. Both ends cut alike, as they know the same lengths and go by the same
//! [`Packing`]; where the bytes lie is each end's own business.

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

/// By which rule a transfer is cut. Its ends agree on it before. What a rule makes of some lengths never changes: an end of another build cuts so too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Packing {
    /// Small extents go together, and large ones apart from them: between large ones a send may be of a few bytes.
    Apart,
    /// Small ones that are too little to be sent go with a part of what is beside them: no send is of less than [`LEAST_BYTES`], unless all of
    /// the transfer is.
    Together,
}

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
    /// In the memory where what is too small is gathered.
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

/// What goes as one piece: whole extents and parts of them, in their order.
type Parts = Vec<Extent>;

/// Cuts extents into rounds. Sizes follow from the rule, the lengths and their order alone.
pub(super) fn plan(packing: Packing, extents: &[Extent]) -> Vec<Round> {
    let pieces = match packing {
        Packing::Apart => apart(extents),
        Packing::Together => together(extents),
    };
    let mut rounds = vec![Round::default()];
    for parts in pieces {
        lay(&mut rounds, &parts);
    }
    rounds
}

fn bytes_of(parts: &[Extent]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

fn apart(extents: &[Extent]) -> Vec<Parts> {
    let (mut pieces, mut small) = (Vec::new(), Parts::new());
    for extent in extents {
        let is_large = extent.bytes >= LEAST_BYTES;
        if !small.is_empty() && (is_large || bytes_of(&small) + extent.bytes > MOST_BYTES) {
            pieces.push(std::mem::take(&mut small));
        }
        if is_large {
            pieces.extend(evenly(extent));
        } else {
            small.push(*extent);
        }
    }
    if !small.is_empty() {
        pieces.push(small);
    }
    pieces
}

fn together(extents: &[Extent]) -> Vec<Parts> {
    let (mut pieces, mut small) = (Vec::new(), Parts::new());
    for extent in extents {
        let gathered = bytes_of(&small);
        if extent.bytes < LEAST_BYTES {
            if gathered + extent.bytes > MOST_BYTES {
                pieces.push(std::mem::take(&mut small));
            }
            small.push(*extent);
            continue;
        }
        let mut rest = *extent;
        if gathered > 0 {
            let lacking = LEAST_BYTES.saturating_sub(gathered).next_multiple_of(UNIT_BYTES);
            if lacking > 0 {
                // What would be left is to be enough as well.
                let is_all = rest.bytes < lacking + LEAST_BYTES;
                small.push(take_head(&mut rest, if is_all { extent.bytes } else { lacking }));
            }
            if rest.bytes == 0 {
                continue;
            }
            pieces.push(std::mem::take(&mut small));
        }
        pieces.extend(evenly(&rest));
    }
    let gathered = bytes_of(&small);
    if gathered < LEAST_BYTES
        && !small.is_empty()
        && let Some(last) = pieces.pop()
    {
        // What stays ends where large extents are cut, and is to be enough as well.
        let left = bytes_of(&last).saturating_sub(LEAST_BYTES - gathered) / UNIT_BYTES * UNIT_BYTES;
        let (before, mut tail) = split(last, if left < LEAST_BYTES { 0 } else { left });
        if !before.is_empty() {
            pieces.push(before);
        }
        tail.append(&mut small);
        small = tail;
    }
    if !small.is_empty() {
        pieces.push(small);
    }
    pieces
}

/// Takes so many bytes off an extent's head.
fn take_head(extent: &mut Extent, bytes: u64) -> Extent {
    let head = Extent { at: extent.at, bytes };
    *extent = Extent { at: extent.at + bytes, bytes: extent.bytes - bytes };
    head
}

/// Parts a piece after its first `left` bytes.
fn split(parts: Parts, mut left: u64) -> (Parts, Parts) {
    let (mut before, mut after) = (Parts::new(), Parts::new());
    for mut part in parts {
        let head = left.min(part.bytes);
        if head > 0 {
            before.push(take_head(&mut part, head));
            left -= head;
        }
        if part.bytes > 0 {
            after.push(part);
        }
    }
    (before, after)
}

/// Cuts a large extent into pieces that are as large as each other, or nearly.
fn evenly(extent: &Extent) -> impl Iterator<Item = Parts> + use<> {
    let Extent { at, bytes } = *extent;
    let even = bytes.div_ceil(bytes.div_ceil(MOST_BYTES).max(1)).next_multiple_of(UNIT_BYTES);
    (0..bytes)
        .step_by(even as usize)
        .map(move |from| vec![Extent { at: at + from, bytes: even.min(bytes - from) }])
}

/// Lays a piece into a round: where its parts lie if they follow each other, else where they are gathered.
fn lay(rounds: &mut Vec<Round>, parts: &[Extent]) {
    let Some(first) = parts.first() else { return };
    let bytes = bytes_of(parts);
    // Counted wherever they lie here.
    let gathered = if parts.len() > 1 || bytes < LEAST_BYTES { bytes } else { 0 };
    let round = room(rounds, gathered);
    let is_whole = parts.windows(2).all(|two| two[0].at + two[0].bytes == two[1].at);
    let place = if is_whole {
        Place::Slab(first.at)
    } else {
        let mut staged = round.gathered;
        for Extent { at, bytes } in parts.iter().copied() {
            round.copies.push(Copy { slab: at, staged, bytes });
            staged += bytes;
        }
        Place::Staged(round.gathered)
    };
    round.gathered += gathered;
    round.pieces.push(Piece { place, bytes });
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const BOTH: [Packing; 2] = [Packing::Apart, Packing::Together];

    fn extents(of: &[(u64, u64)]) -> Vec<Extent> {
        of.iter().map(|(at, bytes)| Extent { at: *at, bytes: *bytes }).collect()
    }

    fn sizes(rounds: &[Round]) -> Vec<Vec<u64>> {
        rounds.iter().map(|round| round.pieces.iter().map(|piece| piece.bytes).collect()).collect()
    }

    #[test]
    fn small_ones_are_gathered_and_large_ones_are_cut() {
        let small = (0..300).map(|at| (at * 4096 * 2, 4096));
        let mixed = extents(&small.chain([(4 * MIB, 9 * MIB)]).collect::<Vec<_>>());
        for packing in BOTH {
            let rounds = plan(packing, &mixed);
            assert_eq!(sizes(&rounds), [[300 * 4096, 9 * MIB / 2, 9 * MIB / 2]]);
            assert_eq!(rounds[0].copies.len(), 300);
            assert_eq!(rounds[0].copies[2], Copy { slab: 4 * 4096, staged: 2 * 4096, bytes: 4096 });
        }
    }

    #[test]
    fn what_is_too_little_to_send_goes_with_a_part_of_what_is_beside_it() {
        let mixed = extents(&[(0, 4096), (8192, 4096), (MIB, 9 * MIB), (32 * MIB, 16)]);
        let rounds = plan(Packing::Together, &mixed);
        // The tail begins where large ones are cut: at a multiple of what memory is aligned to.
        let (head, tail) = (LEAST_BYTES - 8192, LEAST_BYTES);
        let half = (9 * MIB - head).div_ceil(2).next_multiple_of(UNIT_BYTES);
        assert_eq!(sizes(&rounds), [[LEAST_BYTES, half, 9 * MIB - head - half - tail, LEAST_BYTES + 16]]);
        let copies = [
            (0, 0, 4096),
            (8192, 4096, 4096),
            (MIB, 8192, head),
            (10 * MIB - tail, LEAST_BYTES, tail),
            (32 * MIB, LEAST_BYTES + tail, 16),
        ];
        assert_eq!(rounds[0].copies, copies.map(|(slab, staged, bytes)| Copy { slab, staged, bytes }));
        // What would be left of it is too little as well.
        let whole = |of: &[(u64, u64)]| sizes(&plan(Packing::Together, &extents(of)));
        assert_eq!(whole(&[(0, 16), (MIB, LEAST_BYTES), (4 * MIB, 16)]), [[LEAST_BYTES + 32]]);
        assert_eq!(whole(&[(0, LEAST_BYTES), (MIB, 16)]), [[LEAST_BYTES + 16]]);
        assert_eq!(whole(&[(0, MIB - 17), (MIB, 16)]), [[MIB - 1]]);
        assert_eq!(whole(&[(0, MIB - 16), (MIB, 16)]), [[LEAST_BYTES, LEAST_BYTES]]);
        // All of it is too little, or nothing.
        assert_eq!(whole(&[(0, 16), (4096, 16)]), [[32]]);
        assert_eq!(whole(&[]), [[0u64; 0]]);
        // As builds do that know no better.
        let apart = plan(Packing::Apart, &mixed);
        assert_eq!(sizes(&apart), [[8192, 9 * MIB / 2, 9 * MIB / 2, 16]]);
        let copies = [(0, 0, 4096), (8192, 4096, 4096)];
        assert_eq!(apart[0].copies, copies.map(|(slab, staged, bytes)| Copy { slab, staged, bytes }));
    }

    #[test]
    fn what_is_adjacent_is_one_piece_where_it_lies() {
        for packing in BOTH {
            let rounds = plan(packing, &extents(&[(100, 50), (150, 7), (157, 1)]));
            assert_eq!(rounds[0].pieces, [Piece { place: Place::Slab(100), bytes: 58 }]);
            assert_eq!(rounds[0].copies, []);
        }
    }

    #[test]
    fn more_than_there_is_room_for_goes_in_rounds() {
        let many: Vec<Extent> = (0..200).map(|at| Extent { at: at * MIB, bytes: 300 << 10 }).collect();
        for packing in BOTH {
            let rounds = plan(packing, &many);
            assert_eq!(rounds.len(), 2);
            assert!(rounds.iter().all(|round| round.gathered <= STAGED_BYTES));
            assert_eq!(plan(packing, &extents(&[(0, 1000 * MIB)])).len(), 2);
        }
    }

    #[test]
    fn what_is_large_is_cut_evenly() {
        for packing in BOTH {
            let of = |bytes: u64| sizes(&plan(packing, &extents(&[(0, bytes)])));
            assert_eq!(of(8 * MIB), [[8_388_608]]);
            assert_eq!(of(8 * MIB + 1), [[4_198_400, 4_190_209]]);
            assert_eq!(of(17 * MIB), [[5_943_296, 5_943_296, 5_939_200]]);
            assert_eq!(of(1000 * MIB), [vec![8_388_608; 64], vec![8_388_608; 61]]);
        }
    }

    /// A build that cuts otherwise by one of these rules hangs with those of before: it wants a rule of its own, and a level.
    #[test]
    fn a_rule_makes_of_lengths_what_it_always_has() {
        let mut drawn = 1u64;
        let mut draw = |below: u64| {
            drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (drawn >> 33) % below
        };
        let transfers: Vec<Vec<Extent>> = (0..500)
            .map(|_| {
                let scale = 4 + draw(23);
                let (count, most) = (1 + draw(if scale > 22 { 12 } else { 120 }), 1 << scale);
                (0..count).map(|_| Extent { at: 0, bytes: 1 + draw(most) }).collect()
            })
            .collect();
        let print = |packing| {
            let all: Vec<_> = transfers.iter().map(|extents| sizes(&plan(packing, extents))).collect();
            let numbers = all.iter().flatten().flat_map(|round| round.iter().copied().chain([u64::MAX]));
            numbers.fold(0xCBF2_9CE4_8422_2325, |print: u64, one| {
                (print ^ one).wrapping_mul(0x0100_0000_01B3).rotate_left(7)
            })
        };
        assert_eq!(BOTH.map(print), [0xDFC1_58BD_24DF_1C70, 0xBE3C_CF47_2942_F599]);
    }

    proptest! {
        #[test]
        fn every_byte_goes_once_in_order_and_both_ends_cut_alike(
            lengths in prop::collection::vec((0u32..25).prop_flat_map(|scale| 1u64..=1 << scale), 1..120),
            gaps in prop::collection::vec(0u64..3, 120),
            packing in prop::sample::select(&BOTH),
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
            let (here, all) = (place(&gaps), lengths.iter().sum::<u64>());
            let rounds = plan(packing, &here);
            // The other end has all of it in one place.
            prop_assert_eq!(sizes(&rounds), sizes(&plan(packing, &place(&[0; 120]))));
            // What is sent, byte by byte, is what was asked: stretches are followed to where they come from.
            let mut sent: Vec<(u64, u64)> = Vec::new();
            for round in &rounds {
                prop_assert!(round.pieces.len() <= ROUND_PIECES && round.gathered <= STAGED_BYTES);
                for piece in &round.pieces {
                    let least = if packing == Packing::Together { LEAST_BYTES.min(all) } else { 1 };
                    prop_assert!((least..=MOST_BYTES).contains(&piece.bytes), "{:?}", sizes(&rounds));
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
