//! Doors for `kvhive-fuzz`: what peers and logs send, read and written again. Not for anybody else.

use crate::group::{Group, change, decode_change};
use crate::messages::{self, Expected};
use crate::standing::{Word, decode_hard_state};
use crate::types::PeerId;
use protobuf::Message as _;

/// A peer's raft message, by one that stands anywhere.
pub fn message(bytes: &[u8]) -> Option<Vec<u8>> {
    let (about, bytes) = bytes.split_first_chunk::<4>()?;
    let [numbers, flags, ..] = *about;
    let expected = Expected {
        us: PeerId(1),
        from: PeerId(2),
        is_known: flags & 1 != 0,
        term: u64::from(numbers & 15),
        last_index: u64::from(numbers >> 4),
        is_durable: flags & 2 != 0,
        is_installing: flags & 4 != 0,
    };
    let read = messages::decode(bytes, &expected)?;
    let mut out = about.to_vec();
    read.write_to_vec(&mut out).expect("a message in memory always encodes");
    Some(out)
}

/// What a peer says before it takes part.
pub fn word(bytes: &[u8]) -> Option<Vec<u8>> {
    Word::decode(bytes).map(|word| word.encode())
}

/// The log's hard state.
pub fn hard_state(bytes: &[u8]) -> Option<Vec<u8>> {
    decode_hard_state(bytes).ok().map(|held| held.encode())
}

/// An entry that changes the group.
pub fn group_change(bytes: &[u8]) -> Option<Vec<u8>> {
    let (read, update) = decode_change(bytes)?;
    let kinds: Vec<_> =
        read.changes.iter().map(|single| (single.get_change_type(), PeerId(single.node_id))).collect();
    let again = change(&kinds, false, &update);
    again.write_to_bytes().ok()
}

/// A snapshot's group and state.
pub fn group(bytes: &[u8]) -> Option<Vec<u8>> {
    let (group, state) = Group::unwrap(bytes)?;
    Some(group.wrap(state))
}
