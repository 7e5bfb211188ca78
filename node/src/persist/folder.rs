//! A snapshot's folder: segments and the manifest that names them. It is written beside its place and takes it as a whole,
//! so a snapshot is there or is not. Nothing is removed that a snapshot does not consist of.

use super::PersistError;
use kvhive_protocol::Layout;
use kvhive_protocol::map::{ClusterMap, Tenant};
use kvhive_steps::step;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Name of the manifest.
const MANIFEST: &str = "manifest.json";
/// Name of what tells which run makes a snapshot, while it is made.
pub(super) const RUN: &str = "run.json";
/// The format of a snapshot whose blocks are as they are.
const PLAIN: u32 = 2;
/// Of one whose blocks are encrypted.
const SEALED: u32 = 3;
/// A longer manifest is none.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// What a snapshot holds and under what it may be loaded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    /// The cluster that the node was of, as hexadecimal digits.
    cluster: String,
    /// Bytes of the largest block.
    pub(super) largest_block: u64,
    pub(super) tenants: Vec<TenantMark>,
    /// What the blocks' bytes mean, as far as it was known.
    pub(super) layouts: Vec<Layout>,
    pub(super) segments: Vec<SegmentMark>,
    /// Over everything else, as hexadecimal digits.
    checksum: String,
}

/// A tenant as it was when its blocks were written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct TenantMark {
    pub(super) id: u32,
    pub(super) name: String,
    /// Tells whether a secret is the same without telling it.
    pub(super) secret_check: String,
}

/// One file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SegmentMark {
    pub(super) file: String,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

/// Returns what tells whether a tenant's secret is the one that a snapshot was written under.
pub(super) fn secret_check(tenant: &Tenant) -> String {
    let check = blake3::derive_key("kvhive 2026-11 snapshot secret check v1", &tenant.secret);
    hex(&check[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Manifest {
    pub(super) fn new(
        map: &ClusterMap,
        layouts: Vec<Layout>,
        largest_block: u64,
        segments: Vec<SegmentMark>,
        is_sealed: bool,
    ) -> Manifest {
        let mark = |(id, tenant): (&kvhive_protocol::TenantId, &Tenant)| TenantMark {
            id: id.0,
            name: tenant.name.clone(),
            secret_check: secret_check(tenant),
        };
        let tenants = map.tenants.iter().map(mark).collect();
        let mut manifest = Manifest {
            version: if is_sealed { SEALED } else { PLAIN },
            cluster: map.cluster.to_string(),
            largest_block,
            tenants,
            layouts,
            segments,
            checksum: String::new(),
        };
        manifest.checksum = manifest.sum();
        manifest
    }

    /// Says whether the snapshot is of the cluster that this map is of.
    pub(super) fn is_of(&self, map: &ClusterMap) -> bool {
        self.cluster == map.cluster.to_string()
    }

    /// Says whether its blocks are encrypted.
    pub(super) fn is_sealed(&self) -> bool {
        self.version == SEALED
    }

    fn sum(&self) -> String {
        let bare = Manifest { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&bare).expect("plain data turns into JSON");
        blake3::hash(&text).to_hex().to_string()
    }

    /// Reads the manifest of a snapshot.
    pub(super) fn read(folder: &Path) -> Result<Manifest, PersistError> {
        let path = folder.join(MANIFEST);
        let file = File::open(&path).map_err(|source| PersistError::Io { path: path.clone(), source })?;
        let mut text = String::new();
        let read = file.take(MAX_MANIFEST_BYTES).read_to_string(&mut text);
        read.map_err(|source| PersistError::Io { path: path.clone(), source })?;
        let manifest =
            Manifest::parse(&text).map_err(|what| PersistError::Damaged { path: path.clone(), what })?;
        manifest.check().map_err(|what| PersistError::Damaged { path, what })?;
        Ok(manifest)
    }

    fn parse(text: &str) -> Result<Manifest, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// Reads one whose format and checksum are made good first. For `kvhive-fuzz` alone.
    pub(super) fn read_good(bytes: &[u8]) -> Option<Manifest> {
        let mut manifest = Manifest::parse(std::str::from_utf8(bytes).ok()?).ok()?;
        manifest.version = if manifest.version == PLAIN { PLAIN } else { SEALED };
        manifest.checksum = manifest.sum();
        manifest.check().ok().map(|()| manifest)
    }

    /// Says what is wrong with it.
    fn check(&self) -> Result<(), String> {
        if ![PLAIN, SEALED].contains(&self.version) {
            return Err(format!("format {} instead of {PLAIN} or {SEALED}", self.version));
        }
        if self.checksum != self.sum() {
            return Err("its checksum does not hold".to_owned());
        }
        let plain =
            |mark: &SegmentMark| Path::new(&mark.file).file_name().is_some_and(|name| *name == *mark.file);
        if !self.segments.iter().all(plain) {
            return Err("a segment is not in its folder".to_owned());
        }
        Ok(())
    }

    pub(super) fn to_text(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        write_file(&folder.join(MANIFEST), &self.to_text()?)
    }
}

/// Writes a small file that is its owner's alone, durably.
pub(super) fn write_file(path: &Path, text: &[u8]) -> io::Result<()> {
    step("persist: make file")?;
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    step("persist: write file")?;
    file.write_all(text)?;
    step("persist: sync file")?;
    file.sync_all()
}

/// Makes a folder that is its owner's alone, and those above it, unless they are there.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns where a snapshot is made before it takes its place.
pub(super) fn workshop(path: &Path) -> PathBuf {
    beside(path, ".partial")
}

/// Returns the path whose name has this ending more.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Returns where the keys of a node's snapshots are, where it has no other place for keys.
pub(crate) fn keys_folder(path: &Path) -> PathBuf {
    beside(path, ".keys")
}

/// Returns where a snapshot is while another takes its place.
pub(super) fn old(path: &Path) -> PathBuf {
    beside(path, ".old")
}

/// Checks that nothing but a snapshot or its parts stands where one is written, made, or was: the rest is not ours to remove.
pub(super) fn check_ours(path: &Path) -> Result<(), PersistError> {
    if path.file_name().is_none() {
        return Err(PersistError::Foreign { path: path.to_owned() });
    }
    for (folder, whole) in [(path.to_owned(), true), (old(path), false), (workshop(path), false)] {
        let ours = is_ours(&folder, whole);
        match ours.map_err(|source| PersistError::Io { path: folder.clone(), source })? {
            true => {}
            false => return Err(PersistError::Foreign { path: folder }),
        }
    }
    Ok(())
}

/// Says whether a folder is not there, is empty, or holds only what a snapshot consists of, its manifest too if it must be whole.
fn is_ours(folder: &Path, whole: bool) -> io::Result<bool> {
    match fs::symlink_metadata(folder) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    }
    let (mut is_empty, mut has_manifest) = (true, false);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() || !is_part(&entry.file_name().to_string_lossy()) {
            return Ok(false);
        }
        is_empty = false;
        has_manifest |= entry.file_name() == MANIFEST;
    }
    Ok(is_empty || has_manifest || !whole)
}

/// Says whether a file of this name is part of a snapshot: manifest, run, or a segment's number with its ending.
fn is_part(name: &str) -> bool {
    let is_segment = name.split_once('.').is_some_and(|(number, ending)| {
        number.len() >= 6
            && number.bytes().all(|digit| digit.is_ascii_digit())
            && (ending == "seg" || ending == "partial")
    });
    is_segment || name == MANIFEST || name == RUN
}

/// Removes a snapshot, or what there is of one; a folder that holds anything else stays, with that in it.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_part(&entry.file_name().to_string_lossy()) {
            step("persist: remove part")?;
            fs::remove_file(entry.path())?;
        }
    }
    step("persist: remove folder")?;
    fs::remove_dir(folder)
}

