//! Whether and how blocks go from a node's GPUs to those of other nodes by NCCL.

use crate::keys::NCCL;
use crate::units::Bytes;

/// Whether blocks go by NCCL, which encrypts nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum NcclUse {
    /// Where both ends have it and the cluster's channels are not encrypted.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Where both ends have it: in the clear, also in a cluster whose channels are encrypted.
    Unencrypted,
}

impl NcclUse {
    /// All of them.
    pub const ALL: [NcclUse; 3] = [NcclUse::Auto, NcclUse::Off, NcclUse::Unencrypted];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        NCCL[self as usize]
    }

    /// Says whether a node goes by NCCL where there is some, in a cluster whose channels are encrypted or not.
    pub const fn is_on(self, is_encrypted: bool) -> bool {
        match self {
            NcclUse::Auto => !is_encrypted,
            NcclUse::Off => false,
            NcclUse::Unencrypted => true,
        }
    }
}

/// How blocks go from a node's GPUs to those of other nodes by NCCL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NcclSettings {
    /// When they do.
    pub when: NcclUse,
    /// Bytes that go to another GPU within a minute before a pair is made.
    pub after: Bytes,
    /// Pairs of one GPU at once.
    pub max_pairs: usize,
    /// Thread blocks that one transfer runs on at most.
    pub max_ctas: u32,
    /// Bytes of each of NCCL's buffers.
    pub buffer: Bytes,
    /// Memory of each GPU that blocks of other nodes' slots pass; 0 for none.
    pub guest_memory: Bytes,
}
