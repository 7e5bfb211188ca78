//! Workers of GPUs, each a real process: with a driver and an NCCL that are made for tests, and, where there are a GPU and NCCL, with the
//! real ones.
#![allow(unsafe_code, reason = "copies between addresses")]

mod fake;
#[path = "../nccl-rs/tests/fake/mod.rs"]
mod fake_nccl;

use fake::Fake;
use fake_nccl::FakeNccl;
use kvhive_gpu::Device;
use kvhive_gpu::cuda::{Copier, CudaDevice, Direction, Gpu, GpuMemory, GpuSlab, Imported, Piece, Pinned};
use kvhive_gpu::worker::{
    Answer, Command, Extent, Heard, LEAST_BYTES, MOST_BYTES, Packing, PairId, Rank, Setup, TellError,
    TransferId, UniqueId, Why, Worker, serve,
};
use nccl_rs::{Comm, Config, Nccl, Span, State, Version};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::process::{WaitOptions, waitpid};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Nothing that works takes as long.
const LONG: Duration = Duration::from_secs(60);
/// Nor is anybody told so late that something does not.
const LONGER: Duration = Duration::from_secs(120);
const POISON: u8 = 0xA5;

/// The worker's program: this one, which another test has started. Without such a one it has nothing to do.
#[test]
#[ignore = "is started by other tests"]
fn worker_process() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("there is standard input");
    serve(socket).expect("it works to its end");
}

/// Where workers are started: with which libraries.
struct Place {
    gpus: Vec<Arc<Gpu>>,
    environment: Vec<(&'static str, String)>,
    /// How long a transfer and a joining may take.
    within: Duration,
    /// Bytes of each end's slab.
    slab: usize,
    /// The libraries that are made for tests lie where they are told.
    _fake: Option<(Fake, FakeNccl)>,
}

impl Place {
    /// One with two GPUs and an NCCL that are made for tests.
    fn fake() -> Place {
        let (cuda, nccl) = (Fake::new(), FakeNccl::new());
        let driver = cuda.cuda().expect("it works");
        let path = |path: PathBuf| path.to_str().expect("it is text").to_owned();
        Place {
            gpus: (0..2).map(|at| driver.open(at).expect("it works")).collect(),
            environment: vec![
                ("LD_LIBRARY_PATH", path(cuda.folder().to_owned())),
                ("KVHIVE_NCCL", path(nccl.path())),
            ],
            within: Duration::from_secs(3),
            slab: 20 << 20,
            _fake: Some((cuda, nccl)),
        }
    }
}

/// This machine's first GPU and NCCL; says so where there are none.
fn real() -> Option<Place> {
    let nccl = match Nccl::find() {
        Ok(nccl) => nccl,
        Err(error) => {
            println!("SKIPPED: {error}");
            return None;
        }
    };
    let gpu = fake::real_gpus().into_iter().next()?;
    println!("{}, NCCL {}", gpu.info(), nccl.version());
    Some(Place {
        gpus: vec![gpu],
        // Both ends are on one GPU: NCCL takes them for two hosts, and goes by sockets.
        environment: vec![("NCCL_SOCKET_IFNAME", "lo".to_owned())],
        within: LONG,
        slab: 160 << 20,
        _fake: None,
    })
}

/// A node's GPU with its slab and worker.
struct End {
    gpu: Arc<Gpu>,
    slab: GpuSlab,
    /// The slab as it is seen from here.
    seen: Imported,
    setup: Setup,
    environment: Vec<(&'static str, String)>,
    worker: Worker,
    heard: Receiver<Heard>,
    within: Duration,
    /// How what it sends and receives is cut.
    packing: Packing,
    /// What was told and not answered.
    open: usize,
    ended: Option<ExitStatus>,
    failures: Vec<Why>,
}

impl End {
    /// Opens the GPU of this number and starts its worker, in which something goes wrong.
    fn start(place: &Place, at: usize, wrong: &str) -> End {
        let gpu = place.gpus[at % place.gpus.len()].clone();
        let device = CudaDevice::new(gpu.clone(), place.slab as u64).expect("it works");
        let slab = device.open_slab(place.slab as u64).expect("there is room");
        let lent = slab.export().expect("it can be lent").expect("it is a file");
        let seen = Imported::new(&gpu, lent.as_fd(), place.slab).expect("it is a slab");
        let mut environment = place.environment.clone();
        environment.push(("NCCL_HOSTID", format!("host-{at}")));
        let setup = Setup {
            gpu: gpu.info().ordinal,
            slab_bytes: place.slab as u64,
            watchdog: if wrong.contains("hang") {
                Duration::from_millis(500)
            } else {
                Setup::default().watchdog
            },
            ..Setup::default()
        };
        let (worker, heard) = begin(&setup, &environment, wrong, &slab);
        let within = place.within;
        let mut end = End {
            gpu,
            slab,
            seen,
            setup,
            environment,
            worker,
            heard,
            within,
            packing: Packing::Together,
            open: 0,
            ended: None,
            failures: Vec::new(),
        };
        end.is_started();
        end
    }

    fn is_started(&mut self) {
        match self.next() {
            Heard::Answer(Answer::Started { nccl }) => assert!(nccl.starts_with("2."), "{nccl}"),
            other => panic!("it has not started: {other:?}"),
        }
    }

    /// Starts the worker once more where it has ended.
    fn again(&mut self) {
        if self.ended.take().is_some() {
            self.setup.watchdog = Setup::default().watchdog;
            (self.worker, self.heard) = begin(&self.setup, &self.environment, "", &self.slab);
            self.open = 0;
            self.is_started();
        }
    }

    fn next(&mut self) -> Heard {
        self.heard.recv_timeout(LONGER).expect("it answers, or is heard to be gone")
    }