/// Completes a snapshot in its workshop and puts it in its place; one that was there before goes when the new one stands, or is
/// moved `aside`, where nothing must be.
pub(super) fn publish(manifest: &Manifest, path: &Path, aside: Option<&Path>) -> io::Result<()> {
    let (made, old) = (workshop(path), old(path));
    manifest.write(&made)?;
    step("persist: remove run")?;
    match fs::remove_file(made.join(RUN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    step("persist: sync made")?;
    sync(&made)?;
    if let Some(aside) = aside {
        let before = standing(path);
        if before.exists() {
            step("persist: put aside")?;
            fs::rename(before, aside)?;
        }
    }
    if path.exists() {
        // Without one at its place, the one beside it is what stands: it goes only when the new one does.
        if old.exists() {
            remove(&old)?;
        }
        step("persist: make room")?;
        fs::rename(path, &old)?;
    }
    step("persist: take place")?;
    fs::rename(&made, path)?;
    step("persist: sync place")?;
    sync(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    if old.exists() {
        remove(&old)?;
    }
    Ok(())
}

/// Returns the snapshot that stands for `path`: a crash between the two renames of [`publish`] leaves the old one beside it.
pub(super) fn standing(path: &Path) -> PathBuf {
    let old = old(path);
    if !path.exists() && old.exists() { old } else { path.to_owned() }
}

/// Returns when the snapshot at `path` was completed.
pub(super) fn written(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path.join(MANIFEST))?.modified()
}

/// Says whether this is where a snapshot's manifest would be.
pub(super) fn is_manifest(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == MANIFEST)
}

/// Says whether there is anything that a new snapshot would replace.
pub(super) fn stands(path: &Path) -> bool {
    fs::read_dir(standing(path)).is_ok_and(|mut entries| entries.next().is_some())
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_steps::{Ends, at_each};

    fn whole(folder: &Path, number: u64) {
        fs::create_dir_all(folder).expect("writable");
        manifest(number).write(folder).expect("writable");
        fs::write(folder.join("000000.seg"), b"blocks").expect("writable");
    }

    fn manifest(number: u64) -> Manifest {
        let mut manifest = Manifest {
            version: SEALED,
            cluster: String::new(),
            largest_block: number,
            tenants: Vec::new(),
            layouts: Vec::new(),
            segments: Vec::new(),
            checksum: String::new(),
        };
        manifest.checksum = manifest.sum();
        manifest
    }

    #[test]
    fn the_one_that_stands_beside_its_place_goes_only_when_the_new_one_stands() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("snapshot");
        // As a crash between the two renames leaves it.
        whole(&old(&path), 1);
        assert_eq!(standing(&path), old(&path));
        fs::create_dir_all(workshop(&path)).expect("writable");
        // As if it ended just before the new one takes its place: a folder takes no link's.
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &path).expect("writable");
        publish(&manifest(2), &path, None).expect_err("its place is taken");
        fs::remove_file(&path).expect("writable");
        assert_eq!(Manifest::read(&standing(&path)).expect("it stands").largest_block, 1);
        publish(&manifest(2), &path, None).expect("it takes its place");
        assert_eq!(Manifest::read(&path).expect("it stands").largest_block, 2);
        assert!(!old(&path).exists() && !workshop(&path).exists());
    }

    /// Puts the second snapshot in the place of the first, up to where it ends; looks at which stands, and does it again.
    fn replaces(ends: &mut Ends, stands_beside: bool, puts_aside: bool) {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, aside) = (folder.path().join("snapshot"), folder.path().join("before"));
        let stands_at = if stands_beside { old(&path) } else { path.clone() };
        whole(&stands_at, 1);
        let make = || {
            fs::create_dir_all(workshop(&path)).expect("writable");
            fs::write(workshop(&path).join("000000.seg"), b"more blocks").expect("writable");
            fs::write(workshop(&path).join(RUN), b"{}").expect("writable");
        };
        make();
        let published = ends.run(|| publish(&manifest(2), &path, puts_aside.then_some(&aside)));
        assert_eq!(published.is_ok(), ends.before().is_none(), "{published:?}");
        let number = |at: &Path| Manifest::read(at).map(|manifest| manifest.largest_block).ok();
        let is_first = ends.is_before("persist: take place");
        let found = if is_first && aside.exists() { number(&aside) } else { number(&standing(&path)) };
        assert_eq!(found, Some(if is_first { 1 } else { 2 }), "{ends:?}: one is whole");
        check_ours(&path).expect("whatever is left, the next run may go on");
        make();
        let again = puts_aside && !aside.exists();
        publish(&manifest(3), &path, again.then_some(&aside)).expect("it takes its place");
        assert_eq!((number(&path), number(&old(&path))), (Some(3), None), "{ends:?}");
        assert!(!old(&path).exists() && !workshop(&path).exists(), "{ends:?}");
        assert_eq!(aside.exists(), puts_aside, "{ends:?}");
    }

    #[test]
    fn a_snapshot_whose_making_ends_anywhere_leaves_a_whole_one() {
        let made = [
            "persist: make file",
            "persist: write file",
            "persist: sync file",
            "persist: remove run",
            "persist: sync made",
        ];
        let placed = ["persist: take place", "persist: sync place"];
        let removed = ["persist: remove part", "persist: remove folder"];
        let over = [&made[..], &["persist: make room"], &placed, &removed].concat();
        at_each(&over, |ends| replaces(ends, false, false));
        at_each(&[&made[..], &placed, &removed].concat(), |ends| replaces(ends, true, false));
        let aside = [&made[..], &["persist: put aside"], &placed].concat();
        at_each(&aside, |ends| replaces(ends, false, true));
        at_each(&aside, |ends| replaces(ends, true, true));
    }

    #[test]
    fn only_what_a_snapshot_consists_of_is_ours() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("snapshot");
        let check = || check_ours(&path).is_ok();
        assert!(check(), "nothing is there");
        fs::create_dir(&path).expect("writable");
        assert!(check(), "it is empty");
        fs::write(path.join("000000.seg"), b"").expect("writable");
        assert!(!check(), "a snapshot has a manifest");
        whole(&path, 1);
        assert!(check());
        for beside in [old(&path), workshop(&path), path.clone()] {
            fs::create_dir_all(&beside).expect("writable");
            fs::write(beside.join("records-65536"), b"another's").expect("writable");
            assert!(!check(), "{}", beside.display());
            assert!(remove(&beside).is_err() && beside.join("records-65536").exists());
            fs::remove_file(beside.join("records-65536")).expect("writable");
        }
        assert!(!is_part("1.seg") && !is_part("000001.seg.bak") && is_part("000001.partial"));
        fs::remove_dir(&path).expect("it is empty now");
        std::os::unix::fs::symlink(folder.path(), &path).expect("writable");
        assert!(!check(), "a link leads to where another may be");
        assert!(check_ours(Path::new("/")).is_err());
    }
}
