//! Whether a disk takes blocks: closed by what fails, opened again by a probe that works. And whether it gives any: one that
//! has fallen silent is not asked. Pure: time comes in with each call.

use kvhive_protocol::Moment;
use std::io;
use std::time::Duration;

/// Reads in a row whose failure closes the disk: one bad sector does not.
const MAX_BAD_READS: u32 = 4;

/// How long a closed disk is left alone before it is probed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProbeWaits {
    /// After it was closed.
    pub(crate) least: Duration,
    /// Doubled up to this while probes fail, or while what a probe has opened fails at once.
    pub(crate) most: Duration,
}

impl Default for ProbeWaits {
    fn default() -> ProbeWaits {
        ProbeWaits { least: Duration::from_secs(1), most: Duration::from_secs(60) }
    }
}

/// What a transfer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It ended well.
    Worked,
    /// It ended badly.
    Failed,
    /// It has not ended, and is not waited for any longer.
    Silent,
}

impl From<&io::Result<()>> for End {
    fn from(result: &io::Result<()>) -> End {
        match result {
            Ok(()) => End::Worked,
            // The kernel has a number with its own.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() => {
                End::Silent
            }
            Err(_) => End::Failed,
        }
    }
}

/// The state of one disk.
#[derive(Debug)]
pub(crate) struct Health {
    waits: ProbeWaits,
    /// When it is probed, while it is closed.
    probe_at: Option<Moment>,
    wait: Duration,
    bad_reads: u32,
    is_silent: bool,
}

impl Health {
    /// Begins open.
    pub(crate) fn new(waits: ProbeWaits) -> Health {
        Health { waits, probe_at: None, wait: waits.least, bad_reads: 0, is_silent: false }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.probe_at.is_none()
    }

    /// Says whether it leaves who asks without an answer: nobody should, until a probe has had one.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// A write of a block has come to this, or what must be done before there can be one. Says whether that closed the disk.
    pub(crate) fn wrote(&mut self, now: Moment, end: End) -> bool {
        if end == End::Worked {
            self.wait = self.waits.least;
            return false;
        }
        self.is_silent |= end == End::Silent;
        self.close(now)
    }

    /// A read of a block has come to this. Says whether that closed the disk.
    pub(crate) fn read(&mut self, now: Moment, end: End) -> bool {
        self.bad_reads = if end == End::Worked { 0 } else { self.bad_reads.saturating_add(1) };
        if self.bad_reads < MAX_BAD_READS {
            return false;
        }
        self.is_silent |= end == End::Silent;
        self.close(now)
    }

    /// A read did not even begin: what it would take is held by others. Says whether that closed the disk: where it left these
    /// without an answer, it is one more.
    pub(crate) fn starved(&mut self, now: Moment) -> bool {
        self.bad_reads > 0 && self.read(now, End::Silent)
    }

    fn close(&mut self, now: Moment) -> bool {
        let was_open = self.is_open();
        if was_open {
            self.probe_at = Some(now + self.wait);
            self.wait = (self.wait * 2).min(self.waits.most);
        }
        was_open
    }

    /// Says whether a closed disk is to be probed now.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.probe_at.is_some_and(|at| at <= now)
    }

    /// A probe has ended. Says whether that opened the disk.
    pub(crate) fn probed(&mut self, now: Moment, worked: bool) -> bool {
        if self.is_open() {
            return false;
        }
        self.probe_at = (!worked).then_some(now + self.wait);
        if worked {
            (self.bad_reads, self.is_silent) = (0, false);
        } else {
            self.wait = (self.wait * 2).min(self.waits.most);
        }
        worked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn health() -> Health {
        Health::new(ProbeWaits { least: Duration::from_millis(10), most: Duration::from_millis(35) })
    }

    #[test]
    fn a_write_that_fails_closes_and_a_probe_that_works_opens() {
        let mut health = health();
        assert!(health.wrote(at(0), End::Failed) && !health.is_open());
        assert!(!health.wrote(at(1), End::Failed), "closed once");
        assert!(!health.is_due(at(9)) && health.is_due(at(10)));
        assert!(health.probed(at(10), true) && health.is_open());
    }

    #[test]
    fn probes_that_fail_are_made_more_and_more_rarely() {
        let mut health = health();
        health.wrote(at(0), End::Failed);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..4 {
            let begun = now;
            while !health.is_due(at(now)) {
                now += 1;
            }
            waits.push(now - begun);
            assert!(!health.probed(at(now), false));
        }
        assert_eq!(waits, [10, 20, 35, 35]);
        health.probed(at(now), true);
        health.wrote(at(now), End::Failed);
        assert!(!health.is_due(at(now + 34)), "what a probe opened and fails at once waits as long");
        health.probed(at(now), true);
        health.wrote(at(now), End::Worked);
        health.wrote(at(now), End::Failed);
        assert!(health.is_due(at(now + 10)), "a block that was written makes up for it");
    }

    #[test]
    fn a_bad_sector_closes_nothing_and_many_in_a_row_do() {
        let mut health = health();
        for _ in 0..10 {
            for _ in 1..MAX_BAD_READS {
                assert!(!health.read(at(0), End::Failed));
            }
            assert!(!health.read(at(0), End::Worked));
        }
        let closed = (0..MAX_BAD_READS).map(|_| health.read(at(0), End::Failed)).collect::<Vec<_>>();
        assert_eq!(closed, [false, false, false, true]);
    }

    #[test]
    fn a_disk_that_fell_silent_is_not_asked_until_a_probe_had_an_answer() {
        let silent_reads = |before: End| {
            let mut health = health();
            assert!((1..MAX_BAD_READS).all(|_| !health.read(at(0), before)));
            assert!(!health.is_silent(), "{before:?}");
            (health.read(at(0), End::Silent), health)
        };
        for before in [End::Failed, End::Silent] {
            let (closed, mut health) = silent_reads(before);
            assert!(closed && health.is_silent() && !health.is_open());
            assert!(!health.probed(at(10), false) && health.is_silent());
            assert!(health.probed(at(40), true) && !health.is_silent());
        }
        let mut health = health();
        assert!((0..10).all(|_| !health.starved(at(0))), "a disk that answers is busy, no more");
        assert!(!health.read(at(0), End::Silent));
        assert_eq!([(); 3].map(|()| health.starved(at(0))), [false, false, true]);
        let mut full = self::health();
        full.wrote(at(0), End::Failed);
        assert!(!full.is_silent(), "what a full disk holds it still gives");
        assert!((0..MAX_BAD_READS).all(|_| !full.read(at(1), End::Silent)));
        assert!(full.is_silent(), "until it does not");
        let mut health = self::health();
        assert!(health.wrote(at(0), End::Silent) && health.is_silent());
    }
}
