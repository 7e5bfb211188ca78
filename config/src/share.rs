//! Who may look at a node's memory.

use crate::keys::SHARE_MEMORY;

/// Who may look at the memory of a node on the same host, and read blocks where they are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ShareMemory {
    /// Nobody.
    Off,
    /// Other nodes.
    Nodes,
    /// Clients too.
    #[default]
    Clients,
}

impl ShareMemory {
    /// All of them.
    pub const ALL: [ShareMemory; 3] = [ShareMemory::Off, ShareMemory::Nodes, ShareMemory::Clients];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        SHARE_MEMORY[self as usize]
    }
}
