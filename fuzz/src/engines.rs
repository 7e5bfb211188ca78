//! What serving engines publish: ZMTP's frames, and cache events in MessagePack.

use kvhive_coordinator::fuzz;

/// A batch of cache events. What is read as one is MessagePack to somebody else too.
pub(crate) fn cache_events(bytes: &[u8]) -> bool {
    let is_read = fuzz::cache_events(bytes).is_some();
    if is_read {
        let mut rest = bytes;
        rmpv::decode::read_value_ref_with_max_depth(&mut rest, 4096).expect("it was read as MessagePack");
    }
    is_read
}

/// A connection of a publisher, from its greeting on: it brings no more than it was sent.
pub(crate) fn zmtp(bytes: &[u8]) -> bool {
    let received = fuzz::zmtp(bytes);
    assert!(received <= bytes.len(), "{received} bytes received of {}", bytes.len());
    received > 0
}
