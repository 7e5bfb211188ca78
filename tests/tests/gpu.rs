//! `kvhive bench gpu` with a driver that the test makes, whose GPUs are the CPU: every row is there, and so is the picture. What they say of
//! speed means nothing.

use kvhive_tests::files::{file, list, word};
use kvhive_tests::kvhive;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Makes the driver in a folder.
fn driver(folder: &Path) {
    let fake = file("gpu/tests/fake");
    let made = Command::new("c++")
        .args(["-shared", "-fPIC", "-pthread", "-O2", "-ffp-contract=off", "-o"])
        .arg(folder.join("libcuda.so.1"))
        .args(["-x", "c"])
        .arg(fake.join("cuda.c"))
        .args(["-x", "c++"])
        .arg(fake.join("kernels.cpp"))
        .status();
    assert!(made.expect("a compiler is there").success());
}

fn bench(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(kvhive());
    command.env("LD_LIBRARY_PATH", folder).args(["bench", "gpu", "--json", "--runs", "1"]).args(words);
    command.output().expect("it runs")
}

#[test]
fn the_bench_of_a_gpu_has_all_rows_and_draws_them() {
    let folder = tempfile::tempdir().expect("room");
    driver(folder.path());
    let plot = folder.path().join("roofline.svg").display().to_string();
    let output = bench(folder.path(), &["--bytes", "2MiB", "--plot", &plot]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let cases: Vec<&str> = list(&report["rows"]).iter().map(|row| word(&row["case"])).collect();
    let mut expected = Vec::new();
    for way in ["host-to-gpu", "gpu-to-host", "gpu-to-gpu"] {
        for size in ["4KiB", "16KiB", "28KiB", "64KiB", "256KiB", "1MiB", "2MiB"] {
            expected.push(format!("{way}-{size}"));
        }
    }
    for pages in ["2KiB", "8KiB", "32KiB", "128KiB", "512KiB", "32KiB-hnd"] {
        for codec in ["raw", "fp8", "int8", "int4"] {
            expected.extend(["gather", "scatter"].map(|way| format!("{way}-{codec}-{pages}")));
        }
    }
    expected.extend(["64KiB", "512KiB", "2MiB"].map(|size| format!("digest-{size}")));
    assert_eq!(cases, expected);
    for row in list(&report["rows"]) {
        assert!(row["ours"].as_f64() > Some(0.0) && row["baseline"].as_f64() > Some(0.0), "{row}");
    }
    let svg = std::fs::read_to_string(&plot).expect("it was drawn");
    assert_eq!(svg.matches("<circle").count(), expected.len());
    assert!(svg.contains("one copy, gpu-to-gpu: ") && svg.contains(">gather-int8<"), "{svg}");

    let refused = bench(folder.path(), &["--bytes", "1MiB"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("--bytes is 1MiB, and at least 2MiB is needed"),
        "{said}"
    );
    let nowhere = bench(folder.path(), &["--bytes", "2MiB", "--plot", "/nowhere/x.svg"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("cannot write /nowhere/x.svg"));
}
