//! GPUs: what CUDA's driver and NVIDIA's management library say of them and of the links between them, and near which processors and memory
//! the kernel has them. What they say is read here and judged by functions that are told it.

use super::finding::Finding;
use super::host::{HOST, Nccl, read};
use super::numa::{Near, near};
use kvhive_gpu::cuda::{Cuda, CudaError, GpuInfo, Nvml, Topology, Version};
use serde::Serialize;
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

const WHAT: &str = "GPU";
const LINKS: &str = "GPU links";
const LIBRARIES: &str = "GPU libraries";

/// What there is, as far as it says so.
pub(super) struct Gpus {
    told: Result<Told, CudaError>,
    host: Place,
}

struct Told {
    cuda: Version,
    driver: Option<String>,
    gpus: Vec<Seen>,
    links: Vec<Link>,
}

/// A GPU, and where the kernel has it.
struct Seen {
    info: GpuInfo,
    near: Near,
}

/// What one GPU has to do with another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Link {
    from: u32,
    to: u32,
    /// Both read and write each other's memory by themselves.
    peer_access: bool,
    /// None where nobody says.
    nvlink: Option<bool>,
    by: Option<&'static str>,
}

/// Where this process may run and have memory, as the kernel lists it.
#[derive(Default)]
struct Place {
    nodes: String,
    cpus: String,
    memory: String,
}

impl Gpus {
    /// Asks for all of it, of the kernel by its tree of devices.
    pub(super) fn ask(sys: &Path) -> Gpus {
        let status = read("/proc/self/status");
        let line = |name: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            found.unwrap_or_default().trim().to_owned()
        };
        let nodes = std::fs::read_to_string(sys.join("devices/system/node/online")).unwrap_or_default();
        let nodes = nodes.trim().to_owned();
        let host = Place { nodes, cpus: line("Cpus_allowed_list"), memory: line("Mems_allowed_list") };
        Gpus { told: Cuda::find().and_then(|cuda| told(&cuda, sys)), host }
    }

    /// Returns it as the report has it.
    pub(super) fn report(&self) -> Value {
        let Ok(Told { cuda, driver, gpus, links }) = &self.told else { return Value::Null };
        let gpus: Vec<Value> = gpus
            .iter()
            .map(|Seen { info, near }| {
                let (major, minor) = info.capability;
                json!({
                    "gpu": info.ordinal, "name": info.name, "memory_bytes": info.memory_bytes,
                    "capability": format!("{major}.{minor}"), "processors": info.processors, "pci": info.pci,
                    "numa_node": near.node, "cpus": near.cpus,
                })
            })
            .collect();
        json!({ "cuda": cuda.to_string(), "driver": driver, "gpus": gpus, "links": links })
    }

    /// Judges it.
    pub(super) fn look(&self, nccl: &Nccl<'_>) -> Vec<Finding> {
        judge(&self.told, &self.host, &read("/proc/driver/nvidia/version"), &libraries(), nccl)
    }
}

/// Has CUDA's driver tell what it knows, and NVML what it does where there is one.
fn told(cuda: &Cuda, sys: &Path) -> Result<Told, CudaError> {
    let nvml = Nvml::find().ok();
    let seen = |info: GpuInfo| Seen { near: near(sys, &info.pci), info };
    let gpus: Vec<Seen> = cuda.gpus()?.into_iter().map(seen).collect();
    let mut links = Vec::new();
    for (at, one) in gpus.iter().enumerate() {
        for other in &gpus[at + 1..] {
            let (from, to) = (one.info.ordinal, other.info.ordinal);
            let peer_access = cuda.reaches(from, to)? && cuda.reaches(to, from)?;
            let between = nvml.as_ref().and_then(|nvml| nvml.between(&one.info.pci, &other.info.pci).ok());
            let (nvlink, by) = between.map(|(nvlink, topology)| (nvlink, way(topology))).unzip();
            links.push(Link { from, to, peer_access, nvlink, by });
        }
    }
    let driver = nvml.and_then(|nvml| nvml.driver_version().ok());
    let driver = driver.or_else(|| kernel_version(&read("/proc/driver/nvidia/version")));
    Ok(Told { cuda: cuda.version(), driver, gpus, links })
}

/// Finds the version in what the kernel's driver says of itself.
fn kernel_version(kernel: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    kernel.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

fn way(topology: Topology) -> &'static str {
    match topology {
        Topology::Board => "one board",
        Topology::Switch => "one PCIe switch",
        Topology::Switches => "several PCIe switches",
        Topology::Bridge => "the host's PCIe bridge",
        Topology::Node => "one NUMA node",
        Topology::System => "several NUMA nodes",
    }
}

