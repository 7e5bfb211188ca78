//! Clients that store and fetch blocks that name themselves, and compare every byte that comes with what may come.

use super::holders::Holders;
use super::shared::Shared;
use anyhow::{Context, Result, bail};
use kvhive_client::{
    Client, ClientConfig, FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome,
};
use kvhive_oracle::Label;
use kvhive_oracle::{Answer, Random, payload};
use kvhive_protocol::data::Ack;
use kvhive_protocol::{BlockHeader, BlockKey, Layout, PinMode, Reason, Slot};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Bytes of a block.
pub(super) const BLOCK: usize = 16 << 10;
/// Blocks of a prefix.
pub(super) const DEPTH: usize = 8;
/// The longest a read may take.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(2);
/// What it may take longer than that.
const LATE_AFTER: Duration = Duration::from_millis(100);
/// A read that has not ended by then is given up, and is late.
const NEVER: Duration = Duration::from_secs(10);
/// How long clients may go on when the run has ended.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Tenants of a run.
pub(super) const TENANTS: u16 = 3;
/// Its blocks are pinned, acknowledged by every replica and looked for after each fault.
pub(super) const KEPT: u16 = 0;
/// More blocks than memory has room for: they go to disk and come back.
const CHURN: u16 = 1;
/// It is cleared again and again.
const CLEARED: u16 = 2;
/// Prefixes of each tenant.
pub(super) const PREFIXES: [u32; TENANTS as usize] = [24, 128, 32];
const READERS: u64 = 3;
const WRITERS: u64 = 2;
/// The longest that a reader, and a writer, rests between calls, in milliseconds: faults are to be met by the cluster, not by a machine that
/// has no time left for it.
const READ_EVERY_MS: u64 = 60;
const STORE_EVERY_MS: u64 = 60;
/// How long a block that does not come is tried for until it is lost.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long a promised block that does not come is asked for again and again.
const GAP_LIMIT: Duration = Duration::from_secs(30);
/// A gap of which more is told than how long it was.
const TOLD_GAP: Duration = Duration::from_millis(200);
pub(super) const AGAIN: Duration = Duration::from_millis(20);
/// Between clears, in milliseconds.
const CLEAR_EVERY_MS: (u64, u64) = (1500, 5000);
/// How long a change may take after a coordinator was hit.
const BEAT_LIMIT: Duration = Duration::from_secs(30);

/// How long a clear is tried for that somebody waits for.
pub(super) const CLEAR_LIMIT: Duration = Duration::from_secs(30);

/// Asks for a clear, answered with whether it was acknowledged.
pub(super) type Clears = mpsc::Sender<oneshot::Sender<bool>>;

/// Clients that go on.
pub(super) struct Clients(Vec<(&'static str, JoinHandle<()>)>);

impl Clients {
    /// Waits until they have ended, as the run has; one that has not in time, or that panicked, is told.
    pub(super) async fn end(self, shared: &Shared) {
        self.end_within(END_LIMIT, shared).await;
    }

    async fn end_within(self, limit: Duration, shared: &Shared) {
        let until = tokio::time::Instant::now() + limit;
        for (what, mut client) in self.0 {
            match tokio::time::timeout_at(until, &mut client).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.found(format!("a {what} failed: {error}")),
                Err(_) => {
                    client.abort();
                    shared.found(format!("a {what} did not end within {limit:?}"));
                }
            }
        }
    }
}

/// The clients of a run.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) shared: Arc<Shared>,
    client: Client,
    config: ClientConfig,
    blocks: Arc<Vec<NamespaceClient>>,
    keys: Arc<HashMap<BlockKey, (u16, u32, u16)>>,
    /// Where each promised block lives.
    pub(super) homes: Arc<BTreeMap<(u32, u16), Slot>>,
    slots: Arc<BTreeSet<Slot>>,
}

/// Returns a tenant's name.
fn tenant_name(seed: u64, tenant: u16) -> String {
    format!("torture-{seed}-{}", ["kept", "churn", "cleared"][usize::from(tenant)])
}

