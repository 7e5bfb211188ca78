//! Whose log a data folder holds: cluster and coordinator, written down before the log is made and compared at each start.
//! Raft's promises hold for one owner of a log; whoever starts with another's could elect two leaders. Who the others are is
//! in the log itself. Addresses are not part of it: coordinators may move.

use crate::config::PeerConfig;
use kvhive_steps::step;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The file's name within the data folder.
const NAME: &str = "membership.json";
/// What it is written as before it is complete.
const NEXT_NAME: &str = "membership.next";
/// The format of the file.
const FORMAT: u32 = 2;
/// Longer than any that is written, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Whose log it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    format: u32,
    /// The cluster's name.
    cluster: String,
    /// The coordinator that writes the log.
    own: Seat,
}

/// One of the coordinators.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seat {
    peer: u64,
    name: String,
}

/// Why a data folder cannot be used. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum MembershipError {
    /// The log belongs to somebody else than is configured.
    #[error("{path} holds the log of {found}; configured is {configured}: {}", difference.advice(), path = path.display())]
    Mismatch {
        /// The data folder.
        path: PathBuf,
        /// Whose log it is.
        found: Box<Membership>,
        /// Who is starting.
        configured: Box<Membership>,
        /// In what they differ first.
        difference: Difference,
    },
    /// There is a log, and nothing says whose.
    #[error(
        "{path} holds a log, but {NAME} is missing, which says whose it is; with a majority of the coordinators whole, empty \
         this one's data_dir and start it again: it catches up before it votes (never put an older copy there)",
        path = path.display()
    )]
    Missing {
        /// The data folder.
        path: PathBuf,
    },
    /// The file does not say what it should.
    #[error(
        "{path} cannot be understood: {reason}; with a majority of the coordinators whole, empty this one's data_dir and start \
         it again: it catches up before it votes (never put an older copy there)",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// In what a data folder and the configuration differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The cluster's name.
    Cluster,
    /// Which of the coordinators it is.
    Coordinator,
}

impl Difference {
    fn advice(self) -> &'static str {
        match self {
            Difference::Cluster => {
                "a log stays with its cluster; set the cluster's name back, or give this coordinator another data_dir"
            }
            Difference::Coordinator => {
                "a log stays with its coordinator; set data_dir, or peer and id, back to what they were (without `peer` the \
                 order in the file gives the numbers)"
            }
        }
    }
}

impl Membership {
    /// Returns what the configuration says.
    pub(crate) fn of(cluster: &str, own: &PeerConfig) -> Membership {
        let own = Seat { peer: own.peer, name: own.name.clone() };
        Membership { format: FORMAT, cluster: cluster.to_owned(), own }
    }

    /// Says in what a data folder differs from this configuration, if it does.
    fn difference(&self, found: &Membership) -> Option<Difference> {
        if found.cluster != self.cluster {
            return Some(Difference::Cluster);
        }
        (found.own != self.own).then_some(Difference::Coordinator)
    }

    /// Checks that the log in `folder` belongs to who is starting; where there is no log yet, writes down whose it will be,
    /// durably. The folder must be locked.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub(crate) fn claim(&self, folder: &Path, holds_log: bool) -> Result<(), MembershipError> {
        // Left by a start that never came to its log, or the log was taken away. The second may have voted by it, which is why
        // raft lets no peer vote whose log is empty while others' are not.
        if !holds_log {
            return self.write(folder);
        }
        let found = read(folder)?.ok_or_else(|| MembershipError::Missing { path: folder.to_owned() })?;
        match self.difference(&found) {
            None => Ok(()),
            Some(difference) => Err(MembershipError::Mismatch {
                path: folder.to_owned(),
                found: Box::new(found),
                configured: Box::new(self.clone()),
                difference,
            }),
        }
    }

    fn write(&self, folder: &Path) -> Result<(), MembershipError> {
        let (path, next) = (folder.join(NAME), folder.join(NEXT_NAME));
        let text = serde_json::to_vec_pretty(self).expect("names and numbers always encode");
        let write = || {
            step("owner: make")?;
            let mut file = File::create(&next)?;
            step("owner: write")?;
            file.write_all(&text)?;
            step("owner: sync")?;
            file.sync_all()?;
            step("owner: name")?;
            std::fs::rename(&next, &path)?;
            step("owner: sync name")?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|source| MembershipError::Io { path, source })
    }
}

