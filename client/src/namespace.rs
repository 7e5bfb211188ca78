//! A namespace as its user sees it: names blocks; matching, fetching and storing are in files of their own.

use crate::client::{Client, Shared};
use crate::error::ClientError;
use crate::prefix::Prefix;
use crate::retry::in_time;
use kvhive_protocol::data::MAX_KEYS_PER_MATCH;
use kvhive_protocol::{BlockKey, Era, Layout, LayoutFingerprint, Namespace, NamespaceKey, TenantId};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Blocks of one tenant, model, layout and rank. Cheap to clone.
#[derive(Clone)]
pub struct NamespaceClient {
    client: Client,
    pub(crate) tenant: TenantId,
    key: Arc<NamespaceKey>,
    layout: Layout,
    pub(crate) fingerprint: LayoutFingerprint,
    pub(crate) block_bytes: u64,
    /// The longest a call may take; none for what the client's configuration says.
    limit: Option<Duration>,
}

impl NamespaceClient {
    pub(crate) fn new(
        client: Client,
        tenant: TenantId,
        secret: [u8; 32],
        model: &str,
        layout: Layout,
        rank: u32,
    ) -> Result<NamespaceClient, ClientError> {
        let block_bytes = layout.block_bytes().filter(|bytes| *bytes > 0 && layout.tokens > 0);
        let block_bytes = block_bytes
            .ok_or_else(|| ClientError::Misuse(format!("a block of {layout:?} has no usable size")))?;
        let namespace = Namespace { tenant_secret: secret, model: model.to_owned(), layout, rank };
        Ok(NamespaceClient {
            client,
            tenant,
            key: Arc::new(namespace.key()),
            layout,
            fingerprint: layout.fingerprint(),
            block_bytes,
            limit: None,
        })
    }

    /// Returns the layout of its blocks.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the bytes of one block.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Returns the same namespace for calls that may take `limit` and no longer: what [`Advice::recomputing`] says, for one.
    /// What has not arrived by then is a miss.
    ///
    /// [`Advice::recomputing`]: crate::Advice::recomputing
    pub fn within(&self, limit: Duration) -> NamespaceClient {
        NamespaceClient { limit: Some(limit), ..self.clone() }
    }

    /// Names every full block of `tokens`, from token 0.
    pub fn keys(&self, tokens: &[u32]) -> Prefix {
        Prefix::chained(self.key.prefix(tokens, self.layout.tokens, &[]))
    }

    /// As [`NamespaceClient::keys`], where something else changes the tensors too (adapter id, hashes of media).
    pub fn keys_with(&self, tokens: &[u32], extras: &[&[u8]]) -> Prefix {
        Prefix::chained(self.key.prefix(tokens, self.layout.tokens, extras))
    }

    /// Re-keys blocks that an engine has named already, in order from token 0.
    pub fn prefix_of_engine_hashes(&self, hashes: &[impl AsRef<[u8]>]) -> Prefix {
        let mut parent = BlockKey::NONE;
        let mut keys = Vec::with_capacity(hashes.len());
        for hash in hashes {
            parent = self.key.rekey(&parent, hash.as_ref());
            keys.push(parent);
        }
        Prefix::chained(keys)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.client.shared
    }

    pub(crate) fn era(&self, map: &kvhive_protocol::ClusterMap) -> Era {
        map.tenants.get(&self.tenant).map_or(Era(0), |tenant| tenant.era)
    }

    /// Says whether nodes decode for this client.
    pub(crate) fn reads_raw(&self) -> bool {
        self.client.shared.config.raw_reads
    }

    pub(crate) fn deadline(&self) -> Instant {
        in_time(self.limit.unwrap_or(self.client.shared.config.request_timeout))
    }

    /// Refuses a prefix that is too long for a call that `what` names.
    pub(crate) fn check_length(&self, prefix: &Prefix, what: &str) -> Result<(), ClientError> {
        let blocks = prefix.len();
        if blocks > MAX_KEYS_PER_MATCH {
            return Err(ClientError::Misuse(format!(
                "{blocks} blocks in one {what}, at most {MAX_KEYS_PER_MATCH}"
            )));
        }
        Ok(())
    }

    pub(crate) fn check_range(
        &self,
        prefix: &Prefix,
        range: &Range<usize>,
        blocks: usize,
    ) -> Result<(), ClientError> {
        if range.start > range.end || range.end > prefix.len() {
            return Err(ClientError::Misuse(format!(
                "blocks {range:?} of a prefix of {} blocks",
                prefix.len()
            )));
        }
        if range.len() != blocks {
            return Err(ClientError::Misuse(format!("{blocks} pieces of memory for {} blocks", range.len())));
        }
        Ok(())
    }
}
