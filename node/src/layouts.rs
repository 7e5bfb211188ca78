//! The layouts of the blocks that a node holds, as stores, askers and snapshots have told them. A block whose layout is not known is
//! served as it is stored, and stays as it is.

use kvhive_protocol::frame::MAX_PAYLOAD_BYTES;
use kvhive_protocol::{Layout, LayoutFingerprint};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// Layouts known at a time; a node that serves so many models learns no other.
const MAX_LAYOUTS: usize = 1024;

/// A node's layouts, by fingerprint.
#[derive(Default)]
pub(crate) struct Layouts(RwLock<HashMap<LayoutFingerprint, Layout>>);

impl Layouts {
    /// Says whether `fingerprint` is the layout's; takes note of it if so. The layout's blocks have a size that [`block_bytes`]
    /// lets pass.
    pub(crate) fn learn(&self, layout: &Layout, fingerprint: LayoutFingerprint) -> bool {
        // Most requests are of a layout that is known: they are spared the hash.
        let known = self.get(fingerprint);
        if known.is_none() && layout.fingerprint() == fingerprint {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() < MAX_LAYOUTS {
                known.insert(fingerprint, *layout);
            }
            return true;
        }
        known == Some(*layout)
    }

    /// Returns all that are known, in the order of their fingerprints.
    pub(crate) fn all(&self) -> Vec<Layout> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(LayoutFingerprint, Layout)> = known.iter().map(|(at, one)| (*at, *one)).collect();
        all.sort_unstable_by_key(|(fingerprint, _)| *fingerprint);
        all.into_iter().map(|(_, layout)| layout).collect()
    }

    pub(crate) fn get(&self, fingerprint: LayoutFingerprint) -> Option<Layout> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&fingerprint).copied()
    }
}

/// Returns the bytes of a layout's blocks; none when such blocks cannot be.
pub(crate) fn block_bytes(layout: &Layout) -> Option<u64> {
    layout.block_bytes().filter(|bytes| (1..=u64::from(MAX_PAYLOAD_BYTES)).contains(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_known_and_bounded() {
        let layouts = Layouts::default();
        let of = |bytes| Layout::opaque(bytes, 16);
        for bytes in 1..=MAX_LAYOUTS as u32 + 1 {
            let (layout, fingerprint) = (of(bytes), of(bytes).fingerprint());
            assert!(!layouts.learn(&of(bytes + 1), fingerprint) && layouts.get(fingerprint).is_none());
            assert!(layouts.learn(&layout, fingerprint) && layouts.learn(&layout, fingerprint));
            assert!(!layouts.learn(&of(bytes + 1), fingerprint), "another layout is not of this fingerprint");
        }
        assert_eq!(layouts.get(of(1).fingerprint()), Some(of(1)));
        assert_eq!(layouts.get(of(MAX_LAYOUTS as u32).fingerprint()), Some(of(MAX_LAYOUTS as u32)));
        assert_eq!(layouts.get(of(MAX_LAYOUTS as u32 + 1).fingerprint()), None);
    }

    #[test]
    fn a_layout_of_impossible_blocks_has_no_size() {
        assert_eq!(block_bytes(&Layout::opaque(4096, 16)), Some(4096));
        assert_eq!(block_bytes(&Layout::opaque(0, 16)), None);
        assert_eq!(block_bytes(&Layout::opaque(MAX_PAYLOAD_BYTES + 1, 16)), None);
        let huge = Layout { layers: u32::MAX, head_dim: u32::MAX, tokens: u32::MAX, ..Layout::opaque(1, 1) };
        assert_eq!(block_bytes(&huge), None);
    }
}
