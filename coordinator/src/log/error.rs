//! Why a log cannot be opened or written.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a log cannot be opened or written. Whatever it is, nothing was shortened or repaired because of it.
#[derive(Debug, Error)]
pub enum LogError {
    /// The system refused. After a failed write nothing is known of the file: the process must end, and what a restart
    /// reads is what counts.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A sync failed. What reached the disk is unknown and asking again would not tell (Rebello et al., "Can applications
    /// recover from fsync failures?", ATC 2020): the process must end, and a restart reads the disk anew.
    #[error("{path} could not be synced: {source}", path = path.display())]
    Sync {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process uses the log.
    #[error("{path} is used by another process", path = path.display())]
    InUse {
        /// The log's folder.
        path: PathBuf,
    },
    /// What was synced is damaged. The file is left as it is. An older copy of the folder is no cure, since this coordinator
    /// could vote or acknowledge twice by it; an empty folder is: the coordinator then follows a leader, and votes when it has
    /// everything back.
    #[error(
        "{path} is damaged at byte {offset}: {reason}; with a majority of the coordinators whole, empty this one's data_dir and \
         start it again: it catches up before it votes (never put an older copy there)",
        path = path.display()
    )]
    Corrupt {
        /// Which file or folder.
        path: PathBuf,
        /// Where, in bytes from the file's start.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The log was written by another version of kvhive.
    #[error("{path} has log format {found}, this build reads {expected}; use the build that wrote it", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// This build's.
        expected: u32,
    },
    /// The log is of state that this build has not: none of it is read, for what can be decoded need not mean the same.
    #[error(
        "{path} holds a cluster's state of version {found}, this build has version {expected}: start the build that wrote it, or, for \
         this one, begin a new cluster with an empty data_dir for every coordinator (what nodes hold is lost with it)",
        path = path.display()
    )]
    State {
        /// Which file.
        path: PathBuf,
        /// The state's version; 0 before versions were written down.
        found: u32,
        /// This build's.
        expected: u32,
    },
    /// An earlier write failed; nothing more is written.
    #[error("the log failed before and takes no more")]
    Poisoned,
    /// A batch is larger than any that can be read back. Nothing was written.
    #[error("a batch of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A batch does not follow what was written before. Nothing was written.
    #[error("entry or snapshot {found} does not follow: the log takes {lowest} to {highest}")]
    Gap {
        /// The index that does not fit.
        found: u64,
        /// The lowest index that does.
        lowest: u64,
        /// The highest index that does.
        highest: u64,
    },
}

impl LogError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> LogError + use<> {
        let path = path.to_owned();
        move |source| LogError::Io { path: path.clone(), source }
    }

    pub(super) fn sync(path: &Path) -> impl Fn(io::Error) -> LogError + use<> {
        let path = path.to_owned();
        move |source| LogError::Sync { path: path.clone(), source }
    }

    pub(super) fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> LogError {
        LogError::Corrupt { path: path.to_owned(), offset, reason: reason.into() }
    }
}
