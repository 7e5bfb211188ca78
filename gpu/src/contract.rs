//! What every backend must do. A backend's test calls [`check`]; a broken rule panics with its name.

use crate::space::sealed::Memory;
use crate::{Arena, ArenaError, ClassId, Device, DeviceError, HostDevice, ReadFrame, SizeClass, WriteFrame};
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
pub fn check<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    memory_beyond_the_budget_is_refused_and_comes_back(make);
    classes_must_grow(make);
    an_arena_without_frames_takes_no_memory(make);
    frames_are_aligned_and_never_overlap(make);
    an_exhausted_class_gives_none_and_recovers(make);
    a_dropped_writer_gives_its_frame_back(make);
    bytes_stay_while_any_reader_lives(make);
    a_reused_frame_has_a_new_generation(make);
    what_was_called_stale_is_wiped_when_it_is_free(make);
    a_frame_that_is_being_wiped_is_nobody_s(make);
    copies_are_exact_and_need_equal_lengths(make);
    handles_outlive_the_arena(make);
    random_operations_agree_with_the_host(make);
    threads_leave_every_frame_free(make);
}

/// A device and an arena of its memory.
struct Bench<D: Device> {
    device: Arc<D>,
    arena: Arena<D::Space>,
}

impl<D: Device> Bench<D> {
    fn new(make: &dyn Fn(u64) -> Arc<D>) -> Self {
        let device = make(SLAB_BYTES);
        let arena = Arena::new(&*device, &CLASSES).expect("the device has the memory");
        Bench { device, arena }
    }

    /// Takes a frame and fills it.
    fn filled(&self, class: ClassId, bytes: &[u8]) -> Option<WriteFrame<D::Space>> {
        let mut frame = self.arena.take(class, bytes.len() as u64)?;
        self.device.write(bytes, &mut frame).expect("the lengths are equal");
        Some(frame)
    }

    fn read(&self, frame: &ReadFrame<D::Space>) -> Vec<u8> {
        let mut bytes = vec![0; frame.len()];
        self.device.read(frame, &mut bytes).expect("the lengths are equal");
        bytes
    }

    fn all_free(&self) -> bool {
        self.arena.used_bytes() == 0
            && CLASSES
                .iter()
                .enumerate()
                .all(|(at, class)| self.arena.free_frames(ClassId(at as u8)) == class.frames)
    }
}

fn memory_beyond_the_budget_is_refused_and_comes_back<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let device = make(SLAB_BYTES);
    let limit = device.info().memory_bytes;
    assert!(
        matches!(device.open_slab(limit.saturating_add(1)), Err(DeviceError::OutOfMemory { .. })),
        "memory beyond the budget is refused"
    );
    for _ in 0..3 {
        let slab = device.open_slab(SLAB_BYTES).expect("memory within the budget is given, again and again");
        assert_eq!(slab.bytes() as u64, SLAB_BYTES);
    }
}

fn classes_must_grow<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let device = make(SLAB_BYTES);
    let same = SizeClass { frame_bytes: 64, frames: 1 };
    assert!(matches!(Arena::new(&*device, &[same, same]), Err(ArenaError::Classes { at: 1, .. })));
    let endless = SizeClass { frame_bytes: u64::MAX - 1, frames: 2 };
    assert!(matches!(Arena::new(&*device, &[endless]), Err(ArenaError::Overflow)));
}

fn an_arena_without_frames_takes_no_memory<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let none = [SizeClass { frame_bytes: 4096, frames: 0 }];
    let empty = Arena::new(&*make(SLAB_BYTES), &none).expect("nothing is asked");
    assert_eq!((empty.total_bytes(), empty.free_frames(ClassId(0))), (0, 0));
    assert!(empty.take(ClassId(0), 1).is_none() && empty.take(ClassId(9), 1).is_none());
}

fn frames_are_aligned_and_never_overlap<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let Bench { arena, device: _device } = Bench::new(make);
    let mut taken = Vec::new();
    for (at, class) in CLASSES.iter().enumerate() {
        while let Some(frame) = arena.take(ClassId(at as u8), class.frame_bytes) {
            let (space, at) = frame.span();
            let (start, unit) = (space.base() + at as u64, if class.frame_bytes < 4096 { 64 } else { 4096 });
            assert_eq!(start % unit, 0, "frames are aligned");
            taken.push((start, start + frame.len() as u64, frame));
        }
    }
    taken.sort_by_key(|(start, ..)| *start);
    assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "no two live frames overlap");
    assert_eq!(taken.len(), CLASSES.iter().map(|class| class.frames as usize).sum::<usize>());
}

fn an_exhausted_class_gives_none_and_recovers<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let bench = Bench::new(make);
    let class = bench.arena.class_for(200).expect("5000 bytes hold 200");
    assert_eq!(class, ClassId(1), "the smallest class that holds the bytes is chosen");
    assert!(bench.arena.take(class, 5001).is_none(), "a frame never holds more than its class says");
    let held: Vec<WriteFrame<D::Space>> = std::iter::from_fn(|| bench.arena.take(class, 200)).collect();
    assert_eq!((held.len(), bench.arena.free_frames(class)), (5, 0));
    drop(held);
    assert!(bench.all_free(), "an exhausted class recovers");
}

