//! The file that `scripts/gpu-tests` makes, with programs in it that are made for this: what it counts, that nothing passes which did not
//! run, and that a picture is drawn where it was asked for. It needs no GPU, and none of cargo's programs.

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// What a program of tests prints, in the words of Rust's own.
const THREE_PASS: &str = r#"
echo "running 3 tests"
echo "test a_real_gpu_does_it ... ok"
[ "${KVHIVE_TEST_GPU:-}" = real ] || echo "SKIPPED: nobody said that there is to be one"
case " $* " in *" --show-output "*) ;; *) exit 3 ;; esac
echo "successes:"
echo
echo "---- real_gpus_reach_each_other stdout ----"
echo "2 bytes went"
echo "SKIPPED: there are no two GPUs"
echo "SKIPPED: and no third"
echo
echo "successes:"
echo "    a_real_gpu_does_it"
echo
echo "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.01s"
"#;
const NONE_RUN: &str = r#"
echo "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s"
"#;
const ONE_FAILS: &str = r#"
echo "failures:"
echo
echo "---- a_real_gpu_does_it stdout ----"
echo "SKIPPED: this did not pass either"
echo "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s"
exit 101
"#;
const DIES: &str = "echo 'running 3 tests'\nkill -9 $$\n";

/// The command, which says of a cluster what it is told, and draws.
fn command(said: [u64; 5]) -> String {
    let [hits, errors, wrong_bytes, on_gpu, in_host] = said;
    let tier = |tier: &str, blocks: u64| json!({ "tier": tier, "blocks": blocks, "capacity_bytes": 9 });
    let devices = json!({ "devices": [{
        "blocks": on_gpu + in_host, "device": { "member": 3, "blocks": 7 }, "kind": "cuda",
        "tiers": [tier("device", on_gpu), tier("host", in_host)],
    }] });
    let replay =
        json!({ "hits": hits, "errors": errors, "wrong_bytes": wrong_bytes, "latencies": { "p50": 1 } });
    let [devices, replay] =
        [devices, replay].map(|one| serde_json::to_string_pretty(&one).expect("it is JSON"));
    format!(
        r#"case "$1 $*" in
    doctor*) echo "GPU 0: made for this" ;;
    up*) mkdir -p "$3" ;;
    replay*) echo '{replay}' ;;
    devices*--json) echo '{devices}' ;;
    bench*) echo drawn >"${{@: -1}}" ;;
esac
"#
    )
}

const ALL_IS_WELL: [u64; 5] = [5, 0, 0, 3, 2];

fn carried(programs: &[(&str, &str)], said: [u64; 5]) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("room");
    let gpu = folder.path().join("gpu");
    fs::create_dir(&gpu).expect("room");
    let command = command(said);
    for (name, text) in programs.iter().copied().chain([("kvhive", command.as_str())]) {
        let path = gpu.join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{text}")).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let file = folder.path().join("made");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let made = Command::new(root.join("scripts/gpu-tests")).arg(&file).arg(&gpu).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (folder, file)
}

fn run(file: &Path, words: &[&str]) -> (bool, String) {
    let told = ["KVHIVE_TEST_GPU", "KVHIVE_GPU_MEMORY", "KVHIVE_NCCL"];
    let mut run = Command::new(file);
    for name in told {
        run.env_remove(name);
    }
    let Output { status, stdout, stderr } = run.args(words).output().expect("it runs");
    // What it says to people comes last.
    (status.success(), String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout))
}

fn last(said: &str) -> &str {
    said.lines().last().unwrap_or_default()
}

#[test]
fn what_passes_and_what_skips_is_counted_apart_and_skips_have_names() {
    let (_folder, file) = carried(&[("test-cuda", THREE_PASS), ("test-peers", THREE_PASS)], ALL_IS_WELL);
    let (passes, said) = run(&file, &[]);
    assert!(passes, "{said}");
    // Of each three tests one skipped something, and the cluster is one more.
    assert_eq!(last(&said), "5 passed, 0 failed, 2 skipped", "{said}");
    let skips = "\n== skipped\ncuda: real_gpus_reach_each_other: there are no two GPUs\npeers: real_gpus_reach_each_other: ";
    assert!(said.contains(skips) && !said.contains("nobody said"), "{said}");
    let (passes, said) = run(&file, &["only", "peers"]);
    assert!(passes && last(&said) == "2 passed, 0 failed, 1 skipped", "{said}");
    let (passes, said) = run(&file, &["only", "nothing"]);
    assert!(!passes && said.contains("there is no part nothing: allowed are cluster cuda peers"), "{said}");
}

#[test]
fn a_part_that_runs_no_test_has_failed_as_has_one_that_fails_or_ends_early() {
    for (text, of) in
        [(NONE_RUN, "0 passed, 1 failed"), (DIES, "0 passed, 1 failed"), (ONE_FAILS, "1 passed, 1 failed")]
    {
        let (_folder, file) = carried(&[("test-pages", text)], ALL_IS_WELL);
        let (passes, said) = run(&file, &["only", "pages"]);
        assert!(!passes && last(&said) == format!("{of}, 0 skipped"), "{said}");
    }
    let (_folder, file) = carried(&[("test-pages", NONE_RUN)], ALL_IS_WELL);
    assert!(run(&file, &["only", "pages"]).1.contains("== pages: FAILED: it ran no test"));
}

#[test]
fn a_cluster_passes_where_all_of_it_was_used_and_nothing_went_wrong() {
    let bad = [
        ([0, 0, 0, 3, 2], "blocks are hit"),
        ([5, 1, 0, 3, 2], "no call fails"),
        ([5, 0, 1, 3, 2], "every block has its own bytes"),
        ([5, 0, 0, 0, 2], "blocks lie on the GPU"),
        ([5, 0, 0, 3, 0], "and in the host's memory under it"),
    ];
    for (reported, what) in bad {
        let (_folder, file) = carried(&[("test-cuda", THREE_PASS)], reported);
        let (passes, said) = run(&file, &["only", "cluster"]);
        assert!(!passes && said.contains(&format!("it does not hold: {what} (")), "{said}");
        assert_eq!(last(&said), "0 passed, 1 failed, 0 skipped");
    }
    let (_folder, file) = carried(&[("test-cuda", THREE_PASS)], ALL_IS_WELL);
    let (passes, said) = run(&file, &["only", "cluster"]);
    assert!(passes && last(&said) == "1 passed, 0 failed, 0 skipped", "{said}");
}

#[test]
fn a_picture_is_drawn_where_it_was_asked_for() {
    let (folder, file) = carried(&[("test-cuda", THREE_PASS)], ALL_IS_WELL);
    let drawn =
        Command::new(&file).args(["bench", "--plot", "roofline.svg"]).current_dir(folder.path()).status();
    assert!(drawn.expect("it runs").success());
    assert_eq!(fs::read_to_string(folder.path().join("roofline.svg")).ok().as_deref(), Some("drawn\n"));
}
