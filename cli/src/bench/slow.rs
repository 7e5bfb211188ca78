//! What one slow replica does to reads: fetches from two nodes that both hold everything, with and without a tenth of a second
//! added to whatever one of them says.

use super::private::{Private, one_device};
use super::stored::{BLOCK_BYTES, BLOCKS, Stored};
use super::{Bar, Row, quantile};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Context, Result};
use kvhive_config::LocalShape;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const PREFIXES: u64 = 64;
/// Fetches of one run.
const FETCHES: usize = 1000;
const ADDED: Duration = Duration::from_millis(100);
/// Of the 99th percentile without it.
const TAIL: Bar = Bar::AtMost(2.0);
/// Where the second node is said to be. It is not: the proxy is.
const PROXY_HOST: &str = "127.0.0.2";
/// Bytes on their way through the proxy, in pieces: more are not read before some have left.
const PIECES: usize = 256;
const PIECE_BYTES: usize = 64 << 10;

pub(super) fn run(runs: u32) -> Result<Row> {
    let runtime = commands::runtime()?;
    let mut behind = None;
    let private = Private::start_with(
        LocalShape {
            nodes: 2,
            replicas: 2,
            ..one_device(PREFIXES * BLOCKS as u64 * BLOCK_BYTES * 2, BLOCK_BYTES)
        },
        |config| {
            let Some(node) = config.nodes.get(1) else { return Vec::new() };
            behind = Some(node.data);
            let over = |key: &str, value: String| {
                let id = node.id.to_ascii_uppercase().replace('-', "_");
                (format!("KVHIVE_NODE__{id}__{key}"), value)
            };
            let metrics = format!("{PROXY_HOST}:{}", node.metrics.port());
            vec![over("HOST", PROXY_HOST.to_owned()), over("METRICS", metrics)]
        },
    )?;
    let behind = behind.context("the cluster file was made")?;
    let delay = Arc::new(AtomicU64::new(0));
    runtime.block_on(proxy(behind, delay.clone()))?;
    let client = runtime.block_on(private.client(|_| {}))?;
    let mut stored = Stored::new(&client, PREFIXES)?;
    runtime.block_on(stored.store())?;
    let (mut ours, mut healthy) = (Vec::new(), Vec::new());
    let mut calls = Latencies::new();
    for _ in 0..runs {
        delay.store(0, Ordering::Relaxed);
        healthy.push(millis(&runtime.block_on(fetches(&mut stored))?));
        delay.store(ADDED.as_millis() as u64, Ordering::Relaxed);
        let slow = runtime.block_on(fetches(&mut stored))?;
        ours.push(millis(&slow));
        calls.merge(&slow);
    }
    tracing::info!(stats = ?client.stats(), "readers of a slow replica");
    let row = Row::of_runs("fetch-slow-replica-p99", "ms p99", &ours, &healthy, "the same without the delay");
    Ok(row.with_calls(calls.quantile(0.5) as f64 / 1e6, quantile(&ours, 0.99)).with_bar(TAIL))
}

fn millis(latencies: &Latencies) -> f64 {
    latencies.quantile(0.99) as f64 / 1e6
}

async fn fetches(stored: &mut Stored) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    for at in 0..FETCHES {
        stored.fetch(at, &mut latencies).await?;
    }
    Ok(latencies)
}

/// Stands before the node at `behind`: what that one says arrives `delay` milliseconds later.
async fn proxy(behind: SocketAddr, delay: Arc<AtomicU64>) -> Result<()> {
    let address = format!("{PROXY_HOST}:{}", behind.port());
    let listener =
        TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let delay = delay.clone();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(behind).await else { return };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (from_near, to_near) = near.into_split();
                let (from_far, to_far) = far.into_split();
                tokio::join!(pump(from_near, to_far, None), pump(from_far, to_near, Some(delay)));
            });
        }
    });
    Ok(())
}

/// Moves bytes until one end is closed.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Option<Arc<AtomicU64>>,
) {
    let (sender, mut pieces) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(PIECES);
    let reads = async move {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(read @ 1..) = from.read(&mut piece).await {
            let wait = delay.as_ref().map_or(0, |delay| delay.load(Ordering::Relaxed));
            let due = tokio::time::Instant::now() + Duration::from_millis(wait);
            if sender.send((due, piece[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writes = async move {
        while let Some((due, piece)) = pieces.recv().await {
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reads, writes);
}
