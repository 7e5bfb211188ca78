//! What a request must satisfy before anything is done for it.

use crate::layouts::{self, Layouts};
use crate::view::Serving;
use kvhive_cache::member;
use kvhive_client::codec;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Run, StoreRequest};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{DeviceId, Epoch, Layout, TenantId, WireError};

/// Checks that the runs' counts add up to `keys`, and that there are not more than `limit`.
pub(super) fn sizes(runs: &[Run], keys: usize, limit: usize) -> Result<(), WireError> {
    if keys > limit {
        return Err(WireError::TooLarge { bytes: keys as u64, limit: limit as u64 });
    }
    let counted: u64 = runs.iter().map(|run| u64::from(run.keys)).sum();
    if counted != keys as u64 || runs.len() > keys {
        return Err(WireError::malformed(format_args!(
            "{} runs of {counted} blocks name {keys} blocks",
            runs.len()
        )));
    }
    Ok(())
}

/// Checks device, placement and tenant by the map that this node serves by. A tenant that only the asker's newer map may have is
/// one to wait for: the next heartbeat brings that map.
pub(super) fn admits(
    serving: &Serving,
    of_asker: Epoch,
    device: DeviceId,
    tenant: TenantId,
    runs: &[Run],
) -> Result<(), WireError> {
    member::admits(&serving.map, serving.member, device, runs)?;
    let (ours, known) = (serving.map.epoch, serving.map.tenants.contains_key(&tenant));
    if !known && of_asker > ours {
        return Err(WireError::StaleEpoch { epoch: ours });
    }
    if !known {
        return Err(WireError::UnknownTenant { tenant });
    }
    Ok(())
}

/// Checks that a store fits its payload and its layout, and that it is the asker's to make.
pub(super) fn store(
    request: &StoreRequest,
    payload: u64,
    role: Role,
    layouts: &Layouts,
) -> Result<(), WireError> {
    if request.copy && role != Role::Node {
        return Err(WireError::Forbidden { role: role.to_string(), what: "store copies".to_owned() });
    }
    if request.moved && !request.copy {
        return Err(WireError::malformed(format_args!("only a copy is one of a move")));
    }
    let announced =
        request.blocks.iter().map(|block| block.header.payload_bytes).try_fold(0u64, u64::checked_add);
    if announced != Some(payload) {
        return Err(WireError::malformed(format_args!(
            "headers announce {announced:?} bytes, the payload has {payload}"
        )));
    }
    if let Some(layout) = &request.layout {
        let bytes = layout_bytes(layout)?;
        for header in request.blocks.iter().map(|block| &block.header) {
            let fits = match header.codec {
                Codec::Raw => header.payload_bytes == bytes,
                // Of another length than that it would decode for nobody.
                codec => match codec::stored_bytes(codec, layout) {
                    Some(exact) => header.payload_bytes == exact,
                    None => codec == Codec::Lossless && header.payload_bytes <= bytes,
                },
            };
            if !fits || !layouts.is_of(layout, header.fingerprint) {
                return Err(WireError::malformed(format_args!(
                    "a block of {} bytes and layout {:?} in a store of blocks of {layout:?}, {bytes} bytes each",
                    header.payload_bytes, header.fingerprint
                )));
            }
        }
    }
    Ok(())
}

/// Returns the bytes of a layout's blocks.
pub(super) fn layout_bytes(layout: &Layout) -> Result<u64, WireError> {
    layouts::block_bytes(layout)
        .ok_or_else(|| WireError::malformed(format_args!("there are no blocks of {layout:?}")))
}

/// Walks over each block's slot.
pub(super) fn slots(runs: &[Run]) -> impl Iterator<Item = kvhive_protocol::Slot> + '_ {
    runs.iter().flat_map(|run| std::iter::repeat_n(run.slot, run.keys as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::Slot;

    #[test]
    fn runs_must_add_up_within_the_limit() {
        let run = |keys| Run { slot: Slot(1), keys };
        assert_eq!(sizes(&[run(2), run(1)], 3, 3), Ok(()));
        assert!(matches!(sizes(&[run(2)], 3, 3), Err(WireError::Malformed { .. })));
        assert!(matches!(sizes(&[run(u32::MAX), run(u32::MAX)], 3, 3), Err(WireError::Malformed { .. })));
        assert!(matches!(sizes(&[run(0), run(0), run(1)], 1, 3), Err(WireError::Malformed { .. })));
        assert!(matches!(sizes(&[run(4)], 4, 3), Err(WireError::TooLarge { bytes: 4, limit: 3 })));
    }
}
