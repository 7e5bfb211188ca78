//! An NCCL for tests on machines without a GPU: `nccl.c`, compiled when a test first wants it. Other crates of this workspace take it in
//! too.
#![allow(unsafe_code, reason = "loads a library of the tests' own")]
#![allow(dead_code, reason = "each test that takes it in uses a part")]

use libloading::{Library, Symbol};
use nccl_rs::{Nccl, NcclError};
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;

/// A library of the test's own: its globals are in no other test.
pub(crate) struct FakeNccl {
    library: Library,
    folder: TempDir,
}

const NAME: &str = "libnccl.so.2";

impl FakeNccl {
    pub(crate) fn new() -> FakeNccl {
        // Compiled once. A copy is another library to the loader.
        static MADE: LazyLock<FakeNccl> = LazyLock::new(|| FakeNccl::with(&[]));
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::copy(MADE.path(), folder.path().join(NAME)).expect("there is room");
        FakeNccl::at(folder)
    }

    /// Makes one that is compiled with these flags.
    pub(crate) fn with(flags: &[&str]) -> FakeNccl {
        // From this crate, and from one beside it or above it.
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = ["tests/fake/nccl.c", "nccl-rs/tests/fake/nccl.c", "../gpu/nccl-rs/tests/fake/nccl.c"];
        let source = source.iter().map(|place| here.join(place)).find(|place| place.exists());
        let source = source.expect("it is there");
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // Never unloaded: threads of its own end some time.
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread"])
            .args(["-Wl,-soname,libnccl.so.2", "-Wl,-z,nodelete", "-o"])
            .args([&folder.path().join(NAME), &source])
            .args(flags)
            .status();
        assert!(made.expect("a compiler is there").success());
        FakeNccl::at(folder)
    }

    fn at(folder: TempDir) -> FakeNccl {
        // SAFETY: a library of our own, without initializers.
        let library = unsafe { Library::new(folder.path().join(NAME)) }.expect("it was just made");
        FakeNccl { library, folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
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
