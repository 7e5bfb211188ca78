//! The first steps with a cluster: name blocks, see what is covered, fetch it, store the rest.
//!
//! ```sh
//! scripts/up --detach
//! cargo run --example first_steps -- 127.0.0.1:7801 ~/.local/state/kvhive/token
//! ```

use anyhow::{Context, Result};
use kvhive_client::{Client, ClientConfig, StoreOptions};
use kvhive_protocol::{AxisOrder, Dtype, Layout};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let coordinator = words.next().context("first word: a coordinator's control address, HOST:PORT")?;
    let token_file = words.next().context("second word: the cluster's token file")?;
    let token = std::fs::read_to_string(&token_file).with_context(|| format!("cannot read {token_file}"))?;
    let token = token.trim().as_bytes().to_vec();
    let client = Client::connect(ClientConfig::new(vec![coordinator], token)).await?;

    let layout = Layout {
        layers: 4,
        kv_heads: 2,
        head_dim: 64,
        tokens: 16,
        dtype: Dtype::F16,
        order: AxisOrder::LayersFirst,
    };
    let blocks = client.namespace("default", "tiny@1", layout, 0)?;
    let prompt: Vec<u32> = (0..100).collect();
    let prefix = blocks.keys(&prompt);
    let mut memory = vec![vec![0u8; blocks.block_bytes() as usize]; prefix.len()];

    let covered = blocks.match_prefix(&prefix).await?.covered;
    let mut targets: Vec<&mut [u8]> = memory[..covered].iter_mut().map(|block| &mut block[..]).collect();
    let loaded = blocks.fetch_into(&prefix, 0..covered, &mut targets).await?.delivered();
    println!("{loaded} of {} blocks came from the cluster", prefix.len());

    // What an engine would compute now.
    memory[loaded..].iter_mut().for_each(|block| block.fill(7));
    let computed: Vec<&[u8]> = memory[loaded..].iter().map(|block| &block[..]).collect();
    let report = blocks.store(&prefix, loaded..prefix.len(), &computed, StoreOptions::default()).await?;
    println!("{} blocks stored; run this again", report.acknowledged());
    Ok(())
}
