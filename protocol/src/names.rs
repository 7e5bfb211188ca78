//! Names that mean another block from one moment to the next: blocks never change, so what can be set anew is which block a name
//! means. The primary of the slot of a name's key keeps that, alone and in memory.

use crate::ids::{DeviceId, Epoch, TenantId};
use crate::key::BlockKey;
use serde::{Deserialize, Serialize};

/// The most names that one request may be about.
pub const MAX_NAMES_PER_REQUEST: usize = 256;
/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 4096;
/// The most names that one answer lists, unless as many share a position.
pub const MAX_NAMES_LISTED: usize = 1000;
/// An answer that lists names has no further name after so many bytes of them.
pub const MAX_BYTES_LISTED: usize = 1 << 20;

/// What a name means: the block that was stored for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Drawn anew for every value: it tells this block from those that the name meant before.
    pub nonce: u64,
    /// The value's bytes; one without any has no block.
    pub bytes: u64,
}

impl Target {
    /// Returns the key of its block: in the slot of the name's key, so that a name and its value are asked of one node.
    pub fn block(&self, name: &BlockKey) -> BlockKey {
        let mut hasher = blake3::Hasher::new_derive_key("kvhive 2026-11 block of a name v1");
        hasher.update(name.as_bytes());
        hasher.update(&self.nonce.to_le_bytes());
        let mut key = *name.as_bytes();
        key[..24].copy_from_slice(&hasher.finalize().as_bytes()[..24]);
        BlockKey::from_bytes(key)
    }
}

/// When a name is given another meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum When {
    /// Whatever it means.
    #[default]
    Always,
    /// When it means nothing.
    Absent,
    /// When it means something.
    Present,
}

/// How long a name keeps its meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Life {
    /// Until it is given another, or must make room.
    #[default]
    Open,
    /// No longer than so many milliseconds.
    Ms(u64),
    /// As long as the meaning that it has would.
    Kept,
}

/// What is done about one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NameVerb {
    /// Say what it means.
    Look,
    /// Let it mean this.
    Set {
        /// The name itself, at most [`MAX_NAME_BYTES`]: it is told to those who list the tenant's names, and to nobody else.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        /// What it shall mean.
        target: Target,
        /// When.
        when: When,
        /// For how long.
        life: Life,
    },
    /// Let it mean nothing.
    Drop {
        /// If it means this; whatever it means without.
        only: Option<u64>,
    },
}

/// One name and what is done about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameOp {
    /// The name's key.
    pub key: BlockKey,
    /// What is done.
    pub verb: NameVerb,
}

/// What is asked of a tenant's names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NamesAsk {
    /// These things are done, in order; at most [`MAX_NAMES_PER_REQUEST`]. The device asked is the primary of each name's slot.
    Do(Vec<NameOp>),
    /// Which are there, from a position on.
    List {
        /// The position: 0 for all.
        from: u64,
        /// How many are wanted.
        limit: u32,
    },
    /// How many are there?
    Count,
}

/// See [`crate::data::DataRequest::Names`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamesRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked; of a list and a count any device of the node.
    pub device: DeviceId,
    /// Whose names.
    pub tenant: TenantId,
    /// What is asked.
    pub ask: NamesAsk,
}

/// What a name means at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Meaning {
    /// The block.
    pub target: Target,
    /// For how many milliseconds it does still, if that is limited.
    pub left_ms: Option<u64>,
}

/// What became of one [`NameOp`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameAnswer {
    /// It was done. A look always is.
    pub done: bool,
    /// What the name meant before.
    pub before: Option<Meaning>,
}

/// A name of a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListedName {
    /// Where it stands among the tenant's names: see [`position`].
    pub position: u64,
    /// The name.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

/// The answer to a [`NamesRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NamesAnswer {
    /// One answer for each that was to be done.
    Done(Vec<NameAnswer>),
    /// Names, by their positions.
    Listed {
        /// The names.
        names: Vec<ListedName>,
        /// From where the list goes on; none where it is at its end.
        next: Option<u64>,
    },
    /// How many there are.
    Counted(u64),
}

/// Returns where a name of this key stands: 63 bits of it, so that no client takes a cursor for a negative number.
pub fn position(key: &BlockKey) -> u64 {
    let head: [u8; 8] = key.as_bytes()[..8].try_into().expect("a key has 32 bytes");
    u64::from_be_bytes(head) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_the_slot_of_its_name_under_a_key_of_its_own() {
        let name = BlockKey::from_bytes(std::array::from_fn(|at| at as u8 * 7));
        let [one, other] = [1, 2].map(|nonce| Target { nonce, bytes: 5 }.block(&name));
        assert_eq!((one.slot(), other.slot()), (name.slot(), name.slot()));
        assert!(one != other && one != name);
        assert_eq!(one, Target { nonce: 1, bytes: 9 }.block(&name), "its length is no part of it");
    }

    #[test]
    fn positions_are_in_the_order_of_keys_and_no_negative_numbers() {
        let at = |first: u8| position(&BlockKey::from_bytes([first; 32]));
        assert!(at(0) == 0 && at(1) < at(2) && at(254) < at(255));
        assert!(i64::try_from(at(255)).is_ok());
    }
}
