//! Traced requests: spans as they are recorded, the newest traces of a process in memory, and their way to a collector by OTLP. A
//! request that is not traced costs nothing here: its span is none, and whatever is done with it does nothing.

#[cfg(feature = "export")]
mod export;
mod kept;
mod span;
mod tracer;

pub use span::Span;
pub use tracer::{SpanFigures, Tracer, TracerConfig, TracerError};
