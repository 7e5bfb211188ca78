//! Levels: what processes may say to each other and write down together. A build speaks a few neighbouring ones; a cluster is at the
//! newest that all its members speak, never goes back, and keeps it in its map.
//!
//! A level is raised with whatever an older build could not read: a command, a request, a kind of frame. Structs that grow
//! (`growing.rs`) need none.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a build can say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Level(pub u16);

impl Level {
    /// The first one.
    pub const FIRST: Level = Level(1);
    /// Pinned prefixes, and what emptying a member came to.
    pub const PINS: Level = Level(2);
    /// Members that are cordoned.
    pub const CORDONS: Level = Level(3);
    /// Changes that are named with a print of what is asked; sizes that the policy holds; members that are emptied where there is
    /// room; requests that nodes recall.
    pub const CHECKED: Level = Level(4);
    /// Names that nodes keep.
    pub const NAMES: Level = Level(5);
    /// Members that are emptied as the cluster's size changes.
    pub const SIZES: Level = Level(6);
    /// Memory that peers on one host look at; blocks that go from GPU to GPU.
    pub const LINKS: Level = Level(7);
    /// What sizes of the cluster would have covered over a day, which coordinators agree on; stages that clients lend to nodes;
    /// blocks that go to several GPUs at once; blocks that members have fetched from each other's replicas for clients; tenants
    /// that weigh more than others.
    pub const DAYS: Level = Level(8);
    /// Blocks that go from GPU to GPU with no piece of a few bytes beside large ones.
    pub const PACKED: Level = Level(9);
    /// The newest that this build speaks.
    pub const NEWEST: Level = Level::PACKED;
    /// The oldest that this build speaks: that of the build before it.
    pub const OLDEST: Level = Level::FIRST;
}

impl Default for Level {
    /// What a process speaks that says nothing of it.
    fn default() -> Level {
        Level::FIRST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one end of a connection speaks, and asks of the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Levels {
    /// The newest level that this process speaks.
    pub newest: Level,
    /// The level of its cluster, as far as it knows: a member that does not speak it is refused.
    pub cluster: Level,
}

impl Default for Levels {
    /// All that this build speaks, to anybody.
    fn default() -> Levels {
        Levels { newest: Level::NEWEST, cluster: Level::OLDEST }
    }
}

impl Levels {
    /// Speaks as new a level as this, to anybody.
    pub fn up_to(newest: Level) -> Levels {
        Levels { newest, ..Levels::default() }
    }
}
