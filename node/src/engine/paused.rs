//! What is done with an engine's cache as a whole, while no request is served: better settings, forgetting, another cluster.

use super::EngineError;
use super::advice::{self, Advice, Sample, Setting, Target};
use super::blocks::lock;
use super::model::Model;
use super::serve::{Engine, USERS};
use super::turns::Turn;
use kvhive_client::{Client, ClientError};
use kvhive_protocol::block::Codec;
use kvhive_protocol::strategy::Strategy;
use std::collections::BTreeMap;
use tokio::sync::OwnedSemaphorePermit;

/// What blocks lie in, and how they may be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Which of them leaves when it is full.
    pub strategy: Strategy,
    /// How many frames there are, by the bytes of one.
    pub frames: BTreeMap<u64, u64>,
    /// Codecs that may be taken.
    pub codecs: Vec<Codec>,
}

/// An engine that serves nothing and stores nothing until this is dropped.
pub struct Paused<M> {
    engine: Engine<M>,
    _users: OwnedSemaphorePermit,
    _turn: Turn,
}

impl<M: Model> Engine<M> {
    /// Waits for the request that is being served, and until all that was computed is stored; has no other begin until what this returns is
    /// dropped.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn pause(&self) -> Result<Paused<M>, EngineError<M::Error>> {
        let turn = self.parts.turns.join(i64::MAX)?.turn().await.ok_or(EngineError::Ending)?;
        self.settled().await;
        let users = self.parts.users.clone().acquire_many_owned(USERS).await;
        let users = users.expect("the semaphore is never closed");
        Ok(Paused { engine: self.clone(), _users: users, _turn: turn })
    }
}

impl<M: Model> Paused<M> {
    /// Looks for settings that serve recent traffic better: the last requests are replayed against each, with what computing, fetching and
    /// storing a block took here, measured several times. Nothing is changed.
    ///
    /// # Errors
    /// When the process ends.
    pub async fn advise(&self, target: Target, memory: Memory) -> Result<Advice, EngineError<M::Error>> {
        let parts = &self.engine.parts;
        let Memory { strategy, frames, codecs } = memory;
        let fetch_seconds = self.engine.measure_fetch().await;
        let (served, blocks) = self.engine.remembered();
        let (layout, is_behind) = (parts.layout, parts.config.pending_bytes > 0);
        let sample = Sample { served, blocks, layout, frames, is_behind, fetch_seconds };
        let now = Setting { strategy, codec: parts.cache.codec() };
        self.engine.blocking(move |_| advice::advise(target, now, &sample, &codecs)).await
    }

    /// Takes the settings that are advised.
    ///
    /// # Errors
    /// When the cluster does not take them.
    pub async fn take(&self, advice: &Advice) -> Result<(), ClientError> {
        let (now, advised) = advice.settings;
        if advised.strategy != now.strategy {
            self.set_strategy(advised.strategy).await?;
        }
        if advised.codec != now.codec {
            self.engine.parts.cache.set_codec(advised.codec);
        }
        Ok(())
    }

    /// Has another strategy decide which blocks leave, for each tenant whose blocks were used here; no block is lost by it.
    ///
    /// # Errors
    /// When the cluster does not do it for all.
    pub async fn set_strategy(&self, strategy: Strategy) -> Result<(), ClientError> {
        self.engine.parts.cache.set_strategy(strategy).await
    }

    /// Forgets every block of each tenant whose blocks were used here.
    ///
    /// # Errors
    /// When the cluster does not do it for all.
    pub async fn clear(&self) -> Result<(), ClientError> {
        self.engine.parts.cache.clear().await
    }

    /// Goes on with another client, of a cluster that has these tenants.
    pub fn renew(&self, client: &Client, tenants: impl IntoIterator<Item = String>) {
        self.engine.parts.cache.renew(client, tenants);
        lock(&self.engine.parts.rest).answered();
    }
}
