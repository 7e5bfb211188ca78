//! A device's folder on disk: its lock, one file of records for each size of frames, and a page for probes.

use super::key_folder::sync_folder;
use super::record::{PAGE, record_bytes};
use super::{DiskError, Geometry};
use kvhive_steps::step;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, fstatvfs};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// Name of the lock file.
const LOCK: &str = "lock";
/// Name of the file whose one page a probe writes and reads.
const PROBE: &str = "probe";
/// Name of the file that says of what form the records are.
const FORM: &str = "form";
/// How often it is tried while it is another's.
const LOCK_EVERY: Duration = Duration::from_millis(20);

/// Of what form a folder's records are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// As they are. A folder that says nothing was written before there was another.
    Plain,
    /// Encrypted.
    Sealed,
}

impl Form {
    const fn as_str(self) -> &'static str {
        match self {
            Form::Plain => "kvhive disk tier 2 plain\n",
            Form::Sealed => "kvhive disk tier 2 sealed\n",
        }
    }

    /// Returns what names of record files begin with. A version that knows no forms finds no encrypted record, and what it writes is not
    /// taken for one.
    const fn prefix(self) -> &'static str {
        match self {
            Form::Plain => "records-",
            Form::Sealed => "sealed-",
        }
    }

    const fn other(self) -> Form {
        match self {
            Form::Plain => Form::Sealed,
            Form::Sealed => Form::Plain,
        }
    }
}

