//! A whole cluster on this machine: all processes on 127.0.0.1, on ports that the caller has found free.

use crate::config::ClusterConfig;
use crate::node::DeviceKind;
use crate::problem::ConfigError;
use crate::units::Bytes;
use std::fmt::Write;

/// How many of everything a cluster on this machine has, and how large. The default is what `kvhive up` starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalShape {
    /// Coordinator processes, `coord-1` and up: 1 to 15.
    pub coordinators: u32,
    /// Node processes, `node-1` and up.
    pub nodes: u32,
    /// Devices of each node.
    pub devices: u32,
    /// What holds the device tiers; of GPUs each device of a node takes the next.
    pub device_kind: DeviceKind,
    /// Device tier of each device.
    pub device_memory: Bytes,
    /// Host tier over each device; 0 for none.
    pub host_memory: Bytes,
    /// Disk tier under each device; 0 for none.
    pub disk: Bytes,
    /// Size of every frame.
    pub block_size: Bytes,
    /// Copies of each slot.
    pub replicas: u32,
    /// What decides which block leaves a full shard; what the usual mode says when none.
    pub strategy: Option<String>,
    /// Whether every channel is encrypted: certificate, key and authority are read from `tls/` beside the cluster file.
    pub tls: bool,
}

/// A cluster on this machine.
///
/// ```
/// use kvhive_config::{LocalCluster, LocalShape};
///
/// let shape = LocalShape { coordinators: 1, nodes: 1, ..LocalShape::default() };
/// let small = LocalCluster { shape, ports: vec![4000, 4001, 4002, 4003], ..LocalCluster::default() };
/// let config = small.config()?;
/// assert_eq!(config.ids().collect::<Vec<_>>(), ["coord-1", "node-1"]);
/// assert_eq!(config.nodes[0].data_address(), "127.0.0.1:4002");
/// # Ok::<(), kvhive_config::ConfigError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalCluster {
    /// How many of everything, and how large.
    pub shape: LocalShape,
    /// Folder under which each coordinator, and each node that has a disk tier, gets one of its own, by its id. The token is read from `token` beside the
    /// cluster file.
    pub base_dir: String,
    /// Admin and raft of each coordinator in turn, then data and metrics of each node.
    pub ports: Vec<u16>,
}

/// Written out at most, so that a huge wish costs little; each is more than a file may have, so it is refused.
const MOST_PROCESSES: u32 = 9_999;
const MOST_DEVICES: u32 = 17;

impl Default for LocalShape {
    fn default() -> Self {
        LocalShape {
            coordinators: 3,
            nodes: 2,
            devices: 2,
            device_kind: DeviceKind::Host,
            device_memory: Bytes(128 << 20),
            host_memory: Bytes(64 << 20),
            disk: Bytes(0),
            block_size: Bytes(64 << 10),
            replicas: 1,
            strategy: None,
            tls: false,
        }
    }
}

impl Default for LocalCluster {
    fn default() -> Self {
        LocalCluster {
            shape: LocalShape::default(),
            base_dir: "data".to_owned(),
            ports: vec![7800, 7801, 7820, 7821, 7840, 7841, 7810, 7811, 7830, 7831],
        }
    }
}

impl LocalCluster {
    /// Returns the cluster file of this cluster, checked like any other.
    ///
    /// # Errors
    /// When the numbers make no cluster, such as two coordinators, too few ports or one port twice.
    pub fn config(&self) -> Result<ClusterConfig, ConfigError> {
        ClusterConfig::from_toml(&self.text(), []).map_err(|mut error| {
            error.problems.iter_mut().for_each(crate::Problem::forget_line);
            error
        })
    }

