//! Traces: what a fleet asked of its cache, as JSON lines of block ids, read, written and generated.

mod format;
mod generate;

pub(crate) use format::{Request, TraceError, open};
pub(crate) use generate::{Workload, generate};
