//! Clients that lend stages to a node's GPU, of other processes and of its own: what they store and fetch, who may, and what becomes of those
//! who go, lie, or meet a GPU that does not do it.

#[path = "../../../gpu/tests/other/mod.rs"]
mod other;

use super::asker::{Asker, Block, kept};
use super::gpu::{fail, hang, is_real, on_some_gpu, release};
use super::{KIB, Setup, TOKEN, eventually};
use crate::data::BRINGING_PLACES;
use crate::{DeviceMemory, NodeHandle};
use kvhive_cache::Tier;
use kvhive_client::{
    Client, ClientConfig, FetchOutcome, NamespaceClient, Prefix, StageLease, StoreOptions, StoreOutcome,
};
use kvhive_gpu::cuda::{Cuda, Gpu, Patience};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, Ack, DataReply, DataRequest, StoreRequest};
use kvhive_protocol::share::{NotShared, Pass, ShareAnswer, ShareOffer};
use kvhive_protocol::stage::{LendRequest, StageLoan, StagedFetch, StagedStore};
use kvhive_protocol::{AxisOrder, Dtype, Layout, TenantId, WireError};
use kvhive_wire::{Fault, Visit, this_host};
use other::{Other, told_gpu};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(5);
const BLOCKS: usize = 6;

/// Blocks of numbers, 64 KiB each.
fn layout() -> Layout {
    Layout {
        layers: 4,
        kv_heads: 2,
        head_dim: 64,
        tokens: 32,
        dtype: Dtype::Bf16,
        order: AxisOrder::LayersFirst,
    }
}

/// Returns a block of small numbers that the codecs do something with.
fn numbers(seed: usize) -> Vec<u8> {
    let number = |at: usize| ((at * 37 + seed * 101) % 251) as f32 / 64.0 - 1.5;
    (0..32 * KIB).flat_map(|at| ((number(at).to_bits() >> 16) as u16).to_le_bytes()).collect()
}

async fn connect(address: &str, config: impl FnOnce(&mut ClientConfig)) -> (Client, NamespaceClient) {
    let mut settings = ClientConfig::new(vec![address.to_owned()], TOKEN.to_vec());
    config(&mut settings);
    let client = Client::connect(settings).await.expect("the coordinator answers");
    let blocks = client.namespace("default", "test", layout(), 0).expect("there is such a tenant");
    (client, blocks)
}

fn prefix(blocks: &NamespaceClient, name: u8) -> Prefix {
    let hashes: Vec<[u8; 2]> = (0..BLOCKS as u8).map(|at| [name, at]).collect();
    blocks.prefix_of_engine_hashes(&hashes)
}

/// Stores blocks as any client does, without a stage.
async fn store(blocks: &NamespaceClient, prefix: &Prefix, seed: usize, codec: Codec) {
    let bytes: Vec<Vec<u8>> = (0..BLOCKS).map(|at| numbers(seed + at)).collect();
    let pieces: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
    let options = StoreOptions { codec: Some(codec), ..StoreOptions::default() };
    let report = blocks.store(prefix, 0..BLOCKS, &pieces, options).await.expect("it is asked right");
    assert_eq!(report.acknowledged(), BLOCKS, "{report:?}");
}

