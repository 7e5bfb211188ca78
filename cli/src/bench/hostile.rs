//! What those who mean no good cost a node in memory: connections that say nothing, readers that do not read, and frames that claim more than
//! there is. Next to what its configuration says it takes.

use super::Row;
use super::memory::{configured_bytes, figure, resident_bytes};
use super::private::{Private, one_device};
use super::stored::{BLOCK_BYTES, BLOCKS};
use crate::commands;
use anyhow::{Context, Result, bail};
use kvhive_client::{Client, StoreOptions};
use kvhive_protocol::data::{Accept, DataReply, DataRequest, FetchRequest, Run};
use kvhive_protocol::frame::{FRAME_HEADER_BYTES, Kind, encode_frame};
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::number::timed;
use kvhive_protocol::{DeviceId, Layout, Levels, Slot};
use kvhive_wire::{Connection, Fault, Identity};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Connections that have shown the token and say nothing more.
const IDLE: usize = 10_000;
/// Those that ask for everything and read nothing.
const SLOW: usize = 1_000;
/// Frames whose header says that 4 GiB follow.
const CLAIMS: usize = 100_000;
/// Connections that the node takes: all of these at once, and some.
const CONNECTIONS: usize = IDLE + SLOW + 256;
/// Files that each end of them opens: those and what a process has besides.
const FILES: u64 = CONNECTIONS as u64 + 512;
const PREFIXES: u64 = 512;
/// How often a connection is tried for.
const TRIES: u32 = 100;
/// Who comes at a time.
const AT_ONCE: usize = 32;
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long slow readers stay: until each had its turn, as one that does not read keeps none.
const STAY: Duration = Duration::from_secs(15);

pub(super) fn run() -> Result<Vec<Row>> {
    // Before the node starts: it has the same limit.
    if let Some(limit) = raised(getrlimit(Resource::Nofile))? {
        setrlimit(Resource::Nofile, limit)
            .with_context(|| format!("this process cannot open {FILES} files"))?;
    }
    let private = Private::start_with(
        one_device(PREFIXES * BLOCKS as u64 * BLOCK_BYTES * 5 / 4, BLOCK_BYTES),
        |config| {
            let over = |id: &str| {
                format!("KVHIVE_NODE__{}__MAX_CONNECTIONS", id.to_ascii_uppercase().replace('-', "_"))
            };
            config.nodes.iter().map(|node| (over(&node.id), CONNECTIONS.to_string())).collect()
        },
    )?;
    let runtime = commands::runtime()?;
    runtime.block_on(measure(&private))
}

/// Returns the limit of open files that is to be set, where it is too low.
fn raised(limit: Rlimit) -> Result<Option<Rlimit>> {
    if limit.current.is_none_or(|files| files >= FILES) {
        return Ok(None);
    }
    if let Some(most) = limit.maximum.filter(|most| *most < FILES) {
        bail!("{FILES} files are opened, and {most} may be: raise the hard limit (ulimit -Hn, LimitNOFILE=)");
    }
    Ok(Some(Rlimit { current: Some(FILES), ..limit }))
}

async fn measure(private: &Private) -> Result<Vec<Row>> {
    let client = private.client(|_| {}).await?;
    let target = Arc::new(Target::of(&client, private).await?);
    let pid = *private.node_pids().first().context("there is one node")?;
    let configured = tokio::task::block_in_place(|| configured_bytes(&client))?;
    let row =
        |case: &str, most: f64| Row::of_runs(case, "bytes", &[most], &[configured], "memory as configured");
    let mut rows = Vec::new();
    let (idle, most) = watched(pid, connect(&target, IDLE)).await?;
    rows.push(row("resident-10000-idle-connections", most));
    let ((), most) = watched(pid, slow_readers(&target)).await?;
    rows.push(row("resident-1000-slow-readers-too", most));
    let ((), most) = watched(pid, claims(&target)).await?;
    rows.push(row("resident-100000-claims-of-4GiB-too", most));
    let open = tokio::task::block_in_place(|| figure(&client, "kvhive_node_open_connections"))?;
    if open < IDLE as f64 {
        bail!("{open} of {IDLE} idle connections stand");
    }
    drop(idle);
    Ok(rows)
}

/// Whom it is all done to.
struct Target {
    address: String,
    identity: Identity,
    fetch: DataRequest,
}

impl Target {
    /// Fills the node, and makes the request for many of its blocks.
    async fn of(client: &Client, private: &Private) -> Result<Target> {
        let blocks = client.namespace("default", "bench", Layout::opaque(BLOCK_BYTES as u32, 16), 0)?;
        let memory = vec![5u8; BLOCK_BYTES as usize];
        let mut keys = Vec::new();
        for number in 0..PREFIXES {
            let hashes: Vec<[u8; 16]> =
                (0..BLOCKS as u128).map(|at| (u128::from(number) << 64 | at).to_le_bytes()).collect();
            let prefix = blocks.prefix_of_engine_hashes(&hashes);
            let pieces = vec![&memory[..]; BLOCKS];
            let report = blocks.store(&prefix, 0..BLOCKS, &pieces, StoreOptions::default()).await?;
            if report.acknowledged() != BLOCKS {
                bail!("{} of {BLOCKS} blocks were stored: {:?}", report.acknowledged(), report.outcomes);
            }
            keys.extend_from_slice(prefix.keys());
        }
        // 16 MiB for each who asks.
        keys.truncate(256);
        let map = client.map();
        let (member, node) = map.members.iter().next().context("there is one node")?;
        let (tenant, _) =
            map.tenants.iter().find(|(_, it)| it.name == "default").context("there is one tenant")?;
        let fetch = DataRequest::Fetch(FetchRequest {
            epoch: map.epoch,
            device: DeviceId::new(*member, 0),
            tenant: *tenant,
            runs: vec![Run { slot: Slot(0), keys: keys.len() as u32 }],
            keys: keys.iter().collect(),
            accept: Accept::Stored,
        });
        let token = TokenKey::new(&private.client_config()?.token);
        let identity = Identity {
            token,
            role: Role::Client,
            sender: 0,
            cluster: None,
            tls: None,
            levels: Levels::default(),
        };
        Ok(Target { address: node.data_address.clone(), identity, fetch })
    }

