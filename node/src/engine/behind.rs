//! Blocks that wait to be stored while requests go on: bounded in bytes, and found here until they are in the cluster.

use kvhive_protocol::BlockKey;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// What one permit stands for.
const UNIT: u64 = 1 << 10;

/// A block's bytes.
pub(super) type Bytes = Arc<[u8]>;

/// What waits.
pub(super) struct Behind {
    blocks: Arc<Mutex<HashMap<BlockKey, Bytes>>>,
    room: Arc<Semaphore>,
    /// All of its permits.
    units: u32,
}

impl Behind {
    /// Holds so many bytes, or one request's.
    pub(super) fn new(bytes: u64) -> Behind {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        Behind { blocks: Arc::default(), room: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Has `store` run, which stores these blocks; waits while there is no room for them.
    pub(super) async fn add(
        &self,
        blocks: Vec<(BlockKey, Bytes)>,
        store: impl Future<Output = ()> + Send + 'static,
    ) {
        let bytes: u64 = blocks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let room = self.room.clone().acquire_many_owned(units).await;
        let room = room.expect("the semaphore is never closed");
        let keys: Vec<(BlockKey, Bytes)> = blocks.clone();
        lock(&self.blocks).extend(blocks);
        let waiting = self.blocks.clone();
        tokio::spawn(async move {
            store.await;
            let mut waiting = lock(&waiting);
            for (key, bytes) in keys {
                // Somebody may have computed the same block meanwhile.
                if waiting.get(&key).is_some_and(|now| Arc::ptr_eq(now, &bytes)) {
                    waiting.remove(&key);
                }
            }
            drop(room);
        });
    }

    /// Returns those of some blocks that wait.
    pub(super) fn find(&self, keys: &[BlockKey]) -> HashMap<BlockKey, Bytes> {
        let blocks = lock(&self.blocks);
        keys.iter().filter_map(|key| Some((*key, blocks.get(key)?.clone()))).collect()
    }

    /// Waits until all that was added before is stored, or could not be.
    pub(super) async fn settled(&self) {
        let all = self.room.acquire_many(self.units).await;
        drop(all.expect("the semaphore is never closed"));
    }
}

fn lock(blocks: &Mutex<HashMap<BlockKey, Bytes>>) -> MutexGuard<'_, HashMap<BlockKey, Bytes>> {
    blocks.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn block(number: u8) -> (BlockKey, Bytes) {
        (BlockKey::from_bytes([number; 32]), vec![number; 1 << 10].into())
    }

    #[tokio::test]
    async fn what_waits_is_found_until_it_is_stored_and_takes_room_so_long() {
        let behind = Behind::new(2 << 10);
        let keys = [1, 2, 3].map(|number| block(number).0);
        let (end, ends) = oneshot::channel::<()>();
        behind.add(vec![block(1), block(2)], async move { ends.await.expect("it is told") }).await;
        assert_eq!(behind.find(&keys).len(), 2);
        let third = behind.add(vec![block(3)], async {});
        tokio::pin!(third);
        tokio::select! {
            biased;
            () = &mut third => panic!("there is no room"),
            () = tokio::task::yield_now() => {}
        }
        end.send(()).expect("it is awaited");
        third.await;
        behind.settled().await;
        assert_eq!(behind.find(&keys).len(), 0);
        // More than there is room for at all goes alone.
        behind.add((1..=5).map(block).collect(), async {}).await;
        behind.settled().await;
    }
}
