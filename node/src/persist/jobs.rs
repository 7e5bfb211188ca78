//! Snapshots on an operator's word: one at a time, of this node's folder or one beside it, with how far it is.

use super::{Extent, Keeper, Loaded, PersistError, PersistProgress, Saved};
use kvhive_protocol::LayoutFingerprint;
use kvhive_runtime::stopped;
use serde::Serialize;
use std::path::PathBuf;
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
    /// It is no layout, or none can be chosen.
    Layout,
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
        let is_name = |name: &str| {
            (1..=MAX_NAME_BYTES).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if name.is_some_and(|name| !is_name(name)) {
            return Err(Refused::Name);
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
        let (jobs, is_own) = (self.clone(), name.is_none());
        let folder = begun.folder.clone();
        tokio::spawn(async move {
            let mut stopping = jobs.stopping.clone();
            let outcome = tokio::select! {
                outcome = jobs.run(verb, is_own, folder, only) => outcome,
                () = stopped(&mut stopping) => Outcome::Failed("the node ends".to_owned()),
            };
            jobs.change(|job| job.outcome = outcome);
        });
        Ok(begun)
    }

    async fn run(
        &self,
        verb: Verb,
        is_own: bool,
        folder: PathBuf,
        only: Option<LayoutFingerprint>,
    ) -> Outcome {
        let mut tell = |progress| self.change(|job| job.progress = progress);
        let failed = |error: PersistError| Outcome::Failed(error.to_string());
        match verb {
            Verb::Persist if is_own => {
                let saved = self.keeper.save(Extent::Memory, &mut tell).await;
                saved.map_or_else(failed, Outcome::Persisted)
            }
            Verb::Persist => {
                let saved = super::save(self.keeper.holdings(), &folder, Extent::All, &mut tell).await;
                saved.map_or_else(failed, Outcome::Persisted)
            }
            Verb::Load => {
                let loaded = super::load(self.keeper.holdings(), &folder, only, &mut tell).await;
                loaded.map_or_else(failed, Outcome::Loaded)
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.last.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(job);
        }
    }
}
