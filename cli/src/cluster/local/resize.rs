//! A local cluster's nodes become more or fewer while it runs: somebody leaves a wish in its folder, its supervisor heeds it. The
//! cluster file says what there is then, so that the cluster comes back as large as it was.

use super::ports::MOST_LOST;
use super::{CONFIG_FILE, Cluster, PORT_IS_TAKEN, RunningProcess};
use crate::cluster::end::end;
use anyhow::{Context, Result, bail};
use kvhive_config::ClusterConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitStatus;

/// The wish within the cluster's folder.
const WISH_FILE: &str = "wish.json";
/// The largest wish, in bytes.
const MAX_WISH_BYTES: u64 = 64 << 10;

/// Which nodes there should be.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    nodes: BTreeSet<String>,
}

/// Wishes the cluster in `dir` to have these nodes and no others. Those that are to go must be empty already.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn wish(dir: &Path, nodes: BTreeSet<String>) -> Result<()> {
    let next = dir.join("wish.json.next");
    fs::write(&next, serde_json::to_vec(&Wish { nodes })?)
        .and_then(|()| fs::rename(&next, dir.join(WISH_FILE)))
        .with_context(|| format!("cannot write {}", dir.join(WISH_FILE).display()))
}

impl Cluster {
    /// Does what is wished, if anything is: starts nodes that are missing, ends those that are too many.
    ///
    /// # Errors
    /// When the wish makes no sense, or a node cannot be started.
    pub(crate) fn heed_wish(&mut self) -> Result<()> {
        let file = self.dir.join(WISH_FILE);
        let Ok(known) = fs::metadata(&file) else { return Ok(()) };
        let text = if known.len() > MAX_WISH_BYTES { String::new() } else { fs::read_to_string(&file)? };
        // Heeded once, whatever comes of it.
        fs::remove_file(&file)?;
        let Wish { nodes } =
            serde_json::from_str(&text).with_context(|| format!("{} is no wish", file.display()))?;
        self.resize(&nodes)?;
        self.running(true).save(&self.dir)
    }

    fn resize(&mut self, wanted: &BTreeSet<String>) -> Result<()> {
        if wanted.is_empty() {
            bail!("a cluster keeps one node at least");
        }
        let text = self.config.to_toml().context("a local cluster's file lists its nodes")?;
        let text = with_nodes(&text, wanted)?;
        // Read back as its processes will read it: what they would refuse is refused here.
        self.config = ClusterConfig::from_toml(&text, std::env::vars())?;
        fs::write(self.dir.join(CONFIG_FILE), text).context("cannot write the cluster file")?;
        let (stay, leave) = std::mem::take(&mut self.children)
            .into_iter()
            .partition(|(process, _)| process.kind != "node" || wanted.contains(&process.id));
        self.children = stay;
        end(leave, &self.config);
        for id in wanted {
            if !self.children.iter().any(|(process, _)| process.id == *id) {
                let child = self.spawn(id)?;
                let process = RunningProcess { id: id.clone(), kind: "node".to_owned(), pid: child.id() };
                self.children.push((process, child));
                self.added.insert(id.clone(), 0);
            }
        }
        Ok(())
    }

    /// Starts a node again on other ports that was added and has ended, as somebody was quicker to listen on one of those that were free when
    /// they were picked. Says whether it did.
    ///
    /// # Errors
    /// When the cluster file cannot be written, no port is free, or the node cannot be started.
    pub(crate) fn elsewhere(&mut self, id: &str, status: ExitStatus) -> Result<bool> {
        if status.code() != Some(PORT_IS_TAKEN.into()) {
            return Ok(false);
        }
        let Some(lost) = self.added.get_mut(id).filter(|lost| **lost < MOST_LOST) else { return Ok(false) };
        *lost += 1;
        let all: BTreeSet<String> = self.config.nodes.iter().map(|node| node.id.clone()).collect();
        let text = self.config.to_toml().context("a local cluster's file lists its nodes")?;
        let others = all.iter().filter(|one| *one != id).cloned().collect();
        let text = with_nodes(&with_nodes(&text, &others)?, &all)?;
        self.config = ClusterConfig::from_toml(&text, std::env::vars())?;
        fs::write(self.dir.join(CONFIG_FILE), text).context("cannot write the cluster file")?;
        let child = self.spawn(id)?;
        let process = RunningProcess { id: id.to_owned(), kind: "node".to_owned(), pid: child.id() };
        self.children.push((process, child));
        self.running(true).save(&self.dir)?;
        Ok(true)
    }
}

