//! Bits of blocks flipped in the files of a disk tier, below everything that checks them.

use super::load::{KEPT, Load};
use super::shared::Shared;
use anyhow::Result;
use kvhive_oracle::Random;
use kvhive_protocol::BlockHeader;
use kvhive_protocol::block::HEADER_BYTES;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a page: before each block there is one that says what it is (docs/disk.md).
const PAGE: u64 = 4096;
/// Where in it the block's header is.
const HEADER_AT: usize = 88;
const MAGIC: &[u8] = b"KVRECORD";
/// Records flipped at a time.
const FLIPS: usize = 128;
/// Records looked at, at most, to find as many.
const LOOKS: u64 = 2000;

/// How many damaged records each node's process said that it had found when it was last asked.
#[derive(Default)]
pub(super) struct Damage(BTreeMap<String, (u32, u64)>);

impl Damage {
    /// A node's process says that it has found so many since it was started. Returns how many of them nobody was told of.
    pub(super) fn says(&mut self, node: &str, pid: u32, found: u64) -> u64 {
        let before = self.0.insert(node.to_owned(), (pid, found));
        // Another process counts from its own start on, and what the one before had told was counted.
        let told = before.filter(|(of, _)| *of == pid).map_or(0, |(_, told)| told);
        found.saturating_sub(told)
    }
}

/// Returns the files of a node's disk tiers, with the bytes of their frames.
pub(super) fn files(dir: &Path, node: &str) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for device in std::fs::read_dir(dir.join("data").join(node)).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(device.path()).into_iter().flatten().flatten() {
            let name = file.file_name();
            let name = name.to_str().unwrap_or_default();
            // Encrypted, or plain.
            let bytes = name.strip_prefix("sealed-").or_else(|| name.strip_prefix("records-"));
            let frame = bytes.and_then(|bytes| bytes.parse().ok());
            found.extend(frame.map(|frame: u64| (file.path(), frame)));
        }
    }
    found.sort();
    found
}

/// Flips one bit each of some blocks of this run that are on a node's disks, of none that are promised: of those nothing would be any
/// more. Returns which blocks.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn flip(
    dir: &Path,
    node: &str,
    random: &mut Random,
    load: &Load,
    shared: &Shared,
) -> Result<Vec<(u16, u32, u16)>> {
    let mut flipped = Vec::new();
    for (path, frame) in files(dir, node) {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let record = PAGE + frame.next_multiple_of(PAGE);
        let records = file.metadata()?.len() / record;
        for _ in 0..LOOKS.min(records * 4) {
            if flipped.len() >= FLIPS {
                break;
            }
            let at = random.below(records) * record;
            let Some(header) = header(&file, at)? else { continue };
            let block = load.block_of(&header).filter(|(tenant, ..)| *tenant != KEPT);
            let Some((tenant, name, place)) = block else { continue };
            // Told before it is done: a fetch may miss it from then on.
            shared.oracle().damages(tenant, name, place);
            let byte = at + PAGE + random.below(header.payload_bytes);
            let mut one = [0];
            file.read_exact_at(&mut one, byte)?;
            one[0] ^= 1 << random.below(8);
            file.write_all_at(&one, byte)?;
            // Whoever took the record's place meanwhile has the flipped bit.
            if let Some((tenant, name, place)) = self::header(&file, at)?.and_then(|now| load.block_of(&now))
            {
                shared.oracle().damages(tenant, name, place);
            }
            flipped.push((tenant, name, place));
        }
        // Nodes read past the page cache.
        file.sync_data()?;
    }
    Ok(flipped)
}

/// Reads the header of the block in a record, if there is one.
fn header(file: &File, at: u64) -> Result<Option<BlockHeader>> {
    let mut page = [0; PAGE as usize];
    file.read_exact_at(&mut page, at)?;
    let mut bytes = [0; HEADER_BYTES];
    bytes.copy_from_slice(&page[HEADER_AT..HEADER_AT + HEADER_BYTES]);
    let header = BlockHeader::decode(&bytes).ok().filter(|header| header.payload_bytes > 0);
    Ok(header.filter(|_| page.starts_with(MAGIC)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_process_of_a_node_has_found_is_counted_once_and_stays_counted() {
        let mut damage = Damage::default();
        let mut says = |node, pid, found| damage.says(node, pid, found);
        assert_eq!([says("node-1", 10, 5), says("node-1", 10, 5), says("node-1", 10, 8)], [5, 0, 3]);
        assert_eq!(says("node-2", 11, 4), 4, "another node");
        // Started again, whoever has ended it; it may have found more by now than the one before.
        assert_eq!([says("node-1", 12, 9), says("node-1", 12, 10)], [9, 1]);
        assert_eq!(says("node-2", 11, 4), 0);
    }
}
