//! Where an engine's blocks lie: a client, and the namespaces of those whose blocks they are.

use super::NewTenants;
use kvhive_client::{Client, ClientError, NamespaceClient};
use kvhive_protocol::block::Codec;
use kvhive_protocol::strategy::Strategy;
use kvhive_protocol::{Change, Layout, RulesChange};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

/// An engine's side of the cluster.
pub(super) struct Cache {
    model: String,
    layout: Layout,
    /// Whose blocks those are of requests that name nobody.
    tenant: String,
    new_tenants: NewTenants,
    now: Mutex<Now>,
}

/// What may be replaced.
struct Now {
    client: Client,
    /// How new blocks are stored.
    codec: Codec,
    /// Which blocks leave, where that was chosen here.
    strategy: Option<Strategy>,
    spaces: HashMap<String, NamespaceClient>,
    /// Tenants with blocks of their own that were used here.
    owners: BTreeSet<String>,
}

impl Cache {
    /// Opens the namespace of one tenant; the others' are opened when they are named.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub(super) fn open(
        client: &Client,
        tenant: &str,
        model: String,
        layout: Layout,
        codec: Codec,
        new_tenants: NewTenants,
    ) -> Result<Cache, ClientError> {
        let (tenant, owners) = (tenant.to_owned(), BTreeSet::from([tenant.to_owned()]));
        let now = Now { client: client.clone(), codec, strategy: None, spaces: HashMap::new(), owners };
        let cache = Cache { model, layout, tenant, new_tenants, now: Mutex::new(now) };
        let space = cache.named(client, codec, &cache.tenant)?;
        cache.now().spaces.insert(cache.tenant.clone(), space);
        Ok(cache)
    }

    /// Returns the namespace of a tenant, or of the engine's own; makes a tenant that is not there yet where that is wanted.
    ///
    /// # Errors
    /// When there is no such tenant and none is made, or the cluster does not answer.
    pub(super) async fn space(&self, tenant: Option<&str>) -> Result<NamespaceClient, ClientError> {
        let name = tenant.unwrap_or(&self.tenant);
        let (client, codec, strategy) = {
            let now = self.now();
            if let Some(space) = now.spaces.get(name) {
                return Ok(space.clone());
            }
            (now.client.clone(), now.codec, now.strategy)
        };
        let is_shared = self.new_tenants == NewTenants::Sharing;
        if name != self.tenant && self.new_tenants != NewTenants::Unknown {
            client.ensure_tenant(name, is_shared.then_some(&self.tenant)).await?;
            if let (Some(strategy), false) = (strategy, is_shared) {
                give(&client, name, strategy).await?;
            }
        }
        let space = self.named(&client, codec, name)?;
        let mut now = self.now();
        now.spaces.insert(name.to_owned(), space.clone());
        if !is_shared {
            now.owners.insert(name.to_owned());
        }
        Ok(space)
    }

    /// Returns how new blocks are stored.
    pub(super) fn codec(&self) -> Codec {
        self.now().codec
    }

    /// Has new blocks be stored otherwise.
    pub(super) fn set_codec(&self, codec: Codec) {
        let mut now = self.now();
        now.codec = codec;
        now.spaces.clear();
    }

    /// Has another strategy decide which blocks leave; no block is lost by it.
    ///
    /// # Errors
    /// When the cluster does not do it for all.
    pub(super) async fn set_strategy(&self, strategy: Strategy) -> Result<(), ClientError> {
        let (client, owners) = self.owners();
        for owner in owners {
            give(&client, &owner, strategy).await?;
        }
        self.now().strategy = Some(strategy);
        Ok(())
    }

    /// Ends the era of everybody who has blocks of their own here.
    ///
    /// # Errors
    /// When the cluster does not do it for all.
    pub(super) async fn clear(&self) -> Result<(), ClientError> {
        let (client, owners) = self.owners();
        for owner in owners {
            client.clear_tenant(&owner).await?;
        }
        Ok(())
    }

    /// Goes on with another client, of a cluster that has these tenants.
    pub(super) fn renew(&self, client: &Client, tenants: impl IntoIterator<Item = String>) {
        let mut now = self.now();
        now.client = client.clone();
        now.spaces.clear();
        now.owners = BTreeSet::from([self.tenant.clone()]);
        if self.new_tenants != NewTenants::Sharing {
            now.owners.extend(tenants);
        }
    }

    /// Returns the client, and whoever has blocks of their own here.
    fn owners(&self) -> (Client, BTreeSet<String>) {
        let now = self.now();
        (now.client.clone(), now.owners.clone())
    }

    fn named(&self, client: &Client, codec: Codec, tenant: &str) -> Result<NamespaceClient, ClientError> {
        // Blocks that were rounded are never taken for others.
        let rounding = if codec.is_exact() { String::new() } else { format!("+{}", codec.name()) };
        client.namespace(tenant, &format!("{}{rounding}", self.model), self.layout, 0)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

async fn give(client: &Client, tenant: &str, strategy: Strategy) -> Result<(), ClientError> {
    let change = RulesChange { strategy: Change::Set(strategy), ..RulesChange::default() };
    client.set_tenant_rules(tenant, change).await
}
