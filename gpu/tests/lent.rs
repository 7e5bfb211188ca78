//! Memory of a GPU that one process lends and another maps: by descriptors and by handles, between two real processes, on a GPU that is made
//! for tests and, where there is one, on a real one.
#![allow(unsafe_code, reason = "copies between addresses")]

mod fake;
mod other;

use fake::Fake;
use kvhive_gpu::cuda::{
    Borrowed, Copier, CudaDevice, CudaError, Direction, Gpu, GpuMemory, Imported, Loan, Piece, Pinned,
};
use kvhive_gpu::{Arena, ClassId, Device, SizeClass};
use other::{LOAN, Other, loan, told_gpu, words};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

const BYTES: usize = 3 << 20;
const CLASSES: [SizeClass; 1] = [SizeClass { frame_bytes: 3 << 20, frames: 1 }];

/// Bytes of which no two stretches are alike.
fn varied(seed: u32) -> Vec<u8> {
    (0..BYTES as u32).map(|at| (at ^ (at >> 8) ^ (at >> 16)).wrapping_add(seed) as u8).collect()
}

/// Reads bytes at an address of a GPU's.
fn read(gpu: &Arc<Gpu>, from: u64, bytes: usize) -> Result<Vec<u8>, CudaError> {
    let here = Pinned::new(gpu, bytes)?;
    let to = here.bytes().as_ptr().expose_provenance() as u64;
    // SAFETY: what is copied to is this function's own, and whoever calls has the other end.
    unsafe { Copier::new(gpu)?.copy(Direction::ToHost, &[Piece { from, to, bytes }]) }?;
    Ok(here.bytes().to_vec())
}

/// Writes bytes at an address of a GPU's.
fn write(gpu: &Arc<Gpu>, bytes: &[u8], to: u64) -> Result<(), CudaError> {
    let mut here = Pinned::new(gpu, bytes.len())?;
    here.bytes_mut().copy_from_slice(bytes);
    let from = here.bytes().as_ptr().expose_provenance() as u64;
    // SAFETY: as above.
    unsafe { Copier::new(gpu)?.copy(Direction::ToGpu, &[Piece { from, to, bytes: bytes.len() }]) }
}

#[test]
#[ignore = "a process that other tests start"]
fn other_that_maps_a_descriptor() {
    let gpu = told_gpu();
    let stdin = std::io::stdin();
    let memory = Imported::new(&gpu, stdin.as_fd(), BYTES).expect("it was lent");
    assert!(read(&gpu, memory.address(), BYTES).expect("it copies") == varied(1));
    write(&gpu, &varied(2), memory.address()).expect("it copies");
    println!("KVHIVE written .");
}

#[test]
#[ignore = "a process that other tests start"]
fn other_that_opens_a_handle() {
    let gpu = told_gpu();
    let loan = loan(&std::env::var(LOAN).expect("it is set"));
    let memory = Borrowed::new(&gpu, loan).expect("it was lent");
    assert!(read(&gpu, memory.address(), loan.bytes as usize).expect("it copies") == varied(1)[7..]);
    write(&gpu, &varied(2)[7..], memory.address()).expect("it copies");
    println!("KVHIVE written .");
}

#[test]
#[ignore = "a process that other tests start"]
fn other_that_lends() {
    let gpu = told_gpu();
    let memory = GpuMemory::new(&gpu, BYTES).expect("there is room");
    write(&gpu, &varied(3), memory.address()).expect("it copies");
    println!("KVHIVE lent {}", words(&Loan::new(&gpu, memory.address(), BYTES as u64).expect("it is lent")));
    // Until its parent has had enough.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("it is read");
}

