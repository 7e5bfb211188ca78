//! A driver of CUDA for tests on machines without a GPU: `cuda.c` and the kernels, compiled when a test first wants it. Other crates of
//! this workspace take it in too.
#![allow(unsafe_code, reason = "loads a library of the tests' own")]
#![allow(dead_code, reason = "each test that takes it in uses a part")]

#[allow(clippy::duplicate_mod, reason = "each of the two that compile something brings it")]
#[path = "kept.rs"]
mod kept;

use kept::kept;
use kvhive_gpu::cuda::{Cuda, CudaError, Gpu, Nvml, NvmlError};
use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A driver of the test's own: its globals are in no other test.
pub(crate) struct Fake {
    path: PathBuf,
    library: Library,
    /// None where it is kept for all.
    _folder: Option<TempDir>,
}

const NAME: &str = "libcuda.so.1";

impl Fake {
    pub(crate) fn new() -> Fake {
        Fake::with(&[])
    }

    /// Makes one whose driver is compiled with these flags.
    pub(crate) fn with(flags: &[&str]) -> Fake {
        // A copy is another library to the loader.
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join(NAME);
        std::fs::copy(made(flags), &path).expect("there is room");
        Fake::at(path, Some(folder))
    }

    /// Returns the one that all tests of this process have together, and which may live to its end.
    pub(crate) fn shared() -> Fake {
        Fake::at(made(&[]), None)
    }

    fn at(path: PathBuf, folder: Option<TempDir>) -> Fake {
        // SAFETY: a library of our own, without initializers.
        let library = unsafe { Library::new(&path) }.expect("it was just made");
        Fake { path, library, _folder: folder }
    }

    /// Returns the folder with the library, under the name that the driver has.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().expect("it lies in a folder")
    }

    /// Returns the library itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn cuda(&self) -> Result<Arc<Cuda>, CudaError> {
        Cuda::load(&self.path)
    }

    pub(crate) fn gpu(&self) -> Arc<Gpu> {
        self.cuda().and_then(|cuda| cuda.open(0)).expect("it works")
    }

    /// Has a call not return before [`Fake::release`].
    pub(crate) fn hang(&self, call: &str, nth: c_int) {
        let name = CString::new(call).expect("no 0 in it");
        // SAFETY: the fake's own function, with its own signature.
        unsafe {
            let hang: Symbol<unsafe extern "C" fn(*const c_char, c_int)> =
                self.library.get(b"fake_hang\0").expect("it is there");
            hang(name.as_ptr(), nth);
        }
    }

    /// Has what hangs go on.
    pub(crate) fn release(&self) {
        self.set("fake_release", 0);
    }

    pub(crate) fn fail(&self, call: &str, nth: c_int, code: c_int) {
        fail(&self.library, call, nth, code);
    }

    pub(crate) fn set(&self, name: &str, value: c_int) {
        set(&self.library, name, value);
    }

    pub(crate) fn ask(&self, name: &str) -> c_int {
        ask(&self.library, name)
    }

    /// Says how often a call was made: since it was told to fail, if it was.
    pub(crate) fn calls(&self, call: &str) -> c_int {
        let name = CString::new(call).expect("no 0 in it");
        // SAFETY: the fake's own function, with its own signature.
        unsafe {
            let calls: Symbol<unsafe extern "C" fn(*const c_char) -> c_int> =
                self.library.get(b"fake_calls\0").expect("it is there");
            calls(name.as_ptr())
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        (self.ask("fake_live"), self.ask("fake_depth")) == (0, 0)
    }
}

/// NVIDIA's management library, made for tests, beside a driver: whoever looks for it by its name in that folder finds it.
pub(crate) struct FakeNvml {
    path: PathBuf,
    library: Library,
}