/// Returns what everything in a run is called with first.
pub(super) fn family(seed: u64) -> String {
    format!("torture-{seed}-")
}

fn prefix(blocks: &NamespaceClient, name: u32) -> Prefix {
    let hashes: Vec<[u8; 16]> =
        (0..DEPTH as u128).map(|at| (u128::from(name) << 64 | at).to_le_bytes()).collect();
    blocks.prefix_of_engine_hashes(&hashes)
}

impl Load {
    /// Makes the tenants, pins what is kept, and stores it until every replica has acknowledged it.
    ///
    /// # Errors
    /// When the cluster does not take it.
    pub(super) async fn begin(shared: &Arc<Shared>, config: ClientConfig) -> Result<Load> {
        let client = Client::connect(config.clone()).await?;
        for tenant in 0..TENANTS {
            client.ensure_tenant(&tenant_name(shared.seed, tenant), None).await?;
        }
        let blocks = Load::open(&client, shared.seed)?;
        let mut keys = HashMap::new();
        for (tenant, blocks) in blocks.iter().enumerate() {
            for name in 0..PREFIXES[tenant] {
                let prefix = prefix(blocks, name);
                keys.extend(
                    prefix
                        .keys()
                        .iter()
                        .enumerate()
                        .map(|(at, key)| (*key, (tenant as u16, name, at as u16))),
                );
            }
        }
        let map = client.map();
        let replicas = map.settings.replicas;
        let segment = (map.settings.segment_blocks as usize).max(1);
        let mut homes = BTreeMap::new();
        for name in 0..PREFIXES[usize::from(KEPT)] {
            let prefix = prefix(&blocks[usize::from(KEPT)], name);
            let home = |at: usize| prefix.keys()[at / segment * segment].slot();
            homes.extend((0..DEPTH).map(|at| ((name, at as u16), home(at))));
        }
        let slots: BTreeSet<Slot> = homes.values().copied().collect();
        shared.know(TENANTS, replicas, Holders::of(&map, &slots));
        let (homes, slots) = (Arc::new(homes), Arc::new(slots));
        let (blocks, keys) = (Arc::new(blocks), Arc::new(keys));
        let load = Load { shared: shared.clone(), client, config, blocks, keys, homes, slots };
        let begun = Instant::now();
        for name in 0..PREFIXES[usize::from(KEPT)] {
            let blocks = &load.blocks[usize::from(KEPT)];
            let pin = format!("{}kept-{name}", family(shared.seed));
            blocks.pin(&pin, &prefix(blocks, name), PinMode::Hard, Reason::default()).await?;
            while !load.keep(name).await {
                if begun.elapsed() > LOOK_LIMIT * 3 {
                    bail!(
                        "prefix {name} is not acknowledged by {replicas} replicas: the cluster is not whole to begin with"
                    );
                }
                tokio::time::sleep(AGAIN).await;
                load.catch_up().await;
            }
        }
        shared.say(&format!(
            "{} blocks are promised by {replicas} replicas each",
            shared.oracle().promised().len()
        ));
        Ok(load)
    }

    fn open(client: &Client, seed: u64) -> Result<Vec<NamespaceClient>> {
        let layout = Layout::opaque(BLOCK as u32, 16);
        let open = |tenant| client.namespace(&tenant_name(seed, tenant), "torture", layout, 0);
        (0..TENANTS).map(|tenant| open(tenant).context("a tenant that was made")).collect()
    }

    /// Returns the client that the run itself asks by.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the slots that promised blocks live in.
    pub(super) fn promised_slots(&self) -> &BTreeSet<Slot> {
        &self.slots
    }

    /// Names the tenant whose blocks are promised.
    pub(super) fn kept_tenant(&self) -> String {
        tenant_name(self.shared.seed, KEPT)
    }

    /// Names the tenants.
    pub(super) fn tenants(&self) -> Vec<String> {
        (0..TENANTS).map(|tenant| tenant_name(self.shared.seed, tenant)).collect()
    }

