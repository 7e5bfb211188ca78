//! What this machine can break: networks and disks are tried, programs and libraries looked for, and what is lacking is said.

use super::words::run;
use super::{clock, memory};
use anyhow::Result;
use kvhive_oracle::Fault;
use std::collections::BTreeMap;

/// Faults that need more than the processes, with why one cannot be made here.
pub(in super::super) type Can = BTreeMap<Fault, Result<(), String>>;

/// Tries what this machine has. None where it cannot give processes networks of their own.
///
/// # Errors
/// Why not.
pub(in super::super) fn probe() -> Result<Can, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("networks of their own need root".to_owned());
    }
    let space = format!("{}{}probe", super::STEM, std::process::id());
    run(&["ip", "netns", "add", &space]).map_err(|error| format!("{error:#}"))?;
    let inside = |words: &[&str]| {
        let words = [&["ip", "netns", "exec", &space][..], words].concat();
        run(&words).map(|_| ()).map_err(|error| format!("{error:#}"))
    };
    let filter = |verdict: &str| {
        let table =
            format!("table inet kvt {{ chain a {{ type filter hook input priority 0; {verdict}; }}; }}");
        inside(&["nft", &table]).and_then(|()| inside(&["nft", "delete table inet kvt"]))
    };
    let drops = filter("drop");
    let rate = inside(&["ip", "link", "set", "lo", "up"]).and_then(|()| {
        let words = [
            "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "4mbit", "burst", "64kb", "latency",
            "300ms",
        ];
        inside(&words)
    });
    let lose = filter("numgen random mod 100 < 30 drop");
    let reset = filter("meta l4proto tcp reject with tcp reset");
    super::words::try_run(&["ip", "netns", "del", &space]);
    let disks = disks();
    let traced = disks.clone().and_then(|()| has("strace"));
    let cut = disks.clone().and_then(|()| has("python3"));
    let groups = memory::groups().map(|_| ()).ok_or("no control group limits memory here".to_owned());
    let clock = clock::library().map(|_| ()).ok_or("libfaketime is not installed".to_owned());
    Ok(BTreeMap::from([
        (Fault::Cut, drops.clone()),
        (Fault::CutOneWay, drops),
        (Fault::Lose, lose),
        (Fault::Reset, reset),
        (Fault::Slow, rate),
        (Fault::FullDisk, disks),
        (Fault::SyncError, traced),
        (Fault::PowerCut, cut),
        (Fault::LittleMemory, groups),
        (Fault::WrongClock, clock),
    ]))
}

fn has(program: &str) -> Result<(), String> {
    run(&[program, "--version"]).map(|_| ()).map_err(|error| format!("{error:#}"))
}

/// Makes a disk and cuts its power.
fn disks() -> Result<(), String> {
    let try_one = || -> Result<()> {
        let folder = tempfile::tempdir()?;
        let disk = super::Disk::new(&folder.path().join("image"), &folder.path().join("disk"))?;
        disk.cut_power()?;
        disk.power_on()
    };
    try_one().map_err(|error| format!("{error:#}"))
}
