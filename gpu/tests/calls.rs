//! Every function of the driver and of its management library that is called here fails in a test, wherever it is called: what is new in
//! a source, or in a table, has a row below, or this fails. Read off the sources and the tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Of each source in `src/cuda`: the calls in it, and a test in which each of them fails.
const FAIL: [(&str, &[&str], &str, &str); 15] = [
    (
        "driver.rs",
        &[
            "cuDriverGetVersion",
            "cuInit",
            "cuDeviceGetCount",
            "cuDeviceGet",
            "cuDeviceGetName",
            "cuDeviceGetPCIBusId",
            "cuDeviceTotalMem_v2",
            "cuDeviceGetAttribute",
        ],
        "cuda.rs",
        ONE,
    ),
    ("driver.rs", &["cuDeviceCanAccessPeer"], "peers.rs", PEERS),
    ("gpu.rs", &["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"], "cuda.rs", ONE),
    ("gpu.rs", &["cuDeviceGetAttribute"], "cuda.rs", DEVICE),
    ("ipc.rs", &["cuIpcGetMemHandle", "cuIpcOpenMemHandle_v2", "cuMemGetAddressRange_v2"], "lent.rs", LENT),
    ("kernels.rs", &["cuModuleGetFunction", "cuModuleLoadData"], "cuda.rs", ONE),
    (
        "mapped.rs",
        &[
            "cuMemGetAllocationGranularity",
            "cuMemAddressReserve",
            "cuMemMap",
            "cuMemSetAccess",
            "cuMemImportFromShareableHandle",
            "cuMemExportToShareableHandle",
        ],
        "lent.rs",
        LENT,
    ),
    ("mapped.rs", &["cuMemCreate"], "cuda.rs", DEVICE),
    // The same call where another GPU is let reach it.
    ("mapped.rs", &["cuMemSetAccess"], "peers.rs", PEERS),
    ("mark.rs", &["cuEventCreate"], "worker.rs", "a_worker_that_cannot_start_says_why_or_is_ended"),
    (
        "mark.rs",
        &["cuEventRecord", "cuEventQuery"],
        "worker.rs",
        "a_driver_that_fails_or_hangs_costs_a_worker_and_no_more",
    ),
    ("memory.rs", &["cuMemHostAlloc", "cuMemAlloc_v2"], "cuda.rs", ONE),
    ("memory.rs", &["cuMemHostRegister_v2"], "cuda.rs", DEVICE),
    (
        "stream.rs",
        &[
            "cuStreamCreate",
            "cuMemcpyHtoDAsync_v2",
            "cuMemcpyDtoHAsync_v2",
            "cuMemcpyDtoDAsync_v2",
            "cuLaunchKernel",
            "cuStreamSynchronize",
            "cuEventCreate",
            "cuEventRecord",
            "cuEventElapsedTime",
        ],
        "cuda.rs",
        ONE,
    ),
    (
        "nvml.rs",
        &[
            "nvmlInit_v2",
            "nvmlSystemGetDriverVersion",
            "nvmlDeviceGetHandleByPciBusId_v2",
            "nvmlDeviceGetP2PStatus",
            "nvmlDeviceGetTopologyCommonAncestor",
            "nvmlDeviceGetUtilizationRates",
            "nvmlEventSetCreate",
            "nvmlDeviceRegisterEvents",
        ],
        "nvml.rs",
        "whichever_call_fails_is_named_and_nothing_is_left",
    ),
];
const ONE: &str = "whichever_call_fails_is_named_and_nothing_is_left_behind";
const DEVICE: &str = "whichever_call_of_a_device_fails_is_told_and_nothing_is_left_behind";
const LENT: &str = "whichever_call_of_lending_fails_is_named_and_nothing_is_left_behind";
const PEERS: &str = "whichever_call_of_a_peers_copy_fails_is_told_and_nothing_is_left_behind";