    /// Says which block of this run a header is of, if it is one's.
    pub(super) fn block_of(&self, header: &BlockHeader) -> Option<(u16, u32, u16)> {
        self.keys.get(&header.key).copied()
    }

    /// Starts readers, writers and whoever clears. Returns how to ask for a clear, and all of them.
    pub(super) fn spawn(&self, runtime: &tokio::runtime::Runtime) -> (Clears, Clients) {
        let random = Random::new(self.shared.seed);
        let mut clients = Vec::new();
        for reader in 0..READERS {
            let reads = self.clone().reads(random.part(100 + reader), reader);
            clients.push(("reader", runtime.spawn(reads)));
        }
        for writer in 0..WRITERS {
            clients.push(("writer", runtime.spawn(self.clone().writes(random.part(200 + writer)))));
        }
        clients.push(("writer", runtime.spawn(self.clone().keeps())));
        clients.push(("follower of the map", runtime.spawn(self.clone().follows())));
        let (sender, receiver) = mpsc::channel(4);
        clients.push(("caller of clears", runtime.spawn(self.clone().clears(random.part(300), receiver))));
        (sender, Clients(clients))
    }

    /// Reads at random until the run ends, by connections of its own.
    async fn reads(self, mut random: Random, number: u64) {
        // Of readers on this host every second one looks into the nodes' memory.
        let config = ClientConfig { shared_memory: number.is_multiple_of(2), ..self.config.clone() };
        let reader = match Client::connect(config).await {
            Ok(client) => Load::open(&client, self.shared.seed).map(|blocks| Load {
                blocks: Arc::new(blocks),
                client,
                ..self.clone()
            }),
            Err(error) => Err(error.into()),
        };
        let load = match reader {
            Ok(load) => load,
            Err(error) => return self.shared.found(format!("a reader could not connect: {error:#}")),
        };
        while !load.shared.is_ending() {
            // Half of all reads are of promised blocks.
            let tenant = [KEPT, KEPT, CHURN, CLEARED][random.below(4) as usize];
            let name = random.below(u64::from(PREFIXES[usize::from(tenant)])) as u32;
            let (begun, faults) = (Instant::now(), load.shared.faults_so_far());
            let came = load.fetch(tenant, name).await;
            if tenant == KEPT && load.is_short(name, &came) {
                load.measure_gap(name, begun, faults).await;
            }
            tokio::time::sleep(Duration::from_millis(random.below(READ_EVERY_MS))).await;
        }
    }

    /// Says whether a promised block is among those that did not come.
    pub(super) fn is_short(&self, name: u32, came: &[bool]) -> bool {
        let oracle = self.shared.oracle();
        came.iter().enumerate().any(|(at, came)| !came && oracle.is_promised(KEPT, name, at as u16))
    }

    /// Asks again until what is promised of a prefix comes, or it is given up, and notes how long that took.
    async fn measure_gap(&self, name: u32, begun: Instant, faults: usize) {
        let mut is_over = false;
        while !is_over && begun.elapsed() < GAP_LIMIT && !self.shared.is_ending() {
            tokio::time::sleep(AGAIN).await;
            let came = self.fetch(KEPT, name).await;
            is_over = !self.is_short(name, &came);
        }
        let gap = begun.elapsed();
        if gap > TOLD_GAP {
            let since = if is_over { "" } else { " and not yet" };
            self.shared
                .say(&format!("prefix {name} could not be read for {:.2} s{since}", gap.as_secs_f64()));
        }
        self.shared.gap(gap, faults);
    }

    /// Fetches a prefix, judges every block that comes, and says which came.
    pub(super) async fn fetch(&self, tenant: u16, name: u32) -> Vec<bool> {
        self.fetch_some(tenant, name, 0..DEPTH).await
    }

