//! Block events for others: what the cluster holds, published as vLLM publishes what an engine's cache holds, so that whoever reads the
//! one reads the other. Every coordinator that is told to has a stream of its own; the nodes are asked, as by any follower.

mod encode;
mod ledger;
mod names;
mod serve;
mod stream;

use crate::config::{CoordinatorConfig, CoordinatorError};
use crate::engines::{Heard, format};
use kvhive_client::{BlockWatch, Client, ClientConfig};
use kvhive_protocol::engines::Engine;
use kvhive_protocol::{ClusterMap, Namespace};
use kvhive_runtime::Runtime;
use names::{Names, Place};
use std::time::Duration;
use stream::Stream;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info};

/// How often the nodes are asked.
const EVERY: Duration = Duration::from_millis(100);
/// The wait before coordinators that did not answer are asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Where block events are published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockEventsConfig {
    /// Where they are published.
    pub listen: std::net::SocketAddr,
    /// Where they are repeated; none repeats none.
    pub replay: Option<std::net::SocketAddr>,
    /// Under which topic.
    pub topic: String,
}

/// What publishes block events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher(Stream);

impl Publisher {
    /// Publishes until `stop` what the nodes say, by the names that `engines` give their blocks; none where the setup asks for none.
    ///
    /// # Errors
    /// When an address is not to be had.
    pub(crate) fn open(
        config: &CoordinatorConfig,
        runtime: &Runtime,
        coordinators: &[String],
        engines: mpsc::UnboundedReceiver<Heard>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Option<Publisher>, CoordinatorError> {
        let Some(own) = &config.block_events else { return Ok(None) };
        let listen = |address| {
            let listening = runtime.listen(address).map(|(listener, _)| listener);
            listening.map_err(|cause| CoordinatorError::Listen { address, cause })
        };
        let stream = Stream::new(&own.topic);
        let io = runtime.io();
        io.spawn(serve::publish(listen(own.listen)?, stream.clone(), stop.clone()));
        if let Some(replay) = own.replay {
            io.spawn(serve::repeat(listen(replay)?, stream.clone(), stop.clone()));
        }
        let client = ClientConfig {
            tls: config.tls.clone(),
            ..ClientConfig::new(coordinators.to_vec(), config.token.clone())
        };
        let (of, mut stop) = (stream.clone(), stop.clone());
        io.spawn(async move {
            tokio::select! {
                () = follow(client, &of, engines) => {}
                () = kvhive_runtime::stopped(&mut stop) => {}
            }
        });
        Ok(Some(Publisher(stream)))
    }

    /// Returns how many blocks are told of, and how many batches were published.
    pub(crate) fn figures(&self) -> (u64, u64) {
        self.0.figures()
    }
}

/// Asks the nodes again and again, and publishes what has changed.
async fn follow(config: ClientConfig, stream: &Stream, mut engines: mpsc::UnboundedReceiver<Heard>) {
    let (client, mut watch) = loop {
        match begin(&config).await {
            Ok(begun) => break begun,
            Err(error) => {
                debug!(%error, "block events cannot be followed yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    info!(topic = %stream.topic, "publishing block events");
    let mut names = Names::default();
    let mut turn = tokio::time::interval(EVERY);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // What an engine calls a block is known before its block is told of.
            biased;
            Some(heard) = engines.recv() => {
                learn(&mut names, &client.map(), &heard);
                // Of blocks that were quicker here than what their engine says of them.
                stream.name(&names.fresh(), &names);
            }
            _ = turn.tick() => {
                let report = watch.poll().await;
                for (device, fault) in &report.failed {
                    debug!(%device, %fault, "it did not say what it holds");
                }
                stream.take(&watch.changes(), &names);
            }
        }
    }
}

async fn begin(config: &ClientConfig) -> Result<(Client, BlockWatch), kvhive_client::ClientError> {
    let client = Client::connect(config.clone()).await?;
    let watch = client.watch_blocks(None)?.noting();
    Ok((client, watch))
}

fn learn(names: &mut Names, map: &ClusterMap, heard: &Heard) {
    let engine = &heard.engine;
    let Some(place) = place(engine, map) else { return };
    let read = format::stored(&heard.payload, engine.block_tokens, |blocks| {
        names.learn(&engine.name, &place, blocks)
    });
    if let Err(error) = read {
        debug!(engine = %engine.name, %error, "its names cannot be read");
    }
}

/// Returns how an engine's blocks are named here, where one of its blocks is one of ours.
fn place(engine: &Engine, map: &ClusterMap) -> Option<Place> {
    let blocks = engine.blocks.as_ref().filter(|blocks| blocks.layout.tokens == engine.block_tokens)?;
    let (tenant, known) = map.pool_of(engine.tenant)?;
    let (layout, rank, named_by) = (blocks.layout, blocks.rank, blocks.named_by);
    let namespace = Namespace { tenant_secret: known.secret, model: engine.model.clone(), layout, rank };
    Some(Place { tenant, key: namespace.key(), named_by })
}
