//! A namespace as its user sees it: names blocks; matching, fetching and storing are in files of their own.

use crate::client::{Client, Shared};
use crate::error::ClientError;
use crate::prefix::{NamesMark, Prefix};
use crate::retry::in_time;
use kvhive_protocol::data::MAX_KEYS_PER_MATCH;
use kvhive_protocol::frame::MAX_PAYLOAD_BYTES;
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{
    BlockKey, ClusterMap, Era, Layout, LayoutFingerprint, Namespace, NamespaceKey, TenantId, TraceContext,
};
use kvhive_spans::Span;
use std::ops::Range;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::time::Instant;

/// Blocks of one tenant, model, layout and rank. Cheap to clone.
#[derive(Clone)]
pub struct NamespaceClient {
    client: Client,
    pub(crate) tenant: TenantId,
    names: Arc<RwLock<Arc<Names>>>,
    layout: Layout,
    pub(crate) fingerprint: LayoutFingerprint,
    pub(crate) block_bytes: u64,
    /// The longest a call may take; none for what the client's configuration says.
    limit: Option<Duration>,
    /// Whose part its calls are.
    trace: Option<TraceContext>,
}

/// One call, as far as it is traced.
pub(crate) struct Call {
    pub(crate) span: Span,
    /// What nodes are told: the call's own span, or the caller's where none is recorded here.
    pub(crate) trace: Option<TraceContext>,
}

/// How blocks are named by one secret of the tenant.
struct Names {
    namespace: Namespace,
    key: NamespaceKey,
    mark: NamesMark,
}

impl Names {
    fn of(namespace: Namespace) -> Names {
        let key = namespace.key();
        // A name like any other, of nothing: it shows as little of the secret as they do.
        let mark = key.rekey(&BlockKey::NONE, b"the mark of these names");
        let mark = mark.as_bytes().first_chunk().expect("a key has 32 bytes");
        Names { mark: NamesMark(u64::from_le_bytes(*mark)), namespace, key }
    }
}

impl NamespaceClient {
    pub(crate) fn new(
        client: Client,
        tenant: TenantId,
        namespace: Namespace,
    ) -> Result<NamespaceClient, ClientError> {
        let layout = namespace.layout;
        let is_any = layout == Layout::ANY_LENGTH;
        let most = if is_any { Some(u64::from(MAX_PAYLOAD_BYTES)) } else { layout.block_bytes() };
        let block_bytes = most.filter(|bytes| *bytes > 0 && layout.tokens > 0);
        let block_bytes = block_bytes
            .ok_or_else(|| ClientError::Misuse(format!("a block of {layout:?} has no usable size")))?;
        Ok(NamespaceClient {
            client,
            tenant,
            names: Arc::new(RwLock::new(Arc::new(Names::of(namespace)))),
            layout,
            fingerprint: layout.fingerprint(),
            block_bytes,
            limit: None,
            trace: None,
        })
    }

