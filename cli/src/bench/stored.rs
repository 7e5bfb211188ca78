//! Prefixes of equal length that are stored, and then fetched again and again.

use crate::report::Latencies;
use anyhow::{Result, bail};
use kvhive_client::{Client, NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::Layout;
use kvhive_protocol::data::Ack;
use std::time::{Duration, Instant};

/// Bytes of a block.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;
/// Blocks of each prefix: one segment.
pub(super) const BLOCKS: usize = 8;

/// How long a prefix may take to be on all replicas.
const STORE_LIMIT: Duration = Duration::from_secs(10);

/// Prefixes of [`BLOCKS`] blocks of [`BLOCK_BYTES`].
pub(super) struct Stored {
    blocks: NamespaceClient,
    prefixes: Vec<Prefix>,
    memory: Vec<Vec<u8>>,
}

impl Stored {
    /// Makes so many prefixes; none is stored yet.
    ///
    /// # Errors
    /// When the client does not take the namespace.
    pub(super) fn new(client: &Client, prefixes: u64) -> Result<Stored> {
        Stored::named(client, "bench", prefixes)
    }

    /// As [`Stored::new`], of a model of this name.
    ///
    /// # Errors
    /// As [`Stored::new`].
    pub(super) fn named(client: &Client, model: &str, prefixes: u64) -> Result<Stored> {
        let blocks = client.namespace("default", model, Layout::opaque(BLOCK_BYTES as u32, 16), 0)?;
        let prefix = |number: u64| {
            let hashes: Vec<[u8; 16]> =
                (0..BLOCKS as u128).map(|at| (u128::from(number) << 64 | at).to_le_bytes()).collect();
            blocks.prefix_of_engine_hashes(&hashes)
        };
        let prefixes = (0..prefixes).map(prefix).collect();
        Ok(Stored { blocks, prefixes, memory: vec![vec![0; BLOCK_BYTES as usize]; BLOCKS] })
    }

    /// Stores every prefix on all replicas. A slot may be given one more just then, which has yet to hear of it: it is stored again.
    ///
    /// # Errors
    /// When a block is not acknowledged.
    pub(super) async fn store(&self) -> Result<()> {
        let memory = vec![5u8; BLOCK_BYTES as usize];
        let pieces = vec![&memory[..]; BLOCKS];
        for prefix in &self.prefixes {
            let begun = Instant::now();
            loop {
                let options = StoreOptions { ack: Some(Ack::All), ..StoreOptions::default() };
                let report = self.blocks.store(prefix, 0..BLOCKS, &pieces, options).await?;
                if report.acknowledged() == BLOCKS {
                    break;
                }
                if begun.elapsed() > STORE_LIMIT {
                    bail!("{} of {BLOCKS} blocks were stored: {:?}", report.acknowledged(), report.outcomes);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Fetches one of the prefixes whole, and records how long it took.
    ///
    /// # Errors
    /// When a block does not come.
    pub(super) async fn fetch(&mut self, at: usize, latencies: &mut Latencies) -> Result<()> {
        let mut targets: Vec<&mut [u8]> = self.memory.iter_mut().map(|block| &mut block[..]).collect();
        let prefix = &self.prefixes[at % self.prefixes.len()];
        let begun = Instant::now();
        let report = self.blocks.fetch_into(prefix, 0..BLOCKS, &mut targets).await?;
        latencies.record(begun.elapsed());
        if report.delivered() != BLOCKS {
            bail!("{} of {BLOCKS} blocks were fetched: {:?}", report.delivered(), report.outcomes);
        }
        Ok(())
    }
}
