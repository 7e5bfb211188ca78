//! A disk that does as a test tells it.

use super::buffer::Piece;
use super::queue::{Backend, Done, Transfer, Way};
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// What is wrong with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// It takes no more.
    Full,
    /// It neither takes nor gives.
    Broken,
    /// It does not answer.
    Silent,
    /// It says that it has written all, and has written each transfer's first page alone.
    Tears,
}

/// A real one, with trouble.
pub(crate) struct Faulty {
    inner: Arc<dyn Backend>,
    trouble: Mutex<Trouble>,
    /// Whom it has not answered.
    unheard: Mutex<Vec<(Transfer, oneshot::Sender<Done>)>>,
}

impl Faulty {
    pub(crate) fn over(inner: Arc<dyn Backend>) -> Arc<Faulty> {
        Arc::new(Faulty { inner, trouble: Mutex::new(Trouble::None), unheard: Mutex::default() })
    }

    pub(crate) fn has(&self, trouble: Trouble) {
        *self.trouble.lock().expect("nobody panics here") = trouble;
        let unheard = std::mem::take(&mut *self.unheard.lock().expect("nobody panics here"));
        drop(unheard);
    }

    /// Returns how many buffers of at least these bytes it has without an answer. As a kernel it owns them until then.
    pub(crate) fn buffers_held(&self, bytes: usize) -> usize {
        let unheard = self.unheard.lock().expect("nobody panics here");
        let pieces = unheard.iter().flat_map(|(transfer, _)| &transfer.pieces);
        pieces.filter(|piece| matches!(piece, Piece::Own(_)) && piece.bytes().len() >= bytes).count()
    }

    /// Says whether it has a write without an answer.
    pub(crate) fn has_writes(&self) -> bool {
        let unheard = self.unheard.lock().expect("nobody panics here");
        unheard.iter().any(|(transfer, _)| transfer.way == Way::Write)
    }
}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn submit(&self, mut transfer: Transfer) -> oneshot::Receiver<Done> {
        const ENOSPC: i32 = 28;
        const EIO: i32 = 5;
        let trouble = *self.trouble.lock().expect("nobody panics here");
        let errno = match (trouble, transfer.way) {
            (Trouble::Full, Way::Write) => ENOSPC,
            (Trouble::Broken, _) => EIO,
            (Trouble::Silent, _) => {
                let (done, waits) = oneshot::channel();
                self.unheard.lock().expect("nobody panics here").push((transfer, done));
                return waits;
            }
            (Trouble::Tears, Way::Write) => {
                transfer.pieces.truncate(1);
                return self.inner.submit(transfer);
            }
            _ => return self.inner.submit(transfer),
        };
        let (done, waits) = oneshot::channel();
        drop(transfer.holds);
        let failed = Done { result: Err(io::Error::from_raw_os_error(errno)), pieces: transfer.pieces };
        assert!(done.send(failed).is_ok(), "somebody waits");
        waits
    }

    fn waiting(&self) -> usize {
        self.inner.waiting()
    }

    fn forget_abandoned(&self) {
        self.inner.forget_abandoned();
    }
}