    /// The same of some of its blocks.
    async fn fetch_some(&self, tenant: u16, name: u32, places: Range<usize>) -> Vec<bool> {
        let wanted = places.len();
        let blocks = &self.blocks[usize::from(tenant)];
        let prefix = prefix(blocks, name);
        let mut memory = vec![0u8; BLOCK * wanted];
        let mut targets: Vec<&mut [u8]> = memory.chunks_mut(BLOCK).collect();
        let asked = self.shared.oracle().fetch_begins(tenant, name);
        let begun = self.shared.elapsed();
        let report =
            tokio::time::timeout(NEVER, blocks.fetch_into(&prefix, places.clone(), &mut targets)).await;
        let took = self.shared.elapsed() - begun;
        let outcomes = match report {
            Ok(Ok(report)) => report.outcomes,
            Err(_) => {
                self.shared.figures().late_reads += 1;
                self.shared
                    .found(format!("a read had not ended after {NEVER:?}, its limit is {READ_LIMIT:?}"));
                return vec![false; wanted];
            }
            Ok(Err(error)) => {
                self.shared.found(format!("a fetch is refused by the client: {error}"));
                return vec![false; wanted];
            }
        };
        if took > READ_LIMIT + LATE_AFTER + self.shared.lag_since(begun) {
            self.shared.figures().late_reads += 1;
            self.shared
                .found(format!("a read took {:.3} s, its limit is {READ_LIMIT:?}", took.as_secs_f64()));
        }
        let mut came = Vec::with_capacity(wanted);
        for ((at, outcome), block) in places.clone().zip(&outcomes).zip(memory.chunks(BLOCK)) {
            let is_there = matches!(outcome, FetchOutcome::Loaded(_));
            came.push(is_there);
            if !is_there {
                continue;
            }
            let read = payload::read(self.shared.seed, block);
            let answer = self.shared.oracle().judge(asked, at as u16, read);
            let mut figures = self.shared.figures();
            match answer {
                Answer::Right => continue,
                Answer::Stale(_) => figures.stale += 1,
                Answer::Foreign(_) | Answer::Damaged(_) => figures.wrong_bytes += 1,
            }
            drop(figures);
            self.shared.found(format!("block {at} of prefix {name} of tenant {tenant} is {answer}"));
        }
        if tenant == KEPT && wanted == DEPTH && self.is_short(name, &came) {
            let why: Vec<&FetchOutcome> =
                outcomes.iter().filter(|one| matches!(one, FetchOutcome::Missed(_))).collect();
            tracing::debug!(name, took_ms = took.as_millis() as u64, ?why, "a promised block did not come");
        }
        let verified = came.iter().filter(|came| **came).count() as u64;
        let mut figures = self.shared.figures();
        figures.reads_verified += verified;
        figures.misses += wanted as u64 - verified;
        drop(figures);
        came
    }

    /// Stores blocks of a prefix; says whether as many replicas as asked have acknowledged all of them.
    pub(super) async fn store(&self, tenant: u16, name: u32, places: Range<usize>, ack: Ack) -> bool {
        let blocks = &self.blocks[usize::from(tenant)];
        let prefix = prefix(blocks, name);
        let claims = self.claims(tenant, name, &places);
        let clears = self.shared.oracle().store_begins(tenant, name);
        let mut memory = vec![0u8; BLOCK * places.len()];
        for (at, block) in places.clone().zip(memory.chunks_mut(BLOCK)) {
            payload::fill(self.shared.seed, Label { tenant, at: at as u16, clears, name }, block);
        }
        let sources: Vec<&[u8]> = memory.chunks(BLOCK).collect();
        let options = StoreOptions { ack: Some(ack), ..StoreOptions::default() };
        let report = blocks.store(&prefix, places.clone(), &sources, options).await;
        let now = self.shared.now();
        let holders = self.shared.holders();
        let mut oracle = self.shared.oracle();
        oracle.store_ends(tenant, name, clears, now);
        let outcomes = report.map(|report| report.outcomes).unwrap_or_default();
        let mut acknowledged = 0;
        for (at, outcome) in places.clone().zip(&outcomes) {
            if let StoreOutcome::Acknowledged { copies, .. } = outcome {
                acknowledged += 1;
                // Whoever has acknowledged it may have left before this is known.
                let claim = claims.get(at - places.start).copied().flatten();
                if claim.is_some_and(|claim| holders.stands(claim)) {
                    oracle.promise(tenant, name, at as u16, *copies);
                }
            }
        }
        drop((holders, oracle));
        self.shared.figures().blocks_stored += acknowledged;
        acknowledged == places.len() as u64
    }

