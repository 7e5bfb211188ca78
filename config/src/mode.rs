//! Modes: what a cache mostly serves, and the knobs that this turns. A knob that the file gives wins over its mode.

use crate::keys::{CODECS, DISK_ADMISSIONS, MODES};
use std::time::Duration;

/// What a cache mostly serves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Mode {
    /// Rollouts and evaluation: the same prefixes again and again, in a loop that may be larger than the cache.
    Training,
    /// Serving of all kinds.
    #[default]
    Inference,
    /// Offline batches: throughput counts, latency does not.
    Bulk,
    /// Long answers and feeds: most of what is stored never comes back.
    Streaming,
    /// People who wait: the next turn comes soon, and its first token is what they see.
    Interactive,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 5] =
        [Mode::Training, Mode::Inference, Mode::Bulk, Mode::Streaming, Mode::Interactive];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        MODES[self as usize]
    }

    /// Returns what it makes of the knobs of a node with so many sizes of blocks.
    pub const fn tuning(self, block_sizes: usize) -> Tuning {
        let ms = Duration::from_millis;
        let (strategy, prefetch_blocks, hold, batch_delay, disk_admission) = match self {
            // A loop larger than the cache starves recency: LIRS keeps a part of it that stays.
            Mode::Training => ("lirs", 0, ms(1000), ms(50), DiskAdmission::Used),
            Mode::Inference => ("adaptive", 64, ms(5000), ms(10), DiskAdmission::All),
            // Whole prefixes are read in order, and a batch waits for the slowest anyway.
            Mode::Bulk => ("adaptive", 512, ms(20_000), ms(50), DiskAdmission::All),
            Mode::Streaming => ("s3-fifo", 16, ms(1000), ms(10), DiskAdmission::Used),
            Mode::Interactive => ("adaptive", 256, ms(10_000), ms(2), DiskAdmission::All),
        };
        // No mode loses bits: who wants that says so. These two would rather hold more than answer sooner; with one size of blocks
        // there is no smaller frame for what a codec makes smaller.
        let codec = match self {
            Mode::Training | Mode::Bulk if block_sizes > 1 => Codec::Lossless,
            _ => Codec::Raw,
        };
        let priority = match self {
            // What comes up ahead of its use is most of what a batch reads.
            Mode::Bulk => 4,
            Mode::Interactive => 64,
            Mode::Training | Mode::Inference | Mode::Streaming => 16,
        };
        // A full memory serves more hits than one with room in it, whatever it serves.
        let gc_per_mille = 1000;
        Tuning { strategy, prefetch_blocks, hold, batch_delay, codec, priority, disk_admission, gc_per_mille }
    }
}

/// The knobs of a node's shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Name of the strategy.
    pub strategy: &'static str,
    /// Blocks that one match may have brought up a tier.
    pub prefetch_blocks: u32,
    /// The longest hold of a match.
    pub hold: Duration,
    /// How long moves and bookkeeping may wait.
    pub batch_delay: Duration,
    /// How blocks are stored of tenants whose rules ask for nothing.
    pub codec: Codec,
    /// Reads that requests wait for, which may pass one transfer that nobody waits for on a busy disk.
    pub priority: u32,
    /// Which blocks go to disk.
    pub disk_admission: DiskAdmission,
    /// `gc_threshold` in thousandths: the share of the memory beyond which some is freed; 1000 never does.
    pub gc_per_mille: u16,
}

/// How blocks are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Codec {
    /// As the engine gave them.
    Raw,
    /// Compressed; every bit comes back.
    Lossless,
    /// OCP FP8 E4M3 with scales.
    Fp8,
    /// Eight bits an element, with scales.
    Int8,
    /// Four bits an element, with scales.
    Int4,
}

impl Codec {
    /// All of them.
    pub const ALL: [Codec; 5] = [Codec::Raw, Codec::Lossless, Codec::Fp8, Codec::Int8, Codec::Int4];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        CODECS[self as usize]
    }
}

/// Which blocks go to disk when they must leave memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DiskAdmission {
    /// All of them.
    All,
    /// Those that were used since they were stored.
    Used,
}

impl DiskAdmission {
    /// All of them.
    pub const ALL: [DiskAdmission; 2] = [DiskAdmission::All, DiskAdmission::Used];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        DISK_ADMISSIONS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::STRATEGIES;

    #[test]
    fn every_mode_names_a_strategy_that_there_is_and_differs_from_the_others() {
        for (at, mode) in Mode::ALL.into_iter().enumerate() {
            assert_eq!(MODES[at], mode.as_str());
            assert!(STRATEGIES.contains(&mode.tuning(1).strategy));
            for other in &Mode::ALL[..at] {
                assert_ne!(other.tuning(1), mode.tuning(1), "{mode:?} changes nothing over {other:?}");
            }
        }
    }

    #[test]
    fn no_mode_loses_bits_or_takes_time_to_save_what_is_no_room() {
        for mode in Mode::ALL {
            assert_eq!(mode.tuning(1).codec, Codec::Raw, "{mode:?}");
            assert!(matches!(mode.tuning(2).codec, Codec::Raw | Codec::Lossless), "{mode:?}");
        }
    }
}
