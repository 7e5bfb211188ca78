//! Who the coordinators of a cluster file are, where they keep their logs, and whether they are there.

use anyhow::{Context, Result};
use kvhive_config::{ClusterConfig, CoordinatorConfig};
use kvhive_coordinator::{PeerConfig, Place};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest that is waited for a coordinator that may be there.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns a path of the cluster file: a relative one starts at that file's folder.
pub(super) fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new(".")).join(path)
}

/// Returns a coordinator as the others know it.
pub(super) fn peer(own: &CoordinatorConfig) -> PeerConfig {
    PeerConfig {
        peer: own.peer,
        name: own.id.clone(),
        raft_address: own.raft_address(),
        admin_address: own.admin_address(),
    }
}

/// Returns every coordinator's folder.
pub(crate) fn all(config: &ClusterConfig, file: &Path) -> Vec<Place> {
    let place = |own: &CoordinatorConfig| Place { own: peer(own), data_dir: beside(file, &own.data_dir) };
    config.coordinators.iter().map(place).collect()
}

/// Finds one coordinator.
///
/// # Errors
/// When the file has none of this name.
pub(crate) fn find<'a>(all: &'a [Place], id: &str, file: &Path) -> Result<&'a Place> {
    all.iter().find(|place| place.own.name == id).with_context(|| {
        let known: Vec<&str> = all.iter().map(|place| &*place.own.name).collect();
        format!("{} has no coordinator {id:?}; it has {}", file.display(), known.join(", "))
    })
}

/// Says whether a coordinator's host is this machine.
pub(crate) fn is_here(own: &PeerConfig) -> bool {
    let mut addresses = own.raft_address.to_socket_addrs().into_iter().flatten();
    addresses.any(|mut address| {
        address.set_port(0);
        TcpListener::bind(address).is_ok()
    })
}

/// Says whether something answers where a coordinator listens.
pub(crate) fn answers(own: &PeerConfig) -> bool {
    let mut addresses = own.raft_address.to_socket_addrs().into_iter().flatten();
    addresses.any(|address| TcpStream::connect_timeout(&address, LIMIT).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_seen_where_it_listens_and_while_it_does() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let raft_address = listener.local_addr().expect("it is bound").to_string();
        let own = PeerConfig {
            peer: 1,
            name: "a".to_owned(),
            raft_address,
            admin_address: "127.0.0.1:1".to_owned(),
        };
        assert!(answers(&own) && is_here(&own));
        drop(listener);
        assert!(!answers(&own) && is_here(&own));
        // Of the addresses that are kept for documents (RFC 5737), no machine has one.
        let elsewhere = PeerConfig { raft_address: "192.0.2.1:1".to_owned(), ..own };
        assert!(!is_here(&elsewhere));
    }
}
