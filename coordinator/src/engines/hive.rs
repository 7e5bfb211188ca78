//! What kvhive itself has of a prompt: asked of the nodes, as a client asks, without using or holding anything.

use kvhive_client::{Client, ClientConfig, ClientError, NodeTraces, Prefix};
use kvhive_control::routing::Piece;
use kvhive_protocol::TraceContext;
use kvhive_protocol::engines::{Engine, EngineBlocks, NamedBy};
use kvhive_protocol::routing::Prompt;
use kvhive_protocol::trace::TraceAsk;
use kvhive_wire::Tls;
use std::time::Duration;
use tokio::sync::OnceCell;

/// A route does not wait longer for the nodes.
const LIMIT: Duration = Duration::from_millis(250);

/// The way to kvhive's own blocks.
pub(super) struct Hive {
    config: ClientConfig,
    client: OnceCell<Client>,
}

/// What kvhive has of a prompt, by the node that has it.
pub(super) struct Held {
    stretches: Vec<(Piece, String)>,
}

impl Held {
    /// Returns how many tokens of it are covered.
    pub(super) fn tokens(&self) -> u64 {
        self.stretches.iter().map(|(piece, _)| piece.tokens).sum()
    }

    /// Returns what it has, for an engine that is on the host of `node`.
    pub(super) fn seen_from(&self, node: Option<&str>) -> Vec<Piece> {
        let seen = |(piece, owner): &(Piece, String)| Piece { is_local: node == Some(owner), ..*piece };
        self.stretches.iter().map(seen).collect()
    }
}

impl Hive {
    pub(super) fn new(coordinators: Vec<String>, token: Vec<u8>, tls: Option<Tls>) -> Hive {
        let config = ClientConfig {
            connect_timeout: LIMIT,
            request_timeout: LIMIT,
            tls,
            ..ClientConfig::new(coordinators, token)
        };
        Hive { config, client: OnceCell::new() }
    }

    /// Looks up what kvhive has of a prompt of an engine that names its blocks so. What could not be looked at is said in words.
    pub(super) async fn held(
        &self,
        engine: &Engine,
        blocks: &EngineBlocks,
        asked: (&Prompt, Option<TraceContext>),
    ) -> Result<Held, String> {
        let looked = tokio::time::timeout(LIMIT, self.look(engine, blocks, asked)).await;
        looked.unwrap_or_else(|_| Err(format!("kvhive's nodes did not answer within {LIMIT:?}")))
    }

    async fn client(&self) -> Result<&Client, String> {
        self.client.get_or_try_init(|| Client::connect(self.config.clone())).await.map_err(said)
    }

    /// Asks the nodes what they have kept of traced requests.
    pub(super) async fn traces(&self, ask: TraceAsk) -> Result<Vec<NodeTraces>, String> {
        Ok(self.client().await?.traces(ask).await)
    }

    async fn look(
        &self,
        engine: &Engine,
        blocks: &EngineBlocks,
        (prompt, trace): (&Prompt, Option<TraceContext>),
    ) -> Result<Held, String> {
        let client = self.client().await?;
        let map = client.map();
        // A tenant that is newer than the map known here.
        let map = match map.tenants.contains_key(&engine.tenant) {
            true => map,
            false => client.refresh().await.map_err(said)?,
        };
        let tenant = map.tenants.get(&engine.tenant).map_or("", |tenant| &tenant.name);
        let namespace = client.namespace(tenant, &engine.model, blocks.layout, blocks.rank).map_err(said)?;
        let namespace = match trace {
            Some(trace) => namespace.traced(trace),
            None => namespace,
        };
        let prefix: Prefix = match (blocks.named_by, prompt) {
            (NamedBy::Tokens, Prompt::Tokens { tokens, adapter, salt }) => {
                let extras: Vec<&[u8]> =
                    [adapter, salt].into_iter().flatten().map(|extra| extra.as_bytes()).collect();
                namespace.keys_with(tokens, &extras)
            }
            (NamedBy::Hashes, Prompt::Hashes { hashes, .. }) => {
                let hashes: Vec<&[u8]> = hashes.iter().map(|hash| &hash.0[..]).collect();
                namespace.prefix_of_engine_hashes(&hashes)
            }
            (NamedBy::Tokens, Prompt::Hashes { .. }) => {
                return Err(
                    "kvhive was not asked: its blocks are named by tokens, and hashes were given".to_owned()
                );
            }
            (NamedBy::Hashes, Prompt::Tokens { .. }) => {
                return Err(
                    "kvhive was not asked: its blocks are named by the engine's hashes, of which none is known, and tokens were given"
                        .to_owned(),
                );
            }
        };
        let survey = namespace.survey(&prefix).await.map_err(said)?;
        let tokens = |blocks_of: usize| blocks_of as u64 * u64::from(blocks.layout.tokens);
        let stretches = survey.stretches.iter().map(|stretch| {
            let owner = map.members.get(&stretch.member).map(|member| member.name.clone());
            let (tokens, in_memory) = (tokens(stretch.blocks), tokens(stretch.in_memory));
            (Piece { tokens, in_memory, is_local: false }, owner.unwrap_or_default())
        });
        Ok(Held { stretches: stretches.collect() })
    }
}

fn said(error: ClientError) -> String {
    format!("kvhive's nodes could not be asked: {error}")
}
