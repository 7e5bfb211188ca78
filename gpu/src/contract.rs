//! What every backend must do. A backend's test calls [`check`]; a broken rule panics with its name.

use crate::{Arena, ArenaError, ClassId, Device, DeviceError, ReadFrame, SizeClass, WriteFrame};
use std::collections::HashMap;
use std::sync::Arc;

const CLASSES: [SizeClass; 3] = [
    SizeClass { frame_bytes: 192, frames: 7 },
    SizeClass { frame_bytes: 5000, frames: 5 },
    SizeClass { frame_bytes: 65536, frames: 3 },
];
const SLAB_BYTES: u64 = 1 << 20;

/// Runs every rule against devices that `make` makes, each with at least the given bytes of memory.
///
/// # Panics
/// When the backend breaks a rule.
pub fn check(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    memory_beyond_the_budget_is_refused_and_comes_back(make);
    classes_must_grow(make);
    an_arena_without_frames_takes_no_memory(make);
    frames_are_aligned_and_never_overlap(make);
    an_exhausted_class_gives_none_and_recovers(make);
    a_dropped_writer_gives_its_frame_back(make);
    bytes_stay_while_any_reader_lives(make);
    a_reused_frame_has_a_new_generation(make);
    copies_are_exact_and_need_equal_lengths(make);
    handles_outlive_the_arena(make);
    random_operations_agree_with_a_model(make);
    threads_leave_every_frame_free(make);
}

fn arena(make: &dyn Fn(u64) -> Arc<dyn Device>) -> Arena {
    Arena::new(make(SLAB_BYTES), &CLASSES).expect("the device has the memory")
}

fn all_free(arena: &Arena) -> bool {
    arena.used_bytes() == 0
        && CLASSES.iter().enumerate().all(|(at, class)| arena.free_frames(ClassId(at as u8)) == class.frames)
}

fn memory_beyond_the_budget_is_refused_and_comes_back(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let device = make(SLAB_BYTES);
    let limit = device.info().memory_bytes;
    assert!(
        matches!(device.open_slab(limit.saturating_add(1)), Err(DeviceError::OutOfMemory { .. })),
        "memory beyond the budget is refused"
    );
    for _ in 0..3 {
        let slab = device.open_slab(SLAB_BYTES).expect("memory within the budget is given, again and again");
        assert_eq!(slab.len() as u64, SLAB_BYTES);
    }
}

fn classes_must_grow(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let same = SizeClass { frame_bytes: 64, frames: 1 };
    assert!(matches!(Arena::new(make(SLAB_BYTES), &[same, same]), Err(ArenaError::Classes { at: 1, .. })));
    let endless = SizeClass { frame_bytes: u64::MAX - 1, frames: 2 };
    assert!(matches!(Arena::new(make(SLAB_BYTES), &[endless]), Err(ArenaError::Overflow)));
}

fn an_arena_without_frames_takes_no_memory(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let empty = Arena::new(make(SLAB_BYTES), &[SizeClass { frame_bytes: 4096, frames: 0 }])
        .expect("nothing is asked");
    assert_eq!((empty.total_bytes(), empty.free_frames(ClassId(0))), (0, 0));
    assert!(empty.take(ClassId(0), 1).is_none() && empty.take(ClassId(9), 1).is_none());
}

fn frames_are_aligned_and_never_overlap(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena = arena(make);
    let mut taken = Vec::new();
    for (at, class) in CLASSES.iter().enumerate() {
        while let Some(frame) = arena.take(ClassId(at as u8), class.frame_bytes) {
            let start = frame.bytes().as_ptr() as usize;
            let unit = if class.frame_bytes < 4096 { 64 } else { 4096 };
            assert_eq!(start % unit, 0, "frames are aligned");
            taken.push((start, start + frame.len(), frame));
        }
    }
    taken.sort_by_key(|(start, ..)| *start);
    assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "no two live frames overlap");
    assert_eq!(taken.len(), CLASSES.iter().map(|class| class.frames as usize).sum::<usize>());
}

fn an_exhausted_class_gives_none_and_recovers(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena = arena(make);
    let class = arena.class_for(200).expect("5000 bytes hold 200");
    assert_eq!(class, ClassId(1), "the smallest class that holds the bytes is chosen");
    assert!(arena.take(class, 5001).is_none(), "a frame never holds more than its class says");
    let held: Vec<WriteFrame> = std::iter::from_fn(|| arena.take(class, 200)).collect();
    assert_eq!((held.len(), arena.free_frames(class)), (5, 0));
    drop(held);
    assert!(all_free(&arena), "an exhausted class recovers");
}

fn a_dropped_writer_gives_its_frame_back(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena = arena(make);
    let mut frame = arena.take(ClassId(0), 100).expect("a fresh arena has room");
    frame.bytes_mut().fill(1);
    drop(frame);
    assert!(all_free(&arena), "a dropped writer gives its frame back");
}

fn bytes_stay_while_any_reader_lives(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena = arena(make);
    let mut frame = arena.take(ClassId(2), 60_000).expect("a fresh arena has room");
    frame.bytes_mut().fill(0x11);
    let first = frame.seal();
    let second = first.clone();
    assert_eq!(first.readers(), 2);
    drop(first);
    let others: Vec<WriteFrame> = std::iter::from_fn(|| arena.take(ClassId(2), 65_536))
        .map(|mut other| {
            other.bytes_mut().fill(0x22);
            other
        })
        .collect();
    assert_eq!(others.len(), 2, "a frame with a reader is not given out");
    assert!(second.bytes().iter().all(|byte| *byte == 0x11), "bytes stay while any reader lives");
}

