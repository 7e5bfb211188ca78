//! Replays traces through the adaptive policy and simple ones:
//! `adaptive_replay [TRACE...] [--sizes 1,2,5] [--hints 0.9] [--simple] [--made-up]`.

#[path = "../tests/adaptive/replay.rs"]
pub mod replay;
#[path = "../tests/adaptive/simple.rs"]
pub mod simple;
#[path = "../tests/adaptive/workloads.rs"]
pub mod workloads;

use kvhive_cache::policy::Policy;
use kvhive_cache::policy::adaptive::Adaptive;
use replay::{Pool, Trace};
use simple::{Rule, Simple};
use std::path::Path;
use std::time::Instant;

const RULES: [Rule; 5] = [Rule::Lru, Rule::Lru2, Rule::Lfu, Rule::Hyperbolic, Rule::Random];

fn main() {
    let mut sizes = vec![1.0, 2.0, 5.0, 10.0, 20.0];
    let mut hints = None;
    let mut traces = Vec::new();
    let (mut with_simple, mut made_up) = (false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--sizes" => {
                let list = arguments.next().expect("--sizes takes a list");
                sizes = list.split(',').map(|size| size.parse().expect("a size is a number")).collect();
            }
            "--hints" => {
                hints = arguments.next().map(|right| right.parse().expect("a probability is a number"));
            }
            "--simple" => with_simple = true,
            "--made-up" => made_up = true,
            _ => traces.push((argument.clone(), Trace::read(Path::new(&argument), 512).expect("a trace"))),
        }
    }
    if made_up {
        traces.extend(workloads::all().into_iter().map(|(name, trace)| (name.to_owned(), trace)));
    }
    for (name, mut trace) in traces {
        if let Some(right) = hints {
            trace = trace.with_hints(right);
        }
        println!("{name}: {} requests, {} blocks", trace.lines.len(), trace.footprint);
        let mut sum = 0.0;
        for size in &sizes {
            let capacity = (size / 100.0 * trace.footprint as f64).round() as usize;
            let mut pool = Pool::new(Adaptive::new(capacity), capacity);
            let start = Instant::now();
            let rate = pool.run(&trace) * 100.0;
            let seconds = start.elapsed().as_secs_f64();
            sum += rate;
            print!("{size:>5} % {capacity:>6} adaptive {rate:6.2}");
            if with_simple {
                let mut best: f64 = 0.0;
                for rule in RULES {
                    let rate = Pool::new(Simple::new(rule, capacity), capacity).run(&trace) * 100.0;
                    best = best.max(rate);
                    print!("  {rule:?} {rate:5.2}");
                }
                print!("  best {:+.2}", rate - best);
            }
            print!("  {}", pool.policy.report());
            let bytes = pool.policy.memory_bytes() / capacity.max(1);
            println!("  {seconds:.2} s, {bytes} B/block, {} ghosts", pool.policy.ghosts());
        }
        println!("{:.3} mean", sum / sizes.len() as f64);
    }
}