/// Returns a cluster file as it is written by [`ClusterConfig::to_toml`] with these nodes: those that it has stay as they are, the
/// others are like the last, with ports of their own.
fn with_nodes(text: &str, wanted: &BTreeSet<String>) -> Result<String> {
    let mut parts = text.split("[[node]]\n");
    let head = parts.next().unwrap_or_default();
    let nodes: Vec<&str> = parts.collect();
    let pattern = nodes.last().context("a cluster without nodes has none to add")?;
    let id_of = |node: &&str| {
        let id = node.lines().find_map(|line| line.strip_prefix("id = \""));
        id.and_then(|id| id.strip_suffix('"')).unwrap_or_default().to_owned()
    };
    let mut out = head.to_owned();
    for node in nodes.iter().filter(|node| wanted.contains(&id_of(node))) {
        out.push_str("[[node]]\n");
        out.push_str(node);
    }
    // All are held until all are known.
    let mut held = Vec::new();
    for id in wanted.iter().filter(|id| !nodes.iter().any(|node| id_of(node) == **id)) {
        out.push_str("\n[[node]]\n");
        for line in pattern.lines() {
            let key = line.split(" = ").next().unwrap_or_default();
            match key {
                "id" => writeln!(out, "id = \"{id}\""),
                "data" | "metrics" | "redis_listen" => {
                    let free = TcpListener::bind("127.0.0.1:0")?;
                    let address = free.local_addr()?;
                    held.push(free);
                    writeln!(out, "{key} = \"{address}\"")
                }
                _ => writeln!(out, "{line}"),
            }
            .expect("a String takes all");
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::local::Begin;
    use kvhive_config::{LocalCluster, LocalShape};
    use std::collections::BTreeMap;

    #[test]
    fn a_file_gets_the_nodes_that_are_wished_and_is_one_again() {
        let ports = (1..=64).map(|at| 20_000 + at).collect();
        let shape = LocalShape { coordinators: 1, nodes: 2, ..LocalShape::default() };
        let cluster = LocalCluster { shape, ports, ..LocalCluster::default() };
        let text = cluster.config().expect("it is right").to_toml().expect("it lists its nodes");
        let ids = |text: &str| {
            let config = ClusterConfig::from_toml(text, std::iter::empty()).expect("a cluster file");
            config.nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>()
        };
        let wished = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let more = with_nodes(&text, &wished(&["node-1", "node-2", "node-3", "node-4"])).expect("it grows");
        assert_eq!(ids(&more), ["node-1", "node-2", "node-3", "node-4"]);
        let fewer = with_nodes(&more, &wished(&["node-1", "node-2"])).expect("it shrinks");
        assert_eq!(ids(&fewer), ["node-1", "node-2"]);
        let first = |text: &str| text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        assert_eq!(first(&fewer), first(&text), "who stays is as before");
    }

    #[test]
    fn a_node_that_is_added_and_loses_a_port_is_started_on_others_a_few_times() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("logs")).expect("a folder");
        let ports = (1..=64).map(|at| 20_000 + at).collect();
        let shape = LocalShape { coordinators: 1, nodes: 2, ..LocalShape::default() };
        let config = LocalCluster { shape, ports, ..LocalCluster::default() };
        let config = config.config().expect("it is right");
        let ends =
            |code: u8| Begin { words: ["sh", "-c", &format!("exit {code}")].map(str::to_owned).into() };
        let begins = [("node-1", 1), ("node-2", 1), ("node-3", PORT_IS_TAKEN)];
        let mut cluster = Cluster {
            dir: folder.path().to_owned(),
            config,
            children: Vec::new(),
            begins: begins.map(|(id, code)| (id.to_owned(), ends(code))).into(),
            added: BTreeMap::new(),
            _lock: fs::File::create(folder.path().join("lock")).expect("a file"),
        };
        let all = begins.map(|(id, _)| id.to_owned()).into();
        cluster.resize(&all).expect("they are started");
        let address = |cluster: &Cluster, id: &str| {
            let text = fs::read_to_string(cluster.dir.join(CONFIG_FILE)).expect("it is written");
            let config = ClusterConfig::from_toml(&text, std::iter::empty()).expect("a cluster file");
            config.nodes.iter().find(|node| node.id == id).expect("it is in the file").data
        };
        let stays = address(&cluster, "node-2");
        let mut had = BTreeSet::from([address(&cluster, "node-3")]);
        loop {
            let Some((id, status)) = cluster.dead().expect("the system says") else {
                std::thread::sleep(crate::cluster::local::POLL);
                continue;
            };
            let again = cluster.elsewhere(&id, status).expect("there are ports");
            assert_eq!(address(&cluster, "node-2"), stays);
            match (id.as_str(), again) {
                ("node-3", true) => assert!(had.insert(address(&cluster, "node-3")), "{had:?}"),
                ("node-3", false) => break,
                _ => assert!(!again, "{id} has lost no port"),
            }
        }
        assert_eq!(had.len(), 1 + MOST_LOST as usize);
    }
}
