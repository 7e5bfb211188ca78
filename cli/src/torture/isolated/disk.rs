//! A disk of a process' own: a file system in a file, mounted where the process keeps its data, that can be full, fail to sync, and
//! lose its power.

use super::words::{run, try_run};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Bytes of the disk.
const BYTES: u64 = 192 << 20;
/// What begins the name of the folder of a cluster of its own; the process follows.
pub(in super::super) const FOLDER: &str = "kvhive-torture-";
const FILLER: &str = "filler";
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: nothing that was not synced reaches the disk any more.
const CUT_POWER: &str = "import fcntl, os, struct, sys\n\
                         fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A mounted file system.
pub(in super::super) struct Disk {
    image: PathBuf,
    place: PathBuf,
}

/// Unmounts the disks of runs that are over, and removes their folders.
pub(super) fn sweep() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let mut above = Path::new(place).ancestors();
        let is_left = |folder: &&Path| {
            let name = folder.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| super::is_left(name, FOLDER))
        };
        if let Some(folder) = above.find(is_left) {
            try_run(&["umount", "-l", place]);
            // Not before the last of its disks is unmounted.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a folder whose name is no text")
}

impl Disk {
    /// Makes one, and mounts it at `place`.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(super) fn new(image: &Path, place: &Path) -> Result<Disk> {
        std::fs::create_dir_all(place)?;
        std::fs::File::create(image)?.set_len(BYTES)?;
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", text(image)?])?;
        let disk = Disk { image: image.to_owned(), place: place.to_owned() };
        disk.mount()?;
        try_run(&["rmdir", text(&place.join("lost+found"))?]);
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        run(&["mount", "-o", "loop", text(&self.image)?, text(&self.place)?])?;
        Ok(())
    }

    /// Leaves no room on it.
    ///
    /// # Errors
    /// When the filler cannot be made.
    pub(in super::super) fn fill(&self) -> Result<()> {
        // As much as there is: what does not fit fails, and what was allocated stays.
        let filler = std::fs::File::create(self.place.join(FILLER))?;
        for size in [8 << 20, 1 << 20, 64 << 10, 4 << 10] {
            let mut at = filler.metadata()?.len();
            while rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), at, size).is_ok() {
                at += size;
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub(in super::super) fn free(&self) {
        // Gone only where the file system was mounted anew without it. Synced, so that no power cut brings it back.
        let _ = std::fs::remove_file(self.place.join(FILLER));
        let _ = std::fs::File::open(&self.place).and_then(|folder| folder.sync_all());
    }

    /// Cuts its power. Whoever uses it gets errors from now on.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(in super::super) fn cut_power(&self) -> Result<()> {
        run(&["python3", "-c", CUT_POWER, text(&self.place)?])?;
        Ok(())
    }

    /// Brings it back as it was when its power was cut. Nobody uses it.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub(in super::super) fn power_on(&self) -> Result<()> {
        run(&["umount", text(&self.place)?])?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Ok(place) = text(&self.place) {
            // Also where somebody still has a file of it open.
            try_run(&["umount", "-l", place]);
        }
    }
}

/// Has every sync of a process fail from now on, until this is dropped.
pub(in super::super) struct SyncErrors(Child);

impl SyncErrors {
    /// Begins.
    ///
    /// # Errors
    /// When the process cannot be traced.
    pub(in super::super) fn begin(pid: u32) -> Result<SyncErrors> {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"])
            .args(["-e", "inject=fsync,fdatasync:error=EIO", "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(SyncErrors(child))
    }
}

impl Drop for SyncErrors {
    fn drop(&mut self) {
        // It has ended where the process has.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}