    /// Stores at random until the run ends.
    async fn writes(self, mut random: Random) {
        while !self.shared.is_ending() {
            let tenant = [CHURN, CLEARED][random.below(2) as usize];
            let name = random.below(u64::from(PREFIXES[usize::from(tenant)])) as u32;
            let ack = [Ack::Primary, Ack::Quorum, Ack::All][random.below(3) as usize];
            self.store(tenant, name, 0..DEPTH, ack).await;
            tokio::time::sleep(Duration::from_millis(random.below(STORE_EVERY_MS))).await;
        }
    }

    /// Clears a tenant now and then, and when it is asked to, one clear at a time.
    async fn clears(self, mut random: Random, mut asked: mpsc::Receiver<oneshot::Sender<bool>>) {
        let name = tenant_name(self.shared.seed, CLEARED);
        while !self.shared.is_ending() {
            let rest = Duration::from_millis(random.between(CLEAR_EVERY_MS.0, CLEAR_EVERY_MS.1));
            let asker = match tokio::time::timeout(rest, asked.recv()).await {
                Ok(None) => return,
                Ok(asker) => asker,
                Err(_) => None,
            };
            // Who asks waits for it; a clear that is not acknowledged in time is another one's to be asked again.
            let begun = Instant::now();
            let mut is_done = self.clear(&name).await;
            while !is_done && asker.is_some() && begun.elapsed() < CLEAR_LIMIT && !self.shared.is_ending() {
                tokio::time::sleep(AGAIN).await;
                is_done = self.clear(&name).await;
            }
            if let Some(asker) = asker {
                // Who asked may have given up.
                let _ = asker.send(is_done);
            }
            if is_done {
                // At once, from whoever would have them still.
                self.look_at_cleared().await;
            }
        }
    }

    /// Clears; says whether it was acknowledged.
    async fn clear(&self, name: &str) -> bool {
        self.shared.oracle().clear_begins(CLEARED, self.shared.now());
        let is_done = self.client.clear_tenant(name).await.is_ok();
        self.shared.oracle().clear_ends(CLEARED, is_done);
        self.shared.figures().clears += u64::from(is_done);
        is_done
    }

    /// Fetches everything of the tenant that is cleared.
    pub(super) async fn look_at_cleared(&self) {
        for name in 0..PREFIXES[usize::from(CLEARED)] {
            self.fetch(CLEARED, name).await;
        }
    }

    /// Fetches blocks, whatever comes.
    pub(super) async fn look(&self, blocks: &[(u16, u32, u16)]) {
        for (tenant, name, at) in blocks {
            let at = usize::from(*at);
            self.fetch_some(*tenant, *name, at..at + 1).await;
        }
    }

    /// Makes one change of the cluster's metadata; returns how long it took, or none when it could not be made in time.
    pub(super) async fn beat(&self) -> Option<Duration> {
        let blocks = &self.blocks[usize::from(KEPT)];
        let (begun, pin) = (Instant::now(), format!("{}beat", family(self.shared.seed)));
        while begun.elapsed() < BEAT_LIMIT {
            if blocks.pin(&pin, &prefix(blocks, 0), PinMode::Hard, Reason::default()).await.is_ok() {
                return Some(begun.elapsed());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_end_or_panics_is_found() {
        let shared = Shared::new(1, 1);
        let clients = Clients(vec![
            ("writer", tokio::spawn(async {})),
            ("reader", tokio::spawn(std::future::pending())),
            ("writer", tokio::spawn(async { panic!("on purpose") })),
        ]);
        clients.end_within(Duration::from_millis(50), &shared).await;
        let findings = shared.findings();
        assert_eq!(shared.figures().findings, 2);
        assert!(findings[0].contains("a reader did not end within 50ms"), "{findings:?}");
        assert!(findings[1].contains("a writer failed"), "{findings:?}");
    }
}
