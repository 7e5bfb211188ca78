//! The host backend keeps the contract of every backend.

use kvhive_gpu::{HostDevice, contract};
use std::sync::Arc;

#[test]
fn host_memory_keeps_the_contract() {
    contract::check(&|bytes| Arc::new(HostDevice::new(bytes)));
}
