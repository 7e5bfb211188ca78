//! How the processes of a local cluster are ended: told to, waited for as long as each may take, killed only then.

use super::local::{CONFIG_FILE, POLL, RunningProcess};
use kvhive_config::{ClusterConfig, Process};
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long a supervisor may take to end besides what its processes take.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// After this it is said what a process that was told to end is waited for.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Returns after how long a process that was told to end is killed.
fn kill_after(config: &ClusterConfig, id: &str) -> Duration {
    config.process(id).map_or(STOP_LIMIT, Process::kill_after)
}

/// Tells processes to end and waits until they have; kills what takes longer than it may.
pub(super) fn end(mut children: Vec<(RunningProcess, Child)>, config: &ClusterConfig) {
    for (_, child) in &children {
        signal(child.id(), rustix::process::Signal::TERM);
    }
    let begun = Instant::now();
    let mut is_told = false;
    while !children.is_empty() {
        children.retain_mut(|(process, child)| match child.try_wait() {
            Ok(None) => {
                let limit = kill_after(config, &process.id);
                if begun.elapsed() > limit {
                    eprintln!("warning: {} did not end within {limit:?}; killing it", process.id);
                    // Fails only when it has ended meanwhile.
                    let _ = child.kill();
                    let _ = child.wait();
                    return false;
                }
                true
            }
            _ => false,
        });
        if !children.is_empty() {
            if !is_told && begun.elapsed() > TELL_AFTER {
                is_told = true;
                eprintln!("{}", waited_for(config, children.iter().map(|(process, _)| process.id.as_str())));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Says what is waited for.
fn waited_for<'a>(config: &ClusterConfig, ids: impl Iterator<Item = &'a str>) -> String {
    let keeps =
        |id: &&str| matches!(config.process(id), Some(Process::Node(own)) if own.persist_dir.is_some());
    let (keeping, others): (Vec<&str>, Vec<&str>) = ids.partition(keeps);
    let said = [(keeping, " (a node that keeps a snapshot writes it now)"), (others, "")];
    let said = said.iter().filter(|(ids, _)| !ids.is_empty()).map(|(ids, why)| ids.join(", ") + why);
    format!("waiting for {} to end", said.collect::<Vec<_>>().join(", "))
}

/// Sends a signal to a process, if it is still there.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // Fails only when it has ended meanwhile.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Returns how long the supervisor of the cluster in `dir` may take to end its nodes, then its coordinators, then itself.
pub(super) fn stop_limit(dir: &Path) -> Duration {
    let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap_or_default();
    let config = ClusterConfig::from_toml(&text, std::env::vars());
    let longest = |kind: &str| {
        let of_kind = config.iter().flat_map(ClusterConfig::processes).filter(|one| one.kind() == kind);
        of_kind.map(Process::kill_after).max().unwrap_or(STOP_LIMIT)
    };
    longest("node") + longest("coordinator") + STOP_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_config::LocalCluster;

    #[test]
    fn a_node_that_keeps_a_snapshot_is_not_killed_while_it_writes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let text =
            LocalCluster::default().config().expect("it is right").to_toml().expect("it lists its nodes");
        let keeps = text.replacen("[[node]]\n", "[[node]]\npersist_dir = \"snapshots\"\n", 1);
        let config = ClusterConfig::from_toml(&keeps, std::iter::empty()).expect("a right file");
        let node = &config.nodes[0];
        assert!(node.persist_dir.is_some() && kill_after(&config, &node.id) > Duration::from_secs(600));
        fs::write(folder.path().join(CONFIG_FILE), keeps).expect("writable");
        assert!(stop_limit(folder.path()) > kill_after(&config, &node.id) + STOP_LIMIT);
        let said = waited_for(&config, ["node-1", "node-2"].into_iter());
        assert_eq!(said, "waiting for node-1 (a node that keeps a snapshot writes it now), node-2 to end");
        assert_eq!(waited_for(&config, ["node-2"].into_iter()), "waiting for node-2 to end");
    }
}
