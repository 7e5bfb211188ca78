//! Snapshots: a node's blocks written to a folder, and taken in from one. Crash-safe (a snapshot is whole or is not there),
//! resumable (what an interrupted run has written is kept), checked (a damaged block is a counted miss).

mod beside;
mod blocking;
mod folder;
pub(crate) mod fuzz;
mod jobs;
mod keeper;
mod load;
mod lock;
mod save;
mod sealed;
mod segment;
mod survey;
mod work;

pub(crate) use beside::{BEFORE, MAX_NAMED, Standing};
pub(crate) use folder::keys_folder;
pub(crate) use jobs::{Job, Jobs, Refused, Verb};
pub(crate) use keeper::Keeper;
pub(crate) use load::load;
pub(crate) use save::{Extent, save};
use sealed::Keys;

use crate::actors::device::Device;
use crate::data::Counters;
use crate::disk::{Keyring, Store};
use crate::view::View;
use kvhive_protocol::LayoutFingerprint;
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use thiserror::Error;
use tokio::sync::Semaphore;

/// What of a node goes into a snapshot and comes out of one.
#[derive(Clone)]
pub(crate) struct Holdings {
    pub(crate) devices: Vec<Device>,
    /// Disks of those devices that have one.
    pub(crate) stores: Vec<Arc<Store>>,
    /// What snapshots are encrypted by, and opened; none where they are not encrypted.
    pub(crate) keys: Option<Arc<Keyring>>,
    /// Frames in memory of each device: as many of its blocks are ever taken in.
    pub(crate) frames: Vec<u32>,
    /// Bytes of the largest frame.
    pub(crate) frame_bytes: u64,
    pub(crate) view: Arc<View>,
    pub(crate) counters: Arc<Counters>,
    /// Turns of those who take a snapshot in: the memory that it takes is set aside for one.
    pub(crate) loading: Arc<Semaphore>,
    /// Turns of those who write one.
    pub(crate) saving: Arc<Semaphore>,
}

impl Holdings {
    fn keys(&self) -> Option<Keys> {
        self.keys.clone().map(|keyring| Keys::new(keyring, self.view.clone()))
    }

    /// Returns how often a device has lost what it held.
    fn restarts(&self) -> u64 {
        self.counters.actor_restarts.load(Ordering::Relaxed)
    }
}

/// Returns the bytes that taking in a snapshot and writing one take at most, for so many frames in memory.
pub(crate) fn snapshot_bytes(frames: u32) -> u64 {
    survey::survey_bytes(frames) + work::known_bytes(frames)
}

/// How far a snapshot's writing or loading is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PersistProgress {
    /// Blocks dealt with.
    pub blocks: u64,
    /// Blocks in all, as far as is known.
    pub of_blocks: u64,
}

/// What a snapshot's writing came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Saved {
    /// Blocks in the snapshot.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks of these that an interrupted run had written before.
    pub resumed: u64,
}

/// What a snapshot's loading came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Loaded {
    /// Blocks taken in.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were here already.
    pub already: u64,
    /// Blocks whose tenant was cleared or does not exist, or whose key is no more.
    pub ended: u64,
    /// Blocks of slots that this node does not hold.
    pub elsewhere: u64,
    /// Blocks written under another secret of their tenant: nobody would find them.
    pub other_secret: u64,
    /// Blocks larger than the node's frames.
    pub too_large: u64,
    /// Blocks of another layout than the one asked for.
    pub other_layout: u64,
    /// Blocks for which there was no free frame.
    pub no_room: u64,
    /// Blocks that were damaged or missing, and files that broke off.
    pub damaged: u64,
}

impl Loaded {
    /// Says whether much was left out that may be of use to a node with other memory, frames, slots or secrets: more than one block in sixteen. Some are always, where stores come
    /// while a full node takes its blocks in.
    fn leaves_much(&self) -> bool {
        let left = self.elsewhere + self.no_room + self.damaged + self.other_secret + self.too_large;
        let other = self.ended + self.other_layout;
        left * 16 > self.blocks + self.already + other + left
    }
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
    /// Something else stands where the snapshot would be, or beside it.
    #[error(
        "{path} is no folder, or holds something else than a snapshot: nothing is written and nothing removed; give a folder of its \
         own, or move that away"
    )]
    Foreign {
        /// What stands in the way.
        path: PathBuf,
    },
    /// Another writes or reads it.
    #[error("the snapshot {path} is being written or read by another; try again when that has ended")]
    InUse {
        /// Where it is.
        path: PathBuf,
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
    /// The blocks are of another layout than the one asked for.
    #[error(
        "the snapshot is of layout {found}, and blocks of {wanted} alone were asked for: nobody who serves that layout would find any; \
         load it for the layout that it is of, or delete it"
    )]
    ForeignLayout {
        /// Fingerprint of the layout asked for.
        wanted: LayoutFingerprint,
        /// Those of the snapshot's blocks, a few of them.
        found: String,
    },
    /// The node does not serve: it knows no map by which blocks could be judged.
    #[error(
        "the node does not serve yet, so it knows neither tenants nor slots; try again when `kvhive nodes` shows it up"
    )]
    NotServing,
    /// The snapshot that stands has blocks that this node lacks.
    #[error(
        "the snapshot {path} stands and was not taken in ({why}), so it is not replaced; move it away to have a new one written"
    )]
    NotTakenIn {
        /// Where it is.
        path: PathBuf,
        /// What kept it out.
        why: String,
    },
    /// There are as many named snapshots as there may be.
    #[error(
        "the node has {most} snapshots beside its own ({names}), as many as it may; remove one with `kvhive node snapshots --remove \
         NAME`"
    )]
    TooMany {
        /// How many there may be.
        most: usize,
        /// Their names.
        names: String,
    },
    /// A device has lost its blocks meanwhile.
    #[error(
        "a device was made anew while the snapshot was written, so it would lack that device's blocks; try again"
    )]
    Emptied,
    /// A device did not answer.
    #[error("device {device} is busy or being restarted; try again")]
    Busy {
        /// Which.
        device: usize,
    },
}
