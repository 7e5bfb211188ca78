//! Nodes that no file lists, as a Kubernetes StatefulSet starts, rolls and ends them: each step with the words of
//! `cluster-configs/kubernetes/base/nodes.yaml`, and every block there after it.

use kvhive_client::{
    Client, ClientConfig, FetchOutcome, NamespaceClient, Prefix, StoreOptions, StoreOutcome,
};
use kvhive_protocol::Layout;
use kvhive_tests::{in_patience, kvhive};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output};

const TOKEN: &str = "a token that only this test knows";
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 200;

/// A cluster of one coordinator whose file lists no nodes; what runs ends with it.
struct Open {
    folder: tempfile::TempDir,
    admin: SocketAddr,
    raft: SocketAddr,
    processes: BTreeMap<String, Child>,
    /// Of each node: where it listens, the same whenever it comes back.
    listens: BTreeMap<String, [SocketAddr; 2]>,
}

/// Finds free ports, all different.
fn free<const N: usize>() -> [SocketAddr; N] {
    let held = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    held.each_ref().map(|listener| listener.local_addr().expect("it is bound"))
}

impl Open {
    fn start() -> Open {
        let folder = tempfile::Builder::new().prefix("kvhive-open-").tempdir().expect("a temporary folder");
        let [admin, raft] = free();
        let text = format!(
            "[cluster]\nname = \"open\"\n[[coordinator]]\nid = \"coordinator-0\"\nhost = \"127.0.0.1\"\nadmin = \"{admin}\"\n\
             raft = \"{raft}\"\ndata_dir = \"raft\"\n[node_defaults]\n[[node_defaults.device]]\nmemory = \"64MiB\"\n"
        );
        fs::write(folder.path().join("cluster.toml"), text).expect("room");
        let mut open = Open { folder, admin, raft, processes: BTreeMap::new(), listens: BTreeMap::new() };
        open.spawn("coordinator-0", &[], &[]);
        open
    }

    fn spawn(&mut self, id: &str, words: &[&str], variables: &[(String, String)]) {
        let log =
            File::options().create(true).append(true).open(self.folder.path().join(format!("{id}.log")));
        let child = Command::new(kvhive())
            .arg("up")
            .arg("--config")
            .arg(self.folder.path().join("cluster.toml"))
            .args(["--id", id])
            .args(words)
            .env("KVHIVE_TOKEN", TOKEN)
            .envs(variables.iter().cloned())
            .stderr(log.expect("room"))
            .spawn();
        self.processes.insert(id.to_owned(), child.expect("kvhive is there"));
    }

    fn ask(&self, words: &[&str]) -> Output {
        let admin = format!("http://{}", self.admin);
        let command =
            Command::new(kvhive()).args(words).env("KVHIVE_TOKEN", TOKEN).env("KVHIVE_ADMIN", admin).output();
        command.expect("kvhive is there")
    }

    /// A pod of the set begins: what its init container does, again until it can, and then the node.
    fn begin(&mut self, id: &str) {
        self.until("the init container", |open| {
            open.ask(&["drain", id, "--undo", "--if-known"]).status.success().then_some(())
        });
        let [data, metrics] = *self.listens.entry(id.to_owned()).or_insert_with(free);
        let spelled = id.to_ascii_uppercase().replace('-', "_");
        let listens = [
            (format!("KVHIVE_NODE__{spelled}__DATA"), data.to_string()),
            (format!("KVHIVE_NODE__{spelled}__METRICS"), metrics.to_string()),
        ];
        self.spawn(id, &["--host", "127.0.0.1", "--label", "host=h", "--label", "zone="], &listens);
    }

    /// A pod of the set ends: what `preStop` does, and then the signal.
    fn end(&mut self, id: &str) {
        let drained = self.ask(&["drain", id]);
        assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
        let mut child = self.processes.remove(id).expect("it runs");
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
        assert!(child.wait().expect("it is ours").success(), "it ends in order");
    }

