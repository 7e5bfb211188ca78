//! Commits to a running etcd for a while, from so many clients side by side, each waiting for its own. Prints the commits a
//! second and the 99th percentile of their latency in milliseconds: what `kvhive bench metadata --baseline` reads.

use anyhow::{Context, Result};
use clap::Parser;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// Commit to etcd as `kvhive bench metadata` commits to coordinators
#[derive(Parser)]
struct Args {
    /// Client URLs of all members
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// Clients side by side
    #[arg(long)]
    proposers: u32,
    /// How long
    #[arg(long)]
    seconds: f64,
    /// Bytes of a value
    #[arg(long)]
    value_bytes: usize,
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// `etcdserverpb.StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// `etcdserverpb.ResponseHeader`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member: u64,
}

/// `etcdserverpb.StatusResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

async fn connect(endpoint: &str) -> Result<Grpc<Channel>> {
    let channel = Channel::from_shared(endpoint.to_owned())?.tcp_nodelay(true).connect().await;
    Ok(Grpc::new(channel.with_context(|| format!("cannot connect to {endpoint}"))?))
}

async fn ask<Q, A>(to: &mut Grpc<Channel>, method: &'static str, question: Q) -> Result<A>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    to.ready().await?;
    let path = PathAndQuery::from_static(method);
    let answer = to.unary(tonic::Request::new(question), path, ProstCodec::<Q, A>::default()).await;
    Ok(answer.with_context(|| method.to_owned())?.into_inner())
}

/// Returns the URL of the member that leads: whoever else is asked passes it on.
async fn leader(endpoints: &[String]) -> Result<String> {
    for endpoint in endpoints {
        let mut to = connect(endpoint).await?;
        let status: StatusResponse =
            ask(&mut to, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        if status.header.is_some_and(|header| header.member == status.leader) {
            return Ok(endpoint.clone());
        }
    }
    anyhow::bail!("none of {endpoints:?} leads")
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let leader = leader(&args.endpoints).await?;
    let limit = Duration::from_secs_f64(args.seconds);
    let mut clients = Vec::new();
    for _ in 0..args.proposers {
        clients.push(connect(&leader).await?);
    }
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, mut to) in clients.into_iter().enumerate() {
        let value = vec![b'v'; args.value_bytes];
        tasks.spawn(async move {
            let mut latencies = Histogram::<u64>::new(3)?;
            while begun.elapsed() < limit {
                let asked = Instant::now();
                // The same keys again and again, as a map that changes.
                let key = format!("change-{number}").into_bytes();
                let put = PutRequest { key, value: value.clone() };
                ask::<_, PutResponse>(&mut to, "/etcdserverpb.KV/Put", put).await?;
                latencies.record(asked.elapsed().as_nanos() as u64)?;
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(done) = tasks.join_next().await {
        all.add(done??)?;
    }
    let rate = all.len() as f64 / begun.elapsed().as_secs_f64();
    println!("{rate:.1} {:.4}", all.value_at_quantile(0.99) as f64 / 1e6);
    Ok(())
}
