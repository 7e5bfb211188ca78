//! `kvhive explain`: why a block, or a request, is a miss.

use super::connect::Connect;
use super::generated::Generated;
use super::prompt::{self, NamedBy, Naming};
use crate::trace;
use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_client::{Client, Explanation, NamespaceClient, Prefix};
use kvhive_config::Bytes;
use kvhive_protocol::BlockKey;
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod report;

use report::Report;

/// Say why a block or a request is a miss: never stored, evicted when and by what, refused, cleared, of another layout, on a node
/// that does not answer, or too slow
///
/// Every node that should have a block is asked what became of it. Nothing is used, held or counted by it, unless `--within` has
/// the blocks fetched. Nodes remember as many blocks that have left as they have frames.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["keys", "request", "tokens_file", "hashes_file"])))]
pub(crate) struct Explain {
    /// Keys of blocks, 64 hexadecimal digits each
    #[arg(value_name = "KEY", value_parser = key)]
    keys: Vec<BlockKey>,
    /// The N-th request of a trace instead, from 1, as `kvhive replay` names its blocks
    #[arg(long, value_name = "N")]
    request: Option<usize>,
    /// Trace of JSON lines (.gz and .zst are read as they are) [default: the built-in workload]
    #[arg(long, value_name = "FILE", requires = "request")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    generated: Generated,
    /// File with a prompt's tokens instead: a JSON array, or numbers between spaces, commas or lines; `-` for standard input
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<PathBuf>,
    /// File with the engine's hashes of a prompt's full blocks instead, as hexadecimal or as numbers
    #[arg(long, value_name = "FILE")]
    hashes_file: Option<PathBuf>,
    /// The adapter (LoRA) that computes it
    #[arg(long, requires = "tokens_file")]
    adapter: Option<String>,
    /// What keeps the prompt apart from other users' (`cache_salt`)
    #[arg(long, requires = "tokens_file")]
    salt: Option<String>,
    /// JSON file that says how an engine's blocks are named, as `kvhive engines follow` takes it. Of several the first is asked
    /// for; where it has nothing, the others tell whether the blocks are there in another layout
    #[arg(long, value_name = "FILE")]
    blocks_file: Vec<PathBuf>,
    /// Bytes of one block, where no file says how blocks are named
    #[arg(long, default_value = "64KiB", conflicts_with = "blocks_file")]
    block_size: Bytes,
    /// Tenant whose blocks these are
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Model name
    #[arg(long, default_value = "replay")]
    model: String,
    /// Fetch what is there, and say whether it comes within this time: what recomputing would take, for one
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "keys")]
    within: Option<Duration>,
    /// List the blocks after the end of a prefix too, not only how many there are of each verdict
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// What fetching the blocks that are there came to.
struct Fetched {
    asked: usize,
    delivered: usize,
    took: Duration,
    within: Duration,
}

impl Explain {
    /// Asks and prints the answer.
    ///
    /// # Errors
    /// When a file says nothing of use, or the cluster cannot be reached.
    pub(crate) async fn run(self) -> Result<()> {
        let names = self.names()?;
        let client = self.connect.client().await?;
        let report = match names {
            Names::Keys => {
                let explanation = client.explain_keys(&self.tenant, &self.keys).await?;
                Report::new(&explanation, false, None, None)
            }
            names => self.explain(&client, &names).await?,
        };
        if self.json {
            return crate::report::print_json(&report);
        }
        report.print(self.all);
        Ok(())
    }

    async fn explain(&self, client: &Client, names: &Names) -> Result<Report> {
        let namings = self.namings(names)?;
        let (asked, others) = namings.split_first().context("say how the blocks are named")?;
        let namespace = self.namespace(client, asked)?;
        let prefix = self.prefix(&namespace, names);
        if prefix.is_empty() {
            bail!("the prompt has no full block of {} tokens", asked.layout.tokens);
        }
        let explanation = namespace.explain(&prefix).await?;
        let mut elsewhere = None;
        if explanation.covered() == 0 {
            for (other, file) in others.iter().zip(self.blocks_file.iter().skip(1)) {
                let other = self.namespace(client, other)?;
                let found: Explanation = other.explain(&self.prefix(&other, names)).await?;
                if found.covered() > 0 {
                    elsewhere = Some((file.display().to_string(), found.covered()));
                    break;
                }
            }
        }
        let fetched = match self.within {
            Some(within) if explanation.covered() > 0 => {
                Some(fetch(&namespace, &prefix, explanation.covered(), within).await?)
            }
            _ => None,
        };
        Ok(Report::new(&explanation, true, elsewhere, fetched.as_ref()))
    }

    fn names(&self) -> Result<Names> {
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
        Ok(Names::Keys)
    }

    fn request_of_trace(&self, number: usize) -> Result<Vec<u64>> {
        let at = number.checked_sub(1).context("--request 0: the first request is 1")?;
        let request = match &self.trace {
            Some(path) => trace::open(path)?.nth(at).transpose()?,
            None => self.generated.generate(Some(number)).into_iter().nth(at),
        };
        Ok(request.with_context(|| format!("the trace has fewer than {number} requests"))?.hash_ids)
    }

    fn namings(&self, names: &Names) -> Result<Vec<Naming>> {
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

    fn namespace(&self, client: &Client, naming: &Naming) -> Result<NamespaceClient> {
        Ok(client.namespace(&self.tenant, &self.model, naming.layout, naming.rank)?)
    }

    fn prefix(&self, namespace: &NamespaceClient, names: &Names) -> Prefix {
        match names {
            Names::Keys => Prefix::loose(self.keys.clone()),
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
enum Names {
    /// They are named already.
    Keys,
    Trace(Vec<u64>),
    Tokens(Vec<u32>),
    Hashes(Vec<Vec<u8>>),
}

/// Fetches the first `blocks` blocks, as long as that may take, a few at a time.
async fn fetch(
    namespace: &NamespaceClient,
    prefix: &Prefix,
    blocks: usize,
    within: Duration,
) -> Result<Fetched> {
    /// Bounds the memory.
    const AT_A_TIME: usize = 128;
    let bytes = usize::try_from(namespace.block_bytes()).context("a block is larger than memory")?;
    let mut memory = vec![vec![0u8; bytes]; blocks.min(AT_A_TIME)];
    let begun = Instant::now();
    let mut delivered = 0;
    while delivered < blocks && begun.elapsed() < within {
        let until = blocks.min(delivered + AT_A_TIME);
        let mut targets: Vec<&mut [u8]> =
            memory[..until - delivered].iter_mut().map(Vec::as_mut_slice).collect();
        let hurried = namespace.within(within.saturating_sub(begun.elapsed()));
        let came = hurried.fetch_into(prefix, delivered..until, &mut targets).await?.delivered();
        delivered += came;
        if delivered < until {
            break;
        }
    }
    Ok(Fetched { asked: blocks, delivered, took: begun.elapsed(), within })
}

fn key(text: &str) -> Result<BlockKey, String> {
    BlockKey::from_hex(text).ok_or_else(|| "a key is 64 hexadecimal digits".to_owned())
}