    async fn connect(&self) -> Result<Connection, Fault> {
        Connection::connect(&self.address, &self.identity, LIMIT).await.map(|(connection, _)| connection)
    }
}

/// Does something, and says how large the node was at most meanwhile.
async fn watched<T>(pid: u32, work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let (most, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (told, ended) = (most.clone(), ends.clone());
    let watch = tokio::spawn(async move {
        while !ended.load(Ordering::Relaxed) {
            told.fetch_max(resident_bytes(pid)? as u64, Ordering::Relaxed);
            sleep(LOOK_EVERY).await;
        }
        anyhow::Ok(())
    });
    let done = work.await;
    ends.store(true, Ordering::Relaxed);
    watch.await??;
    let done = done?;
    Ok((done, most.load(Ordering::Relaxed).max(resident_bytes(pid)? as u64) as f64))
}

/// Makes so many connections that have shown the token.
async fn connect(target: &Arc<Target>, wanted: usize) -> Result<Vec<Connection>> {
    let mut all = Vec::with_capacity(wanted);
    let mut coming = JoinSet::new();
    while all.len() < wanted {
        while coming.len() < AT_ONCE && all.len() + coming.len() < wanted {
            let target = target.clone();
            coming.spawn(async move {
                // A door that is full for a moment opens again.
                for _ in 1..TRIES {
                    if let Ok(connection) = target.connect().await {
                        return Ok(connection);
                    }
                    sleep(Duration::from_millis(100)).await;
                }
                target.connect().await
            });
        }
        let one = coming.join_next().await.context("some are coming")??;
        all.push(one.with_context(|| format!("{} connections stand, and no more are taken", all.len()))?);
    }
    Ok(all)
}

/// Has many ask for 16 MiB each, of which they read nothing for a while; then most of them must have been sent blocks.
async fn slow_readers(target: &Arc<Target>) -> Result<()> {
    let mut readers = connect(target, SLOW).await?;
    // Time enough for each to have its turn: without a word of it half of them would be refused.
    let number = timed(0, LIMIT);
    for reader in &mut readers {
        reader.send(Kind::DataRequest, number, &target.fetch, &[]).await?;
    }
    sleep(STAY).await;
    let (until, mut sent, mut last) = (Instant::now() + LIMIT, 0, None);
    for reader in &mut readers {
        match timeout_at(until, reader.receive_answer::<DataReply>(Kind::DataReply, number)).await {
            // The beginning has come; the rest waits at the node.
            Ok(Ok(_)) if reader.payload_left() > 0 => sent += 1,
            Ok(Ok(reply)) => last = Some(format!("{reply:?} without a block")),
            Ok(Err(fault)) => last = Some(fault.to_string()),
            Err(_) => last = Some(format!("no answer within {LIMIT:?}")),
        }
    }
    if sent < SLOW * 9 / 10 {
        bail!("{sent} of {SLOW} slow readers were sent blocks; another had: {}", last.unwrap_or_default());
    }
    Ok(())
}

/// Sends headers of messages of 4 GiB, each on a connection of its own: the node says what is wrong with it, and ends it.
async fn claims(target: &Arc<Target>) -> Result<()> {
    let mut header = Vec::new();
    encode_frame(Kind::Hello, 0, &(), 0, &mut header)?;
    header.truncate(FRAME_HEADER_BYTES);
    header[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let header: Arc<[u8]> = header.into();
    let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut claiming = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (target, header, sent, answered) =
            (target.clone(), header.clone(), sent.clone(), answered.clone());
        claiming.spawn(async move {
            while sent.fetch_add(1, Ordering::Relaxed) < CLAIMS as u64 {
                let claimed = timeout(LIMIT, claim(&target.address, &header)).await;
                let is_answered = claimed.context("the node answers no claim in time")??;
                answered.fetch_add(u64::from(is_answered), Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(one) = claiming.join_next().await {
        one??;
    }
    // The door may have been full for some.
    let answered = answered.load(Ordering::Relaxed);
    if answered < CLAIMS as u64 * 9 / 10 {
        bail!("{answered} of {CLAIMS} claims were read and answered");
    }
    Ok(())
}

/// Says whether it was answered.
async fn claim(address: &str, header: &[u8]) -> Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    // The port is free again at once: there are fewer than claims.
    stream.set_zero_linger()?;
    let mut answer = Vec::new();
    // A door that is full may have ended it before.
    if stream.write_all(header).await.is_ok() {
        let _ = stream.read_to_end(&mut answer).await;
    }
    Ok(!answer.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_let_be_opened_as_many_as_there_are_connections_or_the_limit_is_named() {
        let limit = |current, maximum| Rlimit { current, maximum };
        let plenty = [limit(None, None), limit(Some(FILES), Some(FILES))];
        for enough in plenty {
            assert!(raised(enough).expect("it is enough").is_none());
        }
        for most in [None, Some(FILES), Some(2 * FILES)] {
            let set = raised(limit(Some(1024), most)).expect("it may be raised").expect("it is too low");
            assert_eq!((set.current, set.maximum), (Some(FILES), most));
        }
        let refused = raised(limit(Some(1024), Some(4096))).expect_err("it may not be raised").to_string();
        assert!(refused.contains("4096 may be"), "{refused}");
    }
}
