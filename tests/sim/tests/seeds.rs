//! Many seeds; a failing one is named, and what its failure needs.

use kvhive_sim::{Broken, Muted, Outcome, World, shrink};
use std::time::Instant;

/// Simulated seconds of a seed.
const SECONDS: u64 = 28;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, expected a number")))
}

/// Returns what is left out of a seed, as a failure has said it: numbers of faults, and `weather`.
fn muted() -> Muted {
    let text = std::env::var("KVHIVE_SIM_MUTE").unwrap_or_default();
    let mut muted = Muted::default();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(number) => drop(muted.faults.insert(number)),
            Err(_) if word == "weather" => muted.weather = true,
            Err(_) => panic!("KVHIVE_SIM_MUTE has {word:?}, expected numbers of faults, or weather"),
        }
    }
    muted
}

/// Says what a failure needs, and how it is seen again.
fn explain(broken: Broken) -> String {
    let seed = broken.seed;
    let (muted, broken) = shrink(broken);
    let mut words: Vec<String> = muted.faults.iter().map(u64::to_string).collect();
    words.extend(muted.weather.then(|| "weather".to_owned()));
    let replay = format!("KVHIVE_SIM_SEED={seed} KVHIVE_SIM_MUTE={} scripts/test sim", words.join(","));
    format!("{broken}\nreplay: {replay}\nall of it: KVHIVE_SIM_SEED={seed} scripts/test sim")
}

#[test]
fn every_seed_keeps_every_invariant() {
    let one = from_environment("KVHIVE_SIM_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => {
            let first = from_environment("KVHIVE_SIM_FROM").unwrap_or(1);
            first..first + from_environment("KVHIVE_SIM_SEEDS").unwrap_or(300)
        }
    };
    let muted = muted();
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let totals = std::sync::Mutex::new(Outcome::default());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (seeds, totals, muted) = (seeds.clone(), &totals, &muted);
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % workers == worker) {
                    let outcome = World::run_without(seed, muted).unwrap_or_else(|broken| match one {
                        Some(_) => panic!("{broken}"),
                        None => panic!("{}", explain(broken)),
                    });
                    totals.lock().expect("no worker panicked").add(&outcome);
                }
            });
        }
    });
    let all = totals.into_inner().expect("no worker panicked");
    let (simulated, took) = (SECONDS * (seeds.end - seeds.start), begun.elapsed());
    println!("{all:?}");
    println!("{simulated} simulated seconds in {:.0} s on {workers} threads", took.as_secs_f64());
    if one.is_none() {
        // Slots are seldom at rest for long enough while there is trouble.
        let is_rare = seeds.end - seeds.start < 100;
        assert!(
            all.outages > 0 && all.hits_alone > 0 && all.clears_waiting > 0,
            "coordinators must go, and nodes serve on"
        );
        let troubles = [
            all.crashes,
            all.pauses,
            all.slow,
            all.rotten,
            all.failed_copies,
            all.disks_lost,
            all.devices_lost,
        ];
        assert!(troubles.iter().all(|count| *count > 0), "every fault must befall somebody");
        assert!(
            all.hits > 0 && all.clears > 0 && all.given > 0 && (all.balanced > 0 || is_rare),
            "the simulation must do what it checks"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=10 {
        assert_eq!(World::run(seed), World::run(seed));
    }
    assert_ne!(World::run(3), World::run(4));
}

#[test]
fn a_fault_that_is_left_out_changes_no_other() {
    let muted = Muted { faults: [2].into(), weather: false };
    let seed = 5;
    assert_ne!(World::run_without(seed, &muted), World::run(seed), "it is a fault that does something");
    let calm = World::run_without(seed, &Muted { faults: (1..1000).collect(), weather: true });
    let calm = calm.expect("a seed without trouble keeps every rule");
    assert_eq!(
        [calm.crashes, calm.pauses, calm.rotten, calm.failed_copies, calm.disks_lost, calm.devices_lost],
        [0; 6]
    );
}
