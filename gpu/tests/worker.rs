//! Workers of GPUs, each a real process: with a driver and an NCCL that are made for tests, and, where there are a GPU and NCCL, with the
//! real ones.
#![allow(unsafe_code, reason = "copies between addresses")]

mod fake;
#[path = "../nccl-rs/tests/fake/mod.rs"]
mod fake_nccl;

use fake::Fake;
use fake_nccl::FakeNccl;
use kvhive_gpu::Device;
use kvhive_gpu::cuda::{Copier, CudaDevice, Direction, Gpu, GpuSlab, Imported, Piece, Pinned};
use kvhive_gpu::worker::{
    Answer, Command, Extent, Heard, PairId, Rank, Setup, TellError, TransferId, UniqueId, Why, Worker, serve,
};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(120);
const SLAB: usize = 20 << 20;
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
    watchdog: Duration,
    /// How long a transfer and a joining may take.
    within: Duration,
    fake: Option<(Fake, FakeNccl)>,
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
            watchdog: Duration::from_millis(200),
            within: Duration::from_millis(1500),
            fake: Some((cuda, nccl)),
        }
    }
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
    /// What was told and not answered.
    open: usize,
    ended: Option<ExitStatus>,
    failures: Vec<Why>,
}

impl End {
    /// Opens the GPU of this number and starts its worker, in which something goes wrong.
    fn start(place: &Place, at: usize, wrong: &str) -> End {
        let gpu = place.gpus[at % place.gpus.len()].clone();
        let device = CudaDevice::new(gpu.clone(), SLAB as u64).expect("it works");
        let slab = device.open_slab(SLAB as u64).expect("there is room");
        let lent = slab.export().expect("it can be lent").expect("it is a file");
        let seen = Imported::new(&gpu, lent.as_fd(), SLAB).expect("it is a slab");
        let mut environment = place.environment.clone();
        environment.push(("NCCL_HOSTID", format!("host-{at}")));
        let setup = Setup {
            gpu: gpu.info().ordinal,
            slab_bytes: SLAB as u64,
            watchdog: place.watchdog,
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
            (self.worker, self.heard) = begin(&self.setup, &self.environment, "", &self.slab);
            self.open = 0;
            self.is_started();
        }
    }

    fn next(&mut self) -> Heard {
        self.heard.recv_timeout(LONG).expect("it answers, or is heard to be gone")
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

    fn is_well(&self) -> bool {
        self.ended.is_none() && self.failures.is_empty()
    }

    fn send(&mut self, pair: PairId, transfer: u64, to: u32, extents: &[Extent]) {
        let (transfer, within, extents) = (TransferId(transfer), self.within, extents.to_vec());
        self.tell(Command::Send { pair, transfer, to, within, extents });
    }

    fn receive(&mut self, pair: PairId, transfer: u64, from: u32, extents: &[Extent]) {
        let (transfer, within, extents) = (TransferId(transfer), self.within, extents.to_vec());
        self.tell(Command::Receive { pair, transfer, from, within, extents });
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

    fn read(&self) -> Vec<u8> {
        let here = Pinned::new(&self.gpu, SLAB).expect("there is room");
        self.copy(Direction::ToHost, self.seen.address(), address(here.bytes()), SLAB);
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
    program.envs(environment.iter().map(|(name, value)| (name, value))).env("KVHIVE_FAKE_NCCL", wrong);
    let (tell, heard): (Sender<Heard>, _) = channel();
    let worker = Worker::start(program, setup, lent, move |one| drop(tell.send(one)));
    (worker.expect("it starts"), heard)
}

/// Makes a communicator of these; says whether it stands at all of them.
fn join(pair: PairId, ends: &mut [&mut End]) -> bool {
    ends[0].tell(Command::MakeId { pair });
    let Some(Answer::IdMade { id, .. }) = ends[0].settle() else { return false };
    join_by(pair, id, ends)
}

fn join_by(pair: PairId, id: UniqueId, ends: &mut [&mut End]) -> bool {
    let of = ends.len() as u32;
    for (at, end) in ends.iter_mut().enumerate() {
        let (rank, within) = (Rank { at: at as u32, of }, end.within);
        end.tell(Command::Join { pair, id, rank, within });
    }
    ends.iter_mut().all(|end| end.settle() == Some(Answer::Ready { pair }))
}

/// Bytes of a slab, of which no two stretches are alike, and others for each number.
fn varied(number: usize) -> Vec<u8> {
    static BYTES: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..SLAB as u32 + 256).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect());
    BYTES[number % 256..][..SLAB].to_vec()
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

/// Has bytes go from one to the other, and looks at every byte of the other's slab.
fn carry(pair: PairId, ends: (&mut End, u32), to: (&mut End, u32), extents: [&[Extent]; 2]) {
    let ((from, from_rank), (to, to_rank)) = (ends, to);
    let sent = varied(extents[0].len() + from_rank as usize);
    from.write(&sent);
    to.write(&vec![POISON; SLAB]);
    from.send(pair, 1, to_rank, extents[0]);
    to.receive(pair, 2, from_rank, extents[1]);
    for (end, transfer) in [(&mut *from, 1), (&mut *to, 2)] {
        let answer = end.settle();
        let is_done =
            matches!(&answer, Some(Answer::Done { transfer: TransferId(done), .. }) if *done == transfer);
        assert!(is_done, "{answer:?} {:?} {:?}", end.ended, extents[0]);
    }
    let mut expected = vec![POISON; SLAB];
    for (here, there) in extents[0].iter().zip(extents[1]) {
        let bytes = here.bytes as usize;
        expected[there.at as usize..][..bytes].copy_from_slice(&sent[here.at as usize..][..bytes]);
    }
    assert!(to.read() == expected, "{extents:?}");
    assert!(from.read() == sent, "what is sent stays as it was");
}

/// Transfers of many sizes, in both directions, wherever their bytes lie at either end.
fn transfers_of_any_size(place: &Place, sizes: &[&[u64]]) {
    let pair = PairId(1);
    let (mut one, mut other) = (End::start(place, 0, ""), End::start(place, 1, ""));
    assert!(join(pair, &mut [&mut one, &mut other]), "{:?} {:?}", one.failures, other.failures);
    for lengths in sizes {
        for (here, there) in [(false, false), (true, false), (false, true), (true, true)] {
            let extents = [placed(lengths, here), placed(lengths, there)];
            let extents = [&extents[0][..], &extents[1]];
            carry(pair, (&mut one, 0), (&mut other, 1), extents);
            carry(pair, (&mut other, 1), (&mut one, 0), extents);
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
    transfers_of_any_size(&Place::fake(), sizes);
}
