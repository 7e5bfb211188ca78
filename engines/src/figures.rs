//! What a worker's courier tells of itself: what it has done, and why it did not save.

use std::fmt;

/// What a worker has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Questions.
    pub asks: u64,
    /// Questions that were answered without asking a cluster that is left alone.
    pub unasked: u64,
    /// Questions that the cluster did not answer in time.
    pub late: u64,
    /// Tokens that were asked for.
    pub tokens_asked: u64,
    /// Tokens that were loaded.
    pub tokens_loaded: u64,
    /// Blocks that came and were not used.
    pub blocks_wasted: u64,
    /// Blocks that were saved.
    pub blocks_saved: u64,
    /// Blocks that were to be saved and are not in the cluster.
    pub blocks_lost: u64,
    /// Times that there was no memory for something.
    pub no_memory: u64,
}

/// Why blocks are not saved though the engine has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotSaved {
    /// There is no room for them in memory for what is on its way.
    NoMemory,
    /// Saves before it were not answered.
    Rests,
    /// Nobody has said what they are called.
    Unnamed,
}

impl fmt::Display for NotSaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotSaved::NoMemory => "blocks are not saved: memory for blocks on their way has no room for them (memory_mb, gpu_memory_mb)",
            NotSaved::Rests => {
                "blocks are not saved: no node answered the last saves, and the cluster is left alone for a while"
            }
            NotSaved::Unnamed => "blocks are not saved: this worker was not told what they are called",
        })
    }
}