/// Fetches blocks as any client does.
async fn fetch(blocks: &NamespaceClient, prefix: &Prefix) -> Vec<Option<Vec<u8>>> {
    let mut memory = vec![vec![0u8; 64 * KIB]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let report = blocks.fetch_into(prefix, 0..BLOCKS, &mut targets).await.expect("it is asked right");
    let came = report.outcomes.iter().map(|one| matches!(one, FetchOutcome::Loaded(_)));
    memory.into_iter().zip(came).map(|(bytes, came)| came.then_some(bytes)).collect()
}

/// Stores blocks over a stage; says how many the node took.
async fn store_staged(
    blocks: &NamespaceClient,
    lease: &StageLease,
    prefix: &Prefix,
    seed: usize,
    codec: Codec,
) -> Vec<Option<StoreOutcome>> {
    for at in 0..BLOCKS {
        lease.write((at * 64 * KIB) as u64, &numbers(seed + at)).expect("it lies on it");
    }
    let options = StoreOptions { codec: Some(codec), ..StoreOptions::default() };
    blocks.store_staged(prefix, 0..BLOCKS, lease, options).await.expect("it is asked right")
}

/// Fetches blocks over a stage.
async fn fetch_staged(blocks: &NamespaceClient, lease: &StageLease, prefix: &Prefix) -> Vec<Option<Vec<u8>>> {
    let loaded = blocks.fetch_staged(prefix, 0..BLOCKS, lease).await.expect("it is asked right");
    let read = |(at, loaded): (usize, Option<_>)| {
        loaded.map(|_| {
            let mut bytes = vec![0; 64 * KIB];
            lease.read((at * 64 * KIB) as u64, &mut bytes).expect("it lies on it");
            bytes
        })
    };
    loaded.into_iter().enumerate().map(read).collect()
}

/// Returns what blocks are once they were stored so.
fn stored_so(seed: usize, codec: Codec) -> Vec<Option<Vec<u8>>> {
    let so = |at| {
        let (mut stored, mut raw) = (Vec::new(), numbers(seed + at));
        kvhive_client::codec::encode(codec, &layout(), &raw, &mut stored).expect("they are numbers");
        kvhive_client::codec::decode(codec, &layout(), &stored, &mut raw).expect("it was encoded");
        Some(raw)
    };
    (0..BLOCKS).map(so).collect()
}

const ACKNOWLEDGED: Option<StoreOutcome> = Some(StoreOutcome::Acknowledged { copies: 1, already: false });
const ALREADY: Option<StoreOutcome> = Some(StoreOutcome::Acknowledged { copies: 1, already: true });
const CODECS: [Codec; 4] = [Codec::Raw, Codec::Int8, Codec::Fp8, Codec::Int4];

fn own_gpu() -> Arc<Gpu> {
    Cuda::find().and_then(|cuda| cuda.open(0)).expect("the node has it too")
}

fn stages(node: &NodeHandle) -> usize {
    node.plane.sharing.as_ref().map_or(0, |sharing| sharing.stages())
}

/// Waits until nobody reads or writes, and every frame that is not free has a block.
async fn is_settled(node: &NodeHandle) {
    node.settles("nobody reads or writes", |stats| stats.readers + stats.filling == 0).await;
    let stats = node.shard_stats().await;
    let (memory, blocks) = (&node.inside.memories[0], stats.device.blocks + stats.host.blocks);
    let frames: u32 = [Tier::Device, Tier::Host].iter().flat_map(|tier| memory.capacity(*tier).frames).sum();
    eventually("no frame is leaked", || {
        let free = memory.free_frames(Tier::Device) + memory.free_frames(Tier::Host);
        u64::from(frames - free) == blocks
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that other tests start"]
async fn engine_that_lends_a_stage() {
    let gpu = told_gpu();
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let (client, blocks) = connect(&lines.next().expect("it is told where"), |_| ()).await;
    for (at, codec) in CODECS.into_iter().enumerate() {
        let own = prefix(&blocks, at as u8);
        let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("the node takes it");
        let first = store_staged(&blocks, &lease, &own, 10 * at, codec).await;
        assert_eq!(first, [ACKNOWLEDGED; BLOCKS], "{codec:?}");
        let again = store_staged(&blocks, &lease, &own, 10 * at, codec).await;
        assert_eq!(again, [ALREADY; BLOCKS], "{codec:?}");
        println!("KVHIVE stored {codec:?}");
        lines.next().expect("it goes on");
        // Its own and those of others, which came over a socket.
        assert!(fetch_staged(&blocks, &lease, &own).await == stored_so(10 * at, codec), "{codec:?}");
        let others = prefix(&blocks, 100 + at as u8);
        assert!(fetch_staged(&blocks, &lease, &others).await == stored_so(200 + at, codec), "{codec:?}");
        let missing = prefix(&blocks, 200);
        assert_eq!(fetch_staged(&blocks, &lease, &missing).await, vec![None; BLOCKS]);
    }
    let stats = client.stats();
    assert_eq!(stats.stage_fallbacks, 0);
    assert!(
        stats.bytes_fetched_on_gpu == stats.bytes_fetched && stats.bytes_stored_on_gpu == stats.bytes_stored
    );
    println!("KVHIVE done .");
    lines.next().expect("it is ended");
}

/// A process stores over a stage and fetches over it; others see the same blocks. Some are in the host tier.
async fn goes_over_a_stage(device_frames: usize, host_frames: usize) {
    let (setup, driver) = on_some_gpu();
    let (coordinator, node) = Setup { device_frames, host_frames, ..setup }.one().await;
    let (_client, blocks) = connect(&coordinator.address(), |config| config.gpu_stages = false).await;
    let mut other = Other::start("tests::stages::engine_that_lends_a_stage", driver, None, None);
    other.tell(&coordinator.address());
    for (at, codec) in CODECS.into_iter().enumerate() {
        let others = prefix(&blocks, 100 + at as u8);
        store(&blocks, &others, 200 + at, codec).await;
        assert_eq!(tokio::task::block_in_place(|| other.hear("stored")), format!("{codec:?}"));
        let own = prefix(&blocks, at as u8);
        assert!(fetch(&blocks, &own).await == stored_so(10 * at, codec), "{codec:?}");
        other.go_on();
    }
    tokio::task::block_in_place(|| other.hear("done"));
    assert_eq!(stages(&node), 1, "one for all calls");
    let gathered = node.counted(|counters| &counters.gathered_bytes);
    let scattered = node.counted(|counters| &counters.scattered_bytes);
    assert!(gathered > 0 && scattered == 2 * gathered, "{gathered} {scattered}");
    assert_eq!(node.counted(|counters| &counters.corrupt_blocks), 0);
    // It goes without a word.
    tokio::task::block_in_place(|| other.kill());
    eventually("its stage is closed", || stages(&node) == 0).await;
    is_settled(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_stores_and_fetches_over_a_stage() {
    goes_over_a_stage(64, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_host_tier_goes_over_a_stage_too() {
    goes_over_a_stage(8, 64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_the_nodes_own_process_needs_no_handle() {
    let (setup, _) = on_some_gpu();
    let (coordinator, node) = setup.one().await;
    let (client, blocks) = connect(&coordinator.address(), |_| ()).await;
    let (gpu, own) = (own_gpu(), prefix(&blocks, 1));
    for round in 0..2 {
        let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("the node takes it");
        let wanted = if round == 0 { ACKNOWLEDGED } else { ALREADY };
        assert_eq!(store_staged(&blocks, &lease, &own, 1, Codec::Raw).await, [wanted; BLOCKS]);
        assert!(fetch_staged(&blocks, &lease, &own).await == stored_so(1, Codec::Raw));
    }
    assert!(fetch(&blocks, &own).await == stored_so(1, Codec::Raw));
    assert_eq!(stages(&node), 1, "it was used again");
    // What no GPU makes is left to the processor.
    let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("as before");
    let lossless = prefix(&blocks, 2);
    assert_eq!(store_staged(&blocks, &lease, &lossless, 1, Codec::Lossless).await, [None; BLOCKS]);
    store(&blocks, &lossless, 1, Codec::Lossless).await;
    assert!(fetch_staged(&blocks, &lease, &lossless).await == stored_so(1, Codec::Lossless));
    drop(lease);
    assert_eq!(client.stats().stage_fallbacks, 0);
    drop((client, blocks));
    eventually("its stage is closed", || stages(&node) == 0).await;
    is_settled(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_go_by_the_host_where_a_node_or_a_client_wants_no_stages() {
    let (setup, _) = on_some_gpu();
    let gpu = own_gpu();
    let host = Setup { memory: DeviceMemory::Host, ..Setup::default() };
    for (setup, wants) in
        [(Setup { gpu_stages: false, ..setup }, true), (host, true), (on_some_gpu().0, false)]
    {
        let (coordinator, _node) = setup.one().await;
        let (client, blocks) = connect(&coordinator.address(), |config| config.gpu_stages = wants).await;
        let own = prefix(&blocks, 1);
        let before = client.stats().requests;
        assert!(blocks.stage(&gpu, &own, 0..BLOCKS).await.is_none());
        let asked = client.stats().requests - before;
        assert_eq!(asked, u64::from(wants));
        assert!(blocks.stage(&gpu, &own, 0..BLOCKS).await.is_none());
        assert_eq!(client.stats().requests - before, asked, "it does not ask again at once");
        assert_eq!(client.stats().stage_fallbacks, 0, "nothing has failed");
        store(&blocks, &own, 1, Codec::Raw).await;
        assert!(fetch(&blocks, &own).await == stored_so(1, Codec::Raw));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_started_anew_is_lent_anew() {
    let (setup, _) = on_some_gpu();
    let (coordinator, node) = setup.one().await;
    let (client, blocks) = connect(&coordinator.address(), |_| ()).await;
    let (gpu, own) = (own_gpu(), prefix(&blocks, 1));
    let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("the node takes it");
    assert_eq!(store_staged(&blocks, &lease, &own, 1, Codec::Raw).await, [ACKNOWLEDGED; BLOCKS]);
    tokio::task::spawn_blocking(move || node.shutdown(LIMIT)).await.expect("it ends in order");
    assert_eq!(fetch_staged(&blocks.within(LIMIT), &lease, &own).await, vec![None; BLOCKS]);
    drop(lease);
    let node = on_some_gpu().0.start("node-0", &coordinator);
    eventually("it serves", || node.is_serving()).await;
    client.refresh().await.expect("the coordinator answers");
    let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("it is another start");
    assert_eq!(store_staged(&blocks, &lease, &own, 1, Codec::Raw).await, [ACKNOWLEDGED; BLOCKS]);
    assert!(fetch_staged(&blocks, &lease, &own).await == stored_so(1, Codec::Raw));
}

impl Asker {
    async fn lend(&mut self) -> ShareAnswer {
        let host = this_host().expect("Linux says so");
        let request = LendRequest { epoch: self.epoch, device: self.device, host };
        match self.exchange(&DataRequest::Lend(request), &[]).await {
            Ok(DataReply::Shared { answer, .. }) => answer,
            other => panic!("it was answered by {other:?}"),
        }
    }

    async fn offered(&mut self) -> ShareOffer {
        match self.lend().await {
            ShareAnswer::Offered(offer) => offer,
            other => panic!("it was answered by {other:?}"),
        }
    }

    async fn gather(
        &mut self,
        stage: Pass,
        at: Vec<u64>,
        store: StoreRequest,
    ) -> Result<DataReply, WireError> {
        let request = DataRequest::Gather(Box::new(StagedStore { stage, at, store }));
        self.over(&request).await
    }

    async fn over(&mut self, request: &DataRequest) -> Result<DataReply, WireError> {
        match self.exchange(request, &[]).await {
            Ok(reply) => Ok(reply),
            Err(Fault::Refused(error)) => Err(error),
            other => panic!("it was answered by {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lies_about_a_stage_is_refused_and_nothing_is_touched() {
    let (setup, _) = on_some_gpu();
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    let none = StageLoan { handle: [7; 64], offset: 0, bytes: 1 << 20 };
    let offer = client.offered().await;
    let mut visit = Visit::lend(&offer, &none, LIMIT).await.expect("it listens");
    assert!(visit.taken(LIMIT).await.is_err(), "that opens nothing");
    assert!(Visit::pay(&client.offered().await, LIMIT).await.is_err(), "who came to lend sees nothing");
    let again = Visit::lend(&offer, &none, LIMIT).await;
    assert!(match again {
        Ok(mut visit) => visit.taken(LIMIT).await.is_err(),
        Err(_) => true,
    });

    let stage = kvhive_gpu::cuda::Stage::new(&own_gpu(), 4 * 64 * KIB).expect("there is room");
    let loan = stage.loan();
    let loan = StageLoan { handle: loan.handle, offset: loan.offset, bytes: loan.bytes };
    let offer = client.offered().await;
    let mut visit = Visit::lend(&offer, &loan, LIMIT).await.expect("it listens");
    visit.taken(LIMIT).await.expect("it is one");
    let (pass, bytes) = (offer.pass, 64 * KIB as u64);
    client.layout = Some(layout());
    client.accept = Accept::Raw(layout());
    let mut block = Block::new(1, 64 * KIB);
    block.header.fingerprint = layout().fingerprint();
    let store = |client: &Asker, block: &Block| match client
        .store_request(std::slice::from_ref(block), Ack::Primary)
    {
        DataRequest::Store(store) => store,
        _ => unreachable!("it is one"),
    };
    let fetch = |client: &Asker| match client.fetch_request(&[1]) {
        DataRequest::Fetch(fetch) => fetch,
        _ => unreachable!("it is one"),
    };
    let right = store(&client, &block);
    let is_malformed = |answer: Result<DataReply, WireError>| {
        assert!(matches!(answer, Err(WireError::Malformed { .. })), "{answer:?}");
    };
    for at in [vec![], vec![1], vec![4 * bytes], vec![u64::MAX - bytes + 1], vec![0, bytes]] {
        is_malformed(client.gather(pass, at.clone(), right.clone()).await);
        let fetch = StagedFetch { stage: pass, at, fetch: fetch(&client) };
        is_malformed(client.over(&DataRequest::Scatter(Box::new(fetch))).await);
    }
    is_malformed(client.gather(pass, vec![0], StoreRequest { layout: None, ..right.clone() }).await);
    is_malformed(client.gather(pass, vec![0], StoreRequest { copy: true, ..right.clone() }).await);
    let mut lossless = block.clone();
    lossless.header.codec = Codec::Lossless;
    is_malformed(client.gather(pass, vec![0], store(&client, &lossless)).await);
    let mut long = block.clone();
    long.header.payload_bytes += 1;
    is_malformed(client.gather(pass, vec![0], store(&client, &long)).await);
    client.accept = Accept::Stored;
    let plain = StagedFetch { stage: pass, at: vec![0], fetch: fetch(&client) };
    is_malformed(client.over(&DataRequest::Scatter(Box::new(plain))).await);
    let unknown = client.gather(Pass([1; 32]), vec![0], right.clone()).await;
    assert!(matches!(unknown, Err(WireError::NotCarried { .. })), "{unknown:?}");
    is_settled(&node).await;
    assert_eq!(node.counted(|counters| &counters.gathered_bytes), 0);

    // What it says of its digest means nothing.
    stage.write(bytes, &block.bytes).expect("it lies on it");
    let mut blind = block.clone();
    blind.header.digest = 77;
    let stored = client.gather(pass, vec![bytes], store(&client, &blind)).await;
    let DataReply::Stored { blocks, .. } = stored.expect("it is right") else { panic!("it is a store") };
    assert_eq!(blocks, vec![kept(1)]);
    client.accept = Accept::Stored;
    let found = client.fetch_whole(&[1]).await.expect("it is there");
    assert!(found == vec![Some(block)], "the header says what its bytes are");
    visit.take_back().await;
    eventually("it is closed", || stages(&node) == 0).await;
    let gone = client.gather(pass, vec![0], right).await;
    assert!(matches!(gone, Err(WireError::NotCarried { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_stages_are_lent_and_no_more() {
    let (setup, _) = on_some_gpu();
    let (_coordinator, node) = setup.one().await;
    let mut client = node.ask().await;
    let gpu = own_gpu();
    let mut lent = Vec::new();
    let full = loop {
        let offer = match client.lend().await {
            ShareAnswer::Offered(offer) => offer,
            ShareAnswer::Not(why) => break why,
        };
        let stage = kvhive_gpu::cuda::Stage::new(&gpu, 64 * KIB).expect("there is room");
        let loan = stage.loan();
        let loan = StageLoan { handle: loan.handle, offset: loan.offset, bytes: loan.bytes };
        let mut visit = Visit::lend(&offer, &loan, LIMIT).await.expect("it listens");
        visit.taken(LIMIT).await.expect("it is one");
        lent.push((visit, stage));
    };
    assert_eq!((full, lent.len(), stages(&node)), (NotShared::Full, kvhive_protocol::stage::MAX_STAGES, 64));
    lent.truncate(1);
    eventually("others may lend", || stages(&node) == 1).await;
    client.offered().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_on_the_gpu_costs_a_stage_and_no_block() {
    if is_real() {
        return println!("SKIPPED: this GPU fails when it likes");
    }
    let (setup, _) = on_some_gpu();
    let (coordinator, node) = setup.one().await;
    let gpu = own_gpu();
    let mut name = 0;
    for call in ["cuLaunchKernel", "cuStreamSynchronize", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"] {
        // Anew: what has failed once rests.
        let (client, blocks) = connect(&coordinator.address(), |_| ()).await;
        name += 1;
        let own = prefix(&blocks, name);
        let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("the node takes it");
        // What this process does on the stage is done before.
        for at in 0..BLOCKS {
            lease.write((at * 64 * KIB) as u64, &numbers(at)).expect("it lies on it");
        }
        fail(call, 1, 1);
        let options = StoreOptions { codec: Some(Codec::Raw), ..StoreOptions::default() };
        let stored = blocks.store_staged(&own, 0..BLOCKS, &lease, options).await.expect("it is asked right");
        assert_eq!(stored, [None; BLOCKS], "{call}");
        assert!(lease.is_spent(), "{call}: the node may use it still");
        let next = blocks.store_staged(&own, 0..BLOCKS, &lease, options).await.expect("it is asked right");
        assert_eq!(
            (next, client.stats().stage_fallbacks),
            (vec![None; BLOCKS], 1),
            "{call}: nobody was asked"
        );
        assert!(blocks.stage(&gpu, &own, 0..BLOCKS).await.is_none(), "{call}: it rests");
        store(&blocks, &own, 0, Codec::Raw).await;
        drop((lease, client, blocks));

        let (client, blocks) = connect(&coordinator.address(), |_| ()).await;
        let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("the node takes it");
        fail(call, 1, 1);
        let loaded = blocks.fetch_staged(&own, 0..BLOCKS, &lease).await.expect("it is asked right");
        assert_eq!(loaded, [None; BLOCKS], "{call}");
        assert_eq!(fetch_staged(&blocks, &lease, &own).await, vec![None; BLOCKS], "{call}: nobody is asked");
        assert!(fetch(&blocks, &own).await == stored_so(0, Codec::Raw), "{call}");
        assert_eq!(client.stats().stage_fallbacks, 1);
        drop((lease, client, blocks));
        eventually("nothing is lent", || stages(&node) == 0).await;
        is_settled(&node).await;
    }
    assert_eq!(node.counted(|counters| &counters.stage_failures), 8);
    assert!(node.inside.memories[0].loss().is_none(), "an error of one call is no death");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_hangs_keeps_the_stage_and_its_client_goes_on() {
    if is_real() {
        return println!("SKIPPED: this GPU hangs when it likes");
    }
    let patience = Patience { copy: Duration::from_millis(200), stall: Duration::from_secs(3600) };
    let (setup, _) = on_some_gpu();
    let (coordinator, node) = Setup { patience, device_frames: 16, host_frames: 16, ..setup }.one().await;
    let (client, blocks) = connect(&coordinator.address(), |_| ()).await;
    let (gpu, own) = (own_gpu(), prefix(&blocks, 1));
    let lease = blocks.stage(&gpu, &own, 0..BLOCKS).await.expect("the node takes it");
    for at in 0..BLOCKS {
        lease.write((at * 64 * KIB) as u64, &numbers(at)).expect("it lies on it");
    }
    hang("cuLaunchKernel", 1);
    let options = StoreOptions { codec: Some(Codec::Raw), ..StoreOptions::default() };
    let stored = blocks.store_staged(&own, 0..BLOCKS, &lease, options).await.expect("it is asked right");
    assert_eq!(stored, [None; BLOCKS]);
    assert!(lease.is_spent());
    drop(lease);
    assert_eq!(stages(&node), 1, "it is open for as long as the GPU may use it");
    // Nothing of the keys is under way any more, whatever the GPU does with the frames.
    store(&blocks, &own, 0, Codec::Raw).await;
    release();
    eventually("it is closed then", || stages(&node) == 0).await;
    assert!(fetch(&blocks, &own).await == stored_so(0, Codec::Raw));
    assert_eq!(client.stats().stage_fallbacks, 1);
    is_settled(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_over_a_stage_waits_for_its_turn_before_it_takes_room_to_decode() {
    let (setup, _) = on_some_gpu();
    let (_coordinator, node) = Setup { device_frames: 8, host_frames: 64, ..setup }.one().await;
    let mut client = node.ask().await;
    (client.layout, client.accept) = (Some(layout()), Accept::Raw(layout()));
    let bytes = kvhive_client::codec::stored_bytes(Codec::Int8, &layout()).expect("it says so");
    for number in 0..24 {
        let mut block = Block::new(number, bytes as usize);
        (block.header.codec, block.header.fingerprint) = (Codec::Int8, layout().fingerprint());
        assert_eq!(client.store(&[block], Ack::Primary).await, Ok(vec![kept(1)]));
        node.settles("a frame is free again", |stats| stats.device.used_bytes < (8 * 64 * KIB) as u64).await;
    }
    is_settled(&node).await;
    assert!(node.shard_stats().await.host.blocks > 0);
    let stage = kvhive_gpu::cuda::Stage::new(&own_gpu(), 64 * KIB).expect("there is room");
    let loan = stage.loan();
    let loan = StageLoan { handle: loan.handle, offset: loan.offset, bytes: loan.bytes };
    let offer = client.offered().await;
    let mut visit = Visit::lend(&offer, &loan, LIMIT).await.expect("it listens");
    visit.taken(LIMIT).await.expect("it is one");

    let (plane, long) = (&node.plane, Instant::now() + Duration::from_secs(60));
    let mut turns = Vec::new();
    while turns.len() < BRINGING_PLACES {
        let turn = plane.device_turn(client.device, TenantId(9), 64 << 30, long).await;
        turns.push(turn.expect("nobody wants it"));
    }
    let room = plane.decoding.available_permits() as u32;
    let _room = plane.decoding.acquire_many(room).await.expect("it is never closed");
    client.left = Some(Duration::from_millis(20));
    for number in 0..24 {
        let DataRequest::Fetch(fetch) = client.fetch_request(&[number]) else { unreachable!("it is one") };
        let request = StagedFetch { stage: offer.pass, at: vec![0], fetch };
        let refused = client.over(&DataRequest::Scatter(Box::new(request))).await;
        assert_eq!(refused.err(), Some(WireError::Deadline), "{number}");
    }
}