fn a_reused_frame_has_a_new_generation(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena =
        Arena::new(make(SLAB_BYTES), &[SizeClass { frame_bytes: 64, frames: 1 }]).expect("one frame fits");
    let first = arena.take(ClassId(0), 64).expect("it is free");
    let (place, generation) = (first.frame_id(), first.generation());
    drop(first);
    let second = arena.take(ClassId(0), 64).expect("it is free again").seal();
    assert_eq!(second.frame_id(), place);
    assert_ne!(second.generation(), generation, "a reused frame has a new generation");
}

fn copies_are_exact_and_need_equal_lengths(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let device = make(SLAB_BYTES);
    let arena = Arena::new(device.clone(), &CLASSES).expect("the device has the memory");
    let mut random = Random(5);
    let mut source = arena.take(ClassId(2), 60_001).expect("a fresh arena has room");
    source.bytes_mut().iter_mut().for_each(|byte| *byte = random.next() as u8);
    let source = source.seal();
    let mut target = arena.take(ClassId(2), 60_001).expect("there is room for two");
    device.copy(&source, &mut target).expect("the lengths are equal");
    assert_eq!(source.bytes(), target.bytes(), "copies are exact");
    let mut short = arena.take(ClassId(2), 60_000).expect("there is room for three");
    assert_eq!(device.copy(&source, &mut short), Err(DeviceError::Length { from: 60_001, to: 60_000 }));
}

fn handles_outlive_the_arena(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena = arena(make);
    let mut frame = arena.take(ClassId(1), 10).expect("a fresh arena has room");
    drop(arena);
    frame.bytes_mut().copy_from_slice(b"still here");
    assert_eq!(frame.seal().bytes(), b"still here", "handles outlive the arena");
}

fn random_operations_agree_with_a_model(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    for seed in 1..=6 {
        let device = make(SLAB_BYTES);
        let arena = Arena::new(device.clone(), &CLASSES).expect("the device has the memory");
        let mut random = Random(seed);
        // What is alive, with the byte that fills it.
        let mut live: Vec<(ReadFrame, u8)> = Vec::new();
        let mut clones: HashMap<usize, u32> = HashMap::new();
        for step in 0..300u32 {
            match random.next() % 4 {
                0 | 1 => {
                    let class = ClassId((random.next() % 3) as u8);
                    let bytes = 1 + random.next() % CLASSES[usize::from(class.0)].frame_bytes;
                    if let Some(mut frame) = arena.take(class, bytes) {
                        frame.bytes_mut().fill(step as u8);
                        if random.next().is_multiple_of(5) {
                            continue;
                        }
                        let frame = frame.seal();
                        *clones.entry(frame.bytes().as_ptr() as usize).or_default() += 1;
                        live.push((frame, step as u8));
                    }
                }
                2 if !live.is_empty() => {
                    let at = random.next() as usize % live.len();
                    let (frame, byte) = (live[at].0.clone(), live[at].1);
                    *clones.entry(frame.bytes().as_ptr() as usize).or_default() += 1;
                    live.push((frame, byte));
                }
                _ if !live.is_empty() => {
                    let (frame, _) = live.swap_remove(random.next() as usize % live.len());
                    let place = frame.bytes().as_ptr() as usize;
                    let count = clones.get_mut(&place).expect("it is alive");
                    *count -= 1;
                    if *count == 0 {
                        clones.remove(&place);
                    }
                }
                _ => {}
            }
            for (frame, byte) in &live {
                assert!(
                    frame.bytes().iter().all(|held| held == byte),
                    "seed {seed} step {step}: bytes changed"
                );
                assert_eq!(
                    frame.readers(),
                    clones[&(frame.bytes().as_ptr() as usize)],
                    "seed {seed} step {step}"
                );
            }
            let used: u32 = CLASSES
                .iter()
                .enumerate()
                .map(|(at, class)| class.frames - arena.free_frames(ClassId(at as u8)))
                .sum();
            assert_eq!(
                used as usize,
                clones.len(),
                "seed {seed} step {step}: frames leaked or were freed early"
            );
        }
        live.clear();
        assert!(all_free(&arena), "seed {seed}: frames leaked");
    }
}

fn threads_leave_every_frame_free(make: &dyn Fn(u64) -> Arc<dyn Device>) {
    let arena = arena(make);
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let arena = arena.clone();
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut held: Vec<(ReadFrame, u8)> = Vec::new();
                for _ in 0..5_000 {
                    let byte = random.next() as u8;
                    if let Some(mut frame) = arena.take(ClassId(0), 192) {
                        frame.bytes_mut().fill(byte);
                        let frame = frame.seal();
                        held.push((frame.clone(), byte));
                        held.push((frame, byte));
                    }
                    if held.len() > 2 || random.next().is_multiple_of(2) {
                        for (frame, byte) in held.drain(..) {
                            assert!(frame.bytes().iter().all(|held| *held == byte), "threads share no frame");
                        }
                    }
                }
            });
        }
    });
    assert!(all_free(&arena), "threads leave every frame free");
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same operations for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }
}
