//! What is done to coordinators' folders while nobody runs on them: a cluster begins again from a backup, or goes on from the one
//! coordinator that is left. Both give up changes that others may know of, so both raise what must never go back.

use crate::actors::directory;
use crate::backup::Backup;
use crate::config::PeerConfig;
use crate::log::{LogError, LogFolder, LogStore};
use crate::membership::{Membership, MembershipError};
use crate::start::registry_of;
use kvhive_consensus::{ConsensusError, Group, PeerId, Restored, Standing, Survivor, beginning};
use kvhive_control::{Cleared, Registry, RestoreError};
use kvhive_protocol::{LogEntry, Origin, Reason, codec};
use std::path::PathBuf;
use thiserror::Error;

/// One coordinator's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Whose it is.
    pub own: PeerConfig,
    /// Where its log is kept.
    pub data_dir: PathBuf,
}

/// Why it is not done. Unless it says so, nothing was changed.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// A log is there already.
    #[error(
        "{path} holds a log already: a backup goes into empty folders alone. If that cluster is given up, move the folder away; if it \
         is not, start its coordinators instead",
        path = path.display()
    )]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// There is no log to go on from.
    #[error("{path} holds nothing to go on from; `kvhive restore` begins from a backup", path = path.display())]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// The backup is another cluster's.
    #[error(
        "the backup is of cluster {backup:?}, the cluster file describes {file:?}: set its name to the backup's"
    )]
    OtherCluster {
        /// The backup's.
        backup: String,
        /// The cluster file's.
        file: String,
    },
    /// The state does not take it.
    #[error("{0}")]
    State(String),
    /// The folder is another's, or does not say whose.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log makes no sense to raft.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// The snapshot in the log cannot be used.
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(#[from] RestoreError),
}

/// How a cluster was begun again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    /// The map's epoch.
    pub epoch: u64,
    /// Raft's term.
    pub term: u64,
    /// The last log entry.
    pub index: u64,
}

/// Has a cluster begin again from a backup: each of `voters` gets a log that says that they decide from now on, and that
/// `learners` follow and are sent everything once they start with empty folders.
///
/// # Errors
/// See [`OfflineError`]. Everything is looked at before anything is written.
pub fn restore(
    backup: &Backup,
    cluster: &str,
    voters: &[Place],
    learners: &[PeerConfig],
    cleared: Cleared<'_>,
) -> Result<Begun, OfflineError> {
    let head = backup.head();
    if head.name != cluster {
        return Err(OfflineError::OtherCluster { backup: head.name.clone(), file: cluster.to_owned() });
    }
    let mut registry = backup.registry().clone();
    let reason = format!("restored from the backup of entry {} of term {}", head.index, head.term);
    let epoch = registry.go_on(cleared, origin(reason)).map_err(OfflineError::State)?;
    let peer = |own: &PeerConfig| PeerId(own.peer);
    let mut group = Group {
        voters: voters.iter().map(|place| peer(&place.own)).collect(),
        learners: learners.iter().map(peer).collect(),
        about: voters.iter().map(|place| &place.own).chain(learners).map(about).collect(),
        ..Group::default()
    };
    group.voters.sort_unstable();
    group.learners.sort_unstable();
    let (index, term) = (head.index, head.term + 1);
    let batch = beginning(&group, (index, term), &registry.snapshot());
    let mut stores = Vec::new();
    for place in voters {
        let folder = LogFolder::lock(&place.data_dir)?;
        if !folder.holds_log()? {
            stores.push((place, Err(folder)));
            continue;
        }
        // One that a coordinator opened and never wrote to holds as little as none.
        let (store, restored) = folder.open()?;
        if restored != Restored::default() {
            return Err(OfflineError::Taken { path: place.data_dir.clone() });
        }
        stores.push((place, Ok(store)));
    }
    for (place, opened) in stores {
        Membership::of(cluster, &place.own).claim(&place.data_dir, false)?;
        let mut store = opened.or_else(|folder| folder.open().map(|(store, _)| store))?;
        store.write(std::slice::from_ref(&batch))?;
    }
    Ok(Begun { epoch: epoch.0, term, index })
}

