//! Memory that other processes can be let look at: they read it, never write it, and cannot be harmed by it.

use kvhive_gpu::{Arena, HostDevice, SizeClass, Window, WindowError, contract};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

const CLASSES: [SizeClass; 1] = [SizeClass { frame_bytes: 64 << 10, frames: 48 }];

fn shared() -> Arena {
    Arena::new(&HostDevice::shared(u64::MAX), &CLASSES).expect("the host has 3 MiB")
}

fn reopened(file: &impl AsRawFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())
}

#[test]
fn shared_memory_keeps_the_contract() {
    contract::check(&|bytes| Arc::new(HostDevice::shared(bytes)));
}

#[test]
fn a_window_shows_what_is_written_and_where() {
    let arena = shared();
    let share = arena.share().expect("memory is shared");
    let window = Window::map(share.file, share.bytes).expect("it is sealed");
    let mut frame = arena.take(kvhive_gpu::ClassId(0), 60_000).expect("frames are free");
    let second = arena.take(kvhive_gpu::ClassId(0), 60_000).expect("frames are free");
    frame.bytes_mut().fill(7);
    let frame = frame.seal();
    let place = frame.shared_place().expect("memory is shared");
    assert_eq!(place.slab, share.number);
    let mut copy = vec![0; 60_000];
    assert!(window.copy(place.at, &mut copy));
    assert_eq!(copy, frame.bytes());
    let other = second.seal().shared_place().expect("memory is shared");
    assert_eq!((other.slab, other.at.abs_diff(place.at)), (place.slab, 64 << 10));

    // What reaches beyond it is not copied, wherever it begins.
    assert!(window.copy(window.bytes() - 60_000, &mut copy));
    for at in [window.bytes() - 59_999, window.bytes(), u64::MAX] {
        assert!(!window.copy(at, &mut copy), "{at}");
    }
}

/// Whether the system leaves the mapping of this address out of core dumps.
fn is_kept_from_dumps(address: *const u8) -> bool {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux has it");
    let mut is_there = false;
    for line in maps.lines() {
        let bounds = line.split(' ').next().and_then(|bounds| bounds.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        if let Some((from, to)) = bounds.and_then(|(from, to)| Some((number(from)?, number(to)?))) {
            is_there = (from..to).contains(&address.addr());
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_there) {
            return flags.split(' ').any(|flag| flag == "dd");
        }
    }
    panic!("there is no such mapping");
}

#[test]
fn no_core_dump_has_blocks_in_it() {
    let own = Arena::new(&HostDevice::new(u64::MAX), &CLASSES).expect("the host has 3 MiB");
    let shared = shared();
    for arena in [&own, &shared] {
        let mut frame = arena.take(kvhive_gpu::ClassId(0), 1000).expect("frames are free");
        assert!(is_kept_from_dumps(frame.bytes_mut().as_ptr()));
    }
    let share = shared.share().expect("memory is shared");
    let _window = Window::map(share.file, share.bytes).expect("it is sealed");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let windows = maps.lines().filter(|line| line.contains("memfd:kvhive") && line.contains(" r--s "));
    let starts = windows.map(|line| line.split('-').next().expect("it begins with its bounds"));
    let starts: Vec<usize> =
        starts.map(|start| usize::from_str_radix(start, 16).expect("an address")).collect();
    assert!(!starts.is_empty());
    assert!(starts.into_iter().all(|start| is_kept_from_dumps(std::ptr::without_provenance(start))));
    assert!(!is_kept_from_dumps([0u8; 1].as_ptr()), "what is no block is in one");
}

#[test]
fn a_window_outlives_the_memorys_owner() {
    let arena = shared();
    let share = arena.share().expect("memory is shared");
    let window = Window::map(share.file, share.bytes).expect("it is sealed");
    let mut frame = arena.take(kvhive_gpu::ClassId(0), 1000).expect("frames are free");
    frame.bytes_mut().fill(9);
    let frame = frame.seal();
    let place = frame.shared_place().expect("memory is shared");
    let kept = frame.clone();
    drop((arena, frame));
    let mut copy = vec![0; 1000];
    assert!(window.copy(place.at, &mut copy));
    assert_eq!(copy, [9; 1000]);
    drop(kept);
    assert!(window.copy(place.at, &mut copy), "whatever it shows, looking at it harms nobody");
}

#[test]
fn who_gets_it_can_neither_write_nor_resize_it() {
    let arena = shared();
    let share = arena.share().expect("memory is shared");
    let reader = share.file.try_clone_to_owned().expect("descriptors are to be had");
    assert_eq!(map_refused(&reader, ProtFlags::READ | ProtFlags::WRITE), Some(Errno::ACCESS));
    // Not even by opening it anew, which another process of the same user may do.
    if let Ok(writer) = reopened(&reader, OFlags::RDWR) {
        assert_eq!(map_refused(&writer, ProtFlags::READ | ProtFlags::WRITE), Some(Errno::PERM));
        assert_eq!(rustix::io::write(&writer, b"x"), Err(Errno::PERM));
        assert_eq!(ftruncate(&writer, 0), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&writer, SealFlags::WRITE), Err(Errno::PERM));
    }
}

