//! The fuzzer: libFuzzer's own `main`, on the target that `KVHIVE_FUZZ_TARGET` names. `scripts/test fuzz` builds and calls it
//! (docs/fuzzing.md).
#![no_main]

use kvhive_fuzz::{Target, target};
use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET
        .get_or_init(|| {
            let name = std::env::var("KVHIVE_FUZZ_TARGET").unwrap_or_default();
            target(&name).expect("KVHIVE_FUZZ_TARGET names a target")
        })
        .check(bytes);
});
