//! The house's rules, read off the manifests and the sources: imports point down, each dangerous thing has one place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Every crate's level: a crate names only crates of lower levels.
const LEVELS: [(&str, u8); 24] = [
    ("kvhive-protocol", 1),
    ("nccl-rs", 1),
    ("kvhive-oracle", 1),
    ("kvhive-planted", 0),
    ("kvhive-steps", 0),
    ("kvhive-gpu", 2),
    ("kvhive-tls", 1),
    ("kvhive-wire", 2),
    ("kvhive-config", 2),
    ("kvhive-runtime", 2),
    ("kvhive-cache", 2),
    ("kvhive-links", 2),
    ("kvhive-spans", 2),
    ("kvhive-control", 2),
    ("kvhive-engines", 2),
    ("kvhive-consensus", 2),
    ("kvhive-client", 3),
    ("kvhive-sim", 3),
    ("kvhive-node", 4),
    ("kvhive-coordinator", 4),
    ("kvhive-cli", 5),
    ("kvhive-python", 5),
    ("kvhive-fuzz", 5),
    ("kvhive-tests", 6),
];

#[test]
fn imports_point_down_and_pure_crates_stay_pure() {
    let levels: BTreeMap<&str, u8> = LEVELS.into_iter().collect();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("a list");
    assert_eq!(packages.len(), LEVELS.len(), "a new crate needs a level here");
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("a list") {
            let other = dependency["name"].as_str().expect("a name");
            if dependency["kind"] == "dev" {
                continue;
            }
            if let Some(level) = levels.get(other) {
                assert!(*level < levels[name], "{name} names {other}: imports point down");
            }
            let never: &[&str] = match name {
                "kvhive-protocol" | "kvhive-cache" | "kvhive-links" | "kvhive-control" | "kvhive-config"
                | "kvhive-consensus" | "kvhive-engines" | "kvhive-oracle" => {
                    &["tokio", "actix", "actix-rt", "rand", "getrandom", "rustix"]
                }
                "kvhive-gpu" => &["kvhive-protocol", "tokio"],
                "kvhive-coordinator" => &["kvhive-gpu", "kvhive-node"],
                "kvhive-node" => &["kvhive-coordinator"],
                _ => &[],
            };
            assert!(!never.contains(&other), "{name} must never name {other}");
            for (thing, owner) in [
                ("actix", "kvhive-runtime"),
                ("raft", "kvhive-consensus"),
                ("bincode", "kvhive-protocol"),
                ("opentelemetry", "kvhive-spans"),
            ] {
                assert!(
                    other != thing || name == owner,
                    "{thing} has one place, {owner}; {name} names it too"
                );
            }
            assert!(
                other != "kvhive-planted" || dependency["features"].as_array().is_some_and(Vec::is_empty),
                "{name} has bugs planted: only kvhive-sim's own feature may"
            );
            if other == "bincode" {
                assert_eq!(dependency["req"], "=2.0.1", "3.0.0 does not build, by its authors' choice");
            }
        }
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() && !["target", ".git"].contains(&name.as_str()) {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

#[test]
fn bugs_are_planted_only_where_they_are_asked_for() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("a list") {
        let name = package["name"].as_str().expect("a name");
        for (feature, asks) in package["features"].as_object().expect("features by name") {
            let asks: Vec<&str> =
                asks.as_array().expect("a list").iter().filter_map(|one| one.as_str()).collect();
            let plants = asks.iter().any(|one| one.contains("planted"));
            assert!(
                !plants || (name, feature.as_str()) == ("kvhive-sim", "planted"),
                "{name}/{feature} plants bugs"
            );
        }
    }
}

#[test]
fn every_bug_that_can_be_planted_has_its_place_in_a_machine() {
    let root = root();
    let list = std::fs::read_to_string(root.join("tests/planted/src/lib.rs")).expect("the list of bugs");
    let bugs: Vec<&str> = list
        .lines()
        .filter_map(|line| line.trim().strip_suffix("\";")?.split_once(", \"").map(|(bug, _)| bug))
        .collect();
    assert!(bugs.len() >= 20, "{bugs:?}");
    let mut files = Vec::new();
    ["coordinator", "node", "client"].iter().for_each(|folder| sources(&root.join(folder), &mut files));
    let text: String =
        files.iter().map(|file| std::fs::read_to_string(file).expect("a source is text")).collect();
    for bug in bugs {
        assert!(text.contains(&format!("is(Bug::{bug})")), "{bug} is planted nowhere");
    }
}

#[test]
fn sources_keep_to_the_house() {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 80, "the sources are found");
    // Put together, so that this file does not name what it forbids.
    let forbidden =
        [["to", "do!("], ["unimple", "mented!("], ["db", "g!("], [".do_", "send("]].map(|two| two.concat());
    let pure = [
        "protocol/src",
        "config/src",
        "node/cache/src",
        "node/links/src",
        "coordinator/control/src",
        "coordinator/consensus/src",
        "engines/src",
        "oracle/src",
    ];
    let worldly = ["std::thread", "std::net::Tcp", "std::fs", "Instant::now", "SystemTime", "RandomState"];
    for file in files {
        let name = file.strip_prefix(&root).expect("below the root").display().to_string();
        let text = std::fs::read_to_string(&file).expect("a source is text");
        assert!(text.starts_with("//!") || text.starts_with("#!"), "{name} begins with what it owns");
        for word in &forbidden {
            assert!(!text.contains(word.as_str()), "{name} has {word}");
        }
        let is_test = name.contains("/tests/") || name.ends_with("_test.rs") || name.contains("/tests.rs");
        if is_test {
            continue;
        }
        let lines = text.lines().count();
        assert!(lines <= 520, "{name} has {lines} lines: look for the second idea");
        let has_unsafe = text.lines().any(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
        let may = ["gpu/", "node/src/disk/uring.rs", "python/src/buffer/"]
            .iter()
            .any(|place| name.starts_with(place));
        assert!(
            !has_unsafe || may,
            "{name} has unsafe code; it lives in gpu, where io_uring is spoken to, and where Python lends memory"
        );
        if pure.iter().any(|folder| name.starts_with(folder)) {
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in worldly {
                assert!(!shipped.contains(word), "{name} is pure and names {word}");
            }
        }
    }
}

/// A page that tells of a version is wrong in the next: what is told is how things stand.
#[test]
fn no_page_speaks_of_this_version() {
    fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()) {
            let is_text =
                path.extension().is_some_and(|end| ["md", "toml", "yaml"].iter().any(|one| end == *one));
            if path.is_dir() {
                pages(&path, found);
            } else if is_text {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = vec![root.join("README.md")];
    ["docs", "cluster-configs"].iter().for_each(|folder| pages(&root.join(folder), &mut found));
    assert!(found.len() > 80, "the pages are found");
    for page in found {
        let text = std::fs::read_to_string(&page).expect("a page is text").to_lowercase();
        // Over the end of a line too.
        let words = text.split(|letter: char| letter.is_whitespace() || letter == '#');
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        assert!(!words.windows(3).any(|three| three == ["in", "this", "version"]), "{}", page.display());
    }
}

/// CUDA's functions are named in one folder, and outside of it few files vouch for addresses that a GPU copies from or to.
#[test]
fn cudas_functions_have_one_place_and_few_vouch_for_its_addresses() {
    let vouching = [
        // Its own mapping, pinned by a driver until it is unmapped.
        "gpu/src/slab.rs",
        // Extents of the slab that was lent to the process, by which NCCL's transfers and the copies beside them go.
        "gpu/src/worker/issuer.rs",
        // Memory that an array's owner holds for as long as a call lasts, and its addresses as DLPack tells them.
        "python/src/buffer/mod.rs",
        "python/src/buffer/passage.rs",
    ];
    let driver = ["cuMem", "cuStream", "cuLaunch", "cuModule", "cuCtx", "nvmlInit", "nvmlDevice"];
    let (root, mut files) = (root(), Vec::new());
    sources(&root, &mut files);
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).expect("below the root").display().to_string();
        let is_test = name.contains("tests/") || name.ends_with("_test.rs");
        if is_test || name.starts_with("gpu/src/cuda/") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source is text");
        let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
        for function in driver {
            assert!(
                !shipped.contains(function),
                "{name} names {function}...: gpu/src/cuda alone calls the driver"
            );
        }
        let has_unsafe = shipped.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
        });
        if has_unsafe && shipped.contains("cuda::") {
            found.push(name);
        }
    }
    found.sort();
    assert_eq!(found, vouching, "what vouches for CUDA's addresses is named here, with what it vouches for");
}

#[test]
fn what_ci_runs_may_not_leave_the_kernels_out() {
    let root = root();
    let text = |name: &str| std::fs::read_to_string(root.join(name)).expect("a script is text");
    assert!(text(".ci/run").contains("export KVHIVE_NO_SKIPS=\"${KVHIVE_NO_SKIPS:-kernels}\""));
    let test = text("scripts/test");
    // Whatever is skipped goes by what counts it.
    assert!(
        test.contains("skip kernels") && !test.contains(": SKIPPED\"\n                return"),
        "scripts/test"
    );
}