    /// Waits until these nodes, and no others, hold all slots and nothing moves.
    fn settle(&mut self, nodes: &[&str]) {
        self.until(&format!("slots on {nodes:?}"), |open| {
            let status: Value = serde_json::from_slice(&open.ask(&["status", "--json"]).stdout).ok()?;
            let settled = status["slots"]["moving"] == 0 && status["slots"]["unavailable"] == 0;
            let devices = status["devices"].as_array()?.iter();
            let mut holders: Vec<&str> = devices
                .filter(|device| device["slots"].as_u64().is_some_and(|slots| slots > 0))
                .filter_map(|device| device["node"].as_str())
                .collect();
            holders.sort_unstable();
            (settled && holders == nodes).then_some(())
        });
    }

    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Open) -> Option<T>) -> T {
        let found = in_patience(|| look(self));
        found.unwrap_or_else(|| panic!("waited in vain for {what}:\n{}", self.logs()))
    }

    fn logs(&self) -> String {
        let files =
            fs::read_dir(self.folder.path()).expect("it is there").flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.map(|path| {
            format!("--- {}\n{}\n", path.display(), fs::read_to_string(&path).unwrap_or_default())
        })
        .collect()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            // Fails only when it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn prefix(blocks: &NamespaceClient) -> Prefix {
    let hash = |at: usize| (at as u128 + 1).to_le_bytes();
    blocks.prefix_of_engine_hashes(&(0..BLOCKS).map(hash).collect::<Vec<[u8; 16]>>())
}

fn content(at: usize) -> Vec<u8> {
    vec![at as u8; BLOCK]
}

async fn store(blocks: &NamespaceClient) {
    let memory: Vec<Vec<u8>> = (0..BLOCKS).map(content).collect();
    let memory: Vec<&[u8]> = memory.iter().map(|block| &block[..]).collect();
    let report = blocks.store(&prefix(blocks), 0..BLOCKS, &memory, StoreOptions::default()).await;
    let outcomes = report.expect("it fits").outcomes;
    let is_there = |outcome: &StoreOutcome| matches!(outcome, StoreOutcome::Acknowledged { .. });
    assert!(outcomes.iter().all(is_there), "{outcomes:?}");
}

async fn all_come(blocks: &NamespaceClient, when: &str) {
    let mut memory = vec![vec![0u8; BLOCK]; BLOCKS];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(|block| &mut block[..]).collect();
    let report = blocks.fetch_into(&prefix(blocks), 0..BLOCKS, &mut targets).await.expect("it fits");
    for (at, outcome) in report.outcomes.iter().enumerate() {
        assert!(matches!(outcome, FetchOutcome::Loaded(_)), "block {at} {when}: {outcome:?}");
        assert!(memory[at] == content(at), "block {at} has wrong bytes {when}");
    }
}

#[test]
fn a_set_of_nodes_grows_rolls_and_shrinks_without_losing_a_block() {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let mut open = Open::start();
    open.begin("kvhive-node-0");
    open.settle(&["kvhive-node-0"]);
    let config = ClientConfig::new(vec![open.raft.to_string()], TOKEN.as_bytes().to_vec());
    let client = runtime.block_on(Client::connect(config)).expect("a coordinator answers");
    let layout = Layout::opaque(BLOCK as u32, 16);
    let blocks = client.namespace("default", "test", layout, 0).expect("the default tenant exists");
    runtime.block_on(store(&blocks));

    open.begin("kvhive-node-1");
    open.settle(&["kvhive-node-0", "kvhive-node-1"]);
    runtime.block_on(all_come(&blocks, "after the set has grown"));

    open.end("kvhive-node-0");
    open.settle(&["kvhive-node-1"]);
    open.begin("kvhive-node-0");
    open.settle(&["kvhive-node-0", "kvhive-node-1"]);
    runtime.block_on(all_come(&blocks, "after a pod was replaced"));

    open.end("kvhive-node-1");
    open.settle(&["kvhive-node-0"]);
    runtime.block_on(all_come(&blocks, "after the set has shrunk"));
}
