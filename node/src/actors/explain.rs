//! What a device knows of blocks that somebody misses.

use super::core::DeviceCore;
use kvhive_cache::Known;
use kvhive_protocol::data::Run;
use kvhive_protocol::explain::Explained;
use kvhive_protocol::{BlockKey, KeyList, Slot, TenantId};

impl DeviceCore {
    /// Says of each block what is known of it; runs, where there are any, name the blocks' slots.
    pub(super) fn explain(&self, tenant: TenantId, runs: &[Run], keys: &KeyList) -> Vec<Explained> {
        let slots = runs.iter().flat_map(|run| std::iter::repeat_n(run.slot, run.keys as usize));
        let slots = slots.map(Some).chain(std::iter::repeat(None));
        keys.iter().zip(slots).map(|(key, slot)| self.explain_one(tenant, &key, slot)).collect()
    }

    fn explain_one(&self, tenant: TenantId, key: &BlockKey, slot: Option<Slot>) -> Explained {
        let now = self.view.now();
        match self.shard.explain(now, tenant, key) {
            Known::Here { id, tier, slot, pinned } => match &self.resident[id.index()] {
                Some(resident) => {
                    let header = &resident.header;
                    let (codec, bytes, fingerprint) =
                        (header.codec, header.payload_bytes, header.fingerprint);
                    Explained::Here { tier, codec, bytes, fingerprint, slot, pinned }
                }
                None => Explained::Coming,
            },
            Known::Not(explained) => slot.map_or(explained, |slot| self.tenure.explain(now, slot, explained)),
        }
    }
}