impl FakeNvml {
    pub(crate) fn beside(driver: &Fake) -> FakeNvml {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/tests/fake/nvml.c");
        let name = "libnvidia-ml.so.1";
        let made = kept("fake-nvml", std::slice::from_ref(&source), &[], |folder| {
            let object = folder.join("nvml.o");
            compile("cc", &source, &object, &[]);
            let linked = Command::new("cc")
                .args(["-shared", "-pthread", "-Wl,-soname,libnvidia-ml.so.1", "-o"])
                .args([&folder.join(name), &object])
                .status();
            assert!(linked.expect("a compiler is there").success());
        });
        let path = match &driver._folder {
            Some(folder) => folder.path().join(name),
            // Whoever looks for that driver does not find this beside it.
            None => made.join(name),
        };
        if driver._folder.is_some() {
            std::fs::copy(made.join(name), &path).expect("there is room");
        }
        // SAFETY: a library of our own, without initializers.
        let library = unsafe { Library::new(&path) }.expect("it was just made");
        FakeNvml { path, library }
    }

    pub(crate) fn nvml(&self) -> Result<Arc<Nvml>, NvmlError> {
        Nvml::load(&self.path)
    }

    /// Has something of this kind befall a GPU.
    pub(crate) fn befall(&self, gpu: c_int, kind: c_int, data: c_int) {
        // SAFETY: the fake's own function, with its own signature.
        unsafe {
            let befall: Symbol<unsafe extern "C" fn(c_int, c_int, c_int)> =
                self.library.get(b"fake_befall\0").expect("it is there");
            befall(gpu, kind, data);
        }
    }

    /// Has a call fail once.
    pub(crate) fn fail(&self, call: &str, nth: c_int, code: c_int) {
        fail(&self.library, call, nth, code);
    }

    pub(crate) fn set(&self, name: &str, value: c_int) {
        set(&self.library, name, value);
    }

    pub(crate) fn ask(&self, name: &str) -> c_int {
        ask(&self.library, name)
    }
}

fn fail(library: &Library, call: &str, nth: c_int, code: c_int) {
    let name = CString::new(call).expect("no 0 in it");
    // SAFETY: the fake's own function, with its own signature.
    unsafe {
        let fail: Symbol<unsafe extern "C" fn(*const c_char, c_int, c_int)> =
            library.get(b"fake_fail\0").expect("it is there");
        fail(name.as_ptr(), nth, code);
    }
}

fn set(library: &Library, name: &str, value: c_int) {
    // SAFETY: as above.
    unsafe {
        let set: Symbol<unsafe extern "C" fn(c_int)> = library.get(name.as_bytes()).expect("it is there");
        set(value);
    }
}

fn ask(library: &Library, name: &str) -> c_int {
    // SAFETY: as above.
    unsafe {
        let ask: Symbol<unsafe extern "C" fn() -> c_int> = library.get(name.as_bytes()).expect("it is there");
        ask()
    }
}

/// The call that whoever lets go of something makes too: he tells nobody where it fails.
pub(crate) const ENTERS: &str = "cuCtxPushCurrent_v2";

/// Has every one of these calls fail once, each time that it is made in all of `everything`: the error must be that call's, nothing may be
/// left, and once is once.
pub(crate) fn each_call_fails_once<E: std::fmt::Debug + PartialEq>(
    calls: &[&str],
    everything: impl Fn(&Fake) -> Result<(), E>,
    of: impl Fn(&E) -> Option<&CudaError>,
) {
    for call in calls {
        for nth in 1.. {
            let fake = Fake::new();
            fake.fail(call, nth, 700);
            let Err(error) = everything(&fake) else {
                match unheard(&fake, call, nth) {
                    true => continue,
                    false => break,
                }
            };
            let is_named =
                matches!(of(&error), Some(CudaError::Failed { call: named, code: 700, .. }) if named == call);
            assert!(is_named, "{call} {nth}: {error:?}");
            assert!(fake.is_clean(), "{call} {nth}: something is left");
            assert_eq!(everything(&fake), Ok(()), "{call} {nth}");
        }
    }
}

