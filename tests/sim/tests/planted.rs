//! Every planted bug is noticed, by a rule that it is said to break. Only where bugs can be planted: `scripts/test planted`.
#![cfg(feature = "planted")]

use kvhive_planted::{Bug, plant};
use kvhive_sim::{Broken, World, shrink};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A bug that so many seeds do not show is a hole in what is checked.
const SEEDS: u64 = 500;

fn seeds() -> u64 {
    let text = std::env::var("KVHIVE_PLANTED_SEEDS").ok();
    text.map_or(SEEDS, |text| text.parse().expect("KVHIVE_PLANTED_SEEDS is a number"))
}

/// How a bug was noticed.
struct Noticed {
    seeds: u64,
    took: Duration,
    /// A rule of the simulator's that did not hold, or what a machine asserts of itself.
    broken: Broken,
}

/// Runs seeds with a bug planted until one shows it. One that holds no better without the bug shows something else.
fn hunt(bug: Bug) -> Option<Noticed> {
    let begun = Instant::now();
    let broken = (1..=seeds()).find_map(|seed| {
        plant(Some(bug));
        let broken = World::run(seed).err();
        plant(None);
        broken.filter(|_| World::run(seed).is_ok())
    });
    broken.map(|broken| Noticed { seeds: broken.seed, took: begun.elapsed(), broken })
}

/// Returns the bugs to plant: all, or those that are named.
fn wanted() -> Vec<Bug> {
    let Ok(text) = std::env::var("KVHIVE_PLANTED") else { return Bug::ALL.to_vec() };
    let find = |name: &str| Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name);
    text.split(',').map(|name| find(name).unwrap_or_else(|| panic!("there is no bug {name}"))).collect()
}

/// Says in a line how a bug was noticed.
fn tell(bug: Bug, noticed: Option<&Noticed>) {
    let (name, breaks) = (format!("{bug:?}"), bug.breaks().join("|"));
    let Some(Noticed { seeds, took, broken }) = noticed else {
        return println!("{name:24} {breaks:6} nothing in {} seeds", seeds());
    };
    let (rule, what) = (broken.rule, broken.what.lines().next().unwrap_or_default());
    let other = if bug.breaks().contains(&rule) { "" } else { "not what it breaks: " };
    println!("{name:24} {breaks:6} {rule:10} {seeds:5} {:6.1}  {other}{what}", took.as_secs_f64());
}

#[test]
fn every_planted_bug_is_noticed() {
    let (bugs, next, failed) = (wanted(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    // What panics is told in its line.
    std::panic::set_hook(Box::new(|_| {}));
    println!("{:24} {:6} {:10} {:>5} {:>6}  what was noticed", "bug", "breaks", "noticed by", "seeds", "s");
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Relaxed)).copied() {
                    let noticed = hunt(bug);
                    tell(bug, noticed.as_ref());
                    let fail = |why| failed.lock().expect("no hunter panicked").push((bug, why));
                    let Some(Noticed { broken, .. }) = noticed else {
                        fail("nothing was noticed".to_owned());
                        continue;
                    };
                    if !bug.breaks().contains(&broken.rule) {
                        fail(format!("{} was noticed, it breaks {:?}", broken.rule, bug.breaks()));
                    }
                    if bugs.len() == 1 {
                        plant(Some(bug));
                        println!("{}", shrink(broken).1);
                        plant(None);
                    }
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let failed = failed.into_inner().expect("no hunter panicked");
    assert!(failed.is_empty(), "not noticed for what they are: {failed:#?}");
}

#[test]
fn without_a_bug_the_same_build_breaks_nothing() {
    for seed in 1..=3 {
        World::run(seed).unwrap_or_else(|broken| panic!("{broken}"));
    }
}
