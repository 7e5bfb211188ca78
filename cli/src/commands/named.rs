//! Which blocks a command is about: by their keys, as a request of a trace, or by a prompt's tokens or hashes.

use super::generated::Generated;
use super::prompt::{self, NamedBy, Naming};
use crate::trace;
use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_client::{Client, NamespaceClient, Prefix};
use kvhive_config::Bytes;
use kvhive_protocol::BlockKey;
use std::path::PathBuf;

/// Requests of the built-in workload that one can be named of: all before it are made up first.
const MOST_GENERATED: usize = 100_000;

/// Which blocks.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["keys", "request", "tokens_file", "hashes_file"])))]
pub(crate) struct Named {
    /// Keys of blocks, 64 hexadecimal digits each
    #[arg(value_name = "KEY")]
    pub(super) keys: Vec<String>,
    /// The N-th request of a trace instead, from 1, as `kvhive replay` names its blocks
    #[arg(long, value_name = "N")]
    pub(super) request: Option<usize>,
    /// Trace of JSON lines (.gz and .zst are read as they are) [default: the built-in workload]
    #[arg(long, value_name = "FILE", requires = "request")]
    pub(super) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(super) generated: Generated,
    /// File with a prompt's tokens instead: a JSON array, or numbers between spaces, commas or lines; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) tokens_file: Option<PathBuf>,
    /// File with the engine's hashes of a prompt's full blocks instead, as hexadecimal or as numbers
    #[arg(long, value_name = "FILE")]
    pub(super) hashes_file: Option<PathBuf>,
    /// The adapter (LoRA) that computes it
    #[arg(long, requires = "tokens_file")]
    pub(super) adapter: Option<String>,
    /// What keeps the prompt apart from other users' (`cache_salt`)
    #[arg(long, requires = "tokens_file")]
    pub(super) salt: Option<String>,
    /// JSON file that says how an engine's blocks are named, as `kvhive engines follow` takes it. Of several the first is asked
    /// for; where it has nothing, the others tell whether the blocks are there in another layout
    #[arg(long, value_name = "FILE")]
    pub(super) blocks_file: Vec<PathBuf>,
    /// Bytes of one block, where no file says how blocks are named
    #[arg(long, default_value = "64KiB", conflicts_with = "blocks_file")]
    pub(super) block_size: Bytes,
    /// Tenant whose blocks these are
    #[arg(long, default_value = "default")]
    pub(super) tenant: String,
    /// Model name
    #[arg(long, default_value = "replay")]
    pub(super) model: String,
}

impl Named {
    /// Says whether blocks are named by their keys alone, or by one word that is none.
    pub(super) fn is_by_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns the one word that names no key and may be a request's id.
    pub(super) fn id(&self) -> Option<&str> {
        let [id] = &self.keys[..] else { return None };
        Some(id.as_str()).filter(|id| BlockKey::from_hex(id).is_none())
    }

    /// Returns what names the blocks, as it is said or read from a file.
    pub(super) fn names(&self) -> Result<Names> {
        if let Some(number) = self.request {
            return Ok(Names::Trace(self.request_of_trace(number)?));
        }
        if let Some(file) = &self.tokens_file {
            return Ok(Names::Tokens(prompt::tokens(file, &prompt::read(file)?)?));
        }
        if let Some(file) = &self.hashes_file {
            let hashes = prompt::hashes(file, &prompt::read(file)?)?;
            return Ok(Names::Hashes(hashes.iter().map(prompt::hash_bytes).collect::<Result<_>>()?));
        }
        Ok(Names::Keys(self.keys.iter().map(|text| key(text)).collect::<Result<_>>()?))
    }

    fn request_of_trace(&self, number: usize) -> Result<Vec<u64>> {
        let at = number.checked_sub(1).context("--request 0: the first request is 1")?;
        let request = match &self.trace {
            Some(path) => trace::open(path)?.nth(at).transpose()?,
            None if number > MOST_GENERATED => bail!(
                "--request {number}: of the built-in workload the first {MOST_GENERATED} can be named; give a --trace for others"
            ),
            None => self.generated.generate(Some(number)).into_iter().nth(at),
        };
        Ok(request.with_context(|| format!("the trace has fewer than {number} requests"))?.hash_ids)
    }

    /// Returns how blocks are named and laid out, the first that is asked for before others.
    pub(super) fn namings(&self, names: &Names) -> Result<Vec<Naming>> {
        if self.blocks_file.is_empty() {
            return Ok(vec![Naming::opaque(self.block_size, self.generated.block_tokens)?]);
        }
        let mut namings = Vec::new();
        for file in &self.blocks_file {
            let naming = Naming::read(file)?;
            match (naming.named_by, names) {
                (NamedBy::Tokens, Names::Hashes(_)) => {
                    bail!("{}: blocks are named by tokens; give --tokens-file", file.display())
                }
                (NamedBy::Hashes, Names::Tokens(_)) => {
                    bail!("{}: blocks are named by the engine's hashes; give --hashes-file", file.display())
                }
                _ => namings.push(naming),
            }
        }
        Ok(namings)
    }

    /// Opens the namespace of these blocks.
    pub(super) fn namespace(&self, client: &Client, naming: &Naming) -> Result<NamespaceClient> {
        Ok(client.namespace(&self.tenant, &self.model, naming.layout, naming.rank)?)
    }

    /// Names the blocks in a namespace.
    pub(super) fn prefix(&self, namespace: &NamespaceClient, names: &Names) -> Prefix {
        match names {
            Names::Keys(keys) => Prefix::loose(keys.clone()),
            Names::Trace(ids) => prompt::of_trace(namespace, ids),
            Names::Hashes(hashes) => namespace.prefix_of_engine_hashes(hashes),
            Names::Tokens(tokens) => {
                let extras = [&self.adapter, &self.salt].into_iter().flatten();
                let extras: Vec<&[u8]> = extras.map(String::as_bytes).collect();
                namespace.keys_with(tokens, &extras)
            }
        }
    }
}

/// What names the blocks.
pub(super) enum Names {
    /// They are named already.
    Keys(Vec<BlockKey>),
    Trace(Vec<u64>),
    Tokens(Vec<u32>),
    Hashes(Vec<Vec<u8>>),
}

fn key(text: &str) -> Result<BlockKey> {
    BlockKey::from_hex(text).with_context(|| {
        format!("{:?} is no key, which is 64 hexadecimal digits", text.chars().take(80).collect::<String>())
    })
}
