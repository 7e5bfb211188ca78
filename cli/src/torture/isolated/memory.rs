//! Less memory than a process wants, by a control group of its own, of either version.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const FIRST: &str = "/sys/fs/cgroup/memory";
const SECOND: &str = "/sys/fs/cgroup";

/// A control group; its processes go back to the one above with it.
pub(in super::super) struct Group {
    folder: PathBuf,
    above: PathBuf,
}

/// Returns the folder of groups that can limit memory, and the name of the limit there.
pub(super) fn groups() -> Option<(PathBuf, &'static str)> {
    let first = Path::new(FIRST);
    if first.join("memory.limit_in_bytes").exists() {
        return Some((first.to_owned(), "memory.limit_in_bytes"));
    }
    let enabled = std::fs::read_to_string(Path::new(SECOND).join("cgroup.subtree_control")).ok()?;
    enabled.split_whitespace().any(|one| one == "memory").then(|| (SECOND.into(), "memory.max"))
}

/// Removes groups of runs that are over.
pub(super) fn sweep() {
    let Some((above, _)) = groups() else { return };
    for group in std::fs::read_dir(above).into_iter().flatten().flatten() {
        if group.file_name().to_str().is_some_and(|name| super::is_left(name, super::STEM)) {
            // Fails where a process of that run still ends.
            let _ = std::fs::remove_dir(group.path());
        }
    }
}

impl Group {
    /// Lets a process take no more than `bytes` from now on.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(in super::super) fn limit(pid: u32, bytes: u64) -> Result<Group> {
        let (above, limit) = groups().context("no control group limits memory here")?;
        let folder = above.join(format!("{}{}", super::STEM, std::process::id()));
        if !folder.exists() {
            std::fs::create_dir(&folder)?;
        }
        let group = Group { folder, above };
        std::fs::write(group.folder.join(limit), bytes.to_string())?;
        std::fs::write(group.folder.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let left = std::fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in left.lines() {
            // It may have ended meanwhile.
            let _ = std::fs::write(self.above.join("cgroup.procs"), pid);
        }
        if let Err(error) = std::fs::remove_dir(&self.folder) {
            eprintln!("warning: {} is left: {error}", self.folder.display());
        }
    }
}
