//! Ends the process when its issuing thread does not come back: nothing else helps against a library that hangs.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// It waits for what it is told, which may take for ever.
const IDLE: u64 = u64::MAX;
/// How often it is looked, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// The issuing thread says here that it lives.
#[derive(Clone)]
pub(super) struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    made: Instant,
    /// Until when it must be back, in milliseconds since `made`.
    until: AtomicU64,
}

impl Watch {
    /// Starts the thread that looks; the one that it watches must be back in so long, and later mostly in `limit`.
    pub(super) fn start(first: Duration, limit: Duration) -> std::io::Result<Watch> {
        let watch = Watch { shared: Arc::new(Shared { made: Instant::now(), until: AtomicU64::new(IDLE) }) };
        watch.back_in(first);
        let shared = watch.shared.clone();
        let often = (limit / 4).clamp(LOOK.0, LOOK.1);
        let thread = std::thread::Builder::new().name("watchdog".to_owned());
        thread.spawn(move || {
            loop {
                let (now, until) = (shared.now_ms(), shared.until.load(Ordering::Relaxed));
                if until != IDLE && now > until {
                    end("a call has not returned in the time that any may take");
                }
                std::thread::sleep(often);
            }
        })?;
        Ok(watch)
    }

    /// Says that the thread lives, and will be back in so long.
    pub(super) fn back_in(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let until = self.shared.now_ms().saturating_add(time).min(IDLE - 1);
        self.shared.until.store(until, Ordering::Relaxed);
    }

    /// Says that the thread lives, and waits.
    pub(super) fn idle(&self) {
        self.shared.until.store(IDLE, Ordering::Relaxed);
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(IDLE - 1)
    }
}

/// Ends the process where it stands: no destructor, no handler of a library that hangs.
fn end(why: &str) -> ! {
    // Whoever reads standard error may be gone.
    let _ = writeln!(std::io::stderr(), "kvhive's GPU worker ends: {why}");
    std::process::abort()
}