/// Reads what a data folder says; none when it says nothing.
fn read(folder: &Path) -> Result<Option<Membership>, MembershipError> {
    let path = folder.join(NAME);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| MembershipError::Io { path: path.clone(), source })?,
    };
    let mut bytes = Vec::new();
    if let Err(source) = file.take(MAX_FILE_BYTES).read_to_end(&mut bytes) {
        return Err(MembershipError::Io { path, source });
    }
    let damaged = |reason: String| MembershipError::Damaged { path: path.clone(), reason };
    // The format first: a later one may have other fields.
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => return Err(damaged(format!("it has format {format}, this build reads {FORMAT}"))),
        None => return Err(damaged("it does not say its format".to_owned())),
    }
    serde_json::from_value(value).map(Some).map_err(|error| damaged(error.to_string()))
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coordinator {} of cluster {:?}", self.own, self.cluster)
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (peer {})", self.name, self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_steps::at_each;

    fn membership(cluster: &str, peer: u64, name: &str) -> Membership {
        let own = Seat { peer, name: name.to_owned() };
        Membership { format: FORMAT, cluster: cluster.to_owned(), own }
    }

    fn ours() -> Membership {
        membership("ours", 1, "a")
    }

    #[test]
    fn a_log_is_for_one_cluster_and_one_coordinator_of_it() {
        let cases = [
            (ours(), None),
            (membership("theirs", 1, "a"), Some(Difference::Cluster)),
            (membership("ours", 2, "a"), Some(Difference::Coordinator)),
            (membership("ours", 1, "b"), Some(Difference::Coordinator)),
        ];
        for (found, difference) in cases {
            assert_eq!(ours().difference(&found), difference, "{found}");
        }
    }

    #[test]
    fn a_folder_keeps_its_first_owner_once_it_holds_a_log() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let theirs = membership("ours", 2, "b");
        theirs.claim(folder.path(), false).expect("an empty folder is anybody's");
        ours().claim(folder.path(), false).expect("no log was made by the one before");
        ours().claim(folder.path(), true).expect("it is ours");
        let refused = theirs.claim(folder.path(), true).expect_err("it is not theirs");
        assert_eq!(
            refused.to_string(),
            format!(
                "{} holds the log of coordinator a (peer 1) of cluster \"ours\"; configured is coordinator b (peer 2) of cluster \
                 \"ours\": a log stays with its coordinator; set data_dir, or peer and id, back to what they were (without \
                 `peer` the order in the file gives the numbers)",
                folder.path().display()
            )
        );
        assert_eq!(read(folder.path()).expect("it reads back"), Some(ours()));
    }

    #[test]
    fn a_claim_that_ends_anywhere_leaves_the_owner_before_or_the_new_one() {
        let steps = ["owner: make", "owner: write", "owner: sync", "owner: name", "owner: sync name"];
        at_each(&steps, |ends| {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let before = membership("ours", 2, "b");
            before.claim(folder.path(), false).expect("an empty folder is anybody's");
            let claimed = ends.run(|| ours().claim(folder.path(), false));
            assert_eq!(claimed.is_ok(), ends.before().is_none());
            let owner = if ends.is_before("owner: name") { before } else { ours() };
            assert_eq!(read(folder.path()).expect("it is whole"), Some(owner), "{ends:?}");
            ours().claim(folder.path(), false).expect("it is claimed again");
            ours().claim(folder.path(), true).expect("it is ours");
        });
    }

    #[test]
    fn a_log_of_unknown_owner_is_nobodys() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let missing = ours().claim(folder.path(), true);
        assert!(matches!(missing, Err(MembershipError::Missing { .. })), "{missing:?}");
        let whole = serde_json::to_string(&ours()).expect("it encodes");
        let later = whole.replace("\"format\":2", "\"format\":3,\"learners\":[]");
        let unknown = whole.replace("\"format\":2", "\"format\":2,\"learners\":[]");
        for text in ["", "{}", "[1]", &whole[..whole.len() - 1], &later, &unknown, &"[".repeat(2 << 20)] {
            std::fs::write(folder.path().join(NAME), text).expect("the folder is ours");
            let damaged = ours().claim(folder.path(), true);
            assert!(matches!(damaged, Err(MembershipError::Damaged { .. })), "{damaged:?}");
        }
        std::fs::write(folder.path().join(NAME), &whole).expect("the folder is ours");
        ours().claim(folder.path(), true).expect("it is ours");
    }
}
