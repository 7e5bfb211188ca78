//! `kvhive explain`: why a block, or a request, is a miss.

use super::connect::Connect;
use super::named::{Named, Names};
use anyhow::{Context, Result, bail};
use clap::Args;
use kvhive_client::{Client, Explanation, NamespaceClient, Prefix};
use std::time::{Duration, Instant};

mod recalled;
mod report;

use report::Report;

/// Say why a block is, or a request was, a miss: never stored, evicted when and by what, refused, cleared, of another layout, on a node
/// that does not answer, or too slow
///
/// Every node that should have a block is asked what became of it. Nothing is used, held or counted by it, unless `--within` has
/// the blocks fetched. Nodes remember as many blocks that have left as they have frames.
///
/// A word that is no key is the id of a request that came with a trace context, or its trace's: nodes remember of the last thousands
/// which blocks were missing and why, as it was then, whether or not they trace.
#[derive(Args, Debug)]
pub(crate) struct Explain {
    #[command(flatten)]
    named: Named,
    /// Fetch what is there, and say whether it comes within this time: what recomputing would take, for one. Of a prompt, not of a KEY
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
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
        if self.within.is_some() && self.named.is_by_keys() {
            bail!(
                "--within fetches a prompt's prefix, and a key or a request's id is none: name it by --request, --tokens-file or \
                 --hashes-file"
            );
        }
        if let Some(id) = self.named.id() {
            let client = self.connect.client().await?;
            return recalled::tell(&client, id, self.json).await;
        }
        let names = self.named.names()?;
        let client = self.connect.client().await?;
        let report = match names {
            Names::Keys(keys) => {
                let explanation = client.explain_keys(&self.named.tenant, &keys).await?;
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
        let namings = self.named.namings(names)?;
        let (asked, others) = namings.split_first().context("say how the blocks are named")?;
        let namespace = self.named.namespace(client, asked)?;
        let prefix = self.named.prefix(&namespace, names);
        if prefix.is_empty() {
            bail!("the prompt has no full block of {} tokens", asked.layout.tokens);
        }
        let explanation = namespace.explain(&prefix).await?;
        let mut elsewhere = None;
        if explanation.covered() == 0 {
            for (other, file) in others.iter().zip(self.named.blocks_file.iter().skip(1)) {
                let other = self.named.namespace(client, other)?;
                let found: Explanation = other.explain(&self.named.prefix(&other, names)).await?;
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