/// Says whether a call failed for the time that was said without anybody hearing of it, which he who lets go may alone; else it was made
/// less often, and once at least.
pub(crate) fn unheard(fake: &Fake, call: &str, nth: c_int) -> bool {
    let is_made = fake.calls(call) >= nth;
    assert!(!is_made || call == ENTERS, "{call} {nth}: nobody hears of it");
    assert!(is_made || nth > 1, "{call} is never made");
    is_made
}

/// Opens this machine's own GPUs; says so where there is none, and fails where there is to be one (`KVHIVE_TEST_GPU=real`).
pub(crate) fn real_gpus() -> Vec<Arc<Gpu>> {
    let found = Cuda::find().and_then(|cuda| (0..cuda.count()?).map(|at| cuda.open(at)).collect());
    seen(found, std::env::var("KVHIVE_TEST_GPU").is_ok_and(|gpu| gpu == "real"))
}

/// Returns what was found.
///
/// # Panics
/// When that is nothing, and is to be something.
pub(crate) fn seen<T>(found: Result<Vec<T>, CudaError>, is_wanted: bool) -> Vec<T> {
    let none = match found {
        Ok(gpus) if !gpus.is_empty() => return gpus,
        Ok(_) => "no GPU is seen".to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(!is_wanted, "KVHIVE_TEST_GPU=real says that there is a GPU: {none}");
    println!("SKIPPED: {none}");
    Vec::new()
}

/// Returns the driver, compiled with these flags.
fn made(flags: &[&str]) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/tests/fake");
    let kernels = kernels(&sources);
    let files = ["cuda.c", "threads.h"].map(|file| sources.join(file));
    let of_kernels = kernels.to_str().expect("it is text");
    let manner: Vec<&str> = flags.iter().copied().chain([of_kernels]).collect();
    let folder = kept("fake-cuda", &files, &manner, |folder| {
        let driver = folder.join("cuda.o");
        compile("cc", &sources.join("cuda.c"), &driver, flags);
        let linked =
            // Whoever looks for the driver by its name finds it, once a test has loaded it. It is never unloaded: streams may have threads.
            Command::new("c++")
                .args(["-shared", "-pthread", "-Wl,-soname,libcuda.so.1", "-Wl,-z,nodelete", "-o"])
                .args([&folder.join(NAME), &driver, &kernels])
                .status();
        assert!(linked.expect("a compiler is there").success());
    });
    folder.join(NAME)
}

/// Returns the kernels, compiled for the CPU: once for all tests, as it takes seconds. Another source is another file.
fn kernels(sources: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    let mut files: Vec<PathBuf> = [sources, &sources.join("../../kernels")]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(folder).expect("it is there").flatten())
        .map(|file| file.path())
        .filter(|path| {
            path.extension().is_some_and(|end| ["cu", "cuh", "cpp", "h"].iter().any(|one| end == *one))
        })
        .collect();
    files.sort();
    for file in files {
        std::fs::read(&file).expect("it is there").hash(&mut hasher);
    }
    // Tests of a library have no folder of their own; all of them lie in the same.
    let program = std::env::current_exe().expect("a test is a program");
    let kept = program.with_file_name(format!("kernels-{:016x}.o", hasher.finish()));
    if !kept.exists() {
        let fresh = kept.with_extension(format!("{}.o", std::process::id()));
        // As on a GPU, no product is fused with a sum.
        let flags = ["-O2", "-ffp-contract=off", "-Wno-unknown-pragmas"];
        compile("c++", &sources.join("kernels.cpp"), &fresh, &flags);
        std::fs::rename(&fresh, &kept).expect("there is room");
    }
    kept
}

fn compile(program: &str, source: &Path, object: &Path, flags: &[&str]) {
    let made = Command::new(program)
        .args(["-c", "-fPIC", "-Wall", "-Werror", "-pthread", "-o"])
        .args([object, source])
        .args(flags)
        .status();
    assert!(made.expect("a compiler is there").success());
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never came true: {what}");
}
