//! The layouts of the blocks that a node holds, as stores, askers and snapshots have told them. A block whose layout is not known is
//! served as it is stored, and stays as it is.

use kvhive_protocol::frame::MAX_PAYLOAD_BYTES;
use kvhive_protocol::{Layout, LayoutFingerprint};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Layouts known at a time; then the one that was not asked for or told for longest goes.
const MAX_LAYOUTS: usize = 1024;

/// A node's layouts, by fingerprint.
#[derive(Default)]
pub(crate) struct Layouts {
    known: RwLock<HashMap<LayoutFingerprint, Known>>,
    /// Counts the times that any was asked for or told.
    uses: AtomicU64,
}

struct Known {
    layout: Layout,
    /// The count when it was asked for or told last.
    used: AtomicU64,
}

impl Layouts {
    /// Says whether `fingerprint` is the layout's.
    pub(crate) fn is_of(&self, layout: &Layout, fingerprint: LayoutFingerprint) -> bool {
        // Most requests are of a layout that is known: they are spared the hash.
        match self.get(fingerprint) {
            Some(known) => known == *layout,
            None => layout.fingerprint() == fingerprint,
        }
    }

    /// Says whether `fingerprint` is the layout's; takes note of it if so. The layout's blocks have a size that [`block_bytes`]
    /// lets pass.
    pub(crate) fn learn(&self, layout: &Layout, fingerprint: LayoutFingerprint) -> bool {
        if !self.is_of(layout, fingerprint) {
            return false;
        }
        if self.get(fingerprint).is_none() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MAX_LAYOUTS {
                let oldest = known.iter().min_by_key(|(_, one)| one.used.load(Ordering::Relaxed));
                let oldest = oldest.map(|(fingerprint, _)| *fingerprint);
                oldest.and_then(|fingerprint| known.remove(&fingerprint));
            }
            known.insert(fingerprint, Known { layout: *layout, used: self.now().into() });
        }
        true
    }

    fn now(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns all that are known, in the order of their fingerprints.
    pub(crate) fn all(&self) -> Vec<Layout> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(LayoutFingerprint, Layout)> =
            known.iter().map(|(at, one)| (*at, one.layout)).collect();
        all.sort_unstable_by_key(|(fingerprint, _)| *fingerprint);
        all.into_iter().map(|(_, layout)| layout).collect()
    }

    pub(crate) fn get(&self, fingerprint: LayoutFingerprint) -> Option<Layout> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let one = known.get(&fingerprint)?;
        one.used.store(self.now(), Ordering::Relaxed);
        Some(one.layout)
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
        assert_eq!(layouts.all().len(), MAX_LAYOUTS);
        assert_eq!(layouts.get(of(1).fingerprint()), None, "the one not used for longest");
        assert_eq!(layouts.get(of(2).fingerprint()), Some(of(2)));
        let newest = of(MAX_LAYOUTS as u32 + 2);
        assert!(layouts.is_of(&newest, newest.fingerprint()) && layouts.get(newest.fingerprint()).is_none());
        assert!(layouts.learn(&newest, newest.fingerprint()));
        assert_eq!(layouts.get(of(2).fingerprint()), Some(of(2)), "it was asked for");
        assert_eq!(layouts.get(of(3).fingerprint()), None);
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
