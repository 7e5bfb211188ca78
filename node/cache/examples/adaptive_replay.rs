//! Replays traces through the adaptive policy: `adaptive_replay TRACE... [--sizes 1,2,5] [--hints 0.9]`.

#[path = "../tests/adaptive/replay.rs"]
mod replay;

use kvhive_cache::policy::Policy;
use kvhive_cache::policy::adaptive::Adaptive;
use replay::{Pool, Trace};
use std::path::Path;
use std::time::Instant;

fn main() {
    let mut sizes = vec![1.0, 2.0, 5.0, 10.0, 20.0];
    let mut hints = None;
    let mut paths = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--sizes" => {
                sizes = arguments
                    .next()
                    .expect("sizes")
                    .split(',')
                    .map(|size| size.parse().expect("a number"))
                    .collect()
            }
            "--hints" => hints = Some(arguments.next().expect("a probability").parse().expect("a number")),
            _ => paths.push(argument),
        }
    }
    for path in paths {
        let mut trace = Trace::read(Path::new(&path), 512).expect("a trace");
        if let Some(right) = hints {
            trace = trace.with_hints(right);
        }
        let mut sum = 0.0;
        for size in &sizes {
            let capacity = (size / 100.0 * trace.footprint as f64).round() as usize;
            let mut pool = Pool::new(Adaptive::new(capacity), capacity);
            let start = Instant::now();
            let rate = pool.run(&trace) * 100.0;
            sum += rate;
            println!(
                "{size:>5} % {capacity:>7} {rate:6.2} {:.2} s {:.1} B/block, {} ghosts",
                start.elapsed().as_secs_f64(),
                pool.policy.memory_bytes() as f64 / capacity as f64,
                pool.policy.ghosts()
            );
        }
        println!("mean {:.3} {path}", sum / sizes.len() as f64);
    }
}