/// Maps a file and says why not; what is mapped stays until the process ends.
#[allow(unsafe_code, reason = "a mapping at an address of the kernel's choice harms nobody")]
fn map_refused(file: &OwnedFd, protection: ProtFlags) -> Option<Errno> {
    // SAFETY: it replaces nothing, and nobody looks at it.
    unsafe { mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, file, 0) }.err()
}

#[test]
fn what_may_shrink_or_is_smaller_than_said_or_can_be_written_is_no_window() {
    let file = memfd_create(c"test", MemfdFlags::ALLOW_SEALING).expect("files without names are to be had");
    ftruncate(&file, 8192).expect("memory is there");
    let refused = |file: &OwnedFd, bytes| Window::map(file, bytes).err();
    let reader = reopened(&file, OFlags::RDONLY).expect("it can be read");
    assert_eq!(refused(&reader, 8192), Some(WindowError::Unsealed));
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).expect("it takes seals");
    assert_eq!(refused(&reader, 8192), Some(WindowError::Unsealed), "seals may be added still");
    fcntl_add_seals(&file, SealFlags::SEAL).expect("it takes seals");
    assert_eq!(refused(&file, 8192), Some(WindowError::Writable));
    assert_eq!(refused(&reader, 4096), Some(WindowError::Size { bytes: 8192, announced: 4096 }));
    assert_eq!(refused(&reader, 12288), Some(WindowError::Size { bytes: 8192, announced: 12288 }));
    assert_eq!(refused(&reader, 8192), None);

    let ordinary: OwnedFd = tempfile::tempfile().expect("a folder for temporary files").into();
    assert_eq!(refused(&ordinary, 0), Some(WindowError::Unsealed));
}

#[test]
fn memory_of_ones_own_is_not_shared() {
    let arena = Arena::new(&HostDevice::new(u64::MAX), &CLASSES).expect("the host has 3 MiB");
    assert!(arena.share().is_none());
    let frame = arena.take(kvhive_gpu::ClassId(0), 10).expect("frames are free").seal();
    assert_eq!(frame.shared_place(), None);
}

#[test]
fn memory_goes_back_when_the_last_that_looks_at_it_has_gone() {
    // As the kernel counts what lies in mappings of this process.
    let resident = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux says so");
        let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).expect("Linux says so");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    };
    let before = resident();
    for _ in 0..200 {
        let arena = shared();
        let share = arena.share().expect("memory is shared");
        let window = Window::map(share.file, share.bytes).expect("it is sealed");
        drop(arena);
        assert!(window.copy(0, &mut [0; 4096]));
    }
    // Others of these tests run beside this one where they share a process.
    assert!(resident() < before + (32 << 10), "{} KiB before, {} KiB now", before, resident());
}
