//! What becomes of blocks that are stored encoded, or that are shrunk where they rest.

use super::asker::{Asker, Block, already, kept};
use super::coordinator::TENANT;
use super::{KIB, Setup, eventually};
use crate::actors::core::DeviceMessage;
use kvhive_cache::Tier;
use kvhive_cache::policy::Strategy;
use kvhive_client::codec;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::data::{Accept, Ack};
use kvhive_protocol::{AxisOrder, Dtype, Layout, TenantRules, WireError};

/// Blocks of 16 KiB.
pub(super) const LAYOUT: Layout = Layout {
    layers: 2,
    kv_heads: 2,
    head_dim: 32,
    tokens: 16,
    dtype: Dtype::F32,
    order: AxisOrder::LayersFirst,
};

/// A tensor of values from -1 to 1 that compresses well.
fn tensor(number: u64) -> Block {
    let values = (0..16 * KIB as u64 / 4).map(|at| ((at * 3 + number) % 17) as f32 / 8.0 - 1.0);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    let mut block = Block::new(number, 0);
    block.header.fingerprint = LAYOUT.fingerprint();
    (block.header.payload_bytes, block.header.digest) = (bytes.len() as u64, digest(&bytes));
    Block { bytes, ..block }
}

pub(super) fn encoded(number: u64, codec: Codec) -> Block {
    let raw = tensor(number);
    let mut bytes = Vec::new();
    codec::encode(codec, &LAYOUT, &raw.bytes, &mut bytes).expect("a block of its layout");
    let mut header = raw.header;
    (header.codec, header.payload_bytes, header.digest) = (codec, bytes.len() as u64, digest(&bytes));
    Block { header, bytes }
}

/// Returns the largest difference of two blocks' values, whose largest is 1.
fn error(one: &[u8], other: &[u8]) -> f32 {
    let values = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().expect("four bytes"))).collect()
    };
    assert_eq!(one.len(), other.len());
    let pairs = values(one).into_iter().zip(values(other));
    pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

impl Asker {
    fn of_tensors(mut self) -> Asker {
        self.layout = Some(LAYOUT);
        self
    }