    /// Returns the layout of its blocks.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the bytes of one block; of blocks of any length the most that one may have.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Says whether a piece of memory may be that of a block.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        if self.has_any_length() {
            (1..=self.block_bytes).contains(&bytes)
        } else {
            bytes == self.block_bytes
        }
    }

    /// Says whether each block has a length of its own ([`Layout::ANY_LENGTH`]): nobody but its owner knows it beforehand.
    pub(crate) fn has_any_length(&self) -> bool {
        self.layout == Layout::ANY_LENGTH
    }

    /// Returns the same namespace for calls that may take `limit` and no longer: what [`Advice::recomputing`] says, for one.
    /// What has not arrived by then is a miss.
    ///
    /// [`Advice::recomputing`]: crate::Advice::recomputing
    pub fn within(&self, limit: Duration) -> NamespaceClient {
        NamespaceClient { limit: Some(limit), ..self.clone() }
    }

    /// Returns how long a call may take.
    pub fn limit(&self) -> Duration {
        self.limit.unwrap_or(self.client.shared.config.request_timeout)
    }

    /// Returns the same namespace for calls that are parts of this trace: nodes that trace record what they do for them. What a
    /// `traceparent` header says, for one ([`kvhive_protocol::trace::Parent`]).
    pub fn traced(&self, trace: TraceContext) -> NamespaceClient {
        NamespaceClient { trace: Some(trace), ..self.clone() }
    }

    /// Begins a call.
    pub(crate) fn call(&self, name: &'static str, blocks: usize) -> Call {
        let tracer = &self.client.shared.config.tracer;
        let mut span = match self.trace {
            Some(_) => tracer.under(self.trace, SpanKind::Inner, name),
            None => tracer.draw(SpanKind::Inner, name),
        };
        if span.is_on() {
            span.note("kvhive.blocks", blocks);
            let map = self.client.map();
            span.note("kvhive.tenant", map.tenants.get(&self.tenant).map_or("", |tenant| &tenant.name));
        }
        Call { trace: span.context().or(self.trace), span }
    }

    /// Names every full block of `tokens`, from token 0.
    pub fn keys(&self, tokens: &[u32]) -> Prefix {
        self.keys_with(tokens, &[])
    }

    /// As [`NamespaceClient::keys`], where something else changes the tensors too (adapter id, hashes of media).
    pub fn keys_with(&self, tokens: &[u32], extras: &[&[u8]]) -> Prefix {
        let names = self.names(&self.client.map());
        Prefix::named(names.key.prefix(tokens, self.layout.tokens, extras), names.mark)
    }

    /// Re-keys blocks that an engine has named already, in order from token 0.
    pub fn prefix_of_engine_hashes(&self, hashes: &[impl AsRef<[u8]>]) -> Prefix {
        let names = self.names(&self.client.map());
        let mut parent = BlockKey::NONE;
        let mut keys = Vec::with_capacity(hashes.len());
        for hash in hashes {
            parent = names.key.rekey(&parent, hash.as_ref());
            keys.push(parent);
        }
        Prefix::named(keys, names.mark)
    }

    /// Re-keys blocks that an engine has named already, each on its own: a set without order.
    pub fn loose_of_engine_hashes(&self, hashes: &[impl AsRef<[u8]>]) -> Prefix {
        let names = self.names(&self.client.map());
        let keys = hashes.iter().map(|hash| names.key.rekey(&BlockKey::NONE, hash.as_ref()));
        Prefix::named_loose(keys.collect(), names.mark)
    }

    /// Names things that are in no order, by what their user calls them: each is a home key of its own.
    pub(crate) fn loose_keys<'a>(&self, names: impl Iterator<Item = &'a [u8]>) -> Vec<BlockKey> {
        let known = self.names(&self.client.map());
        names.map(|name| known.key.rekey(&BlockKey::NONE, name)).collect()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.client.shared
    }

    /// Returns the era of a prefix's blocks by a map: one that nobody serves where there is no such tenant any more, or it has
    /// another secret by now than the keys were made by.
    pub(crate) fn era(&self, map: &ClusterMap, prefix: &Prefix) -> Era {
        let is_stale = prefix.named_by().is_some_and(|mark| mark != self.names(map).mark);
        match map.tenants.get(&self.tenant) {
            Some(tenant) if !is_stale => tenant.era,
            _ => Era(0),
        }
    }

    /// Returns how blocks are named by a map.
    fn names(&self, map: &ClusterMap) -> Arc<Names> {
        let known = self.names.read().unwrap_or_else(|poison| poison.into_inner()).clone();
        let secret = map.tenants.get(&self.tenant).map(|tenant| tenant.secret);
        let Some(tenant_secret) = secret.filter(|secret| *secret != known.namespace.tenant_secret) else {
            return known;
        };
        let names = Arc::new(Names::of(Namespace { tenant_secret, ..known.namespace.clone() }));
        *self.names.write().unwrap_or_else(|poison| poison.into_inner()) = names.clone();
        names
    }

    /// Says whether nodes decode for this client.
    pub(crate) fn reads_raw(&self) -> bool {
        self.client.shared.config.raw_reads
    }

    pub(crate) fn deadline(&self) -> Instant {
        in_time(self.limit())
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