/// The log of the one coordinator that is left, locked and read, and nothing changed yet.
pub struct Recovery {
    store: LogStore,
    survivor: Survivor,
    registry: Registry,
    own: PeerConfig,
    /// The others that the log names.
    pub others: Vec<PeerConfig>,
    /// The term that it was in.
    pub term: u64,
    /// The last entry that it knew to be decided.
    pub committed: u64,
    /// The last entry that it has. What was decided after it is lost.
    pub last: u64,
    /// Changes between the two: decided by others or by nobody, they count from now on.
    pub undecided: usize,
    /// When the newest event came to pass that it knows, in milliseconds since 1970; none before the first.
    pub newest_event_ms: Option<u64>,
    /// It had not caught up when it was last heard of: more than the last changes may be lost.
    pub is_behind: bool,
}

impl Recovery {
    /// Looks at what there is in a coordinator's folder, which no other process may use meanwhile.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn open(cluster: &str, place: &Place) -> Result<Recovery, OfflineError> {
        let nothing = || OfflineError::Nothing { path: place.data_dir.clone() };
        if !place.data_dir.is_dir() {
            return Err(nothing());
        }
        let folder = LogFolder::lock(&place.data_dir)?;
        if !folder.holds_log()? {
            return Err(nothing());
        }
        Membership::of(cluster, &place.own).claim(&place.data_dir, true)?;
        let (store, restored) = folder.open()?;
        if restored == Restored::default() {
            return Err(nothing());
        }
        let survivor = Survivor::of(&restored)?;
        let mut registry = registry_of(&restored)?;
        let mut undecided = 0;
        for (index, data) in &survivor.proposals {
            let entry: LogEntry = codec::decode(data)
                .map_err(|error| OfflineError::State(format!("entry {index} cannot be applied: {error}")))?;
            registry.apply(*index, entry);
            undecided += usize::from(*index > survivor.committed);
        }
        let newest = registry.newest_event();
        let newest_event =
            registry.events(newest.saturating_sub(1), 1).events.first().map(|event| event.at_ms);
        let named = survivor.named.iter().filter(|(peer, _)| peer.0 != place.own.peer);
        let others = named.filter_map(|(peer, bytes)| Some(PeerConfig::of(*peer, directory::decode(bytes)?)));
        Ok(Recovery {
            others: others.collect(),
            term: survivor.term,
            committed: survivor.committed,
            last: survivor.last,
            undecided,
            newest_event_ms: newest_event,
            is_behind: survivor.standing != Standing::Settled,
            own: place.own.clone(),
            store,
            survivor,
            registry,
        })
    }

    /// Has this coordinator decide alone from now on, with all that it has.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn go_on(mut self) -> Result<Begun, OfflineError> {
        let reason = format!("{} goes on alone: the other coordinators are lost", self.own.name);
        let epoch =
            self.registry.go_on(Cleared::Tenants(&[]), origin(reason)).map_err(OfflineError::State)?;
        let (peer, seat) = about(&self.own);
        let batch = self.survivor.alone(peer, seat, &self.registry.snapshot());
        let (index, term) = (self.survivor.last, self.survivor.term.max(self.survivor.last_term) + 1);
        self.store.write(&[batch])?;
        Ok(Begun { epoch: epoch.0, term, index })
    }
}

fn about(own: &PeerConfig) -> (PeerId, Vec<u8>) {
    let (peer, seat) = own.seat();
    (peer, directory::encode(&seat))
}

fn origin(reason: String) -> Origin {
    Origin { at_ms: kvhive_runtime::wall_ms(), reason: Reason::new(reason) }
}

#[cfg(test)]
#[path = "offline_test.rs"]
mod tests;