    async fn raw(&mut self, numbers: &[u64]) -> Vec<Option<Block>> {
        self.accept = Accept::Raw(LAYOUT);
        let found = self.fetch_whole(numbers).await.expect("the node serves");
        self.accept = Accept::Stored;
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_for_raw_gets_raw_bytes_that_verify_and_any_other_what_is_stored() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await.of_tensors();
    let stored = [encoded(1, Codec::Lossless), encoded(2, Codec::Int8), tensor(3)];
    assert_eq!(client.store(&stored, Ack::Primary).await, Ok(vec![kept(1); 3]));
    let found = client.fetch_whole(&[1, 2, 3]).await.expect("the node serves");
    assert_eq!(found, stored.clone().map(Some), "as they are stored");
    let raw: Vec<Block> = client.raw(&[1, 2, 3]).await.into_iter().flatten().collect();
    assert_eq!(raw[0], tensor(1), "bit for bit, under the header of a raw block");
    assert_eq!(raw[2], tensor(3));
    assert_eq!((raw[1].header.codec, raw[1].header.payload_bytes), (Codec::Raw, 16 * KIB as u64));
    assert!(error(&raw[1].bytes, &tensor(2).bytes) <= 1.0 / 250.0);
    assert_eq!(node.counted(|counters| &counters.decoded_blocks), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_decode_is_a_miss_for_who_wants_it_raw() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await.of_tensors();
    let mut senseless = encoded(1, Codec::Lossless);
    senseless.bytes.truncate(100);
    (senseless.header.payload_bytes, senseless.header.digest) = (100, digest(&senseless.bytes));
    assert_eq!(client.store(&[senseless], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.raw(&[1]).await, [None]);
    let other = Layout { tokens: 8, layers: 4, ..LAYOUT };
    assert_eq!(client.store(&[encoded(2, Codec::Int8)], Ack::Primary).await, Ok(vec![kept(1)]));
    client.accept = Accept::Raw(other);
    assert_eq!(client.fetch(&[2]).await, Ok(vec![None]), "it is of another layout");
    assert_eq!(node.counted(|counters| &counters.undecoded_blocks), 2);
    client.accept = Accept::Raw(Layout { tokens: 0, ..LAYOUT });
    assert!(matches!(client.fetch(&[2]).await, Err(WireError::Malformed { .. })), "no block has no bytes");
}

/// Flips a bit of a block where it is kept.
async fn damage(node: &crate::NodeHandle, number: u64) {
    let keys: kvhive_protocol::KeyList = std::iter::once(super::asker::key(number)).collect();
    let read = |reply| DeviceMessage::Read { tenant: super::coordinator::TENANT, keys, reply };
    let lent = node.devices[0].ask(std::time::Duration::from_secs(5), read).await;
    let Ok([Some(crate::guards::Lent::Guard(guard))]) = lent.as_deref() else { panic!("it is in memory") };
    let (at, byte) = (guard.bytes().as_ptr() as u64 + 100, guard.bytes()[100] ^ 1);
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem").expect("it is ours");
    std::os::unix::fs::FileExt::write_all_at(&memory, &[byte], at).expect("it is mapped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_damaged_in_memory_can_be_stored_anew() {
    // Of a GPU's there is no address to write to.
    let setup = Setup { memory: crate::DeviceMemory::Host, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await.of_tensors();
    let stored = [encoded(1, Codec::Lossless), encoded(2, Codec::Int8)];
    assert_eq!(client.store(&stored, Ack::Primary).await, Ok(vec![kept(1); 2]));
    for number in [1, 2] {
        damage(&node, number).await;
    }
    assert_eq!(client.raw(&[1, 2]).await, [None, None], "who has it decoded finds out");
    assert_eq!(node.counted(|counters| &counters.corrupt_blocks), 2);
    assert_eq!(client.covered(&[1]).await, Ok(0));
    assert_eq!(client.store(&stored, Ack::Primary).await, Ok(vec![kept(1); 2]), "they are new again");
    // Whoever takes it as it is checks it himself, and stores it anew.
    assert_eq!(client.store(&[tensor(3)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.store(&[tensor(3)], Ack::Primary).await, Ok(vec![super::asker::already(1)]));
    damage(&node, 3).await;
    let refused = kvhive_protocol::data::Stored::Refused(kvhive_protocol::data::Refusal::NoRoom);
    assert_eq!(client.store(&[tensor(3)], Ack::Primary).await, Ok(vec![refused]));
    assert_eq!(client.store(&[tensor(3)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(client.raw(&[3]).await, [Some(tensor(3))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_refused_teaches_no_layout() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await.of_tensors();
    let layouts = || node.plane.view.layouts.all();
    client.tenant = kvhive_protocol::TenantId(99);
    assert!(client.store(&[tensor(1)], Ack::Primary).await.is_err(), "nobody knows the tenant");
    client.tenant = super::coordinator::TENANT;
    let mut old = tensor(1);
    old.header.era = kvhive_protocol::Era(7);
    client.store(&[old], Ack::Primary).await.expect("an answer for each block");
    assert_eq!(layouts(), []);
    assert_eq!(client.store(&[tensor(1)], Ack::Primary).await, Ok(vec![kept(1)]));
    assert_eq!(layouts(), [LAYOUT]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_fetch_leaves_others_room_to_have_blocks_decoded() {
    let setup = Setup { inflight_bytes: 8 * 32 * KIB, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await.of_tensors();
    for number in 0..16 {
        let stored = client.store(&[encoded(number, Codec::Lossless)], Ack::Primary).await;
        assert_eq!(stored, Ok(vec![kept(1)]));
    }
    let numbers: Vec<u64> = (0..16).collect();
    let came = client.raw(&numbers).await.iter().flatten().count();
    assert_eq!(came, 2, "two blocks of 16 KiB are an eighth of what may be decoded at a time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_contradicts_its_layout_is_refused() {
    let (_coordinator, node) = Setup::default().one().await;
    let mut client = node.ask().await.of_tensors();
    let mut foreign = tensor(1);
    foreign.header.fingerprint = Layout { tokens: 8, layers: 4, ..LAYOUT }.fingerprint();
    let mut short = tensor(2);
    short.bytes.truncate(4);
    (short.header.payload_bytes, short.header.digest) = (4, digest(&short.bytes));
    let mut cut = encoded(4, Codec::Int8);
    cut.bytes.truncate(100);
    (cut.header.payload_bytes, cut.header.digest) = (100, digest(&cut.bytes));
    for wrong in [foreign, short, cut] {
        let answer = client.store(&[tensor(3), wrong], Ack::Primary).await;
        assert!(matches!(answer, Err(WireError::Malformed { .. })), "{answer:?}");
    }
    assert_eq!(client.covered(&[3]).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_shard_of_compressed_keeps_more_than_it_has_large_frames() {
    let setup = Setup {
        frame_bytes: 16 * KIB,
        device_frames: 4,
        smaller: Some((8 * KIB, 12)),
        strategy: Strategy::Compressed,
        ..Setup::default()
    };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await.of_tensors();
    for number in 0..15 {
        assert_eq!(client.store(&[tensor(number)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a large frame is free again", |stats| stats.shrunk + 3 >= stats.stored).await;
    }
    let stats = node.shard_stats().await;
    assert_eq!((stats.blocks(), stats.evicted, stats.shrunk), (15, 0, 12), "{stats:?}");
    let numbers: Vec<u64> = (0..15).collect();
    let found = client.fetch_whole(&numbers).await.expect("the node serves");
    let codecs: Vec<Codec> = found.iter().flatten().map(|block| block.header.codec).collect();
    assert_eq!(codecs, [vec![Codec::Lossless; 12], vec![Codec::Raw; 3]].concat());
    let wanted: Vec<Option<Block>> = numbers.iter().map(|number| Some(tensor(*number))).collect();
    assert_eq!(client.raw(&numbers).await, wanted, "every bit comes back");
    tokio::task::block_in_place(|| {
        let stats = node.stats();
        let lossless = stats.codecs[Codec::Lossless as usize];
        assert_eq!(
            (lossless.codec, lossless.blocks, lossless.raw_bytes),
            ("lossless", 12, 12 * 16 * KIB as u64)
        );
        assert!(lossless.ratio < 0.5 && lossless.stored_bytes > 0, "{lossless:?}");
        assert_eq!((stats.shrinks.done, stats.codecs[0].blocks), (12, 3));
    });
    for number in 15..20 {
        assert_eq!(client.store(&[tensor(number)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a large frame is free again", |stats| stats.shrunk + 3 >= stats.stored).await;
    }
    let stats = node.shard_stats().await;
    assert_eq!((stats.blocks(), stats.evicted), (15, 5), "then the coldest go");
    assert_eq!(client.fetch(&[4, 5]).await.map(|found| found.iter().flatten().count()), Ok(1));
    node.settles("nobody reads", |stats| stats.readers == 0).await;
    assert_eq!(node.inside.memories[0].free_frames(Tier::Device), 1, "every frame is free or a block's");
}

/// What becomes of two cold blocks of a tenant whose rules say `quantized` and so many bits, or none, on a node of this codec.
async fn quantized_to(bits: Option<u8>, of_node: Codec) -> Vec<Block> {
    let setup = Setup {
        frame_bytes: 16 * KIB,
        device_frames: 2,
        smaller: Some((14 * KIB, 4)),
        codec: of_node,
        ..Setup::default()
    };
    let (coordinator, node) = setup.one().await;
    coordinator.change(|map| {
        map.tenants.get_mut(&TENANT).expect("it is there").rules = TenantRules {
            strategy: Some(Strategy::Quantized),
            quantization_bits: bits,
            ..TenantRules::default()
        };
    });
    let member = node.member().expect("it is a member");
    eventually("the node serves by the rules", || coordinator.has_confirmed(member, coordinator.epoch()))
        .await;
    let mut client = node.ask().await.of_tensors();
    for number in 0..3 {
        assert_eq!(client.store(&[tensor(number)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a large frame is free again", |stats| stats.shrunk + 1 >= stats.stored).await;
    }
    let found = client.fetch_whole(&[0, 1]).await.expect("the node serves");
    let found: Vec<Block> = found.into_iter().flatten().collect();
    assert_eq!(found.len(), 2);
    for (number, raw) in (0..).zip(client.raw(&[0, 1]).await) {
        let exact = raw.expect("it is here") == tensor(number);
        assert_eq!(exact, bits == Some(16), "block {number} of {bits:?} bits");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_whose_rules_say_bits_is_quantized_to_those_and_sixteen_lose_none() {
    for (bits, codec) in [(4, Codec::Int4), (8, Codec::Int8), (16, Codec::Lossless)] {
        for block in quantized_to(Some(bits), Codec::Raw).await {
            assert_eq!(block.header.codec, codec, "{bits} bits");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_rules_say_nothing_the_nodes_own_codec_says_how_dense() {
    for block in quantized_to(None, Codec::Int4).await {
        assert_eq!(block.header.codec, Codec::Int4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quantized_shrinks_to_eight_bits_and_no_further() {
    let setup = Setup {
        frame_bytes: 16 * KIB,
        device_frames: 2,
        smaller: Some((8 * KIB, 4)),
        strategy: Strategy::Quantized,
        ..Setup::default()
    };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await.of_tensors();
    for number in 0..3 {
        assert_eq!(client.store(&[tensor(number)], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a large frame is free again", |stats| stats.shrunk + 1 >= stats.stored).await;
    }
    let found = client.fetch_whole(&[0, 1]).await.expect("the node serves");
    assert!(found.iter().flatten().all(|block| block.header.codec == Codec::Int8), "{found:?}");
    for (number, block) in client.raw(&[0, 1]).await.into_iter().enumerate() {
        let bytes = block.expect("it is here").bytes;
        assert!(error(&bytes, &tensor(number as u64).bytes) <= 1.0 / 250.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_of_a_layout_that_nobody_told_stays_as_it_is() {
    let setup = Setup {
        frame_bytes: 16 * KIB,
        device_frames: 2,
        smaller: Some((8 * KIB, 4)),
        strategy: Strategy::Compressed,
        ..Setup::default()
    };
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    for number in 0..3 {
        assert_eq!(client.store(&[tensor(number)], Ack::Primary).await, Ok(vec![kept(1)]));
    }
    let found = client.fetch_whole(&[0, 1, 2]).await.expect("the node serves");
    assert_eq!(found, [None, Some(tensor(1)), Some(tensor(2))]);
    let stats = node.shard_stats().await;
    assert_eq!((stats.shrunk, stats.evicted), (0, 1), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_stored_as_the_first_is_and_know_their_layout() {
    let (_coordinator, nodes) = Setup::default().several(2).await;
    let mut client = nodes[0].ask().await.of_tensors();
    let blocks = [encoded(1, Codec::Int4), encoded(2, Codec::Lossless)];
    assert_eq!(client.store(&blocks, Ack::All).await, Ok(vec![kept(2); 2]));
    let copies = || async { nodes[1].ask().await.fetch_whole(&[1, 2]).await };
    assert_eq!(copies().await, Ok(blocks.clone().map(Some).to_vec()));
    assert_eq!(nodes[1].plane.view.layouts.get(LAYOUT.fingerprint()), Some(LAYOUT));
    // The second node forgets them, and the same blocks are stored raw: what is copied is what the first node has.
    nodes[1].devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    nodes[1].is_made_anew().await;
    let again = client.store(&[tensor(1), tensor(2)], Ack::All).await;
    assert_eq!(again, Ok(vec![already(2); 2]));
    assert_eq!(copies().await, Ok(blocks.map(Some).to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_brings_encoded_blocks_back_with_what_their_bytes_mean() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("snapshot");
    let blocks = [encoded(1, Codec::Int8), encoded(2, Codec::Lossless), tensor(3)];
    let (_coordinator, first) = Setup::default().one().await;
    let stored = first.ask().await.of_tensors().store(&blocks, Ack::Primary).await;
    assert_eq!(stored, Ok(vec![kept(1); 3]));
    first.persist(&path, |_| {}).expect("it is written");
    let (_coordinator, second) = Setup::default().one().await;
    assert_eq!(second.load(&path, None, |_| {}).expect("it is whole").blocks, 3);
    assert_eq!(second.ask().await.fetch_whole(&[1, 2, 3]).await, Ok(blocks.map(Some).to_vec()));
    let stats = second.stats();
    let int8 = stats.codecs[Codec::Int8 as usize];
    assert_eq!((int8.blocks, int8.raw_bytes), (1, 16 * KIB as u64), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_writers_of_a_shrinking_shard_get_their_blocks_or_none() {
    let setup = Setup {
        frame_bytes: 16 * KIB,
        device_frames: 8,
        smaller: Some((8 * KIB, 16)),
        host_frames: 8,
        strategy: Strategy::Compressed,
        ..Setup::default()
    };
    let (_coordinator, node) = setup.one().await;
    let mut askers = tokio::task::JoinSet::new();
    for task in 0..4u64 {
        let mut client = node.ask().await.of_tensors();
        askers.spawn(async move {
            let mut hits = [0, 0];
            for round in 0..300u64 {
                let number = (round * 7 + task * 13) % 48;
                let raw = client.raw(&[number, (number + 1) % 48]).await;
                for (number, block) in [number, (number + 1) % 48].into_iter().zip(raw) {
                    if let Some(block) = block {
                        assert!(block == tensor(number), "block {number}");
                        hits[0] += 1;
                    }
                }
                let stored = client.fetch_whole(&[number]).await.expect("the node serves").remove(0);
                hits[1] += u64::from(stored.is_some_and(|block| block.header.codec == Codec::Lossless));
                // Refused for want of a frame, or taken.
                client.store(&[tensor(number)], Ack::Primary).await.expect("the node serves");
            }
            hits
        });
    }
    let hits = askers.join_all().await;
    let stats = node.shard_stats().await;
    assert!(stats.shrunk > 0 && stats.evicted > 0, "{stats:?}");
    assert!(hits.iter().all(|hits| hits[0] > 0) && hits.iter().any(|hits| hits[1] > 0), "{hits:?}");
    assert_eq!((node.counted(|counters| &counters.corrupt_blocks), stats.lost), (0, 0));
    node.settles("nobody reads or moves", |stats| {
        stats.readers + stats.shrinking + stats.leaving + stats.filling == 0
    })
    .await;
}
