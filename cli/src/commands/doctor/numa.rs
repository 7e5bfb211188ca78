//! The host's NUMA nodes, and on which of them a device of the PCI bus lies, as the kernel's tree below `/sys` has it.

use super::finding::Finding;
use super::host::HOST;
use crate::report;
use serde::Serialize;
use std::path::Path;

const WHAT: &str = "NUMA nodes";

/// One of them: processors and the memory that is near these.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Node {
    pub(super) node: u32,
    /// As the kernel lists them, e.g. `0-31,64`.
    pub(super) cpus: String,
    pub(super) memory_bytes: u64,
}

/// Where a device is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Near {
    /// None where the kernel does not say, as on a host with one node.
    pub(super) node: Option<u32>,
    /// The processors that are near it.
    pub(super) cpus: Option<String>,
}

/// Reads all of them below `sys`, by their numbers.
pub(super) fn nodes(sys: &Path) -> Vec<Node> {
    let folder = sys.join("devices/system/node");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let node = |entry: std::fs::DirEntry| {
        let node: u32 = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = read(&entry.path().join("cpulist"));
        Some(Node { node, cpus, memory_bytes: memory(&read(&entry.path().join("meminfo"))) })
    };
    let mut nodes: Vec<Node> = entries.filter_map(node).collect();
    nodes.sort_by_key(|one| one.node);
    nodes
}

/// Says where the device at an address of the PCI bus is.
pub(super) fn near(sys: &Path, pci: &str) -> Near {
    let folder = sys.join("bus/pci/devices").join(pci.to_lowercase());
    // Where there is but one node the kernel says -1.
    let node = read(&folder.join("numa_node")).parse().ok();
    Near { node, cpus: Some(read(&folder.join("local_cpulist"))).filter(|list| !list.is_empty()) }
}

/// Lists them on one line; nothing where the kernel lists none.
pub(super) fn listed(nodes: &[Node]) -> Option<Finding> {
    let each = |Node { node, cpus, memory_bytes }: &Node| {
        // Some have memory alone.
        let cpus = if cpus.is_empty() { "no processor".to_owned() } else { format!("processors {cpus}") };
        format!("{node} ({cpus}, {})", report::bytes(*memory_bytes))
    };
    let each: Vec<String> = nodes.iter().map(each).collect();
    (!each.is_empty()).then(|| Finding::holds(HOST, WHAT, each.join(", ")))
}

/// Finds all the memory of a node in what the kernel says of it.
fn memory(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.split_once("MemTotal:"));
    let kib = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("room");
        std::fs::write(path, text).expect("room");
    }

    #[test]
    fn nodes_and_what_is_near_a_device_are_read_off_the_kernels_tree() {
        let folder = tempfile::tempdir().expect("room");
        let sys = folder.path();
        assert_eq!((nodes(sys), listed(&[])), (Vec::new(), None));
        let meminfo =
            |node, kib| format!("Node {node} MemTotal:       {kib} kB\nNode {node} MemFree: 7 kB\n");
        for (node, cpus, kib) in
            [(1, "32-63,96-127\n", 64 << 20), (0, "0-31,64-95\n", 32 << 20), (10, "\n", 1 << 20)]
        {
            write(sys, &format!("devices/system/node/node{node}/cpulist"), cpus);
            write(sys, &format!("devices/system/node/node{node}/meminfo"), &meminfo(node, kib));
        }
        write(sys, "devices/system/node/online", "0-1,10\n");
        let found = nodes(sys);
        let second = Node { node: 1, cpus: "32-63,96-127".to_owned(), memory_bytes: 64 << 30 };
        assert_eq!((found.len(), &found[1]), (3, &second));
        let said = listed(&found).map(|one| one.found);
        let expected = "0 (processors 0-31,64-95, 32.0 GiB), 1 (processors 32-63,96-127, 64.0 GiB), 10 (no processor, 1.0 GiB)";
        assert_eq!(said.as_deref(), Some(expected));

        write(sys, "bus/pci/devices/0000:3b:00.0/numa_node", "1\n");
        write(sys, "bus/pci/devices/0000:3b:00.0/local_cpulist", "32-63,96-127\n");
        write(sys, "bus/pci/devices/0000:5e:00.0/numa_node", "-1\n");
        let near_it = Near { node: Some(1), cpus: Some("32-63,96-127".to_owned()) };
        assert_eq!(near(sys, "0000:3B:00.0"), near_it, "the driver writes addresses in capitals");
        assert_eq!(near(sys, "0000:5E:00.0"), Near::default());
        assert_eq!(near(sys, "0000:01:00.0"), Near::default());
    }
}