/// Has a folder's records be of this form. Those of the other are deleted first, whatever the folder says that it has: what is to be
/// encrypted does not stand there as it is, also where a version from before there were forms wrote it meanwhile, and what no key opens
/// any more is of no use.
pub(super) fn take_form(folder: &Path, wanted: Form) -> Result<(), DiskError> {
    let path = folder.join(FORM);
    let failed = |source| DiskError::Io { path: path.clone(), source };
    let mut text = String::new();
    let had = match File::open(&path) {
        Ok(file) => {
            file.take(256).read_to_string(&mut text).map_err(failed)?;
            let known = [Form::Plain, Form::Sealed].into_iter().find(|form| form.as_str() == text);
            Some(known.ok_or_else(|| DiskError::Form {
                path: path.clone(),
                form: format!("the form {:?}", text.trim_end()),
            })?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    delete_records(folder, wanted.other()).map_err(failed)?;
    if had == Some(wanted) {
        return Ok(());
    }
    // Last: a process that ends before it finds no records of another form.
    let unfinished = folder.join("form.new");
    step("form: make file").map_err(failed)?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed)?;
    step("form: write file").map_err(failed)?;
    file.write_all(wanted.as_str().as_bytes()).map_err(failed)?;
    step("form: sync file").map_err(failed)?;
    file.sync_all().map_err(failed)?;
    step("form: name file").map_err(failed)?;
    fs::rename(&unfinished, &path).map_err(failed)?;
    step("form: sync name").map_err(failed)?;
    sync_folder(folder).map_err(failed)
}

fn delete_records(folder: &Path, form: Form) -> io::Result<()> {
    let mut deleted = false;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(form.prefix()) {
            deleted = true;
            warn!(file = %entry.path().display(), "records of another form (encrypted, or not) are deleted");
            step("form: delete records")?;
            fs::remove_file(entry.path())?;
        }
    }
    if !deleted {
        return Ok(());
    }
    step("form: sync deleted")?;
    sync_folder(folder)
}

/// Returns the name of the file of records of a size.
pub(super) fn file_name(form: Form, frame_bytes: u64) -> String {
    format!("{}{frame_bytes}", form.prefix())
}

/// Makes the folder if need be and takes its lock.
pub(super) fn lock(folder: &Path, limit: Duration) -> Result<File, DiskError> {
    let failed = |source| DiskError::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let until = Instant::now() + limit;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_EVERY),
            Err(Errno::WOULDBLOCK) => return Err(DiskError::Shared { folder: folder.to_owned() }),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Opens the record files, past the page cache where the file system lets them be, and deletes those of sizes that are no
/// more. Says whether all are past it.
pub(super) fn open(
    folder: &Path,
    form: Form,
    geometry: &[Geometry],
) -> Result<(Vec<Arc<File>>, bool), DiskError> {
    let mut files = Vec::with_capacity(geometry.len());
    let mut all_direct = true;
    for class in geometry {
        let path = folder.join(file_name(form, class.frame_bytes));
        let (file, direct) =
            open_file(&path).map_err(|source| DiskError::Io { path: path.clone(), source })?;
        all_direct &= direct;
        files.push(Arc::new(file));
    }
    let failed = |source| DiskError::Io { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let wanted = geometry.iter().any(|class| *name == *file_name(form, class.frame_bytes));
        if name.starts_with(form.prefix()) && !wanted {
            warn!(file = %entry.path().display(), "records of a block size that is no more are deleted");
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok((files, all_direct))
}

/// Opens the file of the page for probes: every record may be taken when the disk is probed.
pub(super) fn open_probe(folder: &Path) -> Result<Arc<File>, DiskError> {
    let path = folder.join(PROBE);
    let opened = open_file(&path).map(|(file, _)| Arc::new(file));
    opened.map_err(|source| DiskError::Io { path, source })
}

fn open_file(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    // What engines computed for one user is no other's to read.
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    match direct {
        Ok(file) => Ok((file, true)),
        // This file system has a page cache and nothing else.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok((options.open(path)?, false)),
        Err(error) => Err(error),
    }
}

/// Gives every file its size, and the disk's promise of it; done again, does nothing.
///
/// # Errors
/// When the disk has not the room: nothing more of it is taken then.
pub(super) fn prepare(files: &[Arc<File>], geometry: &[Geometry], probe: &File) -> io::Result<()> {
    let mut wanted = (PAGE as u64).saturating_sub(probe.metadata()?.blocks() * 512);
    for (file, class) in files.iter().zip(geometry) {
        let has = file.metadata()?.blocks() * 512;
        wanted = wanted.saturating_add(file_bytes(class)?.saturating_sub(has));
    }
    if wanted > 0 {
        let disk = fstatvfs(probe)?;
        // Asked before: a file system that runs short half-way keeps what it has given so far.
        if wanted > disk.f_bavail.saturating_mul(disk.f_frsize) {
            return Err(io::ErrorKind::StorageFull.into());
        }
    }
    for (file, class) in files.iter().zip(geometry) {
        let bytes = file_bytes(class)?;
        if file.metadata()?.len() > bytes {
            file.set_len(bytes)?;
        }
        if bytes > 0 {
            allocate(file, bytes)?;
        }
    }
    allocate(probe, PAGE as u64)
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // Room is taken as records come.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
        Err(error) => Err(error.into()),
    }
}

fn file_bytes(class: &Geometry) -> io::Result<u64> {
    let bytes = record_bytes(class.frame_bytes).checked_mul(u64::from(class.records));
    bytes.filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_steps::at_each;

    #[test]
    fn a_folder_is_of_one_form_and_what_it_had_of_the_other_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let [plain, sealed, form] =
            ["records-4096", "sealed-4096", FORM].map(|name| folder.path().join(name));
        let put = || {
            fs::write(&plain, b"what an engine computed").expect("writable");
            fs::write(&sealed, b"noise").expect("writable");
        };
        let are_there = || (plain.exists(), sealed.exists());
        // As it was before there were forms; then also where a version from that time wrote beside what is encrypted.
        for wanted in [Form::Plain, Form::Sealed, Form::Sealed, Form::Plain, Form::Plain] {
            put();
            take_form(folder.path(), wanted).expect("a folder");
            assert_eq!(are_there(), (wanted == Form::Plain, wanted == Form::Sealed), "{wanted:?}");
        }
        put();
        for strange in ["kvhive disk tier 3 sealed\n", "", "kvhive disk tier 2 sealed"] {
            fs::write(&form, strange).expect("writable");
            let refused = take_form(folder.path(), Form::Sealed);
            assert!(matches!(refused, Err(DiskError::Form { .. })), "{strange:?}: {refused:?}");
            assert_eq!(are_there(), (true, true), "what is not known is not touched");
        }
    }

    #[test]
    fn a_change_of_form_that_ends_anywhere_is_made_again_and_says_nothing_before_it_is_so() {
        let steps = [
            "form: delete records",
            "form: sync deleted",
            "form: make file",
            "form: write file",
            "form: sync file",
            "form: name file",
            "form: sync name",
        ];
        at_each(&steps, |ends| {
            let folder = tempfile::tempdir().expect("a folder");
            take_form(folder.path(), Form::Plain).expect("a folder");
            for name in ["records-4096", "records-8192"] {
                fs::write(folder.path().join(name), b"what an engine computed").expect("writable");
            }
            let taken = ends.run(|| take_form(folder.path(), Form::Sealed));
            assert_eq!(taken.is_ok(), ends.before().is_none());
            let says = fs::read_to_string(folder.path().join(FORM)).expect("readable");
            let expected = if ends.is_before("form: name file") { Form::Plain } else { Form::Sealed };
            assert_eq!(says, expected.as_str(), "{ends:?}");
            let left =
                || ["records-4096", "records-8192"].iter().any(|name| folder.path().join(name).exists());
            assert!(expected == Form::Plain || !left(), "{ends:?}: what is said to be encrypted is not");
            take_form(folder.path(), Form::Sealed).expect("a folder");
            assert!(!left() && !folder.path().join("form.new").exists(), "{ends:?}");
        });
    }

    #[test]
    fn a_disk_without_the_room_gives_none_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let fits = Geometry { frame_bytes: 4096, records: 2 };
        for (frame_bytes, kind) in
            [(1 << 40, io::ErrorKind::StorageFull), (1 << 50, io::ErrorKind::FileTooLarge)]
        {
            let geometry = [fits, Geometry { frame_bytes, records: 1 << 20 }];
            let (files, _) = open(folder.path(), Form::Sealed, &geometry).expect("files");
            let probe = open_probe(folder.path()).expect("a file");
            assert_eq!(prepare(&files, &geometry, &probe).map_err(|error| error.kind()), Err(kind));
            assert!(files.iter().all(|file| file.metadata().expect("a file").len() == 0));
        }
        let (files, _) = open(folder.path(), Form::Sealed, &[fits]).expect("files");
        let probe = open_probe(folder.path()).expect("a file");
        for _ in 0..2 {
            prepare(&files, &[fits], &probe).expect("a little room");
            assert_eq!(files[0].metadata().expect("a file").len(), 16384);
            assert_eq!(probe.metadata().expect("a file").len(), PAGE as u64);
        }
        let mode = files[0].metadata().expect("a file").mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}
