//! An NCCL for tests on machines without a GPU: `nccl.c`, compiled when a test first wants it. Other crates of this workspace take it in
//! too.
#![allow(unsafe_code, reason = "loads a library of the tests' own")]
#![allow(dead_code, reason = "each test that takes it in uses a part")]

#[allow(clippy::duplicate_mod, reason = "each of the two that compile something brings it")]
#[path = "../../../tests/fake/kept.rs"]
mod kept;

use kept::kept;
use libloading::{Library, Symbol};
use nccl_rs::{Nccl, NcclError};
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A library of the test's own: its globals are in no other test.
pub(crate) struct FakeNccl {
    path: PathBuf,
    library: Library,
    /// None where it is kept for all.
    _folder: Option<TempDir>,
}

const NAME: &str = "libnccl.so.2";

impl FakeNccl {
    pub(crate) fn new() -> FakeNccl {
        FakeNccl::with(&[])
    }

    /// Makes one that is compiled with these flags.
    pub(crate) fn with(flags: &[&str]) -> FakeNccl {
        // A copy is another library to the loader.
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join(NAME);
        std::fs::copy(made(flags), &path).expect("there is room");
        FakeNccl::at(path, Some(folder))
    }

    /// Returns the one that all tests of this process have together, and which may live to its end.
    pub(crate) fn shared() -> FakeNccl {
        FakeNccl::at(made(&[]), None)
    }

    fn at(path: PathBuf, folder: Option<TempDir>) -> FakeNccl {
        // SAFETY: a library of our own, without initializers.
        let library = unsafe { Library::new(&path) }.expect("it was just made");
        FakeNccl { path, library, _folder: folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub(crate) fn nccl(&self) -> Result<Arc<Nccl>, NcclError> {
        Nccl::load(&self.path())
    }

    /// Says what goes wrong in this process from now on.
    pub(crate) fn wrong(&self, what: &str) {
        let what = CString::new(what).expect("no 0 in it");
        // SAFETY: the fake's own function, with its own signature.
        unsafe {
            let wrong: Symbol<unsafe extern "C" fn(*const c_char)> =
                self.library.get(b"fake_wrong\0").expect("it is there");
            wrong(what.as_ptr());
        }
    }

    pub(crate) fn ask(&self, name: &str) -> c_int {
        // SAFETY: as above.
        unsafe {
            let ask: Symbol<unsafe extern "C" fn() -> c_int> =
                self.library.get(name.as_bytes()).expect("it is there");
            ask()
        }
    }
}

/// Returns the library, compiled with these flags.
fn made(flags: &[&str]) -> PathBuf {
    // From this crate, and from one beside it or above it.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = ["tests/fake/nccl.c", "nccl-rs/tests/fake/nccl.c", "../gpu/nccl-rs/tests/fake/nccl.c"];
    let source = source.iter().map(|place| here.join(place)).find(|place| place.exists());
    let source = source.expect("it is there");
    let folder = kept("fake-nccl", std::slice::from_ref(&source), flags, |folder| {
        // Never unloaded: threads of its own end some time.
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread"])
            .args(["-Wl,-soname,libnccl.so.2", "-Wl,-z,nodelete", "-o"])
            .args([&folder.join(NAME), &source])
            .args(flags)
            .status();
        assert!(made.expect("a compiler is there").success());
    });
    folder.join(NAME)
}
