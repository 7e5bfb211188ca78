//! NCCL as it is called here, against one that is made for tests and, where its library is at hand (`KVHIVE_NCCL`, or a name that the loader
//! knows), against the real one.
#![allow(unsafe_code, reason = "sends from addresses")]

mod fake;

use fake::FakeNccl;
use nccl_rs::{Code, Comm, Config, Nccl, NcclError, Rank, Span, State, UniqueId};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SMALL: Config = Config { min_ctas: 1, max_ctas: 2 };
/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(60);

/// Polls until a communicator is ready or lost.
fn settle(comm: &Comm) -> Result<(), NcclError> {
    until(|| match comm.state() {
        Ok(State::InProgress) => None,
        Ok(State::Ready) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    })
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < LONG, "it does not come");
        std::thread::yield_now();
    }
}

fn join(nccl: &Arc<Nccl>, ranks: u32) -> Result<Vec<Comm>, NcclError> {
    let id = nccl.unique_id()?;
    let comms: Result<Vec<Comm>, NcclError> =
        (0..ranks).map(|at| Comm::join(nccl, &id, Rank { at, of: ranks }, SMALL)).collect();
    let comms = comms?;
    comms.iter().try_for_each(settle)?;
    Ok(comms)
}

fn span(bytes: &mut [u8]) -> Span {
    Span { address: bytes.as_mut_ptr().expose_provenance() as u64, bytes: bytes.len() }
}

