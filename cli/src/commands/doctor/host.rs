//! The host: processor, kernel, limits, memory, disk. What files of the kernel say is read here and judged by
//! functions that are told what they say.

use super::finding::Finding;
use super::gpus::Gpus;
use crate::cluster::memory;
use crate::report;
use kvhive_gpu::{Arena, HostDevice, PageKind, SizeClass};
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(super) const HOST: &str = "host";
/// Files that a node with a few hundred clients has open.
const ENOUGH_FILES: u64 = 4096;
/// What direct IO is done in.
const PAGE: usize = 4096;
/// Memory that is taken to see whether it can be shared: two huge pages.
const SHARED_BYTES: u64 = 4 << 20;

/// NCCL as the interpreter of the engines has it.
#[derive(Default, Debug)]
pub(super) struct Nccl<'a> {
    /// Its library, where a package of the interpreter's brings it.
    pub(super) brought: Option<&'a str>,
    /// Whether something there uses it; kvhive itself does not.
    pub(super) is_used: bool,
}

/// Looks at everything that needs nobody else.
pub(super) fn look(disk: Option<&Path>, wanted: Option<u64>, gpus: &Gpus, nccl: &Nccl<'_>) -> Vec<Finding> {
    let limits = read("/proc/self/limits");
    let mut findings = vec![
        Finding::holds(HOST, "kvhive", env!("CARGO_PKG_VERSION")),
        processor(),
        uring(&read("/proc/sys/kernel/osrelease"), &read("/proc/sys/kernel/io_uring_disabled")),
        open_files(&limits),
        locked_memory(&limits),
        huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        shared_memory(pages_of_shared(), kvhive_wire::this_host().is_some()),
        free_memory(memory::available(), wanted),
    ];
    findings.extend(gpus.look(nccl));
    findings.extend(disk.map(direct_io));
    findings
}

/// Reads a file of the kernel's; nothing where there is none.
pub(super) fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        let advice = "codecs and digests run several times slower without AVX2: take a newer processor";
        return Finding::warns(HOST, "processor", format!("{cores} cores without AVX2"), advice);
    }
    Finding::holds(HOST, "processor", format!("{cores} cores"))
}

fn uring(release: &str, disabled: &str) -> Finding {
    let found = format!("Linux {}", release.trim());
    match disabled.trim() {
        // The file came with Linux 6.6; before, there is no such setting.
        "" | "0" => Finding::holds(HOST, "kernel", found),
        _ => Finding::warns(
            HOST,
            "kernel",
            format!("{found}, io_uring is switched off"),
            "a disk tier reads by threads then; sysctl kernel.io_uring_disabled=0 lets it use io_uring",
        ),
    }
}

/// Returns the soft limit of a line of `/proc/self/limits`; none for no limit.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_files(limits: &str) -> Finding {
    match limit(limits, "Max open files") {
        Some(files) if files < ENOUGH_FILES => Finding::warns(
            HOST,
            "open files",
            files.to_string(),
            format!(
                "each connection is one: raise the limit (ulimit -n, LimitNOFILE=) to {ENOUGH_FILES} or more"
            ),
        ),
        Some(files) => Finding::holds(HOST, "open files", files.to_string()),
        None => Finding::holds(HOST, "open files", "no limit"),
    }
}

fn locked_memory(limits: &str) -> Finding {
    match limit(limits, "Max locked memory") {
        Some(bytes) => Finding::holds(
            HOST,
            "locked memory",
            format!("{}: more of a node's memory cannot be pinned", report::bytes(bytes)),
        ),
        None => Finding::holds(HOST, "locked memory", "no limit"),
    }
}

fn huge_pages(enabled: &str) -> Finding {
    if enabled.contains("[never]") {
        let advice = "large memory is slower in small pages: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        return Finding::warns(HOST, "huge pages", "never", advice);
    }
    let chosen = enabled.split(['[', ']']).nth(1).unwrap_or("unknown");
    Finding::holds(HOST, "huge pages", chosen)
}

/// Returns which pages memory has that processes share; none where the system has no such memory that is as good as any other.
fn pages_of_shared() -> Option<PageKind> {
    let class = SizeClass { frame_bytes: SHARED_BYTES, frames: 1 };
    let arena = Arena::new(&HostDevice::shared(SHARED_BYTES), &[class]).ok()?;
    arena.share().map(|_| arena.pages())
}

