//! The snapshots beside a node's own, each under a name: which there are, a bound on how many, and their end.

use super::PersistError;
use super::blocking::blocking;
use super::folder::{self, Manifest};
use super::lock::Lock;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// The name of the one that the node itself puts aside.
pub(crate) const BEFORE: &str = "before";
/// As many an operator may have of one node: each is as large as the node.
pub(crate) const MAX_NAMED: usize = 8;
/// How long one who works on a snapshot is waited for before it is removed.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// One snapshot of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Standing {
    /// None for the node's own.
    pub(crate) name: Option<String>,
    /// Seconds since 1970 when it was written; none while it is not whole, which a run that broke off leaves.
    pub(crate) written_s: Option<u64>,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

/// Returns the folder of a node's snapshot of this name.
pub(super) fn folder(own: &Path, name: &str) -> PathBuf {
    folder::beside(own, &format!("@{name}"))
}

/// Lists the snapshots of the node whose own is at `own`, that one first.
pub(super) async fn list(own: &Path) -> Result<Vec<Standing>, PersistError> {
    let path = own.to_owned();
    blocking(own, move |_| {
        let all = std::iter::once(None).chain(names(&path)?.into_iter().map(Some));
        Ok(all.filter_map(|name| look(&path, name)).collect())
    })
    .await
}

/// Checks that one of this name would not be one too many.
pub(super) async fn check_room(own: &Path, name: &str) -> Result<(), PersistError> {
    let path = own.to_owned();
    let mut names = blocking(own, move |_| names(&path)).await?;
    names.remove(BEFORE);
    if names.contains(name) || names.len() < MAX_NAMED {
        return Ok(());
    }
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    Err(PersistError::TooMany { most: MAX_NAMED, names })
}

/// Removes the snapshot at `path`, and what a run that broke off has left of it.
pub(super) async fn remove(path: &Path) -> Result<(), PersistError> {
    folder::check_ours(path)?;
    let lock = Lock::for_writing(path, LOCK_LIMIT).await?;
    let at = path.to_owned();
    blocking(path, move |_| {
        // Without the one at its place the one beside it would stand.
        for folder in [folder::workshop(&at), folder::old(&at), at] {
            if folder.exists() {
                folder::remove(&folder)?;
            }
        }
        drop(lock);
        Ok(())
    })
    .await
}

/// Returns the names under which something stands.
fn names(own: &Path) -> io::Result<BTreeSet<String>> {
    let mut prefix = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
    prefix.push('@');
    let above = own.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = match fs::read_dir(above) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let Some(rest) = file.to_str().and_then(|file| file.strip_prefix(&prefix)) else { continue };
        // A name has no dot: what follows one says that it is being written, or was.
        let name = rest.split('.').next().unwrap_or_default();
        if entry.file_type()?.is_dir() {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn look(own: &Path, name: Option<String>) -> Option<Standing> {
    let path = name.as_ref().map_or_else(|| own.to_owned(), |name| folder(own, name));
    let at = folder::standing(&path);
    let Ok(manifest) = Manifest::read(&at) else {
        return name.map(|name| Standing { name: Some(name), written_s: None, blocks: 0, bytes: 0 });
    };
    let written = folder::written(&at).ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Some(Standing {
        name,
        written_s: written.map(|since| since.as_secs()),
        blocks: manifest.segments.iter().map(|segment| segment.blocks).sum(),
        bytes: manifest.segments.iter().map(|segment| segment.bytes).sum(),
    })
}
