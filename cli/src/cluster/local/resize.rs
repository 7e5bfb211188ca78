//! A local cluster's nodes become more or fewer while it runs: somebody leaves a wish in its folder, its supervisor heeds it. The
//! cluster file says what there is then, so that the cluster comes back as large as it was.

use super::{CONFIG_FILE, Cluster, RunningProcess};
use crate::cluster::end::end;
use anyhow::{Context, Result, bail};
use kvhive_config::ClusterConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::Path;

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
            }
        }
        Ok(())
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
    for id in wanted.iter().filter(|id| !nodes.iter().any(|node| id_of(node) == **id)) {
        // Both are held until both are known.
        let held = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [data, metrics] = [held[0].local_addr()?, held[1].local_addr()?];
        out.push_str("\n[[node]]\n");
        for line in pattern.lines() {
            let key = line.split(" = ").next().unwrap_or_default();
            match key {
                "id" => writeln!(out, "id = \"{id}\""),
                "data" => writeln!(out, "data = \"{data}\""),
                "metrics" => writeln!(out, "metrics = \"{metrics}\""),
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
    use kvhive_config::LocalCluster;

    #[test]
    fn a_file_gets_the_nodes_that_are_wished_and_is_one_again() {
        let ports = (1..=64).map(|at| 20_000 + at).collect();
        let cluster = LocalCluster { coordinators: 1, nodes: 2, ports, ..LocalCluster::default() };
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
}
