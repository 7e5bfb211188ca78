//! `kvhive trace generate`.

use super::generated::Generated;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;

/// Make traces
#[derive(Args, Debug)]
pub(crate) struct TraceCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Write the built-in workload (multi-turn chats, documents, agent loops) as a trace
    Generate {
        #[command(flatten)]
        generated: Generated,
        /// How many requests [default: 2000]
        #[arg(long, value_name = "N")]
        requests: Option<usize>,
        /// Where to write it [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl TraceCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// When the trace cannot be written.
    pub(crate) fn run(self) -> Result<()> {
        let Verb::Generate { generated, requests, output } = self.verb;
        let mut out: Box<dyn Write> = match &output {
            Some(file) => Box::new(std::io::BufWriter::new(
                std::fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?,
            )),
            None => Box::new(std::io::BufWriter::new(std::io::stdout().lock())),
        };
        for request in generated.generate(requests) {
            serde_json::to_writer(&mut out, &request)?;
            writeln!(out)?;
        }
        Ok(out.flush()?)
    }
}
