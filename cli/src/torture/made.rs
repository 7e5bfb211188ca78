//! The cluster of its own: its folder and its file.

use super::isolated::FOLDER;
use super::load;
use crate::cluster::local;
use anyhow::Result;
use kvhive_config::{Bytes, ClusterConfig, LocalShape};

/// Of the cluster of its own: short, so that nodes are stopped for longer than it in little time.
const SERVING_LEASE: &str = "4s";
/// Short as well, so that who is gone is known to be so soon, and what it had is given to others. Nodes send heartbeats five times as often.
const LEASE: &str = "1s";
/// Who is gone is not waited for, so that the cluster is whole without it soon, and the next may go.
const REPAIR_AFTER: &str = "0s";

/// What is known of every file that is made here.
pub(super) const LISTS: &str = "a local cluster lists its nodes";

/// Makes the folder of a cluster of its own, with the file that `write` makes of what it is to be; whether nodes are to be stopped past
/// their serving lease decides how long that is.
///
/// # Errors
/// When the folder or the file cannot be made.
pub(super) fn prepared(
    pauses: bool,
    write: impl FnOnce(&ClusterConfig) -> Result<String>,
) -> Result<(tempfile::TempDir, ClusterConfig)> {
    let folder = tempfile::Builder::new().prefix(&format!("{FOLDER}{}-", std::process::id())).tempdir()?;
    let shape = LocalShape {
        coordinators: 3,
        nodes: 4,
        devices: 1,
        device_memory: Bytes(4 << 20),
        host_memory: Bytes(2 << 20),
        disk: Bytes(48 << 20),
        block_size: Bytes(load::BLOCK as u64),
        replicas: 2,
        ..LocalShape::default()
    };
    local::prepare(folder.path(), Some(shape), false)?;
    let file = folder.path().join(local::CONFIG_FILE);
    let serving_lease = ("KVHIVE_CLUSTER__SERVING_LEASE".to_owned(), SERVING_LEASE.to_owned());
    let always = [("LEASE", LEASE), ("REPAIR_AFTER", REPAIR_AFTER)];
    let always = always.map(|(key, value)| (format!("KVHIVE_CLUSTER__{key}"), value.to_owned()));
    // Where nobody is stopped for as long, it is as long as everywhere: so that coordinators may be gone for some seconds.
    let own = Some(serving_lease).filter(|_| pauses).into_iter().chain(always);
    let config = ClusterConfig::from_toml(&std::fs::read_to_string(&file)?, own)?;
    std::fs::write(&file, write(&config)?)?;
    Ok((folder, config))
}

/// Puts each process of a local cluster's file on a host of its own: of this machine, all of them, so that nobody else listens.
pub(super) fn moved(text: &str, host: impl Fn(&str) -> Option<String>) -> String {
    let text = text.replace("insecure = \"refused\"", "insecure = \"allowed\"");
    let mut own = None;
    let mut out = String::new();
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("id = \"").and_then(|rest| rest.strip_suffix('"')) {
            own = host(id);
        }
        match &own {
            Some(own) => out.push_str(&line.replace("127.0.0.1", own)),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_process_of_the_file_is_on_its_own_host() {
        let config = kvhive_config::LocalCluster::default().config().expect("a right file");
        let hosts: BTreeMap<&str, String> =
            config.ids().enumerate().map(|(at, id)| (id, format!("10.1.2.{}", 10 + at))).collect();
        let text = moved(&config.to_toml().expect(LISTS), |id| hosts.get(id).cloned());
        let moved = ClusterConfig::from_toml(&text, std::iter::empty()).expect("a right file");
        assert!(!text.contains("127.0.0.1"));
        for one in &moved.coordinators {
            assert_eq!((&one.host, one.raft.ip().to_string()), (&hosts[&*one.id], hosts[&*one.id].clone()));
        }
        for one in &moved.nodes {
            assert_eq!((&one.host, one.data.ip().to_string()), (&hosts[&*one.id], hosts[&*one.id].clone()));
        }
    }
}