    fn tell(&mut self, command: Command) {
        self.open += 1;
        match self.worker.tell(&command) {
            // That it has ended is heard.
            Ok(()) | Err(TellError::Gone) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits until all that was told is answered, or the worker has ended. Returns the last answer.
    fn settle(&mut self) -> Option<Answer> {
        let mut last = None;
        while self.open > 0 && self.ended.is_none() {
            match self.next() {
                Heard::Answer(answer) => {
                    if let Answer::Failed { why, .. } = &answer {
                        self.failures.push(*why);
                    }
                    self.open -= 1;
                    last = Some(answer);
                }
                Heard::Gone => {}
                Heard::Ended(status) => self.ended = Some(status),
            }
        }
        last
    }

    /// Waits for an answer, whatever comes before it; what was told before that is answered, or will not be.
    fn hears(&mut self, what: &str, is_it: impl Fn(&Answer) -> bool) {
        loop {
            match self.next() {
                Heard::Answer(answer) if is_it(&answer) => break,
                Heard::Answer(_) => {}
                Heard::Gone | Heard::Ended(_) => panic!("it ends and has not said {what}"),
            }
        }
        self.open = 0;
    }

    fn is_well(&self) -> bool {
        self.ended.is_none() && self.failures.is_empty()
    }

    fn send(&mut self, pair: PairId, transfer: u64, to: u32, extents: &[Extent]) {
        let (transfer, within, packing, extents) =
            (TransferId(transfer), self.within, self.packing, extents.to_vec());
        self.tell(Command::Send { pair, transfer, to, within, packing, extents });
    }

    fn receive(&mut self, pair: PairId, transfer: u64, from: u32, extents: &[Extent]) {
        let (transfer, within, packing, extents) =
            (TransferId(transfer), self.within, self.packing, extents.to_vec());
        self.tell(Command::Receive { pair, transfer, from, within, packing, extents });
    }

    fn copy(&self, direction: Direction, from: u64, to: u64, bytes: usize) {
        // SAFETY: whoever calls has both ends, and nothing else is under way there.
        let done = unsafe {
            Copier::new(&self.gpu).and_then(|mut copier| copier.copy(direction, &[Piece { from, to, bytes }]))
        };
        done.expect("it copies");
    }

    fn write(&self, bytes: &[u8]) {
        let mut here = Pinned::new(&self.gpu, bytes.len()).expect("there is room");
        here.bytes_mut().copy_from_slice(bytes);
        self.copy(Direction::ToGpu, address(here.bytes()), self.seen.address(), bytes.len());
    }

    /// Reads so many bytes from the slab's first on.
    fn read(&self, count: usize) -> Vec<u8> {
        let here = Pinned::new(&self.gpu, count).expect("there is room");
        self.copy(Direction::ToHost, self.seen.address(), address(here.bytes()), count);
        here.bytes().to_vec()
    }
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

/// Starts a worker's process.
fn begin(
    setup: &Setup,
    environment: &[(&'static str, String)],
    wrong: &str,
    slab: &GpuSlab,
) -> (Worker, Receiver<Heard>) {
    let lent = slab.export().expect("it can be lent").expect("it is a file");
    let mut program = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
    program.args(["--exact", "worker_process", "--ignored", "--nocapture"]).stderr(Stdio::null());
    program
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(if wrong.starts_with("cu") { "KVHIVE_FAKE_CUDA" } else { "KVHIVE_FAKE_NCCL" }, wrong);
    let (tell, heard): (Sender<Heard>, _) = channel();
    let worker = Worker::start(program, setup, lent, move |one| drop(tell.send(one)));
    (worker.expect("it starts"), heard)
}

/// Makes a communicator of these; says whether it stands at all of them.
fn join(pair: PairId, ends: &mut [&mut End]) -> bool {
    ends[0].tell(Command::MakeId { pair });
    let Some(Answer::IdMade { id, .. }) = ends[0].settle() else { return false };
    let of = ends.len() as u32;
    for (at, end) in ends.iter_mut().enumerate() {
        let (rank, within) = (Rank { at: at as u32, of }, end.within);
        end.tell(Command::Join { pair, id, rank, within });
    }
    let answers: Vec<_> = ends.iter_mut().map(|end| end.settle()).collect();
    answers.iter().all(|answer| *answer == Some(Answer::Ready { pair }))
}

/// So many bytes, of which two stretches are alike only where they are a prime number of bytes apart, and others for each number.
fn varied(number: u64, count: usize) -> Vec<u8> {
    const PERIOD: usize = 1_048_573;
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let word = |at: u64| at.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).to_le_bytes();
        (0..PERIOD as u64 / 4).flat_map(word).collect()
    });
    let begun = (number as usize * 4099) % PERIOD;
    let mut bytes = Vec::with_capacity(count + PERIOD);
    bytes.extend_from_slice(&BYTES[begun..PERIOD]);
    while bytes.len() < count {
        bytes.extend_from_slice(&BYTES[..PERIOD]);
    }
    bytes.truncate(count);
    bytes
}

/// Places extents of these lengths: one behind the other, or far from each other and in another order.
fn placed(lengths: &[u64], is_scattered: bool) -> Vec<Extent> {
    let gap = if is_scattered { 4096 } else { 0 };
    let mut at = gap;
    let mut extents: Vec<Extent> = Vec::new();
    let place = |bytes: &u64| {
        let extent = Extent { at, bytes: *bytes };
        at += bytes + gap;
        extent
    };
    if is_scattered {
        extents.extend(lengths.iter().rev().map(place));
        extents.reverse();
    } else {
        extents.extend(lengths.iter().map(place));
    }
    extents
}

/// Returns how much of a slab is looked at: all that some transfers reach, and more.
fn reach(extents: &[&[Extent]]) -> usize {
    let end = extents.iter().copied().flatten().map(|extent| extent.at + extent.bytes).max();
    end.unwrap_or(0) as usize + (64 << 10)
}

/// Has bytes go from one to the other, and looks at every byte that was there and around it.
fn carry(pair: PairId, ends: (&mut End, u32), to: (&mut End, u32), extents: [&[Extent]; 2]) {
    let ((from, from_rank), (to, to_rank)) = (ends, to);
    let reach = reach(&extents);
    let sent = varied(extents[0].len() as u64 + u64::from(from_rank), reach);
    from.write(&sent);
    to.write(&vec![POISON; reach]);
    from.send(pair, 1, to_rank, extents[0]);
    to.receive(pair, 2, from_rank, extents[1]);
    for (end, transfer) in [(&mut *from, 1), (&mut *to, 2)] {
        let answer = end.settle();
        let is_done =
            matches!(&answer, Some(Answer::Done { transfer: TransferId(done), .. }) if *done == transfer);
        assert!(is_done, "{answer:?} {:?} {:?}", end.ended, extents[0]);
    }
    let mut expected = vec![POISON; reach];
    for (here, there) in extents[0].iter().zip(extents[1]) {
        let bytes = here.bytes as usize;
        expected[there.at as usize..][..bytes].copy_from_slice(&sent[here.at as usize..][..bytes]);
    }
    assert!(to.read(reach) == expected, "{extents:?}");
    assert!(from.read(reach) == sent, "what is sent stays as it was");
}

/// Transfers of many sizes, in both directions, wherever their bytes lie at either end and however they are cut.
fn transfers_of_any_size(place: &Place, packings: &[Packing], sizes: &[&[u64]]) {
    let pair = PairId(1);
    let (mut one, mut other) = (End::start(place, 0, ""), End::start(place, 1, ""));
    assert!(join(pair, &mut [&mut one, &mut other]), "{:?} {:?}", one.failures, other.failures);
    for packing in packings {
        (one.packing, other.packing) = (*packing, *packing);
        for lengths in sizes {
            for (here, there) in [(false, false), (true, false), (false, true), (true, true)] {
                let extents = [placed(lengths, here), placed(lengths, there)];
                let extents = [&extents[0][..], &extents[1]];
                carry(pair, (&mut one, 0), (&mut other, 1), extents);
                carry(pair, (&mut other, 1), (&mut one, 0), extents);
            }
        }
    }
    for end in [&mut one, &mut other] {
        end.tell(Command::Close { pair, within: place.within });
    }
    for end in [&mut one, &mut other] {
        assert_eq!(end.settle(), Some(Answer::Closed { pair }));
    }
}

#[test]
fn blocks_of_any_size_come_as_they_went() {
    let sizes: &[&[u64]] = &[
        &[1 << 10],
        &[1 << 10, 3000, 1],
        &[4096; 300],
        &[512 << 10, (512 << 10) - 1, 17],
        &[16 << 20],
        &[100_000; 90],
        &[9 << 20, 1 << 10, 3 << 20, 2000],
    ];
    transfers_of_any_size(&Place::fake(), &[Packing::Apart, Packing::Together], sizes);
}

#[test]
fn no_send_is_of_less_than_half_a_mebibyte_where_there_is_more_to_send() {
    let reached = tempfile::tempdir().expect("a temporary folder can be made");
    let mut place = Place::fake();
    let folder = reached.path().to_str().expect("it is text").to_owned();
    place.environment.push(("KVHIVE_FAKE_NCCL_REACHED", folder));
    let (pair, file) = (PairId(1), reached.path().join("sends"));
    let (mut one, mut other) = (End::start(&place, 0, ""), End::start(&place, 1, ""));
    assert!(join(pair, &mut [&mut one, &mut other]));
    // Returns what was sent, and how often.
    let mut sends = |packing: Packing, lengths: &[u64]| -> Vec<u64> {
        let _ = std::fs::remove_file(&file);
        (one.packing, other.packing) = (packing, packing);
        carry(pair, (&mut one, 0), (&mut other, 1), [&placed(lengths, false), &placed(lengths, true)]);
        let sent = std::fs::read_to_string(&file).expect("something was sent");
        sent.lines().map(|line| line.parse().expect("it is a number")).collect()
    };
    let mixed: [&[u64]; 4] =
        [&[1 << 10, 3 << 20], &[3 << 20, 17], &[9 << 20, 1 << 10, 600 << 10, 2000], &[100_000; 85]];
    for lengths in mixed {
        assert!(sends(Packing::Apart, lengths).iter().any(|bytes| *bytes < LEAST_BYTES), "{lengths:?}");
        let sent = sends(Packing::Together, lengths);
        assert_eq!(sent.iter().sum::<u64>(), lengths.iter().sum());
        assert!(sent.iter().all(|bytes| (LEAST_BYTES..=MOST_BYTES).contains(bytes)), "{lengths:?}: {sent:?}");
    }
    assert_eq!(sends(Packing::Together, &[17, 1 << 10]), [17 + 1024], "it is all there is");
}

#[test]
fn one_rank_has_its_bytes_be_those_of_all() {
    let place = Place::fake();
    let pair = PairId(3);
    let mut ends: Vec<End> = (0..3).map(|at| End::start(&place, at, "")).collect();
    assert!(join(pair, &mut ends.iter_mut().collect::<Vec<_>>()));
    let lengths = [3 << 20, 4096, 70_000, 1 << 20];
    let sent = varied(3, place.slab);
    for (at, end) in ends.iter_mut().enumerate() {
        end.write(&if at == 1 { sent.clone() } else { vec![POISON; place.slab] });
        let (extents, within, packing) = (placed(&lengths, at == 2), end.within, end.packing);
        end.tell(Command::Broadcast { pair, transfer: TransferId(1), root: 1, within, packing, extents });
    }
    for end in &mut ends {
        let answer = end.settle();
        assert!(matches!(answer, Some(Answer::Done { transfer: TransferId(1), .. })), "{answer:?}");
    }
    let from = placed(&lengths, false);
    for (at, end) in ends.iter().enumerate() {
        let got = end.read(place.slab);
        for (here, there) in from.iter().zip(placed(&lengths, at == 2)) {
            let bytes = here.bytes as usize;
            assert!(got[there.at as usize..][..bytes] == sent[here.at as usize..][..bytes], "rank {at}");
        }
    }
}

/// What two workers do for each other, as far as it goes.
fn everything(pair: PairId, one: &mut End, other: &mut End) {
    if !join(pair, &mut [one, other]) {
        return;
    }
    // Some of it is gathered at one end, and all of it at the other.
    let lengths = [700_000, 4096, 70_000, 2 << 20];
    let (here, there) = (placed(&lengths, true), placed(&lengths, false));
    one.send(pair, 1, 1, &here);
    other.receive(pair, 1, 0, &there);
    let answers = [one.settle(), other.settle()];
    if !(one.is_well() && other.is_well()) {
        return;
    }
    assert!(answers.iter().all(|answer| matches!(answer, Some(Answer::Done { .. }))), "{answers:?}");
    one.receive(pair, 2, 1, &there);
    other.send(pair, 2, 0, &here);
    let _ = (one.settle(), other.settle());
    if one.is_well() && other.is_well() {
        let within = one.within;
        one.tell(Command::Close { pair, within });
        other.tell(Command::Close { pair, within });
        let closed = [one.settle(), other.settle()];
        assert!(closed.iter().flatten().all(|answer| *answer == Answer::Closed { pair }), "{closed:?}");
    }
}

/// Has something go wrong at one of two workers: it fails or ends, as `how` it goes wrong; the other hears of it or comes to its deadline; and
/// then both make another pair.
fn goes_wrong(place: &Place, site: &str, how: &str, is_first: bool) {
    let case = format!("{site} {how} {}", if is_first { "at rank 0" } else { "at rank 1" });
    let wrong = format!("{site}:{how}");
    let mut ends = [0, 1].map(|at| End::start(place, at, if (at == 0) == is_first { &wrong } else { "" }));
    let [one, other] = &mut ends;
    everything(PairId(1), one, other);
    let faulty = if is_first { &*one } else { &*other };
    match how {
        "fail" => {
            // What fails while a pair is let go of in good order has it let go of at once.
            let is_last = site.starts_with("ncclCommFinalize") || site.starts_with("ncclCommDestroy");
            assert_eq!(faulty.is_well(), is_last, "{case}");
        }
        // A driver that has failed leaves nothing to go on with.
        "700" => assert!(faulty.ended.is_some_and(|status| status.code() == Some(101)), "{case}"),
        "hang" if !site.starts_with("transfer") => {
            assert_eq!(
                faulty.ended.and_then(|status| status.signal()),
                Some(6),
                "{case}: {:?}",
                faulty.failures
            );
        }
        "hang" => assert!(!faulty.is_well(), "{case}"),
        _ => assert_eq!(
            faulty.ended.and_then(|status| status.code()),
            Some(66),
            "{case}: {:?}",
            faulty.failures
        ),
    }
    for end in [&mut *one, &mut *other] {
        end.tell(Command::Abort { pair: PairId(1) });
        let _ = end.settle();
        end.again();
        end.failures.clear();
        end.within = LONG;
    }
    let pair = PairId(2);
    assert!(join(pair, &mut [one, other]), "{case}");
    let extents = placed(&[3 << 20, 4096, 5000], true);
    carry(pair, (one, 0), (other, 1), [&extents, &extents]);
}

/// The calls that a worker makes, in the order in which it comes to them. It asks a communicator how far it is more or less often.
const SITES: [&str; 14] = [
    "ncclGetUniqueId:1",
    "ncclCommInitRankConfig:1",
    "ncclCommGetAsyncError:1",
    "ncclCommGetAsyncError:3",
    "ncclGroupStart:1",
    "ncclSend:1",
    "ncclRecv:1",
    "ncclGroupEnd:1",
    "ncclGroupEnd:2",
    "transfer:1",
    "transfer:2",
    "ncclCommFinalize:1",
    "ncclCommDestroy:1",
    "ncclGroupStart:2",
];

fn each_site_goes_wrong(how: &str, is_first: bool) {
    let place = Place::fake();
    for site in SITES.iter().filter(|site| is_first || **site != "ncclGetUniqueId:1") {
        goes_wrong(&place, site, how, is_first);
    }
}

#[test]
fn any_call_may_fail_at_rank_0() {
    each_site_goes_wrong("fail", true);
}

#[test]
fn any_call_may_fail_at_rank_1() {
    each_site_goes_wrong("fail", false);
}

#[test]
fn any_call_may_hang_at_rank_0() {
    each_site_goes_wrong("hang", true);
}

#[test]
fn any_call_may_hang_at_rank_1() {
    each_site_goes_wrong("hang", false);
}

#[test]
fn any_call_may_end_the_process_of_rank_0() {
    each_site_goes_wrong("die", true);
}

#[test]
fn any_call_may_end_the_process_of_rank_1() {
    each_site_goes_wrong("die", false);
}

/// What the driver does in a worker is as far from the node as what NCCL does.
#[test]
fn a_driver_that_fails_or_hangs_costs_a_worker_and_no_more() {
    let place = Place::fake();
    for how in ["700", "hang"] {
        for site in ["cuEventRecord:1", "cuEventQuery:1", "cuLaunchKernel:1", "cuMemcpyHtoDAsync_v2:1"] {
            goes_wrong(&place, site, how, true);
        }
        goes_wrong(&place, "cuEventQuery:1", how, false);
    }
}

#[test]
fn a_worker_that_cannot_start_says_why_or_is_ended() {
    let place = Place::fake();
    let end = End::start(&place, 0, "");
    let setup = Setup { start: Duration::from_millis(500), ..end.setup.clone() };
    let calls = [
        "cuInit",
        "cuDevicePrimaryCtxRetain",
        "cuMemImportFromShareableHandle",
        "cuMemMap",
        "cuModuleLoadData",
        "cuStreamCreate",
        "cuEventCreate",
        "cuMemAlloc_v2",
    ];
    for call in calls {
        let (_worker, heard) = begin(&end.setup, &place.environment, &format!("{call}:1:700"), &end.slab);
        let first = heard.recv_timeout(LONGER).expect("it answers");
        assert!(
            matches!(&first, Heard::Answer(Answer::Unfit { is_lasting: false, said }) if said.contains(call)),
            "{first:?}"
        );
        let (_worker, heard) = begin(&setup, &place.environment, &format!("{call}:1:hang"), &end.slab);
        let told = [(); 2].map(|()| heard.recv_timeout(LONGER).expect("it is heard"));
        let is_ended = matches!(&told, [Heard::Gone, Heard::Ended(status)] if status.signal() == Some(6));
        assert!(is_ended, "{call}: {told:?}");
    }
    let (_worker, heard) = begin(&end.setup, &place.environment, "ncclGetVersion:1:fail", &end.slab);
    let first = heard.recv_timeout(LONGER).expect("it answers");
    let is_told = |said: &str| said.contains("ncclGetVersion: it does not tell its version");
    assert!(
        matches!(&first, Heard::Answer(Answer::Unfit { is_lasting: false, said }) if is_told(said)),
        "{first:?}"
    );
    let (_worker, heard) = begin(&setup, &place.environment, "ncclGetVersion:1:hang", &end.slab);
    let told = [(); 2].map(|()| heard.recv_timeout(LONGER).expect("it is heard"));
    let is_ended = matches!(&told, [Heard::Gone, Heard::Ended(status)] if status.signal() == Some(6));
    assert!(is_ended, "{told:?}");
}

/// What an abort does not stop would go on writing to the slab: the worker ends instead.
#[test]
fn an_abort_that_fails_or_hangs_ends_the_worker() {
    let place = Place::fake();
    for how in ["fail", "hang", "die"] {
        let wrong = format!("transfer:1:hang,ncclCommAbort:1:{how}");
        let (mut one, mut other) = (End::start(&place, 0, ""), End::start(&place, 1, &wrong));
        everything(PairId(1), &mut one, &mut other);
        let status = other.ended.expect("it has ended");
        let expected = if how == "die" { (Some(66), None) } else { (None, Some(6)) };
        assert_eq!((status.code(), status.signal()), expected, "{how}");
        assert!(one.ended.is_none() && !one.failures.is_empty(), "{how}");
    }
}

/// Begins a transfer that comes to its middle and no further, and waits until it is there.
fn in_its_middle(place: &Place, pair: PairId) -> (End, End) {
    let (mut one, mut other) = (End::start(place, 0, ""), End::start(place, 1, "transfer:1:hang"));
    (one.within, other.within) = (LONG, LONG);
    assert!(join(pair, &mut [&mut one, &mut other]));
    one.write(&varied(0, 9 << 20));
    other.write(&vec![POISON; 9 << 20]);
    let extents = placed(&[8 << 20], false);
    one.send(pair, 1, 1, &extents);
    other.receive(pair, 1, 0, &extents);
    let begun = Instant::now();
    while other.read((1 << 20) + 1)[1 << 20] == POISON {
        assert!(begun.elapsed() < LONG, "nothing comes");
    }
    (one, other)
}

#[test]
fn a_worker_that_is_killed_in_the_middle_costs_its_peer_one_pair() {
    let place = Place::fake();
    let (mut one, mut other) = in_its_middle(&place, PairId(1));
    let process = other.worker.process();
    other.worker.kill();
    let _ = (one.settle(), other.settle());
    assert_eq!(other.ended.and_then(|status| status.signal()), Some(9));
    assert!(!PathBuf::from(format!("/proc/{process}")).exists(), "it was waited for");
    assert_eq!((one.failures.as_slice(), one.ended), (&[Why::Peer][..], None));
    // What it had of the slab is what it wrote there; the node has all of it.
    assert!(other.read(1 << 20) == varied(0, 1 << 20));
    other.again();
    assert!(join(PairId(2), &mut [&mut one, &mut other]));
    let extents = placed(&[1 << 20], false);
    carry(PairId(2), (&mut one, 0), (&mut other, 1), [&extents, &extents]);
}

#[test]
fn a_transfer_that_is_aborted_is_answered_and_so_is_what_waits_behind_it() {
    let place = Place::fake();
    let (mut one, mut other) = in_its_middle(&place, PairId(1));
    one.send(PairId(1), 2, 1, &placed(&[4096], false));
    one.tell(Command::Abort { pair: PairId(1) });
    let last = one.settle();
    assert_eq!(last, Some(Answer::Closed { pair: PairId(1) }));
    assert_eq!(one.failures, [Why::Aborted, Why::Aborted]);
    // The other end sees that this one has gone if it had not come to where it is made to hang.
    other.tell(Command::Abort { pair: PairId(1) });
    assert_eq!(other.settle(), Some(Answer::Closed { pair: PairId(1) }));
    assert!(matches!(other.failures[..], [Why::Aborted | Why::Peer]), "{:?}", other.failures);
    other.failures.clear();
    assert!(join(PairId(2), &mut [&mut one, &mut other]));
}

#[test]
fn what_makes_no_sense_is_refused_and_costs_the_pair() {
    let place = Place::fake();
    let (mut one, mut other) = (End::start(&place, 0, ""), End::start(&place, 1, ""));
    let refused = |end: &mut End| {
        let answer = end.settle();
        assert!(matches!(&answer, Some(Answer::Failed { why: Why::Senseless, .. })), "{answer:?}");
    };
    let fine = placed(&[4096], false);
    one.send(PairId(9), 1, 1, &fine);
    refused(&mut one);
    for (at, (peer, extent)) in [
        (1, Extent { at: place.slab as u64, bytes: 1 }),
        (1, Extent { at: place.slab as u64 - 4096, bytes: 4097 }),
        (0, fine[0]),
        (2, fine[0]),
        (u32::MAX, fine[0]),
    ]
    .into_iter()
    .enumerate()
    {
        let pair = PairId(at as u64);
        assert!(join(pair, &mut [&mut one, &mut other]));
        one.send(pair, 1, peer, &[extent]);
        refused(&mut one);
        other.tell(Command::Abort { pair });
        assert_eq!(other.settle(), Some(Answer::Closed { pair }));
    }
    let pair = PairId(20);
    assert!(join(pair, &mut [&mut one, &mut other]));
    let (rank, within, packing) = (Rank { at: 0, of: 2 }, LONG, Packing::Together);
    one.tell(Command::Join { pair, id: UniqueId([0; 128]), rank, within });
    refused(&mut one);
    let too_many = vec![fine[0]; 5000];
    let command = Command::Send { pair, transfer: TransferId(1), to: 1, within, packing, extents: too_many };
    assert_eq!(one.worker.tell(&command), Err(TellError::Senseless));
}

#[test]
fn a_machine_without_what_it_takes_is_told_of() {
    let place = Place::fake();
    let end = End::start(&place, 0, "");
    let unfit = |setup: &Setup, change: (&'static str, &str), wanted: bool| {
        let mut environment = place.environment.clone();
        environment.push((change.0, change.1.to_owned()));
        let (_worker, heard) = begin(setup, &environment, "", &end.slab);
        let first = heard.recv_timeout(LONGER).expect("it answers");
        let Heard::Answer(Answer::Unfit { is_lasting, said }) = first else { panic!("{first:?}") };
        assert_eq!(is_lasting, wanted, "{said}");
        let rest = [(); 2].map(|()| heard.recv_timeout(LONGER).expect("it ends"));
        assert!(matches!(&rest, [Heard::Gone, Heard::Ended(_)]), "{rest:?}");
        said
    };
    let said = unfit(&end.setup, ("KVHIVE_NCCL", "/nowhere/libnccl.so.2"), true);
    assert!(said.contains("NCCL is not on this machine") && said.contains("/nowhere"), "{said}");
    let said = unfit(&end.setup, ("LD_LIBRARY_PATH", "/nowhere"), true);
    assert!(said.contains("CUDA's driver is not on this machine"), "{said}");
    let said = unfit(&Setup { slab_bytes: 1 << 40, ..end.setup.clone() }, ("A", ""), false);
    assert!(said.contains("cuMem"), "{said}");
    let said = unfit(&Setup { gpu: 7, ..end.setup.clone() }, ("A", ""), true);
    assert!(said.contains("there is no GPU 7"), "{said}");
    let said = unfit(&end.setup, ("KVHIVE_FAKE_NCCL_VERSION", "21803"), true);
    assert!(said.contains("2.18.3"), "{said}");
}

#[test]
fn what_is_no_worker_is_heard_to_be_gone() {
    let place = Place::fake();
    let end = End::start(&place, 0, "");
    // One ends at once, one does not read and would stay, and one speaks another language.
    for script in ["exit 3", "exec sleep 1000 0<&-", "printf hello >&0; exec sleep 1000"] {
        let lent = end.slab.export().expect("it can be lent").expect("it is a file");
        let mut program = std::process::Command::new("sh");
        program.args(["-c", script]);
        let (tell, heard) = channel();
        let worker = Worker::start(program, &end.setup, lent, move |one| drop(tell.send(one)));
        let worker = worker.expect("it starts");
        let told = [(); 2].map(|()| heard.recv_timeout(LONGER).expect("it is heard"));
        assert!(matches!(&told, [Heard::Gone, Heard::Ended(_)]), "{script}: {told:?}");
        assert_eq!(worker.tell(&Command::End), Err(TellError::Gone));
    }
}

/// Started by the test that follows where no thread can be.
#[test]
#[ignore = "is started by another test"]
fn no_threads() {
    let lent = tempfile::tempfile().expect("there is room");
    let mut program = std::process::Command::new("sleep");
    program.arg("1000");
    let started = Worker::start(program, &Setup::default(), lent.into(), |_| {});
    assert_eq!(started.err().map(|error| error.kind()), Some(std::io::ErrorKind::WouldBlock));
    let left = waitpid(None, WaitOptions::NOHANG);
    assert!(matches!(left, Err(Errno::CHILD)), "a process is left that nobody waits for: {left:?}");
}

#[test]
fn a_worker_that_nobody_would_hear_is_not_left() {
    let mut program = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
    // No thread has so large a stack.
    program
        .args(["--exact", "no_threads", "--ignored", "--nocapture"])
        .env("RUST_MIN_STACK", (1u64 << 60).to_string());
    let output = program.output().expect("it starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_worker_that_hears_what_is_no_command_or_nothing_any_more_ends() {
    let place = Place::fake();
    let end = End::start(&place, 0, "");
    for first in [&b"hello"[..], &[]] {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("sockets");
        let mut program = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
        program.args(["--exact", "worker_process", "--ignored"]).stdin(Stdio::from(there));
        let mut process = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        drop(program);
        if !first.is_empty() {
            send(&here, first, SendFlags::empty()).expect("there is room");
        }
        drop(here);
        assert!(!process.wait().expect("it ends").success());
    }
    // One that works ends when its node says so, and when it is gone; see below for a node that is killed.
    end.worker.tell(&Command::End).expect("it is there");
    let told = [(); 2].map(|()| end.heard.recv_timeout(LONGER).expect("it is heard"));
    assert!(matches!(&told, [Heard::Gone, Heard::Ended(status)] if status.success()), "{told:?}");
}

/// A node that is killed; started by the test that follows.
#[test]
#[ignore = "is started by another test"]
fn node_process() {
    let place = Place::fake();
    let mut ends = [End::start(&place, 0, ""), End::start(&place, 1, "transfer:1:hang")];
    let [one, other] = &mut ends;
    assert!(join(PairId(1), &mut [one, other]));
    let extents = placed(&[8 << 20], false);
    (one.within, other.within) = (LONG, LONG);
    one.send(PairId(1), 1, 1, &extents);
    other.receive(PairId(1), 1, 0, &extents);
    println!("\nworkers {} {}", one.worker.process(), other.worker.process());
    let _ = (one.settle(), other.settle());
}

#[test]
fn workers_whose_node_is_killed_end() {
    let mut program = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
    program.args(["--exact", "node_process", "--ignored", "--nocapture"]).stdout(Stdio::piped());
    let mut node = program.stderr(Stdio::null()).spawn().expect("it starts");
    let said = BufReader::new(node.stdout.take().expect("it was asked for"));
    let line = said.lines().map_while(Result::ok).find(|line| line.starts_with("workers "));
    let line = line.expect("it says who its workers are");
    let workers: Vec<&str> = line.split_whitespace().skip(1).collect();
    assert_eq!(workers.len(), 2);
    node.kill().and_then(|()| node.wait()).expect("it is there");
    let begun = Instant::now();
    for worker in workers {
        // Whoever adopts it may not wait for it.
        let is_there = || {
            let state = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
            state
                .rsplit(')')
                .next()
                .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
        };
        while is_there() {
            assert!(begun.elapsed() < LONG, "worker {worker} stays");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Counts a process's descriptors and threads.
fn holds(process: u32) -> [usize; 2] {
    ["fd", "task"]
        .map(|what| std::fs::read_dir(format!("/proc/{process}/{what}")).expect("it is there").count())
}

fn many_pairs_leave_nothing(place: &Place, cycles: u64) {
    let (mut one, mut other) = (End::start(place, 0, ""), End::start(place, 1, ""));
    (one.within, other.within) = (LONG, LONG);
    let cycle = |number: u64, one: &mut End, other: &mut End| {
        let pair = PairId(number);
        assert!(join(pair, &mut [one, other]), "{number}: {:?} {:?}", one.failures, other.failures);
        // Sometimes with a transfer under way that the other end never hears of.
        if number.is_multiple_of(3) {
            one.send(pair, number, 1, &placed(&[1 << 20], false));
        }
        for end in [&mut *one, &mut *other] {
            end.tell(Command::Abort { pair });
        }
        for end in [one, other] {
            assert_eq!(end.settle(), Some(Answer::Closed { pair }));
        }
    };
    (1..=10).for_each(|number| cycle(number, &mut one, &mut other));
    let before = [&one, &other].map(|end| holds(end.worker.process()));
    let gpu = place.gpus[0].clone();
    let free = gpu.free_bytes().expect("it says");
    (11..=cycles).for_each(|number| cycle(number, &mut one, &mut other));
    let begun = Instant::now();
    // Threads of a library that were told to end may take a moment.
    let holds_more = |before: &[usize; 2], end: &End| {
        holds(end.worker.process()).iter().zip(before).any(|(now, before)| now > before)
    };
    while holds_more(&before[0], &one)
        || holds_more(&before[1], &other)
        || gpu.free_bytes().expect("it says") < free
    {
        assert!(begun.elapsed() < LONG, "more is held than before");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pairs_that_come_and_go_leave_no_descriptors_and_no_threads() {
    many_pairs_leave_nothing(&Place::fake(), 1000);
}

#[test]
fn a_real_gpu_has_blocks_come_as_they_went() {
    let Some(place) = real() else { return };
    let sizes: &[&[u64]] = &[
        &[1 << 10],
        &[4096; 300],
        &[28 << 10; 64],
        &[512 << 10, (512 << 10) - 1, 17],
        &[2 << 20; 16],
        &[64 << 20],
        &[9 << 20, 1 << 10, 3 << 20, 2000],
    ];
    transfers_of_any_size(&place, &[Packing::Apart, Packing::Together], sizes);
}

/// At a real one nothing says when a transfer is in its middle but that its other end was never told of it: the GPU waits for that.
#[test]
fn a_real_gpu_whose_peer_is_killed_goes_on_and_has_its_memory_back() {
    let Some(place) = real() else { return };
    let free = || place.gpus[0].free_bytes().expect("it says");
    // The first time this process takes what it keeps, such as its kernels.
    let before = loses_a_peer(&place, free);
    let after = loses_a_peer(&place, free);
    assert!(after >= before, "{} bytes are not given back", before - after);
}

/// Has one of a pair's ends be killed and a pair be made anew, and returns what is free once both workers have ended.
fn loses_a_peer(place: &Place, free: impl Fn() -> u64) -> u64 {
    let (mut one, mut other) = (End::start(place, 0, ""), End::start(place, 1, ""));
    let without = free();
    assert!(join(PairId(1), &mut [&mut one, &mut other]), "{:?} {:?}", one.failures, other.failures);
    let extents = placed(&[64 << 20], false);
    carry(PairId(1), (&mut one, 0), (&mut other, 1), [&extents, &extents]);
    println!("a pair takes {} KiB of the GPU at both its ends", without.saturating_sub(free()) >> 10);
    one.within = Duration::from_secs(5);
    one.send(PairId(1), 7, 1, &extents);
    let begun = Instant::now();
    other.worker.kill();
    assert!(matches!(one.settle(), Some(Answer::Failed { transfer: Some(TransferId(7)), .. })));
    println!("a peer that is killed is told after {:?}: {:?}", begun.elapsed(), one.failures);
    carries_anew_and_ends(one, other, &extents);
    free()
}

/// Has an end whose other one has died be of a pair again that carries, and waits until both workers have ended.
fn carries_anew_and_ends(mut one: End, mut other: End, extents: &[Extent]) {
    // It may have answered all that it was told before it died.
    while other.ended.is_none() {
        other.open = 1;
        let _ = other.settle();
    }
    other.again();
    one.within = LONG;
    assert!(join(PairId(2), &mut [&mut one, &mut other]), "{:?} {:?}", one.failures, other.failures);
    carry(PairId(2), (&mut other, 1), (&mut one, 0), [extents, extents]);
    let workers = [&one, &other].map(|end| end.worker.process());
    drop((one, other));
    let begun = Instant::now();
    while workers.iter().any(|worker| Path::new(&format!("/proc/{worker}")).exists()) {
        assert!(begun.elapsed() < LONG, "the workers {workers:?} stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How far two workers are with each other.
#[derive(Clone, Copy, Debug)]
enum Step {
    IdMade,
    Joining,
    Idle,
    Sending,
    Receiving,
    Aborting,
    Closing,
}

const STEPS: [Step; 7] =
    [Step::IdMade, Step::Joining, Step::Idle, Step::Sending, Step::Receiving, Step::Aborting, Step::Closing];

/// Has one of two workers be killed at a step: the other has an answer to all that it was told, and makes another pair with the next one. Returns what
/// is free once both have ended.
fn loses_a_peer_at(place: &Place, step: Step, free: impl Fn() -> u64) -> u64 {
    let (mut one, mut other) = (End::start(place, 0, ""), End::start(place, 1, ""));
    let (pair, extents) = (PairId(1), placed(&[8 << 20], false));
    one.within = Duration::from_secs(5).min(place.within);
    let begun = match step {
        Step::IdMade | Step::Joining => {
            one.tell(Command::MakeId { pair });
            let Some(Answer::IdMade { id, .. }) = one.settle() else { panic!("no id is made") };
            let within = one.within;
            let join = |at| Command::Join { pair, id, rank: Rank { at, of: 2 }, within };
            if matches!(step, Step::Joining) {
                other.tell(join(1));
            }
            one.tell(join(0));
            let begun = Instant::now();
            other.worker.kill();
            // It may have stood just before.
            one.hears("how joining went", |answer| {
                matches!(answer, Answer::Failed { .. } | Answer::Ready { .. })
            });
            begun
        }
        _ => {
            assert!(join(pair, &mut [&mut one, &mut other]), "{:?} {:?}", one.failures, other.failures);
            match step {
                Step::Sending | Step::Aborting => one.send(pair, 7, 1, &extents),
                Step::Receiving => one.receive(pair, 7, 1, &extents),
                _ => {}
            }
            for end in [&mut one, &mut other] {
                match step {
                    Step::Aborting => end.tell(Command::Abort { pair }),
                    Step::Closing => end.tell(Command::Close { pair, within: place.within }),
                    _ => {}
                }
            }
            let begun = Instant::now();
            other.worker.kill();
            if matches!(step, Step::Idle) {
                one.send(pair, 7, 1, &extents);
            }
            if !matches!(step, Step::Closing) {
                one.hears("that the transfer failed", |answer| {
                    matches!(answer, Answer::Failed { transfer: Some(TransferId(7)), .. })
                });
            }
            if matches!(step, Step::Closing | Step::Aborting) {
                one.hears("that it is closed", |answer| *answer == Answer::Closed { pair });
            }
            begun
        }
    };
    println!("{step:?}: a peer that is killed has cost {:?}", begun.elapsed());
    one.tell(Command::Abort { pair });
    one.hears("that it has let go of it", |answer| *answer == Answer::Closed { pair });
    carries_anew_and_ends(one, other, &extents);
    free()
}

#[test]
fn a_worker_that_is_killed_at_any_step_costs_its_peer_one_pair() {
    let place = Place::fake();
    for step in STEPS {
        loses_a_peer_at(&place, step, || 0);
    }
}

#[test]
fn a_real_gpu_whose_peer_is_killed_at_any_step_goes_on_and_has_its_memory_back() {
    let Some(place) = real() else { return };
    let free = || place.gpus[0].free_bytes().expect("it says");
    // The first time this process takes what it keeps.
    let before = loses_a_peer_at(&place, Step::Sending, free);
    for step in STEPS {
        let after = loses_a_peer_at(&place, step, free);
        assert!(after >= before, "{step:?}: {} bytes are not given back", before - after);
    }
}

/// `KVHIVE_NCCL_CYCLES` says how many, where there is little time.
#[test]
fn a_real_gpu_has_nothing_left_of_pairs_that_came_and_went() {
    let Some(place) = real() else { return };
    let cycles = std::env::var("KVHIVE_NCCL_CYCLES").ok().and_then(|cycles| cycles.parse().ok());
    let (cycles, begun) = (cycles.unwrap_or(1000), Instant::now());
    many_pairs_leave_nothing(&place, cycles);
    println!("{cycles} pairs were made and aborted in {:?}", begun.elapsed());
}

/// Two ranks of one process on one GPU, which NCCL allows from 2.30 on.
#[test]
fn a_real_gpu_has_two_ranks_of_one_process() {
    let Some(place) = real() else { return };
    let nccl = Nccl::find().expect("it was found");
    if nccl.version() < (Version { major: 2, minor: 30, patch: 0 }) {
        println!("SKIPPED: NCCL {} knows one rank of a process on a GPU", nccl.version());
        return;
    }
    // In a process of its own: what NCCL reads from the environment is read once.
    let mut program = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
    program.args(["--exact", "two_ranks", "--ignored", "--nocapture"]).envs(place.environment);
    let status = program.env("NCCL_MULTI_RANK_GPU_ENABLE", "1").status().expect("it starts");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "is started by another test"]
fn two_ranks() {
    let place = real().expect("it was found");
    let (gpu, nccl) = (&place.gpus[0], Nccl::find().expect("it was found"));
    let _entered = gpu.enter().expect("it works");
    let id = nccl.unique_id().expect("there is a network");
    let config = Config { min_ctas: 1, max_ctas: 2 };
    let comms = [0, 1].map(|at| Comm::join(&nccl, &id, Rank { at, of: 2 }, config).expect("it begins"));
    let settle = || {
        while comms.iter().any(|comm| comm.state().expect("it goes well") == State::InProgress) {
            std::thread::yield_now();
        }
    };
    settle();
    let mut copiers = [(); 2].map(|()| Copier::new(gpu).expect("it works"));
    for bytes in [1 << 10, 1 << 20, 64 << 20] {
        let memory = [(); 2].map(|()| GpuMemory::new(gpu, bytes).expect("there is room"));
        let mut here = Pinned::new(gpu, bytes).expect("there is room");
        let sent = varied(bytes as u64, bytes);
        here.bytes_mut().copy_from_slice(&sent);
        let inside = address(here.bytes());
        let up = Piece { from: inside, to: memory[0].address(), bytes };
        // SAFETY: all of it is this function's own, and nothing else is under way there.
        unsafe { copiers[0].copy(Direction::ToGpu, &[up]) }.expect("it copies");
        here.bytes_mut().fill(POISON);
        let begun = Instant::now();
        let spans = [0, 1].map(|at| Span { address: memory[at].address(), bytes });
        let streams = [0, 1].map(|at| copiers[at].stream().number());
        // SAFETY: the memory lives until both streams were waited for.
        comms[0].group(|group| unsafe { group.send(&comms[0], 1, spans[0], streams[0]) }).expect("it begins");
        // SAFETY: as above.
        let received = comms[1].group(|group| unsafe { group.receive(&comms[1], 0, spans[1], streams[1]) });
        received.expect("it begins");
        settle();
        let down = Piece { from: memory[1].address(), to: inside, bytes };
        // SAFETY: as above; the copy comes after what was received.
        unsafe { copiers[1].copy(Direction::ToHost, &[down]) }.expect("it copies");
        // SAFETY: nothing is copied, and the stream is waited for.
        unsafe { copiers[0].copy(Direction::ToHost, &[]) }.expect("it is over");
        println!("{bytes} bytes from rank to rank, and to the host, in {:?}", begun.elapsed());
        assert!(here.bytes() == sent);
    }
}