fn a_dropped_writer_gives_its_frame_back<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let bench = Bench::new(make);
    drop(bench.filled(ClassId(0), &[1; 100]).expect("a fresh arena has room"));
    assert!(bench.all_free(), "a dropped writer gives its frame back");
}

fn bytes_stay_while_any_reader_lives<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let bench = Bench::new(make);
    let first = bench.filled(ClassId(2), &[0x11; 60_000]).expect("a fresh arena has room").seal();
    let second = first.clone();
    assert_eq!(first.readers(), 2);
    drop(first);
    let others: Vec<_> = std::iter::from_fn(|| bench.filled(ClassId(2), &[0x22; 65_536])).collect();
    assert_eq!(others.len(), 2, "a frame with a reader is not given out");
    assert_eq!(bench.read(&second), [0x11; 60_000], "bytes stay while any reader lives");
}

fn a_reused_frame_has_a_new_generation<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let one = [SizeClass { frame_bytes: 64, frames: 1 }];
    let arena = Arena::new(&*make(SLAB_BYTES), &one).expect("one frame fits");
    let first = arena.take(ClassId(0), 64).expect("it is free");
    let (place, generation) = (first.frame_id(), first.generation());
    drop(first);
    let second = arena.take(ClassId(0), 64).expect("it is free again").seal();
    assert_eq!(second.frame_id(), place);
    assert_ne!(second.generation(), generation, "a reused frame has a new generation");
}

fn what_was_called_stale_is_wiped_when_it_is_free<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let bench = Bench::new(make);
    let (arena, class) = (&bench.arena, ClassId(1));
    let filled = |byte: u8| bench.filled(class, &[byte; 5000]).expect("a fresh arena has room");
    let (kept, going) = (filled(0x11).seal(), filled(0x22));
    let lent = kept.clone();
    drop(filled(0x33).seal());
    assert!(arena.stale_bytes() == 0 && arena.take_stale().is_none(), "nothing was called stale");
    arena.call_stale();
    assert_eq!(arena.stale_bytes(), 5000, "one frame is free");
    drop(kept);
    assert_eq!(arena.stale_bytes(), 5000, "somebody reads the other");
    drop(lent);
    assert_eq!(arena.stale_bytes(), 10_000);
    drop(going.seal());
    assert_eq!(arena.stale_bytes(), 15_000, "what is written when all is called stale is so too");
    drop(bench.filled(ClassId(2), &[0x44; 60_000]).expect("it is free").seal());
    assert_eq!(arena.stale_bytes(), 15_000, "what is written afterwards is not");
    for left in (0..3).rev() {
        let mut frame = arena.take_stale().expect("it is to be wiped");
        bench.device.write(&vec![0; frame.len()], &mut frame).expect("the lengths are equal");
        frame.wiped();
        assert_eq!(arena.stale_bytes(), left * 5000);
    }
    assert!(bench.all_free() && arena.take_stale().is_none());
    let wiped: Vec<_> = (0..3).filter_map(|_| arena.take(class, 5000)).map(WriteFrame::seal).collect();
    assert!(wiped.iter().all(|frame| bench.read(frame) == [0; 5000]), "what was wiped is zeros");
}

fn a_frame_that_is_being_wiped_is_nobody_s<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let one = [SizeClass { frame_bytes: 64, frames: 1 }];
    let device = make(SLAB_BYTES);
    let arena = Arena::new(&*device, &one).expect("one frame fits");
    let take = || arena.take(ClassId(0), 64);
    drop(take().expect("it is free").seal());
    arena.call_stale();
    let frame = arena.take_stale().expect("it is to be wiped");
    assert!(take().is_none(), "it is being wiped");
    // Whoever could not wipe it gives it back as it was.
    drop(frame);
    assert_eq!((arena.stale_bytes(), arena.used_bytes(), arena.free_frames(ClassId(0))), (64, 0, 1));
    let frame = take().expect("it may be written over instead");
    assert_eq!((arena.stale_bytes(), arena.used_bytes()), (0, 64));
    drop(frame);
    assert_eq!(arena.stale_bytes(), 64, "nothing was written over it");
    let mut frame = take().expect("it is free");
    device.write(&[1; 64], &mut frame).expect("the lengths are equal");
    drop(frame.seal());
    assert_eq!(arena.stale_bytes(), 0, "it was written over");
}

fn copies_are_exact_and_need_equal_lengths<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let Bench { device, arena } = &Bench::new(make);
    let mut random = Random(5);
    let bytes: Vec<u8> = (0..60_001).map(|_| random.next() as u8).collect();
    let mut source = arena.take(ClassId(2), 60_001).expect("a fresh arena has room");
    device.write(&bytes, &mut source).expect("the lengths are equal");
    let source = source.seal();
    let mut target = arena.take(ClassId(2), 60_001).expect("there is room for two");
    device.copy(&source, &mut target).expect("the lengths are equal");
    let mut read = vec![0; 60_001];
    device.read(&target.seal(), &mut read).expect("the lengths are equal");
    assert!(read == bytes, "copies are exact");
    let mut short = arena.take(ClassId(2), 60_000).expect("there is room again");
    let unequal = |from, to| Err(DeviceError::Length { from, to });
    assert_eq!(device.copy(&source, &mut short), unequal(60_001, 60_000));
    assert_eq!(device.write(&bytes, &mut short), unequal(60_001, 60_000));
    assert_eq!(device.read(&source, &mut read[1..]), unequal(60_001, 60_000));
}

