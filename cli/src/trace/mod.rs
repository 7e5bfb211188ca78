//! Traces: what a fleet asked of its cache, as JSON lines of block ids, read, written and generated.

mod format;
mod generate;

pub use format::{Request, TraceError, open};
pub use generate::{Workload, generate};
