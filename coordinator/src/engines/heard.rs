//! Batches of engines' events on their way to who publishes block events by the same names. As many wait as have room; what has none is missed,
//! and its blocks are then told of by their own keys.

use kvhive_protocol::engines::Engine;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes of batches that wait: an engine that repeats what it has says all of it at once.
const WAITING_BYTES: usize = 64 << 20;
/// What a batch takes beside its bytes.
const EACH: usize = 256;

/// A batch of an engine's events.
pub(crate) struct Heard {
    pub(crate) engine: Arc<Engine>,
    pub(crate) payload: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// Where batches are told. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Teller {
    sender: mpsc::UnboundedSender<Heard>,
    room: Arc<Semaphore>,
}

/// Makes both ends.
pub(crate) fn telling() -> (Teller, mpsc::UnboundedReceiver<Heard>) {
    let (sender, heard) = mpsc::unbounded_channel();
    (Teller { sender, room: Arc::new(Semaphore::new(WAITING_BYTES)) }, heard)
}

impl Teller {
    /// Tells of a batch, if there is room for it.
    pub(super) fn tell(&self, engine: &Arc<Engine>, payload: &[u8]) {
        let Ok(bytes) = u32::try_from(payload.len() + EACH) else { return };
        let Ok(room) = self.room.clone().try_acquire_many_owned(bytes) else { return };
        let heard = Heard { engine: engine.clone(), payload: payload.to_vec(), _room: room };
        // Nobody hears it any more where the coordinator ends.
        let _ = self.sender.send(heard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::TenantId;

    #[test]
    fn as_many_batches_wait_as_have_room() {
        let engine = Arc::new(Engine {
            name: "vllm-0".to_owned(),
            model: "tiny".to_owned(),
            tenant: TenantId(1),
            block_tokens: 4,
            events: "127.0.0.1:9".to_owned(),
            replay: None,
            topic: String::new(),
            node: None,
            blocks: None,
        });
        let (teller, mut heard) = telling();
        let large = vec![0; WAITING_BYTES / 2 - EACH];
        for _ in 0..3 {
            teller.tell(&engine, &large);
        }
        assert_eq!(heard.len(), 2);
        drop(heard.try_recv().expect("two wait"));
        teller.tell(&engine, &large);
        assert_eq!(heard.len(), 2, "what was taken makes room");
    }
}
