//! What operators send: bodies and queries of the admin API.

use kvhive_coordinator::fuzz;

/// A query where it begins with `?`, else a body. What a route takes is a JSON object.
pub(crate) fn json(bytes: &[u8]) -> bool {
    match bytes.strip_prefix(b"?") {
        Some(query) => {
            if let Ok(query) = std::str::from_utf8(query) {
                fuzz::admin_query(query);
            }
            false
        }
        None => {
            let is_read = fuzz::admin_body(bytes) > 0;
            if is_read {
                let read = serde_json::from_slice::<serde_json::Value>(bytes);
                assert!(read.is_ok_and(|value| value.is_object()), "a body is an object");
            }
            is_read
        }
    }
}
