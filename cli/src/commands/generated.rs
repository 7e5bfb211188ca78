//! The options of the built-in workload, wherever a trace is taken.

use crate::trace::{Request, Workload, generate};
use clap::Args;

/// Requests of the built-in workload when none are asked for.
const REQUESTS: usize = 2000;

/// The built-in workload's options.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Generated {
    /// Seed of the built-in workload: multi-turn chats, documents and agent loops over shared system prompts
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// Tokens of one block of the trace
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) block_tokens: u32,
}

impl Generated {
    /// Generates the built-in workload.
    pub(crate) fn generate(&self, requests: Option<usize>) -> Vec<Request> {
        generate(Workload {
            requests: requests.unwrap_or(REQUESTS),
            block_tokens: self.block_tokens,
            seed: self.seed,
        })
    }
}
