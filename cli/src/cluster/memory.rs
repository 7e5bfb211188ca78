//! The memory of this machine, against what the nodes of a local cluster take of it at their start. What files of the kernel say is
//! read here and judged by functions that are told what they say.

use crate::report;
use anyhow::{Result, bail};
use kvhive_config::{ClusterConfig, DeviceKind};
use std::time::Duration;

/// Bytes that are taken in a second where a machine is slow and busy: each page is touched.
const LEAST_RATE: u64 = 64 << 20;

/// Returns the bytes that processes here can take; none where the system does not say.
pub(crate) fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    available_by(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max"))
}

/// Returns the least of what the host has available and its group allows, and the huge pages that are reserved and free besides: arenas take
/// those first, and neither counts them.
fn available_by(meminfo: &str, group: &str) -> Option<u64> {
    let figure = |name| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
    };
    let kib = figure("MemAvailable:").map(|kib| kib << 10);
    let ordinary = kib.into_iter().chain(group.trim().parse().ok()).min()?;
    // Some of the free ones are promised to those who have mapped them and not touched them yet.
    let [free, promised, page_kib] =
        ["HugePages_Free:", "HugePages_Rsvd:", "Hugepagesize:"].map(|name| figure(name).unwrap_or_default());
    let huge = free.saturating_sub(promised).saturating_mul(page_kib << 10);
    Some(ordinary.saturating_add(huge))
}

/// Returns the bytes that the nodes of a cluster on this machine take at their start, at the least: a device tier that is a GPU's, or is
/// where there is one, is not counted.
fn taken(config: &ClusterConfig) -> u64 {
    let devices = config.nodes.iter().flat_map(|node| &node.devices);
    let each = devices.map(|device| match device.kind {
        DeviceKind::Host => device.memory.0.saturating_add(device.host_memory.0),
        DeviceKind::Cuda | DeviceKind::Auto => device.host_memory.0,
    });
    each.fold(0, u64::saturating_add)
}

/// Checks that there is the memory that the nodes of a cluster on this machine take.
///
/// # Errors
/// When there is not.
pub(super) fn check(config: &ClusterConfig) -> Result<()> {
    check_by(config, available())
}

fn check_by(config: &ClusterConfig, available: Option<u64>) -> Result<()> {
    let (Some(free), wanted) = (available, taken(config)) else { return Ok(()) };
    if wanted > free {
        let devices: usize = config.nodes.iter().map(|node| node.devices.len()).sum();
        bail!(
            "the nodes would take {} of memory at their start, and {} are available here (`kvhive doctor`): {} of {} each have \
             a device tier and a host tier. Make these smaller (--device-memory, --host-memory), start fewer (--nodes, --devices), or \
             free some memory",
            report::bytes(wanted),
            report::bytes(free),
            report::counted(devices as u64, "device"),
            report::counted(config.nodes.len() as u64, "node"),
        );
    }
    Ok(())
}

/// Returns how long the nodes of a cluster on this machine may take to take their memory.
pub(super) fn taking(config: &ClusterConfig) -> Duration {
    Duration::from_secs(taken(config) / LEAST_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_config::{Bytes, LocalCluster, LocalShape};

    #[test]
    fn memory_is_the_least_of_what_the_host_and_the_group_have() {
        let meminfo = "MemTotal:       2048 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(available_by(meminfo, "max\n"), Some(1 << 20));
        assert_eq!(available_by(meminfo, "524288\n"), Some(512 << 10));
        assert_eq!(available_by("", ""), None);
    }

    #[test]
    fn huge_pages_that_are_reserved_and_free_are_there_besides() {
        let meminfo = "MemAvailable:   1024 kB\nHugePages_Total:      16\nHugePages_Free:        9\n\
                       HugePages_Rsvd:        1\nHugepagesize:       2048 kB\n";
        assert_eq!(available_by(meminfo, "max\n"), Some((1 << 20) + (16 << 20)));
        assert_eq!(available_by(meminfo, "524288\n"), Some((512 << 10) + (16 << 20)));
        let all_promised = meminfo.replace("HugePages_Rsvd:        1", "HugePages_Rsvd:        9");
        assert_eq!(available_by(&all_promised, "max\n"), Some(1 << 20));
    }

    #[test]
    fn what_all_devices_of_a_local_cluster_take_together_must_be_there_and_is_waited_for() {
        let shape = LocalShape {
            nodes: 2,
            devices: 2,
            device_memory: Bytes(4 << 30),
            host_memory: Bytes(1 << 30),
            ..LocalShape::default()
        };
        let cluster = |shape| LocalCluster { shape, ..LocalCluster::default() };
        let config = cluster(shape.clone()).config().expect("it is right");
        assert!(check_by(&config, Some(20 << 30)).is_ok() && check_by(&config, None).is_ok());
        let refused = check_by(&config, Some((20 << 30) - 1)).expect_err("a byte is lacking").to_string();
        assert!(refused.starts_with("the nodes would take 20.0 GiB of memory"), "{refused}");
        assert!(refused.contains("4 devices of 2 nodes"), "{refused}");
        assert_eq!(taking(&config), Duration::from_secs(320));
        let on_gpus = cluster(LocalShape { device_kind: DeviceKind::Auto, ..shape });
        assert_eq!(taken(&on_gpus.config().expect("it is right")), 4 << 30);
    }
}
