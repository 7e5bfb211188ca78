//! Snapshots on an operator's word: one at a time, of this node's folder or one beside it, with how far it is.

use super::beside::{self, BEFORE, Standing};
use super::{Extent, Keeper, Loaded, PersistError, PersistProgress, Saved};
use crate::data::{add, count};
use kvhive_protocol::LayoutFingerprint;
use kvhive_runtime::stopped;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The longest name of a snapshot beside the node's own.
const MAX_NAME_BYTES: usize = 63;

/// What is done with a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    Persist,
    Load,
}

/// How far an operator's snapshot is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Job {
    pub(crate) verb: Verb,
    pub(crate) folder: PathBuf,
    pub(crate) progress: PersistProgress,
    pub(crate) outcome: Outcome,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Running,
    Persisted(Saved),
    Loaded(Loaded),
    Failed(String),
}

/// Why a job does not begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// Another is under way.
    Busy,
    /// It is no name.
    Name,
    /// It is the name of what the node itself puts aside.
    Kept,
    /// It is no layout, or none can be chosen.
    Layout,
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The last job of one node.
pub(crate) struct Jobs {
    keeper: Arc<Keeper>,
    last: Mutex<Option<Job>>,
    stopping: watch::Receiver<bool>,
}

impl Jobs {
    pub(crate) fn new(keeper: Arc<Keeper>, stopping: watch::Receiver<bool>) -> Arc<Jobs> {
        Arc::new(Jobs { keeper, last: Mutex::default(), stopping })
    }

    pub(crate) fn last(&self) -> Option<Job> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins with the node's own snapshot, or with the one of this name beside it. It ends with the node.
    /// Of what is taken in, blocks of one layout may be asked for alone, by its fingerprint.
    pub(crate) fn begin(
        self: &Arc<Self>,
        verb: Verb,
        name: Option<&str>,
        layout: Option<&str>,
    ) -> Result<Job, Refused> {
        if name.is_some_and(|name| !is_name(name)) {
            return Err(Refused::Name);
        }
        if verb == Verb::Persist && name == Some(BEFORE) {
            return Err(Refused::Kept);
        }
        let only = layout.map(|text| LayoutFingerprint::parse(text).ok_or(Refused::Layout)).transpose()?;
        if verb == Verb::Persist && only.is_some() {
            return Err(Refused::Layout);
        }
        let folder = self.keeper.folder(name);
        let begun = Job { verb, folder, progress: PersistProgress::default(), outcome: Outcome::Running };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_some_and(|job| job.outcome == Outcome::Running) {
            return Err(Refused::Busy);
        }
        *last = Some(begun.clone());
        drop(last);
        let (jobs, name) = (self.clone(), name.map(str::to_owned));
        let folder = begun.folder.clone();
        tokio::spawn(async move {
            let mut stopping = jobs.stopping.clone();
            let outcome = tokio::select! {
                outcome = jobs.run(verb, name, folder, only) => outcome,
                () = stopped(&mut stopping) => Outcome::Failed("the node ends".to_owned()),
            };
            jobs.change(|job| job.outcome = outcome);
        });
        Ok(begun)
    }

    async fn run(
        &self,
        verb: Verb,
        name: Option<String>,
        folder: PathBuf,
        only: Option<LayoutFingerprint>,
    ) -> Outcome {
        let mut tell = |progress| self.change(|job| job.progress = progress);
        let failed = |error: PersistError| Outcome::Failed(error.to_string());
        let counters = &self.keeper.holdings().counters;
        match verb {
            Verb::Persist => {
                let saved = match name {
                    None => self.keeper.save(Extent::Memory, &mut tell).await,
                    Some(name) => self.persist_beside(&name, &folder, &mut tell).await,
                };
                match &saved {
                    Ok(_) => count(&counters.snapshots),
                    Err(_) => count(&counters.snapshot_failures),
                }
                saved.map_or_else(failed, Outcome::Persisted)
            }
            Verb::Load => {
                let loaded = super::load(self.keeper.holdings(), &folder, only, &mut tell).await;
                match &loaded {
                    Ok(Loaded { blocks, damaged, .. }) => {
                        add(&counters.snapshot_loaded_blocks, *blocks);
                        add(&counters.snapshot_damaged_blocks, *damaged);
                    }
                    Err(_) => count(&counters.snapshot_failures),
                }
                loaded.map_or_else(failed, Outcome::Loaded)
            }
        }
    }

    async fn persist_beside(
        &self,
        name: &str,
        folder: &Path,
        tell: &mut (dyn FnMut(PersistProgress) + Send),
    ) -> Result<Saved, PersistError> {
        beside::check_room(&self.keeper.folder(None), name).await?;
        super::save(self.keeper.holdings(), folder, None, Extent::All, tell).await
    }

    /// Lists the node's snapshots.
    pub(crate) async fn list(&self) -> Result<Vec<Standing>, PersistError> {
        beside::list(&self.keeper.folder(None)).await
    }

    /// Removes the snapshot of this name beside the node's own. None when there is none.
    pub(crate) async fn remove(&self, name: &str) -> Result<Option<()>, PersistError> {
        let there = self.list().await?.into_iter().any(|one| one.name.as_deref() == Some(name));
        if !there || !is_name(name) {
            return Ok(None);
        }
        beside::remove(&self.keeper.folder(Some(name))).await.map(Some)
    }

    fn change(&self, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.last.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(job);
        }
    }
}
