//! Blocks that are stored encoded, on a cluster of real processes: what reads them gets them back, whoever decodes.

use kvhive_client::{Client, ClientConfig, FetchOutcome, NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::Ack;
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use kvhive_tests::Cluster;

/// Blocks of 64 KiB.
const LAYOUT: Layout = Layout {
    layers: 4,
    kv_heads: 2,
    head_dim: 64,
    tokens: 16,
    dtype: Dtype::F32,
    order: AxisOrder::LayersFirst,
};
const BLOCKS: usize = 24;

fn tensor(at: usize) -> Vec<u8> {
    let values =
        (0..LAYOUT.block_bytes().expect("small") / 4).map(|element| (element as f32 + at as f32).sin());
    values.flat_map(f32::to_le_bytes).collect()
}

async fn store(blocks: &NamespaceClient, prefix: &Prefix, codec: Codec) {
    let tensors: Vec<Vec<u8>> = (0..BLOCKS).map(tensor).collect();
    let tensors: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
    let options = StoreOptions { ack: Some(Ack::All), codec: Some(codec), ..StoreOptions::default() };
    let report = blocks.store(prefix, 0..BLOCKS, &tensors, options).await.expect("range and blocks fit");
    assert_eq!(report.acknowledged(), BLOCKS, "{report:?}");
}

/// Fetches all blocks, which are there; returns their bytes and how many were sent for them.
async fn fetch(blocks: &NamespaceClient, prefix: &Prefix) -> (Vec<Vec<u8>>, u64) {
    let mut memory = vec![vec![0; blocks.block_bytes() as usize]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let report = blocks.fetch_into(prefix, 0..BLOCKS, &mut targets).await.expect("range and memory fit");
    assert_eq!(report.delivered(), BLOCKS, "{report:?}");
    let sent = report.outcomes.iter().map(|outcome| match outcome {
        FetchOutcome::Loaded(loaded) => loaded.stored_bytes(),
        FetchOutcome::Missed(_) => 0,
    });
    (memory, sent.sum())
}

#[test]
fn encoded_blocks_are_decoded_by_whoever_is_asked_to_and_by_both_alike() {
    let cluster = Cluster::start(&["--nodes", "2"]);
    let client = cluster.client();
    let config = ClientConfig { raw_reads: true, ..cluster.client_config() };
    let plain = cluster.wait(Client::connect(config)).expect("a coordinator answers");
    let raw: Vec<Vec<u8>> = (0..BLOCKS).map(tensor).collect();
    let raw_bytes = raw.iter().map(|block| block.len() as u64).sum::<u64>();
    for codec in [Codec::Lossless, Codec::Int8, Codec::Int4] {
        let open = |client: &Client| {
            client.namespace("default", codec.name(), LAYOUT, 0).expect("the default tenant exists")
        };
        let (blocks, plain) = (open(&client), open(&plain));
        let prefix = blocks.keys(&[3; BLOCKS * 16]);
        cluster.wait(store(&blocks, &prefix, codec));
        let (decoded, sent) = cluster.wait(fetch(&blocks, &prefix));
        assert!(sent < raw_bytes, "{codec:?} was sent as {sent} of {raw_bytes} bytes");
        assert_eq!(
            cluster.wait(fetch(&plain, &prefix)),
            (decoded.clone(), raw_bytes),
            "the node decodes {codec:?} alike"
        );
        assert_eq!(decoded == raw, codec.is_exact(), "{codec:?}");
    }
    assert_eq!((client.stats().decoded_blocks, plain.stats().decoded_blocks), (3 * BLOCKS as u64, 0));
    assert_eq!(plain.stats().corrupt_blocks + client.stats().corrupt_blocks, 0);
}
