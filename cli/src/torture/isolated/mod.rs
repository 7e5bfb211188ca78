//! A cluster of which each process has a network of its own, and each coordinator a disk of its own, so that both can be broken
//! without anything else on this machine noticing. What was made here is removed with this value, and what a killed run left by the
//! next one.

mod clock;
mod disk;
mod memory;
mod network;
mod probe;
mod words;

pub(super) use clock::wrong_clock;
pub(super) use disk::{Disk, FOLDER, SyncErrors};
pub(super) use memory::Group;
pub(super) use network::{Network, Trouble};
pub(super) use probe::{Can, probe};

use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// What begins the names of all that is made.
const STEM: &str = "kvt";

/// Says whether a name is of a run whose process is gone: `stem` and the process come first in it.
fn is_left(name: &str, stem: &str) -> bool {
    let Some(rest) = name.strip_prefix(stem) else { return false };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    !digits.is_empty() && !Path::new("/proc").join(digits).exists()
}

/// Networks and disks of one cluster.
pub(super) struct Isolation {
    // Disks first: processes in the networks have ended by then.
    disks: BTreeMap<String, Disk>,
    network: Network,
    can: Can,
}

impl Isolation {
    /// Makes a network for each of these processes.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(super) fn new(ids: &[String], can: Can) -> Result<Isolation> {
        Network::sweep();
        disk::sweep();
        memory::sweep();
        Ok(Isolation { disks: BTreeMap::new(), network: Network::new(ids)?, can })
    }

    /// Gives a process a disk of its own at `place`, its image beside.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(super) fn give_disk(&mut self, id: &str, image: &Path, place: &Path) -> Result<()> {
        self.disks.insert(id.to_owned(), Disk::new(image, place)?);
        Ok(())
    }

    /// Returns its network.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Returns a process' disk, if it has one.
    pub(super) fn disk(&mut self, id: &str) -> Option<&mut Disk> {
        self.disks.get_mut(id)
    }

    /// Says what this machine can do.
    pub(super) fn can(&self) -> &Can {
        &self.can
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_that_are_over_have_left_is_swept() {
        let own = std::process::id();
        let left = |name: &str| is_left(name, STEM);
        assert!(!left(&format!("kvt{own}n0")) && !left("eth0") && !left("kvt") && !left("kvtx"));
        // More than a process id can be.
        assert!(left("kvt99999999n0"));
    }
}