fn handles_outlive_the_arena<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let Bench { device, arena } = Bench::new(make);
    let mut frame = arena.take(ClassId(1), 10).expect("a fresh arena has room");
    drop(arena);
    device.write(b"still here", &mut frame).expect("the lengths are equal");
    let mut read = [0; 10];
    device.read(&frame.seal(), &mut read).expect("the lengths are equal");
    assert_eq!(&read, b"still here", "handles outlive the arena");
}

/// Two devices of which the same was asked.
struct Twins<D: Device> {
    ours: Bench<D>,
    host: Bench<HostDevice>,
    /// What is alive on both.
    live: Vec<(ReadFrame<D::Space>, ReadFrame)>,
}

impl<D: Device> Twins<D> {
    fn store(&mut self, class: ClassId, bytes: &[u8]) -> bool {
        let (ours, host) = (self.ours.filled(class, bytes), self.host.filled(class, bytes));
        assert_eq!(ours.is_some(), host.is_some(), "both have room, or neither");
        let Some((ours, host)) = ours.zip(host) else { return false };
        self.live.push((ours.seal(), host.seal()));
        true
    }

    fn copy(&mut self, at: usize) {
        let (ours, host) = &self.live[at];
        let class = ours.frame_id().class;
        let (to_ours, to_host) =
            (self.ours.arena.take(class, ours.len() as u64), self.host.arena.take(class, host.len() as u64));
        assert_eq!(to_ours.is_some(), to_host.is_some(), "both have room, or neither");
        let Some((mut to_ours, mut to_host)) = to_ours.zip(to_host) else { return };
        self.ours.device.copy(ours, &mut to_ours).expect("the lengths are equal");
        self.host.device.copy(host, &mut to_host).expect("the lengths are equal");
        self.live.push((to_ours.seal(), to_host.seal()));
    }

    fn check(&self, when: &str) {
        for (ours, host) in &self.live {
            assert!(self.ours.read(ours) == host.bytes(), "{when}: bytes differ");
            assert_eq!(ours.readers(), host.readers(), "{when}");
        }
        for at in 0..CLASSES.len() {
            let class = ClassId(at as u8);
            let free = [self.ours.arena.free_frames(class), self.host.arena.free_frames(class)];
            assert_eq!(free[0], free[1], "{when}: frames leaked or were freed early");
        }
    }
}

fn random_operations_agree_with_the_host<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    for seed in 1..=6 {
        let host = Bench::new(&|bytes| Arc::new(HostDevice::new(bytes)));
        let mut twins = Twins { ours: Bench::new(make), host, live: Vec::new() };
        let mut random = Random(seed);
        for step in 0..150u32 {
            match random.next() % 5 {
                0 | 1 => {
                    let class = ClassId((random.next() % 3) as u8);
                    let bytes = 1 + random.next() % CLASSES[usize::from(class.0)].frame_bytes;
                    let bytes: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
                    if twins.store(class, &bytes) && random.next().is_multiple_of(5) {
                        twins.live.pop();
                    }
                }
                2 if !twins.live.is_empty() => {
                    let (ours, host) = &twins.live[random.next() as usize % twins.live.len()];
                    let both = (ours.clone(), host.clone());
                    twins.live.push(both);
                }
                3 if !twins.live.is_empty() => twins.copy(random.next() as usize % twins.live.len()),
                _ if !twins.live.is_empty() => {
                    twins.live.swap_remove(random.next() as usize % twins.live.len());
                }
                _ => {}
            }
            twins.check(&format!("seed {seed} step {step}"));
        }
        twins.live.clear();
        assert!(twins.ours.all_free(), "seed {seed}: frames leaked");
    }
}

fn threads_leave_every_frame_free<D: Device>(make: &dyn Fn(u64) -> Arc<D>) {
    let bench = Bench::new(make);
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let bench = &bench;
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut held: Vec<(ReadFrame<D::Space>, u8)> = Vec::new();
                for _ in 0..1_000 {
                    let byte = random.next() as u8;
                    if let Some(frame) = bench.filled(ClassId(0), &[byte; 192]) {
                        let frame = frame.seal();
                        held.push((frame.clone(), byte));
                        held.push((frame, byte));
                    }
                    if held.len() > 2 || random.next().is_multiple_of(2) {
                        for (frame, byte) in held.drain(..) {
                            assert_eq!(bench.read(&frame), [byte; 192], "threads share no frame");
                        }
                    }
                }
            });
        }
    });
    assert!(bench.all_free(), "threads leave every frame free");
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