fn varied(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Has the first rank send two pieces to the second, and a third be broadcast to all. Returns what the last has then.
fn everything(fake: &FakeNccl) -> Result<Vec<u8>, NcclError> {
    let mut sent = varied(3 << 20);
    let mut got = [vec![0; 3 << 20], vec![0; 3 << 20]];
    {
        let nccl = fake.nccl()?;
        let mut comms = join(&nccl, 3)?;
        let before = fake.ask("fake_finished");
        // SAFETY: all of it outlives the communicators, which are gone at the end of this block.
        comms[0].group(|group| unsafe {
            group.send(&comms[0], 1, span(&mut sent[..1 << 20]), 0)?;
            group.send(&comms[0], 1, span(&mut sent[1 << 20..2 << 20]), 0)?;
            group.broadcast(&comms[0], 0, span(&mut sent[2 << 20..]), 0)
        })?;
        let [one, two] = &mut got;
        // SAFETY: as above.
        comms[1].group(|group| unsafe {
            group.receive(&comms[1], 0, span(&mut one[..1 << 20]), 0)?;
            group.receive(&comms[1], 0, span(&mut one[1 << 20..2 << 20]), 0)?;
            group.broadcast(&comms[1], 0, span(&mut one[2 << 20..]), 0)
        })?;
        // SAFETY: as above.
        comms[2].group(|group| unsafe { group.broadcast(&comms[2], 0, span(&mut two[2 << 20..]), 0) })?;
        until(|| {
            if let Some(error) = comms.iter().find_map(|comm| comm.state().err()) {
                return Some(Err(error));
            }
            (fake.ask("fake_finished") - before == 7).then_some(Ok(()))
        })?;
        for comm in &mut comms {
            comm.finalize()?;
        }
        for comm in comms {
            settle(&comm)?;
            comm.destroy()?;
        }
    }
    let [one, mut two] = got;
    assert!(one == sent);
    two[..2 << 20].copy_from_slice(&one[..2 << 20]);
    Ok(two)
}

#[test]
fn bytes_come_as_they_went() {
    let fake = FakeNccl::new();
    assert!(everything(&fake).expect("it works") == varied(3 << 20));
    assert_eq!(fake.ask("fake_comms"), 0);
}

#[test]
fn each_call_that_fails_is_told_by_its_name_and_leaves_nothing() {
    let calls = [
        "ncclGetVersion",
        "ncclGetUniqueId",
        "ncclCommInitRankConfig",
        "ncclCommGetAsyncError",
        "ncclCommFinalize",
        "ncclCommDestroy",
        "ncclGroupStart",
        "ncclGroupEnd",
        "ncclSend",
        "ncclRecv",
        "ncclBroadcast",
    ];
    for name in calls {
        let fake = FakeNccl::new();
        fake.wrong(&format!("{name}:1:fail"));
        let error = everything(&fake).expect_err(name);
        let NcclError::Failed { call, code, what, last } = &error else { panic!("{name}: {error}") };
        assert_eq!((*call, *code), (name, Code::System), "{error}");
        // What it is not known to be is asked nothing more.
        let said = match name {
            "ncclGetVersion" => ("it does not tell its version", ""),
            _ => ("unhandled system error", "this NCCL is made for tests"),
        };
        assert_eq!((what.as_str(), last.as_str()), said);
        if name != "ncclCommDestroy" {
            // One that could not be destroyed is not tried again.
            assert_eq!(fake.ask("fake_comms"), 0, "{name}");
        }
    }
    let fake = FakeNccl::new();
    fake.wrong("transfer:2:fail");
    assert_eq!(everything(&fake).expect_err("it failed").code(), Some(Code::System));
    assert!(everything(&fake).is_ok(), "once is once");
}

#[test]
fn a_rank_whose_other_end_goes_hears_of_it_and_is_aborted() {
    let fake = FakeNccl::new();
    let nccl = fake.nccl().expect("it loads");
    let mut here = vec![0; 1 << 20];
    let mut comms = join(&nccl, 2).expect("they meet");
    let (other, comm) = (comms.pop().expect("two"), comms.pop().expect("two"));
    let span = span(&mut here);
    // SAFETY: the bytes outlive the communicator.
    comm.group(|group| unsafe { group.receive(&comm, 1, span, 0) }).expect("it begins");
    drop(other);
    let error = until(|| comm.state().err());
    assert_eq!(error.code(), Some(Code::Remote), "{error}");
    comm.abort().expect("it ends");
    assert_eq!(fake.ask("fake_comms"), 0);
}

#[test]
fn what_is_no_nccl_is_told_by_name() {
    let nowhere = Nccl::load(Path::new("/nowhere/libnccl.so.2")).err().expect("it is not there");
    assert!(nowhere.is_absence(), "{nowhere}");
    let lacking = FakeNccl::with(&["-DncclCommAbort=ncclSomethingElse"]).nccl().err();
    assert!(matches!(&lacking, Some(NcclError::NoSymbol { symbol: "ncclCommAbort", .. })), "{lacking:?}");
    // An old one is told as such, whatever else it lacks.
    let old = FakeNccl::with(&["-DncclCommAbort=ncclSomethingElse", "-DVERSION=21803"]).nccl().err();
    let said = "this is NCCL 2.18.3, and 2.19.3 is needed: install a newer one";
    assert_eq!(old.map(|error| error.to_string()).as_deref(), Some(said));
    let fake = FakeNccl::new();
    assert_eq!(fake.nccl().map(|nccl| nccl.version().to_string()), Ok("2.28.9".to_owned()));
}

/// Joins as one of two, and says what came of it.
fn joins(nccl: &Arc<Nccl>, id: &UniqueId, at: u32) -> String {
    let joined = Comm::join(nccl, id, Rank { at, of: 2 }, SMALL).and_then(|comm| settle(&comm));
    match joined {
        Ok(()) => "it stands".to_owned(),
        Err(error) => format!("{:?}", error.code().expect("it was called")),
    }
}

/// The other of two processes: it is told an id, joins by it, and says what came of it.
#[test]
#[ignore = "is started by other tests"]
fn other_process() {
    let mut id = UniqueId([0; 128]);
    std::io::stdin().read_exact(&mut id.0).expect("it is told an id");
    let nccl = Nccl::find().expect("it loads");
    println!("\njoined: {}", joins(&nccl, &id, 1));
}

/// Has this process make an id and another one join by it; returns what came of it here and there.
fn in_two_processes(library: &Path) -> [String; 2] {
    let mut other = Command::new(std::env::current_exe().expect("a test is a program"))
        .args(["--exact", "other_process", "--ignored", "--nocapture"])
        // With one GPU both are to take each other for other hosts.
        .env("KVHIVE_NCCL", library)
        .env("NCCL_HOSTID", "the other")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let nccl = Nccl::load(library).expect("it loads");
    let id = nccl.unique_id().expect("there is a network");
    other.stdin.take().expect("it is piped").write_all(&id.0).expect("it listens");
    let here = joins(&nccl, &id, 0);
    let mut said = String::new();
    other.stdout.take().expect("it is piped").read_to_string(&mut said).expect("it is text");
    assert!(other.wait().expect("it was started").success(), "{said}");
    let there = said.lines().find_map(|line| line.strip_prefix("joined: ")).expect("it says what came of it");
    [here, there.to_owned()]
}

#[test]
fn an_id_is_of_use_in_another_process() {
    assert_eq!(in_two_processes(&FakeNccl::new().path()), ["it stands"; 2]);
}

/// Run with the real library by `scripts/test nccl`. Without a GPU each end says so, and neither waits for the other.
#[test]
fn the_real_ones_ids_go_to_another_process() {
    let Some(library) = std::env::var_os("KVHIVE_NCCL") else {
        return println!("SKIPPED: KVHIVE_NCCL says nothing of a real library");
    };
    let both = in_two_processes(Path::new(&library));
    println!("both ends: {both:?}");
    let has_gpu = Path::new("/dev/nvidiactl").exists();
    assert!(has_gpu || both == ["Cuda", "Cuda"], "{both:?}");
}

/// Run with the real library by `scripts/test nccl`, which says where it is; it needs no GPU.
#[test]
fn the_real_one_loads_and_makes_ids() {
    let nccl = match Nccl::find() {
        Err(error) if error.is_absence() && std::env::var_os("KVHIVE_NCCL").is_none() => {
            println!("SKIPPED: {error}");
            return;
        }
        found => found.expect("it loads"),
    };
    let ids = [nccl.unique_id(), nccl.unique_id()].map(|id| id.expect("there is a network"));
    assert_ne!(ids[0], ids[1], "NCCL {}", nccl.version());
    println!("NCCL {}: an id is {} bytes", nccl.version(), ids[0].0.len());
}
