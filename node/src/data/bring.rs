//! Blocks that lie on disk are read before they are sent, side by side. What there is no room or no time for is a miss.

use crate::data::plane::DataPlane;
use crate::guards::{Lent, ReadGuard, RecordGuard, Unread};
use futures_util::future::join_all;
use std::time::Duration;
use tokio::time::timeout;

/// A fetch waits this long for room among the blocks being read.
const ROOM_LIMIT: Duration = Duration::from_secs(1);

impl DataPlane {
    /// Has what was lent at hand, in its order.
    pub(super) async fn bring(&self, lent: Vec<Option<Lent>>) -> Vec<Option<Result<ReadGuard, Unread>>> {
        let mut here = Vec::with_capacity(lent.len());
        let mut wanted: Vec<(usize, RecordGuard)> = Vec::new();
        for (at, one) in lent.into_iter().enumerate() {
            here.push(match one {
                Some(Lent::Guard(guard)) => Some(Ok(guard)),
                Some(Lent::Record(record)) if record.disk_answers() => {
                    wanted.push((at, record));
                    Some(Err(Unread::Late))
                }
                // Not even room is waited for: the asker goes on to another replica, or computes.
                Some(Lent::Record(record)) => {
                    record.give_up();
                    Some(Err(Unread::Late))
                }
                None => None,
            });
        }
        if wanted.is_empty() {
            return here;
        }
        // As much of the fetch as can be held at once, from its beginning.
        let (mut permits, mut fits) = (0u32, 0);
        for (_, record) in &wanted {
            let more = permits + self.permits(record.bytes());
            if fits > 0 && more > self.permits(u64::MAX) {
                break;
            }
            (permits, fits) = (more, fits + 1);
        }
        wanted.drain(fits..).for_each(|(_, record)| record.give_up());
        let room = timeout(ROOM_LIMIT, self.bringing.clone().acquire_many_owned(permits)).await;
        let Ok(Ok(mut room)) = room else {
            wanted.into_iter().for_each(|(_, record)| record.starve());
            return here;
        };
        let reads = wanted.into_iter().map(|(at, record)| {
            let own = room.split(self.permits(record.bytes()) as usize);
            async move { (at, record.read(own).await) }
        });
        for (at, read) in join_all(reads).await {
            here[at] = Some(read);
        }
        here
    }
}