/// Returns the names of shared libraries that the loader knows.
fn libraries() -> String {
    let asked = ["/sbin/ldconfig", "ldconfig"]
        .iter()
        .find_map(|program| Command::new(program).arg("-p").output().ok());
    asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Judges what CUDA's driver tells of itself and its GPUs, beside what the kernel's own says and the libraries that there are.
fn judge(
    told: &Result<Told, CudaError>,
    host: &Place,
    kernel: &str,
    libraries: &str,
    nccl: &Nccl<'_>,
) -> Vec<Finding> {
    let told = match told {
        Ok(told) => told,
        Err(CudaError::NoLibrary { .. }) if kernel.is_empty() => {
            return vec![Finding::holds(HOST, WHAT, "no NVIDIA driver: blocks lie in the host's memory")];
        }
        Err(error) => {
            let advice =
                "install the libraries of the kernel's driver, of the same version, and run ldconfig";
            return vec![Finding::warns(HOST, WHAT, error.to_string(), advice)];
        }
    };
    let version = told.cuda;
    if told.gpus.is_empty() {
        let advice = "look at nvidia-smi, and at CUDA_VISIBLE_DEVICES";
        return vec![Finding::warns(HOST, WHAT, format!("CUDA {version} sees none"), advice)];
    }
    let mut findings: Vec<Finding> = told.gpus.iter().map(|gpu| placed(gpu, host)).collect();
    findings.extend(linked(&told.links));
    let driver = told.driver.as_ref().map_or(String::new(), |driver| format!(", driver {driver}"));
    findings.push(match nccl.brought {
        Some(file) => Finding::holds(HOST, LIBRARIES, format!("CUDA {version}{driver}, NCCL by {file}")),
        None if libraries.contains("libnccl.so.2") => {
            Finding::holds(HOST, LIBRARIES, format!("CUDA {version}{driver}, NCCL"))
        }
        None if nccl.is_used => Finding::warns(
            HOST,
            LIBRARIES,
            format!("CUDA {version}{driver}; libnccl.so.2 not found"),
            "engines on several GPUs need it: install torch with what it depends on, or NCCL's package, and run ldconfig",
        ),
        None => Finding::holds(
            HOST,
            LIBRARIES,
            format!("CUDA {version}{driver}; no NCCL, and no engine that uses it"),
        ),
    });
    findings
}

/// Says where a GPU is, and whether memory that is taken from here is near it: a page of the host's lies near the processor that first writes it.
fn placed(gpu: &Seen, host: &Place) -> Finding {
    let what = format!("{WHAT} {}", gpu.info.ordinal);
    let facts = gpu.info.facts();
    let Some(node) = gpu.near.node else { return Finding::holds(HOST, what, facts) };
    let cpus = gpu.near.cpus.as_ref().map_or(String::new(), |cpus| format!(" (processors {cpus})"));
    let found = format!("{facts}, NUMA node {node}{cpus}");
    let is_one_node = ranges(&host.nodes)
        .iter()
        .all(|nodes| nodes.start() == nodes.end() && ranges(&host.nodes).len() == 1);
    let is_near = within(&host.memory, &node.to_string())
        || gpu.near.cpus.as_ref().is_some_and(|cpus| within(&host.cpus, cpus));
    if is_one_node || is_near {
        return Finding::holds(HOST, what, found);
    }
    let advice = format!(
        "a node that is started like this may have this GPU's host tier on another NUMA node, over which copies are slower: start it by numactl --cpunodebind={node} --membind={node}"
    );
    Finding::warns(HOST, what, found, advice)
}

/// Tells the links between GPUs: all at once where they are alike, and those that are none by name.
fn linked(links: &[Link]) -> Vec<Finding> {
    let Some(first) = links.first() else { return Vec::new() };
    let name = |link: &Link| format!("{}-{}", link.from, link.to);
    let without: Vec<String> = links.iter().filter(|link| !link.peer_access).map(name).collect();
    if !without.is_empty() {
        let found = format!("no peer access: {}", without.join(", "));
        let advice = "copies between these GPUs go by the host's memory: see nvidia-smi topo -p2p r, and whether an IOMMU or ACS of PCIe switches is on";
        return vec![Finding::warns(HOST, LINKS, found, advice)];
    }
    let words = |link: &Link| match (link.nvlink, link.by) {
        (Some(true), _) => "NVLink".to_owned(),
        (_, Some(by)) => format!("peer access by {by}"),
        _ => "peer access".to_owned(),
    };
    let is_alike = links.iter().all(|link| words(link) == words(first));
    let found = match is_alike {
        true => words(first),
        false => {
            let each = links.iter().map(|link| format!("{}: {}", name(link), words(link)));
            each.collect::<Vec<_>>().join(", ")
        }
    };
    vec![Finding::holds(HOST, LINKS, found)]
}

/// Reads a list as the kernel writes it, e.g. `0-31,64`; nothing where it is none.
fn ranges(list: &str) -> Vec<RangeInclusive<u32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').map(range).collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// Says whether all of a list is in another.
fn within(list: &str, other: &str) -> bool {
    let (list, other) = (ranges(list), ranges(other));
    let is_in =
        |one: &RangeInclusive<u32>| one.clone().all(|at| other.iter().any(|range| range.contains(&at)));
    !list.is_empty() && list.iter().all(is_in)
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    const VERSION: Version = Version { major: 13, minor: 0 };

    fn h200(ordinal: u32, numa_node: Option<u32>, cpus: &str) -> Seen {
        let info = GpuInfo {
            ordinal,
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 140 << 30,
            capability: (9, 0),
            processors: 132,
            pci: format!("FFFF:3{ordinal}:00.0"),
        };
        let cpus = Some(cpus.to_owned()).filter(|cpus| !cpus.is_empty());
        Seen { info, near: Near { node: numa_node, cpus } }
    }

    fn told(gpus: Vec<Seen>, links: Vec<Link>) -> Result<Told, CudaError> {
        Ok(Told { cuda: VERSION, driver: Some("580.95.05".to_owned()), gpus, links })
    }

    fn states(told: &Result<Told, CudaError>, host: &Place, kernel: &str) -> Vec<(State, String)> {
        let nccl = Nccl { brought: None, is_used: true };
        let found = judge(told, host, kernel, "libnccl.so.2", &nccl);
        found.into_iter().map(|one| (one.state, one.found)).collect()
    }

    #[test]
    fn gpus_are_listed_and_a_driver_that_cannot_be_used_is_told() {
        let (missing, here) =
            (CudaError::NoLibrary { reason: "libcuda.so.1: not found".to_owned() }, Place::default());
        assert_eq!(states(&Err(missing.clone()), &here, "")[0].0, State::Holds);
        let (state, found) = states(&Err(missing), &here, "NVRM version: 580.1").remove(0);
        assert!(state == State::Warns && found.contains("libcuda.so.1"), "{found}");
        assert_eq!(states(&told(Vec::new(), Vec::new()), &here, "")[0].0, State::Warns);
        let found = states(&told(vec![h200(0, None, "")], Vec::new()), &here, "");
        let expected =
            ["NVIDIA H200, 140.0 GiB, sm_90, at FFFF:30:00.0", "CUDA 13.0, driver 580.95.05, NCCL"];
        assert_eq!(found, expected.map(|found| (State::Holds, found.to_owned())));
    }

    #[test]
    fn host_memory_far_from_its_gpu_is_a_warning_where_it_can_be() {
        let near_to = |nodes: &str, cpus: &str, memory: &str| {
            let host = Place { nodes: nodes.to_owned(), cpus: cpus.to_owned(), memory: memory.to_owned() };
            placed(&h200(0, Some(1), "32-63,96-127"), &host)
        };
        assert_eq!(near_to("0-1", "0-127", "0-1").state, State::Warns);
        assert!(near_to("0-1", "0-127", "0-1").found.ends_with(", NUMA node 1 (processors 32-63,96-127)"));
        assert!(near_to("0,1", "0-31", "0").advice.is_some_and(|advice| advice.contains("--membind=1")));
        assert_eq!(near_to("0-1", "0-127", "1").state, State::Holds);
        assert_eq!(near_to("0-1", "33,40-50,127", "0-1").state, State::Holds);
        assert_eq!(near_to("0-1", "33,40-50,128", "0-1").state, State::Warns);
        assert_eq!(near_to("0", "0-127", "0").state, State::Holds);
        assert_eq!(near_to("0-1", "", "").state, State::Warns);
    }

    #[test]
    fn links_are_told_at_once_where_they_are_alike_and_those_that_lack_by_name() {
        let link = |from, to, peer_access, nvlink, by| Link { from, to, peer_access, nvlink, by };
        let told = |links: &[Link]| linked(links).pop().map(|one| (one.state, one.found));
        assert_eq!(told(&[]), None);
        let by = Some("one PCIe switch");
        let fast = [link(0, 1, true, Some(true), by), link(0, 2, true, Some(true), by)];
        assert_eq!(told(&fast), Some((State::Holds, "NVLink".to_owned())));
        let mixed = [fast[0].clone(), link(1, 2, true, Some(false), by), link(0, 3, true, None, None)];
        let words = "0-1: NVLink, 1-2: peer access by one PCIe switch, 0-3: peer access";
        assert_eq!(told(&mixed), Some((State::Holds, words.to_owned())));
        let lacking = [fast[0].clone(), link(1, 2, false, Some(false), by)];
        assert_eq!(told(&lacking), Some((State::Warns, "no peer access: 1-2".to_owned())));
    }

    #[test]
    fn nccl_is_missed_where_an_engine_would_and_brings_none() {
        let told = told(vec![h200(0, None, "")], Vec::new());
        let judged = |brought, is_used| {
            let found = judge(&told, &Place::default(), "", "", &Nccl { brought, is_used });
            let last = found.into_iter().next_back().expect("of the libraries");
            (last.state, last.found)
        };
        assert_eq!(judged(None, true).0, State::Warns);
        assert_eq!(judged(None, false).0, State::Holds);
        let (state, found) = judged(Some("/site-packages/nvidia/nccl/lib/libnccl.so.2"), true);
        assert!(state == State::Holds && found.contains("site-packages"), "{found}");
    }

    #[test]
    fn the_kernels_driver_says_its_version_in_either_way() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version: 12.2.0";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build";
        assert_eq!(kernel_version(closed).as_deref(), Some("580.95.05"));
        assert_eq!(kernel_version(open).as_deref(), Some("570.86.15"));
        assert_eq!(kernel_version(""), None);
    }
}