    /// Writes the file with what is given; what makes no cluster is told by the checks that every file passes.
    fn text(&self) -> String {
        let shape = &self.shape;
        let mut out = format!(
            "cluster = {{ name = \"local\", replicas = {}, token_file = \"token\" }}\n",
            shape.replicas
        );
        if shape.tls {
            let tls = "[tls]\ncertificate = \"tls/member.pem\"\nkey = \"tls/member.key\"\nauthorities = \"tls/authority.pem\"\n";
            out.push_str(tls);
        }
        let mut ports = self.ports.iter().copied();
        // A port that was not given is refused as port 0, under its key.
        let mut address = || format!("\"127.0.0.1:{}\"", ports.next().unwrap_or(0));
        let base_dir = self.base_dir.replace('\\', "\\\\").replace('"', "\\\"");
        for number in 1..=shape.coordinators.min(MOST_PROCESSES) {
            let (admin, raft) = (address(), address());
            write!(
                out,
                "[[coordinator]]\nid = \"coord-{number}\"\nhost = \"127.0.0.1\"\nadmin = {admin}\nraft = {raft}\n\
                 data_dir = \"{base_dir}/coord-{number}\"\n"
            )
            .expect("writing to a String does not fail");
        }
        let devices = shape.devices.min(MOST_DEVICES);
        let kind = shape.device_kind.as_str();
        let device = |gpu: u32| {
            let (memory, host, disk) = (shape.device_memory, shape.host_memory, shape.disk);
            format!(
                "[[node.device]]\nkind = \"{kind}\"\ngpu = {gpu}\nmemory = \"{memory}\"\nhost_memory = \"{host}\"\ndisk = \"{disk}\"\n"
            )
        };
        let is_gpu = shape.device_kind != DeviceKind::Host;
        for number in 1..=shape.nodes.min(MOST_PROCESSES) {
            let (data, metrics) = (address(), address());
            write!(
                out,
                "[[node]]\nid = \"node-{number}\"\nhost = \"127.0.0.1\"\ndata = {data}\nmetrics = {metrics}\n\
                 block_sizes = [\"{}\"]\n",
                shape.block_size
            )
            .expect("writing to a String does not fail");
            if shape.disk > Bytes(0) {
                writeln!(out, "disk_dir = \"{base_dir}\"").expect("writing to a String does not fail");
            }
            if let Some(strategy) = &shape.strategy {
                let strategy = strategy.replace('\\', "\\\\").replace('"', "\\\"");
                writeln!(out, "strategy = \"{strategy}\"").expect("writing to a String does not fail");
            }
            for at in 0..devices {
                out.push_str(&device(if is_gpu { at } else { 0 }));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual() -> LocalShape {
        LocalShape::default()
    }

    fn of(shape: LocalShape) -> LocalCluster {
        LocalCluster { shape, ..LocalCluster::default() }
    }

    fn problems(cluster: &LocalCluster) -> Vec<String> {
        cluster.config().unwrap_err().problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn numbers_that_make_no_cluster_are_told_by_key() {
        let many =
            LocalCluster { ports: (7800..7900).collect(), ..of(LocalShape { coordinators: 16, ..usual() }) };
        assert_eq!(
            problems(&many),
            ["coordinator = (array of 16): allowed is 1 to 15 tables, each begun by [[coordinator]]"]
        );
        let few_ports = LocalCluster { ports: vec![7800; 9], ..LocalCluster::default() };
        let found = problems(&few_ports);
        assert!(found[0].starts_with("node[1].metrics = \"127.0.0.1:0\": allowed is"), "{found:?}");
        assert!(
            found[1].starts_with("coordinator[0].raft = \"127.0.0.1:7800\": coordinator[0].admin listens"),
            "{found:?}"
        );
        let no_nodes = of(LocalShape { nodes: 0, ..usual() });
        assert_eq!(
            problems(&no_nodes),
            ["node: missing; wanted is 1 to 1024 tables, each begun by [[node]]"]
        );
    }

    #[test]
    fn a_huge_wish_is_refused_and_not_built() {
        let huge = of(LocalShape { nodes: u32::MAX, devices: u32::MAX, ..usual() });
        assert!(huge.config().is_err());
    }

    #[test]
    fn a_disk_stands_beside_the_raft_logs() {
        let plain = LocalCluster::default().config().unwrap();
        assert!(plain.nodes.iter().all(|node| node.disk_dir.is_none()));
        let with = of(LocalShape { disk: Bytes(1 << 30), ..usual() }).config().unwrap();
        assert!(with.nodes.iter().all(|node| node.disk_dir.as_deref() == Some("data")));
        assert!(with.nodes[1].devices.iter().all(|device| device.disk == Bytes(1 << 30)));
    }

    #[test]
    fn a_folder_with_quotes_in_its_name_stays_a_folder() {
        let odd = LocalCluster { base_dir: "/tmp/a \"b\" \\c".to_owned(), ..LocalCluster::default() };
        assert_eq!(odd.config().unwrap().coordinators[0].data_dir, "/tmp/a \"b\" \\c/coord-1");
    }
}
