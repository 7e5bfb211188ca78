//! Pinning a prefix: its blocks do not leave to make room for others, and are repaired first.

use crate::client::Client;
use crate::error::ClientError;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use kvhive_protocol::control::Command;
use kvhive_protocol::{BlockKey, Pin, PinMode, Reason};

impl NamespaceClient {
    /// Pins a prefix under a name; a pin of this name becomes this one. What is not stored yet is pinned when it comes. Nodes go by
    /// it within a heartbeat.
    ///
    /// # Errors
    /// When the name is not allowed, the prefix is empty or longer than a pin may be, as much is pinned as may be, or the
    /// coordinators do not answer.
    pub async fn pin(
        &self,
        name: &str,
        prefix: &Prefix,
        mode: PinMode,
        reason: Reason,
    ) -> Result<(), ClientError> {
        let pin = Pin { tenant: self.tenant, keys: prefix.keys().iter().collect(), mode, reason };
        self.client().submit(Command::SetPin { name: name.to_owned(), pin: Box::new(pin) }).await.map(|_| ())
    }

    /// Ends a pin: its blocks stay where they are until others take their place.
    ///
    /// # Errors
    /// When there is no pin of this name, or the coordinators do not answer.
    pub async fn unpin(&self, name: &str) -> Result<(), ClientError> {
        let command = Command::RemovePin { name: name.to_owned(), ended_ms: None };
        self.client().submit(command).await.map(|_| ())
    }
}

impl Client {
    /// Pins blocks of a tenant by their keys, in the order of their prefix, as [`NamespaceClient::pin`] does.
    ///
    /// # Errors
    /// As [`NamespaceClient::pin`], and when there is no such tenant.
    pub async fn pin_keys(
        &self,
        name: &str,
        tenant: &str,
        keys: &[BlockKey],
        mode: PinMode,
        reason: Reason,
    ) -> Result<(), ClientError> {
        let tenant = self.tenant(tenant).await?;
        let pin = Pin { tenant, keys: keys.iter().collect(), mode, reason };
        self.submit(Command::SetPin { name: name.to_owned(), pin: Box::new(pin) }).await.map(|_| ())
    }
}