/// Lends a slab, and has the other process write what it reads next.
fn lends_a_slab(gpu: &Arc<Gpu>, driver: Option<&Path>) {
    let device = CudaDevice::new(gpu.clone(), 16 << 20).expect("it works");
    let arena = Arena::new(&device, &CLASSES).expect("there is room");
    let Some(file) = arena.export().expect("it answers") else {
        return println!("SKIPPED: this GPU has no virtual memory");
    };
    let mut frame = arena.take(ClassId(0), BYTES as u64).expect("it is free");
    assert_eq!(frame.offset(), 0);
    device.write(&varied(1), &mut frame).expect("it copies");
    let mut other = Other::start("other_that_maps_a_descriptor", driver, None, Some(file));
    other.hear("written");
    other.end();
    let mut back = vec![0; BYTES];
    device.read(&frame.seal(), &mut back).expect("it copies");
    assert!(back == varied(2));
}

/// Lends what begins within an allocation, and has the other process write what is read next.
fn lends_an_allocation(gpu: &Arc<Gpu>, driver: Option<&Path>) {
    let memory = GpuMemory::new(gpu, BYTES + 1).expect("there is room");
    write(gpu, &varied(1), memory.address() + 1).expect("it copies");
    let lent = Loan::new(gpu, memory.address() + 8, BYTES as u64 - 7).expect("it is lent");
    let mut other = Other::start("other_that_opens_a_handle", driver, Some(lent), None);
    other.hear("written");
    other.end();
    let back = read(gpu, memory.address() + 1, BYTES).expect("it copies");
    assert!(back[7..] == varied(2)[7..] && back[..7] == varied(1)[..7]);
}

#[test]
fn a_slab_that_is_lent_has_the_same_bytes_in_two_processes() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    lends_a_slab(&gpu, Some(fake.path()));
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn an_allocation_that_is_lent_has_the_same_bytes_in_two_processes() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    lends_an_allocation(&gpu, Some(fake.path()));
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn memory_that_is_lent_is_the_same_on_a_real_gpu() {
    for gpu in fake::real_gpus().into_iter().take(1) {
        lends_a_slab(&gpu, None);
        lends_an_allocation(&gpu, None);
    }
}

#[test]
fn what_was_not_lent_is_refused_and_nothing_is_left() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let device = CudaDevice::new(gpu.clone(), 16 << 20).expect("it works");
    let slab = device.open_slab(3 << 20).expect("there is room");
    let file = slab.export().expect("it can").expect("it has virtual memory");
    let mapped = |bytes| Imported::new(&gpu, file.as_fd(), bytes).map(|memory| memory.len());
    assert_eq!(mapped(3 << 20), Ok(3 << 20));
    assert_eq!(mapped(4 << 20), Ok(4 << 20), "units are whole");
    let refused = |found: Result<usize, CudaError>, by: &str| {
        let is_by = matches!(&found, Err(CudaError::Failed { call, code: 1, .. }) if *call == by);
        assert!(is_by, "{found:?}");
    };
    refused(mapped((4 << 20) + 1), "cuMemMap");
    let other = tempfile::tempfile().expect("there is room");
    refused(
        Imported::new(&gpu, std::io::stdin().as_fd(), 4096).map(|memory| memory.len()),
        "cuMemImportFromShareableHandle",
    );
    // A file that is none of a GPU's may be as empty as it likes.
    refused(Imported::new(&gpu, other.as_fd(), 4096).map(|memory| memory.len()), "cuMemMap");
    drop((slab, device));
    let memory = GpuMemory::new(&gpu, 1000).expect("there is room");
    let lend = |address, bytes| Loan::new(&gpu, address, bytes);
    assert_eq!(lend(memory.address() + 1, 999).expect("it is its own").offset, 1);
    let beyond = CudaError::Beyond { offset: 1, bytes: 1000, length: 1000 };
    assert_eq!(lend(memory.address() + 1, 1000), Err(beyond));
    assert!(lend(memory.address() + 1, u64::MAX).is_err() && lend(memory.address() + 1000, 1).is_err());
    let own = Borrowed::new(&gpu, lend(memory.address(), 1000).expect("as above"));
    assert!(matches!(own, Err(CudaError::Failed { call: "cuIpcOpenMemHandle_v2", code: 201, .. })));
    let none = Loan { handle: [7; 64], offset: 0, bytes: 1 };
    assert!(matches!(Borrowed::new(&gpu, none), Err(CudaError::Failed { code: 1, .. })));
    drop((memory, gpu));
    assert!(fake.is_clean());
}

