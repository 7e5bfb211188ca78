//! Every decoder of bytes from outside, as a fuzzer calls it: below the checksum, which the target makes good, and with more to hold
//! than that nothing panics. What was read is written and read again, and must be the same; memory is bounded by the input's length.
//! It knows no fuzzer: `src/main.rs` has libFuzzer call it, `tests/corpus.rs` runs what was found so far.

mod admin;
mod disk;
mod engines;
mod group;
mod text;
#[path = "../../cli/src/trace/format.rs"]
#[allow(dead_code, reason = "a trace is read here, and its requests are not asked about")]
mod trace_format;
mod traces;
mod wire;

use xxhash_rust::xxh3::xxh3_64;

/// A decoder.
pub struct Target {
    /// What it is called, and its folder of the corpus.
    pub name: &'static str,
    /// Of a longer input it reads so many bytes.
    pub max_bytes: usize,
    /// Bytes that it may hold at a time for each byte of its input.
    pub bytes_for_each: usize,
    /// Bytes that it may hold beside that, whatever its input.
    pub bytes_beside: usize,
    run: fn(&[u8]) -> bool,
}

/// What is set aside for lengths that are only announced: bincode takes one text or run of bytes at its word up to the 16 MiB that a
/// message may have, lists up to a mebibyte each; protobuf up to 10 MB. It is not touched before the bytes are there, and goes at once.
const AT_ITS_WORD: usize = 32 << 20;

/// The state of any cluster is longer than what others begin with: it names the replicas of every slot.
const A_STATE: usize = 64 << 10;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { run: wire::frame, bytes_beside: AT_ITS_WORD, ..Target::of("frame") },
    Target { run: wire::greeting, bytes_for_each: 8, bytes_beside: 1 << 10, ..Target::of("greeting") },
    Target { run: wire::fixed, ..Target::of("fixed") },
    Target { run: wire::proposal, bytes_beside: AT_ITS_WORD, ..Target::of("proposal") },
    Target { run: wire::orders, bytes_beside: AT_ITS_WORD, ..Target::of("orders") },
    Target { run: wire::gpu_worker, ..Target::of("gpu_worker") },
    Target { run: wire::block_codec, bytes_beside: 1 << 20, ..Target::of("block_codec") },
    Target { run: text::words, ..Target::of("words") },
    Target { run: text::config, bytes_for_each: 512, bytes_beside: 1 << 20, ..Target::of("config") },
    // One run of 2^20 blocks is told in a few bytes, and packed text is at most as long as the longest line.
    Target { run: traces::trace, bytes_for_each: 64, bytes_beside: 64 << 20, ..Target::of("trace") },
    Target {
        run: group::message,
        bytes_for_each: 128,
        bytes_beside: AT_ITS_WORD,
        ..Target::of("raft_message")
    },
    Target { run: group::frame, ..Target::of("raft_frame") },
    Target { run: group::words, bytes_beside: AT_ITS_WORD, ..Target::of("raft_words") },
    Target { run: disk::log_record, bytes_for_each: 64, ..Target::of("log_record") },
    Target { run: disk::log_segment, bytes_for_each: 64, max_bytes: 16 << 10, ..Target::of("log_segment") },
    Target {
        run: disk::state,
        max_bytes: A_STATE,
        bytes_for_each: 256,
        bytes_beside: AT_ITS_WORD,
        ..Target::of("state")
    },
    Target {
        run: disk::backup,
        max_bytes: A_STATE,
        bytes_for_each: 256,
        bytes_beside: AT_ITS_WORD,
        ..Target::of("backup")
    },
    Target { run: disk::disk_record, ..Target::of("disk_record") },
    Target { run: disk::snapshot_block, max_bytes: 256, ..Target::of("snapshot_block") },
    Target { run: disk::snapshot_manifest, bytes_for_each: 256, ..Target::of("snapshot_manifest") },
    Target { run: engines::cache_events, bytes_for_each: 512, ..Target::of("cache_events") },
    Target { run: engines::zmtp, bytes_beside: 256 << 10, ..Target::of("zmtp") },
    Target { run: admin::json, bytes_for_each: 512, ..Target::of("admin_json") },
    Target { run: text::redis, bytes_for_each: 128, ..Target::of("redis") },
];

impl Target {
    const fn of(name: &'static str) -> Target {
        Target { name, max_bytes: 4096, bytes_for_each: 32, bytes_beside: 64 << 10, run: |_| false }
    }

    /// Has it read `bytes`; returns whether they were read as something.
    ///
    /// # Panics
    /// When it does not do as is told above.
    pub fn check(&self, bytes: &[u8]) -> bool {
        let bytes = &bytes[..bytes.len().min(self.max_bytes)];
        let most = self.bytes_beside + self.bytes_for_each * bytes.len();
        let mut is_read = false;
        let held = allocation_counter::measure(|| is_read = (self.run)(bytes)).bytes_max;
        assert!(
            held <= most as u64,
            "{} held {held} bytes for {}, allowed are {most}",
            self.name,
            bytes.len()
        );
        is_read
    }
}

/// Finds a target by its name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Gives what ends with the XXH3 of all before it that sum: a block's header, a state.
fn summed(bytes: &mut [u8]) -> Option<()> {
    let (told, sum) = bytes.split_last_chunk_mut::<8>()?;
    *sum = xxh3_64(told).to_le_bytes();
    Some(())
}

/// Checks that what was read and written is read as the same again; returns whether it was read.
fn same_again(bytes: &[u8], again: impl Fn(&[u8]) -> Option<Vec<u8>>) -> bool {
    let Some(once) = again(bytes) else { return false };
    let twice = again(&once);
    assert!(twice.as_ref() == Some(&once), "read {once:02x?}, which is read as {twice:02x?}");
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "held")]
    fn a_target_that_takes_a_length_at_its_word_is_found_out() {
        let run = |bytes: &[u8]| Vec::<u8>::with_capacity(usize::from(bytes[0]) << 12).is_empty();
        Target { run, ..Target::of("trusting") }.check(&[255]);
    }

    #[test]
    #[should_panic(expected = "which is read as")]
    fn what_is_read_as_something_else_than_it_was_written_as_is_found_out() {
        same_again(&[1], |bytes| Some(vec![bytes[0] + 1]));
    }
}
