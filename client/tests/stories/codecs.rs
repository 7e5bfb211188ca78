//! Blocks that arrive encoded: decoded when they are what was stored, a counted miss when not. [`Text::fetch`] compares every
//! loaded block.

use crate::fakes::{Cluster, LAYOUT, Text, Turn};
use kvhive_client::{Client, ClientConfig, FetchOutcome, MissReason, StoreOptions, codec};
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::data::{Accept, DataRequest, Fetched};
use kvhive_protocol::{Dtype, HeaderError, Layout};

/// Answers with blocks that a node holds encoded; `damage` gets each one's number and bytes before they are sent, and says
/// whether its header knows of it.
fn encoded(damage: impl Fn(usize, &mut Vec<u8>) -> bool + Send + Sync + 'static) -> Turn {
    Turn::fetched(move |blocks, payload| {
        let raw = std::mem::take(payload);
        for (at, (block, raw)) in blocks.iter_mut().zip(raw.chunks_exact(raw.len() / 4)).enumerate() {
            let Fetched::Hit(header) = block else { panic!("block {at} is there") };
            let mut stored = Vec::new();
            codec::encode(Codec::Lossless, &LAYOUT, raw, &mut stored).expect("a block of its layout");
            (header.codec, header.digest) = (Codec::Lossless, digest(&stored));
            if damage(at, &mut stored) {
                header.digest = digest(&stored);
            }
            header.payload_bytes = stored.len() as u64;
            payload.extend(stored);
        }
    })
}

async fn fetched_by(client: &Client, cluster: &Cluster, turn: Turn) -> Vec<Result<(), MissReason>> {
    let text = Text::of(client, 4);
    text.store().await;
    cluster.nodes[0].next(turn);
    let report = text.fetch().await;
    // Whatever came: the same client gets right bytes next.
    text.fetch_all().await;
    let outcomes = report.outcomes.iter().map(|outcome| match outcome {
        FetchOutcome::Loaded(_) => Ok(()),
        FetchOutcome::Missed(reason) => Err(*reason),
    });
    outcomes.collect()
}

fn corrupt(error: HeaderError) -> Result<(), MissReason> {
    Err(MissReason::Corrupt(error))
}

#[tokio::test]
async fn encoded_blocks_are_decoded_into_the_callers_memory() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    assert_eq!(fetched_by(&client, &cluster, encoded(|_, _| false)).await, [Ok(()); 4]);
    assert_eq!(client.stats().decoded_blocks, 4);
    let bytes = 4 * LAYOUT.block_bytes().expect("a small block");
    let stats = client.stats();
    assert!(stats.bytes_fetched > bytes && stats.bytes_fetched < 2 * bytes, "fewer bytes came: {stats:?}");
}

#[tokio::test]
async fn blocks_are_stored_as_asked_and_come_back_within_their_codecs_bound() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let layout = Layout { head_dim: 64, dtype: Dtype::F32, ..LAYOUT };
    for codec in Codec::ALL {
        // Keys of each model are others.
        let namespace = client.namespace("default", codec.name(), layout, 0).expect("the tenant is there");
        let prefix = namespace.keys(&[7; 16]);
        let values: Vec<f32> =
            (0..layout.block_bytes().expect("small") / 4).map(|at| (at as f32).sin()).collect();
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let options = StoreOptions { codec: Some(codec), ..StoreOptions::default() };
        let stored = namespace.store(&prefix, 0..1, &[&raw], options).await.expect("range and block fit");
        assert_eq!(stored.acknowledged(), 1);
        let mut back = vec![0; raw.len()];
        let report =
            namespace.fetch_into(&prefix, 0..1, &mut [&mut back[..]]).await.expect("range and memory fit");
        let [FetchOutcome::Loaded(loaded)] = report.outcomes[..] else { panic!("{report:?}") };
        assert_eq!(loaded.bytes(), raw.len() as u64);
        let (bound, per_mille) = match codec {
            Codec::Raw => (0.0, 1000),
            Codec::Lossless => (0.0, 1000),
            Codec::Fp8 => (1.0 / 15.0, 300),
            Codec::Int8 => (1.0 / 250.0, 300),
            Codec::Int4 => (2.0 / 19.0, 200),
        };
        assert!(loaded.stored_bytes() * 1000 <= loaded.bytes() * per_mille, "{codec:?}: {loaded:?}");
        let read =
            back.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")));
        let worst = read.zip(&values).map(|(read, value)| (read - value).abs()).fold(0.0, f32::max);
        assert!(worst <= bound, "{codec:?} is off by {worst}");
        assert!(!codec.is_exact() || back == raw, "{codec:?} is bit-exact");
    }
    let stats = client.stats();
    assert_eq!((stats.encoded_blocks, stats.decoded_blocks), (4, 4), "{stats:?}");
}

#[tokio::test]
async fn a_flipped_byte_of_an_encoded_block_is_a_counted_miss() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let flip = |at: usize, stored: &mut Vec<u8>| {
        if at == 1 {
            *stored.last_mut().expect("it has bytes") ^= 1;
        }
        false
    };
    let outcomes = fetched_by(&client, &cluster, encoded(flip)).await;
    assert_eq!(outcomes, [Ok(()), corrupt(HeaderError::Digest), Ok(()), Ok(())]);
    assert_eq!((client.stats().corrupt_blocks, client.stats().decoded_blocks), (1, 3));
}

#[tokio::test]
async fn an_encoded_block_that_does_not_decode_is_a_miss_whatever_its_digest_says() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let cut = |at: usize, stored: &mut Vec<u8>| {
        match at {
            0 => stored.truncate(stored.len() - 1),
            1 => stored.clear(),
            // More than a block has; the others leave room for it.
            2 => stored.resize(LAYOUT.block_bytes().expect("a small block") as usize + 1, 0),
            _ => {}
        }
        at < 3
    };
    let outcomes = fetched_by(&client, &cluster, encoded(cut)).await;
    let senseless = corrupt(HeaderError::Codec(Codec::Lossless));
    assert_eq!(outcomes, [senseless, senseless, corrupt(HeaderError::Length), Ok(())]);
    assert_eq!(client.stats().corrupt_blocks, 3);
}

#[tokio::test]
async fn who_reads_raw_says_so_with_the_layout_and_takes_nothing_else() {
    let cluster = Cluster::start(1, 1).await;
    let config = ClientConfig { raw_reads: true, ..cluster.config() };
    let client = Client::connect(config).await.expect("the coordinator answers");
    let outcomes = fetched_by(&client, &cluster, encoded(|_, _| false)).await;
    assert_eq!(outcomes, [corrupt(HeaderError::Codec(Codec::Lossless)); 4], "this node does not listen");
    for request in cluster.nodes[0].requests() {
        match request {
            DataRequest::Fetch(request) => assert_eq!(request.accept, Accept::Raw(LAYOUT)),
            DataRequest::Store(request) => assert_eq!(request.layout, Some(LAYOUT)),
            DataRequest::Match(_)
            | DataRequest::Release(_)
            | DataRequest::Strategies(_)
            | DataRequest::Watch(_)
            | DataRequest::Survey(_)
            | DataRequest::Explain(_)
            | DataRequest::Trace(_)
            | DataRequest::Recall(_)
            | DataRequest::Names(_)
            | DataRequest::Share(_)
            | DataRequest::Look(_)
            | DataRequest::Done(_)
            | DataRequest::Carry(_) => {}
        }
    }
}
