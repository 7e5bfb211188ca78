//! A disk that does as a test tells it.

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
        self.unheard.lock().expect("nobody panics here").clear();
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
        let failed = Done { result: Err(io::Error::from_raw_os_error(errno)), pieces: transfer.pieces };
        assert!(done.send(failed).is_ok(), "somebody waits");
        waits
    }

    fn waiting(&self) -> usize {
        self.inner.waiting()
    }
}
