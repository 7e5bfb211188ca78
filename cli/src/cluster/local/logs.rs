//! What the processes of a local cluster have written.

use super::Cluster;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

impl Cluster {
    pub(super) fn log_file(&self, id: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{id}.log"))
    }

    /// Returns the end of a process's log.
    pub(crate) fn log_tail(&self, id: &str) -> String {
        const TAIL_BYTES: u64 = 4096;
        let mut text = String::new();
        if let Ok(mut file) = File::open(self.log_file(id)) {
            let length = file.metadata().map_or(0, |meta| meta.len());
            if file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).is_ok() {
                let mut bytes = Vec::new();
                // A log that can't be read leaves the tail empty; the caller names the file.
                let _ = file.take(TAIL_BYTES).read_to_end(&mut bytes);
                text = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
        text
    }
}