fn shared_memory(pages: Option<PageKind>, knows_host: bool) -> Finding {
    match pages {
        _ if !knows_host => Finding::warns(
            HOST,
            "shared memory",
            "the system does not say which host this is",
            "blocks of nodes here are sent over sockets: is /proc mounted?",
        ),
        Some(PageKind::Huge) => Finding::holds(HOST, "shared memory", "in reserved huge pages"),
        Some(PageKind::Transparent) => Finding::holds(HOST, "shared memory", "in huge pages"),
        Some(PageKind::Small) => Finding::holds(HOST, "shared memory", "in small pages"),
        None => Finding::warns(
            HOST,
            "shared memory",
            "not in huge pages",
            "blocks of nodes here are sent over sockets: Linux 6.1 or newer joins pages of shared memory",
        ),
    }
}

fn free_memory(available: Option<u64>, wanted: Option<u64>) -> Finding {
    let Some(free) = available else {
        return Finding::warns(HOST, "memory", "unknown", "/proc/meminfo cannot be read: is /proc mounted?");
    };
    let found = format!("{} available", report::bytes(free));
    match wanted {
        Some(wanted) if wanted > free => Finding::fails(
            HOST,
            "memory",
            format!("{found}, {} wanted", report::bytes(wanted)),
            "a node takes its memory at its start: give it less, or free some",
        ),
        _ => Finding::holds(HOST, "memory", found),
    }
}

/// Writes one page into a folder past the page cache.
fn direct_io(folder: &Path) -> Finding {
    let what = format!("disk {}", folder.display());
    match try_direct_io(folder) {
        Ok(free) => Finding::holds(HOST, what, format!("{} free, direct IO works", report::bytes(free))),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Finding::warns(
            HOST,
            what,
            "no direct IO",
            "reads go through the page cache and take memory twice: take a file system that has O_DIRECT (ext4, xfs)",
        ),
        Err(error) => Finding::fails(
            HOST,
            what,
            error.to_string(),
            "make the folder, and let the node's user write to it",
        ),
    }
}

fn try_direct_io(folder: &Path) -> io::Result<u64> {
    // Gone when it is closed, whatever happens.
    let file = tempfile::Builder::new().prefix(".kvhive-doctor-").tempfile_in(folder)?;
    let mut direct =
        OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(file.path())?;
    let room = vec![0u8; 2 * PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    direct.write_all(&room[start..start + PAGE])?;
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max open files            1024                 524288               files     \n\
                          Max locked memory         unlimited            unlimited            bytes     \n";

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(open_files(LIMITS).state, State::Warns);
        assert_eq!(open_files(&LIMITS.replace("1024", "8192")).state, State::Holds);
        assert_eq!(locked_memory(LIMITS).found, "no limit");
        assert_eq!(open_files("").found, "no limit");
    }

    #[test]
    fn a_node_is_not_to_take_more_memory_than_there_is() {
        assert_eq!(free_memory(Some(1 << 20), None).found, "1.0 MiB available");
        assert_eq!(free_memory(Some(1 << 20), Some(1 << 20)).state, State::Holds);
        assert_eq!(free_memory(Some(1 << 20), Some((1 << 20) + 1)).state, State::Fails);
        assert_eq!(free_memory(None, None).state, State::Warns);
    }

    #[test]
    fn what_costs_speed_is_a_warning_that_says_what_to_do() {
        let warnings = [
            uring("6.8.0\n", "2\n"),
            huge_pages("always madvise [never]\n"),
            shared_memory(None, true),
            shared_memory(Some(PageKind::Huge), false),
        ];
        for warning in warnings {
            assert_eq!((warning.state, warning.advice.is_some()), (State::Warns, true), "{warning:?}");
        }
        assert_eq!(shared_memory(Some(PageKind::Transparent), true).found, "in huge pages");
        assert_eq!(huge_pages("always [madvise] never\n").found, "madvise");
        assert_eq!(uring("6.1.0\n", "").found, "Linux 6.1.0");
    }

    #[test]
    fn a_folder_is_tried() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_ne!(direct_io(folder.path()).state, State::Fails);
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
        assert_eq!(direct_io(&folder.path().join("none")).state, State::Fails);
    }
}
