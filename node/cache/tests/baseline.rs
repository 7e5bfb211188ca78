//! The simulation against the reference results of the shared traces, where they are at hand; and against a plain model
//! of leaf-LRU always.

use kvhive_cache::simulate::Simulation;
use kvhive_protocol::BlockKey;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

fn key(id: u64) -> BlockKey {
    let mut bytes = [0; 32];
    for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
        let word = (id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(16 * at as u32) ^ (at as u64);
        piece.copy_from_slice(&word.to_le_bytes());
    }
    BlockKey::from_bytes(bytes)
}

fn unzip(path: &Path) -> String {
    let file = std::fs::File::open(path).expect("it is there");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("a gzip file of text");
    text
}

fn requests(path: &Path) -> Vec<Vec<u64>> {
    let ids = |line: &str| -> Vec<u64> {
        let value: serde_json::Value = serde_json::from_str(line).expect("a request a line");
        let number = |value: &serde_json::Value| value.as_u64().expect("a block id");
        match value["hash_ids"].as_array() {
            Some(ids) => ids.iter().map(number).collect(),
            None => {
                let runs = value["hash_runs"].as_array().expect("ids or runs");
                runs.iter().flat_map(|run| number(&run[0])..number(&run[0]) + number(&run[1])).collect()
            }
        }
    };
    unzip(path).lines().map(ids).collect()
}

#[test]
fn shared_traces_give_the_reference_hit_rates() {
    let traces = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
    let table = traces.join("baseline_hit_rates.csv.gz");
    if !table.exists() {
        println!("SKIPPED: no traces at {}", traces.display());
        return;
    }
    let table = unzip(&table);
    for trace in ["mooncake_conversation", "coding_agents_a"] {
        let requests = requests(&traces.join(format!("{trace}.jsonl.gz")));
        let mut compared = 0;
        for row in table.lines().filter(|row| row.starts_with(trace)) {
            let fields: Vec<&str> = row.split(',').collect();
            if fields[3] != "leaf_lru_sglang" || !["1%", "5%", "20%"].contains(&fields[1]) {
                continue;
            }
            let (blocks, reference): (u32, f64) =
                (fields[2].parse().expect("blocks"), fields[4].parse().expect("a rate"));
            let mut simulation = Simulation::new(blocks);
            for ids in &requests {
                let keys: Vec<BlockKey> = ids.iter().map(|id| key(*id)).collect();
                simulation.request(&keys);
            }
            let totals = simulation.totals();
            let rate = totals.hits as f64 / totals.blocks as f64;
            assert!((rate - reference).abs() < 0.001, "{trace} {blocks}: {rate} instead of {reference}");
            compared += 1;
        }
        assert_eq!(compared, 3, "{trace}");
    }
}

/// Leaf-LRU as plainly as it can be written.
struct Model {
    capacity: usize,
    touched: BTreeMap<u64, (u64, u32, Option<u64>)>,
    clock: u64,
}

impl Model {
    fn request(&mut self, ids: &[u64]) -> usize {
        self.clock += 1;
        let hits = ids.iter().take_while(|id| self.touched.contains_key(id)).count();
        for (depth, id) in ids.iter().enumerate() {
            let parent = depth.checked_sub(1).map(|at| ids[at]);
            if !self.touched.contains_key(id) && self.touched.len() == self.capacity {
                let has_child =
                    |id: &u64| self.touched.values().any(|(.., parent)| parent.as_ref() == Some(id));
                let leaves = self.touched.iter().filter(|(id, _)| !has_child(id) && Some(**id) != parent);
                let victim = leaves.min_by_key(|(_, (touched, depth, _))| (*touched, u32::MAX - depth));
                let Some(victim) = victim.map(|(id, _)| *id) else { break };
                self.touched.remove(&victim);
            }
            self.touched.insert(*id, (self.clock, depth as u32, parent));
        }
        hits
    }
}

#[test]
fn the_shard_is_a_leaf_lru() {
    let mut word = 3u64;
    let mut random = move |below: u64| {
        word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (word >> 33) % below
    };
    for capacity in [4, 9, 30] {
        let mut simulation = Simulation::new(capacity);
        let mut model = Model { capacity: capacity as usize, touched: BTreeMap::new(), clock: 0 };
        for _ in 0..400 {
            // Chains that share heads: id = (branch, depth), the first two blocks shared by all branches of a family.
            let (family, branch) = (random(3), random(5));
            let length = 1 + random(7);
            let ids: Vec<u64> = (0..length)
                .map(|at| family * 1000 + at + if at < 2 { 0 } else { 10 * (branch + 1) })
                .collect();
            let keys: Vec<BlockKey> = ids.iter().map(|id| key(*id)).collect();
            assert_eq!(simulation.request(&keys), model.request(&ids), "capacity {capacity}");
        }
    }
}
