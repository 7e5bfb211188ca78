//! A snapshot's folder: segments and the manifest that names them. It is written beside its place and takes it as a whole,
//! so a snapshot is there or is not.

use super::PersistError;
use kvhive_protocol::Layout;
use kvhive_protocol::map::{ClusterMap, Tenant};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Name of the manifest.
const MANIFEST: &str = "manifest.json";
/// The format that this build writes, and the only one that it reads.
const VERSION: u32 = 1;
/// A longer manifest is none.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// What a snapshot holds and under what it may be loaded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
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
    ) -> Manifest {
        let mark = |(id, tenant): (&kvhive_protocol::TenantId, &Tenant)| TenantMark {
            id: id.0,
            name: tenant.name.clone(),
            secret_check: secret_check(tenant),
        };
        let tenants = map.tenants.iter().map(mark).collect();
        let mut manifest =
            Manifest { version: VERSION, largest_block, tenants, layouts, segments, checksum: String::new() };
        manifest.checksum = manifest.sum();
        manifest
    }

    fn sum(&self) -> String {
        let bare = Manifest { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&bare).expect("plain data turns into JSON");
        blake3::hash(&text).to_hex().to_string()
    }

    /// Reads the manifest of a snapshot.
    pub(super) fn read(folder: &Path) -> Result<Manifest, PersistError> {
        let path = folder.join(MANIFEST);
        let damaged = |what: String| PersistError::Damaged { path: path.clone(), what };
        let file = File::open(&path).map_err(|source| PersistError::Io { path: path.clone(), source })?;
        let mut text = String::new();
        let read = file.take(MAX_MANIFEST_BYTES).read_to_string(&mut text);
        read.map_err(|source| PersistError::Io { path: path.clone(), source })?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(damaged(format!("format {} instead of {VERSION}", manifest.version)));
        }
        if manifest.checksum != manifest.sum() {
            return Err(damaged("its checksum does not hold".to_owned()));
        }
        let plain =
            |mark: &SegmentMark| Path::new(&mark.file).file_name().is_some_and(|name| *name == *mark.file);
        if !manifest.segments.iter().all(plain) {
            return Err(damaged("a segment is not in its folder".to_owned()));
        }
        Ok(manifest)
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let mut file = File::create(folder.join(MANIFEST))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()
    }
}

/// Returns where a snapshot is made before it takes its place.
pub(super) fn workshop(path: &Path) -> PathBuf {
    beside(path, ".partial")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Completes a snapshot in its workshop and puts it in its place; one that was there before goes when the new one stands.
pub(super) fn publish(manifest: &Manifest, path: &Path) -> io::Result<()> {
    let made = workshop(path);
    manifest.write(&made)?;
    sync(&made)?;
    let old = beside(path, ".old");
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    if path.exists() {
        fs::rename(path, &old)?;
    }
    fs::rename(&made, path)?;
    sync(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

/// Returns the snapshot that stands for `path`: a crash between the two renames of [`publish`] leaves the old one beside it.
pub(super) fn standing(path: &Path) -> PathBuf {
    let old = beside(path, ".old");
    if !path.exists() && old.exists() { old } else { path.to_owned() }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
