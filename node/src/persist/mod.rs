//! Snapshots: a node's blocks written to a folder, and taken in from one. Crash-safe (a snapshot is whole or is not there),
//! resumable (what an interrupted run has written is kept), checked (a damaged block is a counted miss).

mod folder;
mod keeper;
mod load;
mod save;
mod segment;

pub(crate) use keeper::Keeper;
pub(crate) use load::load;
pub(crate) use save::{Extent, save};

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// How far a snapshot's writing or loading is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PersistProgress {
    /// Blocks dealt with.
    pub blocks: u64,
    /// Blocks in all, as far as is known.
    pub of_blocks: u64,
}

/// What a snapshot's writing came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Saved {
    /// Blocks in the snapshot.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks of these that an interrupted run had written before.
    pub resumed: u64,
}

/// What a snapshot's loading came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// Blocks taken in.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were here already.
    pub already: u64,
    /// Blocks whose tenant was cleared or does not exist.
    pub ended: u64,
    /// Blocks of slots that this node does not hold.
    pub elsewhere: u64,
    /// Blocks for which there was no free frame.
    pub no_room: u64,
    /// Blocks that were damaged, and files that broke off.
    pub damaged: u64,
}

/// Why there is no snapshot, or why it was not taken in.
#[derive(Debug, Error)]
pub enum PersistError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What stands at the path is no whole snapshot of this format.
    #[error("{path} is no snapshot that this build can read: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The blocks were written under another secret of the tenant: their keys name nothing here.
    #[error(
        "the snapshot was written under another secret of tenant {tenant:?}: its blocks would never be found; load it into the \
         cluster that wrote it, or delete it"
    )]
    OtherSecret {
        /// The tenant's name.
        tenant: String,
    },
    /// The blocks have another size than this node's frames.
    #[error(
        "the snapshot has blocks of {bytes} bytes, the largest frame of this node has {largest}: it was written under another \
         layout; give the node that block size, or delete the snapshot"
    )]
    OtherLayout {
        /// Bytes of the snapshot's largest block.
        bytes: u64,
        /// Bytes of this node's largest frame.
        largest: u64,
    },
    /// The node does not serve: it knows no map by which blocks could be judged.
    #[error(
        "the node does not serve yet, so it knows neither tenants nor slots; try again when `kvhive nodes` shows it up"
    )]
    NotServing,
    /// A device did not answer.
    #[error("device {device} is busy or being restarted; try again")]
    Busy {
        /// Which.
        device: usize,
    },
}
