//! How large a block may be: the largest frames of a cluster's devices.

use crate::client::Client;
use crate::error::ClientError;
use crate::namespace::NamespaceClient;
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What devices said of their frames is taken to hold for so long: nodes start anew with others.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Bytes of the largest frame of a device: where these are fewest, and where they are most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRoom {
    /// Of the device whose largest frame is smallest: no larger block is stored everywhere.
    pub least: u64,
    /// Of the device whose largest frame is largest: no larger block is stored anywhere.
    pub most: u64,
}

impl fmt::Display for FrameRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.least == self.most {
            true => write!(f, "{} bytes", self.most),
            false => write!(f, "{} to {} bytes, by device", self.least, self.most),
        }
    }
}

impl FrameRoom {
    /// Sums up devices, of which each says what frames it has; none where none says so.
    fn of(devices: impl Iterator<Item = Option<u64>>) -> Option<FrameRoom> {
        devices.flatten().fold(None, |room: Option<FrameRoom>, bytes| {
            let FrameRoom { least, most } = room.unwrap_or(FrameRoom { least: bytes, most: bytes });
            Some(FrameRoom { least: least.min(bytes), most: most.max(bytes) })
        })
    }
}

impl Client {
    /// Returns how large the largest frames are of the devices that are up and answer; none where none does.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when no node is up.
    pub async fn frame_room(&self) -> Result<Option<FrameRoom>, ClientError> {
        let devices = self.strategies(None, false).await?;
        let largest = |reports: &[kvhive_protocol::strategy::StrategyReport]| {
            reports.iter().map(|report| report.frame_bytes).max()
        };
        Ok(FrameRoom::of(devices.iter().map(|device| device.reports.as_deref().ok().and_then(largest))))
    }
}

impl NamespaceClient {
    /// The same, for whoever says why a block was refused as too large: as it was known within the last minute, and none where that
    /// cannot be told within the time that a call of this namespace has.
    pub async fn frame_room(&self) -> Option<FrameRoom> {
        let known = &self.shared().frame_room;
        let lock = || known.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some((when, room)) = *lock()
            && when.elapsed() < KNOWN_FOR
        {
            return Some(room);
        }
        let room = timeout(self.limit(), self.client().frame_room()).await.ok()?.ok()??;
        *lock() = Some((Instant::now(), room));
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_all_devices_have_and_what_one_has() {
        assert_eq!(FrameRoom::of([None, None].into_iter()), None);
        let same = FrameRoom::of([Some(65_536), None, Some(65_536)].into_iter()).expect("two say so");
        assert_eq!(same.to_string(), "65536 bytes");
        let other = FrameRoom::of([Some(65_536), Some(1 << 20), Some(4096)].into_iter()).expect("three do");
        assert_eq!(other, FrameRoom { least: 4096, most: 1 << 20 });
        assert_eq!(other.to_string(), "4096 to 1048576 bytes, by device");
    }
}
