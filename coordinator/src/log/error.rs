//! Why a log cannot be opened or written.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a log cannot be opened or written.
#[derive(Debug, Error)]
pub enum LogError {
    /// The system refused. After a failed write or sync nothing is known of the file: the process must end, and what a
    /// restart reads is what counts.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
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
    /// What was synced is damaged. The file is left as it is: restore this coordinator's folder, or remove it and let the
    /// coordinator come back under a new peer number.
    #[error("{path} is damaged at byte {offset}: {reason}", path = path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The log was written by another version of kvhive.
    #[error("{path} has log format {found}, this build reads format {expected}; use the build that wrote it", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// This build's.
        expected: u32,
    },
    /// An earlier write failed; nothing more is written.
    #[error("the log failed before and takes no more")]
    Poisoned,
    /// A record is larger than any that can be read back.
    #[error("a record of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}
