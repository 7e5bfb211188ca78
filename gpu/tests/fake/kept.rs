//! What tests compile is kept beside their programs: it is made once, however many processes want it, and none of them leaves it elsewhere.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Returns the folder of this name in which there is what `make` has made of these files, in this manner. Of another content it is another
/// folder.
pub(crate) fn kept(name: &str, files: &[PathBuf], manner: &[&str], make: impl FnOnce(&Path)) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    manner.hash(&mut hasher);
    for file in files {
        std::fs::read(file).expect("it is there").hash(&mut hasher);
    }
    // Tests of a library have no folder of their own; all of them lie in the same.
    let program = std::env::current_exe().expect("a test is a program");
    let kept = program.with_file_name(format!("{name}-{:016x}", hasher.finish()));
    if !kept.exists() {
        let beside = program.parent().expect("it lies in a folder");
        let fresh = tempfile::tempdir_in(beside).expect("there is room");
        make(fresh.path());
        // Another process may have been faster: what it has made is the same.
        if std::fs::rename(fresh.path(), &kept).is_ok() {
            // It is there under its own name now.
            let _ = fresh.keep();
        }
        assert!(kept.exists(), "{} could not be kept", kept.display());
    }
    kept
}