#[test]
fn a_loan_is_of_no_more_than_there_is_and_ends_with_its_owner() {
    let fake = Fake::new();
    let gpu = fake.gpu();
    let mut other = Other::start("other_that_lends", Some(fake.path()), None, None);
    let lent = loan(&other.hear("lent"));
    let beyond = |offset, bytes| match Borrowed::new(&gpu, Loan { offset, bytes, ..lent }).map(|_| ()) {
        Err(error) => assert!(matches!(error, CudaError::Beyond { .. }), "{error}"),
        Ok(()) => panic!("{bytes} bytes at {offset} are more than there are"),
    };
    beyond(1, BYTES as u64);
    beyond(u64::MAX, 2);
    beyond(0, u64::MAX);
    let (first, second) =
        (Borrowed::new(&gpu, lent), Borrowed::new(&gpu, Loan { offset: 5, bytes: 7, ..lent }));
    let (first, second) = (first.expect("it is lent"), second.expect("often"));
    assert_eq!(first.address() + 5, second.address());
    drop(first);
    assert!(read(&gpu, second.address(), 7).expect("it copies") == varied(3)[5..12]);
    other.end();
    assert!(read(&gpu, second.address(), 7).expect("it stays open") == varied(3)[5..12]);
    drop(second);
    assert!(Borrowed::new(&gpu, lent).is_err(), "its owner is no more");
    drop(gpu);
    assert!(fake.is_clean());
}

#[test]
fn whichever_call_of_lending_fails_is_named_and_nothing_is_left_behind() {
    let driver = Fake::new();
    let mut other = Other::start("other_that_lends", Some(driver.path()), None, None);
    let lent = loan(&other.hear("lent"));
    let calls = [
        "cuCtxPushCurrent_v2",
        "cuMemGetAllocationGranularity",
        "cuMemExportToShareableHandle",
        "cuMemImportFromShareableHandle",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemGetAddressRange_v2",
        "cuIpcGetMemHandle",
        "cuIpcOpenMemHandle_v2",
    ];
    let everything = |fake: &Fake| -> Result<(), String> {
        let told = |error: CudaError| error.to_string();
        let gpu = fake.cuda().and_then(|cuda| cuda.open(0)).map_err(told)?;
        let memory = GpuMemory::new(&gpu, BYTES).map_err(told)?;
        Loan::new(&gpu, memory.address(), 1).map_err(told)?;
        Borrowed::new(&gpu, lent).map_err(told)?;
        let device = CudaDevice::new(gpu.clone(), 16 << 20).map_err(|error| error.to_string())?;
        let slab = device.open_slab(1 << 20).map_err(|error| error.to_string())?;
        let file = slab.export().map_err(told)?.expect("it has virtual memory");
        Imported::new(&gpu, file.as_fd(), 1 << 20).map(|_| ()).map_err(told)
    };
    for call in calls {
        for nth in 1.. {
            let fake = Fake::new();
            fake.fail(call, nth, 700);
            let Err(error) = everything(&fake) else {
                match fake::unheard(&fake, call, nth) {
                    true => continue,
                    false => break,
                }
            };
            assert!(error.contains(call), "{call} {nth}: {error}");
            assert!(fake.is_clean(), "{call} {nth}: something is left");
            assert_eq!(everything(&fake), Ok(()), "{call} {nth}");
        }
    }
    // What it closes has nobody to be told to.
    let fake = Fake::new();
    fake.fail("cuIpcCloseMemHandle", 1, 700);
    assert_eq!(everything(&fake), Ok(()));
    assert!(fake.calls("cuIpcCloseMemHandle") > 0 && !fake.is_clean());
    other.end();
}