/// Calls whose failure has nobody to be told to: of those who let go of something, and of a watch. They fail in a test all the same.
const UNHEARD: [(&str, &[&str], &str, &str); 11] = [
    ("gpu.rs", &["cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"], "cuda.rs", LET_GO),
    ("ipc.rs", &["cuIpcCloseMemHandle"], "lent.rs", LENT),
    ("kernels.rs", &["cuModuleUnload"], "cuda.rs", LET_GO),
    ("mapped.rs", &["cuMemUnmap", "cuMemAddressFree", "cuMemRelease"], "cuda.rs", LET_GO),
    // As that of a timer, by the same words.
    ("mark.rs", &["cuEventDestroy_v2"], "cuda.rs", LET_GO),
    ("memory.rs", &["cuMemFreeHost", "cuMemHostUnregister", "cuMemFree_v2"], "cuda.rs", LET_GO),
    ("stream.rs", &["cuStreamDestroy_v2", "cuEventDestroy_v2"], "cuda.rs", LET_GO),
    ("nvml.rs", &["nvmlEventSetFree", "nvmlShutdown"], "nvml.rs", LET_GO),
    (
        "nvml.rs",
        &["nvmlEventSetWait_v2"],
        "nvml.rs",
        "a_watch_ends_where_its_library_says_no_more_and_the_gpu_is_not_lost_by_that",
    ),
    // What an error's code is called; a code that they do not know is told by its number. The drivers of the tests know two.
    ("library.rs", &["cuGetErrorName", "cuGetErrorString"], "", ""),
    ("nvml.rs", &["nvmlErrorString"], "", ""),
];
const LET_GO: &str = "what_is_let_go_of_and_fails_has_nobody_to_be_told_to";

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Says which of a table's functions a word begins with, as a name by itself.
fn function(word: &str) -> Option<&str> {
    let end =
        word.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(word.len());
    let name = &word[..end];
    let is_one = ["cu", "nvml"].iter().any(|start| {
        name.strip_prefix(start)
            .is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_uppercase()))
    });
    is_one.then_some(name)
}

/// Returns the functions that are named in a source after one of these words and before what else comes.
fn named_after(source: &str, words: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for word in words {
        for (at, _) in source.match_indices(word) {
            let rest = &source[at + word.len()..];
            // The table comes first, and may be asked for by a call of its own.
            let mut name = rest.char_indices().take(80).filter(|(at, _)| {
                *at == 0
                    || !rest[..*at].ends_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '_')
            });
            if let Some(name) = name.find_map(|(at, _)| function(&rest[at..])) {
                found.insert(name.to_owned());
            }
        }
    }
    found
}

/// Returns the body of a test.
fn body(file: &str, test: &str) -> String {
    let text = text(&here().join("tests").join(file));
    let start = text.find(&format!("#[test]\nfn {test}() {{"));
    let start = start.unwrap_or_else(|| panic!("{file} has no test {test}"));
    text[start..].split("\n}\n").next().unwrap_or_default().to_owned()
}

#[test]
fn every_call_of_every_source_fails_in_a_test() {
    let rows: BTreeSet<(&str, &str)> = FAIL
        .iter()
        .chain(&UNHEARD)
        .flat_map(|(source, calls, ..)| calls.iter().map(move |call| (*source, *call)))
        .collect();
    let mut made = BTreeSet::new();
    for file in std::fs::read_dir(here().join("src/cuda")).expect("it is there").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let source = text(&file.path());
        let shipped = source.split("#[cfg(test)]").next().unwrap_or_default();
        for call in named_after(shipped, &["call!(", "(table.", "self.table.", "say(self."]) {
            made.insert((name.clone(), call));
        }
    }
    let made: BTreeSet<(&str, &str)> =
        made.iter().map(|(name, call)| (name.as_str(), call.as_str())).collect();
    let new: Vec<_> = made.difference(&rows).collect();
    assert!(new.is_empty(), "these calls need a test in which they fail, and a row that names it: {new:?}");
    let old: Vec<_> = rows.difference(&made).collect();
    assert!(old.is_empty(), "these calls are made no more: {old:?}");
    for (source, calls, file, test) in FAIL.iter().chain(&UNHEARD).filter(|(.., file, _)| !file.is_empty()) {
        let body = body(file, test);
        for call in *calls {
            let is_named =
                [format!("\"{call}\""), format!("\"{call}:")].iter().any(|word| body.contains(word));
            assert!(is_named, "{source}: {call} does not fail in {test} of {file}");
        }
    }
}

#[test]
fn every_function_of_both_tables_is_called() {
    let called: BTreeSet<&str> =
        FAIL.iter().chain(&UNHEARD).flat_map(|(_, calls, ..)| calls.iter().copied()).collect();
    for (file, least) in [("library.rs", 50), ("nvml.rs", 10)] {
        let source = text(&here().join("src/cuda").join(file));
        let table = source.split("\ntable! {\n").nth(1).and_then(|rest| rest.split("\n}\n").next());
        let listed: Vec<&str> =
            table.expect("it has a table").lines().filter_map(|line| function(line.trim_start())).collect();
        assert!(listed.len() >= least, "{listed:?}");
        for name in listed {
            assert!(called.contains(name), "{name} is called nowhere, or has no row");
        }
    }
}
